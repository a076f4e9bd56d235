"""The reference's v2 image models: pretrained (``data2vec_multi``) and fine-tuned for classification."""

from __future__ import annotations

from ..config import ImageHeadConfig
from ..errors import CheckpointError, ConfigError
from ..typed import build
from ..weight_shapes import pretraining_shapes, weight_shapes
from .fairseq_file import FairseqCheckpoint
from .imported import ImportedModel, Sorting, State
from .v2_config import broken_config, compare_depth, modalities_in, multi_config, without_absent_decoder

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
    sorting = Sorting(checkpoint.path)
    _check_modality(checkpoint, "")
    config, ignored = multi_config(checkpoint, "IMAGE", "model")
    compare_depth(checkpoint, config, "", sorting)
    model = _renamed(checkpoint.model, "")
    student, averaged = pretraining_shapes(config)
    student = without_absent_decoder(config, student, model, sorting)
    sorting.drop(r"modality_encoders\.(?!IMAGE\.)", "another modality")
    sorting.drop(r"modality_encoders\.IMAGE\.encoder_mask$|shared_decoder\.", "not used by images")
    sorting.drop(r"recon_proj\.", "without a reconstruction loss")
    state = sorting.take(model, student)
    sorting.drop(r"modality_encoders\.IMAGE\.decoder\.|decoder\.", "not part of the teacher")
    found = checkpoint.teacher and _renamed(checkpoint.teacher, "")
    teacher = sorting.take_teacher(found, averaged)
    sorting.finish()
    return ImportedModel(
        kind="pretrained",
        model_config=config,
        state=state,
        teacher=teacher,
        head_config=None,
        num_updates=checkpoint.num_updates,
        report=sorting.report("v2 images, pretrained", ignored),
    )


def _finetuned(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = Sorting(checkpoint.path)
    _check_modality(checkpoint, "model.")
    config, ignored = multi_config(checkpoint, "IMAGE", "model", "pretrained_model_args", "model")
    image = config.modalities.image
    assert image is not None
    given = checkpoint.section("model")
    for name in REGULARISATION:
        setattr(config, name, float(given.get(name) or 0.0))
    for name in PRENET_REGULARISATION:
        setattr(image, name, float(given.get(name) or 0.0))
    config.clone_batch, image.decoder, config.recon_loss = 1, None, 0.0
    compare_depth(checkpoint, config, "model.", sorting)
    head_config = _head_config(checkpoint)
    sorting.drop(r"(model\.)?(_ema|shared_decoder|recon_proj)", "pretraining only")
    sorting.drop(r"model\.modality_encoders\.IMAGE\.(decoder\.|encoder_mask$)", "pretraining only")
    sorting.drop(r"model\.modality_encoders\.(?!IMAGE\.)", "another modality")
    state = sorting.take(_renamed(checkpoint.model, "model."), weight_shapes(config, head_config))
    if checkpoint.teacher is not None:
        sorting.dropped["_ema"] = "pretraining only"
    sorting.finish()
    return ImportedModel(
        kind="image_classifier",
        model_config=config,
        state=state,
        teacher=None,
        head_config=head_config,
        num_updates=checkpoint.num_updates,
        report=sorting.report("v2 images, fine-tuned for classification", ignored),
    )


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
