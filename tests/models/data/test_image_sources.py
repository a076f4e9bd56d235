"""Images of folders and tar shards: which are used, their order and class, and what is said of the rest."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data2vec.data import image_files
from data2vec.data.image_files import EXTENSIONS, UnreadableImageError, read_image
from data2vec.data.image_shards import ShardSource
from data2vec.data.image_sources import FolderSource, open_images
from data2vec.errors import DataError

Members = Sequence[tuple[str, str]]


def tar(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, text in members:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


# --- folders ----------------------------------------------------------------------------------------------


def test_a_folder_lists_images_sorted_and_counts_what_it_does_not_use(tmp_path: Path) -> None:
    files(tmp_path, "b/z.JPG", "b/a/y.png", "a/x.webp", "a/notes.txt", "a/more.TXT", "a/README", "a/.hidden")
    files(tmp_path, "loose.png", "loose.txt")
    (tmp_path / "a/gone.png").symlink_to("nowhere")
    (tmp_path / "a/lost.png").symlink_to("nowhere")
    source = FolderSource(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a/x.webp", "b/a/y.png", "b/z.JPG"]
    assert source.classes == ["a", "b"] and source.labels.tolist() == [0, 1, 1]
    assert [source.size(i) for i in range(3)] == [8, 9, 7]
    assert source.read(1) == b"b/a/y.png"
    loose, broken, ignored = source.notes
    assert loose == f"{tmp_path}: 1 images outside class folders are not used"
    assert "2 images cannot be opened and are not used, first" in broken and f"{tmp_path}/a/" in broken
    assert "3 files are no images by their names" in ignored and "(2 .txt, 1 without extension)" in ignored
    (tmp_path / "a/x.webp").unlink()
    with pytest.raises(DataError, match=r"a/x\.webp: No such file"):
        source.read(0)


def test_every_extension_is_known(tmp_path: Path) -> None:
    wanted = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    assert set(EXTENSIONS) == set(wanted)
    files(tmp_path, *(f"a/{n}{ext}" for n, ext in enumerate(wanted)))
    assert len(FolderSource(tmp_path)) == 9


def test_folders_that_are_followed_and_the_fingerprint(tmp_path: Path) -> None:
    files(tmp_path / "elsewhere", "x.png")
    files(tmp_path / "data", "a/y.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    source = FolderSource(tmp_path / "data")
    assert source.classes == ["a", "b"] and source.labels.tolist() == [0, 1]
    before = source.fingerprint()
    (tmp_path / "data/a/y.png").write_text("other, longer")
    longer = FolderSource(tmp_path / "data").fingerprint()
    assert longer != before
    (tmp_path / "data/a/y.png").rename(tmp_path / "data/a/z.png")
    assert FolderSource(tmp_path / "data").fingerprint() != longer


def test_no_link_brings_images_in_again(tmp_path: Path) -> None:
    files(
        tmp_path,
        "data/train/a/x.png",
        "data/train/b/y.png",
        "data/val/a/z.png",
        "more/w.png",
        "more/in/v.png",
    )
    train = tmp_path / "data/train"
    for name, target in {
        "me": train / "a",
        "up": train,
        "all": tmp_path,
        "b": train / "b",
        "new": tmp_path / "more",
    }.items():
        (train / "a" / name).symlink_to(target)
    (tmp_path / "more/in/back").symlink_to(tmp_path / "more")
    source = FolderSource(train)
    names = [source.name(i) for i in range(len(source))]
    assert names == ["a/new/in/v.png", "a/new/w.png", "a/x.png", "b/y.png"] and source.labels.tolist() == [
        0,
        0,
        0,
        1,
    ]
    assert source.notes == [
        f"{train}: 5 links to folders that are read anyway or hold this one are not followed, "
        f"first {train}/a/all"
    ]
    bare = FolderSource(train, labelled=False)
    assert len(bare) == 4, "each real folder once"


def test_without_classes_any_depth_is_taken(tmp_path: Path) -> None:
    files(tmp_path, "b.png", "a/c.png")
    source = FolderSource(tmp_path, labelled=False)
    assert [source.name(i) for i in range(2)] == ["a/c.png", "b.png"]
    assert source.labels.tolist() == [-1, -1] and source.classes == [] and source.notes == []
    either = FolderSource(tmp_path, labelled=None)  # an image beside folders: no classes
    assert either.labels.tolist() == [-1, -1]
    assert "1 images lie beside 1 folders" in either.notes[0]
    (tmp_path / "b.png").unlink()
    (tmp_path / "empty").mkdir()
    told = FolderSource(tmp_path, labelled=None)
    assert told.classes == ["a", "empty"] and told.labels.tolist() == [0]
    assert "1 of 2 class folders hold no image: empty" in told.notes[0]
    with pytest.raises(DataError, match=r"1 of 2 class folders hold no image: empty\. Remove"):
        FolderSource(tmp_path)
    flat = files(tmp_path / "flat", "c.png")
    assert FolderSource(flat, labelled=None).notes == []
    with pytest.raises(DataError, match="holds no image"):
        FolderSource(files(tmp_path / "texts", "c.txt"), labelled=False)


def test_where_a_subset_may_lie(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_images(tmp_path / "none", "train")
    files(tmp_path / "a", "train/cat/x.png", "val/cat/y.png", "val/cat/z.png")
    assert len(open_images(tmp_path / "a", "train")) == 1
    assert len(open_images(tmp_path / "a", "val")) == 2
    assert len(open_images(tmp_path / "a/val", ".")) == 2
    with pytest.raises(DataError, match=r"no folder 'test' \(subfolders: train, val\)"):
        open_images(tmp_path / "a", "test")
    album = files(tmp_path / "album", "2020/x.png")
    assert len(open_images(album, "photos", labelled=False)) == 1
    for labelled in (True, None):
        with pytest.raises(DataError, match="no folder 'photos'"):
            open_images(album, "photos", labelled=labelled)
    for name in ("train", "val", "valid", "test"):  # a subset that is missing among others
        place = files(tmp_path / f"only {name}", f"{name}/x.png")
        with pytest.raises(DataError, match="no folder 'qqqq'"):
            open_images(place, "qqqq", labelled=False)
    (tmp_path / "beside").mkdir()
    tar(tmp_path / "beside/train-000000.tar", [("1.png", "a"), ("1.cls", "0")])
    tar(tmp_path / "beside/train-000001.tar", [("2.png", "b"), ("2.cls", "0")])
    tar(tmp_path / "beside/val-000000.tar", [("3.png", "c"), ("3.cls", "0")])
    source = open_images(tmp_path / "beside", "train")
    assert [source.name(i) for i in range(len(source))] == ["train-000000.tar:1", "train-000001.tar:2"]
    with pytest.raises(DataError, match=r"shards test-000000\.tar"):
        open_images(tmp_path / "beside", "test", labelled=False)


# --- shards -----------------------------------------------------------------------------------------------

PAIRS = [
    ("d.x/1.one.jpg", "no image"),
    ("d.x/1.PNG", "first"),
    ("d.x/1.cls", "dog\n"),
    ("d.x/1.json", "{}"),
    ("e/1.jpeg", "second!"),
    ("e/1.cls", " ape "),
    ("2.cls", "yak"),  # no image
    ("3.jpg", "third"),
    ("3.cls", "dog"),
]


def test_members_of_one_key_are_one_sample(tmp_path: Path) -> None:
    source = ShardSource([tar(tmp_path / "a.tar", PAIRS)])
    assert [source.name(i) for i in range(len(source))] == ["a.tar:d.x/1", "a.tar:e/1", "a.tar:3"]
    assert [source.read(i) for i in range(3)] == [b"first", b"second!", b"third"]
    assert source.classes == ["ape", "dog"] and source.labels.tolist() == [1, 0, 1]
    assert source.notes == []
    # With the names that the files had before: in tables, but not in the fingerprint, as of older shards.
    named = ShardSource(
        [tar(tmp_path / "b.tar", [*PAIRS, ("3.name", "dog/my dog.v2.jpg"), ("2.name", "lost")])]
    )
    assert [named.name(i) for i in range(3)] == ["b.tar:d.x/1", "b.tar:e/1", "dog/my dog.v2.jpg"]
    assert named.fingerprint() == source.fingerprint() and named.notes == []
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match=r"a\.tar: No such file"):
        source.read(0)


def test_numbers_are_class_ids_and_leave_room(tmp_path: Path) -> None:
    members = [("a.jpg", "x"), ("a.cls", "3"), ("b.jpg", "y"), ("b.cls", "1")]
    source = ShardSource([tar(tmp_path / "a.tar", members)])
    assert source.labels.tolist() == [3, 1] and source.classes == ["0", "1", "2", "3"]


def test_a_number_that_is_no_class_is_refused(tmp_path: Path) -> None:
    members = [("a.jpg", "x"), ("a.cls", "1000000")]
    with pytest.raises(DataError, match=r"1 000 000 classes at most.*1000000"):
        ShardSource([tar(tmp_path / "a.tar", members)])
    members[1] = ("a.cls", "9" * 600)
    with pytest.raises(DataError, match="1 000 000 classes at most"):
        ShardSource([tar(tmp_path / "a.tar", members)])


def test_shards_without_classes(tmp_path: Path) -> None:
    members = [("a.jpg", "x"), ("a.cls", "3"), ("b.jpg", "yy")]
    path = tar(tmp_path / "a.tar", members)
    labelled = ShardSource([path])
    assert len(labelled) == 1 and labelled.labels.tolist() == [3]
    assert labelled.notes == [f"{path}: 1 images without .cls are not used, first b"]
    bare = ShardSource([path], labelled=False)
    assert len(bare) == 2 and bare.labels.tolist() == [-1, -1] and bare.classes == [] and bare.notes == []
    either = ShardSource([path], labelled=None)
    assert len(either) == 2 and either.labels.tolist() == [-1, -1]
    assert either.notes == [f"{tmp_path}: 1 of 2 images have a .cls; it is not used"]
    all_of_them = ShardSource([tar(tmp_path / "b.tar", members[:2])], labelled=None)
    assert all_of_them.labels.tolist() == [3] and all_of_them.notes == []
    none = ShardSource([tar(tmp_path / "c.tar", members[2:])], labelled=None)
    assert none.labels.tolist() == [-1] and none.notes == []
    with pytest.raises(DataError, match="1 shards hold no usable image"):
        ShardSource([tmp_path / "c.tar"])


def test_the_fingerprint_of_shards_is_of_keys_sizes_and_classes(tmp_path: Path) -> None:
    def print_of(name: str, *members: tuple[str, str]) -> str:
        return ShardSource([tar(tmp_path / name, members)], labelled=None).fingerprint()

    first = print_of("a.tar", ("a.jpg", "x"), ("a.cls", "1"))
    assert print_of("b.tar", ("a.jpg", "y"), ("a.cls", "1")) == first, "the shard's name does not count"
    assert print_of("c.tar", ("b.jpg", "x"), ("b.cls", "1")) != first
    assert print_of("d.tar", ("a.jpg", "xx"), ("a.cls", "1")) != first
    assert print_of("e.tar", ("a.jpg", "x"), ("a.cls", "0")) != first
    assert print_of("f.tar", ("a.jpg", "x")) != first


def test_the_index_beside_shards_names_classes_and_counts(tmp_path: Path) -> None:
    def index(**splits: dict[str, int]) -> None:
        text = json.dumps({"classes": ["yak", "ape", "dog"], "splits": splits})
        (tmp_path / "index.json").write_text(text)

    (tmp_path / "train").mkdir()
    for place in (tmp_path, tmp_path / "train"):  # the index lies beside the shards or above them
        shards = [
            tar(place / "train-000000.tar", [("a.jpg", "x"), ("a.cls", "dog")]),
            tar(place / "train-000001.tar", [("b.jpg", "y"), ("b.cls", "yak")]),
        ]
        index(train={"images": 2, "shards": 2}, val={"images": 9, "shards": 9})
        source = ShardSource(shards)
        assert source.classes == ["yak", "ape", "dog"] and source.labels.tolist() == [2, 0]
        assert source.notes == []
        index(train={"images": 3, "shards": 2})
        assert ShardSource(shards).notes == [
            f"{place}: 1 of 3 images of train that index.json counts are not used"
        ]
        index(train={"images": 6, "shards": 5})
        assert ShardSource(shards).notes == [
            f"{place}: 4 of 6 images of train that index.json counts are not used; 3 of 5 shards are missing"
        ]
        index(train={"images": 2, "shards": 3})
        assert "0 of 2 images of train" in ShardSource(shards).notes[0]
    with pytest.raises(DataError, match="class 'cow' of a shard is not among the 3"):
        ShardSource([tar(tmp_path / "x-0.tar", [("a.jpg", "x"), ("a.cls", "cow")])])
    with pytest.raises(DataError, match="class 3 of a shard is not among the 3"):
        ShardSource([tar(tmp_path / "x-0.tar", [("a.jpg", "x"), ("a.cls", "3")])])
    assert ShardSource([tar(tmp_path / "x-0.tar", [("a.jpg", "x"), ("a.cls", "2")])]).labels.tolist() == [2]
    classes = '"classes": ["yak", "ape", "dog"]'
    for text in ("no json", "{}", "[]", "3", '{"classes": "yak"}', '{"classes": [1, 2]}',
                 '{"classes": ["a", "a"]}',
                 f'{{{classes}, "splits": 3}}',
                 f'{{{classes}, "splits": {{"train": 3}}}}',
                 f'{{{classes}, "splits": {{"train": {{"images": "2"}}}}}}',
                 f'{{{classes}, "splits": {{"train": {{"images": -2}}}}}}', "[" * 100_000):  # fmt: skip
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(DataError, match="is no index of prepared shards"):
            ShardSource(shards)


def test_a_shard_that_ends_too_early(tmp_path: Path) -> None:
    members = [(f"{n}.{kind}", "1" * 600) for n in range(2) for kind in ("jpg", "cls")]
    path = tar(tmp_path / "a.tar", members)
    assert ShardSource([path], labelled=False).notes == []
    content = path.read_bytes()
    path.write_bytes(content[: 4 * (512 + 1024)])  # every member is whole, the end mark is gone
    assert ShardSource([path], labelled=False).notes == [
        f"{path}: cut off after 2 whole images, or damaged there; the rest is lost"
    ]
    path.write_bytes(content[: 2 * 1536 + 512 + 599])  # a byte of the second image is missing
    source = ShardSource([path], labelled=False)
    assert len(source) == 1 and source.read(0) == b"1" * 600
    assert source.notes == [f"{path}: cut off after 1 whole images, or damaged there; the rest is lost"]
    path.write_bytes(content[:3072] + b"?" * 512 + content[3584:])  # the third header
    assert "cut off after 1 whole images, or damaged" in ShardSource([path], labelled=False).notes[0]
    path.write_bytes(b"text" * 1000)
    with pytest.raises(DataError, match="no tar archive"):
        ShardSource([path])


def damaged_tar(path: Path, at: int, size: bytes) -> Path:
    """The size of one header changed, and its checksum with it."""
    content = bytearray(path.read_bytes())
    header = content[at : at + 512]
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(content[:at] + header + content[at + 512 :])
    return path


@pytest.mark.parametrize(
    "size", [b"\xff" * 10 + b"\xfa\x00", b"\xff" * 12, b"-0000001000\0", b"\x80" + b"\x7f" * 11]
)
def test_sizes_that_no_member_has_end_a_shard(tmp_path: Path, size: bytes) -> None:
    members = [(f"{n}.{kind}", "1" * 600) for n in range(2) for kind in ("jpg", "cls")]
    source = ShardSource([damaged_tar(tar(tmp_path / "a.tar", members), 3072, size)], labelled=False)
    assert len(source) == 1 and "cut off after 1 whole images, or damaged" in source.notes[0]
    with pytest.raises(DataError, match=r"no tar archive|no usable image\n.*cut off after 0 whole"):
        ShardSource([damaged_tar(tar(tmp_path / "b.tar", members), 0, size)], labelled=False)


def test_a_negative_size_beside_the_header_ends_a_shard_too(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, more in (("a.jpg", {}), ("b.jpg", {"size": "-1024"})):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 600, more
            archive.addfile(member, io.BytesIO(b"1" * 600))
    source = ShardSource([tmp_path / "a.tar"], labelled=False)
    assert len(source) == 1 and source.read(0) == b"1" * 600 and source.notes


# --- files ------------------------------------------------------------------------------------------------


def content(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_deep_and_floating_values_are_scaled_to_eight_bits() -> None:
    floats = np.array([[-1.0, 0.0], [0.5, 1.0]], np.float32).repeat(8, 0).repeat(8, 1)
    image, odd = read_image(content(Image.fromarray(floats), "TIFF"))
    assert odd == "more than 8 bits a channel: scaled to 8"
    assert np.asarray(image)[::8, ::8, 1].tolist() == [[0, 128], [191, 255]]
    flat, _ = read_image(content(Image.fromarray(np.full((8, 8), 3.5, np.float32)), "TIFF"))
    assert not np.asarray(flat).any()
    small = Image.fromarray(np.full((8, 8), 200, np.int32))  # 32-bit numbers that fit 8 bits stay
    assert np.asarray(read_image(content(small, "TIFF"))[0])[0, 0].tolist() == [200, 200, 200]
    large = Image.fromarray(np.full((8, 8), 257 * 191, np.int32))
    assert np.asarray(read_image(content(large, "TIFF"))[0])[0, 0].tolist() == [191, 191, 191]
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))  # 16 bits are 16 bits, however dark
    assert np.asarray(read_image(content(dark))[0])[0, 0].tolist() == [1, 1, 1]


def test_whatever_a_decoder_raises_is_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = content(Image.new("RGB", (8, 8)), "TIFF")
    for error in (
        TypeError("a"),
        struct.error("a"),
        IndexError("a"),
        KeyError("a"),
        MemoryError(),
        AttributeError("a"),
    ):

        def load(_: object, raised: Exception = error) -> None:
            raise raised

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
        with pytest.raises(UnreadableImageError, match=r"a|MemoryError"):
            read_image(picture)


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_damaged_bytes_give_an_image_or_an_error_of_ours(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn = random.Random(kind)
    good = content(Image.fromarray(np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)), kind)
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(2):
            damaged[drawn.choice((drawn.randrange(len(good)), -drawn.randrange(1, 160)))] = drawn.randrange(
                256
            )
        with contextlib.suppress(UnreadableImageError):
            read_image(bytes(damaged))


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_ordinary_images_are_not_odd(mode: str) -> None:
    image, odd = read_image(content(Image.new(mode, (8, 8), 1 if mode != "RGB" else (9, 8, 7))))
    assert image.mode == "RGB" and odd is None
    if mode == "RGB":
        assert image.getpixel((0, 0)) == (9, 8, 7)


def test_what_is_odd_is_said() -> None:
    assert read_image(content(Image.new("RGB", (7, 8))))[1] == "a side of less than 8 pixels: enlarged"
    assert read_image(content(Image.new("RGB", (8, 7))))[1] == "a side of less than 8 pixels: enlarged"
    for mode in ("RGBA", "LA"):
        assert read_image(content(Image.new(mode, (8, 8))))[1] == "transparent: transparency is dropped"
    assert read_image(content(Image.new("CMYK", (8, 8)), "JPEG"))[1] == "CMYK colours: converted"
    assert read_image(content(Image.new("YCbCr", (8, 8)), "TIFF"))[1] == "YCbCr colours: converted"
    both = read_image(content(Image.new("RGBA", (1, 8))))[1]
    assert both == "transparent: transparency is dropped; a side of less than 8 pixels: enlarged"


def test_a_claim_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_files.MAX_PIXELS == 100_000_000
    monkeypatch.setattr(image_files, "MAX_PIXELS", 80)
    assert read_image(content(Image.new("RGB", (10, 8))))[0].size == (10, 8)
    with pytest.raises(UnreadableImageError, match="9 x 9 pixels, more than 80"):
        read_image(content(Image.new("RGB", (9, 9))))
    with pytest.raises(UnreadableImageError, match="no image that can be read"):
        read_image(b"nothing")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGBA"])
def test_the_claim_is_refused_before_decoding(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(content(Image.new(mode, (8, 8))))
    data[16:24] = (10_001).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(UnreadableImageError, match="10001 x 10000 pixels, more than 100000000"):
        read_image(bytes(data))
