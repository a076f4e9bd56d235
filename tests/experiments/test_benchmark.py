"""The speed benchmark: what it measures in a process of its own, its input case, its table and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from d2v_platform.recipe.sweep_definition import SweepDefinition
from d2v_platform.sweeps.capacity import capacity
from d2v_platform.training.plan import make_plan
from d2v_platform.training.ray_session import ClusterInfo
from experiments.benchmarks import (
    audio_input,
    audio_parts,
    command,
    ctc_speed,
    feeding,
    image_input,
    overlap,
    scale,
    text_input,
)
from experiments.benchmarks.measure import Case, Timing, measure


def fill(megabytes: int) -> Callable[[int], None]:
    """A step that holds so much memory."""

    def step(index: int) -> None:
        assert np.ones(megabytes * 1_000_000, dtype=np.uint8).sum() > index

    return step


@pytest.mark.slow
def test_a_case_is_measured_in_a_fresh_process() -> None:
    case = Case("filling", fill, {"megabytes": 700}, matrix_flops=1e9, units=10, unit="things")
    timing = measure(case, steps=1, threads=1)  # medians of one: equal however busy the machine is
    assert isinstance(timing, Timing)
    assert 0.9 < timing.peak_gb < 3.0
    assert timing.units_per_second == pytest.approx(10 / timing.seconds)
    assert timing.share == pytest.approx(1 / timing.seconds / timing.matrix_rate)
    assert timing.cpu_seconds > 0


def test_the_input_case_reads_every_token_in_another_order_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_input, "_BATCHES", 6)
    read = text_input.build_epoch("v2/base_text_only_task", samples=3, length=16)
    read(0)  # asserts the number of tokens
    read(1)
    case = text_input.case("v2/base_text_only_task", 3, 16)
    assert (case.units, case.unit) == (6 * 3 * 16, "tokens")


def test_the_image_input_reads_every_image_cropped_otherwise_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_input, "_IMAGES", 6)
    monkeypatch.setattr(image_input, "_SIZE", (60, 48))
    read = image_input.build_epoch("v2/base_images_only_task", samples=4)
    read(0)  # asserts the number of images
    read(1)
    assert image_input.case("v2/base_images_only_task", 4).units == 6
    late = image_input.case("v2/base_images_only_task", 4, late=True)
    assert late.options["late"] and late.name.endswith("decoded only")
    late.build(**late.options)(0)


def test_the_audio_input_reads_every_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_input, "_CLIPS", 5)
    monkeypatch.setattr(audio_input, "_SECONDS", (2.5, 3.0))
    read = audio_input.build_epoch("v2/base_audio_only_task")
    read(0)  # asserts the number of clips
    read(1)
    case = audio_input.case("v2/base_audio_only_task")
    assert 5 * 2.5 <= case.units <= 5 * 3.0


def test_parts_of_the_audio_model_by_themselves() -> None:
    cases = audio_parts.cases("v2/base_audio_only_task", samples=1, length=1600, clones=2)
    assert [round(case.matrix_flops / 1e9, 2) for case in cases] == [1.45, 0.17]
    for case in cases:
        case.build(**case.options)(0)


def test_decoding_finds_the_words_through_the_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["THE CAT SAT", "THE DOG SAT"]
    taught = [text.split() for text in texts]
    heard = list(ctc_speed.emissions(texts))
    assert all(len(e) == (len(text) + 1) * 4 for e, text in zip(heard, texts, strict=True))
    ctc_speed.build_greedy(texts)(0)
    pytest.importorskip("flashlight.lib.text")
    found: list[str] = []
    decode = ctc_speed.LexiconBeam.decode

    def listen(beam: ctc_speed.LexiconBeam, emissions: np.ndarray) -> object:
        result = decode(beam, emissions)
        found.append(result[0].text)
        return result

    monkeypatch.setattr(ctc_speed.LexiconBeam, "decode", listen)
    ctc_speed.build_beam(texts, taught)(0)
    assert found == texts


def test_real_time_factor_of_decoding_alone() -> None:
    def heard(name: str) -> Timing:
        return Timing(name, 1.0, 1.0, 50.0, command.AUDIO, 0.0, 100.0, 0.0, 1.0)

    assert command.real_time(heard("greedy decoding")) == {"real_time_factor": pytest.approx(0.02)}
    assert command.real_time(heard("v1 speech base step")) == {}
    lines = command.remarks([heard("v1 speech base step"), heard("input pipeline"), heard("greedy decoding")])
    assert lines == [
        "input: 50 seconds of audio a CPU-second, 1 x the fastest step (50 hours of audio an hour)",
        "real-time factor 0.02: greedy decoding",
    ]


def timing(name: str, rate: float, seconds: float = 2.0, cpu: float = 4.0, gflops: float = 0.0) -> Timing:
    return Timing(name, seconds, cpu, rate, "tokens", gflops, 100.0, gflops / 100.0, 1.5)


def test_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [timing("step", 100.0, gflops=88.0), timing("input pipeline", 5000.0, seconds=1.0, cpu=0.5)]
    assert command.remarks(found) == ["input: 1e+04 tokens a CPU-second, 100 x the fastest step"]
    assert command.remarks(found[:1]) == []
    answers = {one.name: one for one in found}
    cases = [Case(one.name, fill, {}, 0.0, 1.0, "tokens") for one in found]
    monkeypatch.setattr(command, "measure", lambda case, steps, threads: answers[case.name])
    monkeypatch.setattr(command, "case", lambda *_, **__: cases[0])
    monkeypatch.setattr(command, "peer", lambda *_: [])
    monkeypatch.setattr(text_input, "case", lambda *_: cases[1])
    shown = CliRunner().invoke(command.app, ["text"])
    assert shown.exit_code == 0, shown.output
    assert "88%" in shown.output and "100 x the fastest step" in shown.output
    printed = CliRunner().invoke(command.app, ["text", "--json"])
    rows = json.loads(printed.stdout)
    assert [row["name"] for row in rows] == ["step", "step", "input pipeline"]  # 2 and 8 clones
    assert rows[0]["share"] == pytest.approx(0.88)


def test_each_step_stands_beside_its_compiled_self(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[Case] = []

    def record(case: Case, *_: int) -> str:
        cases.append(case)
        return "not measured"

    monkeypatch.setattr(command, "measure", record)
    asked = CliRunner().invoke(command.app, ["vision", "--compiled", "--only", "step"])
    assert asked.exit_code == 0, asked.output
    assert [(case.name, case.options["backend"]) for case in cases] == [
        (f"{name} step{rest}{how}", backend)
        for name, rest in (("v2 ViT-B", ", 8 clones"), ("v2 ViT-B", ", 16 clones"), ("v1 ViT-B", ""))
        for how, backend in (("", None), (", compiled", "inductor"))
    ]


def test_gpus_that_a_host_feeds(monkeypatch: pytest.MonkeyPatch) -> None:
    eaten = feeding.Eaten("an update", units=64, milliseconds=250)  # 256 a second
    row = feeding.fed(timing("input pipeline, JPEG", rate=1024.0, seconds=2.0, cpu=16.0), eaten)
    assert (row.name, row.read, row.cores(), row.cores(2.0)) == ("JPEG", 128.0, 2.0, 4.0)
    assert row.gpus() == pytest.approx(16 / 3) and row.gpus(2.0) == pytest.approx(16 / 5)
    assert feeding.TEXT.per_second == pytest.approx(16 * 512 / 0.136)
    names = [one.name for one, _ in feeding.cases()]
    assert len(names) == 4 and sum("decoded only" in name for name in names) == 1
    cases = [(Case(name, fill, {}, 0.0, 1.0, "images"), eaten) for name in ("input pipeline, JPEG", "other")]
    monkeypatch.setattr(feeding, "cases", lambda: cases)
    monkeypatch.setattr(command, "measure", lambda one, *_, **__: timing(one.name, 1024.0, 2.0, 16.0))
    shown = CliRunner().invoke(command.app, ["input"])
    assert shown.stdout.splitlines()[2] == "| JPEG | 128 tokens | 256 | 2 | 5.3 | 3.2 |"
    rows = json.loads(CliRunner().invoke(command.app, ["input", "--json"]).stdout)
    assert [row["name"] for row in rows] == ["JPEG", "other"] and rows[0]["gpus"][1] == pytest.approx(3.2)


class Sent:
    """A sum that is there at once."""

    def wait(self) -> None:
        """It is."""


def test_a_stated_link_takes_its_time_bucket_by_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(overlap.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(overlap.dist, "all_reduce", lambda flat, async_op=False: Sent())
    link, bucket = overlap.Link(workers=4), torch.zeros(25)  # 100 bytes, of which a ring sends 150
    link.rate = 50.0
    assert isinstance(link.all_reduce(bucket), Sent), "what is waited for at once is not a bucket"
    first, second = link.all_reduce(bucket, async_op=True), link.all_reduce(bucket, async_op=True)
    now[0] = 2.0  # computed meanwhile
    first.wait()
    assert link.waited == 1.0
    second.wait()
    assert link.waited == 4.0 and link.now() == 6.0
    second.wait()
    assert link.waited == 4.0
    row = overlap.Hidden(4, 50e6, 2.0, {"after": 6.0, "during": 1.5})
    assert overlap.as_markdown([row]).splitlines()[-1] == "| 4 | 50 | 2.00 | 6.00 | 1.50 | 75% |"


def test_the_scale_test_places_what_the_platform_plans(tmp_path: Path) -> None:
    cluster = ClusterInfo(64, 32, 4)
    recipe = scale.recipe_for(32, "platform.num_workers=[8,32]")
    for gpus, workers in ((32, 32), (24, 24)):
        plan = make_plan(recipe, ClusterInfo(2 * gpus, gpus, gpus // 8))
        found = (plan.num_workers, plan.cpus_per_worker, plan.gpus_per_worker, plan.elastic)
        assert found == (workers, 2, 1, (8, 32))
    trials = [scale.recipe_for(1, "platform.num_workers=1")] * 64
    room = capacity(SweepDefinition(), trials, cluster)
    assert (room.slots, room.gpus, room.workers) == (32, 1, 1)
    phases = [scale.Phase("launch", 32, 1.234, 30.06, 0, 0, "8 + 8"), scale.Phase("seen", 24, None, 5, 0, 1)]
    scale.write(phases, tmp_path)
    table = (tmp_path / "scale.md").read_text().splitlines()
    assert table[2:] == [
        "| launch | 32 | 1.23 | 30.1 | 0 | 0 | 8 + 8 |",
        "| seen | 24 | - | 5.0 | 0 | 1 |  |",
    ]
    assert json.loads((tmp_path / "scale.json").read_text())[1]["leaked"] == 1
