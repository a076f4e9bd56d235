"""Randomness as a function of named keys, never a stream.

Everything random in training is drawn from a key such as (seed, update, sample id, clone), so that results do
not depend on the number of workers, on restarts, or on what was drawn before.

R rows, N columns.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Iterator

import numpy as np
import torch

_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9 as int64: the splitmix64 constants
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15


def stable_key(*parts: int | str) -> int:
    """A 63-bit integer that depends on every part and on their order, the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator seeded from the key."""
    return torch.Generator(device=device).manual_seed(stable_key(*parts))


def seed_dropout(*parts: int | str) -> None:
    """Re-seed the default generators, which dropout draws from: the only use of global randomness."""
    key = stable_key(*parts)
    torch.default_generator.manual_seed(key)  # torch.manual_seed would import the compiler
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(key)


@contextlib.contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """For augmentations of torchvision and timm: the global generators seeded, and put back afterwards."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    key = stable_key(*parts)
    random.seed(key)
    np.random.seed(key % 2**32)
    torch.default_generator.manual_seed(key)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def row_keys(*parts: int | str, ids_R: torch.Tensor) -> torch.Tensor:
    """One int64 key a row: the named parts mixed with the row's own id.

    Args:
        parts: what all rows share, such as ("mask", seed, update).
        ids_R: (R,) int64.

    Returns:
        (R,) int64, uniform over all 64 bits.
    """
    return _mix(ids_R.long() ^ stable_key(*parts))


def hashed_scores(keys_R: torch.Tensor, columns: int) -> torch.Tensor:
    """Random int64 scores: a counter-based generator (splitmix64), equal on every device.

    Args:
        keys_R: (R,) int64 row keys.
        columns: N.

    Returns:
        (R, N) int64, uniform over all 64 bits, independent over rows and columns.
    """
    counter_N = torch.arange(1, columns + 1, device=keys_R.device, dtype=torch.int64) * _GOLDEN
    return _mix(keys_R[:, None] + counter_N[None, :])


def hashed_normal(keys_R: torch.Tensor, columns: int) -> torch.Tensor:
    """Standard normal numbers from the same generator, two of each score (Box and Muller): (R, N) float32."""
    scores = hashed_scores(keys_R, (columns + 1) // 2)
    share = 2.0**-24  # fp32 holds 24 bits; the logarithm's number is never zero
    radius = ((((scores >> 8) & (2**24 - 1)) + 1).float() * share).log().mul(-2.0).sqrt()
    angle = ((scores >> 40) & (2**24 - 1)).float() * (2.0 * math.pi * share)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :columns]


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The splitmix64 finaliser on int64 with wrap-around; right shifts are logical."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
