"""The files of a decoding, its table and the page of the worst; and dealing batches to workers."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from d2v_platform.inference import decoding, spread
from d2v_platform.inference.decoding import DecodingJob, Search
from d2v_platform.inference.outputs import write_outputs
from d2v_platform.training.ray_session import ClusterInfo
from data2vec.errors import Data2VecError, DataError
from data2vec.speech_metrics import word_errors


def record(number: int, reference: str | None, hypothesis: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": number, "file": f"{number}.flac", "seconds": 1.5 + number, "hypothesis": hypothesis,
        "units": " ".join(hypothesis), "score": -float(number), "words": [("A", 0, 0.25)], "nbest": [],
        "model_s": 0.5, "search_s": 0.25, **more,
    }  # fmt: skip
    if reference is not None:
        errors = word_errors(reference, hypothesis)
        found |= {
            "reference": reference, "reference_units": " ".join(reference),
            "substitutions": errors.substitutions, "deletions": errors.deletions,
            "insertions": errors.insertions, "reference_words": errors.reference,
        }  # fmt: skip
    return found


# One word replaced of four; nothing wrong; two missing of three and one of those at the front; one too many.
RECORDS = [
    record(2, "ONE TWO SIX", "SIX"),
    record(0, "A MAN HAS TWO", "A MAN AS TWO"),
    record(3, "TWO", "TWO TWO"),
    record(1, "YES", "YES", nbest=[("YES", -1.0), ("YET", -3.0)]),
]


def test_the_references_files_and_the_table(tmp_path: Path) -> None:
    write_outputs(tmp_path, RECORDS, {"type": "viterbi", "beam": 5}, 10)
    names = ("hypo.word", "ref.units", "asr_score", "wer")
    read = {name: (tmp_path / name).read_text().splitlines() for name in names}
    assert read["hypo.word"] == [
        "A MAN AS TWO (None-0)", "YES (None-1)", "SIX (None-2)", "TWO TWO (None-3)",
    ]  # fmt: skip
    assert read["ref.units"][1] == "Y E S (None-1)" and read["asr_score"][2:] == [
        "-2.0 (None-2)",
        "-3.0 (None-3)",
    ]
    assert read["wer"][:2] == [f"WER: {100 * 4 / 9}", "err / num_ref_words = 4 / 9"]
    assert read["wer"][-2:] == ["type: viterbi", "beam: 5"]
    table: Any = pd.read_parquet(tmp_path / "utterances.parquet")
    assert table["id"].tolist() == [0, 1, 2, 3]
    assert table["wer"].tolist() == pytest.approx([25.0, 0.0, 200 / 3, 100.0])
    for name, counts in {
        "substitutions": [1, 0, 0, 0],
        "deletions": [0, 0, 2, 0],
        "insertions": [0, 0, 0, 1],
    }.items():
        assert table[name].tolist() == counts, name
    assert list(table["words"][0]) == [{"text": "A", "start_s": 0.0, "end_s": 0.25}]
    assert [n["score"] for n in json.loads(pd.read_csv(tmp_path / "utterances.csv")["nbest"][1])] == [
        -1.0,
        -3.0,
    ]


def test_without_references_there_are_no_rates(tmp_path: Path) -> None:
    write_outputs(tmp_path, [record(0, None, "YES"), record(1, None, "")], {}, 10)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"hypo.word", "hypo.units", "asr_score", "utterances.parquet", "utterances.csv"}
    assert "wer" not in pd.read_parquet(tmp_path / "utterances.parquet")


def test_the_hash_of_the_settings_names_the_file(tmp_path: Path) -> None:
    for beam in (5, 6, 5):
        write_outputs(tmp_path, RECORDS, {"beam": beam}, 1, unique_wer_file=True)
    assert len(list(tmp_path.glob("wer.*"))) == 2 and not (tmp_path / "wer").exists()


def test_the_page_shows_the_worst_first_and_what_was_confused(tmp_path: Path) -> None:
    records = [*RECORDS, record(4, "HAS HAS", "AS AS <&>")]
    write_outputs(tmp_path, records, {"beam": 5}, 3, subset="dev")
    page = (tmp_path / "worst.html").read_text()
    tables = []
    for table in re.findall(
        r"<table.*?</table>", page.replace("<code>", "").replace("</code>", ""), re.DOTALL
    ):
        rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        tables.append([re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows])
    figures, worst, confused = tables[:3]
    assert "dev: WER 63.64 %" in page and "The 3 worst utterances" in page
    assert dict(figures) == {  # type: ignore[arg-type]
        "word error rate": "63.64 %", "errors": "7 in 11 words", "utterances without error": "1 of 5",
        "substitutions, deletions, insertions": "3, 2, 2",
    }  # fmt: skip
    assert [row[:3] for row in worst[1:]] == [
        ["4", "3 / 2", "5.5"],
        ["2", "2 / 3", "3.5"],
        ["0", "1 / 4", "1.5"],
    ]
    assert worst[1][3] == "<del>HAS HAS</del>" and "&lt;&amp;&gt;" in worst[1][4]
    assert worst[2][3:5] == ["<del>ONE TWO</del> SIX", "SIX"]
    assert confused[1] == ["2", "HAS", "AS"] and ["1", "ONE", "(nothing)"] in confused
    assert ["1", "(nothing)", "TWO"] in confused


class Answer:
    """What Ray promises; it is there at once."""

    def __init__(self, value: Any) -> None:
        self.value = value


class TaskError(Exception):
    """What a worker's exception arrives as."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a trace of many lines")
        self.cause = cause


class FakeRay(ModuleType):
    """As much of Ray as dealing batches takes; the newest answer is the first to come."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.workers: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.RayTaskError = TaskError  # type: ignore[attr-defined]
        self.util = ModuleType("ray.util")
        self.util.ActorPool = Pool  # type: ignore[attr-defined]

    def remote(self, **resources: Any) -> Any:
        self.asked.append(resources)

        def made(kind: Any, job: DecodingJob) -> Any:
            self.workers.append(kind(job))
            decode = self.workers[-1].decode
            return SimpleNamespace(decode=SimpleNamespace(remote=lambda part: Answer(decode(part))))

        return lambda kind: SimpleNamespace(remote=lambda job: made(kind, job))


class Pool:
    """Its workers in turn, the last answer first."""

    def __init__(self, workers: list[Any]) -> None:
        self.workers = workers

    def map_unordered(self, call: Any, parts: list[Any]) -> Iterator[Any]:
        answers = [call(self.workers[i % len(self.workers)], part) for i, part in enumerate(parts)]
        return iter([answer.value for answer in reversed(answers)])


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> DecodingJob:
    """Seven utterances in batches of two, whose records are their ids."""
    batches = [[6, 5], [4, 3], [2, 1], [0]]
    monkeypatch.setattr(spread, "open_dataset", lambda job: range(7))
    monkeypatch.setattr(spread, "batches", lambda dataset, job: batches)
    monkeypatch.setattr(spread, "decode_batch", lambda job, dataset, part: [{"id": i} for i in part])
    monkeypatch.setattr(spread, "all_records", lambda job, parts: ([{"id": i} for i in p] for p in parts))
    search = Search(kind="viterbi", unit=False, lexicon=None, language_model=None, beam=())
    return DecodingJob(model="/m", data="/d", subset="dev", labels=None, max_tokens=1, batch_size=None,
               max_sample_size=None, min_sample_size=None, search=search, threads=4)  # fmt: skip


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """In the place of Ray."""
    found = FakeRay()
    for name, module in (("", found), (".util", found.util), (".exceptions", found.exceptions)):
        monkeypatch.setitem(sys.modules, f"ray{name}", module)
    return found


@pytest.mark.parametrize(("wanted", "made"), [(0, 0), (3, 3), (9, 4)])
def test_every_utterance_once_and_in_order_whoever_decodes_it(
    job: DecodingJob, wanted: int, made: int, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "job_on_this_node", lambda job: job)
    cluster = ClusterInfo(8, 3, 1)
    monkeypatch.setattr(spread, "connected", lambda: contextlib.nullcontext(cluster))
    assert spread.decode_subset(job, wanted) == [{"id": i} for i in range(7)]
    assert len(ray.workers) == made, "no more workers than batches"
    assert all(worker.job.threads == 1 for worker in ray.workers)
    assert [asked["num_gpus"] for asked in ray.asked] == [0.0] * bool(wanted)
    if wanted:
        spread.decode_subset(replace(job, device="cuda"), wanted)
        assert ray.asked[-1]["num_gpus"] == {3: 1.0, 4: 0.5}[made], "two thirds of a GPU do not pack"
        cluster = ClusterInfo(2, 0, 1)
        with pytest.raises(DataError, match="the Ray cluster has no GPU"):
            spread.decode_subset(replace(job, device="cuda"), wanted)
        spread.decode_subset(job, wanted)
        assert len(ray.workers) == 2 * made + 2, "and no more than the cluster holds"


@pytest.mark.parametrize(
    ("cause", "told"),
    [(Data2VecError("task.data is not on the node b"), "is not on the node b"), (ValueError(), "a trace")],
)
def test_a_mistake_that_a_worker_meets_is_told_in_its_own_words(
    job: DecodingJob, cause: Exception, told: str, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def met(job: DecodingJob) -> DecodingJob:
        raise TaskError(cause)

    monkeypatch.setattr(spread, "job_on_this_node", met)
    monkeypatch.setattr(spread, "connected", lambda: contextlib.nullcontext(ClusterInfo(8, 0, 2)))
    with pytest.raises(type(cause) if told != "a trace" else TaskError, match=told):
        spread.decode_subset(job, 2)


def test_a_worker_brings_what_its_node_lacks_by_its_name(
    job: DecodingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, words = tmp_path / "here", tmp_path / "words.txt"
    here.mkdir()
    words.touch()
    asked: list[str] = []

    def bring(name: str) -> Any:
        asked.append(name)
        return str(here)

    monkeypatch.setattr(decoding, "model_folder", lambda name: (bring(name), name))
    monkeypatch.setattr(decoding, "local_data", bring)
    search = replace(job.search, kind="fairseqlm", language_model="/driver/lm", lexicon=str(words))
    search = replace(search, language_model_name="models:/lm/2")
    named = replace(job, search=search, model_name="models:/ctc/1", data_name="s3://b/speech")
    found = decoding.job_on_this_node(named)
    assert (found.model, found.data, found.search.language_model) == (str(here),) * 3
    assert sorted(asked) == ["models:/ctc/1", "models:/lm/2", "s3://b/speech"]
    there = replace(found, search=replace(found.search, language_model=str(words)))
    assert decoding.job_on_this_node(there) == there and len(asked) == 3, "what is there is taken"
    ngrams = replace(there.search, kind="kenlm", language_model="/driver/lm.arpa", language_model_name=None)
    for field, wrong in (
        ("decoding.lmpath", replace(there, search=ngrams)),
        ("decoding.lexicon", replace(there, search=replace(there.search, lexicon="/driver/words"))),
    ):
        with pytest.raises(Data2VecError, match=rf"{field} = '/driver/.*' is not on the node"):
            decoding.job_on_this_node(wrong)


@pytest.mark.parametrize(
    ("ids", "told"),
    [([0, 1, 2], "3 of 7 utterances"), ([*range(7), 3], "8 of 7"), ([0, *range(6)], "decoded, 6 different")],
)
def test_lost_and_doubled_utterances_are_no_result(
    job: DecodingJob, ids: list[int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "all_records", lambda job, parts: [[{"id": i} for i in ids]])
    with pytest.raises(DataError, match=told):
        spread.decode_subset(job, 0)
