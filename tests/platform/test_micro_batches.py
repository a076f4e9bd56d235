"""How micro-batches are dealt, loaded and added up, and what is remembered of validations."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import reduction
from d2v_platform.tasks.batches import Share, make_loader, to_device
from d2v_platform.tasks.statistics import Layout, Sums
from d2v_platform.training import checkpoint, start_times, train_loop
from d2v_platform.training import progress as progress_module
from d2v_platform.training.checkpoint import CheckpointStore
from d2v_platform.training.collapse import CollapseWatch, collapsed_stages
from d2v_platform.training.evaluation_log import EvaluationLog
from d2v_platform.training.job import Job
from d2v_platform.training.loop_state import LoopState, Worker
from d2v_platform.training.progress import Progress, peak_memory_gb
from d2v_platform.training.sharding import OwnPass, Replicated
from d2v_platform.training.train_loop import TrainingLoop, _optimizer_tensors
from data2vec.collapse import Scatter
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import DataError
from data2vec.folders import file_sha256
from data2vec.pretraining import Moments
from data2vec.transformer import kept_blocks, make_blocks
from tests.platform.process_group import together
from tests.platform.toy_task import Diary, ToyTask, toy_recipe

# ---- dealing ----------------------------------------------------------------------------------------------


def dealt(rank: int, *, padded: bool = False, start: int = 0, total: int = 7, per: int = 5) -> list[int]:
    share = Share([np.array([n]) for n in range(total)], start, per, rank, 2, padded)
    found = [batch[0] for batch in share]
    assert len(share) == len(found)
    return found


def test_the_micro_batches_of_an_update_go_round() -> None:
    assert [dealt(0), dealt(1)] == [[0, 2, 4, 5], [1, 3, 6]]
    assert [dealt(0, start=5), dealt(1, start=5)] == [[5], [6]]
    # Workers that share a model repeat from the start of the update, so that all have equally many.
    assert [dealt(0, padded=True), dealt(1, padded=True)] == [[0, 2, 4, 5], [1, 3, 0, 6]]
    assert [dealt(n, padded=True, total=6, per=6) for n in (0, 1)] == [[0, 2, 4], [1, 3, 5]]


def test_turns_know_their_place_and_the_last_of_them() -> None:
    for rank, wanted in ((0, [(0, False), (2, False), (4, True)]), (1, [(1, False), (3, True)])):
        passes = Replicated(Worker(rank=rank, size=2), torch.nn.Module()).own_passes(5)
        assert list(passes) == [OwnPass(index, True, last) for index, last in wanted]
    assert list(Replicated(Worker(rank=1, size=2), torch.nn.Module()).own_passes(1)) == []


# ---- loading ----------------------------------------------------------------------------------------------


class Broken:
    """Samples of which 3 and 5 cannot be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index in (3, 5):
            raise DataError(f"sample {index} is no audio")
        return index

    def collate(self, samples: list[int]) -> dict[str, Any]:
        return {"id": torch.tensor(samples), "names": [str(n) for n in samples]}


@pytest.mark.parametrize("processes", [0, 1])
def test_batches_come_in_order_and_all_unreadable_samples_are_named(processes: int) -> None:
    loader = make_loader(Broken(), [[4, 0], [7], [5, 2, 3]], processes)
    assert next(loader)["id"].tolist() == [4, 0]
    batch = to_device(next(loader), torch.device("cpu"))
    assert batch["id"].tolist() == [7] and batch["names"] == ["7"]
    with pytest.raises(DataError, match=r"^sample 5 is no audio\nsample 3 is no audio$"):
        next(loader)


# ---- sums -------------------------------------------------------------------------------------------------


def test_sums_keep_their_places() -> None:
    layout = Layout(("loss", "size"), {"target": 2, "pred": 3})
    rows = {name: torch.randn(9, dim, dtype=torch.float64) for name, dim in layout.moments.items()}
    first, second = Sums(layout), Sums(layout)
    first.add({"loss": 1.5, "size": torch.tensor(2)}, {n: Moments.of(x[:4]) for n, x in rows.items()})
    first.add({"size": 5, "other": 100.0})
    second.add({"loss": 0.25}, {n: Moments.of(x[4:]) for n, x in rows.items()})
    first.merge(second)
    assert (first["loss"], first["size"], second["size"]) == (1.75, 7.0, 0.0)
    for name, x in rows.items():
        wanted = (x.var(0, correction=1) + 1e-6).sqrt().mean()
        assert first.deviation(name) == pytest.approx(float(wanted), rel=1e-5), name
    assert torch.equal(Sums(layout, first.vector).vector, first.vector) and len(first.vector) == 2 + 5 + 7
    with pytest.raises(KeyError):
        first.deviation("encoder")
    with pytest.raises(ValueError):
        _ = first["target"]


def _reduce(rank: int, size: int, folder: str) -> None:
    cpu = torch.device("cpu")
    used, unused, mine, small = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 2, 4, 1))
    used.grad = torch.full((3,), 1.0 + rank)
    small.grad = torch.full((1,), 10.0 * (rank + 1))
    if rank == 1:
        mine.grad = torch.arange(4.0)
    half = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    half.grad = torch.full((2,), 0.5, dtype=torch.float64)
    learning = [used, unused, mine, half, small]
    placement = Replicated(Worker(rank=rank, size=size), torch.nn.ParameterList(learning))
    placement.reduce(learning)
    total, norm = placement.total(torch.tensor([1.0, rank], dtype=torch.float64), learning)
    found = {
        "total": [*total.tolist(), norm],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in (used, unused, mine, half, small)],
        "vector": reduction.reduce_vector(torch.tensor([1.0, rank], dtype=torch.float64), cpu).tolist(),
        "objects": reduction.gather_objects({"rank": rank}),
        "place": reduction.rank_and_size(),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    watch = CollapseWatch(Recipe.from_dict(toy_recipe()), {"encoder": 2})
    watch.begin(0)
    x = torch.arange(12.0).view(6, 2).square()
    watch.add({"encoder": Scatter.of(x[rank::2])})
    watch.finish(cpu)
    Path(folder, f"watch{rank}.json").write_text(json.dumps(watch.figures))
    reduction.barrier()


def _resume(rank: int, size: int, folder: str) -> None:
    recipe = Recipe.from_dict(toy_recipe())
    loop = TrainingLoop(recipe, ToyTask(recipe), Path(folder, "run"), Diary(), Worker(rank, size))
    with patch.object(checkpoint, "file_sha256", side_effect=file_sha256) as read:
        loop.resume()
    state = loop.task.module.state_dict() | _optimizer_tensors(loop.optimizer.adam.state_dict())
    found = {"read": read.call_count, "state": {name: tensor.tolist() for name, tensor in state.items()}}
    Path(folder, f"resumed{rank}.json").write_text(json.dumps(found | {"update": loop.state.update}))


def _both(rank: int, size: int, folder: str) -> None:
    _reduce(rank, size, folder)
    _resume(rank, size, folder)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers left that summed and then went on with a run whose newest checkpoint is damaged."""
    folder = tmp_path_factory.mktemp("two workers")
    recipe = Recipe.from_dict(toy_recipe(checkpoint={"save_interval_updates": 3}))
    with patch.object(train_loop, "make_task", lambda recipe, model_folder: ToyTask(recipe)):
        train_loop.train(Job(recipe, folder / "run", threads=1), Diary())
    (folder / "run" / "checkpoints" / "update_00000006" / "state.json").write_text("{}")
    together(_both, folder, str(folder))
    return folder


@pytest.mark.timeout(400)  # two processes import PyTorch
def test_one_worker_reads_a_checkpoint_for_all(two_workers: Path) -> None:
    alone = CheckpointStore(two_workers / "run").load(3)
    wanted = {name: tensor.tolist() for group in alone.tensors.values() for name, tensor in group.items()}
    files = len(list(alone.folder.glob("*"))) - 1  # the manifest is not in itself
    found = [json.loads((two_workers / f"resumed{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["update"] for one in found] == [3, 3], "all go past the damaged one"
    assert [one["state"] for one in found] == [wanted, wanted]
    assert files <= found[0]["read"] <= 2 * files and found[1]["read"] == 0


@pytest.mark.timeout(400)
def test_sums_over_workers(two_workers: Path) -> None:
    for rank in (0, 1):
        found = json.loads((two_workers / f"{rank}.json").read_text())
        assert found["gradients"] == [[3.0] * 3, None, [0.0, 1.0, 2.0, 3.0], [1.0, 1.0], [30.0]]
        assert found["vector"] == [2.0, 1.0] and found["place"] == [rank, 2]
        assert found["total"] == [2.0, 1.0, pytest.approx((3 * 9 + 14 + 2 + 900) ** 0.5)]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        figures = json.loads((two_workers / f"watch{rank}.json").read_text())
        x = torch.arange(12.0).view(6, 2).square()
        assert figures["encoder_var"] == pytest.approx(float(x.std(0).mean()), rel=1e-5)
    assert reduction.gather_objects("me") == ["me"] and reduction.rank_and_size() == (0, 1)


def test_gradients_are_summed_in_buckets_of_one_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "_BUCKET_BYTES", 40)
    kinds = [
        (4, torch.float32),
        (6, torch.float32),
        (1, torch.float32),
        (1, torch.float64),
        (20, torch.float64),
    ]
    made = [torch.nn.Parameter(torch.zeros(n, dtype=kind)) for n, kind in kinds]
    buckets = reduction._buckets(made)
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[4, 6], [1], [1], [20]]
    assert reduction._buckets([]) == []


class Group:
    """In place of a process group of two workers, the other of which has the same gradients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        monkeypatch.setattr(reduction, "_distributed", lambda: True)
        monkeypatch.setattr(reduction.dist, "all_reduce", self.all_reduce)

    def all_reduce(self, flat: torch.Tensor, async_op: bool = False) -> Any:
        self.told.append(f"sends {len(flat) - 1}")  # each bucket of these tests holds one gradient
        self.flat = flat
        return self if async_op else flat.mul_(2)

    def wait(self) -> None:
        self.told.append("waits")


class Chain(torch.nn.Module):
    """Three products with a vector each, of 1, 2 and 3 numbers, of which some may be left out."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told, self.weights = told, torch.nn.ParameterList(torch.ones(n) for n in (1, 2, 3))

    def forward(self, *left_out: int) -> torch.Tensor:
        x = torch.ones((), requires_grad=True)
        for number, weight in enumerate(self.weights):
            if number not in left_out:
                x = x * weight.sum()
                x.register_hook(lambda _, n=number: self.told.append(f"passes {n + 1}"))
        return x


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> tuple[Chain, Replicated, Group]:
    monkeypatch.setattr(reduction, "_BUCKET_BYTES", 4)
    group = Group(monkeypatch)
    model = Chain(group.told)
    return model, Replicated(Worker(rank=0, size=2), model), group


def test_gradients_are_sent_while_the_last_backward_pass_runs(
    chain: tuple[Chain, Replicated, Group],
) -> None:
    model, placement, group = chain
    placement.backward(model(), True, last=False)
    assert group.told == ["passes 3", "passes 2", "passes 1"], "an earlier pass sends nothing"
    group.told.clear()
    placement.backward(model(), True, last=True)
    assert group.told == ["passes 3", "sends 3", "passes 2", "sends 2", "passes 1", "sends 1"]
    placement.reduce([])
    assert group.told[6:] == ["waits"] * 3
    sums = [p.grad.sum().item() for p in model.parameters() if p.grad is not None]
    assert sums == [12.0, 2 * 6.0, 3 * 4.0]
    group.flat.zero_()  # the last one sent, of the first parameter
    gradient = model.weights[0].grad
    assert gradient is not None and gradient.tolist() == [0.0], "gradients lie in what was sent, not copied"


def test_a_layer_that_was_left_out_is_sent_at_the_end_and_in_order(
    chain: tuple[Chain, Replicated, Group],
) -> None:
    model, placement, group = chain
    for update in range(2):
        group.told.clear()
        for parameter in model.parameters():
            parameter.grad = None
        placement.backward(model(0), True, last=False)
        placement.backward(model(1), True, last=True)
        assert [told for told in group.told if told.startswith("sends")] == ["sends 3"], update
        placement.reduce([])
        assert group.told[-5:] == ["sends 2", "sends 1", *["waits"] * 3], "an earlier pass had the second"
    for parameter in model.parameters():
        parameter.grad = None
    placement.backward(model(0), True, last=True)
    placement.reduce([])
    first = model.weights[0]
    assert first.grad is not None and first.grad.tolist() == [0.0], "another worker may have had one"
    placement.total(torch.zeros(1, dtype=torch.float64), list(model.parameters()))
    assert [p.grad is None for p in model.parameters()] == [True, False, False]
    placement.backward(model(2), True, last=True)
    placement.reduce([])
    group.told.clear()
    placement.backward(model(), True, last=False)
    assert group.told == ["passes 3", "passes 2", "passes 1"], "what waited in the update before is over"


class Stack(torch.nn.Module):
    """A head that is not used, two blocks, and a norm before them that is registered after them."""

    def __init__(self) -> None:
        super().__init__()
        sizes: Any = {"embed_dim": 8, "num_heads": 2, "depth": 2, "average_top_k_layers": 1}
        self.blocks = make_blocks(Data2VecMultiConfig(**sizes))
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, layerdrop: float = 0.0, *key: int) -> torch.Tensor:
        x = self.norm(torch.randn(1, 2, 8))
        for _, block in kept_blocks(self.blocks, layerdrop, True, *key):
            x = block(x, None)[0]
        return x.square().sum()


def test_blocks_are_sent_before_what_may_wait_and_none_for_a_spared_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduction, "_BUCKET_BYTES", 1)
    group, model = Group(monkeypatch), Stack()
    placement = Replicated(Worker(rank=0, size=2), model)
    names = {id(p): name for name, p in model.named_parameters()}
    order = [names[id(p)] for p in placement._sum.order]
    inside = len(list(model.blocks.parameters()))
    assert all(name.startswith("blocks.1.") for name in order[: inside // 2])
    assert order[inside:] == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    placement.backward(model(), True, last=True)
    assert len(group.told) == inside, "what lies around the head waits for it"
    placement.reduce([])
    key = next(key for key in range(99) if [n for n, _ in kept_blocks(model.blocks, 0.5, True, key)] == [0])
    for parameter in model.parameters():
        parameter.grad = None
    group.told.clear()
    placement.backward(model(0.5, key), True, last=True)
    assert len(group.told) == inside, "the second block was known not to come"
    placement.reduce([])
    placement.total(torch.zeros(1, dtype=torch.float64), list(model.parameters()))
    assert {n.split(".")[0] + n.split(".")[1] for n, p in model.named_parameters() if p.grad is not None} == {
        "blocks0", "normweight", "normbias"
    }  # fmt: skip


def test_a_worker_without_a_micro_batch_sends_zeros(chain: tuple[Chain, Replicated, Group]) -> None:
    model, placement, group = chain
    placement.reduce([])
    assert group.told == ["sends 3", "sends 2", "sends 1", *["waits"] * 3]
    assert [p.grad.sum().item() for p in model.parameters() if p.grad is not None] == [0.0] * 3


# ---- validations that were done ---------------------------------------------------------------------------


def test_the_evaluation_log_survives_a_kill(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "evaluations.jsonl")
    assert log.read() == {} and log.newest() == 0
    log.add(3, {"train/loss": 1.0, "speed/x": 2.0})
    assert log.newest() == 3 and not log.path.exists(), "no validation"
    log.add(10, {"valid/loss": 0.5, "train/loss": 1.0, "speed/x": 2.0})
    log.add(5, {"valid/loss": 0.75})
    with log.path.open("a") as file:
        file.write('{"update": 11, "metr')  # killed
    again = EvaluationLog(log.path)
    again.add(10, {"valid/loss": 0.25, "valid/wer": 3.0})
    assert list(again.read().items()) == [
        (5, {"valid/loss": 0.75}),
        (10, {"valid/loss": 0.25, "valid/wer": 3.0}),
    ]
    assert again.newest() == 10
    (tmp_path / "evaluations.newest").write_text("garbage")
    assert again.newest() == 0


def test_parts_of_a_start_are_read_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "d2v_platform")
    start_times.start_part_over("model, data and optimizer built")
    found = start_times.read_start(f"worker 3: {caplog.messages[0]}")
    assert found is not None and found[0] == "model, data and optimizer built" and found[1] > 1.7e9
    assert start_times.read_start("start: soon done") is None and start_times.read_start("update 3") is None
    assert start_times.read_start("start: 12.5 ") is None


# ---- the line of a running training -----------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.cpu = 0.0
        monkeypatch.setattr(progress_module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(progress_module.time, "process_time", lambda: self.cpu)


def made(**groups: Any) -> Progress:
    return Progress(Recipe.from_dict(toy_recipe(**groups)), Worker())


FIGURES = {"loss": 0.5, "lr": 1e-3, "epoch": 2.5}


def test_speed_leaves_out_validations_and_counts_each_interval_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "d2v_platform")
    clock, progress = Clock(monkeypatch), made()
    clock.now, clock.cpu = 5.0, 3.0  # what comes before the first update
    progress.start(LoopState(update=2))
    clock.now, clock.cpu = 15.0, 7.0
    since = progress.clock()
    clock.now, clock.cpu = 35.0, 20.0
    progress.leave_out(since)
    progress.data_wait_s = 5.0
    sums = Sums(Layout(("ntokens",)))
    sums.add({"ntokens": 100})
    progress.line(LoopState(update=4), FIGURES, sums)
    speed = progress.speed_metrics()
    assert speed.pop("speed/memory_gb") == peak_memory_gb(torch.device("cpu"))
    assert speed == pytest.approx({
        "speed/tokens_per_s": 10.0, "speed/s_per_update": 5.0, "speed/cpu_s_per_update": 2.0,
        "speed/data_wait_pct": 50.0, "speed/cpu_minutes": 4 / 60,
    })  # fmt: skip
    progress.reset_interval(LoopState(update=4))
    clock.now, clock.cpu = 36.0, 20.5
    progress.line(LoopState(update=6), FIGURES, sums)
    speed = progress.speed_metrics()
    assert (speed["speed/s_per_update"], speed["speed/cpu_s_per_update"]) == (0.5, 0.25)
    assert (speed["speed/tokens_per_s"], speed["speed/data_wait_pct"]) == (100.0, 0.0)
    assert progress.since_start() == 31.0
    assert "update 6/6  epoch 2.50  loss 0.5  lr 0.001  100 tokens/s" in caplog.messages[-1]


def test_memory_is_in_gigabytes() -> None:
    status = Path("/proc/self/status").read_text()
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_memory_gb(torch.device("cpu")) == pytest.approx(peak_kib * 1024 / 1e9, rel=0.05)


@pytest.mark.parametrize(
    ("limits", "eta"),
    [
        ({"max_update": 12}, "0:01:20"),
        ({"max_update": 0, "max_epoch": 4}, "0:02:40"),
        ({"max_update": 100, "max_epoch": 4}, "0:02:40"),
        ({"max_update": 12, "max_epoch": 400}, "0:01:20"),
        ({"max_update": 9000}, "24:59:20"),
        ({"max_update": 3}, "0:00:00"),
        ({"max_update": 9000, "stop_time_hours": 0.5}, "0:28:00"),
        ({"max_update": 12, "stop_time_hours": 9.0}, "0:01:20"),
    ],
)
def test_time_to_the_end(limits: dict[str, Any], eta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, progress = Clock(monkeypatch), made(optimization=limits)
    progress.epoch_length = 5
    clock.now = 1000.0
    progress.start(LoopState(update=2))
    clock.now += 20.0  # for two updates; earlier attempts took 100 s
    assert progress._eta(LoopState(update=4, elapsed_s=100.0)) == eta


def test_the_time_to_the_end_is_not_known_before_the_first_update() -> None:
    progress = made(optimization={"max_update": 9})
    progress.start(LoopState(update=4))
    assert progress._eta(LoopState(update=4)) == "-"


def test_only_the_first_worker_speaks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "d2v_platform")
    for rank in (1, 0):
        progress = Progress(Recipe.from_dict(toy_recipe()), Worker(rank=rank))
        progress.line(LoopState(update=1), FIGURES, Sums(Layout(("ntokens",))))
        progress.validation(LoopState(update=1), {"valid/loss": 0.25})
        assert "speed/s_per_update" in progress.speed_metrics()
        assert len(caplog.messages) == (2 if rank == 0 else 0)
    assert caplog.messages[1] == "update 1  valid/loss 0.25"


def test_images_are_counted_as_images() -> None:
    values = toy_recipe()
    values["task"] = {"_name": "mae_image_pretraining", "data": "/x"}
    progress = Progress(Recipe.from_dict(values), Worker())
    progress.line(LoopState(update=1), FIGURES, Sums(Layout(("ntokens",))))
    assert "speed/images_per_s" in progress.speed_metrics()


# ---- collapse ---------------------------------------------------------------------------------------------


def judged(watch: CollapseWatch, state: LoopState, update: int, var: float, rank: float) -> str | None:
    watch.figures = {"encoder_var": var, "encoder_rank": rank}
    state.update = update
    return watch.judge(state, speaks=True)


def test_a_stage_must_be_low_for_some_lines_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    limits = {"collapse_after": 10, "collapse_min_var": 0.5, "collapse_min_rank": 2.0, "collapse_patience": 2}
    recipe = Recipe.from_dict(toy_recipe(platform=limits))
    watch, state = CollapseWatch(recipe, {"encoder": 3}), LoopState()
    assert judged(watch, state, 10, 0.0, 0.0) is None and state.collapse_streaks == {}
    assert judged(watch, state, 11, 0.4, 2.0) is None and state.collapse_streaks == {"encoder": 1}
    assert judged(watch, state, 12, 0.5, 2.0) is None and state.collapse_streaks == {}, "at the limits"
    assert judged(watch, state, 13, 0.5, 1.9) is None
    told = judged(watch, state, 14, 0.4, 1.9)
    assert told is not None and "deviation 0.4 < platform.collapse_min_var 0.5, effective rank 1.9 <" in told
    assert "for 2 log lines" in told
    assert [m.split(":")[0] for m in caplog.messages] == ["update 11", "update 13"]
    watch.judge(state, speaks=False)
    figures = {"train/encoder_var": 0.4, "train/encoder_rank": 3.0, "train/targets_rank": 1.9}
    assert collapsed_stages(recipe, figures, 11) == ["encoder", "targets"]
    assert collapsed_stages(recipe, figures, 10) == []
    assert collapsed_stages(recipe, {"train/encoder_var": 0.5, "train/encoder_rank": 2.0}, 11) == []


def test_only_the_update_of_a_log_line_is_watched() -> None:
    watch = CollapseWatch(Recipe.from_dict(toy_recipe(common={"log_interval": 3})), {"encoder": 3})
    assert [watch.begin(update) for update in range(6)] == [False, False, True, False, False, True]
    x = torch.randn(4, 3)
    watch.add({"encoder": Scatter.of(x)})
    watch.finish(torch.device("cpu"))
    assert watch.figures["encoder_var"] == pytest.approx(float(x.std(0).mean()), rel=1e-4)
    watch.begin(6)
    assert watch.figures == {}
    watch.add({"encoder": Scatter.of(x)})
    watch.finish(torch.device("cpu"))
    assert watch.figures == {}
    assert not CollapseWatch(Recipe.from_dict(toy_recipe()), {}).begin(0)
