"""An image model in use: class scores and embeddings of images in any form.

B images, T patches, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image

from .artifact import Artifact, load_strictly
from .config import IMAGENET_MEAN, IMAGENET_STD, ImageHeadConfig
from .data.image_files import UnreadableImageError, read_image, upright
from .data.image_transforms import evaluation_transform
from .errors import CheckpointError, DataError
from .families import generation_of
from .image_heads import ImageClassifier, TrunkRegularisation, finetuning_config, make_image_trunk
from .in_use import ModelInUse, items_of
from .mae_config import MaeConfig
from .student import Data2VecMulti, Features
from .v1.image import Data2VecVision
from .v1.image_config import Data2VecVisionConfig

AnyImage = bytes | str | Path | np.ndarray | Image.Image
"""Content of an image file, its path, (H, W), (H, W, 1) or (H, W, 3) uint8, or a Pillow image."""
Pooling = Literal["mean", "cls", "none"]
BATCH = 32


class ImageModel(ModelInUse):
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
            self.network = make_image_trunk(trunk, seed=1)
            load_strictly(self.network, artifact.trunk_state, artifact.folder)
        self._module = (self.classifier or self.network).eval()
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

    def untrained(self, seed: int = 1) -> ImageModel:
        """The same architecture with random initial weights, without a head: the baseline of a probe.

        Args:
            seed: of the weights; the ones that a pretraining with this ``common.seed`` starts from.
        """
        return self._with(make_image_trunk(self.network.config, seed))

    @overload
    def embed(
        self, images: AnyImage, pooling: Pooling = ..., layer: int = ..., *, batch_size: int = ...
    ) -> np.ndarray: ...
    @overload
    def embed(
        self,
        images: Sequence[AnyImage],
        pooling: Pooling = "mean",
        layer: int = -1,
        *,
        batch_size: int = BATCH,
    ) -> list[np.ndarray]: ...
    @torch.inference_mode()
    def embed(
        self,
        images: AnyImage | Sequence[AnyImage],
        pooling: Pooling = "mean",
        layer: int = -1,
        *,
        batch_size: int = BATCH,
    ) -> np.ndarray | list[np.ndarray]:
        """Features of images.

        Args:
            images: one image, or B images.
            pooling: "mean" over patches, "cls" (the class token), or "none".
            layer: block whose output is taken; -1 is the last, 0 the first.
            batch_size: images that go through the model together.

        Returns:
            Of one image (D,), or (T, D) without pooling; of several a list of B such arrays.
        """
        given, single = items_of(images, _is_image, _AN_IMAGE, batch_size)
        out: list[np.ndarray] = []
        for start in range(0, len(given), batch_size):
            features = self.features(self._prepared(given[start : start + batch_size]), pooling, layer)
            out += list(features.float().cpu().numpy())
        return out[0] if single else out

    @torch.inference_mode()
    def classify(
        self, images: AnyImage | Sequence[AnyImage], *, batch_size: int = BATCH
    ) -> tuple[list[str], np.ndarray]:
        """Class probabilities.

        Args:
            images: one image, or B images.
            batch_size: images that go through the model together.

        Returns:
            The class names, and (C,) probabilities of one image or (B, C) of a list.
        """
        if self.classifier is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without a head: use embed()")
        given, single = items_of(images, _is_image, _AN_IMAGE, batch_size)
        scores = np.zeros((len(given), len(self.classes)))
        for start in range(0, len(given), batch_size):
            logits = self.classifier(self._prepared(given[start : start + batch_size]))
            scores[start : start + batch_size] = logits.double().softmax(-1).cpu().numpy()
        return self.classes, scores[0] if single else scores

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
    """Side of the square input of an image model."""
    if isinstance(config, Data2VecVisionConfig):
        return config.image_size
    if isinstance(config, MaeConfig):
        return config.input_size
    image = getattr(getattr(config, "modalities", None), "image", None)
    if image is None:
        raise CheckpointError("this is no image model")
    return image.input_size


_AN_IMAGE = "an image (its path, the content of its file, a uint8 array, or a Pillow image)"


def _is_image(item: Any) -> bool:
    """A path, bytes or an array of one image; an array of more dimensions holds several."""
    if isinstance(item, np.ndarray):
        return item.ndim in (2, 3)
    return isinstance(item, str | Path | bytes | bytearray | memoryview | Image.Image)


def as_image(image: AnyImage) -> Image.Image:
    """Any of the accepted forms as an RGB image, upright where its EXIF data says how it was held.

    Raises:
        DataError: the bytes are no image, the file is missing, or the array has another shape or type.
    """
    if isinstance(image, Image.Image):
        return upright(image).convert("RGB")
    if isinstance(image, str | Path):
        try:
            return read_image(Path(image).read_bytes(), turn_upright=True)[0]
        except OSError as error:
            raise DataError(f"{image}: {error.strerror or error}") from error
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{image}: {error}") from None
    if isinstance(image, bytes | bytearray | memoryview):
        return read_image(bytes(image), turn_upright=True)[0]
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise DataError(
            "an image array must be (height, width) or (height, width, 3) uint8, "
            f"not {array.shape} {array.dtype}"
        )
    return Image.fromarray(array).convert("RGB")
