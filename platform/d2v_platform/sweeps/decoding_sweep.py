"""What ``d2v sweep decoding`` tunes, as its command line says: a language model's weights on a dev subset."""

from __future__ import annotations

import dataclasses
import logging
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data2vec.errors import ConfigError, Data2VecError, DataError, Problem
from data2vec.typed import build

from ..home import home_folder
from ..inference.command import show_notes
from ..inference.decoding import DecodingJob, make_job, make_search, open_dataset
from ..inference.emissions import emission_folder
from ..inference.options import InferOptions, read_options
from ..recipe.expansion import check_yaml
from ..recipe.overrides import parse_overrides
from ..recipe.yaml_numbers import refuse_odd_numbers
from ..registry.model_folders import model_folder
from ..storage.cache import local_data

logger = logging.getLogger(__name__)

NAME = "decoding"
TUNED = ("lmweight", "wordscore", "silweight")
_IDENTITY = re.compile(r"[\w.\-+=]{1,120}")


@dataclass(kw_only=True)
class SearchOptions:
    """The ``search`` part of ``configs/sweep/decoding.yaml``."""

    trials: int = 128  # decodings of the subset
    seed: int = 1  # of the evenly spread trials and of the candidates
    utterances: int | None = None  # a fixed random choice of so many; null = the whole subset
    patience: int = 40  # stop after so many trials without improvement; 0 = never
    epsilon: float = 0.025  # an improvement is at least so many points of word error rate
    lmweight: list[float] = field(default_factory=lambda: [0.0, 5.0])  # lowest and highest value
    wordscore: list[float] = field(default_factory=lambda: [-5.0, 5.0])  # lowest and highest value
    silweight: list[float] = field(default_factory=lambda: [-8.0, 0.0])  # lowest and highest value

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value by name; a value without room is fixed and not here."""
        pairs = {name: getattr(self, name) for name in TUNED}
        return {name: (float(low), float(high)) for name, (low, high) in pairs.items() if low < high}

    def fixed(self) -> dict[str, float]:
        """Values whose bounds leave no room."""
        return {name: float(getattr(self, name)[0]) for name in TUNED if name not in self.bounds()}

    def problems(self) -> list[Problem]:
        """What is impossible, all of it."""
        found = [
            Problem(f"search.{name}", getattr(self, name), f"must be >= {low}")
            for name, low in (("trials", 1), ("patience", 0), ("epsilon", 0), ("seed", 0))
            if getattr(self, name) < low
        ]
        if self.utterances is not None and self.utterances < 1:
            found.append(Problem("search.utterances", self.utterances, "must be >= 1, or null for all"))
        for name in TUNED:
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                found.append(Problem(f"search.{name}", value, "must be [lowest, highest]"))
        if not found and not self.bounds():
            found.append(Problem("search", None, "every value is fixed: there is nothing to search"))
        return found


@dataclass(frozen=True)
class DecodingSweep:
    """Everything that one tuning is made of, checked."""

    name: str  # its identity; the same name goes on with it
    fresh: bool  # the name is new
    search: SearchOptions  # what is searched
    infer: InferOptions  # the decoding
    job: DecodingJob  # the dev subset; plain values
    model: str  # the acoustic model's exact name
    overrides: tuple[str, ...]  # the decoding part of the command line

    @property
    def root(self) -> Path:
        """``<D2V_HOME>/sweeps/NAME``."""
        return home_folder("sweeps") / self.name

    def settings(self) -> dict[str, Any]:
        """What may not change under one name; the number of trials and patience may."""
        plain = dataclasses.asdict(self.search)
        for name in ("trials", "patience", "epsilon"):
            plain.pop(name)
        decoding = {k: v for k, v in dataclasses.asdict(self.infer.decoding).items() if k not in TUNED}
        return {"search": plain, "decoding": decoding, "model": self.model,
                "emissions": emission_folder(self.job).name}  # fmt: skip


def read_sweep(words: Sequence[str], config: Path) -> DecodingSweep:
    """The tuning that a command line asks for.

    Raises:
        ConfigError: with all problems.
    """
    try:
        check_yaml(config)
        text = config.read_text(encoding="utf-8")
        tree = yaml.safe_load(text) or {}
        refuse_odd_numbers(text)
    except Data2VecError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{config} cannot be read: {' '.join(str(error).split())}") from None
    problems: list[Problem] = []
    own, rest, name = dict(tree.get("search") or {}), list[str](), None
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if key.startswith("search.") or key == "platform.run_name":
            for override in parse_overrides([word], False, problems):
                if key == "platform.run_name":
                    name = str(override.value)
                else:
                    own[key.removeprefix("search.")] = override.value
        else:
            rest.append(word)
    for key in TUNED:
        if isinstance(own.get(key), list):
            own[key] = [float(v) if isinstance(v, int) else v for v in own[key]]
    given = {word.lstrip("+").partition("=")[0] for word in rest}
    defaults = [
        f"{group}.{key}={value}"
        for group, values in (tree.get("infer") or {}).items()
        for key, value in values.items()
        if f"{group}.{key}" not in given
    ]
    search = build(SearchOptions, own, "search", problems)
    if not problems:
        problems += search.problems()
    if name is not None and not _IDENTITY.fullmatch(name):
        problems.append(Problem("platform.run_name", name, "must be 1 to 120 letters, digits or '_-.+='"))
    infer = InferOptions()
    try:
        infer, notes = read_options([*defaults, *rest])
        show_notes(notes)
        if infer.decoding.type == "viterbi":
            rule = "has nothing to tune; use kenlm or fairseqlm"
            problems.append(Problem("decoding.type", "viterbi", rule))
        if len(infer.subsets()) != 1:
            rule = "must name one subset to tune on"
            problems.append(Problem("dataset.gen_subset", infer.dataset.gen_subset, rule))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems, f"the sweep {NAME}")
    return _resolved(search, infer, name, (*defaults, *rest))


def _resolved(
    search: SearchOptions, infer: InferOptions, name: str | None, overrides: tuple[str, ...]
) -> DecodingSweep:
    folder, uri = model_folder(infer.common_eval.path)
    device = infer.platform.chosen_device()
    (subset,) = infer.subsets()
    data = local_data(infer.task.data)
    job = make_job(infer, folder, data, subset, make_search(infer.decoding, device), uri)
    open_dataset(job).verify()
    chosen = name or f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    emission_folder(job)  # a subset without labels is refused here
    return DecodingSweep(chosen, name is None, search, infer, job, uri, overrides)


def infer_command_of(sweep: DecodingSweep, best: Mapping[str, float]) -> str:
    """The decoding with the best values, as a command line."""
    own = [f"decoding.{name}={value:g}" for name, value in best.items()]
    tuned = tuple(f"decoding.{name}=" for name in TUNED)
    words = [word for word in sweep.overrides if not word.lstrip("+").startswith(tuned)]
    return " ".join(["python experiments/infer.py", *map(shlex.quote, words), *own])


def transcribe_command_of(sweep: DecodingSweep, best: Mapping[str, float]) -> str:
    """The same decoding of other recordings, as a command line."""
    own = [f"decoding.{name}={value:g}" for name, value in best.items()]
    tuned = tuple(f"decoding.{name}=" for name in TUNED)
    given = [word for word in sweep.overrides if word.lstrip("+").startswith("decoding.")]
    words = [word for word in given if not word.lstrip("+").startswith(tuned)]
    head = ["d2v transcribe RECORDINGS --model", shlex.quote(sweep.model)]
    return " ".join([*head, *map(shlex.quote, words), *own])
