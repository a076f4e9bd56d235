"""Sentence tasks: folders as the reference writes them, byte by byte, and all that can be wrong with them."""

from __future__ import annotations

import json
import logging
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from data2vec.data.sentences import SentenceDataset
from data2vec.errors import ConfigError, DataError

FIRST = [[10, 11, 2], [12, 2], [13, 14, 15, 16, 2], [17, 2]]
SECOND = [[20, 2], [2], [21, 22, 2], [23, 2]]


def binarized(prefix: Path, lines: list[list[int]]) -> None:
    """The pair that fairseq-preprocess writes, made from the format's description, not by our writer."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    sizes = [len(line) for line in lines]
    offsets = [2 * sum(sizes[:i]) for i in range(len(sizes))]
    flat = [t for line in lines for t in line]
    prefix.with_suffix(".bin").write_bytes(struct.pack(f"<{len(flat)}H", *flat))
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQ", 1, 8, len(lines))
        + struct.pack(f"<{len(sizes)}i", *sizes)
        + struct.pack(f"<{len(offsets)}q", *offsets)
    )


def reference_folder(
    folder: Path, split: str = "train", pair: bool = True, labels: list[int] | None = None
) -> Path:
    """As after the reference's preprocess_GLUE_tasks.sh: no card; label counts and padding words."""
    words = "".join(f"{i} {100 - i}\n" for i in range(60))
    for name, lines in (("input0", FIRST), ("input1", SECOND))[: 1 + pair]:
        binarized(folder / name / split, lines)
        (folder / name / "dict.txt").write_text(words, encoding="utf-8")
    binarized(folder / "label" / split, [[4 + c, 2] for c in labels or [0, 1, 0, 0]])
    (folder / "label" / "dict.txt").write_text(
        "1 3\n0 1\nmadeupword0000 0\nmadeupword0001 0\n", encoding="utf-8"
    )
    return folder


def sources(data: SentenceDataset) -> list[list[int]]:
    return [data[i]["source"].tolist() for i in range(len(data))]


def test_a_folder_of_the_reference(tmp_path: Path) -> None:
    data = SentenceDataset(reference_folder(tmp_path), "train", num_classes=2)
    assert data.labels == ["1", "0"]
    assert sources(data)[:2] == [[0, 10, 11, 2, 2, 20, 2], [0, 12, 2, 2, 2]]
    assert data.sizes.tolist() == [len(s) for s in sources(data)]
    assert [data[i]["target"] for i in range(4)] == [0, 1, 0, 0]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    assert len(data.dictionary) == 65
    batch = data.collate([data[1], data[0]])
    assert batch["source"].tolist() == [[0, 12, 2, 2, 2, 1, 1], [0, 10, 11, 2, 2, 20, 2]]
    assert batch["padding_mask"].sum().item() == 2
    assert batch["target"].tolist() == [1, 0]  # pyright: ignore[reportTypedDictNotRequiredAccess]


def test_single_sentences_and_no_special_tokens(tmp_path: Path) -> None:
    reference_folder(tmp_path / "one", pair=False)
    assert sources(SentenceDataset(tmp_path / "one", "train", num_classes=2))[0] == [0, 10, 11, 2]
    reference_folder(tmp_path / "two")
    plain = SentenceDataset(tmp_path / "two", "train", num_classes=2, init_token=None, separator_token=None)
    assert sources(plain)[0] == [10, 11, 2, 20, 2]
    assert plain.sizes[0] == 5


def test_regression_targets(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    (tmp_path / "label" / "train.label").write_text("1\n0.76\n0\n0.1\n", encoding="utf-8")
    data = SentenceDataset(tmp_path, "train", num_classes=1, regression_target=True)
    target = data.collate([data[0], data[1]])["target"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    assert target.shape == (2,)
    assert target.tolist() == pytest.approx([1, 0.76])
    (tmp_path / "label" / "train.label").write_text("1 2\n0 1\n3 4\n5 6\n", encoding="utf-8")
    two = SentenceDataset(tmp_path, "train", num_classes=2, regression_target=True)
    assert two.collate([two[0], two[1]])["target"].tolist() == [[1, 2], [0, 1]]  # pyright: ignore[reportTypedDictNotRequiredAccess]


def test_a_test_split_without_labels_has_no_target(tmp_path: Path) -> None:
    reference_folder(tmp_path, "test")
    (tmp_path / "label" / "test.idx").unlink()
    data = SentenceDataset(tmp_path, "test", num_classes=2)
    assert data.targets is None
    assert "target" not in data.collate([data[0]])
    reference_folder(tmp_path, "valid")
    (tmp_path / "label" / "valid.idx").unlink()
    with pytest.raises(DataError, match="only test splits may lack them"):
        SentenceDataset(tmp_path, "valid", num_classes=2)


def test_long_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference_folder(tmp_path)
    reference_folder(tmp_path, "valid")
    with caplog.at_level(logging.WARNING):
        data = SentenceDataset(tmp_path, "train", num_classes=2, max_positions=7)
    assert "1 of 4 samples are longer than 7 tokens (longest 10; the first is number 2)" in caplog.text
    assert data.num_dropped == 1
    assert [data[i]["id"] for i in range(3)] == [0, 1, 3]
    assert [data[i]["target"] for i in range(3)] == [0, 1, 0]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    with pytest.raises(DataError, match=r"longer than 7 tokens.*shorten_method=truncate"):
        SentenceDataset(tmp_path, "valid", num_classes=2, max_positions=7)
    assert len(SentenceDataset(tmp_path, "valid", num_classes=2, max_positions=7, skip_invalid=True)) == 3
    assert len(SentenceDataset(tmp_path, "train", num_classes=2, max_tokens=7)) == 3


def test_shortening(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    full = sources(SentenceDataset(tmp_path, "train", num_classes=2))
    cut = SentenceDataset(tmp_path, "train", num_classes=2, max_positions=4, shorten_method="truncate")
    assert sources(cut) == [s[:4] for s in full]
    assert cut.sizes.tolist() == [4, 4, 4, 4]
    crop = SentenceDataset(tmp_path, "train", num_classes=2, max_positions=4, shorten_method="random_crop")
    seen = {tuple(crop.for_epoch(e)[2]["source"].tolist()) for e in range(1, 200)}
    assert seen == {tuple(full[2][i : i + 4]) for i in range(7)}  # the last place too
    assert sources(crop.for_epoch(5)) == sources(crop.for_epoch(5))
    with pytest.raises(DataError, match="nothing is left"):
        SentenceDataset(
            tmp_path,
            "train",
            num_classes=2,
            max_positions=4,
            shorten_method="truncate",
            shorten_data_split_list="valid",
        )


@pytest.mark.parametrize(("classes", "fix"), [(3, "num_classes=2"), (1, "num_classes=2")])
def test_a_wrong_number_of_classes_names_the_labels(tmp_path: Path, classes: int, fix: str) -> None:
    with pytest.raises(DataError, match=rf"2 labels \(1, 0\).*{fix}"):
        SentenceDataset(reference_folder(tmp_path), "train", num_classes=classes)


def test_labels_outside_the_dictionary_are_counted(tmp_path: Path) -> None:
    reference_folder(tmp_path, labels=[0, -1, 1, 2])
    with pytest.raises(DataError, match=r"2 labels are not among 1, 0 \(first: row 1, label id 3\)"):
        SentenceDataset(tmp_path, "train", num_classes=2)


def test_a_label_is_one_word(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    for label in ([4, 5, 2], []):
        binarized(tmp_path / "label" / "train", [[4, 2], label, [5, 2], [4]])  # the end may be missing
        with pytest.raises(DataError, match="the label of row 1 is not one word"):
            SentenceDataset(tmp_path, "train", num_classes=2)


def test_lengths_must_agree(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    binarized(tmp_path / "input1" / "train", SECOND[:3])
    with pytest.raises(DataError, match="input0 has 4 lines, input1 has 3"):
        SentenceDataset(tmp_path, "train", num_classes=2)
    binarized(tmp_path / "input1" / "train", SECOND)
    binarized(tmp_path / "label" / "train", [[4, 2]])
    with pytest.raises(DataError, match="input0 has 4 lines, label has 1"):
        SentenceDataset(tmp_path, "train", num_classes=2)


def test_inputs_with_different_dictionaries_are_refused(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    (tmp_path / "input1" / "dict.txt").write_text("1 1\n0 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="both inputs must use one dictionary"):
        SentenceDataset(tmp_path, "train", num_classes=2)


def test_malformed_numbers_are_all_named(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    (tmp_path / "label" / "train.label").write_text("1\nx\n0.5 0.5\nnan\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        SentenceDataset(tmp_path, "train", num_classes=1, regression_target=True)
    assert all(f"line {n}" in str(error.value) for n in (2, 3, 4))


def test_classes_and_numbers_are_told_apart(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    with pytest.raises(DataError, match="regression_target=false"):
        SentenceDataset(tmp_path, "train", num_classes=1, regression_target=True)
    (tmp_path / "label" / "dict.txt").unlink()
    (tmp_path / "label" / "train.label").write_text("1\n" * 4, encoding="utf-8")
    with pytest.raises(DataError, match="regression_target=true"):
        SentenceDataset(tmp_path, "train", num_classes=2)


def test_a_pretraining_folder_is_no_task_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no input0/"):
        SentenceDataset(tmp_path, "train", num_classes=2)


def test_impossible_options_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        SentenceDataset(
            reference_folder(tmp_path),
            "train",
            num_classes=0,
            init_token=99,
            separator_token=-1,
            max_positions=0,
        )
    assert len(error.value.problems) == 4


def test_fingerprint_order_and_copies(tmp_path: Path) -> None:
    data = SentenceDataset(reference_folder(tmp_path), "train", num_classes=2)
    assert data.order == "random"
    assert SentenceDataset(tmp_path, "train", num_classes=2, no_shuffle=True).order == "file"
    assert data.for_epoch(3) is data
    assert sources(pickle.loads(pickle.dumps(data))) == sources(data)  # noqa: S301
    before = data.fingerprint()
    binarized(tmp_path / "label" / "train", [[5, 2], [5, 2], [4, 2], [4, 2]])
    assert SentenceDataset(tmp_path, "train", num_classes=2).fingerprint() != before


def test_a_card_with_another_dictionary_is_refused(tmp_path: Path) -> None:
    reference_folder(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"dictionary": "0" * 64}), encoding="utf-8")
    with pytest.raises(DataError, match="is not the dictionary this data was prepared"):
        SentenceDataset(tmp_path, "train", num_classes=2)


def test_many_items_are_cheap(tmp_path: Path) -> None:
    """No per-token Python: an item of 400 tokens costs about as much as one of 4."""
    import time

    rng = np.random.default_rng(0)
    for name, length in (("short", 4), ("long", 400)):
        lines = [[*rng.integers(4, 60, length).tolist(), 2] for _ in range(300)]
        reference_folder(tmp_path / name, pair=False)
        binarized(tmp_path / name / "input0" / "train", lines)
        binarized(tmp_path / name / "label" / "train", [[4, 2]] * 300)
    times = {}
    for name in ("short", "long"):
        data = SentenceDataset(tmp_path / name, "train", num_classes=2)
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            for i in range(300):
                data[i]
            best = min(best, time.perf_counter() - begin)
        times[name] = best
    assert times["long"] < 4 * times["short"]
