"""What pretraining drops at random: each rate acts, on the student alone, by its key, in training only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig
from data2vec.masking import MaskSet
from data2vec.pretraining import Data2VecPretraining
from data2vec.randomness import seed_dropout
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text import Data2VecTextPretraining
from data2vec.v1.text_config import Data2VecTextConfig
from tests.models.plain import informative
from tests.parity.intermediates import intermediates

WAVE = "[(8, 4, 2)] + [(8, 3, 2)]"
OFF = {"encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0}
DECODER = {"decoder_dim": 8, "decoder_groups": 1, "decoder_layers": 1, "input_dropout": 0.0}
SIZES = {"depth": 3, "embed_dim": 16, "num_heads": 2, "average_top_k_layers": 2}
Run = Callable[..., torch.Tensor]


def nested(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy with the dotted name set."""
    first, _, rest = name.partition(".")
    return {**values, first: nested(values.get(first, {}), rest, value) if rest else value}


def v2(kind: str, front: dict[str, Any], name: str | None, rate: float) -> tuple[Any, torch.Tensor, int]:
    values = {**SIZES, **OFF, "supported_modality": kind.upper(), "ema_encoder_only": kind == "text",
              "modalities": {"text": None, kind: {"decoder": DECODER, **front}}}  # fmt: skip
    if name:
        values = nested(values, name.replace("front", f"modalities.{kind}"), rate)
    config = Data2VecMultiConfig.from_dict(values)
    source = {"text": torch.randint(4, 20, (2, 9)), "image": torch.randn(2, 3, 9, 9),
              "audio": torch.randn(2, 40)}[kind]  # fmt: skip
    return Data2VecPretraining(config, vocab_size=20), source, 9


def build(kind: str, name: str | None, rate: float) -> tuple[Any, torch.Tensor, int]:
    """A model with one rate switched on, its input, and the number of positions."""
    if kind == "text":
        # A prenet would be the teacher's too, with its dropout.
        return v2(
            "text",
            {"mask_length": 1, "dropout": 0.0, "max_source_positions": 12, "prenet_depth": 0},
            name,
            rate,
        )
    if kind == "image":
        front = {"input_size": 9, "patch_size": 3, "embed_dim": 16, "num_extra_tokens": 1,
                 "prenet_depth": 2}  # fmt: skip
        return v2("image", front, name, rate)
    if kind == "audio":
        front = {"feature_encoder_spec": WAVE, "conv_pos_width": 9, "conv_pos_depth": 3, "conv_pos_groups": 2,
                 "prenet_depth": 2}  # fmt: skip
        return v2("audio", front, name, rate)
    values: dict[str, Any] = {"average_top_k_layers": 2}
    if kind == "v1 audio":
        values |= {"extractor_mode": "layer_norm", "encoder_layers": 3, "encoder_embed_dim": 16,
                   "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2, "conv_feature_layers": WAVE,
                   "conv_pos": 9, "conv_pos_groups": 2, "pos_conv_depth": 3, "dropout": 0.0,
                   "attention_dropout": 0.0}  # fmt: skip
        config = Data2VecAudioConfig.from_dict(nested(values, name, rate) if name else values)
        return Data2VecAudioPretraining(config), torch.randn(2, 40), 9
    if kind == "v1 text":
        sizes = {"embed_dim": 16, "ffn_embed_dim": 16, "layers": 3, "attention_heads": 2, "learned_pos": True}
        values |= {"transformer": {"dropout": 0.0, "max_source_positions": 12, "encoder": sizes}}
        config = Data2VecTextConfig.from_dict(nested(values, name, rate) if name else values)
        return Data2VecTextPretraining(config, vocab_size=20), torch.randint(4, 19, (2, 9)), 9
    values |= {"image_size": 9, "patch_size": 3, "embed_dim": 16, "depth": 3, "num_heads": 2,
               "drop_path": 0.0, "num_mask_patches": 4, "min_mask_patches_per_block": 1,
               "layer_scale_init_value": 0.5}  # fmt: skip
    config = Data2VecVisionConfig.from_dict(nested(values, name, rate) if name else values)
    return Data2VecVisionPretraining(config), torch.randn(2, 3, 9, 9), 9


def runner(kind: str, name: str | None, rate: float) -> tuple[Any, Run]:
    """A model, and its predictions and targets with a given mask and noise, dropout seeded by ``draw``."""
    torch.manual_seed(0)
    model, source, length = build(kind, name, rate)
    informative(model.student, 1)
    informative(model.teacher, 2)
    model.train()
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[0, 2:6] = mask[1, 4:8] = True
    given: dict[str, Any] = {"mask_BT": mask}
    if not kind.startswith("v1"):
        given = {"masks": MaskSet.from_mask(mask), "noise_RJD": torch.randn(2, 4, 16)}

    def run(draw: int = 0, what: str = "prediction", **key: int) -> torch.Tensor:
        seed_dropout(draw)
        with intermediates(model) as found:
            output = model(source, **given, **key)
        found["loss"] = output.loss.detach()
        return (
            found["targets" if "targets" in found else "targets_masked"] if what == "targets" else found[what]
        )

    return model, run


DROPOUTS = [
    *(("text", n) for n in ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout",
                            "dropout_input", "end_drop_path_rate", "front.decoder.input_dropout")),
    *(("image", n) for n in ("encoder_dropout", "front.prenet_dropout", "front.end_drop_path_rate",
                             "end_drop_path_rate", "front.decoder.input_dropout")),
    *(("audio", n) for n in ("post_mlp_drop", "front.prenet_dropout", "dropout_input",
                             "front.decoder.input_dropout")),
    *(("v1 audio", n) for n in ("dropout", "attention_dropout", "activation_dropout", "dropout_input")),
    *(("v1 text", f"transformer.{n}") for n in ("dropout", "attention_dropout", "activation_dropout")),
    *(("v1 vision", n) for n in ("drop_path", "attention_dropout")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), DROPOUTS)
def test_a_rate_acts_on_the_student_in_training(kind: str, name: str) -> None:
    _, plain = runner(kind, None, 0.0)
    model, noisy = runner(kind, name, 0.5)
    losses = [float(noisy(draw, "loss")) for draw in range(4)]
    assert losses[0] == float(noisy(0, "loss")), "a function of the seed of dropout"
    assert len({round(loss, 3) for loss in losses}) > 1
    assert torch.equal(noisy(0, "targets"), plain(0, "targets")), "the teacher has no dropout"
    model.eval()
    assert float(noisy(0, "loss")) == float(noisy(1, "loss"))
    assert float(noisy(0, "loss")) == pytest.approx(float(plain(0, "loss")), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("text", "layerdrop"), ("image", "layerdrop"), ("audio", "layerdrop"),
     ("audio", "front.prenet_layerdrop"), ("image", "front.prenet_layerdrop"),
     ("v1 audio", "encoder_layerdrop"), ("v1 text", "transformer.encoder.layerdrop")],
)  # fmt: skip
def test_layer_drop_is_a_function_of_seed_and_update(kind: str, name: str) -> None:
    _, run = runner(kind, name, 0.5)
    updates = [float(run(0, "loss", update=update)) for update in range(1, 9)]
    seeds = [float(run(0, "loss", update=1, seed=seed)) for seed in range(1, 9)]
    assert updates[0] == float(run(1, "loss", update=1)), "and of nothing else"
    for several in (updates, seeds):
        assert len({round(loss, 3) for loss in several}) > 2
    targets = [run(0, "targets", update=update) for update in range(1, 5)]
    assert all(torch.equal(targets[0], other) for other in targets[1:]), "the teacher drops no layer"


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_drop_path_rises_from_block_to_block(kind: str) -> None:
    values = {"end_drop_path_rate": 0.4, "start_drop_path_rate": 0.1}
    model, _, _ = build(kind, None, 0.0)
    config = Data2VecMultiConfig.from_dict(
        {**model.config.to_dict(), **values, "ema_encoder_only": kind == "text"}
    )
    front = config.modality
    front.start_drop_path_rate, front.end_drop_path_rate = 0.2, 0.3
    student = Data2VecPretraining(config, vocab_size=20).student
    assert [block.drop_path for block in student.blocks] == pytest.approx([0.1, 0.25, 0.4])
    before = student.encoder.context_encoder.blocks
    assert [block.drop_path for block in before] == pytest.approx([0.2, 0.3])


def test_drop_path_of_data2vec_1_rises_from_zero() -> None:
    model, _, _ = build("v1 vision", "drop_path", 0.4)
    assert [block.drop_path for block in model.student.encoder.blocks] == pytest.approx([0.0, 0.2, 0.4])
