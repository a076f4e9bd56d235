"""The pretrained audio model of a fine-tuning recipe: whether it fits, and learning rates of its blocks."""

from __future__ import annotations

from torch import nn

from data2vec.artifact import Artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import CheckpointError, ConfigError, Problem
from data2vec.image_heads import layer_decay_scales
from data2vec.v1.config import Data2VecAudioConfig

from ..recipe.audio_components import AudioClassificationTask, AudioFinetuningTask
from ..recipe.schema import Recipe


def check_parent(recipe: Recipe, parent: Artifact) -> Data2VecMultiConfig | Data2VecAudioConfig:
    """The pretrained model's configuration, if it is an audio model that fits the task."""
    task, config = recipe.task, parent.model_config
    assert isinstance(task, AudioFinetuningTask | AudioClassificationTask)
    if parent.modality != "AUDIO" or not isinstance(config, Data2VecMultiConfig | Data2VecAudioConfig):
        raise CheckpointError(f"{parent.folder} holds a {parent.modality.lower()} model, not an audio model")
    made_with = bool(parent.config["task"].get("normalize", True))
    problems = []
    if made_with != task.normalize:
        rule = f"must be {str(made_with).lower()}, as the model {parent.folder} was pretrained"
        problems.append(Problem("task.normalize", task.normalize, rule))
    rate = int(parent.config["task"].get("sample_rate", 16_000))
    if rate != task.sample_rate:
        rule = f"must be {rate}, as the model {parent.folder} was pretrained"
        problems.append(Problem("task.sample_rate", task.sample_rate, rule))
    if problems:
        raise ConfigError(problems)
    return config


def block_lr_scales(model: nn.Module, trunk: str, decay: float) -> dict[str, float]:
    """Learning-rate factors of a v2 trunk's blocks, the last one ``decay``, each below it once more.

    Args:
        model: with the trunk's parameters below the prefix ``trunk``.
        trunk: the prefix, with its dot.
        decay: factor from one block to the one below.
    """
    names = [name for name, _ in model.named_parameters()]
    prenet = f"{trunk}modality_encoders.AUDIO.context_encoder.blocks."
    count = {
        prefix: len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
        for prefix in (prenet, f"{trunk}blocks.")
    }
    scales = layer_decay_scales(sum(count.values()), decay)
    factors: dict[str, float] = {}
    for prefix, first in ((prenet, 0), (f"{trunk}blocks.", count[prenet])):
        for name in names:
            if name.startswith(prefix):
                factors[name] = scales[first + int(name[len(prefix) :].split(".")[0])]
    return factors
