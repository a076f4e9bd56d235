"""Command lines in the headers of configs/ and in the READMEs: recipes compose, sweeps plan, options fit."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from d2v_platform.cli import app
from d2v_platform.inference.options import read_options
from d2v_platform.recipe.command_line import parse
from d2v_platform.recipe.difference import difference
from d2v_platform.recipe.locate import config_root
from d2v_platform.recipe.sweep_definition import load_sweep, sweep_of
from d2v_platform.sweeps import decoding_sweep
from d2v_platform.sweeps.command import decoding_definition, read_words

COMMAND = re.compile(r"python experiments/|d2v ")
# The program and, where it stands for one, the sweep that it runs.
ENTRY_POINTS = {"train": "train", "infer": "infer", "glue_sweep": "sweep", "split_sweep": "sweep"}
DEFAULT_SWEEPS = {"glue_sweep": "glue", "split_sweep": "splits"}
# What "..." stands for where the file has no full line of the same command.
USUAL = {"infer": ["task.data=/manifests", "common_eval.path=models:/m@champion"]}
FILES = re.compile(r"((?:evaluate|decoding)\.(?:lexicon|lmpath))=(?!models:)(.+)")


def lines_of(path: Path) -> list[str]:
    """The commands in a file's header, continuation lines joined."""
    found: list[str] = []
    goes_on = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:].strip()
        if goes_on:
            found[-1] += " " + text
        elif COMMAND.match(text):
            found.append(text)
        else:
            continue
        goes_on = found[-1].endswith("\\")
        found[-1] = found[-1].removesuffix("\\").strip()
    return found


def words_of(path: Path) -> list[tuple[str, list[str]]]:
    """Verb and arguments of each command; ``...`` is what the first full line of the verb says there."""
    full: dict[str, list[str]] = {}
    found: list[tuple[str, list[str]]] = []
    for line in lines_of(path):
        program, *words = shlex.split(line, comments=True)
        if program == "python":
            script = Path(words.pop(0)).stem
            verb = ENTRY_POINTS[script]
            words = [*([DEFAULT_SWEEPS[script]] if verb == "sweep" else []), *words]
        else:
            verb = words.pop(0)
        if "..." in words:
            at = words.index("...")
            said = {word.partition("=")[0] for word in words if "=" in word}
            usual = full.get(verb, USUAL.get(verb, []))
            usual = [word for word in usual if "=" in word and word.partition("=")[0] not in said]
            words[at : at + 1] = usual
        else:
            full.setdefault(verb, words)
        found.append((verb, words))
    return found


def words_of_page(path: Path) -> list[tuple[str, list[str]]]:
    """Verb and arguments of each ``d2v`` line in a page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [(words[1], words[2:]) for words in lines if words[:1] == ["d2v"]]


PAGES = [config_root().parent / folder / "README.md" for folder in ("", "platform")]
LINES = [
    pytest.param(verb, words, id=f"{path.relative_to(config_root()).with_suffix('')}-{number}")
    for path in sorted(config_root().rglob("*.yaml"))
    for number, (verb, words) in enumerate(words_of(path), 1)
] + [
    pytest.param(verb, words, id=f"{page.parent.name}-{number}")
    for page in PAGES
    for number, (verb, words) in enumerate(words_of_page(page), 1)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D2V_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(("verb", "words"), LINES)
def test_the_line_is_accepted(
    verb: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [_with_file(word, folder) for word in words]
    if any(word.startswith("experiments/") for word in words):
        monkeypatch.chdir(config_root().parent)  # where its lines are typed
    if verb == "train":
        request = parse(words)
        if request.multirun:
            assert len(sweep_of(request.config_name, request.overrides, request.config_dir).trials) > 1
        else:
            assert request.compose().recipe is not None
    elif verb == "infer":
        read_options(words)
    elif verb == "sweep":
        name, overrides, config_dir, _ = read_words(words, "d2v sweep")
        tuning = decoding_definition(name, config_dir)
        if tuning is None:
            assert load_sweep(name, overrides, config_dir).trials
        else:
            monkeypatch.setattr(decoding_sweep, "_resolved", lambda search, *_: search)
            assert decoding_sweep.read_sweep(overrides, tuning)
    else:
        _read_by_typer([verb, *words])


def test_every_recipe_and_sweep_has_one() -> None:
    without = [
        path.name
        for path in config_root().rglob("*.yaml")
        if not path.name.startswith("_") and not lines_of(path)
    ]
    assert without == []


def test_the_splits_sweep_has_every_recipes_own_rate() -> None:
    given = ["model.w2v_path=/model", "task.data=/data"]
    rates = set(load_sweep("splits", given).definition.grid["lr"])
    for task in load_sweep("splits", given).definition.grid["task"]:
        own = parse([f"wav2vec/finetuning/vox_{task}", *given]).compose().recipe.optimization.lr
        assert set(own) <= rates, task


def test_the_pages_recipe_of_ones_own(folder: Path) -> None:
    """The YAML and the command under "A recipe of your own" in configs/README.md."""
    text = (config_root() / "README.md").read_text(encoding="utf-8")
    recipe, command = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[0] for kind in ("yaml", "bash"))
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("d2v", "train")
    place = folder / words[0]
    place.parent.mkdir()
    place.write_text(recipe, encoding="utf-8")
    made = parse(words).compose().recipe
    inherited = parse(["wav2vec/finetuning/vox_10h", *words[-2:]]).compose().recipe
    changed = difference(made, inherited)
    assert {key: change.after for key, change in changed.items()} == {
        "optimization.max_update": 5000, "lr_scheduler.max_update": 5000, "model.mask_prob": 0.5,
    }  # fmt: skip


def _with_file(word: str, folder: Path) -> str:
    """The word with a lexicon or language model that exists."""
    if (match := FILES.fullmatch(word)) is None:
        return word
    path = folder / Path(match[2]).name
    path.touch()
    return f"{match[1]}={path}"


def _read_by_typer(words: list[str]) -> None:
    """Take the words apart as the command would, without running it."""
    command = typer.main.get_command(app)
    context = command.make_context("d2v", list(words))
    while isinstance(command, typer.core.TyperGroup):
        rest = [*context._protected_args, *context.args]
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)
