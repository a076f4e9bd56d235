"""What an import gives: the model in our terms, and an account of everything that was in the file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..artifact import LETTERS, WORDS
from ..artifact_schema import HeadConfig, Kind, kind_of
from ..data.dictionary import Dictionary
from ..errors import CheckpointError
from ..families import ModelConfig
from ..weight_shapes import Shapes

State = dict[str, torch.Tensor]
_TRAINED_FOR: dict[Kind, str] = {
    "pretrained": "pretrained",
    "sentence_classifier": "fine-tuned for sentences",
    "ctc": "fine-tuned for CTC",
    "image_classifier": "fine-tuned for classification",
    "audio_classifier": "fine-tuned for events",
}
_SHOWN = 6  # names in a message; the rest is counted


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of everything in the file."""

    family: str
    mapped: list[str]  # tensors taken
    dropped: dict[str, str]  # tensors left out, with the reason
    missing: list[str]  # tensors that the model can do without (decoder, teacher)
    ignored_config: dict[str, str]  # configuration fields without meaning here, with the reason
    notes: list[str]

    def lines(self) -> list[str]:
        """The report for people."""
        out = [f"{self.family}: {len(self.mapped)} tensors taken"]
        out += [f"dropped ({reason}): {some(names)}" for reason, names in _by_reason(self.dropped)]
        if self.missing:
            out.append(f"missing: {some(self.missing)}")
        out += [
            f"config ignored ({reason}): {some(names)}" for reason, names in _by_reason(self.ignored_config)
        ]
        return out + self.notes


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A model of the reference in our terms; tensor names are the reference's, which are ours."""

    kind: Kind
    model_config: ModelConfig
    state: State  # fine-tuned: the trunk's names start with "model."
    teacher: State | None
    head_config: HeadConfig | None
    num_updates: int | None
    report: ImportReport
    regression: bool = False  # the head predicts a number
    vocab_size: int | None = None  # of a text model, <mask> included; of a CTC or language model, its symbols
    normalize: bool = False  # audio: each waveform gets zero mean and unit variance
    pixel_norm: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean, deviation; ImageNet's
    dictionary: Dictionary | None = None  # the given one; with <mask> for encoders of text
    classes: tuple[str, ...] | None = None  # names of a classifier's classes, which no fairseq file holds

    @property
    def dictionary_file(self) -> str:
        """The file that holds such a model's dictionary, as the reference names it."""
        return LETTERS if self.kind == "ctc" else WORDS


@dataclass
class Sorting:
    """Sorts the tensors of one file into taken, dropped, missing and refused."""

    path: Path
    num_updates: int | None = None  # that the file tells
    mapped: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ignored_config: dict[str, str] = field(default_factory=dict)
    teacher: State | None = None
    refused: list[str] = field(default_factory=list)
    _rules: list[tuple[re.Pattern[str], str]] = field(default_factory=list)

    def drop(self, pattern: str, reason: str) -> None:
        """Tensors whose name matches from its beginning are left out."""
        self._rules.append((re.compile(pattern), reason))

    def take(self, tensors: State, wanted: Shapes, prefix: str = "") -> State:
        """The wanted tensors; what is absent, unknown or of another shape is noted for :meth:`finish`.

        Args:
            tensors: by name.
            wanted: every name that must be there, with its shape.
            prefix: put before the names in the report.
        """
        absent = [prefix + name for name in wanted if name not in tensors]
        unknown: list[str] = []
        for name in sorted(tensors.keys() - wanted.keys()):
            reason = next((reason for pattern, reason in self._rules if pattern.match(name)), None)
            if reason is None:
                unknown.append(prefix + name)
            else:
                self.dropped[prefix + name] = reason
        if absent:
            self.refused.append(f"missing: {some(absent)}")
        if unknown:
            self.refused.append(f"unknown: {some(unknown)}")
        taken = {name: tensors[name] for name in wanted if name in tensors}
        for name, tensor in taken.items():
            shape = tuple(tensor.shape)
            if shape != wanted[name]:
                self.refused.append(f"{prefix}{name} is {shape}, but its configuration says {wanted[name]}")
        self.mapped += [prefix + name for name in taken]
        return taken

    def take_teacher(self, tensors: State | None, wanted: Shapes) -> None:
        """The teacher's tensors; where a file has none, that is noted."""
        if tensors is None:
            self.missing.append("_ema")
            self.notes.append("without teacher: further pretraining would start it as a copy of the student")
        else:
            self.teacher = self.take(tensors, wanted, "_ema.")

    def compare_depth(
        self, names: Iterable[str], beginning: str, said: int, what: str, key: str = ""
    ) -> None:
        """One clear line instead of a dozen missing tensors.

        Args:
            names: of all tensors.
            beginning: of the names of blocks, before their number.
            said: number of blocks by the configuration.
            what: blocks or layers.
            key: the configuration's, for the message.
        """
        if (found := count_blocks(names, beginning)) != said:
            self.refused.append(f"{found} {what} are there, but its configuration says {key}{said}")

    def finish(self) -> None:
        """Raise :class:`CheckpointError` with everything that does not fit."""
        if self.refused:
            lines = self.refused[:_SHOWN]
            if len(self.refused) > _SHOWN:
                lines.append(f"and {len(self.refused) - _SHOWN} more")
            text = "\n  ".join(lines)
            raise CheckpointError(
                f"checkpoint {self.path} does not fit the configuration inside it\n  {text}"
            )

    def imported(
        self, family: str, config: ModelConfig, state: State, head: HeadConfig | None = None, **facts: Any
    ) -> ImportedModel:
        """The model with the account of its import, if everything fits.

        Args:
            family: for the report, which adds what the model was trained for.
            config: of the network.
            state: the model's tensors.
            head: configuration of what was put on it for fine-tuning.
            facts: further fields of :class:`ImportedModel`.
        """
        self.finish()
        kind = kind_of(config, head)
        report = ImportReport(
            family=f"{family}, {_TRAINED_FOR[kind]}" if kind in _TRAINED_FOR else family,
            mapped=self.mapped,
            dropped=self.dropped,
            missing=self.missing,
            ignored_config=self.ignored_config,
            notes=self.notes,
        )
        return ImportedModel(
            kind=kind,
            model_config=config,
            state=state,
            teacher=self.teacher,
            head_config=head,
            num_updates=self.num_updates,
            report=report,
            **facts,
        )


def rename_report(imported: ImportedModel, family: str) -> ImportedModel:
    """The same import under another name of its family."""
    return dataclasses.replace(imported, report=dataclasses.replace(imported.report, family=family))


def count_blocks(names: Iterable[str], beginning: str) -> int:
    """How many different numbers stand after the beginning of a name."""
    pattern = re.compile(re.escape(beginning) + r"(\d+)\.")
    return len({match.group(1) for name in names if (match := pattern.match(name))})


def some(names: Iterable[str]) -> str:
    """The first few names and the number of the others."""
    listed = list(names)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest


def _by_reason(reasons: dict[str, str]) -> list[tuple[str, list[str]]]:
    order = dict.fromkeys(reasons.values())
    return [(reason, [name for name, why in reasons.items() if why == reason]) for reason in order]
