"""The model folder: weights as safetensors, what they are as JSON, and the tokenizer they were trained with.

::

    model.safetensors     weights under the reference's names, fp32
    config.json           kind, architecture, head, task (labels, metric), dictionary hash, origin
    tokenizer/            encoder.json, vocab.bpe, dict.txt (text)
    dict.ltr.txt          output symbols (CTC)
    teacher.safetensors   the teacher, where it is kept

Nothing in it is executed on loading. B texts, T tokens, D width, C classes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .config import Data2VecMultiConfig, ModalityKind, SentenceHeadConfig
from .ctc import CTCConfig
from .data.dictionary import Dictionary
from .data.tokenizer import TextTokenizer
from .errors import CheckpointError, DataError
from .heads import SentenceClassifier
from .student import Data2VecMulti
from .text import PAD
from .typed import build, to_dict
from .v1.config import Data2VecAudioConfig

logger = logging.getLogger(__name__)

FORMAT = 1
EMBEDDING_KEY = "modality_encoders.TEXT.local_encoder.embed_tokens.weight"
LETTERS = "dict.ltr.txt"
Kind = Literal["pretrained", "sentence_classifier", "ctc"]
ModelConfig = Data2VecMultiConfig | Data2VecAudioConfig
HeadConfig = SentenceHeadConfig | CTCConfig
_TRUNK_PREFIX = {"sentence_classifier": "model.", "ctc": "w2v_encoder.w2v_model."}
Pooling = Literal["mean", "cls", "none"]


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
        teacher: the teacher's weights, names relative to the averaged module.
        origin: where the weights come from (run, update, recipe, parent model).
    """
    folder = Path(folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(_plain(state), beside / "model.safetensors")
    if teacher is not None:
        save_file(_plain(teacher), beside / "teacher.safetensors")
    dictionary = tokenizer.dictionary if tokenizer is not None else letters
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
    (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(beside / "tokenizer")
    if letters is not None:
        letters.save(beside / LETTERS)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def is_artifact(folder: Path | str) -> bool:
    """Whether ``folder`` looks like a model folder of ours."""
    folder = Path(folder)
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


@dataclass
class Artifact:
    """A model folder as read: nothing built, and weights read only when asked for.

    Attributes:
        kind: what the weights are.
        model_config: architecture.
        head_config: the head's, if there is one.
        config: the whole ``config.json``.
        tokenizer: ``None`` if the folder has none.
        folder: where it was read.
        letters: output symbols of a CTC model.
    """

    kind: Kind
    model_config: ModelConfig
    head_config: HeadConfig | None
    config: dict[str, Any]
    tokenizer: TextTokenizer | None
    folder: Path
    letters: Dictionary | None = None

    @property
    def modality(self) -> ModalityKind:
        """What the model reads."""
        return modality_of(self.model_config)

    @functools.cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The weights."""
        with _safetensors_errors(self.folder / "model.safetensors") as path:
            return load_file(path)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        with _safetensors_errors(self.folder / "model.safetensors") as path, safe_open(path, "pt") as file:
            for key in (EMBEDDING_KEY, f"model.{EMBEDDING_KEY}"):
                if key in file.keys():  # noqa: SIM118 - not a mapping
                    return file.get_slice(key).get_shape()[0]
        raise CheckpointError(
            f"{self.folder / 'model.safetensors'} holds no text model: {EMBEDDING_KEY} is missing"
        )

    @property
    def trunk_state(self) -> dict[str, torch.Tensor]:
        """Weights of the network itself: no decoder, no head, no prefix."""
        prefix = _TRUNK_PREFIX.get(self.kind, "")
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.state.items()
            if name.startswith(prefix)
            and ".decoder." not in name
            and not name.startswith(("classification_heads.", "final_proj."))
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
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise CheckpointError(f"{folder / 'config.json'} has format {found!r}; this version reads {FORMAT}")
    if config.get("kind") not in get_args(Kind):
        raise CheckpointError(f"{folder / 'config.json'}: unknown kind {config.get('kind')!r}")
    tokenizer = TextTokenizer.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    if tokenizer is not None and config.get("tokenizer") not in (None, tokenizer.digest()):
        raise CheckpointError(f"{folder / 'tokenizer'} is not the tokenizer the model was trained with")
    head: HeadConfig | None = None
    if config.get("head"):
        head = build(CTCConfig if config["kind"] == "ctc" else SentenceHeadConfig, config["head"])
    is_v1 = config.get("family") == "data2vec_audio"
    model_config = (Data2VecAudioConfig if is_v1 else Data2VecMultiConfig).from_dict(config["model"])
    letters = Dictionary.load(folder / LETTERS) if (folder / LETTERS).is_file() else None
    if letters is not None and config.get("dictionary") not in (None, letters.digest()):
        raise CheckpointError(f"{folder / LETTERS} is not the dictionary the model was trained with")
    artifact = Artifact(config["kind"], model_config, head, config, tokenizer, folder, letters)
    if artifact.modality == "TEXT":
        _ = artifact.vocab_size  # a damaged header shows here, before anything is built
    else:
        with _safetensors_errors(folder / "model.safetensors") as path, safe_open(path, "pt"):
            pass
    return artifact


def family_of(config: ModelConfig) -> str:
    """The reference's name of the model class."""
    return "data2vec_audio" if isinstance(config, Data2VecAudioConfig) else "data2vec_multi"


def modality_of(config: ModelConfig) -> ModalityKind:
    """What models of this configuration read."""
    return "AUDIO" if isinstance(config, Data2VecAudioConfig) else config.modality_name


@contextlib.contextmanager
def _safetensors_errors(path: Path) -> Iterator[Path]:
    try:
        yield path
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error


def load(folder: Path | str) -> Any:
    """A ready model from a model folder: ``data2vec.load(folder).embed(["some text"])``.

    Returns:
        :class:`LoadedModel` for text, :class:`data2vec.speech_model.SpeechModel` for audio.
    """
    artifact = read_artifact(folder)
    if artifact.modality == "AUDIO":
        from .speech_model import SpeechModel

        return SpeechModel(artifact)
    return LoadedModel(artifact)


class LoadedModel:
    """A model in evaluation mode with its tokenizer."""

    def __init__(self, artifact: Artifact) -> None:
        if artifact.tokenizer is None:
            raise CheckpointError(f"{artifact.folder} has no tokenizer; import it again with its dictionary")
        assert isinstance(artifact.model_config, Data2VecMultiConfig)
        assert artifact.head_config is None or isinstance(artifact.head_config, SentenceHeadConfig)
        self.config = artifact.config
        self.tokenizer = artifact.tokenizer
        self.model_config = artifact.model_config
        self.classifier: SentenceClassifier | None = None
        if artifact.head_config is not None:
            self.classifier = SentenceClassifier(
                artifact.model_config, artifact.head_config, vocab_size=artifact.vocab_size
            )
            load_strictly(self.classifier, artifact.state, artifact.folder)
            self.network = self.classifier.model
        else:
            self.network = Data2VecMulti(
                artifact.model_config, vocab_size=artifact.vocab_size, with_decoder=False
            )
            load_strictly(self.network, artifact.trunk_state, artifact.folder)
        self.network.eval()
        if self.classifier is not None:
            self.classifier.eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], pooling: Pooling = "mean", layer: int = -1) -> list[np.ndarray]:
        """Features of texts.

        Args:
            texts: B texts.
            pooling: "mean" over real tokens, "cls" (the first token), or "none".
            layer: block whose output is taken; -1 is the last, 0 the first.

        Returns:
            B arrays: (D,), or (T, D) without pooling.
        """
        depth = self.model_config.depth
        if not -depth <= layer < depth:
            raise DataError(
                f"layer = {layer} must lie in {-depth} ... {depth - 1}: the model has {depth} blocks"
            )
        if pooling not in ("mean", "cls", "none"):
            raise DataError(f"pooling = {pooling!r} must be one of mean, cls, none")
        out: list[np.ndarray] = [np.empty(0)] * len(texts)
        for rows, source, padding in self._batches([(text,) for text in texts]):
            features = self.network(source, padding, all_layers=True).layers[layer]
            for row, x_TD, pad_T in zip(rows, features, padding, strict=True):
                real_TD = x_TD[~pad_T]
                pooled = {"mean": real_TD.mean(0), "cls": real_TD[0], "none": real_TD}[pooling]
                out[row] = pooled.float().numpy()
        return out

    @torch.inference_mode()
    def classify(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> tuple[list[str], np.ndarray]:
        """Class probabilities of texts or text pairs, or the values of a regression.

        Args:
            texts: B texts, or B (first, second) pairs.

        Returns:
            The class names, and (B, C) probabilities; a regression gives (["score"], (B, 1) values).
        """
        if self.classifier is None:
            raise CheckpointError(f"this is a {self.config['kind']} model without a head: use embed()")
        task = self.config["task"]
        regression = bool(task.get("regression"))
        names = ["score"] if regression else [str(label) for label in task["labels"]]
        scores = np.zeros((len(texts), len(names)))
        pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        for rows, source, padding in self._batches(pairs):
            logits = self.classifier(source, padding)
            scores[rows] = (logits if regression else logits.softmax(-1)).double().numpy()
        return names, scores

    def _batches(
        self, texts: Sequence[tuple[str, ...]], size: int = 32
    ) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """Row numbers, token ids and padding of batches of similar length."""
        dictionary = self.tokenizer.dictionary
        text = self.model_config.modalities.text
        assert text is not None, "a text model has its section"
        limit = text.max_source_positions
        encoded: list[np.ndarray] = []
        for parts in texts:
            ids = np.concatenate([[dictionary.bos], self.tokenizer.encode(parts[0])])
            for part in parts[1:]:
                ids = np.concatenate([ids, [dictionary.eos], self.tokenizer.encode(part)])
            encoded.append(ids)
        too_long = sum(len(ids) > limit for ids in encoded)
        if too_long:
            logger.warning(
                "%d of %d texts are longer than %d tokens and were cut", too_long, len(texts), limit
            )
        encoded = [ids[:limit] for ids in encoded]
        order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            source = torch.full((len(rows), max(len(encoded[row]) for row in rows)), PAD, dtype=torch.int64)
            for index, row in enumerate(rows):
                source[index, : len(encoded[row])] = torch.from_numpy(encoded[row])
            lengths = torch.tensor([len(encoded[row]) for row in rows])
            yield rows, source, torch.arange(source.shape[1])[None, :] >= lengths[:, None]


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
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
