"""The configuration inside a data2vec 2.0 checkpoint, for the modality that the file holds."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from ..config import Data2VecMultiConfig
from ..errors import CheckpointError, ConfigError
from ..rules import ModelConfig
from ..weight_shapes import Shapes
from .fairseq_file import FairseqCheckpoint
from .imported import Sorting, State

Config = TypeVar("Config", bound=ModelConfig)


def modalities_in(checkpoint: FairseqCheckpoint, prefix: str = "") -> list[str]:
    """The modalities that the file has encoders of, sorted."""
    pattern = re.compile(re.escape(prefix) + r"modality_encoders\.([A-Z]+)\.")
    return sorted({match.group(1) for name in checkpoint.model if (match := pattern.match(name))})


def without_absent_decoder(
    config: Data2VecMultiConfig, wanted: Shapes, tensors: State, sorting: Sorting
) -> Shapes:
    """What to take of a pretrained model: all, or all but the decoder where the file has none.

    Args:
        config: loses its decoder if the file has none.
        wanted: all that the configuration describes.
        tensors: the student's, by name.
        sorting: notes what is missing.
    """
    prefix = f"modality_encoders.{config.modality_name}.decoder."
    decoder = [name for name in wanted if name.startswith(prefix)]
    if not decoder or any(name.startswith(prefix) for name in tensors):
        return wanted
    sorting.missing += decoder
    sorting.notes.append("without decoder: the model can be fine-tuned, but not pretrained further")
    config.modality.decoder = None
    return {name: shape for name, shape in wanted.items() if name not in decoder}


def multi_config(
    checkpoint: FairseqCheckpoint, sorting: Sorting, modality: str, *where: str
) -> Data2VecMultiConfig:
    """The architecture from the configuration inside the file.

    Args:
        checkpoint: the file's content.
        sorting: notes the fields that are ignored.
        modality: "TEXT", "IMAGE" or "AUDIO"; the other ones' fields are left out.
        where: section of the run's configuration.
    """
    values, own = model_section(checkpoint, *where), modality.lower()
    modalities = values.get("modalities")
    modalities = modalities if isinstance(modalities, dict) else {}
    sorting.ignored_config |= {
        f"modalities.{name}": "another modality"
        for name, value in modalities.items()
        if value and name != own
    }
    mine = modalities.get(own) or {}
    if isinstance(mine, dict):
        mine = {**mine, "type": modality}
    values["modalities"] = {"text": None, own: mine}
    values["supported_modality"] = modality
    return read_config(Data2VecMultiConfig, checkpoint, sorting, *where, values=values)


def model_section(checkpoint: FairseqCheckpoint, *where: str) -> dict[str, Any]:
    """A section of the run's configuration that describes a network."""
    values = without_names(checkpoint.section(*where))
    if not values:
        group = ".".join(("cfg", *where))
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has no model configuration ({group}), and weights alone do not "
            "tell the number of attention heads"
        )
    return values


def read_config(
    kind: type[Config],
    checkpoint: FairseqCheckpoint,
    sorting: Sorting,
    *where: str,
    values: dict[str, Any] | None = None,
) -> Config:
    """The architecture.

    Args:
        kind: its class.
        checkpoint: the file's content.
        sorting: notes the fields that are ignored.
        where: section of the run's configuration.
        values: what to take instead of that section.
    """
    values = model_section(checkpoint, *where) if values is None else values
    unknown: list[str] = []
    try:
        config = kind.from_dict(values, unknown=unknown)
        config.check(len(checkpoint.model))
    except ConfigError as error:
        raise broken_config(checkpoint, ".".join(("cfg", *where)), error) from None
    sorting.ignored_config |= dict.fromkeys(unknown, "unknown here")
    return config


def broken_config(checkpoint: FairseqCheckpoint, group: str, error: ConfigError) -> CheckpointError:
    """The problems of a configuration inside a file."""
    return CheckpointError(str(ConfigError(error.problems, f"checkpoint {checkpoint.path}: {group}")))


def without_names(value: Any) -> Any:
    """The mapping without the ``_name`` entries that fairseq adds at every level."""
    if isinstance(value, dict):
        return {k: without_names(v) for k, v in value.items() if k != "_name"}
    return value
