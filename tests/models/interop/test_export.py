"""Out in fairseq's layout and in again: equal bits, for every family and head; safetensors with a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data2vec.artifact import load_strictly, read_artifact, save_artifact
from data2vec.config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from data2vec.conv_spec import frame_count, total_stride
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.bpe import GPT2BPE
from data2vec.data.dictionary import Dictionary
from data2vec.data.tokenizer import TextTokenizer
from data2vec.errors import CheckpointError
from data2vec.heads import SentenceClassifier
from data2vec.image_heads import ImageClassifier
from data2vec.interop.export import export_fairseq, export_safetensors, meaning
from data2vec.interop.huggingface import export_folder
from data2vec.interop.model_folder import foreign_artifact, import_file, save_imported
from data2vec.interop.pickles import named_objects
from data2vec.interop.teacher_weights import with_teacher_weights
from data2vec.loading import load
from data2vec.pretraining import Data2VecPretraining
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text import Data2VecTextPretraining
from data2vec.v1.text_config import Data2VecTextConfig

WORDS = ["the", " river", " mill", " old"]
_DECODER = {"decoder_dim": 16, "decoder_groups": 1, "decoder_kernel": 3, "decoder_layers": 2}
_CONVOLUTIONS = "[(16, 10, 5)] + [(16, 3, 2)] * 2"


def multi(modality: str, **front: Any) -> Data2VecMultiConfig:
    return Data2VecMultiConfig.from_dict(
        {
            "embed_dim": 16,
            "num_heads": 2,
            "depth": 2,
            "average_top_k_layers": 2,
            "norm_eps": 1e-5,
            "supported_modality": modality,
            "ema_encoder_only": modality == "TEXT",
            "modalities": {
                "text": None,
                modality.lower(): {"type": modality, "prenet_depth": 0, "decoder": _DECODER, **front},
            },
        }
    )


TEXT_2 = multi("TEXT", mask_length=1, max_source_positions=20)
IMAGE_2 = multi(
    "IMAGE", input_size=16, patch_size=4, embed_dim=16, num_extra_tokens=1, ema_local_encoder=True
)
AUDIO_2 = multi(
    "AUDIO",
    feature_encoder_spec=_CONVOLUTIONS,
    conv_pos_width=9,
    conv_pos_groups=2,
    conv_pos_depth=3,
    use_alibi_encoder=True,
    learned_alibi_scale=True,
    learned_alibi_scale_per_head=True,
)
AUDIO_1 = Data2VecAudioConfig(
    extractor_mode="layer_norm",
    encoder_layers=2,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=32,
    encoder_attention_heads=2,
    conv_feature_layers=_CONVOLUTIONS,
    conv_pos=9,
    conv_pos_groups=2,
    pos_conv_depth=3,
    average_top_k_layers=2,
)
TEXT_1 = Data2VecTextConfig.from_dict(
    {
        "head_layers": 2,
        "average_top_k_layers": 2,
        "transformer": {
            "activation_fn": "gelu",
            "max_source_positions": 20,
            "layernorm_embedding": True,
            "no_scale_embedding": True,
            "encoder": {
                "embed_dim": 16,
                "ffn_embed_dim": 32,
                "layers": 2,
                "attention_heads": 2,
                "learned_pos": True,
            },
        },
    }
)
IMAGE_1 = Data2VecVisionConfig(
    image_size=16,
    patch_size=4,
    depth=2,
    embed_dim=16,
    num_heads=2,
    num_mask_patches=6,
    min_mask_patches_per_block=2,
    average_top_k_layers=2,
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    bpe = GPT2BPE()
    pieces = [str(number) for word in WORDS for number in bpe.encode(word)]
    return TextTokenizer(bpe, Dictionary.from_counts(dict.fromkeys(pieces, 5)))


def pretrained(config: Any, vocab: int) -> Any:
    if isinstance(config, Data2VecTextConfig):
        return Data2VecTextPretraining(config, vocab_size=vocab)
    if isinstance(config, Data2VecMultiConfig):
        return Data2VecPretraining(config, vocab_size=vocab if config.modality_name == "TEXT" else None)
    made = Data2VecAudioPretraining if isinstance(config, Data2VecAudioConfig) else Data2VecVisionPretraining
    return made(config)


@pytest.fixture
def saved(tmp_path: Path, tokenizer: TextTokenizer) -> Callable[[str], Path]:
    """A model folder of the named family and kind; the teacher differs from the student."""
    size = len(tokenizer.dictionary.with_mask())
    configs = {
        "text 2": TEXT_2,
        "image 2": IMAGE_2,
        "audio 2": AUDIO_2,
        "text 1": TEXT_1,
        "audio 1": AUDIO_1,
        "image 1": IMAGE_1,
        "image 1 whole": dataclasses.replace(IMAGE_1, ema_transformer_only=False),
    }

    def make(name: str) -> Path:
        family, _, kind = name.partition(", ")
        config, folder = configs[family], tmp_path / "ours"
        text = {"tokenizer": tokenizer} if family.startswith("text") else {}
        task: dict[str, Any] = {"normalize": True} if family.startswith("audio") else {}
        if not kind:
            model = pretrained(config, size)
            with torch.no_grad():
                for parameter in model.teacher.module.parameters():
                    parameter.add_(0.125)
            return save_artifact(
                folder,
                kind="pretrained",
                model_config=config,
                state=model.student.state_dict(),
                teacher=model.teacher.module.state_dict(),
                task=task,
                origin={"update": 7},
                **text,
            )
        if kind == "sentences":
            head: Any = SentenceHeadConfig(num_classes=2)
            module: torch.nn.Module = SentenceClassifier(config, head, vocab_size=size)
            text["task"], name = {"labels": ["0", "1"], "regression": False}, "sentence_classifier"
        elif kind == "classes":
            head = ImageHeadConfig(num_classes=3)
            if family == "image 1":  # as fairseq's loader for v1 sets them
                head = ImageHeadConfig(
                    num_classes=3, drop_first_patch=True, fc_norm_eps=1e-5, init_scale=1e-3
                )
            module = ImageClassifier(config, head)
            text["task"], name = {"labels": ["0", "1", "2"]}, "image_classifier"
        else:
            head, letters = CTCConfig(apply_mask=True, mask_prob=0.4), Dictionary(["|", "E"], [2, 1])
            module = CTCModel(config, head, num_symbols=6)
            text |= {"letters": letters, "task": {"num_symbols": 6, "normalize": True}}
            name = "ctc"
        return save_artifact(
            folder, kind=name, model_config=config, state=module.state_dict(), head_config=head, **text
        )  # type: ignore[arg-type]

    return make


ALL = [
    "text 2",
    "image 2",
    "audio 2",
    "text 1",
    "image 1",
    "audio 1",
    "text 2, sentences",
    "text 1, sentences",
    "image 2, classes",
    "image 1, classes",
    "audio 2, letters",
    "audio 1, letters",
]


@pytest.mark.parametrize("name", ALL)
def test_fairseq_out_and_in_is_bit_equal(name: str, saved: Any, tmp_path: Path) -> None:
    before = read_artifact(saved(name))
    file = tmp_path / "out" / "model.pt"
    export_fairseq(before, file)
    assert named_objects(file) == ([], [])  # plain containers and tensors only
    dictionary = next(iter((tmp_path / "out").glob("dict*.txt")), None)
    after = import_file(file, dictionary)
    assert after.kind == before.kind
    assert after.state.keys() == before.state.keys()
    assert all(torch.equal(after.state[key], before.state[key]) for key in before.state)
    teacher = before.folder / "teacher.safetensors"
    assert (after.teacher is not None) == teacher.is_file()
    folder = save_imported(after, tmp_path / "again")
    again = read_artifact(folder)
    if teacher.is_file():
        assert teacher.read_bytes() == (folder / "teacher.safetensors").read_bytes()
        assert again.config["origin"]["update"] == 7
    if before.kind == "pretrained":
        assert again.model_config == before.model_config
    if before.head_config is not None and before.kind != "image_classifier":
        assert again.head_config == before.head_config


@pytest.mark.parametrize("name", ["text 2", "audio 2, letters"])
def test_the_dictionary_beside_a_file_is_found(name: str, saved: Any, tmp_path: Path) -> None:
    before = read_artifact(saved(name))
    export_fairseq(before, tmp_path / "out" / "model.pt")
    found = foreign_artifact(tmp_path / "out" / "model.pt")
    for artifact in (before, found):
        words = artifact.letters if artifact.tokenizer is None else artifact.tokenizer.dictionary
        assert (
            words is not None
            and words.digest() == Dictionary.load(next((tmp_path / "out").glob("dict*.txt"))).digest()
        )


@pytest.mark.parametrize(
    ("name", "field"),
    [("audio 2, letters", "normalize"), ("audio 1", "normalize"), ("text 2, sentences", "regression")],
)
def test_what_the_data_was_like_goes_along(name: str, field: str, saved: Any, tmp_path: Path) -> None:
    artifact = read_artifact(saved(name))
    for value in (True, False):
        artifact.config["task"][field] = value
        export_fairseq(artifact, tmp_path / str(value) / "model.pt")
        cfg = torch.load(tmp_path / str(value) / "model.pt", weights_only=True)["cfg"]
        assert cfg["model"].get(field, value) is value, "fairseq's fine-tuned models look for it there"
        dictionary = next(iter((tmp_path / str(value)).glob("dict*.txt")), None)
        assert getattr(import_file(tmp_path / str(value) / "model.pt", dictionary), field) is value


def test_half_precision_is_exact_for_models_that_were_half(saved: Any, tmp_path: Path) -> None:
    first = read_artifact(saved("text 2"))
    export_fairseq(first, tmp_path / "half.pt", half=True)
    dictionary = first.folder / "tokenizer" / "dict.txt"
    once = import_file(tmp_path / "half.pt", dictionary)
    stored = torch.load(tmp_path / "half.pt", weights_only=True)["model"]
    assert {t.dtype for name, t in stored.items() if name != "_ema"} == {torch.float16}
    assert {t.dtype for t in stored["_ema"].values()} == {torch.float32}
    folder = save_imported(once, tmp_path / "folder")
    export_fairseq(read_artifact(folder), tmp_path / "again.pt", half=True)
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    assert all(torch.equal(again[name], t) for name, t in stored.items() if name != "_ema")


def test_half_precision_leaves_whole_numbers_whole(saved: Any, tmp_path: Path) -> None:
    export_fairseq(read_artifact(saved("image 1")), tmp_path / "half.pt", half=True)
    stored = torch.load(tmp_path / "half.pt", weights_only=True)["model"]
    kinds = {name.rpartition(".")[2]: t.dtype for name, t in stored.items() if name != "_ema"}
    assert (kinds["relative_position_index"], kinds["weight"]) == (torch.int64, torch.float16)


@pytest.mark.parametrize(
    "name", ["text 2", "image 2", "audio 2", "text 1", "image 1", "image 1 whole", "audio 1"]
)
def test_the_teachers_weights_can_take_the_students_place(name: str, saved: Any, tmp_path: Path) -> None:
    before = read_artifact(saved(name))
    export_fairseq(before, tmp_path / "model.pt")
    imported = import_file(tmp_path / "model.pt", next(iter(tmp_path.glob("dict*.txt")), None))
    merged = with_teacher_weights(imported)
    assert merged.state.keys() == imported.state.keys() and imported.teacher is not None
    changed = {key for key in merged.state if not torch.equal(merged.state[key], imported.state[key])}
    floats = [key for key, value in imported.teacher.items() if value.is_floating_point()]
    assert len(changed) >= len(floats) - 3  # a frozen table or marker may be equal
    assert not any("decoder" in key or "final_proj" in key or "regression_head" in key for key in changed)


@pytest.mark.parametrize(
    ("name", "item"),
    [("text 1", "the mill"), ("image 1", np.zeros((9, 9, 3), np.uint8)),
     ("image 2", np.zeros((9, 9), np.uint8)), ("audio 1", np.zeros(4000, np.float32))],
)  # fmt: skip
def test_a_pretrained_folder_is_used_without_its_pretraining_parts(name: str, item: Any, saved: Any) -> None:
    assert load(saved(name)).embed(item).shape == (16,)


def test_the_colours_of_a_folder_are_those_it_was_trained_with(saved: Any) -> None:
    path = saved("image 1") / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"task": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.2]}}))
    seen = load(path.parent).transform(Image.new("RGB", (16, 16), (51, 102, 153)))
    assert seen[:, 5, 5].tolist() == pytest.approx([0.2, 0.8, 1.5], abs=1e-5)


def test_a_list_gets_the_answers_of_its_items_in_its_order(saved: Any) -> None:
    model = load(saved("text 1, sentences"))
    texts = ["the old river mill", "the", "the river", ("the old", "mill"), "old mill"]
    alone = np.stack([model.classify(text)[1] for text in texts])
    assert model.classify(texts)[1] == pytest.approx(alone, abs=1e-6)
    assert len({row.tobytes() for row in alone.round(5)}) > 3, "they differ"


def test_long_recordings_take_the_room_of_several(saved: Any) -> None:
    second = 16_000
    batches = load(saved("audio 1"))._batches
    assert batches([15 * second] * 5, 4) == [[0, 1], [2, 3], [4]], "of 40 s"
    assert batches([second] * 5, 4) == [[0, 1, 2, 3], [4]]


def test_frames_beside_a_seam_have_heard_two_seconds_of_both_sides(saved: Any) -> None:
    model = load(saved("audio 1"))
    samples, margin = torch.zeros(75 * 16_000), 2 * 16_000 // total_stride(model.layers) - 2
    pieces = model._pieces(samples)
    covered = 0
    for index, (part, kept) in enumerate(pieces):
        frames = frame_count(model.layers, len(part))
        first, last, _ = kept.indices(frames)
        assert first >= (margin if index else 0)
        assert frames - last >= (margin if index < len(pieces) - 1 else 0)
        covered += last - first
    assert len(pieces) == 3 and covered == frame_count(model.layers, len(samples))


@pytest.mark.parametrize(
    ("change", "told"),
    [({"format": 2}, "has format 2; this version reads 1"), ({"format": None}, "has format None"),
     ({"kind": "diffusion"}, "kind = 'diffusion'   must be one of"),
     ({"tokenizer": "x"}, "not the tokenizer the model"),
     (None, "is not readable JSON")],
)  # fmt: skip
def test_folders_that_are_not_read_as_something_else(change: Any, told: str, saved: Any) -> None:
    path = saved("text 2") / "config.json"
    text = json.dumps(json.loads(path.read_text()) | change) if change else "{"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=told):
        load(path.parent)


@pytest.mark.parametrize("count", [5, 6])
def test_weights_that_do_not_fit_are_listed_or_counted(count: int) -> None:
    module = torch.nn.Linear(2, 2)
    state = {f"extra{number}": torch.zeros(1) for number in range(count)} | module.state_dict()
    with pytest.raises(CheckpointError, match="unexpected: extra4") as caught:
        load_strictly(module, state, "the file")
    assert ("... 6 differences in all" in str(caught.value)) == (count == 6)


def test_safetensors_come_with_a_table_and_load_alone(saved: Any, tmp_path: Path) -> None:
    before = read_artifact(saved("audio 2"))
    export_safetensors(before, tmp_path / "plain")
    table = (tmp_path / "plain" / "KEYS.md").read_text()
    assert "| `blocks.{i}.attn.qkv.weight` | 48 x 16 | 2 | queries, keys, values |" in table
    assert "teacher.safetensors" in table and "| scalar |" not in table
    assert all(meaning(name) for name in before.state)
    features = load(tmp_path / "plain").embed([torch.randn(4000).numpy()])
    assert features[0].shape == (16,)
    with pytest.raises(CheckpointError, match="not empty"):
        export_safetensors(before, tmp_path / "plain")


@pytest.mark.parametrize("name", ["text 1", "text 1, sentences"])
def test_load_reads_fairseq_files_and_hugging_face_folders(name: str, saved: Any, tmp_path: Path) -> None:
    before = read_artifact(saved(name))
    export_fairseq(before, tmp_path / "fs" / "model.pt")
    export_folder(before, tmp_path / "hf")
    texts = ["the river", "the old mill"]
    wanted = load(before.folder).embed(texts)
    for place in (tmp_path / "fs" / "model.pt", tmp_path / "hf"):
        model = load(place)
        for mine, theirs in zip(model.embed(texts), wanted, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
        if "sentences" in name:
            assert model.classify(texts)[1] == pytest.approx(load(before.folder).classify(texts)[1], abs=1e-6)
    (tmp_path / "fs" / "dict.txt").unlink()
    with pytest.raises(CheckpointError, match="dictionary"):
        load(tmp_path / "fs" / "model.pt")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(tmp_path / "nothing")
