"""Reading foreign pickles: what is meant to be there becomes plain, all else is refused and never runs."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data2vec.errors import CheckpointError
from data2vec.interop.inspection import inspect
from data2vec.interop.pickles import load_inert, named_objects, plain


class Runs:
    """Creates a file when unpickled by anything that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Calls:
    """Any callable with any arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def saved(tmp_path: Path, value: Any, **options: Any) -> Path:
    path = tmp_path / "file.pt"
    torch.save(value, path, **options)
    return path


def rewritten(
    path: Path, change: Any = lambda name, data: data, compression: int = zipfile.ZIP_STORED
) -> Path:
    """The same zip with entries changed."""
    out = path.with_name("rewritten.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", compression) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, change(entry.filename, source.read(entry)))
    return out


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "it ran".replace(" ", "_")
    path = saved(tmp_path, {"model": {}, "cfg": Runs(mark)}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused: it names (posix|os|nt)\.system.*could run code"):
        load_inert(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert mark.exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    path = tmp_path / "file.pt"
    path.write_bytes(pickle.dumps(Runs(mark), protocol=2))
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        load_inert(path)
    assert not mark.exists()


def test_all_offending_names_are_listed(tmp_path: Path) -> None:
    path = saved(tmp_path, [Calls(eval, "1"), Calls(os.getenv, "HOME"), Calls(collections.deque, [1])])
    with pytest.raises(CheckpointError) as error:
        load_inert(path)
    for name in ("builtins.eval", "os.getenv", "collections.deque"):
        assert name in str(error.value)


def test_names_are_told_apart_without_loading(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    path = saved(tmp_path, {"args": argparse.Namespace(a=1), "cfg": Runs(mark), "w": torch.ones(1)})
    assert named_objects(path) == (["argparse.Namespace"], [f"{os.system.__module__}.system"])
    assert named_objects(saved(tmp_path, {"args": argparse.Namespace()})) == (["argparse.Namespace"], [])
    assert not mark.exists()


@pytest.mark.parametrize(("size", "told"), [(1500, "1500 bytes"), (2**20, "1.0 MiB"), (5 * 2**19, "2.5 MiB")])
def test_the_size_of_a_file_is_told_whatever_it_is(tmp_path: Path, size: int, told: str) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        file.truncate(size)
    found = inspect(tmp_path / "a.pt")
    assert found.lines == [f"{tmp_path / 'a.pt'}: {told}"] and "no PyTorch checkpoint" in str(found.problem)


def test_getattr_on_a_stand_in_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Calls(getattr, argparse.Namespace(a=1), "a"))
    with pytest.raises(CheckpointError, match=r"builtins\.getattr"):
        load_inert(path)


@given(cut=st.integers(0, 1200))
def test_a_truncated_file_is_named(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = saved(tmp_path_factory.mktemp("cut"), {"model": {"w": torch.ones(300)}, "cfg": {"a": 1}})
    data = path.read_bytes()
    path.write_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        load_inert(path)


@given(data=st.binary(max_size=200), prefix=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02]("]))
def test_any_bytes_give_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, prefix: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file.pt"
    path.write_bytes(prefix + data)
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        load_inert(path)


@pytest.mark.parametrize("target", ["absent.pt", "."])
def test_a_missing_file_and_a_folder(tmp_path: Path, target: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist|is a folder"):
        load_inert(tmp_path / target)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"w": torch.zeros(1_000_000)}})
    small = rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert small.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed entries"):
        load_inert(small)


def test_a_size_beyond_the_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"w": torch.arange(4.0)}})

    def inflate(name: str, data: bytes) -> bytes:
        # BININT1 4 (storage length and tensor size) becomes BININT 2^30.
        return (
            data.replace(b"K\x04", b"J" + (1 << 30).to_bytes(4, "little"))
            if name.endswith("data.pkl")
            else data
        )

    with pytest.raises(CheckpointError, match=r"rewritten\.pt"):
        load_inert(rewritten(path, inflate))


def test_a_list_repeated_a_billion_times_is_refused(tmp_path: Path) -> None:
    value: list[Any] = [0] * 10
    for _ in range(9):
        value = [value] * 10
    path = saved(tmp_path, value)
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="more than"):
        plain(load_inert(path))


def test_a_bottomless_list_is_refused(tmp_path: Path) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CheckpointError, match=r"nested too deeply|more than"):
        plain(load_inert(saved(tmp_path, value)))


def test_plain_values(tmp_path: Path) -> None:
    counts: collections.defaultdict[str, dict[str, int]] = collections.defaultdict(dict)
    counts["a"]["b"] = 2
    value = {
        "namespace": argparse.Namespace(lr=[0.1], nested=argparse.Namespace(x=None)),
        "counts": counts,
        "tuple": (1, 2.5, True, "text"),
        "type": dict,
        "dtype": torch.float16,
        "float64": np.float64(1.5),
        "int32": np.int32(-3),
        "bool": np.bool_(True),
        "float16": np.float16(0.5),
    }
    assert plain(load_inert(saved(tmp_path, value))) == {
        "namespace": {"lr": [0.1], "nested": {"x": None}},
        "counts": {"a": {"b": 2}},
        "tuple": [1, 2.5, True, "text"],
        "type": "builtins.dict",
        "dtype": "torch.float16",
        "float64": 1.5,
        "int32": -3,
        "bool": True,
        "float16": 0.5,
    }


def test_a_numpy_object_is_no_number(tmp_path: Path) -> None:
    big_endian = Calls(np._core.multiarray.scalar, np.dtype(">i4"), b"\0\0\1\2")
    assert plain(load_inert(saved(tmp_path, big_endian))) == 258
    scalar = Calls(np._core.multiarray.scalar, np.dtype("O"), b"payload")
    with pytest.raises(CheckpointError, match="numpy scalar"):
        plain(load_inert(saved(tmp_path, scalar)))


def test_omegaconf_and_enums(tmp_path: Path, foreign: Any) -> None:
    config = {"a": {"b": 3, "c": [0.1, "x"], "none": None}, "modality": foreign.Modality.TEXT}
    path = saved(tmp_path, {"cfg": foreign.omega(config)})
    for name in [name for name in sys.modules if name.split(".")[0] in ("omegaconf", "examples", "fairseq")]:
        del sys.modules[name]  # as on a machine that has none of them
    expected = {"a": {"b": 3, "c": [0.1, "x"], "none": None}, "modality": "TEXT"}
    assert plain(load_inert(path)) == {"cfg": expected}


def test_the_dictionary_object(tmp_path: Path, foreign: Any) -> None:
    state = {"symbols": ["<s>", "|"], "count": [1, 5], "indices": {"<s>": 0, "|": 1}, "bos_index": 0}
    assert plain(load_inert(saved(tmp_path, foreign.Dictionary(**state)))) == state


def test_tensors_stay_and_foreign_objects_do_not(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.arange(3), "n": argparse.Namespace(t=torch.ones(2))})
    value = plain(load_inert(path))
    assert torch.equal(value["w"], torch.arange(3))
    assert torch.equal(value["n"]["t"], torch.ones(2))
