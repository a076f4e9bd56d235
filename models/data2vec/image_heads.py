"""Image classification over the pretrained network: pooling, layer norm, linear layer, layer-wise decay.

B images, T patches, D width, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .config import Data2VecMultiConfig, ImageHeadConfig
from .errors import Data2VecError
from .image import interpolate_positions
from .mae_config import MaeConfig
from .randomness import generator
from .student import Data2VecMulti, Features
from .v1.image import Data2VecVision, relative_position_index
from .v1.image_config import Data2VecVisionConfig
from .v1.positions import interpolate_bias_table

ImageConfig = Data2VecMultiConfig | Data2VecVisionConfig
BIAS_TABLE, BIAS_INDEX = "relative_position_bias_table", "relative_position_index"  # shared, or of each block
POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"


@dataclass(frozen=True, kw_only=True)
class TrunkRegularisation:
    """What fine-tuning sets in the trunk; ``None`` leaves a value as it was in pretraining."""

    encoder_dropout: float | None = 0.0
    post_mlp_drop: float | None = 0.0
    attention_dropout: float | None = 0.0
    activation_dropout: float | None = 0.0
    dropout_input: float | None = 0.0
    layerdrop: float | None = 0.0
    prenet_layerdrop: float | None = 0.0
    prenet_dropout: float | None = 0.0
    drop_path_rate: float | None = 0.0
    norm_eps: float | None = None


def finetuning_config(
    pretrained: ImageConfig | MaeConfig, regularisation: TrunkRegularisation, input_size: int | None = None
) -> ImageConfig:
    """The trunk's configuration: no pretraining parts, and the regularisation that fine-tuning gives.

    Args:
        pretrained: an image model of either generation, or a masked autoencoder, of which the encoder is
            taken; the first generation has drop path and attention dropout alone.
        regularisation: dropouts, layer drop, drop path; ``None`` as pretrained.
        input_size: side of the images; by default as pretrained.
    """
    config = pretrained.encoder() if isinstance(pretrained, MaeConfig) else copy.deepcopy(pretrained)
    if isinstance(config, Data2VecVisionConfig):
        _set_given(
            config,
            drop_path=regularisation.drop_path_rate,
            attention_dropout=regularisation.attention_dropout,
        )
        if input_size is not None:
            config.image_size = input_size
            config.num_mask_patches = min(config.num_mask_patches, config.grid**2)
        return config
    image = config.modalities.image
    if image is None or config.modality_name != "IMAGE":
        raise Data2VecError(f"the pretrained model is of {config.modality_name}, not of images")
    for name in ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout",
                 "dropout_input", "layerdrop", "norm_eps"):  # fmt: skip
        _set_given(config, **{name: getattr(regularisation, name)})
    for name in ("prenet_layerdrop", "prenet_dropout"):
        _set_given(image, **{name: getattr(regularisation, name)})
    if regularisation.drop_path_rate is not None:
        _set_drop_path(config, regularisation.drop_path_rate)
    config.clone_batch, config.recon_loss, config.cls_loss, image.decoder = 1, 0.0, 0.0, None
    if input_size is not None:
        image.input_size = input_size
    return config


def _set_given(config: object, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None:
            setattr(config, name, value)


def _set_drop_path(config: Data2VecMultiConfig, rate: float) -> None:
    """Drop path rising linearly from 0 over prenet and shared blocks, as the reference has it.

    With ``d = linspace(0, rate, depth)`` and p prenet blocks: prenet ``linspace(d[0], d[p - 1], p)``, shared
    ``linspace(d[p], d[-1], depth)``.
    """
    image = config.modalities.image
    assert image is not None
    rates = torch.linspace(0, rate, config.depth, device="cpu").tolist()
    prenet, last = image.prenet_depth, config.depth - 1
    if prenet:
        image.start_drop_path_rate, image.end_drop_path_rate = rates[0], rates[min(prenet - 1, last)]
    config.start_drop_path_rate, config.end_drop_path_rate = rates[min(prenet, last)], rates[-1]


@dataclass(frozen=True)
class ImageOutput:
    """Result of one micro-batch."""

    loss: torch.Tensor  # summed over images (differentiable); the divisor is the number of images
    elementwise: torch.Tensor  # (B,) with hard labels, (B, C) with soft ones


class ImageClassifier(nn.Module):
    """Fine-tuning for classification.

    Args:
        config: the trunk, see :func:`finetuning_config`.
        head: pooling, classes, smoothing.
        seed: seed of the head's (and, without a pretrained model, the trunk's) initial weights.
    """

    def __init__(self, config: ImageConfig, head: ImageHeadConfig, *, seed: int = 1) -> None:
        super().__init__()
        self.head_config = head
        self.model = make_image_trunk(config, seed)
        dim = config.embed_dim
        self.fc_norm = nn.LayerNorm(dim, eps=head.fc_norm_eps) if head.use_fc_norm else None
        self.head = nn.Linear(dim, head.num_classes)
        with torch.no_grad():
            draw = generator("init", seed, "head")
            nn.init.trunc_normal_(self.head.weight, std=0.02, generator=draw)
            self.head.bias.zero_()
            self.head.weight.mul_(head.init_scale)
        if head.linear_classifier:
            self.model.requires_grad_(False)

    def forward(self, images: torch.Tensor, *key: int | str) -> torch.Tensor:
        """(B, 3, S, S) images to (B, C) logits in fp32; ``key`` decides layer drop while training."""
        if self.head_config.linear_classifier:
            with torch.no_grad():
                features = self.model(images, None, *key)
        else:
            features = self.model(images, None, *key)
        return self.head(self.pool(features)).float()

    def pool(self, features: Features) -> torch.Tensor:
        """Features of the patches (or the class token) to (B, D), through the layer norm."""
        mode, x_BTD = self.head_config.prediction_mode, features.x_BTD
        if mode == "CLS_TOKEN":
            x_BD = x_BTD[:, 0] if features.extra_BED is None else features.extra_BED[:, 0]
        else:
            if self.head_config.drop_first_patch:
                x_BTD = x_BTD[:, 1:]
            x_BD = x_BTD.mean(dim=1) if mode == "MEAN_POOLING" else linear_softmax(x_BTD)
        return x_BD if self.fc_norm is None else self.fc_norm(x_BD)

    def loss(self, logits_BC: torch.Tensor, target: torch.Tensor) -> ImageOutput:
        """Summed cross-entropy.

        Args:
            logits_BC: (B, C).
            target: (B,) class ids, smoothed in training as the head says, or (B, C) soft labels.
        """
        if target.is_floating_point():
            elementwise = -target * F.log_softmax(logits_BC.float(), dim=-1)
        else:
            smoothing = self.head_config.label_smoothing if self.training else 0.0
            elementwise = F.cross_entropy(
                logits_BC.float(), target, label_smoothing=smoothing, reduction="none"
            )
        return ImageOutput(elementwise.sum(), elementwise)


def linear_softmax(x_BTD: torch.Tensor) -> torch.Tensor:
    """Pooling by self-weighted probabilities, channel by channel: the logit of ``sum p^2 / sum p``.

    Args:
        x_BTD: (B, T, D) logits of p.

    Returns:
        (B, D) logits.
    """
    log_p = F.logsigmoid(x_BTD.float())
    log_pooled = (torch.logsumexp(2 * log_p, dim=1) - torch.logsumexp(log_p + 1e-6, dim=1)).clamp(max=0.0)
    logit = log_pooled - torch.log(-torch.expm1(log_pooled))
    return torch.nan_to_num(logit, nan=0.0, posinf=0.0, neginf=0.0).to(x_BTD.dtype)


def make_image_trunk(config: ImageConfig, seed: int) -> Data2VecMulti | Data2VecVision:
    """The network of either generation without its pretraining parts."""
    if isinstance(config, Data2VecVisionConfig):
        return Data2VecVision(config, pretraining=False, seed=seed)
    return Data2VecMulti(config, with_decoder=False, seed=seed)


def fit_positions(state: Mapping[str, torch.Tensor], config: ImageConfig) -> dict[str, torch.Tensor]:
    """Pretrained weights with positions for the configured input size.

    Args:
        state: the trunk's weights.
        config: the trunk's configuration.
    """
    fitted = dict(state)
    if isinstance(config, Data2VecVisionConfig):
        for name, table in state.items():
            if name.endswith(BIAS_TABLE):
                fitted[name] = interpolate_bias_table(table, config.grid)
                fitted[name.replace(BIAS_TABLE, BIAS_INDEX)] = relative_position_index(config.grid)
        return fitted
    image = config.modalities.image
    assert image is not None
    if POSITIONS in fitted:
        length = (image.input_size // image.patch_size) ** 2
        if fitted[POSITIONS].shape[1] != length:
            fitted[POSITIONS] = interpolate_positions(fitted[POSITIONS], length)
    return fitted


def layer_decay_scales(blocks: int, decay: float) -> list[float]:
    """Learning-rate factors of the blocks, first to last: ``decay ** (blocks - j)``."""
    return [decay ** (blocks - j) for j in range(blocks)]


def finetuning_lr_scales(
    model: ImageClassifier, decay: float, *, front_end: bool = False
) -> dict[str, float]:
    """Learning-rate factor of every trunk parameter.

    v2: prenet blocks come before the shared ones, and all outside the blocks have 1, unlike BEiT and MAE. v1
    follows BEiT: class token and patches have ``decay ** (depth + 1)``, relative positions 1. Head and its
    norm are not listed: the reference tags the trunk only.

    Args:
        model: the classifier.
        decay: factor from one block to the one below.
        front_end: of a masked autoencoder: class token and patches have ``decay ** (depth + 1)`` here too.
    """
    trunk = model.model
    outside = 1.0
    if isinstance(trunk, Data2VecVision):
        blocks, outside = list(trunk.encoder.blocks), decay ** (trunk.config.depth + 1)
    else:
        blocks = [*trunk.encoder.context_encoder.blocks, *trunk.blocks]
        if front_end:
            outside = decay ** (len(blocks) + 1)
    of_block = {
        id(parameter): scale
        for block, scale in zip(blocks, layer_decay_scales(len(blocks), decay), strict=True)
        for parameter in block.parameters()
    }
    scales = {f"model.{name}": of_block.get(id(p), outside) for name, p in trunk.named_parameters()}
    last = ("rel_pos_bias", "model.norm.")  # the latter ends a masked autoencoder
    return scales | {name: 1.0 for name in scales if any(part in name for part in last)}
