"""Models in use: one item or many, batches that change nothing, and the device they are moved to."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data2vec
from data2vec import audio_model
from data2vec.artifact import save_artifact
from data2vec.audio_events import AudioEventConfig, AudioEventModel
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.bpe import shared_bpe
from data2vec.data.dictionary import Dictionary
from data2vec.data.image_files import read_image
from data2vec.data.letters import released_letters
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import DataError
from data2vec.heads import SentenceClassifier
from data2vec.image_heads import ImageClassifier
from data2vec.in_use import device_of
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.transformer import TransformerLM
from data2vec.v1.config import Data2VecAudioConfig

TEXTS = ["the mill", "the old mill turns", "river", "the river bends and the old mill still turns"]
CONVOLUTIONS = "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2"
DRAW = np.random.default_rng(0)
SOUNDS = [DRAW.normal(size=n).astype(np.float32) for n in (9000, 2500, 30_000, 2600, 100, 12_345, 9000)]
META = torch.device("meta")


def spread(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights large enough for a wrong mask to show."""
    draw = torch.Generator().manual_seed(1)
    state = network.state_dict()
    return {name: value + 0.3 * torch.randn(value.shape, generator=draw) for name, value in state.items()}


def v2(modality: str, **front: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {"embed_dim": 16, "num_heads": 2, "depth": 2, "average_top_k_layers": 2,
         "supported_modality": modality, "ema_encoder_only": modality == "TEXT",
         "modalities": {"text": None, modality.lower(): {"prenet_depth": 0, **front}}}
    )  # fmt: skip


def audio_v2(**fields: Any) -> Data2VecMultiConfig:
    return v2("AUDIO", feature_encoder_spec=CONVOLUTIONS, conv_pos_width=9, conv_pos_depth=3,
              conv_pos_groups=2, decoder=None, **fields)  # fmt: skip


def audio_v1(**fields: Any) -> Data2VecAudioConfig:
    sizes = {"encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2}
    return Data2VecAudioConfig.from_dict(
        {**sizes, "encoder_layers": 2, "average_top_k_layers": 2, "conv_feature_layers": CONVOLUTIONS,
         "extractor_mode": "layer_norm", "conv_pos": 9, "conv_pos_groups": 2, "pos_conv_depth": 3, **fields}
    )  # fmt: skip


def text_model(folder: Path) -> Any:
    pieces = dict.fromkeys(map(str, shared_bpe().encode(" ".join(TEXTS))), 5)
    tokenizer = TextTokenizer(shared_bpe(), Dictionary.from_counts(pieces))
    config, head = v2("TEXT", mask_length=1, max_source_positions=64), SentenceHeadConfig(num_classes=3)
    network = SentenceClassifier(config, head, vocab_size=len(tokenizer.dictionary.with_mask()))
    return data2vec.load(
        save_artifact(folder / "text", kind="sentence_classifier", model_config=config, head_config=head,
                      state=spread(network), tokenizer=tokenizer, task={"labels": ["a", "b", "c"]})
    )  # fmt: skip


def ctc_model(folder: Path, config: Any) -> Any:
    network = CTCModel(config, CTCConfig(), num_symbols=32)
    return data2vec.load(
        save_artifact(folder / "ctc", kind="ctc", model_config=config, head_config=network.options,
                      state=spread(network), letters=released_letters(),
                      task={"normalize": True, "num_symbols": 32})
    )  # fmt: skip


def event_model(folder: Path, config: Any, **options: Any) -> Any:
    head = AudioEventConfig(num_classes=3, **options)
    network = AudioEventModel(config, head)
    return data2vec.load(
        save_artifact(folder / "events", kind="audio_classifier", model_config=config, head_config=head,
                      state=spread(network), task={"labels": ["a", "b", "c"]})
    )  # fmt: skip


def image_model(folder: Path) -> Any:
    config = v2("IMAGE", input_size=16, patch_size=4, embed_dim=16, num_extra_tokens=1)
    head = ImageHeadConfig(num_classes=3)
    return data2vec.load(
        save_artifact(folder / "image", kind="image_classifier", model_config=config, head_config=head,
                      state=ImageClassifier(config, head).state_dict(), task={"labels": ["a", "b", "c"]})
    )  # fmt: skip


def language_model(folder: Path) -> Any:
    dictionary = Dictionary(["the", "mill", "old", "river"], [4, 3, 2, 1])
    sizes = {"decoder_embed_dim": 16, "decoder_ffn_embed_dim": 16, "decoder_layers": 1}
    config = TransformerLMConfig.from_dict({**sizes, "decoder_attention_heads": 2})
    state = TransformerLM(config, len(dictionary)).state_dict()
    return data2vec.load(
        save_artifact(
            folder / "lm", kind="language_model", model_config=config, state=state, words=dictionary
        )
    )


@pytest.fixture(scope="module")
def all_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    alibi = audio_v2(use_alibi_encoder=True)
    return {
        "text": text_model(folder),
        "speech": ctc_model(folder, alibi),
        "events": event_model(folder, alibi),
        "image": image_model(folder),
        "lm": language_model(folder),
        "folder": folder,
    }


def own(model: Any) -> Any:
    """A copy for a test that changes it; tokenizers are large and stay shared."""
    shared = getattr(model, "tokenizer", None)
    return copy.deepcopy(model, {id(shared): shared})


def batches_of(network: torch.nn.Module) -> list[int]:
    """How many items went through a network in each of its calls from now on."""
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


def test_texts_give_in_batches_what_they_give_alone(all_models: dict[str, Any]) -> None:
    model = own(all_models["text"])
    sizes = batches_of(model.network)
    for pooling in ("mean", "cls", "none"):
        together = model.embed(TEXTS, pooling=pooling)
        for text, found in zip(TEXTS, together, strict=True):
            np.testing.assert_allclose(found, model.embed([text], pooling=pooling)[0], atol=1e-5)
    assert sizes[0] == len(TEXTS)
    sizes.clear()
    pairs = [(TEXTS[3], TEXTS[0]), (TEXTS[2], TEXTS[2]), (TEXTS[0], TEXTS[1])]
    _, scores = model.classify(pairs, batch_size=2)
    assert sorted(sizes) == [1, 2]
    np.testing.assert_allclose(scores, [model.classify(pair)[1] for pair in pairs], atol=1e-6)
    np.testing.assert_allclose(scores, model.classify(pairs)[1], atol=1e-6)  # in one, the longest first
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("config", "equal_lengths"),
    [(audio_v2(), False), (audio_v1(), False), (audio_v2(padding_leaks=True), True),
     (audio_v1(padding_leaks=True), True)],
    ids=["v2", "v1", "v2-leaks", "v1-leaks"],
)  # fmt: skip
def test_recordings_give_in_batches_what_they_give_alone(
    config: Any, equal_lengths: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_model, "CHUNK_S", 1.0)  # so the third recording goes through in pieces
    monkeypatch.setattr(audio_model, "OVERLAP_S", 0.2)
    model = ctc_model(tmp_path, config)
    sizes = batches_of(model.ctc)
    together = model.emissions(SOUNDS)
    assert sum(sizes) == len(SOUNDS) + 2, "the long one is three pieces"
    assert len(sizes) == (len(SOUNDS) if equal_lengths else 1), "two pairs have the same length"
    for sound, found in zip(SOUNDS, together, strict=True):
        alone = model.emissions(sound)
        assert alone.shape == found.shape
        np.testing.assert_allclose(found, alone, atol=1e-4)
    assert np.abs(together[0] - together[6]).max() > 0.1, "equal lengths, other recordings"
    features = model.embed(SOUNDS, batch_size=3)
    np.testing.assert_allclose(features, [model.embed(sound) for sound in SOUNDS], atol=1e-4)
    frames = model.embed(SOUNDS, pooling="none", layer=0)
    assert [len(found) for found in frames] == [len(found) for found in together]
    texts = [found.text for found in model.transcribe(SOUNDS)]
    assert texts == [model.transcribe(sound).text for sound in SOUNDS] and len(set(texts)) > 3


@pytest.mark.parametrize("leaks", [False, True])
def test_clips_give_in_batches_what_they_give_alone(
    leaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_model, "CHUNK_S", 1.0)
    model = event_model(tmp_path, audio_v2(), pool_padding=leaks)
    sizes = batches_of(model.classifier)
    names, scores = model.classify(SOUNDS)
    assert names == ["a", "b", "c"] and scores.shape == (len(SOUNDS), 3) and len(sizes) < len(SOUNDS)
    np.testing.assert_allclose(scores, [model.classify(sound)[1] for sound in SOUNDS], atol=1e-5)


def test_batches_are_bounded_and_little_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_model, "BATCH_S", 0.5)
    model = ctc_model(tmp_path, audio_v2())
    sizes = batches_of(model.ctc)
    model.emissions([SOUNDS[1]] * 5, batch_size=2)
    assert sorted(sizes) == [1, 2, 2]
    sizes.clear()
    model.emissions([np.ones(7900, dtype=np.float32)] * 3, batch_size=2)
    assert sorted(sizes) == [1, 2]
    sizes.clear()
    model.emissions([np.ones(8100, dtype=np.float32)] * 2, batch_size=2)
    assert sizes == [1, 1], "two that are longer take the room of more"
    read: list[int] = []

    def corpus() -> Any:
        for index in range(40):
            read.append(index)
            yield np.ones(8000, dtype=np.float32)

    next(model.emissions_each(corpus(), batch_size=1))
    assert len(read) == 8, "eight batches of half a second"
    with pytest.raises(DataError, match="batch_size = 0 must be >= 1"):
        model.embed(SOUNDS[0], batch_size=0)


def test_one_item_gives_one_result(all_models: dict[str, Any]) -> None:
    text, speech, image, lm = (all_models[kind] for kind in ("text", "speech", "image", "lm"))
    np.testing.assert_array_equal(text.embed(TEXTS[0]), text.embed([TEXTS[0]])[0])
    assert text.classify(TEXTS[0])[1].shape == (3,) and text.classify((TEXTS[0], TEXTS[1]))[1].shape == (3,)
    assert text.classify(TEXTS[:2])[1].shape == (2, 3) == text.classify([[TEXTS[0], TEXTS[1]]] * 2)[1].shape
    sound = SOUNDS[0]
    assert speech.embed(sound).shape == (16,) and speech.embed((sound, 16_000)).shape == (16,)
    assert speech.transcribe(sound).text == speech.transcribe([sound])[0].text
    picture = DRAW.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    assert image.embed(picture).shape == (16,) and image.classify(picture)[1].shape == (3,)
    assert len(image.embed(np.stack([picture] * 4))) == 4, "an array of images is several"
    assert lm.score("the mill") == pytest.approx(lm.score(["the mill"])[0]) and lm.perplexity("the mill") > 1
    assert lm.token_scores("the mill").shape == (3,)
    assert text.embed([]) == [] == speech.embed([]) and text.classify([])[1].shape == (0, 3)
    assert image.classify([])[1].shape == (0, 3)
    assert len(text.embed(iter(TEXTS))) == 4 == len(text.embed(np.array(TEXTS)))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: m["text"].embed(b"the mill"), "give a text, or a list of such, not a bytes"),
        (lambda m: m["text"].embed(None), "not None"),
        (lambda m: m["text"].embed({"text": "the mill"}), "not a dict"),
        (lambda m: m["text"].embed(["the mill", 5, None]), r"item 1 of 3 is an int \(and 1 more\)"),
        (lambda m: m["text"].embed([("the", "mill")]), "item 0 of 1 is a tuple"),
        (lambda m: m["text"].classify(["the mill", ("a", "b", "c")]), "item 1 of 2 is a tuple"),
        (lambda m: m["speech"].embed([0.1, 0.2]), r"item 0 of 2 is a float \(and 1 more\); give a recording"),
        (lambda m: m["speech"].transcribe(5), "give a recording"),
        (lambda m: m["speech"].transcribe(np.zeros((2, 16_000))), "more channels than samples"),
        (lambda m: m["speech"].transcribe("no.wav"), "no.wav: no such file"),
        (lambda m: m["image"].classify([["a.jpg"]]), "item 0 of 1 is a list; give an image"),
        (lambda m: m["image"].embed(np.float32(3)), "not a single value"),
        (lambda m: m["image"].embed([__file__]), "test_in_use.py: no image that can be read"),
        (lambda m: m["lm"].score([3]), "item 0 of 1 is an int; give a text"),
    ],
)
def test_anything_else_is_refused_with_what_is_wanted(
    call: Callable[[Any], Any], told: str, all_models: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=told):
        call(all_models)


def test_photos_are_seen_as_they_were_held(all_models: dict[str, Any], tmp_path: Path) -> None:
    image, draw = all_models["image"], np.random.default_rng(2)
    held = Image.fromarray(draw.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees clockwise to see it as it was held
    held.rotate(90, expand=True).save(tmp_path / "phone.png", exif=exif)
    photo = tmp_path / "phone.png"
    forms = [photo, photo.read_bytes(), Image.open(photo)]
    np.testing.assert_allclose(image.embed(forms), [image.embed(held)] * 3, atol=1e-6)
    stored, odd = read_image(photo.read_bytes())
    assert odd is not None and "EXIF orientation: data sets are taken as stored" in odd
    assert read_image(photo.read_bytes(), turn_upright=True)[1] == "turned upright by its EXIF orientation"
    assert stored.tobytes() == held.rotate(90, expand=True).tobytes(), "data sets are read as they are stored"


def test_devices_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(gpus: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    machine(0)
    assert device_of("auto") == torch.device("cpu") == device_of("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(DataError, match=f"device = '{name}' is not here: this machine has no GPU"):
            device_of(name)
    machine(2)
    assert device_of("auto") == torch.device("cuda") == device_of("cuda")
    assert device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DataError, match="'cuda:2' is not here: this machine has 2 GPUs"):
        device_of("cuda:2")
    machine(1)
    with pytest.raises(DataError, match="'cuda:1' is not here: this machine has 1 GPU,"):
        device_of("cuda:1")
    for name in ("gpu", "cuda:", "cuda:x", "cuda1", "", "mps", "cpu:0"):
        with pytest.raises(DataError, match="must be auto, cpu, cuda, or one of several such as cuda:1"):
            device_of(name)


CALLS = {
    "text embed": ("text", lambda m, many: m.embed(TEXTS if many else TEXTS[0])),
    "text classify": ("text", lambda m, many: m.classify(TEXTS if many else TEXTS[0])),
    "speech embed": ("speech", lambda m, many: m.embed(SOUNDS if many else SOUNDS[0])),
    "emissions": ("speech", lambda m, many: m.emissions(SOUNDS if many else SOUNDS[0])),
    "events": ("events", lambda m, many: m.classify(SOUNDS if many else SOUNDS[0])),
    "image embed": ("image", lambda m, many: m.embed([np.zeros((16, 16), np.uint8)] * (3 if many else 1))),
    "image classify": ("image", lambda m, many: m.classify(np.zeros((16, 16), np.uint8))),
    "lm": ("lm", lambda m, many: m.score(TEXTS if many else TEXTS[0])),
}


@pytest.mark.parametrize("name", CALLS)
def test_everything_computes_where_the_model_was_moved(
    name: str, all_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's "meta" device stands for a GPU: shapes without values, which mix with no other device."""
    kind, call = CALLS[name]
    model = own(all_models[kind])
    assert model.device == torch.device("cpu") and model.to("cpu") is model
    assert model.to(META) is model and model.device == META
    cpu, autocast, enabled = torch.Tensor.cpu, torch.autocast, torch.is_autocast_enabled

    def fetched(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else cpu(x)

    def no_autocast(kind: str, **options: Any) -> Any:
        return contextlib.nullcontext() if kind == "meta" else autocast(kind, **options)

    monkeypatch.setattr(torch.Tensor, "cpu", fetched)
    monkeypatch.setattr(torch, "autocast", no_autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    call(model, False)


@pytest.mark.parametrize("name", CALLS)
def test_batches_and_their_padding_go_to_the_device(name: str, all_models: dict[str, Any]) -> None:
    kind, call = CALLS[name]
    model = own(all_models[kind]).to(META)
    seen: list[torch.device] = []

    class Seen(Exception):
        pass

    def look(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(x.device for x in args if isinstance(x, torch.Tensor))
        raise Seen

    for module in {model.network, model._module}:
        module.register_forward_pre_hook(look)
    with pytest.raises(Seen):
        call(model, True)
    assert set(seen) == {META} and len(seen) == (1 if kind in ("image", "lm") else 2)


def test_load_takes_a_device(all_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = all_models["folder"] / "image"
    assert data2vec.load(folder, device=META).device == META
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert data2vec.load(folder, device="auto").device == torch.device("cpu")
    with pytest.raises(DataError, match="no GPU"):
        data2vec.load(folder, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CALLS)
def test_a_gpu_gives_what_the_cpu_gives(name: str, all_models: dict[str, Any]) -> None:
    kind, call = CALLS[name]
    model = own(all_models[kind])
    here = call(model, True)
    there = call(model.to("cuda"), True)
    for mine, theirs in zip(here, there, strict=True):
        if not isinstance(mine, list):
            np.testing.assert_allclose(mine, theirs, atol=1e-3)
