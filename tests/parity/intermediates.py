"""Intermediate tensors of a pretraining step under the names of ``golden/README.md``, read with hooks::

    with intermediates(model) as found:
        output = model(source)
    found["targets"]

Where a step calls a method of a module instead of the module, the method is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from data2vec.audio import AudioEncoder
from data2vec.mae import MaeDecoder, MaskedAutoencoder
from data2vec.pretraining import Comparison, Data2VecPretraining, PretrainOutput
from data2vec.student import Data2VecMulti
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.image import Data2VecVision, Data2VecVisionPretraining
from data2vec.v1.text import Data2VecTextPretraining


class Watch:
    """What was seen, by name; the hooks stand until ``hooks`` is closed."""

    def __init__(self, hooks: ExitStack) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.hooks = hooks

    def put(self, name: str, value: torch.Tensor | None) -> None:
        if value is not None:
            self.found[name] = value.detach().clone()

    def inputs(self, module: nn.Module, see: Callable[..., None]) -> None:
        """``see`` gets what enters the module."""
        self.hooks.callback(module.register_forward_pre_hook(lambda _, given: see(*given)).remove)

    def output(self, module: nn.Module, name: str, of: Callable[[Any], torch.Tensor] = lambda x: x) -> None:
        """What leaves the module, or a part of it."""
        hook = module.register_forward_hook(lambda _, __, result: self.put(name, of(result)))
        self.hooks.callback(hook.remove)

    def calls(self, owner: Any, method: str, see: Callable[..., None]) -> None:
        """``see`` gets the result and the arguments of each call."""
        original = getattr(owner, method)

        def watched(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            see(result, *arguments, **options)
            return result

        self.hooks.enter_context(mock.patch.object(owner, method, watched))


@contextmanager
def intermediates(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of the steps that are made inside; a later step replaces those of an earlier one."""
    with ExitStack() as hooks:
        watch = Watch(hooks)
        for kind, put_hooks in _OF.items():
            if isinstance(model, kind):
                put_hooks(model, watch)
        yield watch.found


def _multi(model: Data2VecPretraining, watch: Watch) -> None:
    student, encoder, teacher, put = model.student, model.student.encoder, model.teacher.module, watch.put
    whole = isinstance(teacher, Data2VecMulti)
    blocks: Any = teacher.blocks if whole else teacher
    distance, decoder, rows = model._distance, encoder.decoder, list[torch.Tensor]()
    assert decoder is not None

    def alibi(name: str, encoder: nn.Module, positions: torch.Tensor) -> None:
        if isinstance(encoder, AudioEncoder) and encoder.alibi_scale is not None:
            put(name, encoder.attention_biases(positions, None, 1)[0])

    def encoded(x: torch.Tensor, _: Any, padding: Any, *key: Any, positions_RK: torch.Tensor) -> None:
        put("student_padding_mask_unmasked", padding)
        alibi("student_alibi_bias", encoder, positions_RK)
        put("student_encoder_output", x)

    def decoded(convolved: torch.Tensor, full: torch.Tensor) -> None:
        put("decoder_input", full)
        put("decoder_output", decoder.project(convolved))

    def enters_teacher(x: torch.Tensor, *bias: Any) -> None:
        put("teacher_encoder_input", x)
        positions = torch.arange(x.shape[1], device=x.device)[None]
        alibi("teacher_alibi_bias_row0", teacher.encoder if whole else encoder, positions)

    def targets(result: torch.Tensor, source: Any, local: Any, padding: Any, *key: Any) -> None:
        put("teacher_padding_mask", padding)
        put("targets", result)

    def loss(_: Any, predictions: torch.Tensor, targets: torch.Tensor, weight: float) -> None:
        pairs = zip(predictions, targets, strict=True)
        rows.append(torch.stack([distance(prediction, target, weight) for prediction, target in pairs]))

    def name_losses(_module: nn.Module, _given: Any, output: PretrainOutput) -> None:
        for name, row in zip(output.losses, rows, strict=True):
            put(f"loss_rowsum/{name}", row)
        rows.clear()

    watch.calls(encoder, "local_features", lambda x, *_: put("local_features", x))
    watch.calls(student, "encode", encoded)
    watch.output(student.dropout_input, "student_encoder_input")
    for index, block in enumerate(student.blocks):
        watch.output(block, f"student_block{index}_x", lambda pair: pair[0])
    watch.calls(decoder, "convolve", decoded)
    if whole and teacher.encoder.config.ema_local_encoder:
        watch.calls(teacher.encoder, "local_features", lambda x, *_: put("teacher_local_features", x))
    watch.inputs(blocks[0], enters_teacher)
    for index, block in enumerate(blocks):
        watch.output(block, f"teacher_block{index}_layer_result", lambda pair: pair[1])
    watch.calls(model, "_targets", targets)
    watch.calls(model, "_distance", loss)
    watch.hooks.callback(model.register_forward_hook(name_losses).remove)


def _autoencoder(model: MaskedAutoencoder, watch: Watch) -> None:
    decoder = model.student.encoder.decoder
    assert isinstance(decoder, MaeDecoder)
    watch.calls(model.student, "encode", lambda x, *_, **__: watch.put("student_encoder_output", x))
    watch.inputs(decoder.blocks[0], lambda x: watch.put("decoder_input", x))

    def compared(_: Any, prediction: torch.Tensor, target: torch.Tensor, **reduction: str) -> None:
        watch.put("prediction", prediction)
        watch.put("target", target)

    watch.calls(F, "mse_loss", compared)


def _text_1(model: Data2VecTextPretraining, watch: Watch) -> None:
    encoder, teacher = model.student.sentence_encoder, model.teacher.module
    watch.calls(encoder, "local_features", lambda x, *_: watch.put("local_features", x))
    watch.output(encoder, "student_encoder_output")
    for index, layer in enumerate(teacher.layers):  # pyright: ignore[reportArgumentType]
        watch.output(layer, f"teacher_layer{index}_fc_TBC", _time_first)
    _regression(model, watch)


def _audio_1(model: Data2VecAudioPretraining, watch: Watch) -> None:
    student, teacher, put = model.student, model.teacher.module, watch.put

    def enters(hidden: torch.Tensor, padding: torch.Tensor | None, *key: Any) -> None:
        put("masked_encoder_input", hidden)
        put("padding_mask_frames", padding)

    watch.calls(student, "local_features", lambda x, *_: put("local_features", x))
    watch.inputs(student.encoder, enters)
    watch.output(student.encoder, "student_encoder_output")
    watch.output(teacher, "teacher_encoder_output")
    first = model.config.encoder_layers - model.config.average_top_k_layers
    for index, layer in enumerate(student.encoder.layers):
        watch.output(layer, f"student_layer{index}_fc_TBC", _time_first)
    for index, layer in enumerate(teacher.layers[first:]):  # pyright: ignore
        watch.output(layer, f"teacher_target_layer{index}_fc_TBC", _time_first)
    _regression(model, watch)


def _vision_1(model: Data2VecVisionPretraining, watch: Watch) -> None:
    student, teacher, ends = model.student, model.teacher.module, model.config.end_of_block_targets
    encoder: Any = teacher.encoder if isinstance(teacher, Data2VecVision) else teacher
    watch.calls(student, "local_features", lambda x, *_: watch.put("local_features", x))
    watch.inputs(student.encoder, lambda x: watch.put("masked_encoder_input_with_cls", x))
    watch.output(student.encoder, "student_encoder_output_no_cls", lambda x: x[:, 1:])
    for index, block in enumerate(encoder.blocks):
        watch.output(block, f"teacher_layer{index}_no_cls", lambda pair: pair[0 if ends else 1][:, 1:])
    _regression(model, watch)


def _time_first(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The feed-forward output of a layer as the reference has it, (T, B, D)."""
    return pair[1].transpose(0, 1)


def _regression(model: nn.Module, watch: Watch) -> None:
    """Predictions and targets at masked positions."""

    def compared(found: Comparison, *_: torch.Tensor) -> None:
        watch.put("pred_masked", found.prediction_ND)
        watch.put("targets_masked", found.target_ND)

    watch.calls(model, "_compare", compared)


_OF: dict[type[nn.Module], Callable[[Any, Watch], None]] = {
    Data2VecPretraining: _multi,
    MaskedAutoencoder: _autoencoder,
    Data2VecTextPretraining: _text_1,
    Data2VecAudioPretraining: _audio_1,
    Data2VecVisionPretraining: _vision_1,
}
