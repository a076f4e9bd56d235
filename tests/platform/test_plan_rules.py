"""A plan dealt to a cluster, and a forecast's figures, computed a second time."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from d2v_platform.figures import duration
from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import text_blocks
from d2v_platform.training import accelerators, workload
from d2v_platform.training import forecast as forecasts
from d2v_platform.training.accelerators import GPUS, Accelerator, gpu_at_hand, machine_memory
from d2v_platform.training.forecast import PROCESS_BYTES, Forecast, forecast_as_stated, forecast_at_hand
from d2v_platform.training.plan import Plan, make_plan
from d2v_platform.training.ray_session import ClusterInfo, NodeRoom
from d2v_platform.training.workload import Workload, make_workload, matrix_work, smaller_batches
from data2vec.errors import ConfigError
from data2vec.flops import Storage
from tests.platform.toy_task import toy_recipe


def recipe(**groups: Any) -> Recipe:
    return Recipe.from_dict(toy_recipe(**groups))


def deal(cluster: ClusterInfo | None, *, world: int = 4, local_gpus: int = 0, **platform: Any) -> Plan:
    groups = {"distributed_training": {"distributed_world_size": world}, "platform": platform}
    return make_plan(recipe(**groups), cluster, local_gpus)


# ---- dealing ----------------------------------------------------------------------------------------------


def test_workers_follow_the_cluster_and_the_micro_batches() -> None:
    assert deal(ClusterInfo(3, 0, 1)).num_workers == 3
    assert deal(ClusterInfo(9, 0, 1)).num_workers == 4, "no more than micro-batches"
    assert deal(ClusterInfo(9, 0, 1), cpus_per_worker=4).num_workers == 2
    assert deal(ClusterInfo(9, 0, 1), cpus_per_worker=4).cpus_per_worker == 4
    made = deal(ClusterInfo(9, 2, 1), compile=False)
    assert (made.num_workers, made.gpus_per_worker) == (2, 1.0), "one GPU each where there are any"
    assert deal(ClusterInfo(9, 2, 1), gpus_per_worker=0.5).num_workers == 1, "NCCL takes one process a GPU"
    assert deal(ClusterInfo(9, 2, 1), gpus_per_worker=0).gpus_per_worker == 0
    assert made.notes == ("platform.num_workers is not given: 2 of 2 that fit the cluster",)
    assert deal(ClusterInfo(9, 2, 1), num_workers=1, compile=False).notes == ()


@pytest.mark.parametrize(
    ("cluster", "platform", "words"),
    [
        (
            ClusterInfo(2, 0, 1),
            {"num_workers": 3},
            "has 1 node of 2 CPUs .* at most 2, or lower platform.cpus",
        ),
        (ClusterInfo(8, 2, 1), {"num_workers": 3}, "8 CPUs and 2 GPUs .* at most 2, or lower platform.gpus"),
        (
            ClusterInfo(0.5, 0, 1),
            {},
            r"cpus_per_worker = 1.0 +no node has so many; .* 0.5 CPUs, .*; lower it",
        ),
        (ClusterInfo(8, 2, 1), {"gpus_per_worker": 3}, r"gpus_per_worker = 3.0 +no node has .* 2 GPUs"),
        (
            ClusterInfo(8, 4, 1),
            {"gpus_per_worker": 0.5, "num_workers": 2},
            "must be whole with several workers",
        ),
        # In all there is enough, on no node or on too few.
        (ClusterInfo(32, 0, 2), {"cpus_per_worker": 20}, "no node has so many; .* 2 nodes of 16 CPUs"),
        (
            ClusterInfo(32, 0, 2),
            {"cpus_per_worker": 9, "num_workers": 3},
            "each worker takes 9 CPU; use at most 2",
        ),
        (ClusterInfo(4, 4, 2), {"cpus_per_worker": 2, "num_workers": 3}, "at most 2, or lower platform.cpus"),
        (ClusterInfo(99, 0, 1), {"num_workers": 5}, "an update has 4 micro-batches .* at most 4 workers"),
        (None, {"num_workers": 0, "gpus_per_worker": 1}, "no GPU that PyTorch can use"),
    ],
)
def test_what_cannot_be_placed_is_refused(cluster: Any, platform: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        deal(cluster, **platform)


def test_threads_loaders_and_sharding() -> None:
    cluster = ClusterInfo(8, 0, 1)
    assert deal(cluster, cpus_per_worker=2.9).threads == 2
    assert deal(cluster, cpus_per_worker=0.5).threads == 1
    assert deal(cluster, cpus_per_worker=4, threads_per_worker=3).threads == 3
    values = toy_recipe(dataset={"num_workers": 3}, platform={"cpus_per_worker": 2})
    assert make_plan(Recipe.from_dict(values), cluster).loader_processes == 3
    values["platform"]["cpus_per_worker"] = 1.9
    made = make_plan(Recipe.from_dict(values), cluster)
    assert made.loader_processes == 0 and any("dataset.num_workers 3 -> 0" in note for note in made.notes)
    assert deal(cluster, sharding="full").sharded and not deal(cluster, sharding="auto").sharded
    alone = deal(cluster, sharding="full", num_workers=1)
    assert not alone.sharded and any("full -> none" in note for note in alone.notes)
    here = deal(None, num_workers=0, local_gpus=3)
    assert (here.num_workers, here.gpus_per_worker) == (0, 1.0)
    assert deal(None, num_workers=0, local_gpus=3, gpus_per_worker=0).gpus_per_worker == 0.0


MIXED = ClusterInfo(
    80, 8, 3, rooms=(NodeRoom(8, 0), NodeRoom(8, 0), NodeRoom(64, 8))
)  # a head, a CPU node, a GPU node


def test_beside_a_gpu_a_worker_has_the_nodes_share_of_cpus() -> None:
    def made(cluster: ClusterInfo, loaders: int, **platform: Any) -> tuple[float, int, int, int]:
        values = toy_recipe(
            dataset={"num_workers": loaders},
            platform=platform,
            distributed_training={"distributed_world_size": 16},
        )
        plan = make_plan(Recipe.from_dict(values), cluster)
        return plan.num_workers, plan.cpus_per_worker, plan.threads, plan.loader_processes

    assert made(ClusterInfo(128, 8, 1), 10) == (8, 11, 1, 10), "as many as its loaders use"
    assert made(ClusterInfo(64, 8, 1), 10) == (8, 8, 1, 7), "and as the node has"
    assert made(MIXED, 10) == (8, 8, 1, 7), "CPUs of other nodes serve no GPU"
    assert made(ClusterInfo(128, 8, 1), 2) == (8, 3, 1, 2)
    assert made(ClusterInfo(4, 8, 1), 2) == (8, 0.5, 1, 0), "every GPU is used all the same"
    assert made(ClusterInfo(128, 8, 1), 10, gpus_per_worker=2) == (4, 11, 1, 10)
    assert made(ClusterInfo(128, 8, 1), 10, cpus_per_worker=4) == (8, 4, 4, 10), "what is asked for stays"
    assert made(ClusterInfo(128, 8, 1), 10, threads_per_worker=3) == (8, 11, 3, 10)
    assert made(ClusterInfo(8, 0, 1), 10) == (8, 1, 1, 0)


def test_a_node_holds_whole_processes() -> None:
    assert [MIXED.holds(cpus, gpus) for cpus, gpus in ((5, 0), (8, 1), (9, 1), (1, 0.4), (0, 2))] == [
        14, 8, 7, 16, 4,
    ]  # fmt: skip
    assert MIXED.line() == "2 nodes of 8 CPUs, 1 node of 64 CPUs and 8 GPUs"
    assert ClusterInfo(9, 3, 3).by_node() == (NodeRoom(3, 1),) * 3


def test_a_plan_in_words_and_how_busy_it_is() -> None:
    groups: Any = {"distributed_training": {"distributed_world_size": 5},
                   "optimization": {"update_freq": [2, 9]}}  # fmt: skip
    made = make_plan(
        recipe(**groups, platform={"num_workers": 4, "cpus_per_worker": 1.5}), ClusterInfo(6, 0, 1)
    )
    assert (made.world_size, made.update_freq, made.micro_batches) == (5, 2, 10)
    assert made.busy == pytest.approx(10 / 12)
    assert made.lines()[:2] == [
        "plan: 10 micro-batches an update (recipe: 5 workers x update_freq 2) on 4 Ray Train workers: "
        "3 each, 83% busy",
        "      each worker: 1.5 CPU, no GPU, 1 threads, 0 loader processes",
    ]
    assert "on 1 Ray Train worker: 4 each" in deal(ClusterInfo(1, 0, 1)).lines()[0]
    assert "this process, without Ray: 4 each, 100% busy" in deal(None, num_workers=0).lines()[0]


# ---- prices -----------------------------------------------------------------------------------------------


def priced(sizes: dict[tuple[int, int], int] | None = None, **groups: Any) -> tuple[Recipe, Workload]:
    made = recipe(**groups)
    found = make_workload(made, None)
    assert found is not None
    if sizes is not None:
        found = Workload(made, found.config, 50, True, Counter(sizes), sum(sizes.values()))
    return made, found


DEVICE = Accelerator("thing", {"fp32": 1e12, "bf16": 4e12}, 10e9, 0.5)


def test_a_forecasts_figures() -> None:
    sizes = {(2, 16): 3, (1, 32): 1}
    groups: Any = {"distributed_training": {"distributed_world_size": 5},
                   "optimization": {"max_update": 50, "max_epoch": 0}}  # fmt: skip
    _, work = priced(sizes, **groups)
    found = forecasts.forecast(work, DEVICE, 3, 10e9)
    each = {size: work.cost(size, Storage(), False).flops for size in sizes}
    mean = (3 * each[2, 16] + each[1, 32]) / 4
    assert found.flops == work.mean_flops() == pytest.approx(mean)
    assert found.rounds == 2 and found.update_flops == pytest.approx(5 * mean)
    assert found.update_s == pytest.approx(2 * mean / (0.5 * 1e12)) and found.updates == 50
    assert found.memory_bytes == found.cost.peak_bytes + PROCESS_BYTES["cuda"] and not found.sharded
    peaks = {size: work.cost(size, Storage.on("cuda", "fp32"), True).peak_bytes for size in sizes}
    assert found.largest == max(peaks, key=lambda size: peaks[size]) and found.cost.peak_bytes == max(
        peaks.values()
    )
    assert forecasts.forecast(work, DEVICE, 5, None).cost.accumulates is False
    assert found.cost.accumulates is True
    assert f"{duration(50 * (found.update_s or 0))} in all" in found.lines()[-1]
    # An epoch has four micro-batches, which make one update.
    groups["optimization"] = {"max_update": 50, "max_epoch": 7}
    assert forecasts.forecast(priced(sizes, **groups)[1], DEVICE, 3, None).updates == 7
    groups["distributed_training"] = {"distributed_world_size": 3}
    assert forecasts.forecast(priced(sizes, **groups)[1], DEVICE, 3, None).updates == 14
    groups |= {"common": {"fp16": True}, "platform": {"plan_utilisation": 0.25}}
    mixed = forecasts.forecast(priced(sizes, **groups)[1], DEVICE, 1, None)
    assert mixed.precision == "bf16" and mixed.update_s == pytest.approx(3 * mixed.flops / (0.25 * 4e12))
    assert mixed.fits, "nothing is known of its memory"


def test_what_fits_leaves_a_little_free() -> None:
    _, work = priced({(2, 16): 1})
    peak = forecasts.forecast(work, DEVICE, 1, None).memory_bytes
    assert forecasts.forecast(work, DEVICE, 1, peak / 0.97 * 1.0001).fits
    assert not forecasts.forecast(work, DEVICE, 1, peak * 1.02).fits


def test_sharing_is_for_models_that_do_not_fit() -> None:
    def kind(asked: str, count: int, limit: float | None) -> bool:
        _, work = priced({(1, 8): 1}, platform={"sharding": asked},
                         distributed_training={"distributed_world_size": 4})  # fmt: skip
        return forecasts.forecast(work, DEVICE, count, limit).sharded

    whole = forecasts.forecast(priced({(1, 8): 1})[1], DEVICE, 1, None).memory_bytes
    low = 0.8 * whole
    assert [kind("auto", 4, 2 * whole), kind("auto", 4, low), kind("auto", 1, low)] == [False, True, False]
    assert [kind("none", 4, low), kind("full", 4, 2 * whole)] == [False, True]
    assert kind("auto", 4, 1.0) is False, "it would not help"
    assert kind("auto", 4, None) is False


def test_devices_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "gpu_at_hand", lambda kind: Accelerator(str(kind), {}, 40e9, 0.4))
    seen: list[Any] = []

    def cpu(threads: int, memory: float | None = None) -> Accelerator:
        seen.append((threads, memory))
        return Accelerator("cpu", {"fp32": 1e11}, memory, 0.75, True)

    monkeypatch.setattr(forecasts, "cpu_at_hand", cpu)
    monkeypatch.setattr(forecasts, "machine_memory", lambda: 64e9)
    world: Any = {"distributed_training": {"distributed_world_size": 8}}

    def at_hand(cluster: ClusterInfo | None, **platform: Any) -> Forecast:
        made = recipe(**world, platform=platform)
        found = forecast_at_hand(made, make_plan(made, cluster), cluster, None)
        assert found is not None
        return found

    found = at_hand(ClusterInfo(8, 2, 1, 50e9, "A100"))
    assert (found.device.name, found.limit_bytes, found.count) == ("A100", 40e9, 2)
    assert at_hand(ClusterInfo(8, 2, 1), gpus_per_worker=0.25).limit_bytes == 10e9
    found = at_hand(ClusterInfo(6, 0, 1, 50e9), num_workers=6)
    assert (found.count, found.limit_bytes, found.workers_per_node) == (6, 64e9 / 6, 6)
    found = at_hand(ClusterInfo(8, 0, 4, 50e9), num_workers=6, threads_per_worker=3)
    assert (found.limit_bytes, found.workers_per_node) == (50e9 / 2, 2), "six workers on four nodes"
    assert seen == [(1, 64e9), (3, 50e9)]
    assert at_hand(None, num_workers=0).count == 1


def test_stated_devices() -> None:
    world: Any = {"distributed_training": {"distributed_world_size": 6}}
    plan = make_plan(recipe(**world), ClusterInfo(4, 0, 1))
    assert forecast_as_stated(recipe(**world), plan, None) is None

    def stated(**platform: Any) -> Any:
        return forecast_as_stated(recipe(**world, platform=platform), plan, None)

    found = stated(plan_accelerator="v100")
    assert (found.device, found.count, found.limit_bytes) == (GPUS["v100"], 4, 32e9)
    assert stated(plan_accelerator="v100", plan_count=6).count == 6
    assert stated(plan_count=2).device.name == "cpu"
    with pytest.raises(ConfigError, match="at most 6 devices"):
        stated(plan_count=7)


# ---- devices ----------------------------------------------------------------------------------------------


def test_precisions_and_rates_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    volta, hopper = GPUS["v100"], GPUS["h100"]
    assert [volta.precision("auto", mixed) for mixed in (False, True)] == ["fp32", "fp16"]
    assert hopper.precision("auto", True) == "bf16" and hopper.precision("fp32", True) == "fp32"
    assert Accelerator("cpu", {}, None, 1.0).precision("auto", True) == "fp32"
    assert (volta.rate("bf16"), hopper.rate("bf16"), hopper.rate("fp32")) == (None, 989e12, 67e12)
    assert (volta.rate("fp16"), volta.rate("fp32"), volta.memory_bytes) == (125e12, 15.7e12, 32e9)
    assert (GPUS["a100-40gb"].memory_bytes, GPUS["a100"].memory_bytes) == (40e9, 80e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_at_hand("A100").name == "a100" and gpu_at_hand("T4").rate("fp16") is None
    assert gpu_at_hand("T4").name == "T4" and gpu_at_hand(None).memory_bytes is None
    assert accelerators.local_gpus(True) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert (accelerators.local_gpus(True), accelerators.local_gpus(False)) == (3, 0)
    properties = SimpleNamespace(name="NVIDIA H100 PCIe", total_memory=85e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = gpu_at_hand("A100")
    assert (found.name, found.memory_bytes, found.rate("bf16")) == ("NVIDIA H100 PCIe", 85e9, 989e12)
    assert accelerators.device_rate(torch.device("cuda"), "bf16") == 989e12


def test_a_containers_limit_counts_where_it_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    texts = {"/sys/fs/cgroup/memory.max": "max"}

    def read(path: Path, encoding: str = "") -> str:
        if str(path) not in texts:
            raise FileNotFoundError
        return texts[str(path)] + "\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert machine_memory() == machine
    texts["/sys/fs/cgroup/memory.max"] = "1000000"
    assert machine_memory() == 1e6
    texts["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = str(2**63)
    assert machine_memory() == 1e6


def test_a_rate_is_that_of_the_best_product(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr(accelerators.time, "perf_counter", lambda: next(ticks))
    threads = torch.get_num_threads()
    measured = accelerators.measured_rate.__wrapped__
    # The first, of 9 s, warms up; the fastest of the others took 1 s.
    assert measured(threads, 3) == pytest.approx(2.0 * 128 * 768 * 3072)
    ticks = iter([0.0, 1.0, 10.0, 14.0])
    assert measured(threads, 1) == pytest.approx(2.0 * 128 * 768 * 3072 / 4)
    assert torch.get_num_threads() == threads


# ---- sizes of micro-batches -------------------------------------------------------------------------------


class Lines:
    """Ten samples of lengths 1 to 10."""

    sizes = np.arange(1, 11)
    order = "size"
    dictionary = range(70)

    def fingerprint(self) -> str:
        return "lines"


def test_sizes_of_real_and_of_unread_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data: Any = {"batch_size": 4, "max_tokens": 64, "required_batch_size_multiple": 1}
    _, unread = priced(dataset=data, task={"tokens_per_sample": 24})
    assert (
        unread.sizes == {(2, 24): 1} and unread.epoch_micro_batches is None and unread.fingerprint() is None
    )
    assert unread.vocab_size == text_blocks.PUBLISHED_VOCABULARY
    data["required_batch_size_multiple"] = 2
    assert priced(dataset=data | {"max_tokens": 72}, task={"tokens_per_sample": 24})[1].sizes == {(2, 24): 1}
    assert priced(dataset=data | {"max_tokens": None}, task={"tokens_per_sample": 24})[1].sizes == {
        (4, 24): 1
    }
    monkeypatch.setattr(workload, "training_data", lambda recipe: Lines())
    data["required_batch_size_multiple"] = 1
    _, read = priced(dataset=data, task={"tokens_per_sample": 24})
    assert sum(read.sizes.values()) == read.epoch_micro_batches == 3
    assert sorted(read.sizes) == [(2, 10), (4, 4), (4, 8)] and read.vocab_size == 70
    assert read.fingerprint() == "lines"
    again = read.for_recipe(recipe(dataset=data | {"batch_size": 5}))
    assert (again.epoch_micro_batches, sorted(again.sizes)) == (2, [(5, 5), (5, 10)])
    assert again.vocab_size == 70 and again.recipe.dataset.batch_size == 5


def test_a_micro_batch_as_the_model_sees_it() -> None:
    text = {"text": {"mask_prob": 0.48, "keep_masked_pct": 0.5, "max_source_positions": 512}}
    _, made = priced(model={"clone_batch": 3, "modalities": text})
    seen = made.shape(2, 100)
    visible = int(100 * (1 - 0.48))
    assert (seen.samples, seen.positions, seen.clones, seen.raw) == (2, 100, 3, 0)
    assert seen.kept == visible + round((100 - visible) * 0.5)
    image = {"text": None, "image": {"input_size": 32, "patch_size": 8, "mask_prob": 0.75,
                                     "keep_masked_pct": 0.0}}  # fmt: skip
    values = toy_recipe(model={"supported_modality": "IMAGE", "modalities": image},
                        task={"_name": "mae_image_pretraining", "input_size": 32})  # fmt: skip
    found = make_workload(Recipe.from_dict(values), None)
    assert found is not None and found.shape(2, 1).positions == 16 and found.shape(2, 1).kept == 4
    assert found.sizes == {(2, 1): 1} and found.vocab_size == 0


def test_smaller_batches_are_the_same_update() -> None:
    made = recipe(dataset={"batch_size": 8, "max_tokens": 640}, model={"cls_loss": 0.25},
                  distributed_training={"distributed_world_size": 3})  # fmt: skip
    found = smaller_batches(made, 4)
    assert found is not None
    less, words = found
    assert (less.dataset.batch_size, less.dataset.max_tokens, less.world_size()) == (2, 160, 12)
    assert words == ("dataset.batch_size=2 dataset.max_tokens=160 "
                     "distributed_training.distributed_world_size=12 model.cls_loss=1")  # fmt: skip
    assert getattr(less.model, "cls_loss", None) == 1.0
    assert smaller_batches(made, 3) is None
    audio = toy_recipe(task={"_name": "audio_pretraining", "max_sample_size": 200},
                       dataset={"batch_size": None, "max_tokens": 600})  # fmt: skip
    assert smaller_batches(Recipe.from_dict(audio), 3) is not None
    audio["dataset"]["max_tokens"] = 300
    assert smaller_batches(Recipe.from_dict(audio), 2) is None, "a clip would not fit"


def test_work_that_is_done_twice_counts_once(tiny_recipe: dict[str, Any]) -> None:
    from d2v_platform.tasks import make_task

    plain = Recipe.from_dict(tiny_recipe)
    twice = Recipe.from_dict(tiny_recipe | {"platform": {"checkpoint_activations": True}})
    module = make_task(plain, None).module
    works = [matrix_work(made, module) for made in (plain, twice)]
    assert works[0] is not None and works[1] is not None and works[0](4, 32) == works[1](4, 32) > 0
    assert works[0](8, 32) == pytest.approx(2 * works[0](4, 32))
    held = make_workload(plain, None)
    assert held is not None
    assert works[0](4, 32) == pytest.approx(held.cost((4, 32), Storage(), False).flops, rel=0.01)
    assert (
        held.cost((4, 32), Storage(), False).flops
        < held.for_recipe(twice).cost((4, 32), Storage(), False).flops
    )
    assert matrix_work(plain, torch.nn.Linear(2, 2)) is None
    assert math.isfinite(works[0](1, 1))
