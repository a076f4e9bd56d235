"""Blocks and convolutions that ``torch.compile`` takes whole, with the numbers of eager mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from data2vec.attention import attention_bias
from data2vec.compilation import compile_regions
from data2vec.config import Data2VecMultiConfig, DecoderConfig
from data2vec.decoders import Decoder1d, Decoder2d
from data2vec.transformer import Block
from data2vec.v1.image import ImageBlock
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.layers import EncoderLayer
from data2vec.waveform import PositionalConvolutions, WaveformConvolutions

DECODER = DecoderConfig(decoder_dim=8, decoder_groups=2, decoder_kernel=3, decoder_layers=2)
IMAGES = Data2VecVisionConfig(image_size=8, patch_size=4, embed_dim=8, num_heads=2, depth=1)
X = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
PADDED = attention_bias(torch.arange(4)[None] >= torch.tensor([4, 2, 3])[:, None])
LEARNED = torch.randn(3, 2, 4, 4, requires_grad=True)


def block(rate: float) -> Block:
    sizes: Any = {"embed_dim": 8, "num_heads": 2, "depth": 1, "average_top_k_layers": 1}
    rates = dict.fromkeys(
        ("encoder_dropout", "attention_dropout", "activation_dropout", "post_mlp_drop"), rate
    )
    return Block(Data2VecMultiConfig(**sizes, **rates))


def layer(rate: float) -> EncoderLayer:
    return EncoderLayer(8, 16, 2, dropout=rate, attention_dropout=rate, activation_dropout=rate)


MODULES = {
    "block": (block, (X, PADDED)),
    "block, a bias that learns": (block, (X, LEARNED)),
    "layer of data2vec 1": (layer, (X, PADDED)),
    "image block of data2vec 1": (lambda _: ImageBlock(IMAGES, 0.0), (X, LEARNED[:1])),
    "decoder over time": (lambda _: Decoder1d(DECODER, 8), (X,)),
    "decoder over a grid": (lambda _: Decoder2d(DECODER, 8), (X,)),
    "waveform": (lambda _: WaveformConvolutions(((8, 4, 2), (8, 3, 2), (8, 2, 2))), (X.view(3, 32),)),
    "positions": (lambda _: PositionalConvolutions(8, 9, 2, 3, 1), (X,)),
}  # fmt: skip


def run(module: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """Outputs and gradients."""
    module.zero_grad()
    out = module(*inputs)
    outputs = list(out) if isinstance(out, tuple) else [out]
    sum(y.square().sum() for y in outputs).backward()  # type: ignore[union-attr]
    return [*outputs, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", MODULES)
def test_whole_and_equal(name: str) -> None:
    make, inputs = MODULES[name]
    module = make(0.0).train()
    if hasattr(module, "convolve"):
        module.forward = lambda x: module.project(module.convolve(x))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    eager = run(module, inputs)
    torch.testing.assert_close(run(compiled, inputs), eager, rtol=1e-3, atol=1e-4)


def test_dropout_follows_its_seed_in_one_graph() -> None:
    compiled = torch.compile(block(0.3).train(), backend="aot_eager", fullgraph=True)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(compiled(X, PADDED)[0])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.slow
def test_compiled_code_has_the_numbers_of_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    module = block(0.0).train()
    eager = run(module, (X, LEARNED))
    assert compile_regions(module, sizes_change=True) == 1
    torch.testing.assert_close(run(module, (X, LEARNED)), eager, rtol=1e-3, atol=1e-4)
    longer = torch.cat([X, X], dim=1)
    assert module(longer, LEARNED.repeat(1, 1, 2, 2))[0].shape == (3, 8, 8)


def test_a_waveform_stays_eager_on_a_cpu_and_is_compiled_elsewhere() -> None:
    layers = ((8, 4, 2), (8, 3, 2))
    here = WaveformConvolutions(layers)
    assert compile_regions(here, sizes_change=True, backend="eager") == 0 and "forward" not in vars(here)
    assert compile_regions(WaveformConvolutions(layers).to("meta"), sizes_change=True, backend="eager") == 1
