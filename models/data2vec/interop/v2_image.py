"""The reference's v2 image models: pretrained (``data2vec_multi``) and fine-tuned for classification."""

from __future__ import annotations

from ..config import ImageHeadConfig
from ..errors import CheckpointError, ConfigError
from ..typed import build
from ..weight_shapes import pretraining_shapes, weight_shapes
from .fairseq_file import PRETRAINING_ONLY, FairseqCheckpoint
from .imported import ImportedModel, State
from .v2_config import broken_config, modalities_in, multi_config, without_absent_decoder

FINETUNED = "mae_image_classification"

# Trunk settings that the fine-tuning configuration overwrites, by its own names.
REGULARISATION = ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout",
                  "dropout_input", "layerdrop")  # fmt: skip
PRENET_REGULARISATION = ("prenet_layerdrop", "prenet_dropout")


def import_v2_image(checkpoint: FairseqCheckpoint) -> ImportedModel:
    """A v2 image model, pretrained or fine-tuned for classification.

    Raises:
        CheckpointError: another modality; tensors missing, unknown or of another shape than the configuration
            inside the file says.
    """
    return (_finetuned if checkpoint.family == FINETUNED else _pretrained)(checkpoint)


def _pretrained(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = checkpoint.sorting()
    _check_modality(checkpoint, "")
    config = multi_config(checkpoint, sorting, "IMAGE", "model")
    sorting.compare_depth(checkpoint.model, "blocks.", config.depth, "blocks", "depth ")
    model = _renamed(checkpoint.model, "")
    student, averaged = pretraining_shapes(config)
    student = without_absent_decoder(config, student, model, sorting)
    sorting.drop(r"modality_encoders\.(?!IMAGE\.)", "another modality")
    sorting.drop(r"modality_encoders\.IMAGE\.encoder_mask$|shared_decoder\.", "not used by images")
    sorting.drop(r"recon_proj\.", "without a reconstruction loss")
    state = sorting.take(model, student)
    sorting.drop(r"modality_encoders\.IMAGE\.decoder\.|decoder\.", "not part of the teacher")
    found = checkpoint.teacher and _renamed(checkpoint.teacher, "")
    sorting.take_teacher(found, averaged)
    return sorting.imported("v2 images", config, state)


def _finetuned(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = checkpoint.sorting(finetuned=True)
    _check_modality(checkpoint, "model.")
    config = multi_config(checkpoint, sorting, "IMAGE", "model", "pretrained_model_args", "model")
    image = config.modalities.image
    assert image is not None
    given = checkpoint.section("model")
    for name in REGULARISATION:
        setattr(config, name, float(given.get(name) or 0.0))
    for name in PRENET_REGULARISATION:
        setattr(image, name, float(given.get(name) or 0.0))
    config.clone_batch, image.decoder, config.recon_loss = 1, None, 0.0
    sorting.compare_depth(checkpoint.model, "model.blocks.", config.depth, "blocks", "depth ")
    head_config = _head_config(checkpoint)
    sorting.drop(r"(model\.)?(_ema|shared_decoder|recon_proj)", PRETRAINING_ONLY)
    sorting.drop(r"model\.modality_encoders\.IMAGE\.(decoder\.|encoder_mask$)", PRETRAINING_ONLY)
    sorting.drop(r"model\.modality_encoders\.(?!IMAGE\.)", "another modality")
    state = sorting.take(_renamed(checkpoint.model, "model."), weight_shapes(config, head_config))
    return sorting.imported("v2 images", config, state, head=head_config)


def _check_modality(checkpoint: FairseqCheckpoint, prefix: str) -> None:
    found = modalities_in(checkpoint, prefix)
    if "IMAGE" not in found:
        what = f"is a v2 model of {', '.join(found)}" if found else "has no image encoder"
        raise CheckpointError(f"checkpoint {checkpoint.path} {what}; give a v2 image checkpoint")


def _renamed(tensors: State, prefix: str) -> State:
    """Positions under the names of older files, under today's."""
    old = f"{prefix}modality_encoders.IMAGE.positional_encoder."
    today = f"{prefix}modality_encoders.IMAGE.fixed_positional_encoder.positions"
    return {
        (today if name in (f"{old}pos_embed", f"{old}positions") else name): t for name, t in tensors.items()
    }


def _head_config(checkpoint: FairseqCheckpoint) -> ImageHeadConfig:
    head = checkpoint.model.get("head.weight")
    if head is None or head.ndim != 2:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no image head (head.weight)")
    model = checkpoint.section("model")
    names = ("prediction_mode", "use_fc_norm", "label_smoothing", "linear_classifier")
    given = {name: model[name] for name in names if model.get(name) is not None}
    try:
        return build(ImageHeadConfig, {**given, "num_classes": head.shape[0]})
    except ConfigError as error:
        raise broken_config(checkpoint, "cfg.model", error) from None
