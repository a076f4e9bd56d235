"""The recipes' image transforms, through torchvision and timm, with keyed randomness.

Sources: the reference's image data sets (``spec/image_data.md`` sections 3 and 6). S side in pixels.

torchvision is imported where it is used: a third of the imports of a training, which only images need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps

from ..config import IMAGENET_MEAN, IMAGENET_STD

Transform = Callable[[Any], torch.Tensor]
"""Of a Pillow image, and those of torchvision alone also of (C, H, W) bytes on any device."""


def pretraining_transform(
    size: int,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    jitter: float = 0.0,
    resize_only: bool = False,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Transform:
    """Random crop and flip, and colour jitter before them where the recipe asks for it (BEiT, v1).

    Args:
        size: S.
        scale: range of the crop's share of the area.
        jitter: strength of brightness, contrast and saturation changes; 0 = none.
        resize_only: nothing random: the whole image, its aspect ratio not kept.
        mean: subtracted channel means.
        std: channel deviations divided by.
    """
    from torchvision.transforms import InterpolationMode as Mode
    from torchvision.transforms import v2

    if resize_only:
        return v2.Compose([v2.Resize((size, size), interpolation=Mode.BICUBIC), *_to_tensor(mean, std)])
    steps: list[torch.nn.Module] = [v2.ColorJitter(jitter, jitter, jitter)] if jitter > 0 else []
    flip = v2.RandomHorizontalFlip(0.5)
    crop = v2.RandomResizedCrop(size, scale=scale, ratio=(3 / 4, 4 / 3), interpolation=Mode.BICUBIC)
    # The reference flips after the crop in v2 and before it after a jitter; the distribution is the same.
    steps += [flip, crop] if jitter > 0 else [crop, flip]
    return v2.Compose([*steps, *_to_tensor(mean, std)])


def finetuning_transform(
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    erasing: float = 0.25,
    generation: int = 2,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Transform:
    """timm's training pipeline as the recipes configure it.

    Args:
        size: S.
        scale: range of the crop's share of the area.
        auto_augment: timm's name of the augmentation policy; ``None`` = none.
        erasing: probability of random erasing with per-pixel noise.
        generation: of data2vec; for images up to 32 pixels the first one's crop is a padded random crop.
        mean: channel means, also the fill colour of the augmentations.
        std: channel deviations.
    """
    from timm.data import auto_augment as operations  # seconds of imports that only fine-tuning needs
    from timm.data import create_transform
    from torchvision.transforms import v2

    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        operations.NAME_TO_OP[name] = _posterize
    transform = create_transform(
        input_size=size,
        is_training=True,
        scale=scale,
        color_jitter=0.0,  # timm ignores it beside auto_augment, and the reference turns it off
        auto_augment=auto_augment,
        interpolation="bicubic",
        re_prob=erasing,
        re_mode="pixel",
        re_count=1,
        mean=mean,
        std=std,
    )
    assert isinstance(transform.transforms, list)  # pyright: ignore[reportAttributeAccessIssue]
    if generation == 1 and size <= 32:
        transform.transforms[0] = v2.RandomCrop(size, padding=4, pad_if_needed=True)  # pyright: ignore
    return transform  # pyright: ignore[reportReturnType]


def evaluation_transform(
    size: int,
    *,
    generation: int = 2,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Transform:
    """Resize the shorter side to ``int(S / 0.875)`` and cut S x S from the centre.

    Args:
        size: S.
        generation: of data2vec: the second one keeps the whole shorter side above 224 pixels, the first one
            from 384 and up to 32.
        mean: channel means.
        std: channel deviations.
    """
    from torchvision.transforms import InterpolationMode as Mode
    from torchvision.transforms import v2

    whole = size > 224 if generation == 2 else size >= 384 or size <= 32
    crop = 1.0 if whole else 224 / 256
    steps = [v2.Resize(int(size / crop), interpolation=Mode.BICUBIC), v2.CenterCrop(size)]
    return v2.Compose([*steps, *_to_tensor(mean, std)])


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's, which asks for 0 bits at the highest magnitude: black in older Pillow, an error in newer."""
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _to_tensor(mean: tuple[float, ...], std: tuple[float, ...]) -> list[torch.nn.Module]:
    from torchvision.transforms import v2

    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
        v2.ToPureTensor(),
    ]
