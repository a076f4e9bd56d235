"""Tiny image recipes of both generations, and one call that trains them here; used by several tests."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from d2v_platform.recipe.schema import Recipe
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.loop_state import Summary, Worker
from d2v_platform.training.train_loop import train
from tests.platform.process_group import together
from tests.platform.recorder import Recorder


def pretraining(data: Path, generation: int = 2, **groups: Any) -> dict[str, Any]:
    decoder = {"decoder_dim": 16, "decoder_groups": 4, "decoder_kernel": 3, "decoder_layers": 1,
               "input_dropout": 0.0}  # fmt: skip
    image = {"input_size": 16, "patch_size": 4, "embed_dim": 32, "prenet_depth": 1, "num_extra_tokens": 1,
             "init_extra_token_zero": False, "ema_local_encoder": True, "mask_prob": 0.75, "mask_length": 2,
             "inverse_mask": True, "decoder": decoder}  # fmt: skip
    second = {
        "_name": "data2vec_multi", "supported_modality": "IMAGE", "embed_dim": 32, "num_heads": 2, "depth": 1,
        "average_top_k_layers": 1, "clone_batch": 2, "ema_encoder_only": False, "cls_loss": 0.01,
        "ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_end_step": 10, "layer_norm_targets": True,
        "encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0,
        "modalities": {"text": None, "image": image},
    }  # fmt: skip
    first = {
        "_name": "data2vec_vision", "depth": 1, "embed_dim": 32, "num_heads": 2, "image_size": 16,
        "patch_size": 4, "num_mask_patches": 8, "min_mask_patches_per_block": 2,
        "max_mask_patches_per_block": 8, "average_top_k_layers": 1, "layer_norm_targets": True,
        "drop_path": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    task = "mae_image_pretraining" if generation == 2 else "image_pretraining"
    recipe = {
        "common": {"log_interval": 1},
        "task": {"_name": task, "data": str(data), "input_size": 16},
        "dataset": {"batch_size": 4, "num_workers": 0, "required_batch_size_multiple": 1,
                    "disable_validation": True},
        "distributed_training": {"distributed_world_size": 3},
        "optimization": {"max_update": 6, "lr": [1e-3], "clip_norm": 4.0},
        "optimizer": {"_name": "adam", "adam_betas": [0.9, 0.95]},
        "lr_scheduler": {"_name": "cosine", "warmup_updates": 2},
        "checkpoint": {"save_interval_updates": 3, "no_epoch_checkpoints": True},
        "criterion": {"_name": "model"},
        "model": second if generation == 2 else first,
    }  # fmt: skip
    for group, values in groups.items():
        recipe[group] = {**recipe.get(group, {}), **values}
    return recipe


def autoencoding(data: Path, **groups: Any) -> dict[str, Any]:
    """The same for a masked autoencoder, with its groups of parameters."""
    recipe = pretraining(data)
    recipe["model"] = {"_name": "mae", "input_size": 16, "patch_size": 4, "embed_dim": 32, "num_heads": 2,
                       "depth": 2, "decoder_embed_dim": 16, "decoder_depth": 1,
                       "decoder_num_heads": 2}  # fmt: skip
    recipe["optimizer"] = {"_name": "composite", "groups": {
        name: {"lr_float": 1e-3, "optimizer": {"_name": "adam", "weight_decay": decay},
               "lr_scheduler": {"_name": "cosine", "warmup_updates": 2, "max_update": 6}}
        for name, decay in (("with_decay", 0.05), ("no_decay", 0.0))}}  # fmt: skip
    recipe["lr_scheduler"] = {"_name": "pass_through"}
    for group, values in groups.items():
        recipe[group] = {**recipe.get(group, {}), **values}
    return recipe


def finetuning(data: Path, **model: Any) -> dict[str, Any]:
    return {
        "common": {"log_interval": 1},
        "task": {"_name": "mae_image_classification", "data": str(data), "input_size": 20,
                 "auto_augment": None, "erasing_prob": 0.0},
        "dataset": {"batch_size": 7, "num_workers": 0, "required_batch_size_multiple": 1,
                    "valid_subset": "val"},
        "optimization": {"max_update": 12, "lr": [5e-3]},
        "optimizer": {"_name": "composite", "dynamic_groups": True, "groups": {"default": {
            "lr_float": 5e-3, "optimizer": {"_name": "adam"},
            "lr_scheduler": {"_name": "cosine", "warmup_updates": 1}}}},
        "lr_scheduler": {"_name": "pass_through"},
        "checkpoint": {"best_checkpoint_metric": "accuracy", "maximize_best_checkpoint_metric": True,
                       "no_epoch_checkpoints": True},
        "criterion": {"_name": "model"},
        "model": {"_name": "mae_image_classification", "model_path": "given", "num_classes": 2,
                  "mixup": 0.0, "cutmix": 0.0, "drop_path_rate": 0.0, **model},
    }  # fmt: skip


def run(
    recipe: dict[str, Any], folder: Path, model_folder: Path | None = None, worker: Worker | None = None
) -> tuple[Summary, Recorder]:
    recorder = Recorder()
    made = Recipe.from_dict(recipe)
    return train(
        Job(made, folder, models=ResolvedModels(model_folder)), recorder, worker or Worker(threads=1)
    ), recorder


def shared_curve(recipe: dict[str, Any], folder: Path, workers: int) -> list[float]:
    """The loss curve of so many processes; ``log.RANK`` holds what each said."""
    together(_one_of, folder, recipe, str(folder), size=workers)
    return json.loads((folder / "curve.json").read_text())


def _one_of(rank: int, workers: int, recipe: dict[str, Any], folder: str) -> None:
    logging.basicConfig(filename=f"{folder}/log.{rank}", level=logging.INFO, format="%(message)s")
    _, recorder = run(recipe, Path(folder), worker=Worker(rank=rank, size=workers, threads=1))
    if rank == 0:
        Path(folder, "curve.json").write_text(json.dumps(recorder.curve()))
