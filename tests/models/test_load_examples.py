"""The examples in the package's docstring (and of models/README.md) run as they stand, for each modality."""

from __future__ import annotations

import runpy
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import data2vec
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.bpe import shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.tokenizer import TextTokenizer
from data2vec.heads import make_text_trunk
from data2vec.image_heads import ImageClassifier

README = Path(__file__).resolve().parents[2] / "models" / "README.md"


def config(modality: str, **front: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {
            "embed_dim": 16,
            "num_heads": 2,
            "depth": 1,
            "average_top_k_layers": 1,
            "supported_modality": modality,
            "ema_encoder_only": modality == "TEXT",
            "modalities": {"text": None, modality.lower(): {"prenet_depth": 0, **front}},
        }
    )


def text(folder: Path) -> None:
    words = "Where the river bends an old mill still turns."
    pieces = dict.fromkeys(map(str, shared_bpe().encode(words)), 5)
    tokenizer = TextTokenizer(shared_bpe(), Dictionary.from_counts(pieces))
    made = config("TEXT", mask_length=1, max_source_positions=64)
    state = make_text_trunk(made, vocab_size=len(tokenizer.dictionary.with_mask())).state_dict()
    save_artifact(
        folder / "text-model", kind="pretrained", model_config=made, state=state, tokenizer=tokenizer
    )


def speech(folder: Path) -> None:
    made, head = (
        config("AUDIO", feature_encoder_spec="[(16, 10, 5), (16, 3, 2)]", conv_pos_groups=2),
        CTCConfig(),
    )
    letters = Dictionary(["|", "A", "B"], [3, 2, 1])
    state = CTCModel(made, head, num_symbols=7).state_dict()
    save_artifact(
        folder / "speech-model",
        kind="ctc",
        model_config=made,
        state=state,
        head_config=head,
        letters=letters,
        task={"num_symbols": 7, "normalize": True},
    )
    soundfile.write(folder / "clip.wav", np.sin(np.arange(8000) / 9) * 0.1, 8000)  # resampled on reading


def images(folder: Path) -> None:
    made = config("IMAGE", input_size=16, patch_size=4, embed_dim=16, num_extra_tokens=1)
    head = ImageHeadConfig(num_classes=3)
    save_artifact(
        folder / "image-model",
        kind="image_classifier",
        model_config=made,
        head_config=head,
        state=ImageClassifier(made, head).state_dict(),
        task={"labels": ["cat", "dog", "mill"]},
    )
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)).save(folder / "picture.png")


@pytest.mark.parametrize("name", ["Text", "Speech", "Images"])
def test_the_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = (data2vec.__doc__ or "").split(f"{name}::\n\n")[1].split("\n\n")[0]
    lines = textwrap.dedent(block).strip().splitlines()
    assert len(lines) <= 5
    assert "\n".join(lines) in README.read_text(encoding="utf-8").replace(
        "import data2vec\n\n", "import data2vec\n"
    )
    {"Text": text, "Speech": speech, "Images": images}[name](tmp_path)
    (tmp_path / "example.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    printed = capsys.readouterr().out
    wanted = {"Text": "2 (16,)", "Speech": "clip.wav", "Images": "0."}[name]
    assert wanted in printed
    if name == "Images":
        assert printed.split()[0] in ("cat", "dog", "mill")
