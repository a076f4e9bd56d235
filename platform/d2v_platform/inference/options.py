"""The options of ``experiments/infer.py``: the reference's groups and names, read strictly."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from data2vec.ctc_decoding import BeamOptions
from data2vec.errors import ConfigError, DataError, Problem
from data2vec.typed import build

from ..recipe.groups import MISSING
from ..recipe.locate import config_root
from ..recipe.overrides import parse_overrides
from ..recipe.schema import split_names
from ..storage.local_places import folder_to_write

logger = logging.getLogger(__name__)

# Accepted without effect, with the reason that is told once.
_IGNORED = {
    "common": "devices and logs are the platform's",
    "distributed_training": "Ray places the workers: see platform.num_workers",
    "bmuf": "nothing is trained", "optimization": "nothing is trained", "checkpoint": "nothing is trained",
    "hydra": "results lie in common_eval.results_path",
}  # fmt: skip
_IGNORED_FIELDS = {
    "common_eval.quiet": "utterances are in the table", "common_eval.post_process": "follows from the model",
    "common_eval.model_overrides": "a stored model carries its own configuration",
    "dataset.required_batch_size_multiple": "no utterance is ever dropped",
    "dataset.num_workers": "each worker reads its own utterances", "task._name": "",
    "task.normalize": "the model knows how its audio was normalised", "decoding._name": "",
}  # fmt: skip
# Keys of the reference with another name here, with what is said about it.
_MEANT = {
    "common.cpu": ("platform.device", "models compute on the CPU"),
    "distributed_training.distributed_world_size": ("platform.num_workers", "so many Ray workers decode"),
    "decoding.results_path": ("common_eval.results_path", "there is one folder"),
}


@dataclass(kw_only=True)
class TaskOptions:
    """Where utterances and labels are."""

    data: str = MISSING  # folder with <subset>.tsv and, for error rates, <subset>.<labels>
    labels: str | None = "ltr"  # extension of the label files; null = none
    max_sample_size: int | None = None  # longer recordings are refused
    min_sample_size: int | None = None  # shorter utterances are left out


@dataclass(kw_only=True)
class DatasetOptions:
    """Which subsets, in batches of which size."""

    gen_subset: str = "test"  # subsets, separated by commas
    max_tokens: int = 3_000_000  # samples of audio in a batch
    batch_size: int | None = None  # utterances in a batch


@dataclass(kw_only=True)
class DecodingOptions:
    """The search for words."""

    type: Literal["viterbi", "kenlm", "fairseqlm"] = "viterbi"  # greedy, or with a language model
    nbest: int = 1  # hypotheses kept an utterance
    unitlm: bool = False  # language model over letters instead of words
    lmpath: str | None = None  # ARPA text or KenLM binary; fairseqlm: any model name, or a .pt
    lexicon: str | None = None  # WORD<TAB>W O R D | a line
    beam: int = 50  # hypotheses kept a frame
    beamthreshold: float = 50.0  # worse ones than the best by more are dropped
    beamsizetoken: int | None = None  # symbols tried a frame; null = all
    wordscore: float = -1.0  # added for each word
    unkweight: float = -math.inf  # of an unknown word
    silweight: float = 0.0  # added for each word delimiter
    lmweight: float = 2.0  # of the language model
    unique_wer_file: bool = False  # wer.<hash of these options> instead of wer

    def beam_options(self) -> BeamOptions:
        """The decoder's numbers."""
        return BeamOptions(
            beam=self.beam,
            beam_threshold=self.beamthreshold,
            beam_size_token=self.beamsizetoken,
            lm_weight=self.lmweight,
            word_score=self.wordscore,
            sil_weight=self.silweight,
            unk_weight=self.unkweight,
            nbest=self.nbest,
        )

    def problems(self) -> list[Problem]:
        """What is impossible about these options, all of it."""
        found: list[Problem] = []
        if self.type != "viterbi":
            if self.lmpath is None:
                rule = f"is required with decoding.type={self.type}"
                found.append(Problem("decoding.lmpath", None, rule))
            if self.lexicon is None and not self.unitlm:
                rule = f"is required with decoding.type={self.type}, or set decoding.unitlm=true"
                found.append(Problem("decoding.lexicon", None, rule))
        for name in ("lmpath", "lexicon"):
            path = getattr(self, name)
            named = name == "lmpath" and self.type == "fairseqlm"  # a model's name: resolved later
            if path is not None and not named and not Path(path).is_file():
                found.append(Problem(f"decoding.{name}", path, "no such file"))
        try:
            self.beam_options().check()
        except ConfigError as error:
            found += error.problems
        return found


@dataclass(kw_only=True)
class EvaluationOptions:
    """The model and where results go."""

    path: str = MISSING  # any model name
    results_path: str | None = None  # folder; null = under D2V_HOME/inference


@dataclass(kw_only=True)
class WorkerOptions:
    """Where it runs."""

    num_workers: int = 0  # Ray workers; 0 = this process
    worst: int = 50  # utterances in the HTML report
    device: str = "auto"  # auto (a GPU if there is one), cpu, cuda, or cuda:1 of several

    def chosen_device(self) -> str:
        """Where models compute; a GPU need not be on this machine when Ray workers have one.

        Raises:
            DataError: another name, or a GPU that this machine does not have.
        """
        if self.num_workers and self.device == "cuda":
            return "cuda"
        from data2vec.in_use import device_of

        return str(device_of(self.device))

    def problems(self) -> list[Problem]:
        """What is impossible about these options, all of it."""
        found = [
            Problem(f"platform.{name}", getattr(self, name), "must be >= 0")
            for name in ("num_workers", "worst")
            if getattr(self, name) < 0
        ]
        if self.num_workers > 0 and self.device.startswith("cuda:"):
            rule = "Ray gives each worker its GPU: use cuda, or platform.num_workers=0"
            found.append(Problem("platform.device", self.device, rule))
        elif self.device not in ("auto", "cpu") and not (self.num_workers > 0 and self.device == "cuda"):
            from data2vec.in_use import device_problem

            if (rule := device_problem(self.device)) is not None:
                found.append(Problem("platform.device", self.device, rule))
        return found


@dataclass(kw_only=True)
class InferOptions:
    """Everything that one call of ``infer`` is made of."""

    task: TaskOptions = field(default_factory=TaskOptions)
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    common_eval: EvaluationOptions = field(default_factory=EvaluationOptions)
    platform: WorkerOptions = field(default_factory=WorkerOptions)

    def subsets(self) -> list[str]:
        """Names of the subsets."""
        return split_names(self.dataset.gen_subset)

    def check(self) -> None:
        """Raise :class:`ConfigError` with all problems."""
        found: list[Problem] = []
        for name, value in (("task.data", self.task.data), ("common_eval.path", self.common_eval.path)):
            if value == MISSING:
                found.append(Problem(name, value, f"is required; give {name}=..."))
        if self.common_eval.results_path is not None:
            try:
                folder_to_write(self.common_eval.results_path)
            except DataError as error:
                path = self.common_eval.results_path
                found.append(Problem("common_eval.results_path", path, str(error)))
        if not self.subsets():
            found.append(Problem("dataset.gen_subset", self.dataset.gen_subset, "names no subset"))
        if self.dataset.max_tokens < 1:
            found.append(Problem("dataset.max_tokens", self.dataset.max_tokens, "must be > 0"))
        if self.dataset.batch_size is not None and self.dataset.batch_size < 1:
            found.append(Problem("dataset.batch_size", self.dataset.batch_size, "must be > 0, or null"))
        found += self.platform.problems() + self.decoding.problems()
        if found:
            raise ConfigError(found, "the inference")


def read_options(arguments: Sequence[str]) -> tuple[InferOptions, list[str]]:
    """Options from a command line in the reference's form, and notes on what has no effect.

    Raises:
        ConfigError: with all problems.
    """
    name, folder, overrides = _split(arguments)
    path = _file(name, folder)
    problems: list[Problem] = []
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    values: dict[str, Any] = {}
    notes: dict[str, str] = {}
    aliases: dict[str, Any] = {}
    for key, value in [*_leaves(tree), *_assignments(overrides, problems)]:
        group, _, rest = key.partition(".")
        if key in _MEANT:
            ours, told = _MEANT[key]
            found = _meant(key, value)
            if found is not None:
                aliases[ours] = found
                notes[f"{key}: read as {ours} = {found}"] = told
        elif group in _IGNORED:
            notes[key] = _IGNORED[group]
        elif key in _IGNORED_FIELDS or (not rest and group in ("task", "decoding")):
            if _IGNORED_FIELDS.get(key):
                notes[key] = _IGNORED_FIELDS[key]
        else:
            _put(values, key.split("."), value)
    for key, value in aliases.items():
        group, _, name = key.partition(".")
        node = values.setdefault(group, {})
        if node.get(name) is None:
            node[name] = value
    _numbers(values)
    options = build(InferOptions, values, problems=problems)
    try:
        options.check()
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, "the inference")
    path = options.common_eval.path
    if "\\" in path:  # the reference takes a list and computes with its first
        options.common_eval.path, _, rest = path.partition("\\")
        notes[f"common_eval.path: {rest} of the list"] = "only the first model is used, as in the reference"
    return options, [
        f"{key}; {reason}" if ": " in key else f"{key}: no effect here; {reason}"
        for key, reason in notes.items()
    ]


def note_unused(options: InferOptions, used: Sequence[str], what: str) -> None:
    """Say which given options a model of this kind has no use for.

    Args:
        options: of the call.
        used: names of those that matter, besides the model and the folder of results.
        what: what the model is given.
    """
    given, usual = asdict(options), asdict(InferOptions())
    for group, values in given.items():
        for name, value in values.items():
            key = f"{group}.{name}"
            if value != usual[group][name] and group != "common_eval" and key not in used:
                logger.info("note: %s = %s: no effect on %s", key, value, what)


def _meant(key: str, value: Any) -> Any:
    """What a key of the reference sets here; ``None`` for nothing."""
    if key == "common.cpu":
        return "cpu" if value else None
    if key == "distributed_training.distributed_world_size":
        return value if isinstance(value, int) and value > 1 else None
    return value


def _numbers(values: dict[str, Any]) -> None:
    """``-inf`` comes as text from YAML and from the command line."""
    decoding = values.get("decoding")
    if isinstance(decoding, dict) and isinstance(decoding.get("unkweight"), str):
        try:
            decoding["unkweight"] = float(decoding["unkweight"])
        except ValueError:
            return


def _split(arguments: Sequence[str]) -> tuple[str, str | None, list[str]]:
    name, folder, overrides = "infer", None, []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word in ("-m", "--multirun"):
            continue  # subsets with commas need no multirun here
        option, equals, value = word.partition("=")
        if option in ("--config-dir", "--config-name", "-cd", "-cn"):
            value = value if equals else (words.pop(0) if words else "")
            if option in ("--config-dir", "-cd"):
                folder = value
            else:
                name = value
        else:
            overrides.append(word)
    return name, folder, overrides


def _file(name: str, folder: str | None) -> Path:
    """A file of the given folder, or ours where the reference's folder does not exist."""
    short = name.removesuffix(".yaml")
    candidates = [Path(folder) / f"{short}.yaml"] if folder else []
    candidates.append(config_root() / f"{short}.yaml")
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(
        [Problem("--config-name", name, f"no such file in {candidates[0].parent}")], "the inference"
    )


def _assignments(overrides: Sequence[str], problems: list[Problem]) -> list[tuple[str, Any]]:
    return [
        (override.key, override.value)
        for override in parse_overrides(overrides, False, problems)
        if override.action == "set"
    ]


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), node)]


def _put(tree: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = value
