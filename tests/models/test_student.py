"""The network: sizes of the published models, names, initial weights, positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from data2vec.config import Data2VecMultiConfig
from data2vec.errors import Data2VecError
from data2vec.student import Data2VecMulti
from data2vec.text import position_ids

MakeConfig = Callable[..., Data2VecMultiConfig]
DECODER = {"decoder_dim": 768, "decoder_groups": 1, "decoder_kernel": 9, "decoder_layers": 5,
           "decoder_residual": False, "projection_layers": 2, "projection_ratio": 2.0}  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "dim", "heads", "total", "tensors"),
    [(12, 768, 12, 152_961_792, 162), (24, 1024, 16, 385_379_584, 306)],
    ids=["base", "large"],
)
def test_parameter_counts_of_the_published_models(
    depth: int, dim: int, heads: int, total: int, tensors: int
) -> None:
    config = Data2VecMultiConfig.from_dict(
        {"depth": depth, "embed_dim": dim, "num_heads": heads, "average_top_k_layers": depth,
         "modalities": {"text": {"prenet_depth": 0, "mask_length": 1, "decoder": DECODER}}}
    )  # fmt: skip
    with torch.device("meta"):
        model = Data2VecMulti(config, vocab_size=50_265)
    assert sum(p.numel() for p in model.parameters()) == total
    assert len(model.state_dict()) == tensors
    if dim == 768:
        decoder = model.encoder.decoder
        assert decoder is not None
        assert sum(p.numel() for p in decoder.parameters()) == 28_907_520


def test_names_are_the_references(make_config: MakeConfig) -> None:
    names = set(Data2VecMulti(make_config(text={"prenet_depth": 1}), vocab_size=20).state_dict())
    front = "modality_encoders.TEXT."
    assert {
        front + "local_encoder.embed_tokens.weight",
        front + "local_encoder.embed_positions.weight",
        front + "local_encoder.layernorm_embedding.bias",
        front + "context_encoder.norm.weight",
        front + "context_encoder.blocks.0.attn.qkv.bias",
        front + "decoder.blocks.1.0.weight",
        front + "decoder.proj.bias",
        "blocks.1.norm2.weight",
    } <= names
    assert not any(name.startswith("norm.") for name in names)
    plain = set(Data2VecMulti(make_config(), vocab_size=20, with_decoder=False).state_dict())
    assert not any("context_encoder" in name or "decoder" in name for name in plain)


def test_initial_weights(make_config: MakeConfig) -> None:
    config = make_config(embed_dim=64, decoder={"decoder_dim": 64, "projection_layers": 2})
    model = Data2VecMulti(config, vocab_size=500)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert float(module.weight.std().detach()) == pytest.approx(0.02, rel=0.1), name
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
        if isinstance(module, nn.Conv1d):
            bound = (module.in_channels // module.groups * module.kernel_size[0]) ** -0.5
            assert bound * 0.95 < float(module.weight.abs().max().detach()) <= bound, name
            assert module.bias is not None
            assert 0 < float(module.bias.abs().max().detach()) <= bound, name
    local = model.encoder.local_encoder
    assert not local.embed_tokens.weight[1].any(), "the padding rows are zero"
    assert local.embed_positions is not None
    assert not local.embed_positions.weight[1].any()


def test_initial_weights_depend_on_the_seed_and_the_name_alone(make_config: MakeConfig) -> None:
    first = Data2VecMulti(make_config(), vocab_size=20, seed=1).state_dict()
    torch.manual_seed(99)
    deeper = Data2VecMulti(make_config(depth=3), vocab_size=20, seed=1).state_dict()
    other = Data2VecMulti(make_config(), vocab_size=20, seed=2).state_dict()
    for name, value in first.items():
        assert torch.equal(value, deeper[name])
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], first["blocks.1.attn.qkv.weight"])


def test_positions_count_real_tokens_from_two() -> None:
    source = torch.tensor([[0, 9, 8, 2, 1, 1], [0, 1, 7, 2, 1, 1]])
    assert position_ids(source).tolist() == [[2, 3, 4, 5, 1, 1], [2, 1, 3, 4, 1, 1]]


@pytest.mark.parametrize(
    "text",
    [{"no_scale_embedding": False}, {"layernorm_embedding": False}, {"no_token_positional_embeddings": True}],
)
def test_embedding_options(make_config: MakeConfig, text: dict[str, bool]) -> None:
    model = Data2VecMulti(make_config(text=text), vocab_size=20)
    local = model.encoder.local_encoder
    source = torch.tensor([[0, 5, 2, 1]])
    x = local.embed_tokens.weight[source] * (1.0 if text.get("no_scale_embedding", True) else 4.0)
    if not text.get("no_token_positional_embeddings"):
        assert local.embed_positions is not None
        assert local.embed_positions.weight.shape == (42, 16)
        x = x + local.embed_positions.weight[[2, 3, 4, 1]]
    if text.get("layernorm_embedding", True):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model.encoder.local_features(source), x, rtol=1e-4, atol=1e-5)


def test_another_modality_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(Data2VecError, match="image is missing"):
        Data2VecMulti(make_config(supported_modality="IMAGE"), vocab_size=20)


def test_no_padding_is_none_at_all(make_config: MakeConfig) -> None:
    """Attention without a bias has faster kernels."""
    encoder = Data2VecMulti(make_config(), vocab_size=20).encoder
    padding = torch.zeros(2, 6, dtype=torch.bool)
    assert encoder.token_padding(None, 6) is None and encoder.token_padding(padding, 6) is None
    padding[1, 4:] = True
    assert encoder.token_padding(padding, 6) is padding
