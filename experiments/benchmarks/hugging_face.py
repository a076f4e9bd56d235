"""Hugging Face's data2vec 1 models at the same input: forward and backward, without teacher or optimizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from .measure import Case

_LENGTHS = {"text": "tokens", "audio": "seconds of audio", "vision": "images"}


def case(modality: str, samples: int, length: int, matrix_flops: float) -> Case:
    """The base model of a modality ("text", "audio", "vision") in train mode.

    Args:
        modality: which of Hugging Face's three models.
        samples: B.
        length: tokens, waveform samples, or pixels of an image's side.
        matrix_flops: of forward and backward.
    """
    units = {"text": samples * length, "audio": samples * length / 16000, "vision": samples}
    return Case(
        name=f"Hugging Face v1 {modality} base, forward + backward",
        build=build_step,
        options={"modality": modality, "samples": samples, "length": length},
        matrix_flops=matrix_flops,
        units=units[modality],
        unit=_LENGTHS[modality],
    )


def build_step(
    modality: str, samples: int, length: int, device: torch.device | None = None
) -> Callable[[int], None]:
    """The step to repeat; on a ``device`` in bf16."""
    import transformers

    if modality == "text":
        config = transformers.Data2VecTextConfig(vocab_size=50265, max_position_embeddings=length + 2)
        model = transformers.Data2VecTextModel(config, add_pooling_layer=False)
        source = torch.randint(4, 50000, (samples, length))
    elif modality == "audio":
        model = transformers.Data2VecAudioModel(transformers.Data2VecAudioConfig())
        source = torch.randn(samples, length)
    else:
        model = transformers.Data2VecVisionModel(transformers.Data2VecVisionConfig(), add_pooling_layer=False)
        source = torch.randn(samples, 3, length, length)
    model.train()
    if device is not None:
        model, source = model.to(device), source.to(device)  # pyright: ignore

    def step(_: int) -> None:
        model.zero_grad(set_to_none=True)
        kind = "cpu" if device is None else device.type
        with torch.autocast(kind, torch.bfloat16, enabled=device is not None):
            loss = model(source).last_hidden_state.float().square().mean()
        loss.backward()

    return step


def available() -> bool:
    """Whether the comparison can run: the package belongs to the development extra."""
    return importlib.util.find_spec("transformers") is not None
