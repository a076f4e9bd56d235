"""What turns raw input into tensors, in Hugging Face's files: extractor, letters, tokenizer, labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import Artifact
from ..config import IMAGENET_MEAN, IMAGENET_STD
from ..data.bpe import shared_bpe
from ..data.dictionary import MASK, NUM_SPECIALS, SPECIALS, Dictionary
from ..errors import CheckpointError
from ..json_files import read_json


def label_fields(artifact: Artifact) -> dict[str, Any]:
    """Class names in their configuration."""
    names = [str(label) for label in artifact.config["task"].get("labels") or []]
    if artifact.kind == "ctc":
        return {}
    if artifact.config["task"].get("regression"):
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(names),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


def write_processor(artifact: Artifact, folder: Path) -> None:
    """What turns raw input into tensors, in their formats."""
    # Without this name their AutoProcessor gives the tokenizer alone.
    processor = {"processor_class": "Wav2Vec2Processor"} if artifact.letters is not None else {}
    if artifact.modality == "AUDIO":
        extractor = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            **processor,
            "do_normalize": bool(artifact.config["task"].get("normalize", True)),
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": 16000,
        }
        write_json(folder / "preprocessor_config.json", extractor)
    if artifact.modality == "IMAGE":
        task, size = artifact.config["task"], read_json(folder / "config.json")["image_size"]
        image_processor = {
            "image_processor_type": "BeitImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 3,  # bicubic
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": list(task.get("mean") or IMAGENET_MEAN),
            "image_std": list(task.get("std") or IMAGENET_STD),
        }
        write_json(folder / "preprocessor_config.json", image_processor)
    if artifact.letters is not None:
        names = list(artifact.letters.symbols)
        names[:NUM_SPECIALS] = ["<pad>", "<s>", "</s>", "<unk>"]  # their blank is <pad>, fairseq's is <s>
        write_json(folder / "vocab.json", {name: index for index, name in enumerate(names)})
        tokenizer = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", **processor}
        tokenizer |= {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        write_json(folder / "tokenizer_config.json", tokenizer)
    if artifact.tokenizer is not None:
        _write_text_tokenizer(artifact, folder)


def _write_text_tokenizer(artifact: Artifact, folder: Path) -> None:
    """RoBERTa's files: the tokens of the dictionary in its order, and the merges."""
    tokenizer = artifact.tokenizer
    assert tokenizer is not None
    token_of = {number: token for token, number in read_json(tokenizer.bpe.encoder_json).items()}
    vocabulary: dict[str, int] = {}
    for index, symbol in enumerate(tokenizer.dictionary.with_mask().symbols):
        token = token_of.get(int(symbol)) if symbol.isascii() and symbol.isdecimal() else symbol
        vocabulary[symbol if token is None or token in vocabulary else token] = index
    write_json(folder / "vocab.json", vocabulary)
    shutil.copyfile(tokenizer.bpe.vocab_bpe, folder / "merges.txt")
    limit = (
        int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]) - 2
    )
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", "model_max_length": limit}
    )


def read_letters(folder: Path, symbols: int | None) -> Dictionary | None:
    """The letters in a folder of a CTC model; ``None`` without ``vocab.json``."""
    path = folder / "vocab.json"
    if symbols is None or not path.is_file():
        return None
    values = read_json(path)
    by_id = {number: name for name, number in values.items() if isinstance(number, int)}
    if sorted(by_id) != list(range(symbols)):
        raise CheckpointError(f"{path} has {len(values)} symbols; the projection has {symbols}, from 0 on")
    names = [by_id[index] for index in range(NUM_SPECIALS, symbols)]
    return Dictionary(names, [1] * len(names))


def read_dictionary(folder: Path, size: int) -> Dictionary | None:
    """The dictionary in a folder of a text model; ``None`` without ``vocab.json``.

    Their vocabulary maps GPT-2's token strings to ids; ours maps GPT-2's numbers, as fairseq's does.
    """
    path = folder / "vocab.json"
    if not path.is_file():
        return None
    by_id = {number: name for name, number in read_json(path).items() if isinstance(number, int)}
    if sorted(by_id) != list(range(size)) or tuple(by_id[i] for i in range(NUM_SPECIALS)) != SPECIALS:
        raise CheckpointError(f"{path} is no RoBERTa vocabulary of {size} symbols (the embedding's rows)")
    number_of = read_json(shared_bpe().encoder_json)
    names = [by_id[index] for index in range(NUM_SPECIALS, size)]
    if names[-1:] == [MASK]:
        names = names[:-1]
    symbols = [str(number_of.get(name, name)) for name in names]
    return Dictionary(symbols, [1] * len(symbols)).with_mask()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """An object as indented JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
