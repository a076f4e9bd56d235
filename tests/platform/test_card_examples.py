"""The code on each kind of model's card, as a reader runs it: a fresh process, any folder, MLflow alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from d2v_platform.registry.model_card import CardFacts, model_card
from d2v_platform.registry.model_versions import NewVersion
from d2v_platform.registry.register import register
from d2v_platform.tracking.tracker import NewRun, Tracker
from data2vec.artifact import Kind, save_artifact
from data2vec.audio_events import AudioEventConfig, AudioEventModel
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.bpe import shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import released_letters
from data2vec.data.tokenizer import TextTokenizer
from data2vec.heads import SentenceClassifier, make_text_trunk
from data2vec.image_heads import ImageClassifier
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.transformer import TransformerLM
from data2vec.student import Data2VecMulti

LINEAGE = dict.fromkeys(
    ("recipe.name", "recipe.digest", "recipe.difference", "data.fingerprint", "dictionary.hash",
     "code.version", "parent.version"), "none",
)  # fmt: skip
LABELS = ["no", "yes"]
AUDIO = {"feature_encoder_spec": "[(16, 10, 5), (16, 3, 2)]", "conv_pos_groups": 2, "decoder": None}
IMAGE = {"input_size": 16, "patch_size": 4, "embed_dim": 16, "num_extra_tokens": 1}
SCORES = ["label", "score", "score_no", "score_yes"]
# name: modality, kind, columns out
CASES: dict[str, tuple[str, Kind, list[str]]] = {
    "text-encoder": ("text", "pretrained", ["embedding"]),
    "text-classifier": ("text", "sentence_classifier", SCORES),
    "text-regression": ("text", "sentence_classifier", ["score"]),
    "image-classifier": ("image", "image_classifier", SCORES),
    "recogniser": ("audio", "ctc", ["text", "words", "score"]),
    "events": ("audio", "audio_classifier", SCORES),
    "language-model": ("text", "language_model", ["log_prob", "tokens", "perplexity"]),
}
# The card's blocks one after another, each as if it were the only one.
RUN = """
import json, sys
import mlflow
found = {}
for name, code in json.load(open("blocks.json")).items():
    mlflow.set_tracking_uri(None)
    shown, space = [], {"print": lambda table: shown.append(table)}
    exec(code, space)
    found[name] = [list(shown[0].columns), len(shown[0]), list(space["table"].columns)]
print(json.dumps(found))
"""


def config(modality: str, **front: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {"embed_dim": 16, "num_heads": 2, "depth": 1, "average_top_k_layers": 1,
         "supported_modality": modality, "ema_encoder_only": modality == "TEXT",
         "modalities": {"text": None, modality.lower(): {"prenet_depth": 0, **front}}}
    )  # fmt: skip


def folder_of(name: str, place: Path) -> Path:
    """A small random model of the case."""
    modality, kind, columns = CASES[name]
    labels = LABELS if columns is SCORES else []
    given: dict[str, Any] = {"task": {"labels": labels, "normalize": True}}
    if kind == "language_model":
        words = Dictionary(["SOME", "TEXT"], [1, 1])
        made: Any = TransformerLMConfig.from_dict(
            {
                "decoder_embed_dim": 16,
                "decoder_ffn_embed_dim": 32,
                "decoder_layers": 1,
                "decoder_attention_heads": 2,
            }
        )
        network: torch.nn.Module = TransformerLM(made, len(words), seed=1)
        given = {"words": words}
    elif modality == "text":
        pieces = dict.fromkeys(map(str, shared_bpe().encode("Some text. Some more.")), 5)
        tokenizer = TextTokenizer(shared_bpe(), Dictionary.from_counts(pieces).with_mask())
        made, size = config("TEXT", mask_length=1, max_source_positions=64), len(tokenizer.dictionary)
        given["tokenizer"] = tokenizer
        if kind == "pretrained":
            network = make_text_trunk(made, vocab_size=size)
        else:
            given["head_config"] = SentenceHeadConfig(num_classes=max(1, len(labels)))
            given["task"] |= {"regression": not labels, "max_positions": 62}
            network = SentenceClassifier(made, given["head_config"], vocab_size=size)
    elif modality == "image":
        made = config("IMAGE", **IMAGE)
        network = Data2VecMulti(made, with_decoder=False)
        if kind != "pretrained":
            given["head_config"] = ImageHeadConfig(num_classes=2)
            network = ImageClassifier(made, given["head_config"])
    else:
        made = config("AUDIO", **AUDIO)
        network = Data2VecMulti(made, with_decoder=False)
        if kind == "ctc":
            network = CTCModel(made, CTCConfig(), num_symbols=32)
            given |= {"head_config": network.options, "letters": released_letters()}
            given["task"] |= {"num_symbols": 32}
        elif kind == "audio_classifier":
            network = AudioEventModel(made, AudioEventConfig(num_classes=2))
            given["head_config"] = network.options
    return save_artifact(place / name, kind=kind, model_config=made, state=network.state_dict(), **given)


@pytest.mark.slow
@pytest.mark.timeout(300)  # seven registrations and a fresh process: 15 s on two free cores
def test_the_code_on_every_kind_of_card_runs(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.open_run(NewRun(experiment="e", name="trained", params={})).run_id
    blocks: dict[str, str] = {}
    for number, (name, (modality, kind, columns)) in enumerate(CASES.items()):
        facts = CardFacts(
            name=name, kind=kind, summary="", recipe="r", data_fingerprint="f", metrics={}, modality=modality,
            labels=tuple(LABELS if columns is SCORES else ()), tracking_uri=tracker.tracking_uri,
            alias="champion" if number % 2 else None,
        )  # fmt: skip
        card = model_card(facts)
        version = register(
            tracker,
            NewVersion(
                folder=folder_of(name, tmp_path), name=name, run_id=run, tags=LINEAGE, card_markdown=card
            ),
        )
        tracker.client.set_registered_model_alias(name, "champion", str(version.version))
        blocks[name] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
        told = card.partition("Columns out: ")[2].partition("\n")[0]
        for column in columns:
            assert f"`{column}`" in told or (column.startswith("score_") and "`score_CLASS`" in told), (
                name,
                told,
            )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "blocks.json").write_text(json.dumps(blocks))
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)).save(elsewhere / "picture.jpg")
    soundfile.write(elsewhere / "talk.wav", np.sin(np.arange(8000) / 9) * 0.1, 8000)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("D2V_", "MLFLOW_TRACKING"))
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN],
        cwd=elsewhere,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: columns for name, (columns, _, _) in found.items()} == {
        n: c for n, (_, _, c) in CASES.items()
    }
    for name, (_, rows, given) in found.items():
        assert rows == (2 if name.startswith("text-") else 1)
        assert given == [{"text": "text"}.get(CASES[name][0], "file")], name
    assert {path.name for path in elsewhere.iterdir()} == {"blocks.json", "picture.jpg", "talk.wav"}


def facts(**more: Any) -> CardFacts:
    given = {"name": "m", "kind": "ctc", "summary": "", "recipe": "r", "data_fingerprint": "", "metrics": {}}
    return CardFacts(**(given | {"modality": "audio"} | more))


def test_an_address_with_a_login_is_not_on_the_card() -> None:
    card = model_card(facts(tracking_uri="https://ann:hunter22@mlflow.example.com"))
    assert "hunter22" not in card and "set_tracking_uri" not in card
    assert "# MLFLOW_TRACKING_URI must name the server" in card
    assert 'set_tracking_uri("http://mlflow:5000")' in model_card(facts(tracking_uri="http://mlflow:5000"))
    assert "set_tracking_uri" not in model_card(facts())


@pytest.mark.parametrize(
    ("modality", "kind", "call"),
    [("audio", "ctc", 'transcribe(["talk.wav"])'), ("audio", "pretrained", 'embed(["talk.wav"])'),
     ("audio", "audio_classifier", 'classify(["talk.wav"])'), ("image", "image_classifier", "classify("),
     ("text", "sentence_classifier", 'classify(["Some text."])'), ("text", "language_model", "score(")],
)  # fmt: skip
def test_the_librarys_call(modality: str, kind: str, call: str) -> None:
    assert f'data2vec.load("FOLDER").{call}' in model_card(facts(modality=modality, kind=kind))
