"""Images that are transformed on their batch's device: crops, flips and jitters of those that are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data2vec.data.image_sources import FolderSource
from data2vec.data.image_transforms import Transform, pretraining_transform
from data2vec.data.images import ImageDataset

TRANSFORMS: dict[str, Transform] = {
    "crop": pretraining_transform(24),
    "crop after jitter": pretraining_transform(24, scale=(0.08, 1.0), jitter=0.4),
    "resized": pretraining_transform(24, resize_only=True),
    "its own numbers": pretraining_transform(24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """Smooth pictures of several sizes, and one that cannot be read."""
    root, draw = tmp_path_factory.mktemp("images") / "train", np.random.default_rng(0)
    (root / "all").mkdir(parents=True)
    for index, size in enumerate([(60, 40), (33, 71), (64, 64), (40, 48)]):
        coarse = draw.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(root / "all" / f"{index}.png")
    (root / "all" / "4.png").write_bytes(b"no image")
    return FolderSource(root)


def batch_of(data: ImageDataset, *ids: int) -> dict[str, Any]:
    return data.finish(data.collate([data[index] for index in ids]))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_same_pictures_but_for_rounding(name: str, source: FolderSource) -> None:
    early, late = (ImageDataset(source, TRANSFORMS[name], seed=3, late=x) for x in (False, True))
    for epoch in (1, 2):
        one, two = (batch_of(data.for_epoch(epoch), 0, 1, 2, 3) for data in (early, late))
        assert one.keys() == two.keys() and two["source"].shape == (4, 3, 24, 24)
        assert torch.equal(one["id"], two["id"]) and torch.equal(one["target"], two["target"])
        apart = (one["source"] - two["source"]).abs()
        assert apart.mean() < 0.03 and one["source"].std() > 0.5, "a level of 255 is 0.017"


def test_what_is_drawn_follows_seed_epoch_and_sample(source: FolderSource) -> None:
    data = ImageDataset(source, TRANSFORMS["crop after jitter"], seed=3, late=True)
    torch.manual_seed(0)
    first, state = batch_of(data, 0, 1)["source"], torch.get_rng_state()
    assert torch.equal(batch_of(data, 1, 2)["source"][0], first[1]), "not the place in the batch"
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left as it was"
    other = ImageDataset(source, data.transform, seed=4, late=True)
    for changed in (data.for_epoch(2), other):
        assert changed.late and not torch.equal(batch_of(changed, 0, 1)["source"], first)


def test_unreadable_images_are_replaced_before(source: FolderSource) -> None:
    data = ImageDataset(source, TRANSFORMS["resized"], replace=True, late=True)
    batch = batch_of(data, 4, 0)
    assert torch.equal(batch["source"][0], batch["source"][1]) and batch["id"].tolist() == [4, 0]
    assert [name for name, _ in batch["notes"]] == ["all/4.png"]
    left_out = batch_of(ImageDataset(source, TRANSFORMS["resized"], late=True), 4)
    assert len(left_out["id"]) == 0 and left_out["source"].numel() == 0
