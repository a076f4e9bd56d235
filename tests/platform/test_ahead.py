"""Batches reach their device one ahead of the one that is computed, and nothing else changes by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2v_platform.recipe.checks import problems
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import batches as batches_module
from d2v_platform.tasks import image_data
from d2v_platform.tasks.batches import Ahead, Share, make_loader, to_device
from d2v_platform.tasks.image_pretraining import ImagePretraining
from d2v_platform.training.plan import make_plan
from d2v_platform.training.sharding import Replicated
from data2vec.errors import DataError
from tests.platform.toy_task import Samples, run_toy, toy_recipe

CPU = torch.device("cpu")


class Reader:
    """Batches 0 to 3, of which one may not be readable; writes down what happens to them."""

    def __init__(self, broken: int = -1, seconds: float = 0.0) -> None:
        self.broken, self.seconds = broken, seconds
        self.told: list[str] = []

    def read(self) -> Iterator[int]:
        for number in range(4):
            self.told.append(f"read {number}")
            time.sleep(self.seconds)
            if number == self.broken:
                raise DataError(f"batch {number} is no audio")
            yield number

    def arrive(self, number: int) -> dict[str, Any]:
        self.told.append(f"arrive {number}")
        return {"id": number}


def test_one_batch_is_fetched_ahead_and_no_more() -> None:
    reader = Reader()
    ahead = Ahead(reader.read(), reader.arrive, CPU)
    assert reader.told == [], "nothing is read before it is asked for"
    assert next(ahead) == {"id": 0} and reader.told == ["read 0", "arrive 0"]
    ahead.fetch()
    ahead.fetch()
    assert reader.told[2:] == ["read 1", "arrive 1"]
    assert next(ahead) == {"id": 1} and len(reader.told) == 4, "it had arrived"
    assert list(ahead) == [{"id": 2}, {"id": 3}]
    ahead.fetch()
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_error_waits_for_whoever_asks_for_the_batch() -> None:
    reader = Reader(broken=1)
    ahead = Ahead(reader.read(), reader.arrive, CPU)
    assert next(ahead) == {"id": 0}
    ahead.fetch()
    with pytest.raises(DataError, match=r"^batch 1 is no audio$"):
        next(ahead)

    def refuse(number: int) -> dict[str, Any]:
        raise RuntimeError(f"no room for batch {number}")

    ahead = Ahead(Reader().read(), refuse, CPU)
    ahead.fetch()
    with pytest.raises(RuntimeError, match="no room for batch 0"):
        next(ahead)


def test_only_reading_is_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], list[float]()
    monkeypatch.setattr(batches_module.time, "perf_counter", lambda: now[0])

    def read() -> Iterator[int]:
        for seconds in (3.0, 0.5):
            now[0] += seconds
            yield 0
        now[0] += 0.25
        raise DataError("no audio")

    def arrive(number: int) -> dict[str, Any]:
        now[0] += 100.0
        return {}

    ahead = Ahead(read(), arrive, CPU, waits.append)
    next(ahead)
    ahead.fetch()
    next(ahead)
    ahead.fetch()
    assert waits == [3.0, 0.5, 0.25]


def test_the_log_says_how_long_a_run_waited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = Samples.collate
    monkeypatch.setattr(Samples, "collate", lambda *given: time.sleep(0.05) or read(*given))
    _, diary, _ = run_toy(toy_recipe(optimization={"max_update": 4}), tmp_path, monkeypatch)
    shares = diary.curve("speed/data_wait_pct")
    assert len(shares) == 4 and all(50 < share <= 100 for share in shares)


def test_the_next_batch_is_read_before_an_update_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four batches, two in each update; what comes next is read once a backward pass is under way."""
    told: list[str] = []
    read, backward, reduce = Samples.collate, Replicated.backward, Replicated.reduce
    monkeypatch.setattr(Samples, "collate", lambda *given: told.append("read") or read(*given))
    monkeypatch.setattr(Replicated, "backward", lambda *given: told.append("pass") or backward(*given))
    monkeypatch.setattr(Replicated, "reduce", lambda *given: told.append("wait") or reduce(*given))
    two = toy_recipe(optimization={"max_update": 2, "update_freq": [2]})
    run_toy(two, tmp_path, monkeypatch)
    assert told == ["read", *["pass", "read", "pass", "read", "wait"] * 2]


def test_a_run_that_goes_on_computes_what_was_read_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cursor counts computed batches: the one on its way when a run ends is read again."""
    recipe = toy_recipe(optimization={"max_update": 4})
    _, straight, whole = run_toy(recipe, tmp_path / "straight", monkeypatch)
    _, first, begun = run_toy(toy_recipe(optimization={"max_update": 2}), tmp_path / "resumed", monkeypatch)
    _, second, rest = run_toy(recipe, tmp_path / "resumed", monkeypatch)
    assert begun.passed + rest.passed == whole.passed, "samples and random numbers"
    assert first.curve() + second.curve() == straight.curve()


@pytest.fixture
def late(pictures: Path, image_runs: Any) -> dict[str, Any]:
    """A recipe whose images a GPU would crop."""
    return image_runs.pretraining(
        pictures, platform={"augment_on_device": True}, optimization={"max_update": 2}
    )


def test_images_that_the_device_crops_train_as_those_that_loaders_crop(
    late: dict[str, Any], image_runs: Any, tmp_path: Path
) -> None:
    _, there = image_runs.run(late, tmp_path / "late")
    _, here = image_runs.run(late | {"platform": {}}, tmp_path / "early")
    assert there.curve() == pytest.approx(here.curve(), rel=5e-3) and there.curve() != here.curve()


def test_whole_images_travel_and_only_their_sides_stay(late: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(late)
    data = ImagePretraining(recipe).opened("train")
    (batch,) = make_loader(data, Share([np.array([0, 1])], 0, 1, 0, 1))
    moved = to_device(batch, torch.device("meta"))
    assert moved["pixels"].device.type == "meta" and moved["sides"].device.type == "cpu"
    assert batch["pixels"].dtype == torch.uint8
    assert not image_data.open_task_images(recipe, "val", False, data.transform).late, "validation is exact"


def test_who_can_augment_on_a_device(late: dict[str, Any], pictures: Path, image_runs: Any) -> None:
    tuned = image_runs.finetuning(pictures) | {"platform": {"augment_on_device": True}}
    (problem,) = problems(Recipe.from_dict(tuned))
    assert problem.field == "platform.augment_on_device" and "image pretraining alone" in problem.rule
    recipe = Recipe.from_dict(late | {"platform": {"augment_on_device": True, "num_workers": 0}})
    told = "platform.augment_on_device: there is no GPU"
    for gpus in (0, 1):
        assert any(told in note for note in make_plan(recipe, None, gpus).notes) is (gpus == 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_batch_travels_while_it_computes(late: dict[str, Any]) -> None:
    gpu, streams, waits = torch.device("cuda:0"), list[torch.cuda.Stream](), list[float]()
    data = ImagePretraining(Recipe.from_dict(late)).opened("train")

    def arrive(batch: dict[str, Any]) -> dict[str, Any]:
        assert batch["pixels"].is_pinned()
        streams.append(torch.cuda.current_stream())
        return data.finish(to_device(batch, gpu))

    ahead = Ahead(make_loader(data, [[0, 1], [2, 3]], 1, pinned=True), arrive, gpu, waits.append)
    next(ahead)
    assert len(waits) == 1, "the device had nothing to do"
    x = torch.randn(8192, 8192, device=gpu)
    for _ in range(200):
        torch.mm(x, x)
    ahead.fetch()
    assert not torch.cuda.current_stream().query() and len(waits) == 1, "nothing waited for the work"
    batch = next(ahead)
    assert torch.cuda.current_stream() not in streams and len(streams) == 2
    here = data.finish(data.collate([data[2], data[3]]))
    torch.testing.assert_close(batch["source"].cpu(), here["source"], atol=0.05, rtol=0)
