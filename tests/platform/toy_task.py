"""A training task so small that every figure of the loop can be computed by hand beside it.

The weights ``w`` move towards the samples: the loss of sample i is ``c_i |w - x_i|^2 / 2``, its share of the
sample size ``c_i``. Validation asks for the same loss of other samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks.statistics import Layout, Sums
from d2v_platform.tasks.task import MicroBatch, OneModelTask
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import Summary
from d2v_platform.training.train_loop import train
from data2vec.collapse import Scatter
from tests.platform.recorder import Recorder

DIM = 3


def toy_recipe(**groups: Any) -> dict[str, Any]:
    """A plain recipe around the toy task; groups are laid over it."""
    values: dict[str, Any] = {
        "common": {"log_interval": 1},
        "task": {"_name": "masked_lm", "data": "/not/read"},
        "dataset": {"batch_size": 2, "num_workers": 0, "disable_validation": True},
        "optimization": {"max_update": 6, "lr": [0.1]},
        "optimizer": {"_name": "adam", "adam_betas": [0.8, 0.9], "adam_eps": 1e-12},
        "lr_scheduler": {"_name": "fixed"},
        "checkpoint": {"no_epoch_checkpoints": True},
        "criterion": {"_name": "model"},
        "model": {"_name": "data2vec_multi", "supported_modality": "TEXT"},
    }
    return {key: {**values.get(key, {}), **groups.get(key, {})} for key in {**values, **groups}}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(DIM))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


class Samples:
    """x and c of a subset; in training x differs by epoch."""

    def __init__(self, count: int, start: int, epoch: int) -> None:
        random = np.random.default_rng(start)
        self.x = random.normal(1.0, 2.0, (count, DIM)).astype(np.float32) + np.float32(0.5 * epoch)
        self.c = random.integers(1, 5, count).astype(np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, ids: Sequence[int]) -> dict[str, torch.Tensor]:
        chosen = list(ids)
        return {"id": torch.tensor(chosen), "source": torch.from_numpy(self.x[chosen]),
                "c": torch.from_numpy(self.c[chosen])}  # fmt: skip


class ToyTask(OneModelTask[Network]):
    """Keeps what the loop asks of it.

    Attributes:
        begun: the update and the weights at every ``begin_update``.
        passed: (update, sample ids, first random number) of every forward pass of training.
        scored: (subset, ids) of every validation.
        exported: origin and weights of the model that a run leaves.
        spoil: what is made not finite at an update: "loss", "gradient" or, if just true, both.
        split: each micro-batch is computed in so many passes.
        restored: what the task was given when a run went on.
    """

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> Any:
        raise NotImplementedError

    def __init__(
        self, recipe: Recipe, split: int = 1, spoil: Callable[[int], bool | str] | None = None
    ) -> None:
        self.recipe, self.split, self.spoil = recipe, split, spoil
        self.model = Network()
        self.layout = Layout(("loss", "sample_size", "nsentences", "ntokens"))
        self.begun: list[tuple[int, np.ndarray]] = []
        self.passed: list[tuple[int, list[int], float]] = []
        self.scored: list[tuple[str, list[int]]] = []
        self.exported: tuple[dict[str, Any], dict[str, torch.Tensor]] | None = None
        self.restored: dict[str, Any] | None = None
        self.guarded: list[tuple[int, float]] = []
        self.closed = 0

    @property
    def watched(self) -> Mapping[str, int]:
        return {"encoder": DIM}

    def dataset(self, subset: str, epoch: int = 1) -> Samples:
        return {"train": Samples(9, 1, epoch), "valid": Samples(5, 2, 0), "other": Samples(3, 3, 0)}[subset]

    def batches(self, subset: str, epoch: int, training: bool) -> list[np.ndarray]:
        """Five micro-batches of training, begun elsewhere in every epoch; validation out of order."""
        if subset == "train" and training:
            return np.array_split(np.roll(np.arange(9), epoch), 5)
        return np.array_split(np.arange(len(self.dataset(subset)))[::-1], 2)

    def begin_update(self, update: int) -> None:
        self.begun.append((update, self.model.w.detach().numpy().copy()))

    def passes(self, batch: Mapping[str, torch.Tensor], update: int) -> list[Callable[[], MicroBatch]]:
        if self.split == 1:
            return list(super().passes(batch, update))
        parts = np.array_split(np.arange(len(batch["id"])), self.split)
        return [lambda p=p: self.forward({k: v[p] for k, v in batch.items()}, update) for p in parts]

    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        assert self.model.training and torch.is_grad_enabled()
        ids = batch["id"].tolist()
        self.passed.append((update, ids, float(torch.rand(()))))
        loss = self._losses(batch).sum()
        spoilt = self.spoil(update) if self.spoil is not None else False
        if spoilt == "gradient":
            loss = loss + (self.model.w - self.model.w.detach()).sqrt().sum()  # 0, but infinitely steep
        elif spoilt:
            loss = loss + float("nan") if spoilt == "loss" else loss * float("nan")
        size = batch["c"].sum()
        sums = {"loss": loss.detach(), "sample_size": size, "nsentences": len(ids), "ntokens": 10 * len(ids)}
        stages = {"encoder": Scatter.of(batch["source"])} if self.watching else {}
        return MicroBatch(loss, size, sums, {}, stages)

    def _losses(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return batch["c"] * (self.model.w - batch["source"]).square().sum(1) / 2

    def counters(self) -> dict[str, Any]:
        return {"seen": [update for update, _ in self.begun]}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self.restored = dict(counters)

    def initialise_from(self, folder: Path) -> None:
        raise NotImplementedError

    def metrics(self, sums: Sums) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["sample_size"], "nsentences": sums["nsentences"]}

    def guard(self, metrics: Mapping[str, float], update: int) -> str | None:
        self.guarded.append((update, metrics["loss"]))
        return None

    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        assert not self.model.training and not torch.is_grad_enabled()
        rows = zip(batch["id"].tolist(), self._losses(batch).tolist(), batch["c"].tolist(), strict=True)
        return [{"id": i, "loss": loss, "size": size} for i, loss, size in rows]

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        self.scored.append((subset, [result["id"] for result in results]))
        return {"loss": sum(r["loss"] for r in results) / sum(r["size"] for r in results)}

    def close(self) -> None:
        self.closed += 1

    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        assert self.closed == 1
        self.exported = dict(origin), {name: tensor.clone() for name, tensor in weights.items()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"of": "the toy"}))
        return folder

    def facts(self) -> dict[str, str]:
        return {"data.fingerprint": "toy"}


class Diary(Recorder):
    """Also keeps the order of what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []
        self.told: list[tuple[int, dict[str, float]]] = []
        self.stop_at = stop_at

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        kind = "train" if "train/loss" in metrics else "valid"
        self.events.append((kind, update))
        super().log(update, metrics)

    def flush(self) -> None:
        self.events.append(("flush", -1))

    def evaluated(self, update: int, metrics: Mapping[str, float]) -> bool:
        self.events.append(("evaluated", update))
        self.told.append((update, dict(metrics)))
        return update == self.stop_at

    def updates(self, kind: str) -> list[int]:
        return [update for name, update in self.events if name == kind]


def run_toy(
    recipe: dict[str, Any],
    folder: Path,
    monkeypatch: Any,
    *,
    reporter: Diary | None = None,
    split: int = 1,
    spoil: Callable[[int], bool | str] | None = None,
    **options: Any,
) -> tuple[Summary, Diary, ToyTask]:
    """Train the toy task by the real loop, in this process."""
    made = Recipe.from_dict(recipe)
    task, diary = ToyTask(made, split, spoil), reporter or Diary()
    monkeypatch.setattr("d2v_platform.training.train_loop.make_task", lambda recipe, model_folder: task)
    summary = train(Job(made, folder, threads=1, **options), diary)
    return summary, diary, task
