"""The teacher's weights in place of the student's: what some downstream users prefer to start from."""

from __future__ import annotations

import dataclasses

from ..config import Data2VecMultiConfig
from ..errors import CheckpointError
from ..families import ModelConfig
from ..v1.config import Data2VecAudioConfig
from ..v1.image_config import Data2VecVisionConfig
from ..v1.text_config import Data2VecTextConfig
from .imported import ImportedModel


def with_teacher_weights(imported: ImportedModel) -> ImportedModel:
    """The model with every tensor that its teacher has taken from the teacher.

    Raises:
        CheckpointError: there is no teacher.
    """
    if imported.teacher is None:
        raise CheckpointError("the file holds no teacher (_ema), so weights=teacher is not possible")
    prefix = teacher_prefix(imported.model_config)
    teacher = {f"{prefix}{name}": tensor for name, tensor in imported.teacher.items()}
    assert teacher.keys() <= imported.state.keys(), "the importer checked both against one configuration"
    notes = [*imported.report.notes, f"{len(teacher)} tensors are the teacher's"]
    report = dataclasses.replace(imported.report, notes=notes)
    return dataclasses.replace(imported, state={**imported.state, **teacher}, report=report)


def teacher_prefix(config: ModelConfig) -> str:
    """What stands before the teacher's names in the student."""
    if isinstance(config, Data2VecMultiConfig):
        return "blocks." if config.ema_encoder_only else ""
    if isinstance(config, Data2VecAudioConfig):
        return "encoder."
    if isinstance(config, Data2VecTextConfig):
        return "encoder.sentence_encoder."
    assert isinstance(config, Data2VecVisionConfig), "language models have no teacher"
    return "encoder." if config.ema_transformer_only else ""
