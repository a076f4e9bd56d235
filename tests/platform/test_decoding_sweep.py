"""Tuning a decoder: emissions stored once, a searcher that finds, trials that resume, workers that agree."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from d2v_platform.inference import emissions as store
from d2v_platform.inference.command import infer
from d2v_platform.inference.options import read_options
from d2v_platform.sweeps.command import decoding_definition, sweep_main
from d2v_platform.sweeps.decoding_search import decode_with, decoding_sweep_main, read_trials
from d2v_platform.sweeps.decoding_sweep import read_sweep
from d2v_platform.sweeps.improvement import ExpectedImprovement, next_point, spread_points
from data2vec.ctc_decoding import BeamOptions, LexiconBeam
from data2vec.data.letters import released_letters
from data2vec.errors import ConfigError, Data2VecError
from data2vec.language_model import NgramModel, lexicon_text

BOUNDS = {"lmweight": (0.0, 5.0), "wordscore": (-5.0, 5.0), "silweight": (-8.0, 0.0)}


@pytest.fixture
def words(ctc_model: Path, utterances: Path, tmp_path: Path) -> list[str]:
    pytest.importorskip("flashlight.lib.text.decoder")
    (tmp_path / "lm.arpa").write_text(NgramModel.estimate([["ONE", "TWO"], ["A", "TWO"]], 2).arpa())
    (tmp_path / "lexicon").write_text(lexicon_text(["ONE", "TWO", "A", "AN"]))
    return [f"task.data={utterances}", f"common_eval.path={ctc_model}", "dataset.gen_subset=dev",
            "decoding.type=kenlm", f"decoding.lexicon={tmp_path}/lexicon", "decoding.beam=10",
            f"decoding.lmpath={tmp_path}/lm.arpa", "common.cpu=true"]  # fmt: skip


def definition() -> Path:
    found = decoding_definition("decoding", None)
    assert found is not None
    return found


def valley(point: dict[str, float]) -> float:
    return (
        (point["lmweight"] - 1.3) ** 2 + 0.3 * (point["wordscore"] - 2) ** 2 + 0.1 * point["silweight"] ** 2
    )


def test_the_searcher_finds_a_valley_in_fewer_trials_than_chance() -> None:
    spread = spread_points(BOUNDS, 32, 1)
    assert spread == spread_points(BOUNDS, 32, 1) != spread_points(BOUNDS, 32, 2)
    for name, (low, high) in BOUNDS.items():
        values = sorted(point[name] for point in spread)
        assert low <= values[0] and values[-1] <= high
        assert max(np.diff(values)) < (high - low) / 8, "evenly spread in every direction"
    tried = [(point, valley(point)) for point in spread[:8]]
    for number in range(16):
        point = next_point(BOUNDS, tried, [], number)
        tried.append((point, valley(point)))
    assert min(v for _, v in tried) < 0.3 < min(valley(p) for p in spread_points(BOUNDS, 24, 1))


def test_trials_side_by_side_do_not_ask_the_same() -> None:
    tried = [(point, valley(point)) for point in spread_points(BOUNDS, 8, 1)]
    first = next_point(BOUNDS, tried, [], 5)
    second = next_point(BOUNDS, tried, [first], 5)
    assert max(abs(first[name] - second[name]) for name in BOUNDS) > 0.05
    search = ExpectedImprovement(BOUNDS, 4, 1, known=tried[:3])
    assert search.suggest("a") not in (None, "FINISHED") and search.suggest("b") == "FINISHED"


def test_emissions_are_computed_once_and_decode_as_inference_does(
    words: list[str], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = read_sweep(words, definition())
    whole = store.np.save

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        store.stored_emissions(sweep.job)
    monkeypatch.setattr(store.np, "save", whole)
    first, there = store.stored_emissions(sweep.job)
    assert not there, "what a killed run left is not taken"
    monkeypatch.setattr(store, "compute_emissions", None)
    again, there = store.stored_emissions(sweep.job)
    assert there and again.folder == first.folder and len(again.utterances) == 11
    weights = {"lmweight": 0.7, "wordscore": 6.0, "silweight": -0.5}
    own = [f"decoding.{name}={value}" for name, value in weights.items()]
    rates = infer(read_options([*words, *own, f"common_eval.results_path={tmp_path}/out"])[0])
    found = decode_with(sweep.job, first.folder, weights, None, 1)
    assert found.rate == pytest.approx(rates["dev"]) and found.reference == 22
    few = decode_with(sweep.job, first.folder, weights, 4, 1)
    assert few.reference == 8 and few == decode_with(sweep.job, first.folder, weights, 4, 1)
    other = read_sweep([*words, "task.min_sample_size=6000"], definition())
    assert store.emission_folder(other.job) != first.folder, "other utterances have another store"
    trained_on = shutil.copytree(sweep.job.model, tmp_path / "other")
    assert store.emission_folder(replace(sweep.job, model=str(trained_on))) == first.folder
    weights_file = trained_on / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"?")
    assert store.emission_folder(replace(sweep.job, model=str(trained_on))) != first.folder


def test_a_decoder_with_other_numbers_is_the_same_as_a_new_one(words: list[str], tmp_path: Path) -> None:
    letters, draw = released_letters(), np.random.default_rng(3)
    emissions = draw.normal(0, 3, (60, len(letters))).astype(np.float32)
    paths = (tmp_path / "lexicon", tmp_path / "lm.arpa")
    base = LexiconBeam(letters, *paths, BeamOptions(beam=50))
    for weight, score in ((0.0, 20.0), (3.0, 10.0), (0.0, 20.0)):
        options = BeamOptions(beam=30, lm_weight=weight, word_score=score, sil_weight=-1)
        wanted = LexiconBeam(letters, *paths, options).decode(emissions)
        assert base.with_options(options).decode(emissions) == wanted and wanted[0].text
    with pytest.raises(ConfigError, match="beam"):
        base.with_options(BeamOptions(beam=0))


def test_every_mistake_is_told_at_once(words: list[str], utterances: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(
            [*words, "search.trials=0", "search.lmweight=[3,1]", "search.wordscore=[1,1]",
             "decoding.beam=0", "dataset.gen_subset=dev,test", "platform.run_name=a/b"],
            definition(),
        )  # fmt: skip
    fields = {problem.field for problem in caught.value.problems}
    assert {"search.trials", "search.lmweight", "decoding.beam", "platform.run_name"} <= fields
    with pytest.raises(ConfigError, match="nothing to tune"):
        read_sweep([*words, "decoding.type=viterbi"], definition())
    with pytest.raises(ConfigError, match="trails"):
        read_sweep([*words, "search.trails=3"], definition())
    with pytest.raises(Data2VecError, match="no labels"):
        read_sweep([*words, "dataset.gen_subset=test"], definition())


@pytest.mark.slow
def test_a_tuning_on_a_cluster_goes_on_where_it_stopped(
    ray_cluster: Any, words: list[str], tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tuning = [*words, "platform.run_name=tuned", "search.wordscore=[4,9]"]
    sweep_main(["decoding", *tuning, "search.trials=4"])
    root = home / "sweeps/tuned"
    before = read_trials(root)
    assert [trial.number for trial in sorted(before, key=lambda t: t.number)] == [0, 1, 2, 3]
    with (root / "trials.jsonl").open("a") as file:
        file.write('{"number": 4, "lmwei')  # a driver killed in the middle of a line
    sweep_main(["decoding", *tuning, "search.trials=6", "--plan"])
    assert "6 trials, 4 done" in caplog.text and "emissions of" in caplog.text and "there" in caplog.text
    decoding_sweep_main([*tuning, "search.trials=6"], definition(), False)
    trials = read_trials(root)
    assert trials[:4] == before and len(trials) == 6
    assert len({json.dumps(trial.values) for trial in trials}) == 6
    best = json.loads((root / "best.json").read_text())
    assert best["wer"] == min(trial.wer for trial in trials)
    (command,) = [
        line for line in (root / "results.md").read_text().splitlines() if line.startswith("python exp")
    ]
    rates = infer(read_options(command.split()[2:])[0])
    assert rates["dev"] == pytest.approx(best["wer"]), "the printed command gives the printed rate"
    with pytest.raises(ConfigError, match=r"decoding.beam = 11.*was 10 under this name"):
        sweep_main(["decoding", *tuning, "decoding.beam=11"])

    files = {}
    for workers in (0, 2):
        out = tmp_path / f"k{workers}"
        more = [f"distributed_training.distributed_world_size={workers or 1}", "dataset.max_tokens=30000"]
        options, _ = read_options([*words, *more, f"common_eval.results_path={out}"])
        assert options.platform.num_workers == workers
        infer(options)
        files[workers] = {f.name: f.read_text() for f in out.glob("*.*") if f.name[:4] in ("hypo", "ref.")}
        table = pd.read_parquet(out / "utterances.parquet")
        files[workers]["table"] = table[["id", "hypothesis", "wer"]].to_csv()
    assert files[0] == files[2] and len(files[0]) == 5


def test_stored_trials_are_whole(tmp_path: Path) -> None:
    assert read_trials(tmp_path) == []
    sample = {"number": 0, "lmweight": 1.0, "wordscore": 0.0, "silweight": 0.0, "wer": 5.0, "errors": 1,
              "words": 20, "seconds": 0.1}  # fmt: skip
    (tmp_path / "trials.jsonl").write_text(json.dumps(sample) + "\nno json\n")
    (found,) = read_trials(tmp_path)
    assert asdict(found) == sample
