"""Images as training and evaluation samples.

B images, C channels, S side in pixels, H height and W width of an image as it is stored, P all pixels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image

from ..errors import DataError
from ..randomness import seeded
from .batching import SampleOrder
from .image_files import UnreadableImageError, read_image
from .image_sources import ImageSource
from .image_transforms import Transform

logger = logging.getLogger(__name__)


class ImageSample(TypedDict):
    """One image: ``notes`` are (file, what was odd or wrong) pairs; ``image`` is absent if unreadable.

    It is (C, S, S), or (H, W, C) bytes where the transform comes later.
    """

    id: int
    label: int
    notes: list[tuple[str, str]]
    image: NotRequired[torch.Tensor]


class ImageDataset:
    """Images of a subset through a transform whose randomness is a function of (seed, epoch, sample).

    An image that cannot be read is replaced in training by the next readable one, so that batches keep their
    size and do not depend on who reads them; in evaluation it is left out. Either way it is noted with the
    batch, once for each time it was met.

    Args:
        source: where the bytes come from.
        transform: image to tensor.
        seed: ``common.seed``.
        epoch: from 1.
        replace: training: replace unreadable images.
        strict: stop at the first unreadable image instead.
        late: batches hold whole images, and :meth:`finish` transforms them where they are then. What is drawn
            is the same; Pillow rounds otherwise than PyTorch does.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        seed: int = 1,
        epoch: int = 1,
        replace: bool = False,
        strict: bool = False,
        late: bool = False,
    ) -> None:
        self.source, self.transform = source, transform
        self.seed, self.epoch, self.replace, self.strict = seed, epoch, replace, strict
        self.late = late
        self.sizes = np.ones(len(source), dtype=np.int32)
        self.order: SampleOrder = "random"

    def fingerprint(self) -> str:
        """Of the images behind it, see :meth:`ImageSource.fingerprint`."""
        return self.source.fingerprint()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ImageSample:
        notes: list[tuple[str, str]] = []
        for step in range(len(self) if self.replace else 1):
            at = (index + step) % len(self)
            name = self.source.name(at)
            try:
                image, oddity = read_image(self.source.read(at))
            except UnreadableImageError as error:
                if self.strict:
                    raise DataError(
                        f"{name}: {error} (task.strict_images=false goes on without it)"
                    ) from None
                notes.append((name, f"unreadable: {error}"))
                continue
            if oddity is not None:
                notes.append((name, oddity))
            tensor = torch.from_numpy(np.array(image)) if self.late else self._transformed(image, index)
            return {"id": index, "label": int(self.source.labels[at]), "notes": notes, "image": tensor}
        if self.replace:
            raise DataError(f"none of the {len(self)} images can be read; the last: {notes[-1]}")
        return {"id": index, "label": -1, "notes": notes}

    def collate(self, samples: Sequence[ImageSample]) -> dict[str, Any]:
        """Stack what could be read: ``source`` (B, C, S, S), ``target`` (B,), ``id`` (B,), ``notes``.

        Where the transform comes later, ``pixels`` (P, C) and ``sides`` (B, 2) stand in place of ``source``.
        """
        good = [s for s in samples if "image" in s]
        images = [s["image"] for s in good if "image" in s]
        if self.late and images:
            sides = torch.tensor([image.shape[:2] for image in images])
            found = {"pixels": torch.cat([image.flatten(0, 1) for image in images]), "sides": sides}
        else:
            found = {"source": torch.stack(images) if images else torch.empty(0)}
        return found | {
            "id": torch.tensor([s["id"] for s in good], dtype=torch.int64),
            "target": torch.tensor([s["label"] for s in good], dtype=torch.int64),
            "notes": [note for s in samples for note in s["notes"]],
        }

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with its ``source``, transformed on the device that holds its pixels, if it was not yet."""
        if "pixels" not in batch:
            return batch
        rest = {key: value for key, value in batch.items() if key not in ("pixels", "sides")}
        sides: list[tuple[int, int]] = batch["sides"].tolist()
        parts = batch["pixels"].split([height * width for height, width in sides])
        images = [
            self._transformed(part.view(height, width, -1).permute(2, 0, 1), index)
            for part, (height, width), index in zip(parts, sides, batch["id"].tolist(), strict=True)
        ]
        return {"source": torch.stack(images), **rest}

    def _transformed(self, image: Image.Image | torch.Tensor, index: int) -> torch.Tensor:
        with seeded("image", self.seed, self.epoch, index):
            return self.transform(image)

    def for_epoch(self, epoch: int) -> ImageDataset:
        """The same images with other crops."""
        if epoch == self.epoch:
            return self
        other = copy.copy(self)
        other.epoch = epoch
        return other


class Oddities:
    """Says each odd or unreadable file once, and how many there were of each kind.

    Args:
        speaks: log what is new; of several workers only one does, and :meth:`merge` tells it of the others'.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self.speaks = speaks
        self._kinds: dict[str, set[str]] = {}

    def note(self, notes: Sequence[tuple[str, str]]) -> int:
        """Take in a batch's notes; a new kind, and every new unreadable file, is logged.

        Returns:
            How many of them were unreadable.
        """
        unreadable = 0
        for name, what in notes:
            unreadable += what.startswith("unreadable")
            kind = "unreadable" if what.startswith("unreadable") else what
            files = self._kinds.setdefault(kind, set())
            if name in files:
                continue
            if not self.speaks:
                pass
            elif kind == "unreadable":
                logger.warning("image %s is left out: %s", name, what)
            elif not files:
                logger.info("image %s: %s; further ones are only counted", name, what)
            files.add(name)
        return unreadable

    def files(self) -> dict[str, list[str]]:
        """Names of the files of each kind, sorted."""
        return {kind: sorted(files) for kind, files in self._kinds.items()}

    def merge(self, others: Sequence[dict[str, list[str]]]) -> None:
        """Take in what other workers' :meth:`files` hold."""
        for other in others:
            for kind, files in other.items():
                self._kinds.setdefault(kind, set()).update(files)

    def counts(self) -> dict[str, int]:
        """Files by kind."""
        return {kind: len(files) for kind, files in self._kinds.items()}

    def lines(self) -> list[str]:
        """One line a kind, with the first names."""
        return [
            f"{len(files)} {'image' if len(files) == 1 else 'images'} {kind} ({', '.join(sorted(files)[:3])}"
            f"{', ...' if len(files) > 3 else ''})"
            for kind, files in self._kinds.items()
        ]
