"""Recipe components of images: tasks of both generations, and the classification models.

Field names and defaults are the reference's; fields that are ours are marked so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from data2vec.config import IMAGENET_MEAN, IMAGENET_STD, Pooling

from .groups import MISSING


@dataclass(kw_only=True)
class MaeImagePretrainingTask:
    """Images for data2vec 2.0: random crop and flip; the model draws the masks."""

    data: str = MISSING  # folder with train/CLASS/..., or tar shards; classes are not used
    input_size: int = 224  # side of the square input, in pixels
    beit_transforms: bool = False  # colour jitter and crops from 8 % of the area, as in BEiT
    no_transform: bool = False  # nothing random: the whole image, resized
    precompute_mask_config: dict[str, float] | None = None  # masks follow the model's fields; must be empty
    strict_images: bool = False  # ours: stop at an unreadable image instead of replacing it
    probe_bank: str | None = None  # ours: subset whose features train the probes at each validation
    probe_neighbours: int = 20  # ours: k of the kNN probe
    probe_layer: int = -1  # ours: block whose features are probed; -1 = the last


@dataclass(kw_only=True)
class ImagePretrainingTask:
    """Images for data2vec 1: colour jitter, flip, random crop; the model draws the masks."""

    data: str = MISSING  # folder with train/..., or with images at any depth, or tar shards
    input_size: int = 224  # side of the square input, in pixels
    normalization_mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))  # channel means
    normalization_std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))  # channel deviations
    strict_images: bool = False  # ours: stop at an unreadable image instead of replacing it
    probe_bank: str | None = None  # ours: subset whose features train the probes at each validation
    probe_neighbours: int = 20  # ours: k of the kNN probe
    probe_layer: int = -1  # ours: block whose features are probed; -1 = the last


@dataclass(kw_only=True)
class MaeImageClassificationTask:
    """Labelled images, with timm's augmentations for training."""

    data: str = MISSING  # folder with train/CLASS/... and val/CLASS/..., or tar shards
    input_size: int = 224  # side of the square input, in pixels
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"  # ours: timm's name of the policy; null = none
    erasing_prob: float = 0.25  # ours: probability of random erasing
    strict_images: bool = False  # ours: stop at an unreadable image instead of replacing it


@dataclass(kw_only=True)
class ImageClassificationTask(MaeImageClassificationTask):
    """The same for data2vec 1."""

    normalization_mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))  # channel means
    normalization_std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))  # channel deviations


ImagePretraining = MaeImagePretrainingTask | ImagePretrainingTask
ImageClassificationData = MaeImageClassificationTask | ImageClassificationTask


@dataclass(kw_only=True)
class ImageClassificationModel:
    """What the classification models of both generations have."""

    parent_field: ClassVar[tuple[str, str]] = ("model", "model_path")

    model_path: str = MISSING  # pretrained model: models:/NAME@ALIAS, a folder, s3://, or a reference .pt
    no_pretrained_weights: bool = False  # take the architecture only and start from random weights
    num_classes: int = 1000  # classes
    mixup: float = 0.8  # alpha of mixup; 0 = off
    cutmix: float = 1.0  # alpha of cutmix; 0 = off
    mixup_prob: float = 1.0  # probability that a batch is mixed
    mixup_switch_prob: float = 0.5  # probability of cutmix where both are on
    label_smoothing: float = 0.1  # share of the target spread over all classes
    drop_path_rate: float | None = None  # drop path of the last block, from 0 linearly; null = as pretrained
    layer_decay: float = 1.0  # learning-rate factor from one block to the one below
    attention_dropout: float | None = None  # dropout on attention probabilities; null = as pretrained


@dataclass(kw_only=True)
class MaeImageClassification(ImageClassificationModel):
    """A pretrained data2vec 2.0 image model with a linear head."""

    linear_classifier: bool = False  # freeze the pretrained network
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"  # timm: one ratio for the batch, a pair, an image
    drop_path_rate: float | None = 0.1  # drop path of the last block, from 0 linearly; null = as pretrained
    layer_decay: float = 0.65  # learning-rate factor from one block to the one below
    norm_eps: float | None = None  # epsilon of the network's layer norms; null = as pretrained
    attention_dropout: float | None = 0.0  # dropout on attention probabilities; null = as pretrained
    encoder_dropout: float | None = 0.0  # dropout after the attention's output; null = as pretrained
    post_mlp_drop: float | None = 0.0  # dropout on the feed-forward output; null = as pretrained
    activation_dropout: float | None = 0.0  # dropout inside the feed-forward network; null = as pretrained
    dropout_input: float | None = 0.0  # dropout before the shared blocks; null = as pretrained
    layerdrop: float | None = 0.0  # probability of skipping a shared block; null = as pretrained
    prenet_layerdrop: float | None = 0.0  # probability of skipping a prenet block; null = as pretrained
    prenet_dropout: float | None = 0.0  # dropout before the prenet blocks; null = as pretrained
    use_fc_norm: bool = True  # layer norm after pooling
    prediction_mode: Pooling = "MEAN_POOLING"  # mean over patches, class token, or linear softmax


@dataclass(kw_only=True)
class Data2VecImageClassification(ImageClassificationModel):
    """A pretrained data2vec 1 vision model with a linear head."""

    drop_first_patch: bool = True  # ours: false corrects the reference, which cuts the first patch too
    fc_norm_eps: float = 1.0e-5  # ours: epsilon of the layer norm after pooling; 1e-6 in the BEiT-based code
    head_init_scale: float = 1.0e-3  # ours: factor of the head's initial weights


ImageClassifierModel = MaeImageClassification | Data2VecImageClassification
