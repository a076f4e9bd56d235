"""The options of ``experiments/infer.py``: the reference's groups and names, read strictly."""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data2vec.ctc_decoding import BeamOptions
from data2vec.errors import ConfigError, Data2VecError, DataError, Problem
from data2vec.in_use import device_of, device_problem
from data2vec.typed import build

from ..recipe.coercion import coerce, field_hints
from ..recipe.command_line import INFER, parse
from ..recipe.compat import Alias
from ..recipe.components import CHOICES
from ..recipe.groups import MISSING
from ..recipe.locate import config_root, find_recipe
from ..recipe.overrides import Override, apply
from ..recipe.reading import lay_over
from ..recipe.schema import split_names
from ..recipe.translation import Tables, take_foreign_keys
from ..recipe.tree import make_absolute, read_overrides, read_tree, resolve_references, unique
from ..storage.local_places import folder_to_write

logger = logging.getLogger(__name__)
_MODEL = "follows from the model"
_NO_TRAINING = "nothing is trained"
# What is treated otherwise than in the reference, with the reasons.
_TABLES = Tables(
    ignored={
        "common.*": "devices and logs are the platform's",
        "distributed_training.*": "Ray places the workers: see platform.num_workers",
        "bmuf": _NO_TRAINING, "optimization": _NO_TRAINING, "checkpoint": _NO_TRAINING,
        "hydra": "results lie in common_eval.results_path",
        "common_eval.quiet": "utterances are in the table", "common_eval.post_process": _MODEL,
        "common_eval.model_overrides": _MODEL, "task._name": _MODEL, "task.normalize": _MODEL,
        "dataset.required_batch_size_multiple": "no utterance is ever dropped",
        "dataset.num_workers": "each worker reads its own utterances",
        "decoding._name": "decoding.type decides",
    },
    aliases={
        "common.cpu": Alias(field="platform.device", value="cpu", when=True),
        "distributed_training.distributed_world_size": Alias(
            field="platform.num_workers", value=None, when=None, unless=1
        ),
        "decoding.results_path": Alias(field="common_eval.results_path", value=None, when=None),
    },
)  # fmt: skip


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
    run: str | None = None  # run in MLflow that trained the model and gets its scores (--run)


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
        if found := self.problems():
            raise ConfigError(found, "the inference")

    def problems(self) -> list[Problem]:
        """What is impossible about these options, all of it."""
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
        return found + self.platform.problems() + self.decoding.problems()


def read_options(arguments: Sequence[str]) -> tuple[InferOptions, list[str]]:
    """Options of one inference; see :func:`read_runs`.

    Raises:
        Data2VecError: what :func:`read_runs` raises, or the arguments ask for several.
    """
    runs, notes = read_runs(arguments)
    if len(runs) > 1:
        raise Data2VecError(f"one inference at a time here, not {len(runs)}: {'; '.join(runs)}")
    return next(iter(runs.values())), notes


def read_runs(arguments: Sequence[str], prog: str = "d2v infer") -> tuple[dict[str, InferOptions], list[str]]:
    """Options from a command line in the reference's form, read as training reads its recipes.

    Returns:
        The options of every inference by the assignments that make it different: several under ``-m`` with
        commas, otherwise one, called "". And notes on what has no effect.

    Raises:
        ConfigError: with all problems.
        Data2VecError: an unknown option, or no such file.
    """
    request = parse(arguments, prog, INFER)
    tree = read_tree(find_recipe(request.config_name, request.config_dir or str(config_root())))
    problems: list[Problem] = []
    notes: list[str] = []
    overrides = read_overrides(request.overrides, request.multirun, problems, notes)
    swept = [override for override in overrides if override.choices is not None]
    runs: dict[str, InferOptions] = {}
    for values in itertools.product(*(override.choices or () for override in swept)):
        chosen = {override.key: value for override, value in zip(swept, values, strict=True)}
        trial = [replace(o, value=chosen[o.key]) if o.choices is not None else o for o in overrides]
        name = " ".join(f"{key}={value}" for key, value in chosen.items())
        runs[name] = _options(tree, trial, problems, notes)
        if request.run is not None:
            runs[name].common_eval.run = request.run
    if problems:
        raise ConfigError(unique(problems), "the inference")
    return runs, list(dict.fromkeys(notes))


def _options(
    tree: Mapping[str, Any], overrides: Sequence[Override], problems: list[Problem], notes: list[str]
) -> InferOptions:
    changed = copy.deepcopy(dict(tree))
    for override in overrides:
        if override.key in CHOICES and isinstance(override.value, str):  # task=audio_finetuning
            override = replace(override, key=f"{override.key}._name")
        apply(changed, override, problems, text_field=_text_field(override.key))
    for group in [g for g in field_hints(InferOptions) if not isinstance(changed.get(g, {}), Mapping)]:
        problems.append(Problem(group, changed.pop(group), "must be a mapping of fields"))
    given = resolve_references(
        changed, lay_over(asdict(InferOptions()), changed), _TABLES.is_ignored, problems
    )
    notes += take_foreign_keys(given, given, lambda dotted: _hint(dotted) is not None, problems, _TABLES)
    given = {group: values for group, values in given.items() if values != {}}
    make_absolute(given)
    options = build(InferOptions, coerce(InferOptions, given), problems=problems)
    path, more, rest = options.common_eval.path.partition("\\")
    if more:  # the reference takes a list and computes with its first
        options.common_eval.path = path
        notes.append(f"common_eval.path: {rest} in the list: as in the reference, the first model is used")
    problems += options.problems()
    return options


def _hint(dotted: str) -> Any:
    """The annotation of an option, or ``None`` if there is none of this name."""
    group, _, name = dotted.partition(".")
    owner = field_hints(InferOptions).get(group)
    return field_hints(owner).get(name) if owner is not None else None


def _text_field(dotted: str) -> bool:
    hint = _hint(dotted)
    return hint is not None and coerce(hint, 1) == "1"


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
