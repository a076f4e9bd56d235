"""Fields that are accepted because the reference has them, and change nothing here, with the reason.

Where the command line or a user's file gives one of them another value than its default, the reason is told
once; what our own files have because the reference's do is not news. Keys of the reference that are no fields
at all stand in ``compat.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from data2vec.audio_trunk import TrunkOptions
from data2vec.config import ImageModalityConfig, ModalityConfig
from data2vec.typed import flatten
from data2vec.v1.config import Data2VecAudioConfig

from .audio_components import CTCCriterion
from .components import ModelCriterion
from .groups import CommonEval, Dataset
from .schema import Recipe
from .text_components import SentencePredictionCriterion

_INFERENCE = "training predicts nothing: give it to d2v infer"
_BIAS = "only used with learned_alibi, which is not built"
_IMAGE_BIAS = "image models have no ALiBi bias here"

WITHOUT_EFFECT: dict[type[Any], dict[str, str]] = {
    Dataset: {"gen_subset": _INFERENCE},
    CommonEval: {"path": _INFERENCE, "results_path": _INFERENCE},
    ModelCriterion: {
        "log_keys": "every figure of the model is logged; model_norm and ema_norm, if named, in the line too"
    },
    CTCCriterion: {
        "zero_infinity": "it is always on, and utterances with too few frames are left out and counted",
        "wer_sil_weight": "as in the reference, which sets it to 0 while training",
    },
    SentencePredictionCriterion: {"classification_head_name": "a model has one head, so its name is free"},
    TrunkOptions: {
        "drop_path": "as in the reference: audio models of data2vec have no drop path of this name"
    },
    ModalityConfig: {"remove_masks": "as in the reference, which reads it nowhere", "alibi_max_pos": _BIAS},
    ImageModalityConfig: {"alibi_dims": _IMAGE_BIAS, "alibi_distance": _IMAGE_BIAS},
    Data2VecAudioConfig: {
        "layer_type": "there is one kind of layer",
        "dropout_features": "as in the reference, which never applies it",
        "final_dim": "as in the reference, whose head predicts encoder_embed_dim values",
        "mask_min_space": "only used with no_mask_overlap, which is not built",
        "mask_channel_min_space": "only used with no_mask_channel_overlap, which is not built",
        "required_seq_len_multiple": "lengths need no padding to a multiple here",
    },
}


def notes_of(recipe: Recipe, ours: Mapping[str, Any] | None = None) -> list[str]:
    """What the recipe sets without effect, one line for each reason.

    Args:
        recipe: what was composed.
        ours: our own file that it was made from, as ``Recipe.to_dict``: its values are not told.
    """
    known = flatten(ours or {})
    fields: dict[str, list[str]] = {}
    for field, reason, value in _found(recipe, ""):
        if field not in known or known[field] != value:
            fields.setdefault(reason, []).append(field)
    return [f"{', '.join(names)}: no effect here; {reason}" for reason, names in fields.items()]


def _found(node: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Dotted field, reason and value, wherever the value differs from the default."""
    reasons = {name: why for cls, table in WITHOUT_EFFECT.items() if isinstance(node, cls)
               for name, why in table.items()}  # fmt: skip
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if field.name in reasons and value != default:
            yield f"{path}{field.name}", reasons[field.name], value
        if dataclasses.is_dataclass(value):
            yield from _found(value, f"{path}{field.name}.")
