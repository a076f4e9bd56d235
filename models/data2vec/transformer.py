"""The transformer block of data2vec 2.0 and stacks of it (spec: post-LN in every published model).

R rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention
from .config import Data2VecMultiConfig
from .drop_path import ALL_ROWS, KeptRows, draw_kept_rows
from .dropout import Dropout
from .feed_forward import feed_forward
from .randomness import stable_key


class FeedForward(nn.Module):
    """Linear, exact GELU, dropout, linear, dropout."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape is kept."""
        dropout = self.dropout.p if self.training else 0.0
        return self.dropout(feed_forward(x, self.fc1, self.fc2, dropout=dropout))


class TransformerBlock(nn.Module):
    """What the blocks of both generations have in common: how they are run.

    A subclass computes in ``_run`` and is called as ``block(x, bias)``; it gives its output and the target
    candidate.

    Attributes:
        regions: methods that are compiled, see :mod:`data2vec.compilation`.
        drop_path: probability of dropping a branch of a row while training.
        recompute: keep the input only and run again in the backward pass, with equal dropout.
        in_step: where layer drop spares the block, run it and multiply its effect by zero, because its
            parameters are spread over workers that must all take part.
        in_fp32: compute in fp32 even where training's other blocks do not.
        took_part: the block ran with gradients since this was last set to false.
        spared: layer drop did so in the newest pass.
    """

    regions = ("_run",)
    drop_path = 0.0
    recompute = False
    in_step = False
    in_fp32 = False
    took_part = False
    spared = False

    def forward(
        self, x_RTD: torch.Tensor, bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, T, D) to the block's output and its target candidate, both (R, T, D)."""
        given = (x_RTD, bias, self._kept_rows(x_RTD), self._kept_rows(x_RTD))
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._run, *given, use_reentrant=False)
        return self._run(*given)

    def _run(
        self, x_RTD: torch.Tensor, bias: torch.Tensor | None, attending: KeptRows, feeding: KeptRows, /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and target candidate, where drop path has decided whose branches run."""
        raise NotImplementedError

    def _kept_rows(self, x_RTD: torch.Tensor) -> KeptRows:
        """The rows of which a branch runs: all, but for drop path while training."""
        return draw_kept_rows(len(x_RTD), self.drop_path, x_RTD.device) if self.training else ALL_ROWS

    def without_effect(
        self, x_RTD: torch.Tensor, bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run, but give the input back; all gradients of the block's parameters are zero.

        The random numbers that it draws are put back, so that what follows is as if it had been skipped.
        """
        with torch.random.fork_rng(devices=[x_RTD.device] if x_RTD.is_cuda else []):
            y_RTD, candidate_RTD = self(x_RTD, bias)
        return x_RTD + 0.0 * y_RTD, candidate_RTD


class Block(TransformerBlock):
    """One transformer block that also returns what the teacher averages into targets.

    Post-LN: ``h = norm1(x + attention(x)); f = feed_forward(h); y = norm2(h + f)``. Pre-LN keeps the residual
    around the feed-forward network, which the reference loses in that mode (no published model uses it).

    Args:
        config: widths, dropouts and norms.
        drop_path: probability of dropping a branch of a sample while training.
    """

    def __init__(self, config: Data2VecMultiConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pre_norm = config.layer_norm_first
        self.end_of_block_targets = config.end_of_block_targets
        self.drop_path = drop_path
        self.norm1 = make_norm(config)
        self.attn = Attention(dim, config.num_heads, config.attention_dropout, config.encoder_dropout)
        self.norm2 = make_norm(config)
        self.mlp = FeedForward(dim, int(dim * config.mlp_ratio), config.activation_dropout)
        self.post_mlp_dropout = Dropout(config.post_mlp_drop)

    def _run(
        self, x_RTD: torch.Tensor, bias: torch.Tensor | None, attending: KeptRows, feeding: KeptRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the block.

        Args:
            x_RTD: (R, T, D).
            bias: attention bias, see :class:`~data2vec.attention.Attention`.
            attending: rows whose attention runs.
            feeding: rows whose feed-forward network runs.

        Returns:
            The block's output (R, T, D), and the target candidate (R, T, D): the feed-forward output before
            dropout, residual and norm, or the output itself with ``end_of_block_targets``. Drop path leaves
            the rows out of the former whose feed-forward network did not run.
        """
        x = attending.of(x_RTD)
        bias = None if bias is None else attending.of(bias)
        h = attending.add(x_RTD, self.attn(self.norm1(x) if self.pre_norm else x, bias))
        if not self.pre_norm:
            h = self.norm1(h)
        x = feeding.of(h)
        f = self.mlp(self.norm2(x) if self.pre_norm else x)
        y = feeding.add(h, self.post_mlp_dropout(f))
        if not self.pre_norm:
            y = self.norm2(y)
        return y, (y if self.end_of_block_targets else f)


def make_norm(config: Data2VecMultiConfig) -> nn.LayerNorm:
    """The layer norm of blocks and context encoder."""
    return nn.LayerNorm(config.embed_dim, eps=config.norm_eps, elementwise_affine=config.norm_affine)


def recompute_activations(module: nn.Module, on: bool) -> None:
    """Switch activation checkpointing for every block inside ``module``: less memory, a third more work."""
    for block in transformer_blocks(module):
        block.recompute = on


def transformer_blocks(module: nn.Module) -> list[TransformerBlock]:
    """Every transformer block inside ``module``, of either generation."""
    return [part for part in module.modules() if isinstance(part, TransformerBlock)]


def make_blocks(config: Data2VecMultiConfig) -> nn.ModuleList:
    """The shared blocks, with drop path rising linearly over them."""
    rates = drop_path_rates(config.start_drop_path_rate, config.end_drop_path_rate, config.depth)
    return nn.ModuleList(Block(config, rate) for rate in rates)


def drop_path_rates(first: float, last: float, depth: int) -> list[float]:
    """Rates rising linearly over ``depth`` blocks; on the CPU even while a model is built on "meta"."""
    return torch.linspace(first, last, depth, device="cpu").tolist()


BlockRun = Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def kept_blocks(
    blocks: nn.ModuleList, layerdrop: float, training: bool, *key: int | str
) -> Iterator[tuple[int, BlockRun]]:
    """The blocks to run: all of them, or while training those that layer drop spares.

    The choice is a function of ``key`` and the block's index, so that every worker and every recomputation
    skips the same blocks. Blocks that are ``in_step`` always run; a dropped one has no effect.
    """
    for index, block in enumerate(blocks):
        assert isinstance(block, TransformerBlock)
        drawn = training and layerdrop > 0.0
        block.spared = drawn and stable_key("layerdrop", index, *key) / 2**63 < layerdrop
        if block.spared:
            if block.in_step:
                yield index, block.without_effect
            continue
        block.took_part = block.took_part or (training and torch.is_grad_enabled())
        yield index, block
