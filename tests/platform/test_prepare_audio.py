"""``d2v prepare audio-manifest`` and ``audio-labels``: the reference's files, and audio of no use."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from typer.testing import CliRunner

from d2v_platform.preparation.audio import ManifestOptions, prepare_manifests
from d2v_platform.preparation.audio_labels import prepare_labels
from d2v_platform.preparation.audio_subsets import prepare_subsets
from d2v_platform.preparation.commands import app as prepare_app
from d2v_platform.recipe.sweep_definition import load_sweep
from data2vec.data.audio_files import read_audio
from data2vec.data.letters import released_letters
from data2vec.data.manifest import read_manifest
from data2vec.errors import ConfigError, DataError


def write(path: Path, samples: int = 1600, rate: int = 16_000, channels: int = 1, loud: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = loud * np.sin(np.arange(samples) / 9)
    sf.write(str(path), wave if channels == 1 else np.stack([wave] * channels, axis=1), rate)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two speakers in the LibriSpeech layout."""
    root = tmp_path / "corpus"
    for speaker, texts in (("10", ["A MAN", "HE'S  HERE"]), ("2", ["ONE"])):
        lines = []
        for index, text in enumerate(texts):
            key = f"{speaker}-7-{index:04d}"
            write(root / speaker / "7" / f"{key}.flac", samples=1600 + 100 * index)
            lines.append(f"{key} {text}\n")
        (root / speaker / "7" / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return root


def test_manifests_are_the_references(corpus: Path, tmp_path: Path) -> None:
    report = prepare_manifests(corpus, tmp_path / "out", ManifestOptions(valid_percent=0.5, seed=42))
    names = ["10/7/10-7-0000.flac", "10/7/10-7-0001.flac", "2/7/2-7-0000.flac"]
    frames = dict(zip(names, (1600, 1700, 1600), strict=True))
    draw = random.Random(42)
    train, valid = [f"{corpus}\n"], [f"{corpus}\n"]
    for name in names:
        (train if draw.random() > 0.5 else valid).append(f"{name}\t{frames[name]}\n")
    assert (tmp_path / "out/train.tsv").read_text() == "".join(train)
    assert (tmp_path / "out/valid.tsv").read_text() == "".join(valid)
    assert sum(files for files, _ in report.splits.values()) == 3 and not report.dropped
    prepare_manifests(corpus, tmp_path / "all", ManifestOptions(valid_percent=0.0, path_must_contain="/2/"))
    assert (tmp_path / "all/train.tsv").read_text() == f"{corpus}\n2/7/2-7-0000.flac\t1600\n"
    assert not (tmp_path / "all/valid.tsv").exists()


def test_links_to_folders_are_followed_but_not_in_circles(corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    write(root / "own.flac")
    (root / "theirs").symlink_to(corpus / "2")
    (root / "here").symlink_to(root)
    prepare_manifests(root, tmp_path / "out", ManifestOptions(valid_percent=0.0))
    lines = (tmp_path / "out/train.tsv").read_text().splitlines()
    assert lines == [str(root), "own.flac\t1600", "../corpus/2/7/2-7-0000.flac\t1600"]
    assert len(read_manifest(tmp_path / "out/train.tsv")) == 2


def test_labels_are_the_references(corpus: Path, tmp_path: Path) -> None:
    prepare_manifests(corpus, tmp_path, ManifestOptions(valid_percent=0.0))
    report = prepare_labels(tmp_path / "train.tsv", tmp_path, "train")
    assert (tmp_path / "train.ltr").read_text() == "A | M A N |\nH E ' S | H E R E |\nO N E |\n"
    assert (tmp_path / "train.wrd").read_text() == "A MAN\nHE'S HERE\nONE\n"
    assert (tmp_path / "dict.ltr.txt").read_text() == released_letters().text()
    assert (report.lines, report.words, report.unknown) == (3, 5, {})
    with pytest.raises(DataError, match="other letters"):
        prepare_labels(tmp_path / "train.tsv", tmp_path, "train", build_dict=True)


def test_the_shortest_that_is_kept_and_the_command_that_asks_for_it(tmp_path: Path) -> None:
    for samples in (999, 1000, 1001):
        write(tmp_path / "in" / f"{samples}.flac", samples=samples)
    words = ["audio-manifest", str(tmp_path / "in"), "--dest", str(tmp_path / "out"), "--valid-percent", "0",
             "--min-samples", "1000", "--name", "all"]  # fmt: skip
    done = CliRunner().invoke(prepare_app, words)
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "out" / "all.tsv").read_text().splitlines()[1:]
    assert lines == ["1000.flac\t1000", "1001.flac\t1001"]
    assert "1 files were left out" in done.output and "999 samples, fewer than 1000" in done.output


def test_an_n_gram_model_has_the_words_of_all_texts_in_its_lexicon(tmp_path: Path) -> None:
    (tmp_path / "train.wrd").write_text("A MAN\n\nA DOG\n")
    (tmp_path / "more").write_text("CATS\nA\n")
    words = ["language-model", str(tmp_path / "train.wrd"), "--dest", str(tmp_path / "lm"), "--order", "2",
             "--words", str(tmp_path / "more")]  # fmt: skip
    done = CliRunner().invoke(prepare_app, words)
    assert done.exit_code == 0 and "lexicon.txt: 4 words" in done.output, done.output
    lexicon = (tmp_path / "lm" / "lexicon.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lexicon] == ["A", "CATS", "DOG", "MAN"]
    arpa = (tmp_path / "lm" / "lm.arpa").read_text()
    assert "DOG" in arpa and "CATS" not in arpa and "ngram 2=" in arpa and "ngram 3=" not in arpa


def test_missing_transcripts_are_one_report(corpus: Path, tmp_path: Path) -> None:
    prepare_manifests(corpus, tmp_path, ManifestOptions(valid_percent=0.0))
    (corpus / "2/7/2-7.trans.txt").unlink()
    (corpus / "10/7/10-7.trans.txt").write_text("10-7-0000 A MAN\n")
    with pytest.raises(DataError) as caught:
        prepare_labels(tmp_path / "train.tsv", tmp_path, "train")
    assert "2-7.trans.txt: no such file" in str(caught.value) and "10-7-0001 is not in" in str(caught.value)
    assert not (tmp_path / "train.ltr").exists()


def test_files_that_cannot_be_used_are_named_and_left_out(tmp_path: Path) -> None:
    root = tmp_path / "waves"
    good = write(root / "sub dir" / "gut é.flac")
    write(root / "stereo.flac", channels=2)
    write(root / "slow.flac", rate=8000)
    write(root / "silent.flac", loud=0.0)
    write(root / ".hidden" / "x.flac")
    (root / "empty.flac").touch()
    (root / "text.flac").write_text("this is no audio")
    broken = root / "broken.flac"
    broken.write_bytes(write(root / "long.flac", samples=160_000).read_bytes()[:9000])
    (root / "long.flac").unlink()
    options = ManifestOptions(valid_percent=0.0, decode=True)
    report = prepare_manifests(root, tmp_path / "out", options)
    reasons = {entry.path.name: entry.problem for entry in report.dropped}
    assert set(reasons) == {"slow.flac", "silent.flac", "empty.flac", "text.flac", "broken.flac"}
    assert "8000 Hz" in str(reasons["slow.flac"]) and "silent" in str(reasons["silent.flac"])
    manifest = read_manifest(tmp_path / "out/train.tsv")
    assert [manifest.name(i) for i in range(len(manifest))] == ["stereo.flac", "sub dir/gut é.flac"]
    assert [entry.path.name for entry in report.remarks] == ["stereo.flac"]
    assert len((tmp_path / "out/dropped.tsv").read_text().splitlines()) == 5
    quick = prepare_manifests(root, tmp_path / "quick", ManifestOptions(valid_percent=0.0))
    assert "broken.flac" in {entry.path.name for entry in quick.dropped}, "its end cannot be decoded"
    with pytest.raises(DataError, match="5 files cannot be used"):
        prepare_manifests(root, tmp_path / "strict", ManifestOptions(decode=True, strict=True))
    assert good.is_file()


def test_official_layouts_and_impossible_options(corpus: Path, tmp_path: Path) -> None:
    for split in ("train-clean-100", "dev-other"):
        write(tmp_path / "LS" / split / "1" / "2" / "1-2-0000.flac")
    report = prepare_manifests(tmp_path / "LS", tmp_path / "out", ManifestOptions(layout="librispeech"))
    assert set(report.splits) == {"train_100h", "dev_other"}, "960 h needs all of its parts"
    write(tmp_path / "LL" / "1h" / "3" / "clean" / "1" / "2" / "1-2-0000.flac")
    report = prepare_manifests(tmp_path / "LL", tmp_path / "ll", ManifestOptions(layout="librilight"))
    assert set(report.splits) == {"train_10min_3", "train_1h"}
    with pytest.raises(DataError, match="no librilight folder"):
        prepare_manifests(corpus, tmp_path / "x", ManifestOptions(layout="librilight"))
    with pytest.raises(DataError, match="fraction"):
        prepare_manifests(corpus, tmp_path / "x", ManifestOptions(valid_percent=5))
    with pytest.raises(DataError, match=r"no \*\.wav files; there are files with \.flac"):
        prepare_manifests(corpus, tmp_path / "x", ManifestOptions(ext="wav"))


def test_no_manifest_is_lost_to_another_name(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--valid-percent 0"):
        prepare_manifests(corpus, tmp_path / "out", ManifestOptions(name="valid"))
    prepare_manifests(corpus, tmp_path / "out", ManifestOptions(name="valid", valid_percent=0.0))
    assert len(read_manifest(tmp_path / "out" / "valid.tsv")) == 3
    with pytest.raises(DataError, match="leave out --name"):
        prepare_manifests(corpus, tmp_path / "out", ManifestOptions(layout="librispeech", name="dev"))


def test_official_folders_may_be_links(corpus: Path, tmp_path: Path) -> None:
    root = tmp_path / "official"
    root.mkdir()
    (root / "dev-clean").symlink_to(corpus)
    report = prepare_manifests(root, tmp_path / "out", ManifestOptions(layout="librispeech"))
    assert {name: files for name, (files, _) in report.splits.items()} == {"dev_clean": 3}


def test_converted_copies_stay_in_their_folder_and_are_no_sources(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "a.flac", samples=8000, rate=8000)
    write(root / "short.flac", samples=100, rate=8000)
    write(tmp_path / "elsewhere" / "b.flac", samples=8000, rate=8000)
    (root / "b.flac").symlink_to(tmp_path / "elsewhere" / "b.flac")
    options = ManifestOptions(resample=root / "converted", valid_percent=0.0, min_samples=1000)
    for _ in range(2):
        report = prepare_manifests(root, tmp_path / "out", options)
        assert [entry.problem for entry in report.dropped] == ["200 samples, fewer than 1000"]
        manifest = read_manifest(tmp_path / "out" / "train.tsv")
        assert len(manifest) == 2 and set(manifest.frames) == {16_000}
        made = [Path(manifest.file(index)) for index in range(2)]
        assert all(path.is_file() and path.is_relative_to(root / "converted") for path in made)


def test_samples_that_are_not_finite_are_named(tmp_path: Path) -> None:
    wave = np.zeros(3200, dtype=np.float32)
    wave[-5] = np.nan
    (tmp_path / "in").mkdir()
    sf.write(str(tmp_path / "in" / "nan.wav"), wave, 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav: has samples that are not finite"):
        prepare_manifests(tmp_path / "in", tmp_path / "out", ManifestOptions(ext="wav"))
    with pytest.raises(DataError, match=r"nan\.wav: has samples that are not finite"):
        read_audio(str(tmp_path / "in" / "nan.wav"), 16_000)


def test_minutes_of_a_manifest_lie_inside_each_other(tmp_path: Path) -> None:
    root = tmp_path / "all"
    names = [write(root / f"{i}.flac", samples=16_000 + 10 * i).name for i in range(30)]
    prepare_manifests(root, root, ManifestOptions(valid_percent=0.0))
    listed = read_manifest(root / "train.tsv")
    order = [listed.name(i) for i in range(len(listed))]
    (root / "train.ltr").write_text("".join(f"{name} |\n" for name in order))
    released_letters().save(root / "dict.ltr.txt")
    (root / "valid.tsv").write_bytes((root / "train.tsv").read_bytes())
    small, large = prepare_subsets(root / "train.tsv", tmp_path / "out", [0.1, 0.4])
    assert (small.folder.name, large.folder.name) == ("0.1m", "0.4m")
    assert 0.08 < small.minutes <= 0.1 and 0.38 < large.minutes <= 0.4
    taken = []
    for subset in (small, large):
        manifest = read_manifest(subset.folder / "train.tsv")
        inside = [manifest.name(i) for i in range(len(manifest))]
        assert (subset.folder / "train.ltr").read_text() == "".join(f"{name} |\n" for name in inside)
        assert (subset.folder / "valid.tsv").read_bytes() == (root / "train.tsv").read_bytes()
        assert inside == [name for name in order if name in inside], "in the manifest's order"
        assert len(inside) == subset.utterances and (subset.folder / "dict.ltr.txt").is_file()
        taken.append(set(inside))
    assert taken[0] < taken[1] < set(names)
    for number in range(2):
        write(tmp_path / "even" / f"{number}.flac", samples=48_000)
    prepare_manifests(tmp_path / "even", tmp_path / "even", ManifestOptions(valid_percent=0.0))
    (whole,) = prepare_subsets(tmp_path / "even" / "train.tsv", tmp_path / "out", [0.1])
    assert whole.utterances == 2, "an amount that fits exactly is taken"
    with pytest.raises(DataError, match=r"--minutes 0, 1: .* has 0\.5 minutes"):
        prepare_subsets(root / "train.tsv", tmp_path / "out", [0.1, 0.0, 1.0])


def test_a_sweep_over_amounts_takes_one_recipe_and_a_folder_each() -> None:
    sweep = load_sweep("minutes", ["task.data=/d", "model.w2v_path=/m", "grid.seed=[1,2]"])
    found = [(trial.values["task"], trial.recipe.task.data) for trial in sweep.trials]  # pyright: ignore
    assert found == [(t, f"/d/{t}") for t in ("1m", "3m", "10m") for _ in range(2)]
    with pytest.raises(ConfigError, match=r"needs a folder for each in data_folders"):
        load_sweep("minutes", ["task.data=/d", "model.w2v_path=/m", "grid.task=[1m,2m]"])
