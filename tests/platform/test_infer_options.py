"""``infer`` reads files and command lines as training does: folders, overrides, references, notes."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from d2v_platform.inference.command import infer_each
from d2v_platform.inference.options import DecodingOptions, read_options, read_runs
from d2v_platform.inference.spread import pool_size
from d2v_platform.training.ray_session import ClusterInfo
from data2vec.errors import ConfigError, Data2VecError, DataError

# Written for this test after the conventions of the reference's file.
REFERENCE = """\
# @package _group_
defaults:
  - task: null
  - model: null
hydra:
  run: {dir: "${common_eval.results_path}/${dataset.gen_subset}"}
  sweep: {dir: "/nowhere/${env:NOT_SET}/x"}
common: {user_dir: /somebody/elses/code}
common_eval: {results_path: null, path: null, post_process: letter, quiet: true}
dataset: {max_tokens: 3000000, gen_subset: test}
distributed_training: {distributed_world_size: 1}
decoding: {beam: 5, type: viterbi}
"""
NEEDED = ("task.data=/x", "common_eval.path=models:/m/1")


@pytest.fixture
def conf(tmp_path: Path) -> str:
    folder = tmp_path / "fairseq/examples/speech_recognition/new/conf"
    folder.mkdir(parents=True)
    (folder / "infer.yaml").write_text(REFERENCE, encoding="utf-8")
    return str(folder)


def test_the_references_file_and_its_readmes_command(conf: str, tmp_path: Path) -> None:
    for name in ("lexicon", "lm"):
        (tmp_path / name).touch()
    line = ["--config-dir", conf, "--config-name", "infer", "task=audio_finetuning",
            "task.data=/path/to/manifests", "common.user_dir=examples/data2vec", "task.labels=ltr",
            "decoding.type=kenlm", "decoding.lmweight=1.5", "decoding.wordscore=-0.5",
            "decoding.silweight=-2", f"decoding.lexicon={tmp_path}/lexicon", f"decoding.lmpath={tmp_path}/lm",
            "decoding.unique_wer_file=True", "dataset.gen_subset=dev_clean,dev_other,test_clean,test_other",
            "common_eval.path=/path/to/checkpoint.pt", "decoding.beam=1500",
            "distributed_training.distributed_world_size=4"]  # fmt: skip
    options, notes = read_options(line)
    assert options.decoding == DecodingOptions(
        type="kenlm", lmweight=1.5, wordscore=-0.5, silweight=-2.0, beam=1500, unique_wer_file=True,
        lexicon=f"{tmp_path}/lexicon", lmpath=f"{tmp_path}/lm",
    )  # fmt: skip
    assert options.subsets() == ["dev_clean", "dev_other", "test_clean", "test_other"]
    assert (options.task.data, options.task.labels) == ("/path/to/manifests", "ltr")
    assert (options.common_eval.path, options.platform.num_workers) == ("/path/to/checkpoint.pt", 4)
    text = "\n".join(notes)
    for key in ("common.user_dir", "common_eval.post_process", "common_eval.quiet", "task._name", "hydra",
                "distributed_training.distributed_world_size: read as platform.num_workers = 4"):  # fmt: skip
        assert text.count(key) == 1, key


def test_the_files_own_values_stand(conf: str) -> None:
    options, notes = read_options(["--config-dir", conf, *NEEDED])
    assert (options.decoding.beam, options.dataset.gen_subset) == (5, "test")
    assert options.platform.num_workers == 0 and "distributed_world_size" not in "".join(notes)
    assert read_options(["--config-dir", conf, "~decoding.beam", *NEEDED])[0].decoding.beam == 50


@pytest.mark.parametrize("where", ["examples/speech_recognition/new/conf", "/f/fairseq/configs", None])
def test_our_file_stands_for_the_references(where: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    given = ["--config-dir", where] if where else []
    options, notes = read_options([*given, *NEEDED])
    assert options.dataset.max_tokens == 3_000_000 and notes == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--config-dir /nope", r"--config-dir = '/nope' +no such folder"),
        ("--config-name infr", "did you mean 'infer'"),
        ("infr", "did you mean 'infer'"),
        ("infer other", "one recipe at a time"),
        ("--plan", "unknown option '--plan'"),
        ("~decoding.lexicon", r"~decoding\.lexicon.*nothing to remove"),
        ("decoding.lmweight=1,2", "add -m"),
        ("-m decoding.lmweight=1,x decoding.beam=5,0", r"(?s)decoding\.beam = 0.*lmweight = 'x'"),
        ("decoding=viterbi", r"decoding = 'viterbi' +must be a mapping"),
        ("decoding.beem=5", r"decoding\.beem = 5 +unknown key; did you mean 'beam'"),
        ("model.x=1", "model = .* unknown key"),
        ("dataset.gen_subset=${env:NOT_SET}", r"dataset\.gen_subset = '\$\{oc\.env:NOT_SET\}'"),
        ("decoding.results_path=/a common_eval.results_path=/b", r"contradicts common_eval\.results_path"),
        ("common.cpu=true platform.device=cuda", r"contradicts platform\.device"),
    ],
)  # fmt: skip
def test_mistakes_are_told(words: str, told: str) -> None:
    with pytest.raises(Data2VecError, match=told):
        read_options([*NEEDED, *words.split()])


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_options(["decoding.type=kenlm", "decoding.beam=0", "dataset.gen_subset=''",
                      "decoding.lexicon=/no", "dataset.max_tokens=0", "dataset.batch_size=0",
                      "platform.worst=-1"])  # fmt: skip
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {
        "task.data", "common_eval.path", "decoding.lmpath", "decoding.lexicon", "decoding.beam",
        "dataset.gen_subset", "dataset.max_tokens", "dataset.batch_size", "platform.worst",
    }  # fmt: skip


def test_a_model_over_letters_needs_no_lexicon() -> None:
    words = [*NEEDED, "decoding.type=fairseqlm", "decoding.lmpath=models:/lm/1"]
    assert read_options([*words, "decoding.unitlm=true"])[0].decoding.unitlm
    with pytest.raises(ConfigError, match=r"decoding\.lexicon.*or set decoding\.unitlm=true"):
        read_options(words)


def test_a_decoder_that_is_not_described_is_the_references() -> None:
    wanted = {"type": "viterbi", "nbest": 1, "unitlm": False, "lmpath": None, "lexicon": None, "beam": 50,
              "beamthreshold": 50.0, "beamsizetoken": None, "wordscore": -1.0, "unkweight": -math.inf,
              "silweight": 0.0, "lmweight": 2.0, "unique_wer_file": False}  # fmt: skip
    assert vars(DecodingOptions()) == wanted


def test_the_decoders_numbers_keep_their_names() -> None:
    given = {"beam": 7, "beamthreshold": 8.5, "beamsizetoken": 9, "lmweight": 1.5, "wordscore": -2.5,
             "silweight": 3.5, "unkweight": -4.5, "nbest": 6}  # fmt: skip
    options = read_options([*NEEDED, *(f"decoding.{name}={value}" for name, value in given.items())])[0]
    found = vars(options.decoding.beam_options())
    assert {name.replace("_", ""): value for name, value in found.items()} == given


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "infer.yaml").write_text("decoding:\n  beam: 5\n    type: viterbi\n", encoding="utf-8")
    with pytest.raises(Data2VecError, match=r"(?s)infer\.yaml cannot be read.*line 3"):
        read_options(["--config-dir", str(tmp_path), *NEEDED])


def test_the_launchers_words_have_no_effect(conf: str) -> None:
    plain, _ = read_options(["--config-dir", conf, *NEEDED])
    words = ["-m", "+run_config=fb_slurm_1", "hydra/sweeper=ax", "hydra/launcher=x", "hydra.sweep.dir=/x",
             "checkpoint.save_dir=/x", "optimization.lr=[1]"]  # fmt: skip
    options, notes = read_options(["--config-dir", conf, *words, *NEEDED])
    assert options == plain
    assert any(note.startswith("run_config, hydra/sweeper, hydra/launcher, hydra.sweep.dir: no effect")
               for note in notes)  # fmt: skip
    assert "checkpoint, optimization: no effect here; nothing is trained" in notes


def test_values_are_read_as_in_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text(
        "# @package _global_\ndefaults: [/infer, _self_]\n"
        "decoding: {unkweight: -inf, beamthreshold: 1e2}\ncommon_eval: {results_path: '${task.data}/007'}\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    options, _ = read_options(["--config-dir", ".", "own", "task.data=here",
                               "common_eval.path=~/m.pt\\\\n.pt", "task.labels=1e3"])  # fmt: skip
    assert (options.decoding.unkweight, options.decoding.beamthreshold) == (-math.inf, 100.0)
    assert options.task.labels == "1e3" and options.dataset.max_tokens == 3_000_000
    assert options.common_eval.results_path == f"{tmp_path}/here/007" == f"{options.task.data}/007"
    assert options.common_eval.path == str(Path.home() / "m.pt")


def test_m_with_commas_runs_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["-m", *NEEDED, "decoding.beam=5,10", "platform.worst=1,2", "dataset.gen_subset=dev,test"]
    runs, _ = read_runs(words)
    assert [(name, o.decoding.beam, o.platform.worst) for name, o in runs.items()] == [
        ("decoding.beam=5 platform.worst=1", 5, 1), ("decoding.beam=5 platform.worst=2", 5, 2),
        ("decoding.beam=10 platform.worst=1", 10, 1), ("decoding.beam=10 platform.worst=2", 10, 2),
    ]  # fmt: skip
    with pytest.raises(Data2VecError, match=r"one inference at a time.*decoding\.beam=5"):
        read_options(words)
    done: list[tuple[int, str | None]] = []
    monkeypatch.setattr(
        "d2v_platform.inference.command.infer",
        lambda options, _: done.append((options.decoding.beam, options.common_eval.results_path)),
    )
    infer_each(["-m", *NEEDED, "decoding.beam=5,10", f"common_eval.results_path={tmp_path}"], "infer")
    assert done == [(5, f"{tmp_path}/0"), (10, f"{tmp_path}/1")]
    done.clear()
    with caplog.at_level(logging.INFO):
        infer_each(["-m", *NEEDED, "decoding.beam=5,10", "common.user_dir=/x"], "infer")
    assert "common.user_dir: no effect here" in caplog.text
    (_, first), (_, second) = done
    assert first and second and Path(first).parent == Path(second).parent, "one folder for both"
    infer_each([*NEEDED, "decoding.beam=7", f"common_eval.results_path={tmp_path}"], "infer")
    assert done[-1] == (7, str(tmp_path))


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        infer_each(["--help"], "python experiments/infer.py")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "python experiments/infer.py task.data=/manifests" in shown and "--plan" not in shown


def test_no_more_workers_than_the_cluster_holds() -> None:
    assert pool_size(ClusterInfo(2, 0, 1), 64, "cpu") == (2, 0.0)
    assert pool_size(ClusterInfo(8, 0, 1), 3, "cpu") == (3, 0.0)
    assert pool_size(ClusterInfo(3, 0, 2), 3, "cpu") == (2, 0.0), "half a CPU on each of two nodes is none"
    assert pool_size(ClusterInfo(16, 2, 1), 3, "auto") == (3, 0.5), "two thirds of a GPU do not pack"
    assert pool_size(ClusterInfo(16, 2, 1), 2, "cuda") == (2, 1.0)
    assert pool_size(ClusterInfo(16, 4, 1), 2, "cuda") == (2, 1.0)
    with pytest.raises(DataError, match="the Ray cluster has no GPU"):
        pool_size(ClusterInfo(16, 0, 1), 2, "cuda")
    with pytest.raises(DataError, match=r"2 nodes of 0\.5 CPUs"):
        pool_size(ClusterInfo(1, 0, 2), 2, "cpu")
