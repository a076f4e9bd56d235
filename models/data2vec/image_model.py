"""An image model in use: class scores and embeddings of images in any form.

B images, T patches, D width, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from .artifact import Artifact, load_strictly
from .config import IMAGENET_MEAN, IMAGENET_STD, ImageHeadConfig
from .data.image_files import read_image
from .data.image_transforms import evaluation_transform
from .errors import CheckpointError, DataError
from .families import generation_of
from .image_heads import ImageClassifier, TrunkRegularisation, finetuning_config, make_trunk
from .student import Data2VecMulti, Features
from .v1.vision import Data2VecVision
from .v1.vision_config import Data2VecVisionConfig

AnyImage = bytes | str | Path | np.ndarray | Image.Image
"""Content of an image file, its path, (H, W), (H, W, 1) or (H, W, 3) uint8, or a Pillow image."""
Pooling = Literal["mean", "cls", "none"]


class ImageModel:
    """A model in evaluation mode with its preprocessing.

    Attributes:
        config: the folder's ``config.json``.
        network: the trunk.
        classifier: trunk and head, of a fine-tuned model.
        classes: class names by id, of a fine-tuned model.
        input_size: side of the images that the network sees.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.config, self.model_config = artifact.config, artifact.model_config
        task = artifact.config.get("task") or {}
        config = artifact.model_config
        self.classifier: ImageClassifier | None = None
        self.network: Data2VecMulti | Data2VecVision
        if isinstance(artifact.head_config, ImageHeadConfig):
            assert isinstance(config, Data2VecVisionConfig) or config.modality_name == "IMAGE"  # pyright: ignore
            self.classifier = ImageClassifier(config, artifact.head_config)  # pyright: ignore[reportArgumentType]
            load_strictly(self.classifier, artifact.state, artifact.folder)
            self.network = self.classifier.model
        else:
            trunk = finetuning_config(config, TrunkRegularisation())  # pyright: ignore[reportArgumentType]
            self.network = make_trunk(trunk, seed=1)
            load_strictly(self.network, artifact.trunk_state, artifact.folder)
        self.network.eval()
        if self.classifier is not None:
            self.classifier.eval()
        self.classes = [str(x) for x in task.get("labels", [])]
        if self.classifier is not None and len(self.classes) != self.classifier.head_config.num_classes:
            self.classes = [str(i) for i in range(self.classifier.head_config.num_classes)]
        self.input_size = image_size(config)
        self.transform = evaluation_transform(
            self.input_size,
            generation=generation_of(config),
            mean=tuple(task.get("mean") or IMAGENET_MEAN),
            std=tuple(task.get("std") or IMAGENET_STD),
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> ImageModel:
        """Move it; returns itself."""
        (self.classifier or self.network).to(device)
        return self

    def untrained(self, seed: int = 1) -> ImageModel:
        """The same architecture with random initial weights, without a head: the baseline of a probe.

        Args:
            seed: of the weights; the ones that a pretraining with this ``common.seed`` starts from.
        """
        other = copy.copy(self)
        other.classifier = None
        other.network = make_trunk(self.network.config, seed).eval().to(self.device)
        return other

    @torch.inference_mode()
    def embed(
        self, images: Sequence[AnyImage], pooling: Pooling = "mean", layer: int = -1
    ) -> list[np.ndarray]:
        """Features of images.

        Args:
            images: B images.
            pooling: "mean" over patches, "cls" (the class token), or "none".
            layer: block whose output is taken; -1 is the last, 0 the first.

        Returns:
            B arrays: (D,), or (T, D) without pooling.
        """
        out: list[np.ndarray] = []
        for start in range(0, len(images), 32):
            features = self.features(self._prepared(images[start : start + 32]), pooling, layer)
            out += list(features.float().cpu().numpy())
        return out

    @torch.inference_mode()
    def classify(self, images: Sequence[AnyImage]) -> tuple[list[str], np.ndarray]:
        """Class probabilities.

        Returns:
            The class names, and (B, C) probabilities.
        """
        if self.classifier is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without a head: use embed()")
        scores = np.zeros((len(images), len(self.classes)))
        for start in range(0, len(images), 32):
            logits = self.classifier(self._prepared(images[start : start + 32]))
            scores[start : start + 32] = logits.double().softmax(-1).cpu().numpy()
        return self.classes, scores

    def features(self, images_BCSS: torch.Tensor, pooling: Pooling = "mean", layer: int = -1) -> torch.Tensor:
        """(B, C, S, S) transformed images to (B, D), or (B, T, D) without pooling."""
        return pooled_features(self.network, images_BCSS, pooling, layer)

    def _prepared(self, images: Sequence[AnyImage]) -> torch.Tensor:
        return torch.stack([self.transform(as_image(image)) for image in images]).to(self.device)


def pooled_features(
    network: Data2VecMulti | Data2VecVision,
    images_BCSS: torch.Tensor,
    pooling: Pooling = "mean",
    layer: int = -1,
    *,
    run: Callable[..., Features] | None = None,
) -> torch.Tensor:
    """Features of one block.

    Args:
        network: in evaluation mode.
        images_BCSS: (B, C, S, S).
        pooling: "mean" over patches, "cls" (the first extra token), or "none".
        layer: block whose output is taken; -1 is the last, 0 the first.
        run: what runs the network; by default it is called itself.

    Returns:
        (B, D), or (B, T, D) without pooling.
    """
    depth = network.config.depth
    if not -depth <= layer < depth:
        raise DataError(f"layer = {layer} must lie in {-depth} ... {depth - 1}: the model has {depth} blocks")
    if pooling not in ("mean", "cls", "none"):
        raise DataError(f"pooling = {pooling!r} must be one of mean, cls, none")
    extra = 1 if isinstance(network, Data2VecVision) else network.encoder.num_extra_tokens
    if pooling == "cls" and extra == 0:
        raise DataError("pooling = 'cls': the model has no class token; use mean")
    x_BTD = (run or network)(images_BCSS, None, all_layers=True).layers[layer]
    if pooling == "cls":
        return x_BTD[:, 0]
    return x_BTD[:, extra:].mean(dim=1) if pooling == "mean" else x_BTD[:, extra:]


def image_size(config: object) -> int:
    """Side of the square input of an image model of either generation."""
    if isinstance(config, Data2VecVisionConfig):
        return config.image_size
    image = getattr(getattr(config, "modalities", None), "image", None)
    if image is None:
        raise CheckpointError("this is no image model")
    return image.input_size


def as_image(image: AnyImage) -> Image.Image:
    """Any of the accepted forms as an RGB image.

    Raises:
        DataError: the bytes are no image, the file is missing, or the array has another shape or type.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, str | Path):
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise DataError(f"{image}: {error.strerror or error}") from error
    if isinstance(image, bytes | bytearray | memoryview):
        return read_image(bytes(image))[0]
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise DataError(
            "an image array must be (height, width) or (height, width, 3) uint8, "
            f"not {array.shape} {array.dtype}"
        )
    return Image.fromarray(array).convert("RGB")
