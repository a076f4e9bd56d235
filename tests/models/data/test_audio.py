"""Speech data: manifests, letters, crops and padding, and audio that is not what it should be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given
from hypothesis import strategies as st

from data2vec.data.audio import AudioDataset, AudioOptions
from data2vec.data.audio_files import decode_bytes, normalized, read_audio, read_header, to_model_rate
from data2vec.data.batching import epoch_batches
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import (
    encode_letters,
    greedy_ids,
    letter_dictionary,
    letter_line,
    read_label_lines,
    released_letters,
    words_of_ids,
)
from data2vec.data.manifest import manifest_text, read_manifest
from data2vec.errors import ConfigError, DataError

LAYERS = ((8, 10, 5), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 3, 2), (8, 2, 2), (8, 2, 2))


def tone(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)
    return wave.astype(np.float32) if channels == 1 else np.stack([wave] * channels, axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four clips, 0.5 to 2 s, with letters; a name has spaces and other letters than ASCII."""
    entries = []
    for name, seconds in (("a.flac", 0.5), ("sub dir/b é.flac", 2.0), ("c.wav", 1.0), ("d.flac", 1.5)):
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(str(path), tone(seconds), 16_000)
        entries.append((name, int(seconds * 16_000)))
    (tmp_path / "train.tsv").write_text(manifest_text(str(tmp_path / "audio"), entries), encoding="utf-8")
    texts = ("A MAN", "HELLO", "A", "ZERO ONE")
    (tmp_path / "train.ltr").write_text("".join(f"{letter_line(t)}\n" for t in texts))
    released_letters().save(tmp_path / "dict.ltr.txt")
    return tmp_path


def test_letters_of_the_reference() -> None:
    letters = released_letters()
    assert len(letters) == 32 and letters.symbol(4) == "|" and letters.symbol(27) == "'"
    assert letter_line("A MAN") == "A | M A N |"
    assert encode_letters(letter_line("A MAN"), letters).tolist() == [7, 4, 17, 7, 9, 4]
    assert words_of_ids([7, 4, 17, 7, 9, 4], letters) == "A MAN"
    assert greedy_ids([0, 7, 7, 0, 7, 4, 4, 0]) == [7, 7, 4]
    assert greedy_ids([0, 0, 0]) == [] and words_of_ids([], letters) == ""


@given(st.lists(st.text(alphabet="ABC'", min_size=1, max_size=6), min_size=1, max_size=5))
def test_transcripts_survive_letters_and_back(words: list[str]) -> None:
    text = " ".join(words)
    letters = letter_dictionary([text])
    assert words_of_ids(encode_letters(letter_line(text), letters).tolist(), letters) == text


def test_manifests_round_trip(folder: Path) -> None:
    manifest = read_manifest(folder / "train.tsv")
    assert len(manifest) == 4
    assert manifest.name(1) == "sub dir/b é.flac" and manifest.frames.tolist() == [8000, 32000, 16000, 24000]
    kept = manifest.keep(np.array([1, 3]))
    assert [kept.name(i) for i in range(2)] == ["sub dir/b é.flac", "d.flac"]
    assert kept.lines.tolist() == [1, 3] and kept.fingerprint() != manifest.fingerprint()


def test_malformed_manifests_are_reported_whole(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("/root\na.flac\t100\nno length\nb.flac\tmany\nc.flac\t0\n")
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path / "x.tsv")
    assert all(f"line {n}:" in str(caught.value) for n in (3, 4, 5))
    with pytest.raises(DataError, match=r"does not exist; .* has x"):
        read_manifest(tmp_path / "y.tsv")


def test_crop_batches_take_the_shortest_and_move_with_the_epoch(folder: Path) -> None:
    options = AudioOptions(normalize=True, min_sample_size=10_000, max_sample_size=20_000)
    dataset = AudioDataset(folder, "train", options)
    assert dataset.dropped == {"shorter than min_sample_size 10000": 1}
    assert dataset.sizes.tolist() == [20_000, 16_000, 20_000]
    batch = dataset.collate([dataset[i] for i in range(3)])
    assert batch["source"].shape == (3, 16_000) and not batch["padding_mask"].any()
    assert batch["id"].tolist() == [1, 2, 3] and batch["frames"].tolist() == [32_000, 16_000, 24_000]
    again = dataset.collate([dataset[i] for i in range(3)])
    assert torch.equal(batch["source"], again["source"])
    other = dataset.for_epoch(2)
    moved = other.collate([other[i] for i in range(3)])
    assert not torch.equal(batch["source"][0], moved["source"][0])


def test_normalisation_is_over_the_whole_utterance() -> None:
    x = torch.randn(4000) * 3 + 1
    y = normalized(x)
    assert torch.allclose(y, (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5), atol=1e-5)
    assert torch.equal(normalized(torch.zeros(100)), torch.zeros(100))


def test_padded_batches_carry_labels(folder: Path) -> None:
    options = AudioOptions(pad=True, labels="ltr")
    dataset = AudioDataset(folder, "train", options, dictionary=released_letters())
    batch = dataset.collate([dataset[0], dataset[1]])
    assert batch["source"].shape == (2, 32_000)
    assert batch["padding_mask"].sum(1).tolist() == [24_000, 0]
    assert not batch["source"][0, 8000:].any()
    assert "target" in batch and "target_lengths" in batch
    assert batch["target_lengths"].tolist() == [6, 6] and batch["target"][0].tolist() == [7, 4, 17, 7, 9, 4]


def test_utterances_too_short_for_their_labels_are_left_out_and_counted(folder: Path) -> None:
    (folder / "train.ltr").write_text("L L L L L L L L L L L L L |\nA |\nA |\nA |\n")
    options = AudioOptions(pad=True, labels="ltr", drop_longer=True, max_tokens=100_000)
    dataset = AudioDataset(folder, "train", options, dictionary=released_letters(), convolutions=LAYERS)
    assert dataset.dropped == {"fewer frames than labels need": 1} and len(dataset) == 3


def test_label_files_must_fit_line_by_line(folder: Path) -> None:
    (folder / "train.ltr").write_text("A |\nB |\nC |\n")
    with pytest.raises(DataError, match="3 lines, but the manifest lists 4"):
        AudioDataset(folder, "train", AudioOptions(pad=True, labels="ltr"), dictionary=released_letters())
    (folder / "train.ltr").write_text("A |\n\nC |\nD |\n")
    with pytest.raises(DataError, match="1 empty lines"):
        read_label_lines(folder / "train.ltr", 4)


def test_moved_files_and_lying_lengths_are_one_report(folder: Path) -> None:
    (folder / "audio" / "a.flac").unlink()
    (folder / "audio" / "c.wav").write_text("this is no sound")
    sf.write(str(folder / "audio" / "d.flac"), tone(1.0), 16_000)
    dataset = AudioDataset(folder, "train", AudioOptions())
    with pytest.raises(DataError) as caught:
        dataset.verify()
    text = str(caught.value)
    assert "3 of 4" in text and "no such file" in text and "c.wav" in text and "listed with 24000" in text
    with pytest.raises(DataError, match="line 2 of"):
        dataset[0]
    skipping = AudioDataset(folder, "train", AudioOptions(skip_broken=True))
    skipping.verify()
    assert skipping[0]["id"] == 1, "its neighbour stands in"


@pytest.mark.parametrize(("rate", "channels", "subtype"), [(16_000, 2, "PCM_16"), (16_000, 1, "PCM_24")])
def test_stereo_and_24_bit_are_read(tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    path = tmp_path / "x.wav"
    sf.write(str(path), tone(0.2, rate, channels), rate, subtype=subtype)
    samples = read_audio(str(path), 16_000)
    assert samples.shape == (3200,) and samples.dtype == np.float32
    assert np.abs(samples - tone(0.2)).max() < 1e-3


def test_other_rates_are_refused_or_converted(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    sf.write(str(path), tone(0.5, 8000), 8000)
    with pytest.raises(DataError, match="8000 Hz"):
        read_audio(str(path), 16_000)
    assert abs(len(read_audio(str(path), 16_000, resample=True)) - 8000) <= 2
    assert len(decode_bytes(path.read_bytes(), 16_000)) == len(to_model_rate(tone(0.5, 8000), 8000, 16_000))


def test_broken_audio_names_the_file(tmp_path: Path) -> None:
    empty, text, silent = tmp_path / "empty.flac", tmp_path / "text.flac", tmp_path / "silent.wav"
    empty.touch()
    text.write_text("hello")
    sf.write(str(silent), np.zeros(3200), 16_000)
    for path in (empty, text, tmp_path / "absent.wav"):
        with pytest.raises(DataError, match=path.name):
            read_header(path)
    assert not normalized(torch.from_numpy(read_audio(str(silent), 16_000))).any()
    whole = tmp_path / "whole.wav"
    sf.write(str(whole), tone(1.0), 16_000)
    with pytest.raises(DataError):
        decode_bytes(b"RIFF", 16_000)


def test_slices_of_stored_archives(tmp_path: Path) -> None:
    clip, archive = tmp_path / "x.flac", tmp_path / "clips.zip"
    sf.write(str(clip), tone(0.3), 16_000)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.write(clip, "x.flac")
    data = archive.read_bytes()
    offset = data.index(b"fLaC")
    place = f"{archive}:{offset}:{clip.stat().st_size}"
    assert np.array_equal(read_audio(place, 16_000), read_audio(str(clip), 16_000))
    with pytest.raises(DataError, match="slice"):
        read_audio(f"{archive}:3:50", 16_000)


def test_batches_keep_every_utterance_longest_first() -> None:
    sizes = np.array([50, 10, 40, 30, 20, 50, 60])
    batches = epoch_batches(
        sizes, seed=1, epoch=1, max_tokens=100, batch_size=None, required_batch_size_multiple=1,
        shuffle=False, order="longest",
    )  # fmt: skip
    assert sorted(np.concatenate(list(batches)).tolist()) == list(range(7))
    assert batches[0].tolist() == [6] and all(len(b) * sizes[b].max() <= 100 for b in batches)


def test_buckets_and_subsamples(folder: Path) -> None:
    options = AudioOptions(pad=True, num_batch_buckets=2)
    dataset = AudioDataset(folder, "train", options)
    assert set(dataset.sizes.tolist()) <= {16_000, 32_000}
    assert dataset.collate([dataset[0]])["source"].shape[1] == 16_000
    half = AudioDataset(folder, "train", AudioOptions(subsample=0.5))
    assert len(half) == 2 and len(AudioDataset(folder, "train", AudioOptions(subsample=0.5))) == 2
    with pytest.raises(ConfigError, match="needs padding"):
        AudioDataset(folder, "train", AudioOptions(num_batch_buckets=2))
    with pytest.raises(ConfigError, match="needs a dictionary"):
        AudioDataset(folder, "train", AudioOptions(labels="ltr"))


def test_dictionary_is_what_labels_are_read_with(folder: Path) -> None:
    small = Dictionary(["|", "A"], [1, 1])
    dataset = AudioDataset(folder, "train", AudioOptions(pad=True, labels="ltr"), dictionary=small)
    assert dataset.target(0).tolist() == [5, 4, Dictionary.unk, 5, Dictionary.unk, 4]


def noise(folder: Path) -> list[np.ndarray]:
    """The clips of the manifest become noise around 0.25, so that every piece tells where it was cut."""
    clips = []
    for number, line in enumerate((folder / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]):
        name, frames = line.split("\t")
        clip = np.random.default_rng(number).uniform(0.0, 0.5, int(frames)).astype(np.float32)
        sf.write(str(folder / "audio" / name), clip, 16_000, subtype="PCM_24")
        clips.append(clip)
    return clips


@pytest.mark.parametrize("normalize", [False, True])
def test_samples_are_normalised_as_asked_and_cut_where_the_key_says(folder: Path, normalize: bool) -> None:
    clips = noise(folder)
    dataset = AudioDataset(folder, "train", AudioOptions(normalize=normalize, max_sample_size=9_000), seed=5)
    batch = dataset.collate([dataset[i] for i in (3, 1)])
    assert batch["source"].shape == (2, 9_000) and batch["id"].tolist() == [3, 1]
    starts = set()
    for row, number in enumerate((3, 1)):
        clip = torch.from_numpy(clips[number])
        if normalize:
            clip = (clip - clip.mean()) / torch.sqrt(clip.var(correction=0) + 1e-5)
        heads = (clip[: len(clip) - 8_999] - batch["source"][row, 0]).abs() < 1e-4
        where = [int(at) for at in heads.nonzero()
                 if torch.allclose(clip[int(at) :][:9_000], batch["source"][row], atol=1e-4)]  # fmt: skip
        assert len(where) == 1
        starts.add(where[0])
        for seed, epoch in ((5, 2), (6, 1)):
            other = AudioDataset(folder, "train", dataset.options, seed=seed, epoch=epoch)
            assert not torch.equal(other.collate([other[number]])["source"][0], batch["source"][row])
    assert len(starts) == 2, "each utterance is cut at a place of its own"


def test_a_crop_can_begin_at_the_first_sample_and_end_at_the_last(folder: Path) -> None:
    clips = noise(folder)
    dataset = AudioDataset(folder, "train", AudioOptions(max_sample_size=7_998))
    begins = set[int]()
    for epoch in range(1, 40):
        crop = dataset.for_epoch(epoch).collate([dataset[0]])["source"][0]
        begins.add(int(np.abs(clips[0][:3] - float(crop[0])).argmin()))
    assert begins == {0, 1, 2}


def test_longer_utterances_are_left_out_only_in_training(folder: Path) -> None:
    for drop, kept in ((True, [0, 2, 3]), (False, [0, 1, 2, 3])):
        options = AudioOptions(pad=True, max_tokens=24_000, drop_longer=drop)
        dataset = AudioDataset(folder, "train", options)
        assert dataset.manifest.lines.tolist() == kept
        assert dataset.sizes.max() == 24_000, "what does not fit a batch counts as a whole one"
    lengths = AudioDataset(folder, "train", AudioOptions(min_sample_size=16_000)).manifest.frames
    assert lengths.tolist() == [32_000, 16_000, 24_000], "a clip of exactly the least length stays"


def test_repeated_letters_need_a_frame_between_them(folder: Path) -> None:
    # 8000 samples are 24 frames of LAYERS; "A B A B ..." of 24 letters fits, with one repeat it does not.
    for line, dropped in (("A B " * 12, 0), ("A B " * 11 + "A A ", 1)):
        (folder / "train.ltr").write_text(f"{line.strip()}\nA |\nA |\nA |\n")
        options = AudioOptions(pad=True, labels="ltr", drop_longer=True)
        dataset = AudioDataset(folder, "train", options, dictionary=released_letters(), convolutions=LAYERS)
        assert 4 - len(dataset) == dropped


def test_a_subsample_is_a_share_of_what_is_left_rounded_up_and_keyed_by_the_seed(folder: Path) -> None:
    chosen = set()
    for seed in range(12):
        options = AudioOptions(subsample=0.5, min_sample_size=10_000)
        dataset = AudioDataset(folder, "train", options, seed=seed)
        assert len(dataset) == 2 and dataset.dropped["beyond task.subsample 0.5"] == 1
        chosen.add(tuple(dataset.manifest.lines.tolist()))
    assert chosen == {(1, 2), (1, 3), (2, 3)}


def test_buckets_pad_to_their_edges(folder: Path) -> None:
    options = AudioOptions(pad=True, num_batch_buckets=2)
    dataset = AudioDataset(folder, "train", options)
    assert dataset.sizes.tolist() == [16_000, 32_000, 16_000, 32_000]
    assert dataset.collate([dataset[0]])["source"].shape == (1, 16_000)
    assert dataset.collate([dataset[0], dataset[3]])["source"].shape == (2, 32_000)
    with pytest.raises(ConfigError, match="needs padding"):
        AudioDataset(folder, "train", AudioOptions(num_batch_buckets=2))


def test_a_broken_file_is_replaced_by_the_next_with_its_own_label(folder: Path) -> None:
    (folder / "audio" / "a.flac").write_bytes(b"fLaC")
    options = AudioOptions(pad=True, labels="ltr", skip_broken=True)
    dataset = AudioDataset(folder, "train", options, dictionary=released_letters())
    sample = dataset[0]
    assert sample["id"] == 1 and len(sample["source"]) == 32_000
    assert "target" in sample and sample["target"].tolist() == dataset.target(1).tolist()
    strict = AudioDataset(folder, "train", AudioOptions())
    with pytest.raises(DataError, match=r"line 2 of .*train\.tsv"):
        _ = strict[0]


def test_the_fingerprint_knows_names_lengths_and_labels_but_not_the_root(folder: Path) -> None:
    def fingerprint() -> str:
        options = AudioOptions(pad=True, labels="ltr")
        return AudioDataset(folder, "train", options, dictionary=released_letters()).fingerprint()

    first, manifest = fingerprint(), folder / "train.tsv"
    text, labels = manifest.read_text(encoding="utf-8"), (folder / "train.ltr").read_text()
    manifest.write_text("/elsewhere\n" + text.partition("\n")[2], encoding="utf-8")
    assert fingerprint() == first
    for changed in (text.replace("c.wav", "e.wav"), text.replace("\t8000", "\t8001")):
        manifest.write_text(changed, encoding="utf-8")
        assert fingerprint() != first
    manifest.write_text(text, encoding="utf-8")
    (folder / "train.ltr").write_text(labels.replace("A |", "O |", 1))
    assert fingerprint() != first
