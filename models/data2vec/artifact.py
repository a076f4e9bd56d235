"""The model folder: weights as safetensors, what they are as JSON, and the tokenizer they were trained with.

::

    model.safetensors     weights under the reference's names, fp32
    config.json           kind, architecture, head, task (labels, metric), dictionary hash, origin
    tokenizer/            encoder.json, vocab.bpe, dict.txt (text)
    dict.ltr.txt          output symbols (CTC)
    dict.txt              words or other units (language models)
    teacher.safetensors   the teacher, where it is kept

Nothing in it is executed on loading.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .artifact_schema import FORMAT, HeadConfig, Kind, check_description
from .data.dictionary import Dictionary
from .data.tokenizer import TextTokenizer
from .errors import CheckpointError
from .families import ModelConfig, family_of, modality_of
from .folders import written_folder
from .json_files import read_json
from .typed import to_dict
from .v1.image_config import Data2VecVisionConfig
from .v1.text_config import Data2VecTextConfig

EMBEDDING_KEY = "modality_encoders.TEXT.local_encoder.embed_tokens.weight"
V1_EMBEDDING_KEY = "encoder.sentence_encoder.embed_tokens.weight"
TEACHER = "teacher.safetensors"
LETTERS = "dict.ltr.txt"
WORDS = "dict.txt"
_TRUNK_PREFIX = {
    "sentence_classifier": "model.",
    "image_classifier": "model.",
    "ctc": "w2v_encoder.w2v_model.",
    "audio_classifier": "d2v_model.",
}
# What a network without its pretraining parts and head does not have.
_NOT_TRUNK = (
    "classification_heads.", "final_proj.", "recon_proj.", "encoder.regression_head.", "fc_norm.", "head.",
)  # fmt: skip
_NOT_V1_VISION_TRUNK = ("mask_emb", "encoder.norm.")


def save_artifact(
    folder: Path | str,
    *,
    kind: Kind,
    model_config: ModelConfig,
    state: Mapping[str, torch.Tensor],
    head_config: HeadConfig | None = None,
    task: Mapping[str, Any] | None = None,
    tokenizer: TextTokenizer | None = None,
    letters: Dictionary | None = None,
    words: Dictionary | None = None,
    teacher: Mapping[str, torch.Tensor] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder; it appears complete or not at all.

    Args:
        folder: replaced if it exists.
        kind: what the weights are.
        model_config: architecture of the network.
        state: weights under the reference's names.
        head_config: the fine-tuning head.
        task: labels, ``regression``, ``max_positions``, metric: what is needed to use the head.
        tokenizer: text to token ids.
        letters: output symbols of a CTC model.
        words: symbols of a language model.
        teacher: the teacher's weights, names relative to the averaged module.
        origin: where the weights come from (run, update, recipe, parent model).
    """
    folder = Path(folder)
    dictionary = tokenizer.dictionary if tokenizer is not None else letters or words
    config = {
        "format": FORMAT,
        "kind": kind,
        "family": family_of(model_config),
        "model": model_config.to_dict(),
        "head": to_dict(head_config) if head_config is not None else None,
        "task": dict(task or {}),
        "dictionary": None if dictionary is None else dictionary.digest(),
        "tokenizer": tokenizer.digest() if tokenizer is not None else None,
        "origin": dict(origin or {}),
    }
    with written_folder(folder) as beside:
        save_file(_plain(state), beside / "model.safetensors")
        if teacher is not None:
            save_file(_plain(teacher), beside / TEACHER)
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(beside / "tokenizer")
        if letters is not None:
            letters.save(beside / LETTERS)
        if words is not None:
            words.save(beside / WORDS)
    return folder


def is_artifact(folder: Path | str) -> bool:
    """Whether ``folder`` looks like a model folder of ours."""
    folder = Path(folder)
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


@dataclass
class Artifact:
    """A model folder as read: nothing built, and weights read only when asked for."""

    kind: Kind  # what the weights are
    model_config: ModelConfig  # architecture
    head_config: HeadConfig | None  # the head's, if there is one
    config: dict[str, Any]  # the whole ``config.json``
    tokenizer: TextTokenizer | None  # ``None`` if the folder has none
    folder: Path  # where it was read
    letters: Dictionary | None = None  # output symbols of a CTC model
    words: Dictionary | None = None  # symbols of a language model

    @property
    def modality(self) -> str:
        """What the model reads."""
        return modality_of(self.model_config)

    @functools.cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The weights."""
        with _safetensors_errors(self.folder / "model.safetensors") as path:
            return load_file(path)

    @functools.cached_property
    def teacher(self) -> dict[str, torch.Tensor] | None:
        """The teacher's weights, names relative to the averaged module; ``None`` if the folder has none."""
        file = self.folder / TEACHER
        if not file.is_file():
            return None
        with _safetensors_errors(file) as path:
            return load_file(path)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        with _safetensors_errors(self.folder / "model.safetensors") as path, safe_open(path, "pt") as file:
            for key in (EMBEDDING_KEY, f"model.{EMBEDDING_KEY}", V1_EMBEDDING_KEY):
                if key in file.keys():  # noqa: SIM118 - not a mapping
                    return file.get_slice(key).get_shape()[0]
        raise CheckpointError(
            f"{self.folder / 'model.safetensors'} holds no text model: {EMBEDDING_KEY} is missing"
        )

    @property
    def trunk_state(self) -> dict[str, torch.Tensor]:
        """Weights of the network itself: no decoder, no head, no prefix."""
        prefix = _TRUNK_PREFIX.get(self.kind, "")
        left_out = _NOT_TRUNK
        if isinstance(self.model_config, Data2VecTextConfig):
            prefix = ""
        if isinstance(self.model_config, Data2VecVisionConfig):
            left_out += _NOT_V1_VISION_TRUNK
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.state.items()
            if name.startswith(prefix)
            and ".decoder." not in name
            and not name.removeprefix(prefix).startswith(left_out)
        }


def read_artifact(folder: Path | str) -> Artifact:
    """Read and check a model folder.

    Raises:
        CheckpointError: it is no model folder, is incomplete or damaged, or of a newer format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is no model folder of ours: {' and '.join(missing)} missing")
    path = folder / "config.json"
    config = read_json(path)
    checked = check_description(config, path)
    tokenizer = TextTokenizer.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    if tokenizer is not None and config.get("tokenizer") not in (None, tokenizer.digest()):
        raise CheckpointError(f"{folder / 'tokenizer'} is not the tokenizer the model was trained with")
    letters, words = (_stored_dictionary(folder / name, config) for name in (LETTERS, WORDS))
    config |= {name: config.get(name) or {} for name in ("task", "origin")}
    kind = checked.description.kind
    artifact = Artifact(kind, checked.model, checked.head, config, tokenizer, folder, letters, words)
    if kind == "language_model":
        checked.check_weights(None if words is None else len(words))
    elif artifact.modality == "TEXT":
        checked.check_weights(artifact.vocab_size)
        _check_size(folder, "tokenizer", None if tokenizer is None else len(tokenizer), artifact.vocab_size)
    else:
        checked.check_weights(None)
        if kind == "ctc":
            _check_size(folder, LETTERS, None if letters is None else len(letters), checked.task.num_symbols)
    return artifact


def _check_size(folder: Path, name: str, found: int | None, wanted: int | None) -> None:
    if found not in (None, wanted):
        raise CheckpointError(f"{folder / name} has {found} symbols, but the model has {wanted}")


def _stored_dictionary(path: Path, config: Mapping[str, Any]) -> Dictionary | None:
    if not path.is_file():
        return None
    found = Dictionary.load(path)
    if config.get("dictionary") not in (None, found.digest()):
        raise CheckpointError(f"{path} is not the dictionary the model was trained with")
    return found


@contextlib.contextmanager
def _safetensors_errors(path: Path) -> Iterator[Path]:
    try:
        yield path
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: object) -> None:
    """Load weights, or say which are missing, unexpected or of another shape.

    Raises:
        CheckpointError: with the names.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        lines = [f"{source} does not fit the model:"]
        lines += [f"  missing: {name}" for name in missing[:5]] + [
            f"  unexpected: {name}" for name in unexpected[:5]
        ]
        lines += [f"  {text}" for text in shapes[:5]]
        total = len(missing) + len(unexpected) + len(shapes)
        if total > len(lines) - 1:
            lines.append(f"  ... {total} differences in all")
        raise CheckpointError("\n".join(lines))
    module.load_state_dict(dict(state))


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in state.items()
    }
