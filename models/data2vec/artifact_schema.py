"""What ``config.json`` of a model folder may say, and what its weights must hold, before anything is built.

The types are those of the dataclasses; the rules are those of the configurations (``problems``) and, for
every field alike, those of :func:`data2vec.rules.bounds`. All problems of a folder are reported together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from safetensors import SafetensorError, safe_open

from .audio_events import AudioEventConfig
from .config import ImageHeadConfig, ModalityKind, SentenceHeadConfig
from .ctc import CTCConfig
from .errors import CheckpointError, ConfigError, Problem, short
from .families import FAMILIES, ModelConfig, modality_of
from .lm.config import TransformerLMConfig
from .mae_config import MaeConfig
from .rules import impossible
from .typed import build

FORMAT = 1
Kind = Literal[
    "pretrained", "sentence_classifier", "ctc", "image_classifier", "audio_classifier", "language_model"
]  # fmt: skip
HeadConfig = SentenceHeadConfig | CTCConfig | ImageHeadConfig | AudioEventConfig
_HEADS: dict[Kind, tuple[type[HeadConfig], ModalityKind]] = {
    "sentence_classifier": (SentenceHeadConfig, "TEXT"),
    "ctc": (CTCConfig, "AUDIO"),
    "image_classifier": (ImageHeadConfig, "IMAGE"),
    "audio_classifier": (AudioEventConfig, "AUDIO"),
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")
_COUNTED = ("relative_position_index",)  # ends of the names of tensors of whole numbers
_SHOWN = 8


def kind_of(config: ModelConfig, head: HeadConfig | None) -> Kind:
    """What a network with such a head is."""
    if isinstance(config, TransformerLMConfig):
        return "language_model"
    found: list[Kind] = [kind for kind, (cls, _) in _HEADS.items() if type(head) is cls]
    return found[0] if found else "pretrained"


@dataclass(kw_only=True)
class TaskFacts:
    """What is needed to use the model; tasks may note more, which is not checked."""

    labels: list[str | int | float | bool] | None = None
    regression: bool | None = None
    max_positions: int | None = None
    sample_rate: int | None = None
    normalize: bool | None = None
    num_symbols: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(kw_only=True)
class Description:
    """The whole ``config.json``."""

    format: int
    kind: Kind
    family: str | None = None  # folders without one hold v2 models
    model: dict[str, Any]
    head: dict[str, Any] | None = None
    task: dict[str, Any] | None = None
    dictionary: str | None = None
    tokenizer: str | None = None
    origin: dict[str, Any] | None = None


@dataclass(frozen=True)
class Tensor:
    """What the header of a weights file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass
class Checked:
    """A description whose fields are possible, and the header of its weights."""

    description: Description
    model: ModelConfig
    head: HeadConfig | None
    task: TaskFacts
    path: Path
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def check_weights(self, vocab_size: int | None) -> None:
        """Compare names, shapes and types of the weights with what the configuration asks for.

        Args:
            vocab_size: V of a text or language model; ``None`` if its words are not known, so that it cannot
                be built anyway.

        Raises:
            CheckpointError: they do not fit; nothing was built.
        """
        if vocab_size is None and modality_of(self.model) == "TEXT":
            return
        try:
            wanted = self._wanted(vocab_size or 0)
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{self.path}: no model can be built of it: {text}") from None
        lines = [f"missing: {name}" for name in wanted if name not in self.tensors]
        for name, shape in wanted.items():
            found = self.tensors.get(name)
            if found is None:
                continue
            if found.shape != shape:
                lines.append(f"{name} is {found.shape}, its configuration says {shape}")
            known = _INTEGERS if name.endswith(_COUNTED) else _FLOATS
            if found.dtype not in known:
                lines.append(f"{name} has the type {found.dtype}; known are {', '.join(known)}")
        if lines:
            more = [f"... {len(lines)} differences in all"] if len(lines) > _SHOWN else []
            weights = self.path.with_name("model.safetensors")
            listed = "\n  ".join([*lines[:_SHOWN], *more])
            raise CheckpointError(f"{weights} does not fit the model:\n  {listed}")

    def _wanted(self, vocab_size: int) -> dict[str, tuple[int, ...]]:
        from .weight_shapes import weight_shapes  # networks: they take long to import

        config = self.model
        if modality_of(config) not in get_args(ModalityKind):
            return {}  # a user's family: its own model compares when it loads
        symbols = self.task.num_symbols or 0
        return weight_shapes(config, self.head, vocab_size=vocab_size, num_symbols=symbols)


def check_description(values: Mapping[str, Any], path: Path) -> Checked:
    """The content of a ``config.json``, if a model can be built of it.

    Args:
        values: its content.
        path: the file; the header of ``model.safetensors`` beside it bounds what may be asked for.

    Raises:
        CheckpointError: with all problems, each with its field, its value and the rule.
    """
    if values.get("format") != FORMAT:  # a newer one may have other fields
        raise CheckpointError(f"{path} has format {short(values.get('format'))}; this version reads {FORMAT}")
    problems: list[Problem] = []
    found = build(Description, values, "", problems)
    if found.family is not None and found.family not in FAMILIES:
        problems.append(Problem("family", found.family, f"must be one of {', '.join(FAMILIES)}"))
    if problems:
        raise CheckpointError(str(ConfigError(problems, str(path))))
    tensors = weights_header(path.with_name("model.safetensors"))
    family = FAMILIES[found.family or "data2vec_multi"]
    plain = {name: value for name, value in found.model.items() if name != "_name"}
    model = cast(ModelConfig, build(family, plain, "model", problems))
    head = None
    if found.kind in _HEADS and found.head is None:
        problems.append(Problem("head", None, f"is required for the kind {found.kind}"))
    elif found.kind in _HEADS and found.head is not None:
        head = build(_HEADS[found.kind][0], found.head, "head", problems)
    elif found.head:
        problems.append(Problem("head", found.head, f"must be null: the kind {found.kind} has no head"))
    known = {k: v for k, v in (found.task or {}).items() if k in TaskFacts.__dataclass_fields__}
    task = build(TaskFacts, known, "task", problems)
    if not problems:  # of types: what follows reads the fields
        for part, name in ((model, "model"), (head, "head")):
            problems += [] if part is None else impossible(part, name, len(tensors))
        problems += _kind_problems(found, model, head, task)
    if problems:
        raise CheckpointError(str(ConfigError(problems, str(path))))
    return Checked(found, model, head, task, path, tensors)


def weights_header(path: Path) -> dict[str, Tensor]:
    """Names, shapes and types of the tensors in a safetensors file, whose reader compares them with its size.

    Raises:
        CheckpointError: the file is missing, damaged or truncated.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {name: Tensor(tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None


def _kind_problems(
    found: Description, model: ModelConfig, head: HeadConfig | None, task: TaskFacts
) -> list[Problem]:
    """What family, head and task say differently."""
    problems: list[Problem] = []

    def rule(name: str, value: object, holds: bool, text: str) -> None:
        if not holds:
            problems.append(Problem(name, value, text))

    modality = modality_of(model)
    wanted = _HEADS[found.kind][1] if found.kind in _HEADS else modality
    words = isinstance(model, TransformerLMConfig)
    fits = wanted == modality and words == (found.kind == "language_model")
    if isinstance(model, MaeConfig):
        fits = fits and found.kind == "pretrained"
    rule("kind", found.kind, fits, f"is impossible for a model of the family {found.family} ({modality})")
    classes = getattr(head, "num_classes", None)
    if classes is not None and not task.regression:
        count = None if task.labels is None else len(task.labels)
        text = f"must be as many as head.num_classes {classes}"
        # Image models without names, or with those of another number, count their classes.
        rule("task.labels", task.labels, count == classes or (modality != "TEXT" and not count), text)
    if classes is not None:
        rule("head.num_classes", classes, classes >= 1, "must be >= 1")
    if found.kind == "ctc":
        rule("task.num_symbols", task.num_symbols, (task.num_symbols or 0) >= 1, "must be >= 1")
    for name in ("max_positions", "sample_rate"):
        value = getattr(task, name)
        rule(f"task.{name}", value, value is None or value >= 1, "must be >= 1")
    if modality == "IMAGE":
        for name in ("mean", "std"):
            value = getattr(task, name)
            rule(f"task.{name}", value, not value or len(value) in (1, 3), "must be three numbers")
        rule("task.std", task.std, all(value > 0 for value in task.std or ()), "must be > 0")
    return problems
