"""Hugging Face's data2vec models at the same input: forward and backward, without teacher or optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from data2vec.errors import Data2VecError

from .measure import Case


def text_case(samples: int, tokens: int, matrix_flops: float) -> Case:
    """``Data2VecTextModel`` of the base size, in train mode."""
    return Case(
        name=f"Hugging Face v1 text base, {samples} x {tokens} tokens, forward + backward",
        build=text_step,
        options={"samples": samples, "tokens": tokens},
        matrix_flops=matrix_flops,
        units=samples * tokens,
        unit="tokens",
    )


def text_step(samples: int, tokens: int) -> Callable[[int], None]:
    """The step to repeat."""
    transformers = _transformers()
    config = transformers.Data2VecTextConfig(vocab_size=50265, max_position_embeddings=tokens + 2)
    model = transformers.Data2VecTextModel(config, add_pooling_layer=False).train()
    source = torch.randint(4, 50000, (samples, tokens))

    def step(_: int) -> None:
        model.zero_grad(set_to_none=True)
        model(source).last_hidden_state.square().mean().backward()

    return step


def available() -> bool:
    """Whether the comparison can run."""
    try:
        _transformers()
    except Data2VecError:
        return False
    return True


def _transformers():  # noqa: ANN202 - the package is optional
    try:
        import transformers
    except ImportError:
        raise Data2VecError("Hugging Face's models need: pip install transformers") from None
    return transformers
