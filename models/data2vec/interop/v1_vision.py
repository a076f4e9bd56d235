"""The reference's v1 vision models: pretrained and fine-tuned, in fairseq's names or BEiT's."""

from __future__ import annotations

import re

from ..config import ImageHeadConfig
from ..errors import CheckpointError, ConfigError
from ..typed import build
from ..v1.image_config import Data2VecVisionConfig
from ..weight_shapes import pretraining_shapes, weight_shapes
from .fairseq_file import PRETRAINING_ONLY, FairseqCheckpoint
from .imported import ImportedModel, State
from .v2_config import broken_config, read_config

V1, FINETUNED = "data2vec_vision", "data2vec_image_classification"

# The BEiT-based code's names and fairseq's, which are ours. Parts that only one of them has are not listed.
_BEIT_NAMES = (
    (re.compile(r"^cls_token$"), "cls_emb"),
    (re.compile(r"^mask_token$"), "mask_emb"),
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.conv."),
    (re.compile(r"^lm_head\."), "final_proj."),
    (re.compile(r"^(rel_pos_bias|blocks|norm)\."), r"encoder.\1."),
    (re.compile(r"\.mlp\.fc1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.fc2\."), ".mlp.2."),
)


def import_v1_vision(checkpoint: FairseqCheckpoint) -> ImportedModel:
    """A v1 vision model, pretrained or fine-tuned for classification.

    Raises:
        CheckpointError: tensors missing, unknown or of another shape than the configuration inside the file
            says.
    """
    return (_finetuned if checkpoint.family == FINETUNED else _pretrained)(checkpoint)


def from_beit_names(tensors: State) -> State:
    """Tensors of the BEiT-based code under fairseq's names."""
    renamed: State = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _BEIT_NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = tensor
    return renamed


def _pretrained(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = checkpoint.sorting()
    config = read_config(Data2VecVisionConfig, checkpoint, sorting, "model")
    student, averaged = pretraining_shapes(config)
    state = sorting.take(from_beit_names(checkpoint.model), student)
    if not config.ema_transformer_only:
        sorting.drop(r"mask_emb|final_proj\.", "not part of the teacher")
    sorting.take_teacher(checkpoint.teacher, averaged)
    return sorting.imported("v1 images", config, state)


def _finetuned(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = checkpoint.sorting(finetuned=True)
    config = read_config(Data2VecVisionConfig, checkpoint, sorting, "model", "pretrained_model_args", "model")
    head = checkpoint.model.get("head.weight")
    if head is None or head.ndim != 2:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no image head (head.weight)")
    model = checkpoint.section("model")
    given = {"label_smoothing": model["label_smoothing"]} if model.get("label_smoothing") is not None else {}
    # The reference cuts the class token twice, so that the first patch is lost: as its weights were trained.
    quirks = {"drop_first_patch": True, "fc_norm_eps": 1e-5, "init_scale": 1e-3}
    try:
        head_config = build(ImageHeadConfig, {**given, **quirks, "num_classes": head.shape[0]})
    except ConfigError as error:
        raise broken_config(checkpoint, "cfg.model", error) from None
    sorting.drop(r"(model\.)?(_ema|mask_emb|final_proj\.|encoder\.norm\.)", PRETRAINING_ONLY)
    state = sorting.take(checkpoint.model, weight_shapes(config, head_config))
    return sorting.imported("v1 images", config, state, head=head_config)
