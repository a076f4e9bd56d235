"""Full pretraining steps, as the training loop makes them: teacher, losses, gradients, clipping, Adam.

Inputs are random numbers of the named size; masks and dropouts are those of training. The matrix work that
shares refer to is the reference algorithm's, whatever ours leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import task_class
from d2v_platform.training.optimizer import make_optimizer
from d2v_platform.training.workload import matrix_work
from data2vec.audio_masking import block_masks_1d, mask_set
from data2vec.compilation import compile_regions
from data2vec.config import AudioModalityConfig, Data2VecMultiConfig
from data2vec.conv_spec import frame_count, parse_conv_layers
from data2vec.errors import Data2VecError
from data2vec.masking import MaskSet, clone_ids
from data2vec.optim import scale_and_clip
from data2vec.pretraining import Data2VecPretraining
from data2vec.randomness import seed_dropout
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig

from .measure import Case

TEXT_VOCABULARY = 50265


def case(
    name: str,
    recipe_name: str,
    samples: int,
    length: int,
    unit: str,
    *,
    clones: int | None = None,
    compiled: bool = False,
) -> Case:
    """The step of a recipe on B samples.

    Args:
        name: for the table.
        recipe_name: a pretraining recipe.
        samples: B.
        length: tokens, waveform samples at 16 kHz, or pixels of an image's side.
        unit: "tokens", "seconds of audio" or "images".
        clones: M instead of the recipe's.
        compiled: by inductor; the first step, which warms up, compiles.
    """
    overrides = [] if clones is None else [f"model.clone_batch={clones}"]
    recipe = load(recipe_name, overrides)
    with torch.device("meta"):
        work = matrix_work(recipe, make_model(recipe))
    if work is None:
        raise Data2VecError(f"the matrix work of {recipe_name} is not known")
    units = {"tokens": samples * length, "seconds of audio": samples * length / 16000, "images": samples}
    return Case(
        name=f"{name}, compiled" if compiled else name,
        build=build_step,
        options={
            "recipe_name": recipe_name,
            "overrides": overrides,
            "samples": samples,
            "length": length,
            "backend": "inductor" if compiled else None,
        },
        matrix_flops=work(samples, length),
        units=units[unit],
        unit=unit,
    )


def build_step(
    recipe_name: str,
    overrides: Sequence[str],
    samples: int,
    length: int,
    device: torch.device | None = None,
    backend: str | None = None,
) -> Callable[[int], None]:
    """One update of the loop, without its bookkeeping; the argument is the number of completed updates.

    Args:
        recipe_name: a pretraining recipe.
        overrides: of the recipe.
        samples: B.
        length: as of :func:`case`.
        device: computes in bf16; ``None`` is the CPU in fp32.
        backend: of ``torch.compile``; ``None`` compiles nothing.
    """
    recipe = load(recipe_name, overrides)
    model = make_model(recipe).train()
    source = random_input(recipe, samples, length)
    if device is not None:
        model, source = model.to(device), source.to(device)
    if backend is not None:
        compile_regions(model, sizes_change=task_class(recipe).sizes_change, backend=backend)
    ids = torch.arange(samples)
    optimizer = make_optimizer(recipe, model.student)
    parameters = [p for p in model.student.parameters() if p.requires_grad]

    def step(update: int) -> None:
        model.teacher.step(update)
        for parameter in parameters:
            parameter.grad = None
        seed_dropout("dropout", recipe.common.seed, update, 0)
        options: dict[str, Any] = {}
        if isinstance(recipe.model, Data2VecMultiConfig) and recipe.model.modalities.audio is not None:
            options["masks"] = audio_block_masks(recipe.model, ids, length, update)
        lower = device is not None
        with torch.autocast("cpu" if device is None else device.type, torch.bfloat16, enabled=lower):
            output = model(source, None, ids, update=update, seed=recipe.common.seed, **options)
        output.loss.backward()
        scale_and_clip(parameters, output.sample_size, recipe.optimization.clip_norm)
        optimizer.step(update)

    return step


def make_model(recipe: Recipe) -> Any:
    """The pretraining model of a recipe."""
    config, seed = recipe.model, recipe.common.seed
    if isinstance(config, Data2VecAudioConfig):
        return Data2VecAudioPretraining(config, seed=seed)
    if isinstance(config, Data2VecVisionConfig):
        return Data2VecVisionPretraining(config, seed=seed)
    assert isinstance(config, Data2VecMultiConfig)
    vocabulary = TEXT_VOCABULARY if config.modality_name == "TEXT" else None
    return Data2VecPretraining(config, vocab_size=vocabulary, seed=seed)


def random_input(recipe: Recipe, samples: int, length: int) -> torch.Tensor:
    """What the front end takes."""
    config = recipe.model
    if isinstance(config, Data2VecAudioConfig):
        return torch.randn(samples, length)
    if isinstance(config, Data2VecVisionConfig):
        return torch.randn(samples, 3, length, length)
    assert isinstance(config, Data2VecMultiConfig)
    if config.modality_name == "TEXT":
        return torch.randint(4, TEXT_VOCABULARY - 1, (samples, length))
    if config.modality_name == "IMAGE":
        return torch.randn(samples, 3, length, length)
    return torch.randn(samples, length)


def audio_block_masks(config: Data2VecMultiConfig, ids: torch.Tensor, length: int, update: int) -> MaskSet:
    """The masks that the audio recipes make before the model runs (``task.precompute_mask_config``)."""
    audio = config.modality
    assert isinstance(audio, AudioModalityConfig)
    row_ids = clone_ids(ids, config.clone_batch)
    mask_RT = block_masks_1d(
        row_ids,
        frame_count(parse_conv_layers(audio.feature_encoder_spec), length),
        mask_prob=audio.mask_prob,
        mask_length=audio.mask_length,
        mask_prob_adjust=audio.mask_prob_adjust,
        mask_dropout=audio.mask_dropout,
        inverse_mask=audio.inverse_mask,
        key=(config.seed, update),
    )
    return mask_set(mask_RT, row_ids, True, config.seed, update)


def load(recipe_name: str, overrides: Sequence[str], data: str = "/none") -> Recipe:
    """A recipe, by default without its data."""
    return compose(recipe_name, [f"task.data={data}", *overrides], check=False).recipe
