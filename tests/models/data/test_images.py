"""Images from folders and shards: every kind of file, damage told once, keyed augmentation."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data2vec.data.image_files import UnreadableImageError, read_image
from data2vec.data.image_shards import ShardSource
from data2vec.data.image_sources import FolderSource, open_images
from data2vec.data.image_transforms import evaluation_transform, finetuning_transform, pretraining_transform
from data2vec.data.images import ImageDataset, Oddities
from data2vec.errors import DataError


def picture(size: tuple[int, int] = (40, 30), seed: int = 0, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "CMYK": 4, "RGBA": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values, mode=mode)


def content(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "ape", "dog")):
            place = tmp_path / split / name / "deeper"
            place.mkdir(parents=True)
            for i in range(4):
                (place / f"{i}.JPG").write_bytes(content(picture(seed=10 * number + i)))
    return tmp_path


# --- files ------------------------------------------------------------------------------------------------


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    image, odd = read_image(content(Image.fromarray(values), "PNG"))
    assert image.mode == "RGB" and odd is not None and "8 bits" in odd
    assert np.asarray(image)[..., 0].tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (content(picture(mode="CMYK")), "CMYK"),
        (content(picture(mode="RGBA"), "PNG"), "transparen"),
        (content(picture((1, 1)), "PNG"), "8 pixels"),
        (content(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]), "animated"),
        (content(picture()), None),
    ],
)
def test_every_kind_becomes_rgb(data: bytes, said: str | None) -> None:
    image, odd = read_image(data)
    assert image.mode == "RGB"
    assert odd is None if said is None else odd is not None and said in odd
    assert pretraining_transform(16)(image).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "data", [b"", b"no image", content(picture())[:200], content(picture(), "PNG")[:-40]]
)
def test_damage_is_an_error_of_its_own(data: bytes) -> None:
    with pytest.raises(UnreadableImageError):
        read_image(data)


# --- sources ----------------------------------------------------------------------------------------------


def test_class_ids_are_ranks_of_names(folder: Path) -> None:
    source = open_images(folder, "train")
    assert source.classes == ["ape", "cat", "dog"] and len(source) == 12
    assert [source.classes[i] for i in source.labels] == [source.name(i).split("/")[0] for i in range(12)]
    copy = FolderSource(folder / "val")
    assert copy.fingerprint() == source.fingerprint(), "the place does not count"
    (folder / "val" / "dog" / "deeper" / "3.JPG").unlink()
    assert FolderSource(folder / "val").fingerprint() != source.fingerprint()


def test_missing_and_empty_folders_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no folder 'trian'.*did you mean 'train'"):
        open_images(folder, "trian")
    with pytest.raises(DataError, match="no folder 'test'"):
        open_images(folder, "test", labelled=False)  # not the whole folder with train and val in it
    assert len(open_images(folder / "train", "train", labelled=False)) == 12, "an album is taken as it is"
    (folder / "train" / "yak").mkdir()
    with pytest.raises(DataError, match="1 of 4 class folders hold no image: yak"):
        open_images(folder, "train")
    assert len(open_images(folder, "train", labelled=False)) == 12


def shard(path: Path, images: int, labels: bool = True) -> Path:
    with tarfile.open(path, "w") as tar:
        for i in range(images):
            parts = [(f"s{i}.jpg", content(picture(seed=i)))]
            parts += [(f"s{i}.cls", str(i % 2).encode())] if labels else []
            for name, data in parts:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_shards_read_like_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(2):
        shard(tmp_path / "train" / f"{number}.tar", 5)
    source = open_images(tmp_path, "train")
    assert len(source) == 10 and source.classes == ["0", "1"] and not source.notes
    assert source.labels.tolist() == [0, 1, 0, 1, 0] * 2
    assert read_image(source.read(7))[0].tobytes() == read_image(content(picture(seed=2)))[0].tobytes()


def test_a_cut_shard_gives_its_whole_images(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", 6)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    source = ShardSource([path])
    assert 1 <= len(source) < 6
    assert len(source.notes) == 1 and "cut off after" in source.notes[0]
    for i in range(len(source)):
        read_image(source.read(i))


def test_images_without_a_class_are_counted(tmp_path: Path) -> None:
    source = ShardSource([shard(tmp_path / "a.tar", 3), shard(tmp_path / "b.tar", 2, labels=False)])
    assert len(source) == 3 and "2 images without .cls" in source.notes[0]


# --- dataset ----------------------------------------------------------------------------------------------


def test_crops_are_functions_of_seed_epoch_and_sample(folder: Path) -> None:
    data = ImageDataset(open_images(folder, "train"), finetuning_transform(24), seed=3)
    torch.manual_seed(0)
    first = data[5]["image"]  # type: ignore[typeddict-item]
    state = torch.get_rng_state()
    assert torch.equal(data[5]["image"], first)  # type: ignore[typeddict-item]
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left as it was"
    assert not torch.equal(data.for_epoch(2)[5]["image"], first)  # type: ignore[typeddict-item]


def test_unreadable_images_are_replaced_in_training_and_left_out_in_evaluation(folder: Path) -> None:
    broken = sorted((folder / "train" / "ape" / "deeper").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:150])
    source, transform = open_images(folder, "train"), evaluation_transform(16)
    training = ImageDataset(source, transform, replace=True)
    batch = training.collate([training[i] for i in range(4)])
    assert batch["source"].shape == (4, 3, 16, 16) and batch["id"].tolist() == [0, 1, 2, 3]
    assert torch.equal(batch["source"][1], batch["source"][2]), "the next readable one takes its place"
    evaluation = ImageDataset(source, transform)
    batch = evaluation.collate([evaluation[i] for i in range(4)])
    assert batch["id"].tolist() == [0, 2, 3]
    oddities = Oddities()
    assert oddities.note(batch["notes"]) == 1 == oddities.note(batch["notes"])
    assert oddities.counts() == {"unreadable": 1}
    with pytest.raises(DataError, match="strict_images"):
        _ = ImageDataset(source, transform, strict=True)[1]


def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre() -> None:
    gradient = np.tile(np.linspace(0, 255, 512, dtype=np.uint8)[None, :, None], (256, 1, 3))
    tensor = evaluation_transform(224, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(gradient))
    assert tensor.shape == (3, 224, 224)
    assert float(tensor[0, 100, 112]) == pytest.approx(0.5, abs=0.01)
    assert float(tensor[0, 0, 0]) == pytest.approx((512 - 224) / 2 / 511, abs=0.01)


@pytest.mark.parametrize(
    ("generation", "size", "shorter"),
    [(2, 24, 27), (2, 32, 36), (2, 224, 256), (2, 256, 256),
     (1, 32, 32), (1, 64, 73), (1, 288, 329), (1, 384, 384)],
)  # fmt: skip
def test_how_much_of_an_image_evaluation_sees(generation: int, size: int, shorter: int) -> None:
    steps = evaluation_transform(size, generation=generation).transforms  # type: ignore[attr-defined]
    assert (steps[0].size, steps[1].size) == ([shorter], (size, size))


def test_only_the_first_generation_pads_small_images(folder: Path) -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 1000, dtype=np.uint8)[None, :, None], (1000, 1, 3)))
    for generation, least, most in ((1, 0.0, 0.1), (2, 0.2, 1.0)):
        crop = finetuning_transform(32, generation=generation).transforms[0]  # type: ignore[attr-defined]
        torch.manual_seed(1)
        seen = np.asarray(crop(ramp))[:, :, 0].astype(float)
        assert least <= (seen.max() - seen[seen > 0].min()) / 255 <= most


def test_every_augmentation_works_at_the_highest_magnitude() -> None:
    transform: Any = finetuning_transform(16, auto_augment="rand-m10-inc1")
    (policy,) = [step for step in transform.transforms if hasattr(step, "ops")]
    seen: dict[str, np.ndarray] = {}
    for operation in policy.ops:
        operation.prob = 1.0
        seen[operation.name] = np.asarray(operation(picture()))
    assert len(seen) == 15 and not seen["PosterizeIncreasing"].any(), "no bit is left"


def plain(value: int, size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


def drawn(
    transform: Callable[[Image.Image], torch.Tensor], image: Image.Image, times: int
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return [transform(image) for _ in range(times)]


@pytest.mark.parametrize("transform", [
    pretraining_transform(16), pretraining_transform(16, resize_only=True), evaluation_transform(16),
    finetuning_transform(16, auto_augment=None, erasing=0.0),
], ids=["pretraining", "resize", "evaluation", "finetuning"])  # fmt: skip
def test_values_become_standard_scores_of_each_channel(
    transform: Callable[[Image.Image], torch.Tensor],
) -> None:
    expected = [
        (100 / 255 - mean) / std
        for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ]
    (tensor,) = drawn(transform, plain(100), 1)
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
    for channel, value in enumerate(expected):
        assert tensor[channel].numpy() == pytest.approx(np.full((16, 16), value), abs=1e-5)


@pytest.mark.parametrize(("erasing", "least", "most"), [(0.0, 0, 0), (0.25, 10, 45), (1.0, 90, 100)])
def test_erasing_happens_as_often_as_asked_and_leaves_noise(erasing: float, least: int, most: int) -> None:
    results = drawn(finetuning_transform(32, auto_augment=None, erasing=erasing), plain(100), 100)
    erased = [tensor for tensor in results if float(tensor[0].std()) > 0.05]
    assert least <= len(erased) <= most
    for tensor in erased:  # pixel by pixel, not one colour; timm's share of the area is 0.02 ... 1/3
        changed = tensor[0][(tensor[0] - tensor[0].median()).abs() > 1e-4]
        assert 0.01 < changed.numel() / tensor[0].numel() < 0.4 and float(changed.std()) > 0.3


def test_colours_change_only_where_the_recipe_asks() -> None:
    gray = plain(100)
    for transform, changes in (
        (pretraining_transform(16), False), (pretraining_transform(16, jitter=0.4), True),
        (finetuning_transform(16, auto_augment=None, erasing=0.0), False),
        (finetuning_transform(16, erasing=0.0), True),
    ):  # fmt: skip
        means = {round(float(tensor.mean()), 3) for tensor in drawn(transform, gray, 30)}
        assert (len(means) > 5) == changes
    strengths = [drawn(pretraining_transform(16, jitter=j, std=(1, 1, 1)), gray, 60) for j in (0.1, 0.4)]
    spreads = [float(torch.stack(found).mean(dim=(1, 2, 3)).std()) for found in strengths]
    assert spreads[1] > 2 * spreads[0]


@pytest.mark.parametrize("make", [pretraining_transform, finetuning_transform])
def test_crops_cover_the_asked_share_and_half_are_mirrored(make: Callable[..., Any]) -> None:
    """On a picture whose red is the column and whose green is the row, a crop tells where it was."""
    size = 200
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    both = np.stack(
        [np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.zeros((size, size), np.uint8)], 2
    )
    more: dict[str, Any] = {} if make is pretraining_transform else {"auto_augment": None, "erasing": 0.0}
    for scale in ((0.3, 0.5), (0.9, 1.0)):
        transform = make(64, scale=scale, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **more)
        areas, mirrored = [], 0
        for tensor in drawn(transform, Image.fromarray(both), 60):
            columns, rows = tensor[0].mean(0), tensor[1].mean(1)
            mirrored += bool(columns[-1] < columns[0])
            assert rows[-1] > rows[0], "never upside down"
            areas.append(float((columns.max() - columns.min()) * (rows.max() - rows.min())))
        assert scale[0] * 0.85 < min(areas) and max(areas) < scale[1] * 1.03
        assert 18 <= mirrored <= 42
    whole = pretraining_transform(64, resize_only=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(
        Image.fromarray(both)
    )
    assert float(whole[0, 0, 0]) < 0.02 and float(whole[0, 0, -1]) > 0.98 and float(whole[1, -1, 0]) > 0.98


def test_labels_names_and_crops_go_with_the_image_that_was_read(folder: Path) -> None:
    source = open_images(folder, "train")
    data = ImageDataset(source, evaluation_transform(16), replace=True)
    for index in (0, 5, 11):
        sample = data[index]
        assert sample["label"] == source.labels[index] == index // 4
        expected = evaluation_transform(16)(read_image(source.read(index))[0])
        assert "image" in sample and torch.equal(sample["image"], expected)
    last = sorted((folder / "train" / "dog" / "deeper").iterdir())[-1]
    last.write_bytes(b"x")
    sample = data[11]  # the one after the last is the first
    assert (sample["id"], sample["label"]) == (11, 0) and "unreadable" in sample["notes"][0][1]
    for path in (folder / "train").rglob("*.JPG"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 12 images can be read"):
        _ = data[0]


def test_crops_differ_by_seed_and_by_sample(folder: Path) -> None:
    same = content(picture(seed=1))
    for path in (folder / "train").rglob("*.JPG"):
        path.write_bytes(same)
    source = open_images(folder, "train")
    crops = [ImageDataset(source, pretraining_transform(16), seed=seed)[index]["image"]  # type: ignore[typeddict-item]
             for seed, index in ((1, 0), (1, 1), (2, 0))]  # fmt: skip
    assert not any(torch.equal(crops[a], crops[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
