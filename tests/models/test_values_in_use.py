"""What models in use give is what their networks compute: layers, poolings, probabilities, pairs, seams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data2vec
from data2vec.artifact import read_artifact, save_artifact
from data2vec.audio_model import SAMPLE_RATE
from data2vec.config import SentenceHeadConfig
from data2vec.errors import CheckpointError, DataError
from data2vec.heads import SentenceClassifier
from data2vec.image_model import as_image, pooled_features
from tests.models.test_in_use import TEXTS, audio_v1, ctc_model, event_model, image_model, spread, text_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return text_model(tmp_path_factory.mktemp("text"))


def ids_of(model: Any, *parts: str) -> torch.Tensor:
    """<s> first </s> [second </s>]."""
    found = [0]
    for part in parts:
        found += model.tokenizer.encode(part).tolist()
        assert found[-1] == 2
        if part is not parts[-1]:
            found.append(2)
    return torch.tensor([found])


@torch.inference_mode()
def test_text_embeddings(text: Any) -> None:
    for layer in (0, 1, -1, -2):
        for pooling in ("mean", "cls", "none"):
            found = text.embed(TEXTS, pooling, layer)
            for sentence, vector in zip(TEXTS, found, strict=True):
                x = text.network(ids_of(text, sentence), all_layers=True).layers[layer][0]
                wanted = {"mean": x.mean(0), "cls": x[0], "none": x}[pooling]
                np.testing.assert_allclose(vector, wanted.numpy(), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_text_classes(text: Any) -> None:
    names, found = text.classify([TEXTS[0], (TEXTS[1], TEXTS[2]), TEXTS[3]])
    assert names == ["a", "b", "c"]
    for row, parts in enumerate([(TEXTS[0],), (TEXTS[1], TEXTS[2]), (TEXTS[3],)]):
        logits = text.classifier(ids_of(text, *parts))[0]
        np.testing.assert_allclose(found[row], logits.softmax(-1).numpy(), rtol=1e-3, atol=1e-5)


@torch.inference_mode()
def test_a_text_longer_than_the_model_is_cut_and_said(text: Any, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(TEXTS * 30)
    found = text.embed([long], "none")[0]
    assert len(found) == 64 and "1 of 1 texts are longer than 64 tokens" in caplog.text
    wanted = text.network(ids_of(text, long)[:, :64], all_layers=True).layers[-1][0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_a_regression_gives_its_value(text: Any, tmp_path: Path) -> None:
    config, head = text.model_config, SentenceHeadConfig(num_classes=1)
    network = SentenceClassifier(config, head, vocab_size=text.network.encoder.vocab_size)
    kind, task = "sentence_classifier", {"regression": True}
    folder = save_artifact(
        tmp_path / "score", kind=kind, model_config=config, head_config=head, state=spread(network),
        tokenizer=text.tokenizer, task=task,
    )  # fmt: skip
    model = data2vec.load(folder)
    names, found = model.classify([(TEXTS[0], TEXTS[1])])
    assert names == ["score"] and found.shape == (1, 1)
    value = float(model.classifier(ids_of(model, TEXTS[0], TEXTS[1])))
    assert found[0, 0] == pytest.approx(value, rel=1e-3)


@torch.inference_mode()
def test_image_embeddings_and_classes(tmp_path: Path) -> None:
    model = image_model(tmp_path)
    draw = np.random.default_rng(1)
    pictures = [draw.integers(0, 255, (24, 20, 3), dtype=np.uint8) for _ in range(3)]
    batch = torch.stack([model.transform(as_image(picture)) for picture in pictures])
    features = model.network(batch, None, all_layers=True)
    for layer in (0, -1):
        x = features.layers[layer]
        wanted = {"mean": x[:, 1:].mean(1), "cls": x[:, 0], "none": x[:, 1:]}
        for pooling, values in wanted.items():
            found = model.embed(pictures, pooling, layer, batch_size=2)
            np.testing.assert_allclose(np.stack(found), values.numpy(), rtol=1e-3, atol=1e-4)
    names, scores = model.classify(pictures, batch_size=2)
    wanted_scores = model.classifier(batch).softmax(-1).numpy()
    assert names == ["a", "b", "c"] and np.allclose(scores, wanted_scores, atol=1e-5)
    for layer in (2, -3):
        with pytest.raises(DataError, match=r"must lie in -2 \.\.\. 1"):
            pooled_features(model.network, batch, "mean", layer)
    with pytest.raises(DataError, match="one of mean, cls, none"):
        pooled_features(model.network, batch, "max")  # type: ignore[arg-type]


def test_pixels_are_normalised_as_the_folder_says(tmp_path: Path) -> None:
    model = image_model(tmp_path)
    file = tmp_path / "image" / "config.json"
    config = json.loads(file.read_text())
    config["task"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    file.write_text(json.dumps(config))
    white = as_image(np.full((16, 16, 3), 255, dtype=np.uint8))
    assert torch.allclose(data2vec.load(tmp_path / "image").transform(white), torch.tensor(2.0))
    assert not torch.allclose(model.transform(white), torch.tensor(2.0))


def test_pictures_in_any_form(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    wanted = np.stack([grey] * 3, axis=-1)
    Image.fromarray(grey).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    forms = [grey, grey[..., None], wanted, Image.fromarray(grey), path, str(path), path.read_bytes()]
    for form in forms:
        assert np.array_equal(np.asarray(as_image(form)), wanted)
    for bad in (grey.astype(np.float32), grey[None, None], np.zeros((4, 4, 4), dtype=np.uint8)):
        with pytest.raises(DataError, match="uint8"):
            as_image(bad)
    with pytest.raises(DataError, match=r"nothing\.png"):
        as_image(tmp_path / "nothing.png")


@torch.inference_mode()
def test_sound_in_any_form_is_normalised_and_long_enough(tmp_path: Path) -> None:
    model = ctc_model(tmp_path, audio_v1())
    sound = 3.0 + 2.0 * np.random.default_rng(2).normal(size=5000).astype(np.float32)
    wanted = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-5)
    x = model.network(torch.from_numpy(wanted.astype(np.float32))[None], all_layers=True).layers
    for layer in (0, 1, -1):
        none, mean = (model.embed(sound, pooling, layer) for pooling in ("none", "mean"))
        np.testing.assert_allclose(none, x[layer][0].numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(mean, x[layer][0].numpy().mean(0), rtol=1e-3, atol=1e-3)
    emissions = model.ctc(torch.from_numpy(wanted.astype(np.float32))[None]).emissions()[0]
    np.testing.assert_allclose(model.emissions(sound), emissions.numpy(), rtol=1e-3, atol=1e-3)
    assert model.frame_s == pytest.approx(320 / SAMPLE_RATE)
    short = model.embed(sound[:100], "none")
    assert short.shape == (1, 16), "one frame at least"


@torch.inference_mode()
def test_long_recordings_are_averaged_over_pieces_of_equal_length(tmp_path: Path) -> None:
    model = event_model(tmp_path, audio_v1())
    sound = np.random.default_rng(3).normal(size=31 * SAMPLE_RATE).astype(np.float32)
    _, found = model.classify(sound)
    prepared = torch.from_numpy((sound - sound.mean()) / np.sqrt(sound.var() + 1e-5)).float()
    halves = [model.classifier(part[None]).probabilities()[0] for part in prepared.chunk(2)]
    np.testing.assert_allclose(found, torch.stack(halves).mean(0).numpy(), rtol=1e-3, atol=1e-4)


def test_half_of_an_overlap_is_dropped_at_each_seam(tmp_path: Path) -> None:
    model = ctc_model(tmp_path, audio_v1())
    model.chunk_s, model.overlap_s = 1.0, 0.4  # 50 frames, 20 of them twice
    pieces = model._pieces(torch.zeros(int(2.5 * SAMPLE_RATE)))
    assert [(len(part) / SAMPLE_RATE, kept) for part, kept in pieces] == [
        (1.0, slice(0, 40)), (1.0, slice(10, 40)), (1.0, slice(10, 40)), (pytest.approx(0.7), slice(10, None))
    ]  # fmt: skip


def test_the_score_of_a_transcript_and_its_words(tmp_path: Path) -> None:
    model = ctc_model(tmp_path, audio_v1())
    path = [4, 7, 0, 7, 4, 4, 12, 0]  # | A _ A | | I _
    emissions = np.full((len(path), 32), -7.0)
    emissions[range(len(path)), path] = -0.25
    found = model.greedy(emissions)
    letters = [model.letters.symbols[i] for i in (7, 12)]
    assert found.text == f"{letters[0] * 2} {letters[1]}" and found.score == pytest.approx(-0.25)
    assert [(w.start_s, w.end_s) for w in found.words] == [(0.02, 0.08), (0.12, 0.14)]


# ---- model folders -----------------------------------------------------------------------------------------


def test_a_folder_says_what_is_wrong_with_it(text: Any, tmp_path: Path) -> None:
    folder = save_artifact(
        tmp_path / "m", kind="sentence_classifier", model_config=text.model_config,
        head_config=text.classifier.head_config, state=text.classifier.state_dict(), tokenizer=text.tokenizer,
        teacher={"a": torch.zeros(2, dtype=torch.float16)}, task={"labels": ["a", "b", "c"]},
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    whole = read_artifact(folder)
    assert set(whole.trunk_state) == set(text.network.state_dict()), "no head, no decoder, no prefix"
    assert whole.vocab_size == text.network.encoder.vocab_size and whole.modality == "TEXT"
    from safetensors.torch import load_file

    assert load_file(folder / "teacher.safetensors")["a"].dtype == torch.float32

    def broken(**values: Any) -> str:
        (folder / "config.json").write_text(json.dumps({**config, **values}))
        with pytest.raises(CheckpointError) as caught:
            read_artifact(folder)
        return str(caught.value)

    assert "format 2; this version reads 1" in broken(format=2)
    assert "kind = 'other'   must be one of pretrained, sentence_classifier," in broken(kind="other")
    assert "not the tokenizer the model was trained with" in broken(tokenizer="0" * 64)
    assert "family = 'other'   must be one of data2vec_multi," in broken(family="other")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not readable JSON"):
        read_artifact(folder)
    (folder / "config.json").write_text(json.dumps(config))
    whole_bytes = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole_bytes[:100])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        read_artifact(folder)
    (folder / "model.safetensors").write_bytes(whole_bytes)
    assert set(read_artifact(folder).teacher or ()) == {"a"}
    (folder / "teacher.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors is damaged or truncated"):
        _ = read_artifact(folder).teacher
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors missing"):
        read_artifact(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        read_artifact(tmp_path / "nothing")


def test_weights_that_do_not_fit_are_named() -> None:
    from data2vec.artifact import load_strictly

    layer = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError) as caught:
        load_strictly(layer, {"weight": torch.zeros(2, 2), "more": torch.zeros(1)}, "here")
    assert str(caught.value).splitlines() == [
        "here does not fit the model:", "  missing: bias", "  unexpected: more",
        "  weight is (2, 2), the model has (3, 2)",
    ]  # fmt: skip
    for count in (6, 9):  # five of a kind are named
        many = {f"x{n}": torch.zeros(1) for n in range(count)} | layer.state_dict()
        with pytest.raises(CheckpointError, match=rf"x4\n  \.\.\. {count} differences in all"):
            load_strictly(layer, many, "here")
    load_strictly(layer, {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "here")
    assert layer.weight.sum() == 6
