"""What a training is told: by the command, a sweep's trial or a test, down to the loop of every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..recipe.schema import Recipe
from .loop_state import Worker
from .plan import Plan


@dataclass(frozen=True)
class ResolvedModels:
    """Model folders that a recipe names.

    Attributes:
        pretrained: of ``model.model_path`` or ``model.w2v_path``.
        pretrained_uri: its exact name (an alias is replaced by the version).
        initial: of ``checkpoint.restore_file`` or ``checkpoint.finetune_from_model``: a *new* run starts from
            its weights.
        initial_uri: its exact name.
    """

    pretrained: Path | None = None
    pretrained_uri: str | None = None
    initial: Path | None = None
    initial_uri: str | None = None


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        recipe: a checked recipe.
        folder: holds ``checkpoints/`` and the exported ``model/``; a run that has some goes on from there.
        models: the models that the recipe names.
        run_id: of MLflow.
        run_name: its name there, which resumes it.
        lineage: written into the exported model.
        remote: the folder at a URI that gets copies of checkpoints and model.
        evaluations: file that keeps the figures of every validation (sweeps).
        threads: PyTorch's, of each worker; ``None`` leaves them.
        loader_processes: data-loading processes of each worker.
        sharded: the workers share the model.
        compiled: they compile it.
        wait_for_checkpoints: publish a checkpoint before telling the reporter, which may end this process.
    """

    recipe: Recipe
    folder: Path
    models: ResolvedModels = ResolvedModels()
    run_id: str = ""
    run_name: str = ""
    lineage: Mapping[str, str] = field(default_factory=dict)
    remote: str | None = None
    evaluations: Path | None = None
    threads: int | None = None
    loader_processes: int = 0
    sharded: bool = False
    compiled: bool = False
    wait_for_checkpoints: bool = False

    def planned(self, plan: Plan) -> Job:
        """With what a plan gives each worker."""
        return replace(
            self,
            threads=plan.threads,
            loader_processes=plan.loader_processes,
            sharded=plan.sharded,
            compiled=plan.compiled,
        )

    def worker(self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu") -> Worker:
        """One of the processes that do it."""
        settings = self.threads, self.loader_processes, self.sharded, self.compiled
        return Worker(rank, size, torch.device(device), *settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for other processes: the recipe's classes may be of a user's package."""
        others = asdict(replace(self, recipe=None))  # type: ignore[arg-type]
        return others | {"recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Job:
        """What :meth:`to_dict` made.

        Raises:
            Data2VecError: the recipe cannot be read here.
        """
        recipe, models = Recipe.from_dict(plain["recipe"]), ResolvedModels(**plain["models"])
        return cls(**{**plain, "recipe": recipe, "models": models})
