"""The teacher's weights in place of the student's: what some downstream users prefer to start from."""

from __future__ import annotations

import dataclasses

from ..errors import CheckpointError
from .imported import ImportedModel

# What stands before a teacher's names in its student.
_PREFIXES = ("", "blocks.", "encoder.", "encoder.sentence_encoder.")


def with_teacher_weights(imported: ImportedModel) -> ImportedModel:
    """The model with every tensor that its teacher has taken from the teacher.

    Raises:
        CheckpointError: there is no teacher.
    """
    if imported.teacher is None:
        raise CheckpointError("the file holds no teacher (_ema), so weights=teacher is not possible")
    found = imported.teacher
    prefix = next(p for p in _PREFIXES if all(p + name in imported.state for name in found))
    teacher = {prefix + name: tensor for name, tensor in found.items()}
    notes = [*imported.report.notes, f"{len(teacher)} tensors are the teacher's"]
    report = dataclasses.replace(imported.report, notes=notes)
    return dataclasses.replace(imported, state={**imported.state, **teacher}, report=report)
