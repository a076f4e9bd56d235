"""A sweep: many trainings of recipes that differ in a few fields, written down in ``configs/sweep/``.

The definition is composed like a recipe, from a YAML file and the command line, and every trial's recipe is
composed and checked before the first one starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data2vec.errors import ConfigError, Data2VecError, Problem, nearest_names
from data2vec.typed import build, flatten

from . import checks
from .coercion import coerce
from .components import CHOICES, PassThrough, TriStageSchedule
from .compose import LoadedFile, compose_loaded, load_file
from .expansion import check_yaml, reference_problems
from .groups import GROUPS, MISSING
from .locate import find_recipe, find_sweep
from .overrides import Override, apply, assignment_text, parse_overrides
from .schema import Recipe
from .yaml_numbers import refuse_odd_numbers

SHORT_NAMES = {"lr": "optimization.lr", "seed": "common.seed"}  # besides "task": see task_means
TRAIN_LOSS = "train/loss"  # select.metric: the loss of a run's last logging interval, without a validation
_PLACEHOLDER = "{task}"
_LARGEST_SWEEP = 5000


@dataclass(kw_only=True)
class Select:
    """How the winner of each task is chosen."""

    # metric to compare: of the validation, or train/loss at the end; null = checkpoint.best_checkpoint_metric
    metric: str | None = None
    within_run: Literal["best", "last"] = "best"  # value of a run: its best validation or its last one
    over_seeds: Literal["median", "max"] = "median"  # value of a grid point: over its seeds


@dataclass(kw_only=True)
class Register:
    """What becomes of the winner: the seed nearest the median is registered."""

    name: str | None = None  # name in the registry, {task} is replaced; null = do not register
    alias: str | None = None  # alias to move to it, through the gate


@dataclass(kw_only=True)
class Resources:
    """What one trial occupies."""

    cpu: float | None = None  # CPUs; null = 1, beside a GPU the node's share of it
    gpu: float | None = None  # GPUs, fractions allowed; null = 1 if the cluster has any


@dataclass(kw_only=True)
class Scheduler:
    """Whether weak trials are stopped early; trials are compared within one task only."""

    name: Literal["grid", "asha"] = "grid"  # grid = every trial runs to its end; asha = successive halving
    grace_fraction: float = 0.1  # share of a trial's updates before it may be stopped (asha)
    reduction_factor: float = 3.0  # one in this many trials goes on from each rung (asha)


@dataclass(kw_only=True)
class Evaluate:
    """What winners among speech models are decoded on, greedy and with a language model."""

    subsets: list[str] = field(default_factory=list)  # below task.data; empty = the validation subsets
    type: Literal["kenlm", "fairseqlm"] = "kenlm"  # n-gram file, or a transformer
    lexicon: str | None = None  # WORD<TAB>W O R D | a line
    lmpath: str | None = None  # language model; null = greedy only; fairseqlm: any model name
    beam: int = 500  # hypotheses kept a frame
    lmweight: float = 2.0  # of the language model
    wordscore: float = -1.0  # added for each word
    silweight: float = 0.0  # added for each word delimiter


@dataclass(kw_only=True)
class SweepDefinition:
    """The file in ``configs/sweep/``, typed."""

    recipe: str = MISSING  # recipe of every trial; {task} is replaced by the grid's task
    recipe_dir: str | None = None  # folder of the recipes; null = our own tree
    grid: dict[str, list[Any]] = field(default_factory=dict)  # swept fields: dotted names, or task, lr, seed
    fixed: dict[str, Any] = field(
        default_factory=dict
    )  # fields with one value for every trial, by dotted name
    data_folders: dict[str, str] = field(default_factory=dict)  # task -> folder below task.data
    task_means: Literal["recipe", "data"] = "recipe"  # grid.task chooses the recipe, or the folder alone
    max_updates: int | None = None  # cap of each trial's updates; warm-up shrinks in proportion
    max_concurrent: int | None = None  # trials at a time; null = what the cluster holds
    test_files: bool = False  # write GLUE test-server files with the winners
    select: Select = field(default_factory=Select)
    register: Register = field(default_factory=Register)
    evaluate: Evaluate = field(default_factory=Evaluate)
    resources_per_trial: Resources = field(default_factory=Resources)
    scheduler: Scheduler = field(default_factory=Scheduler)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a sweep."""

    name: str  # unique in the sweep, usable in paths
    values: dict[str, Any]  # the grid's values, by the grid's names
    overrides: tuple[str, ...]  # everything that differs from the named recipe, as on a command line
    named_recipe: str
    recipe: Recipe
    base: dict[str, Any]  # the named recipe, as Recipe.to_dict

    @property
    def group(self) -> dict[str, Any]:
        """The grid's values without the seed: trials of one group are repetitions."""
        return {key: value for key, value in self.values.items() if key not in ("seed", "common.seed")}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A definition with all of its trials, checked."""

    name: str
    definition: SweepDefinition
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]

    def metric(self, trial: Trial) -> tuple[str, bool]:
        """The metric that decides for this trial, and whether larger is better."""
        name = self.definition.select.metric or trial.recipe.checkpoint.best_checkpoint_metric
        return name, _selectable(trial.recipe)[name]


def load_sweep(name: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> Sweep:
    """Compose a sweep and all of its trials.

    Args:
        name: a file of ``configs/sweep`` without its ending, or the path of a YAML file.
        overrides: of the definition (``grid.lr=[1e-5]``, ``fixed.common.log_interval=10``) and of every
            trial's recipe (``task.data=/glue``); a comma list becomes a dimension of the grid.
        config_dir: folder to look in instead of ``configs/sweep``.

    Raises:
        ConfigError: everything that is wrong with the definition or with any trial, together.
        Data2VecError: there is no such sweep, or its file cannot be read.
    """
    path = find_sweep(name, config_dir)
    problems: list[Problem] = []
    return _load(path.stem, _read(path), overrides, problems)


def _load(name: str, tree: dict[str, Any], overrides: Sequence[str], problems: list[Problem]) -> Sweep:
    """A sweep from its definition and a command line, whose words go to the one or to every recipe."""
    ours: list[Override] = []
    for override in parse_overrides(list(overrides), True, problems):
        group = override.key.partition(".")[0]
        if group in SweepDefinition.__dataclass_fields__:
            _override_definition(tree, override, problems)
        elif (
            group in GROUPS
            or group in CHOICES
            or not nearest_names(group, SweepDefinition.__dataclass_fields__)
        ):
            ours.append(override)
        else:
            hint = nearest_names(group, (*SweepDefinition.__dataclass_fields__, *GROUPS, *CHOICES))
            problems.append(Problem(override.key, override.value, f"unknown key{hint}"))
    definition = _definition(tree, problems)
    for override in ours:
        if override.choices is not None:
            definition.grid[override.key] = list(override.choices)
    plain = [override for override in ours if override.choices is None]
    return _sweep(name, definition, plain, problems)


def sweep_of(config_name: str, overrides: Sequence[str], config_dir: str | None = None) -> Sweep:
    """The sweep that ``-m`` with comma lists asks for: every combination of the listed values.

    Args:
        config_name: the recipe, by its name or its file.
        overrides: of the recipe, and of a definition's other parts (``select.metric=train/loss``).
        config_dir: folder of the recipe.

    Raises:
        ConfigError: everything that is wrong with any combination.
    """
    tree = {"recipe": config_name, "recipe_dir": config_dir}
    own = Path(config_name).expanduser()
    return _load(own.stem if own.is_file() else config_name.replace("/", "-"), tree, overrides, [])


def _read(path: Path) -> dict[str, Any]:
    try:
        check_yaml(path)
        config = OmegaConf.load(path)
        refuse_odd_numbers(path.read_text(encoding="utf-8"))
        plain: Any = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else None
        if isinstance(plain, dict) and (problems := reference_problems(plain)):
            raise ConfigError(problems, f"the sweep {path}")
        plain = OmegaConf.to_container(config, resolve=True) if plain is not None else None
    except Data2VecError:
        raise
    except (RecursionError, YAMLError, OmegaConfBaseException, ValueError) as error:
        raise Data2VecError(f"the sweep {path} cannot be read: {error}") from error
    if not isinstance(plain, dict):
        raise Data2VecError(f"the sweep {path} must hold a mapping")
    for key in ("grid", "fixed"):  # dotted names, written dotted or nested
        if isinstance(plain.get(key), Mapping):
            plain[key] = flatten(plain[key])
    return plain


def _override_definition(tree: dict[str, Any], override: Override, problems: list[Problem]) -> None:
    group, _, key = override.key.partition(".")
    if group in ("grid", "fixed", "data_folders") and key:
        value = list(override.choices) if override.choices is not None else override.value
        table = tree.setdefault(group, {})
        if override.action == "set":
            table[key] = value
        elif table.pop(key, None) is None:
            problems.append(
                Problem(f"~{override.key}", None, f"there is nothing to remove: {', '.join(table)}")
            )
    elif override.choices is not None:
        problems.append(
            Problem(override.key, list(override.choices), "takes one value; sweep with grid.KEY=[a,b]")
        )
    else:
        apply(
            tree, override, problems, text_field=isinstance(override.value, int) and key in ("metric", "name")
        )


def _definition(tree: Mapping[str, Any], problems: list[Problem]) -> SweepDefinition:
    plain = dict(tree)
    if isinstance(plain.get("grid"), Mapping):
        plain["grid"] = {k: v if isinstance(v, list) else [v] for k, v in plain["grid"].items()}
    definition = build(SweepDefinition, coerce(SweepDefinition, plain), "", problems)
    problems += _definition_problems(definition)
    return definition


def _definition_problems(d: SweepDefinition) -> Iterator[Problem]:
    if d.recipe == MISSING:
        yield Problem("recipe", d.recipe, "is required; for example v2/text_finetuning/{task}")
    if _PLACEHOLDER in d.recipe and "task" not in d.grid:
        yield Problem("grid.task", None, f"is required: the recipe is {d.recipe}")
    if d.task_means == "data":
        without = [task for task in d.grid.get("task", []) if str(task) not in d.data_folders]
        if without or "task" not in d.grid:
            rule = f"task_means=data needs a folder for each in data_folders; it has {list(d.data_folders)}"
            yield Problem("grid.task", without or None, rule)
    elif "task" in d.grid and _PLACEHOLDER not in d.recipe:
        yield Problem(
            "grid.task", d.grid["task"], f"has no effect: the recipe {d.recipe} has no {_PLACEHOLDER}"
        )
    for key, values in d.grid.items():
        if not values:
            yield Problem(f"grid.{key}", values, "needs at least one value")
        if len({repr(value) for value in values}) < len(values):
            yield Problem(f"grid.{key}", values, "lists a value twice")
        if SHORT_NAMES.get(key) in d.grid:
            yield Problem(
                f"grid.{key}", values, f"means {SHORT_NAMES[key]}, which is listed too; give one of them"
            )
    tasks = d.grid.get("task", [])
    if d.register.name is not None and len(tasks) > 1 and _PLACEHOLDER not in d.register.name:
        yield Problem("register.name", d.register.name, f"needs {_PLACEHOLDER}: there are several tasks")
    for name, text in (("name", d.register.name), ("alias", d.register.alias)):
        made = [text.replace(_PLACEHOLDER, str(task)) for task in tasks or ["task"]] if text else []
        bad = [one for one in made if not checks.REGISTRY_NAME.fullmatch(one)]
        if bad:
            yield Problem(f"register.{name}", bad[0], checks.REGISTRY_NAME_RULE)
    if d.register.alias is not None and d.register.name is None:
        yield Problem("register.alias", d.register.alias, "needs register.name")
    for name in ("lexicon", "lmpath"):
        path = getattr(d.evaluate, name)
        named = name == "lmpath" and d.evaluate.type == "fairseqlm"  # a model's name
        if path is not None and not named and not Path(path).is_file():
            yield Problem(f"evaluate.{name}", path, "no such file")
    if d.evaluate.lmpath is not None and d.evaluate.lexicon is None:
        yield Problem("evaluate.lexicon", None, "is required with evaluate.lmpath")
    if d.resources_per_trial.cpu is not None and d.resources_per_trial.cpu <= 0:
        yield Problem("resources_per_trial.cpu", d.resources_per_trial.cpu, "must be > 0")
    if (d.resources_per_trial.gpu or 0) < 0:
        yield Problem("resources_per_trial.gpu", d.resources_per_trial.gpu, "must be >= 0")
    for name in ("max_updates", "max_concurrent"):
        if getattr(d, name) is not None and getattr(d, name) < 1:
            yield Problem(name, getattr(d, name), "must be >= 1")
    if not 0 < d.scheduler.grace_fraction <= 1:
        yield Problem("scheduler.grace_fraction", d.scheduler.grace_fraction, "must lie in 0 < f <= 1")
    if d.scheduler.reduction_factor <= 1:
        yield Problem("scheduler.reduction_factor", d.scheduler.reduction_factor, "must be > 1")


def _sweep(name: str, d: SweepDefinition, plain: Sequence[Override], problems: list[Problem]) -> Sweep:
    total = 1
    for values in d.grid.values():
        total *= len(values)
    if total > _LARGEST_SWEEP:
        problems.append(Problem("grid", total, f"has more than {_LARGEST_SWEEP} trials; make it smaller"))
        d = SweepDefinition(
            recipe=d.recipe, recipe_dir=d.recipe_dir, grid={k: v[:1] for k, v in d.grid.items()}
        )
    trials: list[Trial] = []
    notes: list[str] = []
    files: dict[str, LoadedFile | None] = {}
    if d.recipe != MISSING and not (_PLACEHOLDER in d.recipe and "task" not in d.grid):
        for values in itertools.product(*d.grid.values()):
            point = dict(zip(d.grid, values, strict=True))
            trial = _trial(d, point, plain, files, problems, notes)
            if trial is not None:
                trials.append(trial)
    if problems:
        unique = {(p.field, repr(p.value), p.rule): p for p in problems}
        raise ConfigError(list(unique.values()), f"the sweep {name}")
    return Sweep(name=name, definition=d, trials=tuple(trials), notes=tuple(dict.fromkeys(notes)))


def _trial(
    d: SweepDefinition,
    point: dict[str, Any],
    plain: Sequence[Override],
    files: dict[str, LoadedFile | None],
    problems: list[Problem],
    notes: list[str],
) -> Trial | None:
    recipe_name = d.recipe.replace(_PLACEHOLDER, str(point.get("task", "")))
    if recipe_name not in files:
        files[recipe_name] = None
        try:
            files[recipe_name] = load_file(find_recipe(recipe_name, d.recipe_dir))
        except Data2VecError as error:
            problems.append(Problem("grid.task" if "task" in point else "recipe", recipe_name, str(error)))
    loaded = files[recipe_name]
    if loaded is None:
        return None
    overrides = [Override(key=key, value=value) for key, value in d.fixed.items()]
    data = _data_override(d, point, plain)
    overrides += [o for o in plain if not data or o.key != "task.data"]
    overrides += [*_grid_overrides(point), *data]
    try:
        composed = compose_loaded(loaded, overrides)
        overrides += _cap(composed.recipe, d.max_updates)
        composed = compose_loaded(loaded, overrides) if d.max_updates is not None else composed
    except ConfigError as error:
        problems += error.problems
        return None
    problems += _undecidable(d, recipe_name, composed.recipe)
    notes += composed.notes
    return Trial(
        name=_trial_name(point),
        values=point,
        overrides=tuple(
            assignment_text(o.key, o.value) if o.action == "set" else f"~{o.key}" for o in overrides
        ),
        named_recipe=composed.named_recipe,
        recipe=composed.recipe,
        base=composed.base,
    )


def _selectable(recipe: Recipe) -> dict[str, bool]:
    """The metrics that can decide a sweep, with whether larger is better."""
    return checks.metrics(recipe) | {TRAIN_LOSS: False}


def _undecidable(d: SweepDefinition, name: str, recipe: Recipe) -> Iterator[Problem]:
    """Why the trials of this recipe could not be compared at the end, or early."""
    metric, validates = d.select.metric, bool(recipe.valid_subsets())
    reported = _selectable(recipe) if validates else {TRAIN_LOSS: False}
    if metric not in reported and (metric is not None or not validates):
        rule = f"{name} reports {', '.join(reported)}{nearest_names(str(metric), reported)}"
        if not validates:
            rule = (
                f"{name} does not validate, so no trial could win: select.metric={TRAIN_LOSS} compares the "
                "training loss at the end, dataset.disable_validation=false validates"
            )
        yield Problem("select.metric", metric, rule)
    if d.scheduler.name != "asha":
        return
    if recipe.optimization.max_update < 1:
        rule = "asha needs the length of each run: set optimization.max_update or max_updates"
        yield Problem("optimization.max_update", recipe.optimization.max_update, rule)
    if not validates:
        yield Problem(
            "dataset.disable_validation", True, "asha compares runs by their validations: set it to false"
        )
    elif metric == TRAIN_LOSS:
        yield Problem(
            "select.metric", metric, "asha compares runs by their validations: use a metric of theirs"
        )


def _grid_overrides(point: Mapping[str, Any]) -> list[Override]:
    found: list[Override] = []
    for name, value in point.items():
        key = SHORT_NAMES.get(name, name)
        if key == "optimization.lr" and not isinstance(value, list):
            value = [value]
        if name != "task":
            found.append(Override(key=key, value=value))
    return found


def _data_override(d: SweepDefinition, point: Mapping[str, Any], plain: Sequence[Override]) -> list[Override]:
    """``task.data`` is the folder that holds the tasks' folders, where the definition names them."""
    folder = d.data_folders.get(str(point.get("task")))
    given = [o.value for o in plain if o.key == "task.data" and o.action == "set"]
    root = given[-1] if given else d.fixed.get("task.data")
    if folder is None or not isinstance(root, str) or "task.data" in point:
        return []
    return [Override(key="task.data", value=f"{root.rstrip('/')}/{folder}")]


def _cap(recipe: Recipe, most: int | None) -> list[Override]:
    """``min(recipe, most)`` updates, and the phases of the schedules in proportion."""
    length = recipe.optimization.max_update
    if most is None or 0 < length <= most:
        return []
    found = [Override(key="optimization.max_update", value=most)]
    if length == 0:
        return found
    schedules: dict[str, Any] = {"lr_scheduler": recipe.lr_scheduler}
    if isinstance(recipe.lr_scheduler, PassThrough):
        groups = recipe.parameter_groups()
        schedules = {f"optimizer.groups.{name}.lr_scheduler": g.lr_scheduler for name, g in groups.items()}
    for path, schedule in schedules.items():
        names = ("warmup_updates",)
        if isinstance(schedule, TriStageSchedule):
            names = ("warmup_steps", "hold_steps", "decay_steps")
        for name in names:
            if value := getattr(schedule, name):
                found.append(Override(key=f"{path}.{name}", value=round(value * most / length)))
    return found


def _trial_name(point: Mapping[str, Any]) -> str:
    parts = [str(value) if key == "task" else f"{key.rsplit('.', 1)[-1]}={_short(value)}"
             for key, value in point.items()]  # fmt: skip
    return re.sub(r"[^\w.=+-]+", "-", "_".join(parts)).strip("-") or "trial"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
