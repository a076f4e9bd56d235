"""The reference's v1 vision models: pretrained and fine-tuned, in fairseq's names or BEiT's."""

from __future__ import annotations

import re

from ..config import ImageHeadConfig
from ..errors import CheckpointError, ConfigError
from ..typed import build
from ..v1.image_config import Data2VecVisionConfig
from .fairseq_file import FairseqCheckpoint
from .imported import ImportedModel, Sorting, State
from .key_tables import Shapes, image_head
from .v2_config import broken_config, without_names

V1, FINETUNED = "data2vec_vision", "data2vec_image_classification"
_PRETRAINING_ONLY = "pretraining only"

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


def encoder_shapes(config: Data2VecVisionConfig, final_norm: bool) -> Shapes:
    """The transformer, named as in the teacher; the student puts ``encoder.`` before."""
    dim, hidden, heads = config.embed_dim, config.embed_dim * config.mlp_ratio, config.num_heads
    tokens = config.grid**2 + 1
    table = ((2 * config.grid - 1) ** 2 + 3, heads)
    bias = {"relative_position_bias_table": table, "relative_position_index": (tokens, tokens)}
    shapes: Shapes = {}
    if config.shared_rel_pos_bias:
        shapes |= {f"rel_pos_bias.{name}": shape for name, shape in bias.items()}
    for i in range(config.depth):
        block: Shapes = {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
        }
        block |= {"attn.qkv.weight": (3 * dim, dim), "attn.q_bias": (dim,), "attn.v_bias": (dim,)}
        block |= {"attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,)}
        block |= {"mlp.0.weight": (hidden, dim), "mlp.0.bias": (hidden,)}
        block |= {"mlp.2.weight": (dim, hidden), "mlp.2.bias": (dim,)}
        if not config.shared_rel_pos_bias:
            block |= {f"attn.{name}": shape for name, shape in bias.items()}
        if config.layer_scale_init_value > 0:
            block |= {"gamma_1": (dim,), "gamma_2": (dim,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | ({"norm.weight": (dim,), "norm.bias": (dim,)} if final_norm else {})


def student_shapes(config: Data2VecVisionConfig, pretraining: bool) -> Shapes:
    """Patches, tokens, transformer and (for pretraining) mask vector, final norm and head."""
    dim, patch = config.embed_dim, config.patch_size
    shapes: Shapes = {"cls_emb": (1, 1, dim)}
    shapes |= {
        "patch_embed.conv.weight": (dim, config.in_channels, patch, patch),
        "patch_embed.conv.bias": (dim,),
    }
    shapes |= {f"encoder.{name}": shape for name, shape in encoder_shapes(config, pretraining).items()}
    if pretraining:
        shapes |= {"mask_emb": (1, 1, dim), "final_proj.weight": (dim, dim), "final_proj.bias": (dim,)}
    return shapes


def _pretrained(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = Sorting(checkpoint.path)
    config, ignored = _config(checkpoint, "model")
    state = sorting.take(from_beit_names(checkpoint.model), student_shapes(config, pretraining=True))
    wanted = encoder_shapes(config, final_norm=True)
    if not config.ema_transformer_only:
        left_out = ("mask_emb", "final_proj.")
        wanted = {k: v for k, v in student_shapes(config, True).items() if not k.startswith(left_out)}
        sorting.drop(r"mask_emb|final_proj\.", "not part of the teacher")
    teacher = sorting.take_teacher(checkpoint.teacher, wanted)
    sorting.finish()
    return ImportedModel(
        kind="pretrained",
        model_config=config,
        state=state,
        teacher=teacher,
        head_config=None,
        num_updates=checkpoint.num_updates,
        report=sorting.report("v1 images, pretrained", ignored),
    )


def _finetuned(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = Sorting(checkpoint.path)
    config, ignored = _config(checkpoint, "model", "pretrained_model_args", "model")
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
    sorting.drop(r"(model\.)?(_ema|mask_emb|final_proj\.|encoder\.norm\.)", _PRETRAINING_ONLY)
    trunk = {f"model.{name}": shape for name, shape in student_shapes(config, pretraining=False).items()}
    state = sorting.take(checkpoint.model, trunk | image_head(config.embed_dim, head.shape[0], True))
    sorting.finish()
    return ImportedModel(
        kind="image_classifier",
        model_config=config,
        state=state,
        teacher=None,
        head_config=head_config,
        num_updates=checkpoint.num_updates,
        report=sorting.report("v1 images, fine-tuned for classification", ignored),
    )


def _config(checkpoint: FairseqCheckpoint, *where: str) -> tuple[Data2VecVisionConfig, dict[str, str]]:
    group, values = ".".join(("cfg", *where)), without_names(checkpoint.section(*where))
    if not values:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no model configuration ({group})")
    unknown: list[str] = []
    try:
        config = Data2VecVisionConfig.from_dict(values, unknown=unknown)
        config.check(len(checkpoint.model))
    except ConfigError as error:
        raise broken_config(checkpoint, group, error) from None
    return config, dict.fromkeys(unknown, "unknown here")
