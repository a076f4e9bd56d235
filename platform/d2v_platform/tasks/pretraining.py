"""What pretraining on text, audio and images has in common: student, teacher, losses and their figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data2vec.artifact import TEACHER, load_strictly, read_artifact, save_artifact
from data2vec.clone_chunks import CloneChunk, clone_chunks
from data2vec.collapse import STAGES, watched_channels
from data2vec.config import Data2VecMultiConfig
from data2vec.flops import StepCost, StepShape, pretraining_step
from data2vec.pretraining import Data2VecPretraining, Moments, PretrainOutput
from data2vec.v1.image_config import Data2VecVisionConfig

from ..recipe.components import ModelCriterion
from ..recipe.pretraining_checks import PROBE_METRICS
from ..recipe.schema import Recipe
from .floor import Floor
from .labelled_probe import Labelled, probe_scores
from .statistics import Layout, Sums
from .task import MicroBatch, TrainingTask, part_of

COLLAPSE_GUARD_AFTER = 5000  # updates before the collapse guards apply, as in the reference


class PretrainingTask(TrainingTask):
    """A model that computes its own losses against its teacher.

    By itself it is data2vec 2.0 with the front end of the recipe's model. A subclass with another model sets
    ``recipe``, ``config``, ``task`` and ``model`` (with ``student`` and ``teacher``), calls :meth:`prepare`,
    and says how a batch becomes a :class:`~data2vec.pretraining.PretrainOutput`.
    """

    config: Any
    model: Any
    task: Any
    chunk: CloneChunk | None = None  # the clones that are being computed, where not all are at once
    read_labelled: Callable[[str, str], Labelled]  # one side of task.probe_data, of tasks that have the field
    exports_best = False  # targets grow with the teacher: a lower loss is not a better model
    pretraining = True

    def __init__(self, recipe: Recipe, model_folder: Path | None = None) -> None:
        self.recipe, self.config, self.task = recipe, recipe.model, recipe.task
        self.model = Data2VecPretraining(self.config, seed=recipe.common.seed)
        self.prepare(self.config.embed_dim)

    def prepare(self, dim: int) -> None:
        """Sums and loss weights; ``dim`` is the model's width."""
        assert isinstance(self.recipe.criterion, ModelCriterion)
        self.loss_weights = self.recipe.criterion.loss_weights
        self.dim = dim
        self.layout = Layout(
            ("loss", "sample_size", "nsentences", "ntokens", "micro_batches", "masked_pct"),
            {"target": dim, "pred": dim},
        )

    @property
    def deterministic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Seen on an H100 for data2vec 2.0 of every modality, and for images of data2vec 1."""
        return isinstance(self.config, Data2VecMultiConfig | Data2VecVisionConfig)

    @staticmethod
    def step_cost(  # pyright: ignore[reportIncompatibleMethodOverride]
        recipe: Recipe, config: Data2VecMultiConfig, shape: StepShape, *, num_classes: int, **settings: Any
    ) -> StepCost:
        """Student, clones, decoder and teacher."""
        return pretraining_step(config, shape, clones_at_once=recipe.platform.clone_chunk, **settings)

    def compute(self, batch: Mapping[str, torch.Tensor], update: int) -> PretrainOutput:
        """Losses of one micro-batch; masks are functions of (seed, update, sample id, clone)."""
        return self.model(
            batch["source"],
            batch.get("padding_mask"),
            batch["id"],
            update=update,
            seed=self.recipe.common.seed,
            watch=self.watching,
            **self.chunked,
        )

    def ntokens(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Size of a batch for the speed figures."""
        return batch["source"].numel()

    @property
    def module(self) -> nn.Module:
        """Student, decoder and teacher."""
        return self.model

    @property
    def trained(self) -> nn.Module:
        """Student and decoder."""
        return self.model.student

    @property
    def watched(self) -> Mapping[str, int]:
        """All stages of the objective."""
        return dict.fromkeys(STAGES, watched_channels(self.dim))

    def begin_update(self, update: int) -> None:
        """The teacher moves once an update, before the first forward pass."""
        self.model.teacher.step(update)

    def passes(self, batch: Mapping[str, torch.Tensor], update: int) -> Sequence[Callable[[], MicroBatch]]:
        """One pass for all clones, or one for each chunk of ``platform.clone_chunk`` clones."""
        size = self.recipe.platform.clone_chunk
        if size is None:
            return super().passes(batch, update)

        def compute(chunk: CloneChunk) -> MicroBatch:
            self.chunk = chunk
            try:
                return self.forward(batch, update)
            finally:
                self.chunk = None

        chunks = clone_chunks(self.config.clone_batch, size)
        return [functools.partial(compute, chunk) for chunk in chunks]

    @property
    def chunked(self) -> dict[str, Any]:
        """What :meth:`compute` gives on to a model with clones."""
        return {} if self.chunk is None else {"chunk": self.chunk}

    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        """Weighted losses of one micro-batch, or of the present chunk of its clones."""
        output = self.compute(batch, update)
        weighted = [value * self.loss_weights.get(key, 1.0) for key, value in output.losses.items()]
        loss = torch.stack(weighted).sum()
        scalars: dict[str, float | torch.Tensor] = {"loss": loss.detach(), "sample_size": output.sample_size}
        if self.chunk is None or self.chunk.first:  # once a micro-batch
            scalars |= {
                "nsentences": len(batch["id"]),
                "ntokens": self.ntokens(batch),
                "micro_batches": 1,
                "masked_pct": output.masked_pct,
            }
        moments: dict[str, Moments] = {"target": output.target, "pred": output.prediction}
        return MicroBatch(loss, output.sample_size, scalars, moments, output.stages)

    def counters(self) -> dict[str, Any]:
        """The update that the teacher has reached."""
        return {"teacher_updates": self.model.teacher.num_updates}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """The teacher goes on from its own update."""
        self.model.teacher.num_updates = int(counters["teacher_updates"])

    def initialise_from(self, folder: Path) -> None:
        """Student, decoder and, where the folder has one, teacher."""
        artifact = read_artifact(folder)
        load_strictly(self.model.student, artifact.state, folder)
        if artifact.teacher is None:
            self.model.teacher.copy_from_student()
        else:
            load_strictly(self.model.teacher.module, artifact.teacher, folder / TEACHER)

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss per masked position, deviations of targets and predictions, masked share, teacher."""
        return {
            "loss": sums["loss"] / max(sums["sample_size"], 1.0),
            "target_var": sums.deviation("target"),
            "pred_var": sums.deviation("pred"),
            "masked_pct": sums["masked_pct"] / max(sums["micro_batches"], 1.0),
            **self.teacher_figures(),
        }

    def floor(self, subset: str, metric: str) -> Floor | None:
        """Where the recipe probes features: those of the network before training."""
        if not self._probed:
            return None
        start = type(self)(self.recipe)
        start.model.to(next(self.model.parameters()).device)
        metric = metric if metric in PROBE_METRICS else PROBE_METRICS[0]
        return Floor(metric, probe_scores(start)[metric], "the network before training")

    @property
    def _probed(self) -> bool:
        return getattr(self.recipe.task, "probe_data", None) is not None

    def teacher_figures(self) -> dict[str, float]:
        """The decay in force and, of data2vec 2.0, the norms of student and teacher."""
        teacher = self.model.teacher
        figures = {"ema_decay": teacher.decay(teacher.num_updates)}
        if getattr(self.config, "log_norms", False):
            figures["model_norm"], figures["ema_norm"] = teacher.norms()
        return figures

    def guard(self, metrics: Mapping[str, float], update: int) -> str | None:
        """Collapse: targets or predictions have (almost) no variance left."""
        if update <= COLLAPSE_GUARD_AFTER:
            return None
        for key, minimum in (
            ("target_var", self.config.min_target_var),
            ("pred_var", self.config.min_pred_var),
        ):
            if metrics[key] < minimum:
                return (
                    f"{key} {metrics[key]:.4g} fell below model.min_{key} {minimum} at update {update}: the "
                    "representations have collapsed. Lower optimization.lr, lengthen the warm-up or raise "
                    "model.ema_decay, and start again from an earlier checkpoint"
                )
        return None

    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        """The student with its decoder or head, and the teacher: training can start from it."""
        return save_artifact(
            folder,
            kind="pretrained",
            model_config=self.config,
            state=part_of(weights, "student."),
            teacher=part_of(weights, "teacher.module.") or None,
            origin=origin,
            **self.kept(),
        )

    def kept(self) -> dict[str, Any]:
        """What else the model folder keeps, as :func:`~data2vec.artifact.save_artifact` takes it."""
        return {}

    def facts(self) -> dict[str, str]:
        """Fingerprint of the data; no dictionary."""
        train = self.dataset(self.recipe.dataset.train_subset)
        return {"data.fingerprint": train.fingerprint(), "dictionary.hash": "none"}

    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Loss sums of one validation batch, masked as at update 0."""
        output = self.compute(batch, 0)
        total = float(output.loss.detach())
        return [{"id": int(batch["id"][0]), "loss": total, "sample_size": output.sample_size}]

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss per masked position and, on the first subset, probes where the recipe asks for them."""
        size = sum(result["sample_size"] for result in results)
        scores = {"loss": sum(result["loss"] for result in results) / max(size, 1)}
        first = subset == next(iter(self.recipe.valid_subsets()), None)
        return scores | (probe_scores(self) if first and self._probed else {})
