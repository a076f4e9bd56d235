"""The image recipes have the reference's values (``spec/recipes.md`` sections 1, 5 and 8)."""

from __future__ import annotations

from typing import Any

import pytest

from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.image_components import Data2VecImageClassification, MaeImageClassification
from d2v_platform.recipe.schema import Recipe
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import ConfigError
from data2vec.mae_config import MaeConfig
from data2vec.v1.image_config import Data2VecVisionConfig


def recipe_of(name: str, *overrides: str) -> Recipe:
    return compose(name, ["task.data=/data", *overrides]).recipe


# workers, images, updates, lr, depth, width, heads, prenet, patch, layers, (p, adjust), teacher, decoder
V2: dict[str, Any] = {
    "base_images_only_task": (16, 16, 375300, 1e-3, 10, 768, 12, 2, 16, 10, (0.8, 0.07),
                              (0.9998, 0.99999, 100000), (768, 3, 6)),
    "large_images_only_task": (16, 8, 375300, 4e-4, 24, 1024, 16, 0, 16, 18, (0.75, 0.1),
                               (0.9998, 0.99999, 150000), (1024, 5, 3)),
    "huge_images_only_task": (16, 8, 375300, 4e-4, 32, 1280, 16, 0, 16, 24, (0.75, 0.1),
                              (0.9998, 0.99995, 150000), (1024, 5, 3)),
    "huge_images14_only_task": (32, 8, 500000, 4e-4, 32, 1280, 16, 0, 14, 24, (0.75, 0.1),
                                (0.9998, 1.0, 300000), (1024, 5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", V2)
def test_v2_pretraining(name: str) -> None:
    workers, images, updates, lr, depth, dim, heads, prenet, patch, top, mask, teacher, decoder = V2[name]
    recipe = recipe_of(f"v2/{name}")
    assert (recipe.world_size(), recipe.dataset.batch_size, recipe.optimization.max_update) == (
        workers,
        images,
        updates,
    )
    group = recipe.parameter_groups()["default"]
    assert group.peaks == (lr,) and group.optimizer.weight_decay == 0.05
    assert tuple(group.optimizer.adam_betas) == (0.9, 0.95) and group.lr_scheduler.warmup_updates == 50040  # pyright: ignore
    assert recipe.optimization.clip_norm == 4.0
    model = recipe.model
    assert isinstance(model, Data2VecMultiConfig)
    image = model.modalities.image
    assert image is not None and image.decoder is not None and model.modality_name == "IMAGE"
    assert (model.depth, model.embed_dim, model.num_heads, image.embed_dim) == (depth, dim, heads, dim)
    assert (image.prenet_depth, image.patch_size, model.average_top_k_layers) == (prenet, patch, top)
    assert (image.mask_prob, image.mask_prob_adjust, image.mask_length, image.inverse_mask) == (
        *mask,
        3,
        True,
    )
    assert (model.ema_decay, model.ema_end_decay, model.ema_anneal_end_step) == teacher
    found = (image.decoder.decoder_dim, image.decoder.decoder_kernel, image.decoder.decoder_layers)
    assert found == decoder and image.decoder.decoder_groups == 16 and image.decoder.input_dropout == 0
    assert model.clone_batch == 16 and model.cls_loss == 0.01 and model.norm_eps == 1e-6
    assert model.instance_norm_target_layer and model.layer_norm_targets and model.loss_scale is None
    assert not model.ema_encoder_only and image.ema_local_encoder and image.num_extra_tokens == 1
    assert not image.init_extra_token_zero
    rates = (model.encoder_dropout, model.post_mlp_drop, model.attention_dropout, model.layerdrop)
    assert rates == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "updates", "lr", "min_lr", "clip", "decay", "drop_path"),
    [
        ("mae_imagenet_clean", 250200, 1e-3, 1e-6, 0.0, 0.65, 0.1),
        ("mae_imagenet_large_clean", 125200, 5e-4, 1e-7, 4.0, 0.75, 0.2),
        ("mae_imagenet_huge_clean", 125200, 5e-4, 1e-20, 4.0, 0.75, 0.2),
    ],
)
def test_v2_finetuning(
    name: str, updates: int, lr: float, min_lr: float, clip: float, decay: float, drop_path: float
) -> None:
    recipe = recipe_of(f"vision/finetuning/{name}", "model.model_path=/model")
    assert recipe.world_size() * (recipe.dataset.batch_size or 0) == 512
    assert (recipe.optimization.max_update, recipe.optimization.clip_norm) == (updates, clip)
    group = recipe.parameter_groups()["default"]
    assert group.peaks == (lr,) and group.optimizer.weight_decay == 0.05
    schedule: Any = group.lr_scheduler
    assert (schedule.min_lr, schedule.warmup_updates) == (min_lr, 16000)
    model = recipe.model
    assert isinstance(model, MaeImageClassification)
    assert (model.layer_decay, model.drop_path_rate, model.mixup, model.cutmix) == (
        decay,
        drop_path,
        0.7,
        1.0,
    )
    assert (model.mixup_prob, model.mixup_switch_prob, model.label_smoothing) == (0.9, 0.5, 0.1)
    assert recipe.checkpoint.best_checkpoint_metric == "accuracy"
    assert recipe.checkpoint.maximize_best_checkpoint_metric
    assert (recipe.dataset.valid_subset, recipe.dataset.required_batch_size_multiple) == ("val", 2)


def test_v1_pretraining() -> None:
    plain, paper = (
        recipe_of("vision/pretraining/base_imagenet"),
        recipe_of("vision/pretraining/base_imagenet_d2v1"),
    )
    assert isinstance(plain.model, Data2VecVisionConfig) and isinstance(paper.model, Data2VecVisionConfig)
    assert (plain.model.num_mask_patches, plain.model.average_top_k_layers, plain.model.loss_beta) == (
        75,
        8,
        0.0,
    )
    assert plain.world_size() * (plain.dataset.batch_size or 0) == 1024
    assert (paper.model.average_top_k_layers, paper.model.loss_beta, paper.model.drop_path) == (6, 2.0, 0.25)
    assert (paper.model.ema_decay, paper.model.ema_end_decay, paper.model.layer_norm_targets) == (
        0.999,
        0.9998,
        True,
    )
    assert (
        paper.optimization.clip_norm == 3.0 and paper.world_size() * (paper.dataset.batch_size or 0) == 2048
    )
    beit = recipe_of("vision/pretraining/beit_base_imagenet")
    assert isinstance(beit.model, Data2VecVisionConfig)
    assert beit.model.num_mask_patches == 120 and beit.model.mean_loss and beit.model.use_final_proj
    assert (beit.model.ema_decay, beit.model.ema_end_decay) == (0.9998, 0.9998)
    assert beit.model.beit_init and not plain.model.beit_init and not paper.model.beit_init
    assert not beit.optimization.decay_norm_and_bias and not beit.model.ema_transformer_only


def test_masked_autoencoder() -> None:
    recipe = recipe_of("vision/pretraining/base_mae_imagenet")
    assert recipe.model == MaeConfig(), "the reference's recipe has its code's defaults"
    assert (recipe.world_size(), recipe.dataset.batch_size, recipe.optimization.max_update) == (
        16,
        64,
        375300,
    )
    groups = recipe.parameter_groups()
    assert {name: group.optimizer.weight_decay for name, group in groups.items()} == {
        "with_decay": 0.05,
        "no_decay": 0.0,
    }
    for group in groups.values():
        schedule: Any = group.lr_scheduler
        assert group.peaks == (6e-4,) and tuple(group.optimizer.adam_betas) == (0.9, 0.95)
        assert (schedule.warmup_updates, schedule.min_lr) == (50040, 0.0)


def test_v1_finetuning() -> None:
    own = recipe_of("vision/finetuning/imagenet", "model.model_path=/model")
    assert isinstance(own.model, Data2VecImageClassification)
    assert own.model.drop_path_rate is None and own.model.attention_dropout is None  # as pretrained
    assert own.model.drop_first_patch and own.model.fc_norm_eps == 1e-5 and own.model.layer_decay == 1.0
    beit = recipe_of("vision/finetuning/beit_imagenet", "model.model_path=/model")
    assert isinstance(beit.model, Data2VecImageClassification)
    assert (
        not beit.model.drop_first_patch
        and beit.model.layer_decay == 0.65
        and beit.model.drop_path_rate == 0.2
        and beit.model.attention_dropout == 0.0
    )
    assert beit.parameter_groups()["default"].optimizer.weight_decay == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "image_pretraining",
        "image_pretraining_v1",
        "image_pretraining_mae",
        "image_finetuning",
        "image_finetuning_v1",
    ],
)
def test_tiny_recipes_compose(name: str) -> None:
    overrides = ["model.model_path=/model"] if "finetuning" in name else []
    assert recipe_of(f"tiny/{name}", *overrides).world_size() == 1


def test_the_readmes_vision_commands() -> None:
    """The reference's own keys, with the launcher replaced."""
    recipe = recipe_of(
        "vision/finetuning/mae_imagenet_clean",
        "model.model_path=/model",
        "common.user_dir=examples/data2vec",
        "task.local_cache_path=null",
        "task.rebuild_batches=true",
        "model.no_decay_blocks=true",
    )
    assert isinstance(recipe.model, MaeImageClassification)


def test_what_would_fail_hours_later_is_said_before_the_start() -> None:
    words = ["task.probe_bank=bank", "dataset.disable_validation=false", "task.probe_layer=9"]
    with pytest.raises(ConfigError, match=r"task\.probe_layer = 9 .*-3 \.\.\. 2"):
        recipe_of("tiny/image_pretraining", *words)
    for policy in ("foo", "rand-m9-foo1"):
        with pytest.raises(ConfigError, match=r"task\.auto_augment"):
            recipe_of("tiny/image_finetuning", "model.model_path=/m", f"task.auto_augment={policy}")
    for policy in ("augmix-m3-w3", "original", "null"):
        recipe_of("tiny/image_finetuning", "model.model_path=/m", f"task.auto_augment={policy}")
