"""Audio from files, arrays, slices of archives and bytes: one channel, one rate, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from data2vec.data import audio_files
from data2vec.data.audio_files import decode_bytes, normalized, read_audio, read_header, to_model_rate
from data2vec.errors import DataError

RATE = 16000
LEFT = np.array([0.5, -0.25, 0.125, 0.0], np.float32)
RIGHT = np.array([0.0, 0.25, 0.375, -0.5], np.float32)
MEAN = [0.25, 0.0, 0.25, -0.25]


def _wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_the_header_says_frames_rate_channels_and_format(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    sf.write(path, np.stack([LEFT, RIGHT], axis=1), 8000, subtype="PCM_24")
    header = read_header(path)
    assert (header.frames, header.rate, header.channels, header.subtype) == (4, 8000, 2, "PCM_24")
    with pytest.raises(DataError, match=r"none\.wav: no such file"):
        read_header(tmp_path / "none.wav")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.wav: empty file"):
        read_header(path)
    path.write_bytes(b"text" * 20)
    with pytest.raises(DataError, match=r"a\.wav: not readable as audio \("):
        read_header(path)


def test_channels_are_averaged_into_float32(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(_wav(np.stack([LEFT, RIGHT], axis=1)))
    samples = read_audio(str(path), RATE)
    assert samples.dtype == np.float32 and samples.tolist() == MEAN
    assert decode_bytes(path.read_bytes(), RATE).tolist() == MEAN
    assert to_model_rate(np.stack([LEFT, RIGHT], axis=1), RATE, RATE).tolist() == MEAN


def test_other_rates_are_refused_or_converted(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    wave = np.sin(np.arange(8000) * 2 * np.pi * 440 / 8000).astype(np.float32)  # a second of 440 Hz
    path.write_bytes(_wav(wave, 8000))
    with pytest.raises(DataError, match=r"8000 Hz, but task\.sample_rate is 16000.*--resample"):
        read_audio(str(path), RATE)
    wanted = np.sin(np.arange(16000) * 2 * np.pi * 440 / 16000)
    for samples in (
        read_audio(str(path), RATE, resample=True),
        decode_bytes(path.read_bytes(), RATE),
        to_model_rate(wave, 8000, RATE),
    ):
        assert samples.shape == (16000,) and samples.dtype == np.float32
        assert abs(samples[200:-200] - wanted[200:-200]).max() < 1e-3
    assert len(read_audio(str(path), 4000, resample=True)) == 4000


def test_arrays_have_no_rate_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1.0, 2.0], np.float64))
    samples = read_audio(str(tmp_path / "a.npy"), 12345)
    assert samples.dtype == np.float32 and samples.tolist() == [1.0, 2.0]
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not readable as audio"):
        read_audio(str(tmp_path / "o.npy"), RATE)


@pytest.mark.parametrize(("format", "compressed"), [("WAV", False), ("FLAC", False), ("WAV", True)])
def test_slices_of_archives(tmp_path: Path, format: str, compressed: bool) -> None:
    file = io.BytesIO()
    sf.write(file, LEFT, RATE, format=format, subtype="PCM_16")
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "a.zip", "w", kind) as archive:
        archive.writestr("first", b"x" * 100)
        archive.writestr("second", file.getvalue())
    place = (tmp_path / "a.zip").read_bytes().find(file.getvalue())
    size = len(file.getvalue())
    if compressed:
        with pytest.raises(DataError, match="must be stored, not deflated"):
            read_audio(f"{tmp_path}/a.zip:40:{size}", RATE)
        return
    assert read_audio(f"{tmp_path}/a.zip:{place}:{size}", RATE).tolist() == LEFT.tolist()
    end = (tmp_path / "a.zip").stat().st_size
    with pytest.raises(DataError, match="no WAV, FLAC or OGG"):  # shorter than asked for
        read_audio(f"{tmp_path}/a.zip:{place}:{end}", RATE)
    with pytest.raises(DataError, match="no such file"):
        read_audio(f"{tmp_path}/b.zip:{place}:{size}", RATE)


def test_a_file_whose_name_looks_like_a_slice(tmp_path: Path) -> None:
    path = tmp_path / "a:1:2.wav"
    path.write_bytes(_wav(LEFT))
    assert read_audio(str(path), RATE).tolist() == LEFT.tolist()


def test_empty_and_broken_samples_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with pytest.raises(DataError, match=r"a\.wav: no such file"):
        read_audio(str(path), RATE)
    for samples, message in (
        (LEFT[:0], "no samples"),
        (np.array([0, np.nan]), "not finite"),
        (np.array([0, np.inf]), "not finite"),
    ):
        path.write_bytes(_wav(samples.astype(np.float32)))
        with pytest.raises(DataError, match=rf"a\.wav: .*{message}"):
            read_audio(str(path), RATE)
        with pytest.raises(DataError, match=r"the clip: has"):
            decode_bytes(path.read_bytes(), RATE, "the clip")
    path.write_bytes(b"no audio at all")
    with pytest.raises(DataError, match=r"a\.wav: not readable as audio"):
        read_audio(str(path), RATE)
    with pytest.raises(DataError, match="the audio: not readable as audio"):
        decode_bytes(b"no audio at all", RATE)
    with pytest.raises(DataError, match=r"shape \(1, 1, 1\)"):
        to_model_rate(np.zeros((1, 1, 1)), RATE, RATE)


def test_a_disk_that_comes_back_is_asked_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(_wav(LEFT))
    real, calls, waits = sf.SoundFile, [], []
    failures = 2

    def flaky(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) <= failures:
            raise OSError("stale handle")
        return real(*args, **options)

    monkeypatch.setattr(audio_files.sf, "SoundFile", flaky)
    monkeypatch.setattr(audio_files.time, "sleep", waits.append)
    assert read_audio(str(path), RATE).tolist() == LEFT.tolist()
    assert len(calls) == 3 and len(waits) == 2
    calls.clear()
    failures = 3
    with pytest.raises(DataError, match="stale handle"):
        read_audio(str(path), RATE)
    assert len(calls) == 3


def test_normalizing_is_over_the_whole_clip() -> None:
    samples = torch.tensor([1.0, 3.0, 5.0, 7.0])
    wanted = (samples - 4.0) / (5.0 + 1e-5) ** 0.5
    torch.testing.assert_close(normalized(samples), wanted)
    assert normalized(torch.full((3,), 2.0)).tolist() == [0, 0, 0]


def _flac(total: int | None = None, rate: int | None = None) -> bytes:
    """A second of noise whose header claims so many samples, or another rate."""
    file = io.BytesIO()
    sf.write(file, np.random.default_rng(0).normal(0, 0.1, RATE), RATE, format="FLAC", subtype="PCM_16")
    data = bytearray(file.getvalue())
    place = 8 + 10  # the stream's information: 20 bits rate, 3 channels, 5 bits a sample, 36 samples
    fields = int.from_bytes(data[place : place + 8], "big")
    if total is not None:
        fields = fields >> 36 << 36 | total
    if rate is not None:
        fields = fields & ((1 << 44) - 1) | rate << 44
    data[place : place + 8] = fields.to_bytes(8, "big")
    return bytes(data)


def _rated(rate: int) -> bytes:
    data = bytearray(_wav(LEFT))
    data[24:28] = rate.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (_flac(total=2**36 - 1), r"claims 68719476735 samples; \d+ bytes may hold 268435456 at most"),
        (_flac(total=2**28 + 1), "claims 268435457 samples"),
        (_rated(1), r"claims 1 Hz; a recording has 1000 \.\.\. 768000"),
        (_rated(999), "claims 999 Hz"),
        (_rated(768_001), "claims 768001 Hz"),
    ],
    ids=["2^36 samples", "2^28 + 1 samples", "1 Hz", "999 Hz", "768001 Hz"],
)
def test_what_a_header_claims_is_checked_before_memory_is_taken(
    tmp_path: Path, content: bytes, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sf.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    path = tmp_path / "bomb.audio"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("bomb", content)
        offset = len(archive.infolist()[0].FileHeader())
    piece = f"{tmp_path}/all.zip:{offset}:{len(content)}"
    for read in (
        lambda: read_header(path),
        lambda: read_audio(str(path), RATE, resample=True),
        lambda: read_audio(piece, RATE, resample=True),
        lambda: decode_bytes(content, RATE, "bomb.audio"),
    ):
        with pytest.raises(DataError, match=rf"(bomb\.audio|all\.zip\S+): its header {rule}"):
            read()


def test_the_lowest_and_the_highest_rate_are_read() -> None:
    for rate in (audio_files.MIN_RATE, audio_files.MAX_RATE):
        assert len(decode_bytes(_rated(rate), rate)) == 4


def test_large_files_may_hold_more_than_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_files, "MAX_SAMPLES", 1000)
    content = _flac()
    monkeypatch.setattr(audio_files, "MAX_SAMPLES_PER_BYTE", RATE / len(content))
    assert len(decode_bytes(content, RATE)) == RATE
    monkeypatch.setattr(audio_files, "MAX_SAMPLES_PER_BYTE", (RATE - 1) / len(content))
    with pytest.raises(DataError, match="claims 16000 samples"):
        decode_bytes(content, RATE)


def test_an_array_or_slice_that_claims_more_than_its_file_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LEFT)
    data = (tmp_path / "a.npy").read_bytes().replace(b"(4,), ", b"(400000000000,), ")
    (tmp_path / "a.npy").write_bytes(data)
    for path in (f"{tmp_path}/a.npy", f"{tmp_path}/a.npy:0:{10**18}"):
        with pytest.raises(DataError, match=r"a\.npy"):
            read_audio(path, RATE)
