"""Decoding of subsets: options in the reference's form, output files, transcripts; nothing is lost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import data2vec
from d2v_platform.inference import decoding, spread
from d2v_platform.inference.command import infer
from d2v_platform.inference.options import DecodingOptions, InferOptions, TaskOptions, read_options
from d2v_platform.inference.outputs import own_results
from d2v_platform.inference.subtitles import cues, subtitles
from d2v_platform.inference.transcription import transcribe_command
from d2v_platform.storage.cache import local_data
from data2vec.artifact import save_artifact
from data2vec.audio_model import AudioModel
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import released_letters
from data2vec.errors import Data2VecError, DataError
from data2vec.language_model import NgramModel, lexicon_text
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.transformer import TransformerLM


def test_every_utterance_is_decoded_and_the_files_are_the_references(
    ctc_model: Path, utterances: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options, notes = read_options(
        ["--config-dir", "examples/speech_recognition/new/conf", "--config-name", "infer", "-m",
         "task=audio_finetuning", f"task.data={utterances}", "task.labels=ltr",
         f"common_eval.path={ctc_model}", "dataset.gen_subset=dev,test",
         f"common_eval.results_path={out}", "dataset.max_tokens=30000",
         "common.user_dir=examples/data2vec", "decoding.type=viterbi"]
    )  # fmt: skip
    assert any("common.user_dir" in note for note in notes)
    rates = infer(options)
    assert set(rates) == {"dev", "test"} and rates["test"] is None and rates["dev"] is not None
    words = (out / "dev/hypo.word").read_text().splitlines()
    assert len(words) == 11 and all(line.endswith(f"(None-{i})") for i, line in enumerate(words))
    assert (out / "dev/ref.word").read_text().splitlines()[3] == "ONE TWO (None-3)"
    assert (out / "dev/ref.units").read_text().startswith("O N E | T W O | (None-0)")
    first, second = (out / "dev/wer").read_text().splitlines()[:2]
    assert first == f"WER: {rates['dev']}" and second.endswith(" / 22")
    table = pd.read_parquet(out / "dev/utterances.parquet")
    assert table["id"].tolist() == list(range(11)) and {"wer", "words", "seconds"} <= set(table.columns)
    page = (out / "dev/worst.html").read_text()
    assert "<del>ONE" in page and f"WER {rates['dev']:.2f} %" in page
    assert not (out / "test/ref.word").exists() and (out / "test/hypo.word").is_file()


def test_a_language_model_forces_its_words(ctc_model: Path, utterances: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    (tmp_path / "lm.arpa").write_text(NgramModel.estimate([["ONE", "TWO"]], 2).arpa())
    (tmp_path / "lexicon").write_text(lexicon_text(["ONE", "TWO"]))
    options, _ = read_options(
        [f"task.data={utterances}", f"common_eval.path={ctc_model}", "dataset.gen_subset=dev",
         "decoding.type=kenlm", f"decoding.lexicon={tmp_path}/lexicon",
         f"decoding.lmpath={tmp_path}/lm.arpa", "decoding.beam=20",
         "decoding.wordscore=30", "decoding.unkweight=-inf", f"common_eval.results_path={tmp_path}/out"]
    )  # fmt: skip
    infer(options)
    said = {
        word for text in pd.read_csv(tmp_path / "out/utterances.csv")["hypothesis"] for word in text.split()
    }
    assert said and said <= {"ONE", "TWO"}


def test_words_of_a_language_model_stand_where_their_letters_are(
    ctc_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    (tmp_path / "lm.arpa").write_text(NgramModel.estimate([["ONE", "TWO"]], 2).arpa())
    (tmp_path / "lexicon").write_text(lexicon_text(["ONE", "TWO"]))
    sf.write(str(tmp_path / "a.wav"), 0.1 * np.random.default_rng(1).normal(size=16000), 16_000)
    letters = released_letters()
    said = {50: "O", 52: "N", 54: "E", 56: "|", 150: "T", 152: "W", 154: "O", 156: "|"}  # frame -> letter
    emissions_TV = np.full((200, len(letters)), -20.0, dtype=np.float32)
    for frame in range(200):
        emissions_TV[frame, letters.index(said[frame]) if frame in said else 0] = -0.01
    monkeypatch.setattr(AudioModel, "emissions_each", lambda _, given, **__: (emissions_TV for _ in given))
    transcribe_command(tmp_path / "a.wav", str(ctc_model), tmp_path / "out", tmp_path / "lexicon",
                       tmp_path / "lm.arpa", beam=20)  # fmt: skip
    words = json.loads((tmp_path / "out" / "a.json").read_text())["words"]
    assert [word["text"] for word in words] == ["ONE", "TWO"]
    loaded = data2vec.load(ctc_model)
    assert isinstance(loaded, AudioModel)
    step = loaded.frame_s
    assert [word["start_s"] for word in words] == pytest.approx([50 * step, 150 * step], abs=2 * step)
    assert [word["end_s"] for word in words] == pytest.approx([55 * step, 155 * step], abs=2 * step)

    # As d2v sweep decoding prints it, weights included; with subtitles.
    wanted: dict[str, Any] = {}
    kept = decoding.make_search
    monkeypatch.setattr(decoding, "make_search", lambda o, d: wanted.update(vars(o)) or kept(o, d))
    printed = [f"decoding.lexicon={tmp_path}/lexicon", f"decoding.lmpath={tmp_path}/lm.arpa",
               "decoding.type=kenlm", "decoding.lmweight=1.5", "decoding.wordscore=-0.25"]  # fmt: skip
    transcribe_command(tmp_path / "a.wav", str(ctc_model), tmp_path / "out2", subtitles=["srt", "vtt"],
                       chunk_s=10.0, overlap_s=1.0, decoding=printed)  # fmt: skip
    assert (wanted["lmweight"], wanted["wordscore"], wanted["type"]) == (1.5, -0.25, "kenlm")
    assert json.loads((tmp_path / "out2" / "a.json").read_text())["words"] == words
    assert (tmp_path / "out2" / "a.srt").read_text().startswith("1\n00:00:0")
    assert (tmp_path / "out2" / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:0")
    assert f"1 transcript written to {tmp_path / 'out2'} (NAME.txt, NAME.json" in capsys.readouterr().err


def test_options_of_a_transcription_that_cannot_be_are_refused(tmp_path: Path) -> None:
    refuse: list[tuple[dict[str, Any], str]] = [
        ({"subtitles": ["ass", "srt"]}, "--subtitles = 'ass' must be one of srt, vtt"),
        ({"subtitles": ["ass", "srt"]}, "--subtitles = 'ass, srt' needs --out FOLDER"),
        ({"chunk_s": 0.5}, "--chunk-s = 0.5 must be at least 1 second"),
        ({"chunk_s": 4.0, "overlap_s": 3.0}, "--overlap-s = 3.0 must lie in 0 ... 2"),
        ({"decoding": ["task.data=x", "decoding.beam=5"]}, "task.data=x: after the recordings only decoding"),
        (
            {"decoding": ["decoding.type=kenlm"]},
            "decoding.lmpath = None is required with decoding.type=kenlm",
        ),
        ({"beam": 7}, "--lexicon and --beam need --lm"),
    ]
    for given, words in refuse:
        with pytest.raises(Data2VecError) as caught:
            transcribe_command(tmp_path / "a.wav", "models:/x/1", **given)
        assert words in " ".join(str(caught.value).split())


def test_subtitles_are_cut_where_they_can_be_read() -> None:
    def word(text: str, start_s: float, end_s: float) -> dict[str, Any]:
        return {"text": text, "start_s": start_s, "end_s": end_s}

    words = [word("A<B", 3599.5, 3600.0015), word("C", 3600.9, 3601.0), word("D", 3602.1, 3603.0)]
    assert subtitles(words, "srt") == (
        "1\n00:59:59,500 --> 01:00:01,000\nA<B C\n\n2\n01:00:02,100 --> 01:00:03,000\nD\n"
    )
    assert subtitles(words[:1], "vtt") == "WEBVTT\n\n00:59:59.500 --> 01:00:00.002\nA&lt;B\n"
    assert subtitles([], "vtt") == "WEBVTT\n" and subtitles([], "srt") == ""
    steady = [word("W" * 9, n * 0.5, n * 0.5 + 0.5) for n in range(20)]  # 10 signs each with the space
    assert [len(cue) for cue in cues(steady)] == [8, 8, 4]
    slow = [word("W", n * 1.0, n * 1.0 + 1.0) for n in range(9)]
    assert [len(cue) for cue in cues(slow)] == [7, 2]


def test_a_batch_changes_no_utterance_and_shares_its_time(
    ctc_model: Path, utterances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = decoding.make_search(DecodingOptions(), "cpu")
    options = InferOptions()
    options.task.labels = "ltr"
    job = decoding.make_job(options, ctc_model, str(utterances), "dev", search)
    dataset = decoding.open_dataset(job)
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "time", SimpleNamespace(perf_counter=iter([10.0, 12.3]).__next__))
        _, frames, seconds = decoding.compute_emissions(job, dataset, [0, 10])
    assert frames[1] > 4 * frames[0] and seconds == pytest.approx([0.4, 1.9]), "4,000 and 19,000 samples"
    together = decoding.decode_batch(job, dataset, [0, 10])
    (alone,) = decoding.decode_batch(job, dataset, [0])
    for field in ("id", "file", "hypothesis", "units", "words", "reference", "substitutions"):
        assert together[0][field] == alone[field], field
    assert together[0]["score"] == pytest.approx(alone["score"], rel=1e-4), "padding is not scored"
    assert together[1]["seconds"] == pytest.approx(19_000 / 16_000, abs=1e-3)
    decoding.refuse_longer(dataset.manifest, 19_000)
    with pytest.raises(Data2VecError, match=r"1 of 11 recordings are longer.*first dev10\.wav"):
        decoding.refuse_longer(dataset.manifest, 18_999)


def test_a_node_with_a_home_of_its_own_brings_what_the_driver_has_and_decodes_the_same(
    ctc_model: Path, utterances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = fsspec.filesystem("memory")
    for name, folder in (("speech", utterances), ("model", ctc_model)):
        for file in folder.rglob("*.*"):
            if file.suffix != ".wav":  # which the manifest names where they are
                places.put_file(str(file), f"/{name}/{file.relative_to(folder)}")
    monkeypatch.setenv("D2V_HOME", str(tmp_path / "driver"))
    options = InferOptions(task=TaskOptions(data="memory://speech"))
    model, uri = decoding.model_folder("memory://model")
    search = decoding.make_search(DecodingOptions(), "cpu")
    job = decoding.make_job(options, model, local_data(options.task.data), "dev", search, uri)
    assert decoding.job_on_this_node(job) == job
    records = spread.decode_subset(job, 0)
    (tmp_path / "driver").rename(tmp_path / "gone")
    monkeypatch.setenv("D2V_HOME", str(tmp_path / "node"))
    here = decoding.job_on_this_node(job)
    for place in (here.model, here.data):
        assert Path(place).is_relative_to(tmp_path / "node" / "cache" / "data")
    told = ("hypothesis", "reference", "units", "score", "words")
    assert [[r[key] for key in told] for r in spread.decode_subset(here, 0)] == [
        [r[key] for key in told] for r in records
    ]
    nameless = dataclasses.replace(job, data_name="")
    with pytest.raises(Data2VecError, match=r"task.data = '.*/driver/.*' is not on the node"):
        decoding.job_on_this_node(nameless)


def language_model(folder: Path, symbols: list[str]) -> Path:
    """A small transformer with random weights."""
    dictionary = Dictionary(symbols, [1] * len(symbols))
    sizes = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 16, "decoder_layers": 1}
    config = TransformerLMConfig.from_dict({**sizes, "decoder_attention_heads": 2})
    network = TransformerLM(config, len(dictionary))
    return save_artifact(
        folder, kind="language_model", model_config=config, state=network.state_dict(), words=dictionary
    )


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The arguments of a decoding with a transformer over words."""
    pytest.importorskip("flashlight.lib.text.decoder")
    (tmp_path / "lexicon").write_text(lexicon_text(["ONE", "TWO", "AN", "A"]))
    lm = language_model(tmp_path / "lm", ["TWO", "A", "ONE", "AN"])
    return ["decoding.type=fairseqlm", f"decoding.lexicon={tmp_path}/lexicon", f"decoding.lmpath={lm}",
            "decoding.beam=20", "decoding.wordscore=20", "decoding.nbest=2"]  # fmt: skip


def test_a_transformer_scores_the_words(
    ctc_model: Path, utterances: Path, tmp_path: Path, words: list[str]
) -> None:
    listed = f"common_eval.path={ctc_model}\\\\{ctc_model}"
    common = [f"task.data={utterances}", listed, "dataset.gen_subset=dev", "common.cpu=true"]
    options, notes = read_options(
        [*common, *words, f"decoding.results_path={tmp_path}/out", "decoding.unique_wer_file=true"]
    )
    assert options.platform.device == "cpu" and options.common_eval.path == str(ctc_model)
    assert any("the first model is used" in note for note in notes)
    infer(options)
    table = pd.read_parquet(tmp_path / "out/utterances.parquet")
    said = {word for text in table["hypothesis"] for word in text.split()}
    assert said and said <= {"ONE", "TWO", "AN", "A"}
    for row in table.itertuples():
        assert [w["text"] for w in row.words] == row.hypothesis.split()
        assert all(0 <= w["start_s"] < w["end_s"] <= row.seconds + 0.1 for w in row.words)
        assert row.nbest[0]["text"] == row.hypothesis and row.nbest[0]["score"] >= row.nbest[1]["score"]
    assert json.loads(pd.read_csv(tmp_path / "out/utterances.csv")["words"][3])[0]["text"] in said
    (wer,) = (tmp_path / "out").glob("wer.*")
    assert wer.suffix[1:].isdecimal() and "lmweight: 2.0" in wer.read_text()
    page = (tmp_path / "out/worst.html").read_text()
    assert "<ins>" in page and "http" not in page and "<script" not in page


def test_a_transformer_over_letters(
    ctc_model: Path, utterances: Path, tmp_path: Path, words: list[str]
) -> None:
    lm = language_model(tmp_path / "letters", list("|ETAOINHSRDLUMWCFGYPBVK'XJQZ"))
    common = [f"task.data={utterances}", f"common_eval.path={ctc_model}", "dataset.gen_subset=dev"]
    unit = ["decoding.type=fairseqlm", "decoding.unitlm=true", f"decoding.lmpath={lm}", "decoding.beam=5"]
    infer(read_options([*common, *unit, f"common_eval.results_path={tmp_path}/free"])[0])
    bound = [*common, *unit, words[1], "decoding.wordscore=20", f"common_eval.results_path={tmp_path}/bound"]
    infer(read_options(bound)[0])
    table = pd.read_parquet(tmp_path / "bound/utterances.parquet")
    said = {word for text in table["hypothesis"] for word in text.split()}
    assert said and said <= {"ONE", "TWO", "AN", "A"}
    search = decoding.make_search(read_options(bound)[0].decoding, "cpu")
    draws = np.random.default_rng(1).normal(size=(20, len(released_letters())))
    emissions = (draws - np.log(np.exp(draws).sum(1, keepdims=True))).astype(np.float32)
    scores: list[float] = []
    for over_letters in (True, False):
        beam: Any = decoding.load_search(str(ctc_model), dataclasses.replace(search, unit=over_letters))
        scores.append(beam.decode(emissions)[0].score)
    assert search.unit and scores[0] != pytest.approx(scores[1]), "words are no letters of the model"


def test_language_models_that_do_not_fit_are_named(
    ctc_model: Path, utterances: Path, tmp_path: Path, words: list[str]
) -> None:
    common = [f"task.data={utterances}", f"common_eval.path={ctc_model}", "dataset.gen_subset=dev"]
    with pytest.raises(Data2VecError, match="holds a ctc model, not a transformer language model"):
        infer(read_options([*common, *words, f"decoding.lmpath={ctc_model}"])[0])
    with pytest.raises(Data2VecError, match="/no/such"):
        infer(read_options([*common, *words, "decoding.lmpath=/no/such.pt"])[0])
    lower = language_model(tmp_path / "lower", ["one", "two", "a", "an"])
    with pytest.raises(Data2VecError, match="upper and lower case differ"):
        infer(read_options([*common, *words, f"decoding.lmpath={lower}"])[0])
    (tmp_path / "arpa").write_text(NgramModel.estimate([["O", "N", "E", "|"]], 2).arpa())
    kenlm = [*common, words[1], "decoding.type=kenlm", f"decoding.lmpath={tmp_path}/arpa"]
    with pytest.raises(Data2VecError, match="other units"):
        infer(read_options(kenlm)[0])
    (tmp_path / "lexicon").write_text("ONE\tO N E |\nNAÏVE\tN A Ï V E |\nTWO\tT W O\n")
    with pytest.raises(Data2VecError, match=r"line 3.*must end with"):
        infer(read_options([*common, *words])[0])


def test_results_of_two_inferences_never_mix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "out"
    with own_results(out, ["dev", "test"]):
        (out / "dev").mkdir()
        for name in ("dev/hypo.word", "wer.17", "mine.txt", "summary.json"):
            (out / name).write_text("of the first")
        with (
            pytest.raises(DataError, match=r"another d2v infer is writing to .*common_eval\.results_path"),
            own_results(out, ["test"]),
        ):
            raise AssertionError
    assert not caplog.records
    with own_results(out, ["test"]):
        left = sorted(p.name for p in out.rglob("[!.]*") if p.is_file())
        assert left == ["mine.txt", "wer.17"]
        assert "results of an earlier inference" in caplog.text
        (out / "hypo.word").write_text("of the second")
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "summary.json").write_text("not of an inference")
    with own_results(tmp_path / "users", ["test"]):
        assert (tmp_path / "users" / "summary.json").is_file()


def test_recordings_are_transcribed_and_broken_ones_reported(
    ctc_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recordings"
    (folder / "deep").mkdir(parents=True)
    sf.write(str(folder / "deep" / "a ü.wav"), 0.1 * np.random.default_rng(1).normal(size=(4000, 2)), 8000)
    (folder / "bad.flac").write_text("no audio")
    sf.write(str(folder / "silent.wav"), np.zeros(16_000), 16_000)
    blank = np.full((49, len(released_letters())), -20.0, dtype=np.float32)
    blank[:, 0] = 0.0
    heard = AudioModel.emissions_each
    monkeypatch.setattr(
        AudioModel, "emissions_each",
        lambda *given, **more: (blank if len(found) == 49 else found for found in heard(*given, **more)),
    )  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        transcribe_command(folder, str(ctc_model), tmp_path / "out")
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "bad.flac" in captured.err and "Traceback" not in captured.err
    assert "silent.wav: no words: the 1.00 s of audio are silent" in captured.err
    assert json.loads((tmp_path / "out" / "silent.json").read_text())["empty"].endswith("are silent")
    content = json.loads((tmp_path / "out" / "deep" / "a ü.json").read_text())
    assert content["text"] == " ".join(word["text"] for word in content["words"])
