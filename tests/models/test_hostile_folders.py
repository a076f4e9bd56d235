"""Model folders that others have changed: they load, or are refused with the library's own error."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data2vec.artifact import read_artifact, save_artifact
from data2vec.audio_events import AudioEventConfig, AudioEventModel
from data2vec.config import ImageHeadConfig, SentenceHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.dictionary import Dictionary
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import CheckpointError, Data2VecError
from data2vec.heads import SentenceClassifier
from data2vec.image_heads import ImageClassifier
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.transformer import TransformerLM
from data2vec.loading import load
from data2vec.mae import MaskedAutoencoder
from data2vec.mae_config import MaeConfig
from data2vec.pretraining import Data2VecPretraining
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.text import Data2VecTextPretraining
from tests.models.interop.test_export import AUDIO_1, AUDIO_2, IMAGE_1, IMAGE_2, TEXT_1, TEXT_2

WORDS = Dictionary(["the", "river", "mill", "old"], [4, 3, 2, 1])
MAE = MaeConfig(input_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=8,
                decoder_depth=1, decoder_num_heads=2)  # fmt: skip
LM = TransformerLMConfig(decoder_embed_dim=16, decoder_ffn_embed_dim=32, decoder_layers=2,
                         decoder_attention_heads=2, max_target_positions=20)  # fmt: skip
BANDS = {"adaptive_softmax_cutoff": "5,6", "adaptive_input": True, "adaptive_input_cutoff": "5,6"}
LM_BANDS = TransformerLMConfig.from_dict({**LM.to_dict(), **BANDS, "decoder_learned_pos": True})


@functools.cache
def tokenizer() -> TextTokenizer:
    from data2vec.data.bpe import shared_bpe

    return TextTokenizer(shared_bpe(), Dictionary.from_counts({"262": 5, "11": 4, "13": 3}))


def parts(kind: str) -> dict[str, Any]:
    """What is saved: of each family and each kind one."""
    size = len(tokenizer())
    text: dict[str, Any] = {"tokenizer": tokenizer(), "task": {"max_positions": 20}}
    labels = {"labels": ["a", "b"], "regression": False}
    sound: dict[str, Any] = {"task": {"normalize": True, "sample_rate": 16000}}
    letters = {"letters": Dictionary(["|", "E"], [2, 1]), "task": {"num_symbols": 6, "normalize": True}}
    image: dict[str, Any] = {"task": {"input_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    classes = {"task": {"labels": ["a", "b", "c"]}}
    sentence, events, head = (
        SentenceHeadConfig(num_classes=2),
        AudioEventConfig(num_classes=2),
        ImageHeadConfig(),
    )
    head.num_classes = 3
    made: dict[str, Callable[[], tuple[str, Any, torch.nn.Module, Any, dict[str, Any]]]] = {
        "text 2": lambda: (
            "pretrained", TEXT_2, Data2VecPretraining(TEXT_2, vocab_size=size).student, None, text),
        "image 2": lambda: ("pretrained", IMAGE_2, Data2VecPretraining(IMAGE_2).student, None, image),
        "audio 2": lambda: ("pretrained", AUDIO_2, Data2VecPretraining(AUDIO_2).student, None, sound),
        "text 1": lambda: (
            "pretrained", TEXT_1, Data2VecTextPretraining(TEXT_1, vocab_size=size).student, None, text),
        "image 1": lambda: ("pretrained", IMAGE_1, Data2VecVisionPretraining(IMAGE_1).student, None, image),
        "audio 1": lambda: ("pretrained", AUDIO_1, Data2VecAudioPretraining(AUDIO_1).student, None, sound),
        "mae": lambda: ("pretrained", MAE, MaskedAutoencoder(MAE).student, None, image),
        "words": lambda: ("language_model", LM, TransformerLM(LM, len(WORDS)), None, {"words": WORDS}),
        "bands": lambda: (
            "language_model", LM_BANDS, TransformerLM(LM_BANDS, len(WORDS)), None, {"words": WORDS}),
        "sentences 2": lambda: (
            "sentence_classifier", TEXT_2, SentenceClassifier(TEXT_2, sentence, vocab_size=size), sentence,
            text | {"task": labels}),
        "sentences 1": lambda: (
            "sentence_classifier", TEXT_1, SentenceClassifier(TEXT_1, sentence, vocab_size=size), sentence,
            text | {"task": labels}),
        "classes 2": lambda: ("image_classifier", IMAGE_2, ImageClassifier(IMAGE_2, head), head, classes),
        "classes 1": lambda: ("image_classifier", IMAGE_1, ImageClassifier(IMAGE_1, head), head, classes),
        "letters 2": lambda: (
            "ctc", AUDIO_2, CTCModel(AUDIO_2, CTCConfig(), num_symbols=6), CTCConfig(), letters),
        "letters 1": lambda: (
            "ctc", AUDIO_1, CTCModel(AUDIO_1, CTCConfig(), num_symbols=6), CTCConfig(), letters),
        "events": lambda: (
            "audio_classifier", AUDIO_2, AudioEventModel(AUDIO_2, events), events,
            {"task": {"labels": ["a", "b"], "normalize": True}}),
    }  # fmt: skip
    if kind == "":
        return dict.fromkeys(made)
    name, config, module, options, more = made[kind]()
    state = module.state_dict()
    return {"kind": name, "model_config": config, "state": state, "head_config": options, **more}


KINDS = list(parts(""))
HUGE = (10**9, 2**70, 1e300)
VALUES: tuple[Any, ...] = (None, True, "x", "", [], [[]], {}, {"a": {}}, -1, 0, 1, 3, 0.5, -0.5, math.nan,
                           math.inf, [3, "a"], *HUGE)  # fmt: skip
DELETED = object()
CASES: int | None = 30  # of each kind, out of some 1500


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a configuration, nested ones included."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(config: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    node: Any = config
    for key in path[:-1]:
        node = node[key]
    if value is DELETED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def make(kind: str) -> Path:
        return save_artifact(tmp_path_factory.mktemp("hostile") / kind, **parts(kind))

    return make


@pytest.fixture(autouse=True)
def quick_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTokenizer, "load", classmethod(lambda *_: tokenizer()))  # GPT-2's takes a while


@contextlib.contextmanager
def little_memory(more: int = 2**30) -> Iterator[None]:
    """No more address space than there is now and ``more`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def use(model: Any) -> None:
    """Each model reads something."""
    if hasattr(model, "score"):
        model.score("the river")
    elif hasattr(model, "transcribe"):
        model.embed(np.zeros(4000, dtype=np.float32))
    elif hasattr(model, "transform"):
        model.embed(np.zeros((16, 16, 3), dtype=np.uint8))
    else:
        model.embed("the river")


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_configuration_loads_or_is_refused(kind: str, folders: Any) -> None:
    folder = folders(kind)
    file = folder / "config.json"
    whole = json.loads(file.read_text())
    cases = [(path, value) for path in places(whole) for value in (*VALUES, DELETED)]
    if CASES is not None:
        cases = random.Random(kind).sample(cases, CASES)
    try:
        for path, value in cases:
            file.write_text(json.dumps(changed(whole, path, value)))
            try:
                with little_memory():
                    use(load(folder))
            except Data2VecError:
                pass
            except BaseException as error:
                raise AssertionError(f"{kind}: {path} = {value}: {type(error).__name__}: {error}") from error
    finally:
        file.write_text(json.dumps(whole))
    use(load(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1, "kind": ' + '{"a": ' * 100_000, "nested too deeply"),
        ("[]", "holds a list, not an object"),
        ("\x00", "is not readable JSON"),
        ('{"format": ' + "9" * 5000 + "}", "is not readable JSON"),
        ('{"format": 1}', r"kind = None    is required\n  model = None   is required"),
        ('{"format": 1, "kind": "ctc", "model": [], "more": 1}', r"(?s)2 problems.*model = \[\].*more = 1"),
    ],
)
def test_what_is_no_description_at_all(text: str, message: str, folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("audio 1"), tmp_path / "m")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_all_problems_are_told_at_once(folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("letters 1"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())

    def told(**model: Any) -> list[str]:
        values = {**config, "model": config["model"] | model, "task": {"num_symbols": 0}}
        (folder / "config.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError) as caught:
            read_artifact(folder)
        return str(caught.value).splitlines()

    lines = told(encoder_layers=10**9, dropout=3.0, encoder_attention_heads=3)
    assert lines[0] == f"{folder}/config.json has 4 problems"
    assert [line.split()[0] for line in lines[1:]] == [
        "model.encoder_layers", "model.dropout", "model.encoder_attention_heads", "task.num_symbols"
    ]  # fmt: skip
    assert "= 1000000000   " in lines[1] and "is impossible: the weights are 56 tensors in all" in lines[1]
    assert "is impossible: the weights are 56 tensors in all" in told(encoder_layers=57)[1]
    assert "must be a finite number" in told(loss_beta=math.inf)[1]
    lines = told(encoder_layers="many", dropout=math.nan, wrong={})
    assert lines[0].endswith("3 problems"), "types first: the rules read the fields"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("audio 1", {"kind": "language_model"}, "is impossible for a model of the family data2vec_audio"),
        ("words", {"kind": "pretrained"}, "is impossible for a model of the family transformer_lm"),
        (
            "image 1",
            {"kind": "ctc", "head": {}, "task": {"num_symbols": 6}},
            r"is impossible for a model of the family data2vec_vision \(IMAGE\)",
        ),
        ("image 1", {"kind": "ctc"}, "head = None   is required for the kind ctc"),
        ("image 1", {"head": {"num_classes": 3}}, "must be null: the kind pretrained has no head"),
        ("classes 1", {"task": {"labels": ["a"]}}, "must be as many as head.num_classes 3"),
        ("sentences 1", {"task": {}}, "must be as many as head.num_classes 2"),
        ("events", {"task": {"labels": ["a", "b", "c"]}}, "must be as many as head.num_classes 2"),
        ("letters 1", {"task": {"num_symbols": 7}}, r"proj.weight is \(6, 16\), .* says \(7, 16\)"),
        ("image 2", {"task": {"mean": [0.5, 0.5]}}, "must be three numbers"),
        ("image 2", {"task": {"std": [0.5, 0.0, 0.5]}}, "task.std .* must be > 0"),
        ("mae", {"family": "data2vec_vision"}, "unknown key"),
        ("text 2", {"family": None, "format": 2}, "has format 2; this version reads 1"),
    ],
)
def test_parts_at_odds(kind: str, change: dict[str, Any], message: str, folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(kind), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_older_folders_still_load(folders: Any, tmp_path: Path) -> None:
    """They have no family (v2 models), no task, dictionary, tokenizer and origin."""
    folder = shutil.copytree(folders("text 2"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    old = {name: config[name] for name in ("format", "kind", "model")}
    (folder / "config.json").write_text(json.dumps(old))
    model = load(folder)
    use(model)
    assert model.config["task"] == {} and model.config["origin"] == {}
    (folder / "config.json").write_text(json.dumps(old | {"task": None, "origin": None, "head": None}))
    use(load(folder))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_weights_at_odds_with_their_description(kind: str, folders: Any, tmp_path: Path) -> None:
    name = next(n for n, t in load_file(folders(kind) / "model.safetensors").items()
                if n.endswith(("fc1.weight", "mlp.0.weight")) and t.ndim == 2)  # fmt: skip
    for number, (change, message) in enumerate((
        (lambda s: s.pop(name), f"missing: {name}"),
        (lambda s: s.update({name: s[name][:3].clone()}), rf"{name} is \(3, 16\), its configuration says"),
        (lambda s: s.update({name: s[name].long()}), f"{name} has the type I64; known are F64, F32"),
        (dict.clear, "the weights are 0 tensors in all"),
    )):  # fmt: skip
        folder = weights(shutil.copytree(folders(kind), tmp_path / str(number)), change)
        with pytest.raises(CheckpointError, match=message):
            read_artifact(folder)
    folder = shutil.copytree(folders(kind), tmp_path / "more")
    (folder / "README.md").write_text("more files do no harm")
    half = {
        n: t.half() if t.is_floating_point() else t
        for n, t in load_file(folder / "model.safetensors").items()
    }
    save_file(half, folder / "model.safetensors")
    use(load(folder))


@pytest.mark.parametrize("length", [0, 7, 2**40, 2**63])
def test_headers_of_wrong_sizes(length: int, folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("audio 1"), tmp_path / "m")
    claim = json.dumps({"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]}}).encode()
    for data in (struct.pack("<Q", length) + b'{"a":{}}', struct.pack("<Q", len(claim)) + claim + b"\0" * 16):
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(CheckpointError, match="is damaged or truncated"):
            load(folder)
