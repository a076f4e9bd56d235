"""The README's way from raw data to a prediction runs as it stands, in each modality, on tiny data."""

from __future__ import annotations

import os
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from d2v_platform.cli import app

README = Path(__file__).resolve().parents[2] / "README.md"
SHORT = ["platform.num_workers=0", "optimization.max_update=2", "dataset.num_workers=0"]
GROUP = ["optimizer.groups.default.lr_scheduler.warmup_updates=1"]
WARM_UP = {
    "tiny/text_pretraining": GROUP,
    "tiny/text_finetuning": ["lr_scheduler.warmup_updates=1"],
    "tiny/audio_pretraining": ["lr_scheduler.warmup_updates=1"],
    "tiny/audio_finetuning": [],
    "tiny/image_pretraining": GROUP,
    "tiny/image_finetuning": GROUP,
}


def lines_of(modality: str) -> list[str]:
    """The lines of the block that follows the paragraph of this modality."""
    text = README.read_text(encoding="utf-8")
    return re.search(rf"^{modality}: .*?```bash\n(.*?)```", text, re.DOTALL | re.MULTILINE)[1].splitlines()  # type: ignore[index]


def text() -> None:
    sentences = [
        "The river bends by the mill.",
        "An old committee agreed slowly.",
        "The book was read by him.",
    ]
    Path("books").mkdir()
    for name, count in (("train", 300), ("valid", 30)):
        Path(f"books/{name}.txt").write_text("\n".join(sentences * count))
    Path("glue/CoLA").mkdir(parents=True)
    for name, count in (("train", 24), ("dev", 12)):
        rows = [f"x\t{i % 2}\t\t{sentences[i % 3]}" for i in range(count)]
        Path(f"glue/CoLA/{name}.tsv").write_text("\n".join(rows) + "\n")
    Path("glue/CoLA/test.tsv").write_text("index\tsentence\n0\tThe river bends.\n")


def speech() -> None:
    folder = Path("speech/1/2")
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(20):
        soundfile.write(folder / f"1-2-{i:04}.flac", 0.1 * random.normal(size=40_000), 16_000)
    (folder / "1-2.trans.txt").write_text("".join(f"1-2-{i:04} ONE TWO\n" for i in range(20)))
    soundfile.write("talk.flac", 0.1 * random.normal(size=20_000), 16_000)


def images() -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for channel, name in enumerate(("blue", "red")):
            folder = Path("photos") / split / name
            folder.mkdir(parents=True)
            for i in range(32):
                pixels = random.integers(0, 120, (40, 48, 3))
                pixels[..., channel] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


def execute(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the line prints; environment lines change the environment, as in a shell."""
    capsys.readouterr()
    if within := re.fullmatch(r'eval "\$\((.*)\)"', line):
        for word in shlex.split(execute(within[1], capsys)):
            if "=" in word:
                os.environ.update([word.split("=", 1)])
        return ""
    program, *words = shlex.split(line)
    if program == "python":
        Path("line.py").write_text(words[1])
        runpy.run_path("line.py")
    else:
        assert program == "d2v"
        assert not app(
            words + (SHORT + WARM_UP[words[1]] if words[0] == "train" else []), standalone_mode=False
        ), line
    return capsys.readouterr().out


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("modality", "make", "written"),
    [
        pytest.param("Text", text, "score_1", marks=pytest.mark.slow),
        pytest.param("Speech", speech, "transcripts/talk.txt", marks=pytest.mark.slow),
        pytest.param("Images", images, "photos.parquet", marks=pytest.mark.slow),
    ],
)
def test_from_raw_data_to_a_prediction(
    modality: str,
    make: Callable[[], None],
    written: str,
    tmp_path: Path,
    mlflow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # what `d2v env` sets is undone after the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    make()
    lines = lines_of(modality)
    assert len(lines) <= 6
    for line in lines:
        printed = execute(line, capsys)
    assert written in printed or Path(written).is_file()
