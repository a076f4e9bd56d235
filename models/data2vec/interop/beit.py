"""Files of the data2vec_vision repository (BEiT's code): no fairseq configuration, other names, no ``_ema``.

Their ``args`` hold the command line; the architecture follows from the shapes. The teacher is ``model_ema``,
an average of the complete model. Fine-tuned files have one table of relative positions in every block.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import CheckpointError
from .fairseq_file import FairseqCheckpoint
from .imported import ImportedModel, State, rename_report
from .v1_vision import FINETUNED, V1, from_beit_names, import_v1_vision

NAME = "beit"
_HEADS = {768: 12, 1024: 16, 1280: 16}  # by width, of ViT-B, -L and -H
_LARGEST_GRID = 64
_HALF = (0.5, 0.5, 0.5)


def is_beit(tensors: State) -> bool:
    """Whether these are tensors of BEiT's code."""
    return "patch_embed.proj.weight" in tensors and any(name.endswith("attn.q_bias") for name in tensors)


def import_beit(checkpoint: FairseqCheckpoint) -> ImportedModel:
    """A pretrained or fine-tuned model of the data2vec_vision repository.

    Raises:
        CheckpointError: tensors missing, unknown or of another shape than a BEiT of this size has.
    """
    model = _with_index(from_beit_names(checkpoint.model))
    config = _config(checkpoint, model)
    finetuned = "head.weight" in model
    args = checkpoint.section("args")
    if finetuned:
        trunk = {
            name if name.startswith(("head.", "fc_norm.")) else f"model.{name}": t
            for name, t in model.items()
        }
        cfg: dict[str, Any] = {
            "_name": FINETUNED,
            "pretrained_model_args": {"model": config},
            "label_smoothing": args.get("smoothing"),
        }
        translated = dataclasses.replace(checkpoint, cfg={"model": cfg}, model=trunk, teacher=None)
    else:
        teacher = None if checkpoint.teacher is None else _with_index(from_beit_names(checkpoint.teacher))
        config |= {"ema_transformer_only": False, "use_final_proj": True, "mean_loss": True}
        translated = dataclasses.replace(
            checkpoint, cfg={"model": {"_name": V1, **config}}, model=model, teacher=teacher
        )
    imported = import_v1_vision(translated)
    if finetuned:  # BEiT's code loses no patch, unlike fairseq's, and its norms have another epsilon
        head = dataclasses.replace(imported.head_config, drop_first_patch=False, fc_norm_eps=1e-6)  # type: ignore[type-var, arg-type]
        # Nor do its fine-tuning commands pass ImageNet's mean and deviation, as those of pretraining do.
        imported = dataclasses.replace(imported, head_config=head, pixel_norm=(_HALF, _HALF))
    what = "fine-tuned for classification" if finetuned else "pretrained"
    return rename_report(imported, f"v1 images of the data2vec_vision repository, {what}")


def _config(checkpoint: FairseqCheckpoint, model: State) -> dict[str, Any]:
    patches = model.get("patch_embed.conv.weight")
    if patches is None or patches.ndim != 4:
        raise CheckpointError(f"checkpoint {checkpoint.path}: patch_embed.proj.weight is no convolution")
    width, channels, patch, _ = patches.shape
    depth = len({name.split(".")[2] for name in model if name.startswith("encoder.blocks.")})
    shared = "encoder.rel_pos_bias.relative_position_bias_table"
    own = "encoder.blocks.0.attn.relative_position_bias_table"
    table = model.get(shared, model.get(own))
    if table is None or table.ndim != 2:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no table of relative positions")
    grid = next((g for g in range(1, _LARGEST_GRID) if (2 * g - 1) ** 2 + 3 == table.shape[0]), None)
    if grid is None:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: {table.shape[0]} rows of relative positions fit no square grid"
        )
    args = checkpoint.section("args")
    hidden = model.get("encoder.blocks.0.mlp.0.weight")
    config: dict[str, Any] = {
        "embed_dim": width,
        "in_channels": channels,
        "patch_size": patch,
        "image_size": grid * patch,
        "depth": depth,
        "num_heads": table.shape[1],
        "mlp_ratio": 4 if hidden is None else hidden.shape[0] // width,
        "shared_rel_pos_bias": shared in model,
        "norm_eps": 1e-6,
        "beit_init": True,
        "layer_norm_target_layer": True,
        "layer_norm_targets": bool(args.get("post_target_layer_norm", True)),
        "average_top_k_layers": min(6, depth),
        "num_mask_patches": min(120, grid * grid),
        "max_mask_patches_per_block": max(grid * grid, 16),
        "loss_beta": 2.0,
        "loss_scale": 1.0,
        "ema_decay": 0.9998,
        "ema_end_decay": 0.9998,
    }
    if "encoder.blocks.0.gamma_1" in model:
        config["layer_scale_init_value"] = 1e-4 if width <= 768 else 1e-5
    else:
        config["layer_scale_init_value"] = 0.0
    names = {"l1_beta": "loss_beta", "ema_decay": "ema_end_decay", "num_mask_patches": "num_mask_patches",
             "layer_scale_init_value": "layer_scale_init_value"}  # fmt: skip
    for theirs, ours in names.items():
        if isinstance(args.get(theirs), int | float) and not isinstance(args.get(theirs), bool):
            config[ours] = args[theirs]
    return config


def _with_index(tensors: State) -> State:
    """The index of relative positions follows from the grid: files without it get it."""
    from ..v1.image import relative_position_index

    made = dict(tensors)
    for name, table in tensors.items():
        if not name.endswith("relative_position_bias_table") or table.ndim != 2:
            continue
        index = name.replace("bias_table", "index")
        grid = next((g for g in range(1, _LARGEST_GRID) if (2 * g - 1) ** 2 + 3 == table.shape[0]), None)
        if index not in made and grid is not None:
            made[index] = relative_position_index(grid)
    return made
