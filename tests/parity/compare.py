"""Comparison of our numbers with recorded ones, with the tolerances of ``golden/README.md``.

Every recorded tensor is compared, fed to the code under test, or skipped for a reason stated here; anything
else makes the case fail, so that nothing is passed over in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import Case

OUT, OUT_FINE_TUNING = 3e-5, 6e-6  # forward tensors, relative to their largest value
LOSS = 2e-6  # relative
SMALL_LOSS, SMALL_LOSS_SHARE = 3e-5, 1e-3  # relative, for a loss below this share of the sum of all
"""``v2_image_small_gain`` has a class loss of 3e-5 of its sum, the difference of nearly equal features:
rounding the weights to fp32 once more (6e-8 of each) moves it by up to 9e-6, and so does another kernel."""
GRAD_NORM, GRAD, TINY_GRAD_NORM = 5e-5, 5e-5, 1e-4  # relative; absolute where the true gradient is zero
AFTER = 5e-6  # absolute
CTC_GRAD_NORM, CTC_GRAD, CTC_AFTER = 5e-4, 1e-3, 5e-5  # CTC in fp32 cancels
TRAJECTORY_LOSS = 1e-4  # relative
SCHEDULE = 1e-9  # relative

SKIPPED_TENSORS = {
    "rng/mask_rand_noise": "the reference's own draw; the mask that came of it is fed",
    "none": "placeholder of a case without tensors",
}
"""Recorded tensors that are deliberately not compared, with the reason."""

DESCRIPTIVE = {
    "case", "description", "config_source", "pretrain_config_source", "seed", "note", "loss_reduction",
    "teacher_keys_note", "model_class", "order", "teacher_start", "tensors", "training",
}  # fmt: skip
"""Entries of ``case.json`` that describe the case instead of recording a number."""


@dataclass(frozen=True)
class Comparison:
    """One compared value: it passes if ``error <= limit``."""

    name: str
    error: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit (a NaN never is)."""
        return self.error <= self.limit

    @property
    def severity(self) -> float:
        """Error in units of its limit, for finding the worst of several kinds."""
        if math.isnan(self.error):
            return math.inf
        if self.limit == 0:
            return 0.0 if self.error == 0 else math.inf
        return self.error / self.limit


@dataclass
class Report:
    """What was compared in one case."""

    case: Case
    comparisons: list[Comparison] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    grad_norm_limit: float = GRAD_NORM
    grad_limit: float = GRAD
    after_limit: float = AFTER
    _tensors: set[str] = field(default_factory=set)
    _entries: set[str] = field(default_factory=set)

    @property
    def passed(self) -> bool:
        """Whether everything is within its tolerance."""
        return all(c.passed for c in self.comparisons)

    @property
    def worst(self) -> Comparison:
        """The comparison nearest to, or farthest beyond, its limit."""
        return max(self.comparisons, key=lambda c: c.severity)

    def tensor(self, key: str, mine: torch.Tensor | None, limit: float, *, absolute: bool = False) -> None:
        """Compare a recorded tensor: max|a-b| / max|b|, or max|a-b|; where b is all zero, a must be too."""
        self._tensors.add(key)
        recorded = self.case.tensors[key]
        if mine is None:
            self.comparisons.append(Comparison(key, math.inf, limit, "we have no such tensor"))
            return
        mine = mine.cpu()
        if mine.shape != recorded.shape:
            note = f"shape {list(mine.shape)} instead of {list(recorded.shape)}"
            self.comparisons.append(Comparison(key, math.inf, limit, note))
            return
        error, note = tensor_error(mine, recorded, absolute)
        if not recorded.is_floating_point():
            limit = 0.0
        self.comparisons.append(Comparison(key, error, limit, note))

    def gradient(self, name: str, mine: torch.Tensor | None, norm: float | None) -> None:
        """Compare ``grad/<name>``, cut or whole, by the rules for gradients."""
        key = f"grad/{name}" if f"grad/{name}" in self.case.tensors else f"grad/{name}:head"
        if key not in self.case.tensors:
            return
        if norm is not None and norm <= TINY_GRAD_NORM:
            self.tensor(key, cut(mine, key, self.case), self.grad_limit, absolute=True)
            return
        recorded = self.case.tensors[key]
        floor = 1e-5 * (norm or 0.0)
        if mine is None or not recorded.any() or float(recorded.abs().max()) >= floor:
            self.tensor(key, cut(mine, key, self.case), self.grad_limit)
        else:  # a head much smaller than the tensor's norm: relative to that norm
            self.tensor(key, cut(mine, key, self.case), self.grad_limit * floor, absolute=True)

    def number(self, name: str, mine: float | None, recorded: Any, limit: float, floor: float = 0.0) -> None:
        """Compare a recorded number: |a-b| / max(|b|, floor); exactly if ``limit`` is 0."""
        self._entries.add(name.split(".")[0])
        if mine is None or isinstance(recorded, bool) or not isinstance(recorded, int | float):
            agrees = mine is None and recorded is None
            note = "" if agrees else f"{mine} instead of {recorded}"
            self.comparisons.append(Comparison(name, 0.0 if agrees else math.inf, limit, note))
            return
        difference, scale = abs(mine - recorded), max(abs(recorded), floor)
        error = 0.0 if difference == 0 else difference / scale if scale else math.inf
        self.comparisons.append(Comparison(name, error, limit, f"{mine!r} for {recorded!r}"))

    def norms(self, name: str, recorded: Mapping[str, float], state: Mapping[str, torch.Tensor]) -> None:
        """Compare L2 norms of a state after the step, name by name, none missing on either side."""
        self._entries.add(name)
        self.names(name, set(state), set(recorded))
        for key in sorted(set(recorded) & set(state)):
            norm = float(torch.linalg.vector_norm(state[key].double()))
            self.number(f"{name}.{key}", norm, recorded[key], self.after_limit, floor=1.0)

    def names(self, name: str, mine: set[str], recorded: set[str]) -> None:
        """Two sets of names must be the same."""
        self._entries.add(name.split(".")[0])
        if mine != recorded:
            note = f"only ours: {sorted(mine - recorded)[:3]}; only recorded: {sorted(recorded - mine)[:3]}"
            self.comparisons.append(Comparison(f"{name} (names)", math.inf, 0.0, note))

    def seen(self, *entries: str) -> None:
        """Note entries of ``case.json`` that configured the code under test."""
        self._entries.update(entries)

    def close(self) -> None:
        """Account for everything recorded; a tensor that is neither compared nor fed makes the case fail."""
        for key in self.case.tensors:
            if key in self._tensors or key in self.case.fed:
                continue
            if key in SKIPPED_TENSORS:
                self.remarks.append(f"{key}: not compared: {SKIPPED_TENSORS[key]}")
            else:
                self.comparisons.append(Comparison(key, math.inf, 0.0, "recorded, but not compared"))
        for key in self.case.info:
            if key not in self._entries and key not in DESCRIPTIVE:
                self.remarks.append(f"{key} in case.json: not compared: unknown to this check")
        if not self.comparisons:
            self.comparisons.append(
                Comparison("nothing", math.inf, 0.0, "the case records nothing to compare")
            )


def tensor_error(mine: torch.Tensor, recorded: torch.Tensor, absolute: bool) -> tuple[float, str]:
    """The README's error measure, and a note where it needs one."""
    if recorded.numel() == 0:
        return 0.0, "empty"
    if not recorded.is_floating_point():
        wrong = int((mine.to(recorded.dtype) != recorded).sum())
        return float(wrong), f"{wrong} of {recorded.numel()} differ" if wrong else ""
    a, b = mine.detach().double(), recorded.double()
    infinite = torch.isinf(b)
    if bool((a[infinite] != b[infinite]).any()):
        return math.inf, "infinities differ"
    a, b = a.masked_fill(infinite, 0.0), b.masked_fill(infinite, 0.0)
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    if absolute:
        return difference, ""
    if scale == 0.0:
        return (0.0 if difference == 0 else math.inf), "recorded values are all zero"
    return difference / scale, ""


def cut(mine: torch.Tensor | None, key: str, case: Case) -> torch.Tensor | None:
    """Our tensor, cut like the recorded one where the key says ``:head``."""
    if mine is None or not key.endswith(":head"):
        return mine
    return mine.reshape(-1)[: case.tensors[key].numel()]
