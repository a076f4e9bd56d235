"""The front of the importer: one table of the families of fairseq checkpoints that can be imported."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..data.dictionary import Dictionary
from ..errors import CheckpointError
from .audio import CTC, EVENTS, import_audio
from .audio import V1 as V1_AUDIO
from .beit import import_beit, is_beit
from .fairseq_file import FairseqCheckpoint, read_checkpoint
from .imported import ImportedModel
from .transformer_lm import NAME as LANGUAGE_MODEL
from .transformer_lm import import_transformer_lm
from .v1_text import FINETUNED as V1_TEXT_FINETUNED
from .v1_text import PRETRAINED as V1_TEXT
from .v1_text import import_v1_text
from .v1_vision import FINETUNED as V1_IMAGE_FINETUNED
from .v1_vision import V1 as V1_VISION
from .v1_vision import import_v1_vision
from .v2_config import modalities_in
from .v2_image import FINETUNED as IMAGE_FINETUNED
from .v2_image import import_v2_image
from .v2_text import FINETUNED, PRETRAINED, import_v2_text

Importer = Callable[[FairseqCheckpoint, Dictionary | None], ImportedModel]

# The reference's model name (cfg.model._name) and what imports it.
FAMILIES: dict[str, Importer] = {
    PRETRAINED: lambda checkpoint, dictionary: _by_modality(checkpoint, dictionary),
    FINETUNED: import_v2_text,
    IMAGE_FINETUNED: lambda checkpoint, _: import_v2_image(checkpoint),
    V1_VISION: lambda checkpoint, _: import_v1_vision(checkpoint),
    V1_IMAGE_FINETUNED: lambda checkpoint, _: import_v1_vision(checkpoint),
    V1_AUDIO: import_audio,
    V1_TEXT: import_v1_text,
    V1_TEXT_FINETUNED: import_v1_text,
    CTC: import_audio,
    EVENTS: import_audio,
    LANGUAGE_MODEL: import_transformer_lm,
}


def _by_modality(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None) -> ImportedModel:
    """A pretrained v2 model: the encoders in the file say of which modality."""
    found = modalities_in(checkpoint)
    if "IMAGE" in found and "TEXT" not in found:
        return import_v2_image(checkpoint)
    if "AUDIO" in found and "TEXT" not in found:
        return import_audio(checkpoint, dictionary)
    return import_v2_text(checkpoint, dictionary)


def _by_tensors(checkpoint: FairseqCheckpoint) -> Importer | None:
    """What the names of the tensors say, for files whose configuration does not name a family."""
    if checkpoint.family:
        return None
    names = tuple(checkpoint.model)

    def has(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    if is_beit(checkpoint.model):
        return lambda checkpoint, _: import_beit(checkpoint)
    if has("w2v_encoder.") or (has("feature_extractor.") and has("encoder.pos_conv.")):
        return import_audio
    if has("encoder.sentence_encoder.", "decoder.sentence_encoder."):
        return import_v1_text
    if has("modality_encoders."):
        return _by_modality
    return None


def import_checkpoint(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None = None) -> ImportedModel:
    """Any checkpoint of the reference whose family is known.

    Raises:
        CheckpointError: the family is unknown, or the file does not fit its own configuration.
    """
    family = checkpoint.family or ""
    if family.startswith(f"{LANGUAGE_MODEL}_"):  # its named sizes
        family = LANGUAGE_MODEL
    importer = FAMILIES.get(family) or _by_tensors(checkpoint)
    if importer is None:
        what = (
            f"is of the family {checkpoint.family!r}"
            if checkpoint.family
            else "has no configuration (cfg.model)"
        )
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"checkpoint {checkpoint.path} {what}; families that can be imported: {known}")
    try:
        return importer(checkpoint, dictionary)
    except CheckpointError:
        raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: no model can be built of its configuration: {text}"
        ) from None


def load_pretrained_text(
    path: str | os.PathLike[str], dict_path: str | os.PathLike[str] | None = None
) -> ImportedModel:
    """A v2 text checkpoint (pretrained or fine-tuned) together with its dictionary.

    Args:
        path: the reference's ``.pt`` file.
        dict_path: its ``dict.txt``; the path inside the file is of the machine that made it. Without it the
            vocabulary is not checked, which the report says.
    """
    dictionary = None if dict_path is None else Dictionary.load(dict_path)
    return import_checkpoint(read_checkpoint(path), dictionary)
