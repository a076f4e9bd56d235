"""Statistics of mask generators: fractions, counts, run lengths, neighbourhoods.

R rows, L positions or cells, G grid side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from cases import Case
from compare import Report

from data2vec.audio_masking import block_masks_1d, span_masks
from data2vec.image_masking import block_masks
from data2vec.masking import clone_ids, random_masks
from data2vec.v1.image_masking import rectangle_masks
from data2vec.v1.text import SpanMasking, token_spans

DRAWS = 1000  # batches; the recorded statistics pool 200
Generator = Callable[[Mapping[str, Any]], torch.Tensor]


def mask_statistics(case: Case, report: Report, notes: list[str]) -> None:
    """Each recorded generator against ours, from 1000 batches; an unknown generator makes it fail."""
    generators: dict[str, Generator] = {
        "2-d blocks, fixed count per row": _blocks_2d,
        "uniform noise sort": _noise_sort,
        "rectangles (image v1)": _rectangles,
        "1-d blocks, fixed count per row": _blocks_1d,
        "random spans": _spans,
        "token spans chosen in the text loader, all replaced by the mask token": _token_spans,
    }
    for name, entry in case.value("statistics").items():
        where = f"statistics.{name}"
        if f"sample/{name}" in case.tensors:
            _compare_sample(case, report, name, entry)
        generator = generators.get(entry["generator"])
        if generator is None:
            report.number(f"{where} (generator {entry['generator']!r} is not built)", None, 1, 0.0)
            continue
        _compare(report, where, entry, generator(entry))
    for key in [k for k in case.tensors if k.startswith("seeded/")]:
        case.fed.add(key)  # the reference's own random generator: no contract
        notes.append(f"{key}: not compared: draws of the reference's own generator")


def _compare_sample(case: Case, report: Report, name: str, entry: Mapping[str, Any]) -> None:
    """The recorded sample rows must agree with the recorded statistics' shape of counts."""
    sample = case.feed(f"sample/{name}").bool()
    counts = sample.sum(1)
    inside = int(((counts >= entry["min_count"]) & (counts <= entry["max_count"])).sum())
    report.number(f"statistics.{name}.sample_rows", inside, len(sample), 0.0)


def _blocks_2d(entry: Mapping[str, Any]) -> torch.Tensor:
    return block_masks(
        clone_ids(torch.arange(DRAWS), entry["rows_per_call"]),
        entry["grid"] ** 2,
        mask_prob=entry["mask_prob"],
        mask_length=entry["mask_length"],
        mask_prob_adjust=entry["mask_prob_adjust"],
        inverse_mask=entry["inverse"],
        key=("parity", 1),
    )


def _blocks_1d(entry: Mapping[str, Any]) -> torch.Tensor:
    rows, length = entry["shape"]
    return block_masks_1d(
        clone_ids(torch.arange(DRAWS), rows),
        length,
        mask_prob=entry["mask_prob"],
        mask_length=entry["mask_length"],
        mask_prob_adjust=entry["mask_prob_adjust"],
        inverse_mask=entry.get("inverse", False),
        key=("parity", 1),
    )


def _spans(entry: Mapping[str, Any]) -> torch.Tensor:
    rows, length = entry["shape"]
    valid = entry.get("valid_lengths")
    batches = [  # one at a time: the rows of a batch are made equal
        span_masks(
            clone_ids(torch.tensor([draw]), rows),
            length,
            mask_prob=entry["mask_prob"],
            mask_length=entry["mask_length"],
            valid_R=torch.tensor(valid) if valid else None,
            min_spans=entry.get("min_masks", 0),
            mask_dropout=entry.get("mask_dropout", 0.0),
            equal_counts=bool(entry.get("require_same_masks", True)),
            add_masks=bool(entry.get("add_masks", False)),
            key=("parity", 1),
        )
        for draw in range(DRAWS)
    ]
    return torch.cat(batches)


def _rectangles(entry: Mapping[str, Any]) -> torch.Tensor:
    rows = entry["rows_per_call"]
    return rectangle_masks(
        torch.arange(DRAWS * rows),
        entry["grid"],
        num_patches=entry["num_mask_patches"],
        min_per_block=entry["min_per_block"],
        max_per_block=entry["max_per_block"],
        key=("parity", 1),
    )


def _token_spans(entry: Mapping[str, Any]) -> torch.Tensor:
    masking = SpanMasking(mask_prob=entry["mask_prob"], mask_multiple_length=entry["mask_multiple_length"])
    real_BT = torch.ones(DRAWS, entry["length"], dtype=torch.bool)
    return token_spans(torch.arange(DRAWS), real_BT, masking, "parity", 1)


def _noise_sort(entry: Mapping[str, Any]) -> torch.Tensor:
    rows, length = entry["shape"]
    return random_masks(clone_ids(torch.arange(DRAWS), rows), length, entry["mask_prob"], "parity", 1).mask_RT


def _compare(report: Report, where: str, entry: Mapping[str, Any], mask_RL: torch.Tensor) -> None:
    counts = mask_RL.sum(1)
    valid = entry.get("valid_lengths")
    lengths = torch.tensor(valid * (len(counts) // len(valid))) if valid else torch.tensor(mask_RL.shape[1])
    fraction = float((counts / lengths).double().mean())
    limit = max(4 * entry["std_masked_fraction"] / 200**0.5, 0.003)
    # Absolute limits are divided out: Report.number is relative to max(|recorded|, floor).
    recorded = entry["mean_masked_fraction"]
    report.number(f"{where}.mean_masked_fraction", fraction, recorded, limit / recorded)
    if len(entry["distinct_counts"]) == 1:
        wanted = entry["distinct_counts"][0]
        share = float((counts == wanted).double().mean())
        exact = entry["generator"] != "random spans"
        report.number(f"{where}.rows_with_{wanted}", share, 1.0, 0.0 if exact else 0.02)
    for kind, value in (("masked", True), ("visible", False)):
        key = f"{kind}_run_length_histogram"
        if key in entry:
            mine, theirs = _histogram(mask_RL, value, entry), _binned(entry[key])
            distance = 0.5 * sum(abs(mine[b] - theirs[b]) for b in set(mine) | set(theirs))
            runs = sum(int(n) for n in entry[key].values())
            report.number(f"{where}.{key}", distance, 0.0, 0.04 if runs >= 5000 else 0.08, floor=1.0)
    key = "mean_visible_4_neighbours_of_visible_cell"
    if key in entry:
        report.number(f"{where}.{key}", _visible_neighbours(mask_RL, entry["grid"]), entry[key], 0.03)


def _histogram(mask_RL: torch.Tensor, value: bool, entry: Mapping[str, Any]) -> dict[str, float]:
    """Shares of maximal runs by length; for images along the grid's rows, for padded rows up to their end."""
    valid = entry.get("valid_lengths")
    if "grid" in entry:
        mask_RL = mask_RL.reshape(-1, entry["grid"])
    wanted = mask_RL == value
    if valid:
        lengths = torch.tensor(valid * (len(mask_RL) // len(valid)))
        wanted = wanted & (torch.arange(mask_RL.shape[1]) < lengths[:, None])
    padded = torch.nn.functional.pad(wanted.to(torch.int8), (1, 1))
    change = padded[:, 1:] - padded[:, :-1]
    starts, ends = (change == 1).nonzero(), (change == -1).nonzero()
    return _binned(Counter((ends[:, 1] - starts[:, 1]).tolist()))


def _binned(histogram: Mapping[Any, int]) -> dict[str, float]:
    """Shares over the bins 1, 2, 3, 4, 5-8, 9-16, 17-32, 33-64, 65+."""
    bins: Counter[str] = Counter()
    for length, count in histogram.items():
        size = int(length)
        name = str(size) if size <= 4 else next((f"<={e}" for e in (8, 16, 32, 64) if size <= e), "65+")
        bins[name] += count
    total = sum(bins.values())
    return Counter({name: count / total for name, count in bins.items()})  # pyright: ignore


def _visible_neighbours(mask_RL: torch.Tensor, grid: int) -> float:
    """Mean number of visible 4-neighbours of visible cells; cells outside the grid count as masked."""
    visible = (~mask_RL).reshape(-1, grid, grid).float()
    padded = torch.nn.functional.pad(visible, (1, 1, 1, 1))
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return float((around * visible).sum() / visible.sum())
