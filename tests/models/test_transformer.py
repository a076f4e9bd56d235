"""Blocks against the formula of the paper, drop path and layer drop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from data2vec.config import Data2VecMultiConfig
from data2vec.transformer import Block, kept_blocks, make_blocks

MakeConfig = Callable[..., Data2VecMultiConfig]


@pytest.mark.parametrize("end_of_block", [False, True])
@pytest.mark.parametrize("first", [False, True], ids=["post-LN", "pre-LN"])
def test_block_formula(make_config: MakeConfig, first: bool, end_of_block: bool) -> None:
    torch.manual_seed(0)
    config = make_config(layer_norm_first=first, end_of_block_targets=end_of_block, norm_eps=1e-3)
    block = Block(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 16)

    def norm(layer: torch.nn.LayerNorm, value: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(value, (16,), layer.weight, layer.bias, 1e-3)

    def feed_forward(value: torch.Tensor) -> torch.Tensor:
        return block.mlp.fc2(0.5 * (h := block.mlp.fc1(value)) * (1 + torch.erf(h / 2**0.5)))

    if first:
        h = x + block.attn(norm(block.norm1, x))
        f = feed_forward(norm(block.norm2, h))
        expected = h + f
    else:
        h = norm(block.norm1, x + block.attn(x))
        f = feed_forward(h)
        expected = norm(block.norm2, h + f)
    y, candidate = block(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(candidate, expected if end_of_block else f)


def test_target_candidate_is_taken_before_its_dropout(make_config: MakeConfig) -> None:
    block = Block(make_config(post_mlp_drop=0.5))
    _, candidate = block(torch.randn(2, 5, 16))
    assert (candidate == 0).sum() == 0


def test_drop_path_rises_linearly(make_config: MakeConfig) -> None:
    config = make_config(depth=5, start_drop_path_rate=0.1, end_drop_path_rate=0.3)
    rates = [block.drop_path for block in make_blocks(config)]
    assert rates == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])


def test_layer_drop_is_a_function_of_its_key(make_config: MakeConfig) -> None:
    blocks = make_blocks(make_config(depth=6))
    assert [index for index, _ in kept_blocks(blocks, 0.5, False, 1)] == list(range(6))
    assert [index for index, _ in kept_blocks(blocks, 0.0, True, 1)] == list(range(6))
    chosen = [
        tuple(index for index, _ in kept_blocks(blocks, 0.25, True, 1, update)) for update in range(800)
    ]
    again = [tuple(index for index, _ in kept_blocks(blocks, 0.25, True, 1, update)) for update in range(800)]
    assert chosen == again
    kept = Counter(index for blocks_run in chosen for index in blocks_run)
    assert all(kept[index] / 800 == pytest.approx(0.75, abs=0.06) for index in range(6))


def test_a_block_took_part_where_it_ran_with_gradients(make_config: MakeConfig) -> None:
    """The teacher's pass through the student's own blocks leaves them without a gradient."""
    blocks = make_blocks(make_config(depth=2))
    with torch.no_grad():
        assert len(list(kept_blocks(blocks, 0.0, True))) == 2
    assert len(list(kept_blocks(blocks, 0.0, False))) == 2
    assert [block.took_part for block in blocks] == [False, False]
    next(iter(kept_blocks(blocks, 0.0, True)))
    assert [block.took_part for block in blocks] == [True, False]


def test_norms_without_weights(make_config: MakeConfig) -> None:
    names = dict(Block(make_config(norm_affine=False)).named_parameters())
    assert not any("norm" in name for name in names)
    assert len(names) == 8


def test_a_dropped_block_that_must_run_has_no_effect(make_config: MakeConfig) -> None:
    """Where workers share a block's parameters: it runs, and gives its input back, with gradients of zero."""
    config = make_config(depth=4, encoder_dropout=0.3)
    blocks = make_blocks(config).train()
    torch.manual_seed(1)
    x = torch.randn(2, 5, 16, requires_grad=True)
    plain = [index for index, _ in kept_blocks(blocks, 0.5, True, 3)]
    assert 0 < len(plain) < 4
    for block in blocks:
        block.in_step = True
    found = dict(kept_blocks(blocks, 0.5, True, 3))
    assert list(found) == [0, 1, 2, 3]
    for index, run in found.items():
        torch.manual_seed(2)
        y, _ = run(x, None)
        after = torch.rand(1)
        torch.manual_seed(2)
        if index in plain:
            assert not torch.equal(y, x)
            continue
        assert torch.equal(y, x) and torch.equal(after, torch.rand(1)), "its random numbers are put back"
        y.square().sum().backward()
        for parameter in blocks[index].parameters():
            assert parameter.grad is not None and not parameter.grad.any()
    assert [index for index, _ in kept_blocks(blocks.eval(), 0.5, False, 3)] == [0, 1, 2, 3]
