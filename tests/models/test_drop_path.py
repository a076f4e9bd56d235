"""Drop path that runs branches on the rows that keep them: what it gives, draws and spares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data2vec.config import Data2VecMultiConfig
from data2vec.drop_path import ALL_ROWS, KeptRows, draw_kept_rows
from data2vec.transformer import Block, TransformerBlock
from data2vec.v1.image import ImageBlock, RelativePositionBias
from data2vec.v1.image_config import Data2VecVisionConfig

MakeConfig = Callable[..., Data2VecMultiConfig]
CPU = torch.device("cpu")
RATE = 0.4


def draws(rows: int, seed: int, count: int = 2) -> list[KeptRows]:
    """What a block draws for its branches under this seed."""
    torch.manual_seed(seed)
    return [draw_kept_rows(rows, RATE, CPU) for _ in range(count)]


def factors(kept: KeptRows, rows: int) -> torch.Tensor:
    """(R, 1, 1) what the usual form multiplies a branch with."""
    nothing = torch.zeros(rows, 1, 1, dtype=torch.float64)
    return kept.add(nothing, torch.ones_like(kept.of(nothing)))


def first_generation() -> tuple[ImageBlock, torch.Tensor, torch.Tensor]:
    values = {"depth": 1, "embed_dim": 16, "num_heads": 2, "image_size": 8, "patch_size": 4,
              "drop_path": RATE, "layer_scale_init_value": 0.3, "attention_dropout": 0.0}  # fmt: skip
    config = Data2VecVisionConfig.from_dict(values)
    positions = RelativePositionBias(2, 2)
    nn.init.normal_(positions.relative_position_bias_table)
    block = ImageBlock(config, RATE)
    return block, torch.randn(6, 5, 16), positions().detach()


def by_multiplying(
    block: TransformerBlock, x: torch.Tensor, bias: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """The usual form, of either generation's block."""
    if isinstance(block, ImageBlock):
        assert block.gamma_1 is not None and block.gamma_2 is not None
        h = x + first * block.gamma_1 * block.attn(block.norm1(x), bias, None)
        return h + second * block.gamma_2 * block.mlp(block.norm2(h))
    assert isinstance(block, Block)
    if block.pre_norm:
        h = x + first * block.attn(block.norm1(x), bias)
        return h + second * block.mlp(block.norm2(h))
    h = block.norm1(x + first * block.attn(x, bias))
    return block.norm2(h + second * block.mlp(h))


@pytest.mark.parametrize("kind", ["first", "pre_norm", "post_norm"])
def test_outputs_and_gradients_are_those_of_multiplying(kind: str, make_config: MakeConfig) -> None:
    torch.manual_seed(0)
    if kind == "first":
        block, x, bias = first_generation()
    else:
        block = Block(make_config(layer_norm_first=kind == "pre_norm"), drop_path=RATE)
        x = torch.randn(6, 5, 16)
        bias = torch.randn(6, 1, 1, 5)  # each row its own
    block, x, bias = block.double(), x.double().requires_grad_(), bias.double()
    wanted = [x, *block.parameters()]
    sizes = set()
    for seed in range(12):
        first, second = (factors(kept, 6) for kept in draws(6, seed))
        sizes.add(int(first.count_nonzero()))
        expected = by_multiplying(block, x, bias, first, second)
        torch.manual_seed(seed)
        ours, _ = block(x, bias)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        gradients = (torch.autograd.grad(y.square().sum(), wanted) for y in (ours, expected))
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)
    assert len(sizes) > 2
    block.eval()
    one = torch.ones(1).double()
    plain = by_multiplying(block, x, bias, one, one)
    torch.testing.assert_close(block(x, bias)[0], plain, rtol=0, atol=1e-12)


def test_rows_are_kept_with_the_probability_asked_for_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    drawn = factors(draw_kept_rows(4000, RATE, CPU), 4000).flatten()
    assert sorted(set(drawn.tolist())) == pytest.approx([0.0, 1 / (1 - RATE)])
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.05)
    assert draw_kept_rows(8, 0.0, CPU) is ALL_ROWS
    for rows in (1, 2):  # all of the rows run, some for nothing
        drawn = torch.stack([factors(draw_kept_rows(rows, RATE, CPU), rows) for _ in range(600)]).flatten()
        assert sorted(set(drawn.tolist())) == pytest.approx([0.0, 1 / (1 - RATE)])
        assert float(drawn.mean()) == pytest.approx(1.0, abs=0.1)


def test_the_type_does_not_depend_on_the_draw() -> None:
    kept = KeptRows(torch.tensor([1]), torch.ones(1))
    for x, branch in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        whole, half = torch.ones(2, 3, dtype=x), torch.ones(1, 3, dtype=branch)
        assert kept.add(whole, half).dtype == torch.float32
        assert ALL_ROWS.add(whole, whole.to(branch)).dtype == torch.float32


def test_where_no_row_is_kept_parameters_still_have_gradients() -> None:
    block, x, bias = first_generation()
    block.drop_path = 0.999999
    y, _ = block(x, bias)
    assert torch.equal(y, x)
    y.sum().backward()
    for parameter in block.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_dropped_rows_cost_no_matrix_work() -> None:
    block, x, bias = first_generation()

    def work() -> int:
        with FlopCounterMode(display=False) as counter:
            block(x, bias)[0].sum().backward()
        return counter.get_total_flops()

    seed = next(seed for seed in range(20) if max(len(kept.of(x)) for kept in draws(6, seed)) < 6)
    most = max(len(kept.of(x)) for kept in draws(6, seed))
    torch.manual_seed(seed)
    some = work()
    block.eval()
    assert some < work() * (most + 0.01) / 6
