"""Pretraining data2vec 2.0 on text: token blocks in, teacher features as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from data2vec.artifact import load_strictly, read_artifact, save_artifact
from data2vec.collapse import STAGES, watched_channels
from data2vec.config import Data2VecMultiConfig
from data2vec.data.bpe import GPT2BPE
from data2vec.data.masked_lm import TextBlocksDataset
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import DataError
from data2vec.pretraining import Data2VecPretraining, Moments

from ..recipe.components import MaskedLMTask, ModelCriterion
from ..recipe.schema import Recipe
from ..training.statistics import Layout, Sums
from .task import MicroBatch, TrainingTask, batches_of

COLLAPSE_GUARD_AFTER = 5000  # updates before the collapse guards apply, as in the reference


class TextPretraining(TrainingTask):
    """The ``masked_lm`` task with the ``data2vec_multi`` model."""

    def __init__(self, recipe: Recipe) -> None:
        assert isinstance(recipe.model, Data2VecMultiConfig)
        assert isinstance(recipe.task, MaskedLMTask)
        assert isinstance(recipe.criterion, ModelCriterion)
        self.recipe, self.config, self.task = recipe, recipe.model, recipe.task
        self.loss_weights = recipe.criterion.loss_weights
        self._datasets: dict[str, TextBlocksDataset] = {}
        train = self.dataset(recipe.dataset.train_subset)
        self.dictionary = train.dictionary
        self.model = Data2VecPretraining(
            self.config, vocab_size=len(self.dictionary), seed=recipe.common.seed
        )
        dim = self.config.embed_dim
        self.layout = Layout(
            ("loss", "sample_size", "nsentences", "ntokens", "micro_batches", "masked_pct"),
            {"target": dim, "pred": dim},
        )

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
        return dict.fromkeys(STAGES, watched_channels(self.config.embed_dim))

    @staticmethod
    def check_data(recipe: Recipe) -> None:
        """Open every subset that training will use."""
        dictionary = open_subset(recipe, recipe.dataset.train_subset).dictionary
        for subset in recipe.valid_subsets():
            if open_subset(recipe, subset).dictionary.digest() != dictionary.digest():
                raise DataError(
                    f"task.data = {recipe.task.data!r}: {subset} has another dictionary than training"
                )

    def dataset(self, subset: str, epoch: int = 1) -> TextBlocksDataset:
        """Token blocks; with several folders in ``task.data`` each epoch takes the next one."""
        dataset = self._datasets.get(subset) or open_subset(self.recipe, subset)
        self._datasets[subset] = dataset if dataset.epoch == epoch else dataset.for_epoch(epoch)
        return self._datasets[subset]

    def batches(self, subset: str, epoch: int, training: bool) -> Sequence[np.ndarray]:
        """Fixed batches in an order that is a function of (seed, epoch)."""
        return batches_of(self.dataset(subset, epoch), self.recipe, epoch, training, rebuild=False)

    def begin_update(self, update: int) -> None:
        """The teacher moves once an update, before the first forward pass."""
        self.model.teacher.step(update)

    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        """Losses of one micro-batch; masks are functions of (seed, update, sample id, clone)."""
        output = self.model(
            batch["source"],
            batch["padding_mask"],
            batch["id"],
            update=update,
            seed=self.recipe.common.seed,
            watch=self.watching,
        )
        loss = torch.stack(
            [value * self.loss_weights.get(key, 1.0) for key, value in output.losses.items()]
        ).sum()
        scalars = {
            "loss": loss.detach(),
            "sample_size": output.sample_size,
            "nsentences": len(batch["id"]),
            "ntokens": batch["source"].numel(),
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
        teacher = folder / "teacher.safetensors"
        if teacher.is_file():
            load_strictly(self.model.teacher.module, load_file(teacher), teacher)
        else:
            self.model.teacher.copy_from_student()

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss per masked position, deviations of targets and predictions, masked share, teacher decay."""
        return {
            "loss": sums["loss"] / max(sums["sample_size"], 1.0),
            "target_var": sums.deviation("target"),
            "pred_var": sums.deviation("pred"),
            "masked_pct": sums["masked_pct"] / max(sums["micro_batches"], 1.0),
            "ema_decay": self.model.teacher.decay(self.model.teacher.num_updates),
        }

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

    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Loss sums of one validation batch, masked as at update 0."""
        output = self.model(batch["source"], batch["padding_mask"], batch["id"], seed=self.recipe.common.seed)
        total = float(output.loss.detach())
        return [{"id": int(batch["id"][0]), "loss": total, "sample_size": output.sample_size}]

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Loss per masked position."""
        size = sum(result["sample_size"] for result in results)
        return {"loss": sum(result["loss"] for result in results) / max(size, 1)}

    def export(self, folder: Path, origin: Mapping[str, Any]) -> Path:
        """The student with its decoder and the teacher, so that training can start from it."""
        return save_artifact(
            folder,
            kind="pretrained",
            model_config=self.config,
            state=self.model.student.state_dict(),
            teacher=self.model.teacher.module.state_dict(),
            task={"max_positions": self.task.tokens_per_sample},
            tokenizer=TextTokenizer(GPT2BPE(), self.dictionary),
            origin=origin,
        )

    def facts(self) -> dict[str, str]:
        """Data fingerprint and dictionary hash."""
        train = self.dataset(self.recipe.dataset.train_subset)
        return {"data.fingerprint": train.fingerprint(), "dictionary.hash": self.dictionary.digest()}


def open_subset(recipe: Recipe, subset: str) -> TextBlocksDataset:
    """The token blocks of one subset as the recipe asks for them."""
    task, settings = recipe.task, recipe.dataset
    assert isinstance(task, MaskedLMTask)
    training = subset == settings.train_subset
    return TextBlocksDataset(
        task.data,
        subset,
        tokens_per_sample=task.tokens_per_sample,
        sample_break_mode=task.sample_break_mode,
        shorten_method=task.shorten_method,
        shorten_data_split_list=task.shorten_data_split_list,
        seed=recipe.common.seed,
        max_tokens=settings.max_tokens if training else settings.max_tokens_valid,
        skip_invalid=settings.skip_invalid_size_inputs_valid_test,
    )
