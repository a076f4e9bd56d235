"""What a user sees of the library: names, version, what a model says that it is, wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import data2vec
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.dictionary import Dictionary
from data2vec.errors import CheckpointError
from data2vec.image_heads import ImageClassifier
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.transformer import TransformerLM
from data2vec.loading import load


def test_the_names_and_the_version() -> None:
    assert dir(data2vec) == sorted(data2vec.__all__)
    assert {"load", "TextModel", "AudioModel", "ImageModel", "LanguageModel"} <= set(dir(data2vec))
    assert all(getattr(data2vec, name).__name__ == name for name in dir(data2vec) if name != "__version__")
    assert data2vec.SpeechModel is data2vec.AudioModel  # the earlier name
    assert data2vec.__version__ == metadata.version("data2vec-platform")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        data2vec.laod  # type: ignore[attr-defined]  # noqa: B018


def test_names_and_version_import_no_torch() -> None:
    code = "import sys, data2vec; dir(data2vec), data2vec.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_version_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(data2vec.metadata, "version", missing)
    assert data2vec.__version__ == "0+unknown"


def config(modality: str, **front: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {"embed_dim": 16, "num_heads": 2, "depth": 1, "average_top_k_layers": 1,
         "supported_modality": modality, "ema_encoder_only": modality == "TEXT",
         "modalities": {"text": None, modality.lower(): {"prenet_depth": 0, **front}}}
    )  # fmt: skip


@pytest.mark.parametrize("count", [3, 6])
def test_an_image_classifier_says_what_it_is(count: int, tmp_path: Path) -> None:
    made = config("IMAGE", input_size=16, patch_size=4, embed_dim=16, num_extra_tokens=1)
    head = ImageHeadConfig(num_classes=count)
    network = ImageClassifier(made, head)
    labels = ["cat", "dog", "mill", "owl", "pig", "rat"][:count]
    folder = save_artifact(
        tmp_path / "m", kind="image_classifier", model_config=made, head_config=head,
        state=network.state_dict(), task={"labels": labels},
    )  # fmt: skip
    size = sum(p.numel() for p in network.parameters())
    shown = "cat, dog, mill" if count == 3 else "cat, dog, mill, owl, ... 6 labels"
    assert repr(load(folder)) == (
        f"<ImageModel: image classifier of {shown}; data2vec_multi, IMAGE: 1 blocks, width 16, 2 heads, "
        f"patches of 4 pixels; {size:,} parameters; cpu>"
    )


def test_audio_and_language_models_say_what_they_are(tmp_path: Path) -> None:
    made = config("AUDIO", feature_encoder_spec="[(16, 10, 5), (16, 3, 2)]", conv_pos_groups=2, decoder=None)
    network = CTCModel(made, CTCConfig(), num_symbols=7)
    folder = save_artifact(
        tmp_path / "speech", kind="ctc", model_config=made, head_config=network.options,
        state=network.state_dict(), letters=Dictionary(["|", "A", "B"], [3, 2, 1]), task={"num_symbols": 7},
    )  # fmt: skip
    assert repr(load(folder)).startswith(
        "<AudioModel: ctc; data2vec_multi, AUDIO: 1 blocks, width 16, 2 heads;"
    )
    words = Dictionary(["A"], [1])
    options = TransformerLMConfig.from_dict({"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 32,
                                             "decoder_layers": 1, "decoder_attention_heads": 2})  # fmt: skip
    folder = save_artifact(
        tmp_path / "lm", kind="language_model", model_config=options, words=words,
        state=TransformerLM(options, len(words), seed=1).state_dict(),
    )  # fmt: skip
    assert repr(load(folder)).startswith(
        "<LanguageModel: language model; transformer_lm, TEXT: 1 blocks, width 16"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": torch.zeros(1)}, "not weights in a dictionary"),
        (None, "takes the path of a model, not NoneType"),
        (b"model", "not bytes"),
        ("models:/m@champion", 'mlflow.pyfunc.load_model("models:/m@champion")'),
        ("models:/m/3", 'download_artifacts("models:/m/3") + "/artifacts/model"'),
        ("runs:/abc/model", 'load_model("runs:/abc/model")'),
        ("s3://bucket/model", "s3://bucket/model is an address; copy"),
        ("https://host/base.pt", "is an address"),
        ("nowhere", "nowhere: no such file or folder"),
    ],
)
def test_what_is_no_path_is_answered(given: Any, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        data2vec.load(given)
    assert said in str(caught.value)
