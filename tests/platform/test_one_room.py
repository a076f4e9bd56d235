"""A task is one room: outside the rooms no code names a task, a modality or a kind of model."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from d2v_platform.recipe.components import CHOICES, ModelCriterion
from d2v_platform.recipe.entries import entries
from data2vec.artifact_schema import Kind
from data2vec.families import FAMILIES

PLATFORM = Path(__file__).resolve().parents[2] / "platform" / "d2v_platform"
# A room: the packages of tasks and of their data; files that carry a subject's name; speech's in inference.
ROOM = re.compile(
    r"(tasks|preparation)/"
    r"|[a-z]+/(audio|ctc|decoding|glue|images?|language|pretraining|pyfunc|text)(_[a-z_]+)?\.py"
    r"|inference/(emissions|spread|subtitles|transcription)\.py"
)
EXCEPTIONS = {
    "recipe/entries.py": "the registry of tasks",
    "recipe/components.py": "the registry of what a recipe's _name may be",
    "recipe/without_effect.py": "a table by component: the reference's options that do nothing",
    "registry/served_models.py": "the registry of kinds of models",
    "registry/model_versions.py": "tags of versions: the one kind without a task, whose gate is another one",
    "registry/reload_check.py": "keys of check.json that registered versions hold",
    "recipe/compat.py": "names of fairseq's other projects and keys",
    "sweeps/command.py": "d2v sweep decoding is a command of its own",
}
WORDS = {"speech", "vision", *(entry.modality for entry in entries())}
NAMES = {*CHOICES["task"], *get_args(Kind), *FAMILIES, *(word.upper() for word in WORDS)}
CLASSES = {cls.__name__ for group in ("task", "model", "criterion") for cls in CHOICES[group].values()}
CLASSES |= {cls.__name__ for cls in FAMILIES.values()}
CLASSES |= {"AudioTask", "ImagePretraining", "ImageClassificationData", "ImageClassifierModel", "ModelConfig",
            "AudioModel", "ImageModel", "LanguageModel", "TextModel", "TrunkOptions",
            "AudioModalityConfig", "ImageModalityConfig", "TextModalityConfig"}  # fmt: skip
CLASSES.discard(ModelCriterion.__name__)  # of every task whose model has its own losses


def is_room(file: str) -> bool:
    return ROOM.match(file) is not None


def namings(tree: ast.AST) -> Iterator[str]:
    """Where code names what only rooms know, with its line."""
    nodes = list(ast.walk(tree))
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and node.value in NAMES and id(node) not in prose:
            yield f"{node.lineno}: the name {node.value!r}"
        if isinstance(node, ast.Compare | ast.match_case):
            parts = node.pattern if isinstance(node, ast.match_case) else node
            for part in ast.walk(parts):
                if isinstance(part, ast.Constant) and part.value in WORDS:
                    yield f"{part.lineno}: compared with {part.value!r}"
        if isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant) and key.value in WORDS - {
                    "text"
                }:  # a column, an n-best list
                    yield f"{key.lineno}: chosen by {key.value!r}"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            for part in ast.walk(node.args[1]):
                if isinstance(part, ast.Name | ast.Attribute) and ast.unparse(part).split(".")[-1] in CLASSES:
                    yield f"{part.lineno}: isinstance of {ast.unparse(part)}"
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Call):
            if ast.unparse(node.left.func) == "type" and {ast.unparse(c) for c in node.comparators} & CLASSES:
                yield f"{node.lineno}: {ast.unparse(node)}"


def imports_of_rooms(tree: ast.AST, package: str) -> Iterator[str]:
    """Imports of a room's names: who knows the classes of one task knows the task."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level not in (1, 2):
            continue
        path = (node.module or "").replace(".", "/")
        folder = f"{package}/{path}" if node.level == 1 else path
        for name in [folder, *(f"{folder.rstrip('/')}/{alias.name}" for alias in node.names)]:
            file = f"{name}.py"
            if (
                is_room(file)
                and not name.startswith(("tasks", "preparation"))
                and (PLATFORM / file).is_file()
            ):
                yield f"{node.lineno}: imports {name}"


def found_in(file: str) -> list[str]:
    tree = ast.parse((PLATFORM / file).read_text(encoding="utf-8"))
    return [f"{file}:{line}" for line in (*namings(tree), *imports_of_rooms(tree, file.rpartition("/")[0]))]


def test_outside_the_rooms_nothing_names_a_task_a_modality_or_a_kind() -> None:
    files = [path.relative_to(PLATFORM).as_posix() for path in sorted(PLATFORM.rglob("*.py"))]
    others = [file for file in files if not is_room(file) and file not in EXCEPTIONS]
    assert len(others) > 80
    found = [line for file in others for line in found_in(file)]
    assert not found, "\n".join(["ask the task's entry, its class, the kind's or the configuration:", *found])


@pytest.mark.parametrize("file", EXCEPTIONS)
def test_no_exception_is_left_over(file: str) -> None:
    assert found_in(file), f"{file} needs no exception any more"


@pytest.mark.parametrize(
    "line",
    [
        'if artifact.kind == "ctc": pass',
        'if modality in ("image", "audio"): pass',
        'if config.modality_name != "TEXT": pass',
        'run = {"audio_pretraining": 1}[name]',
        'kinds = {"audio": 1}',
        "isinstance(recipe.task, AudioTask)",
        "isinstance(recipe.model, config.Data2VecMultiConfig | MaeConfig)",
        "issubclass(cls, (int, AudioModel))",
        "type(model) is Wav2VecCTC",
        "match modality:\n    case 'image':\n        pass",
    ],
)
def test_the_check_sees(line: str) -> None:
    assert list(namings(ast.parse(line)))


def test_the_check_of_imports_sees() -> None:
    code = "from ..recipe.audio_components import A\nfrom . import text_models\nfrom ..recipe import schema"
    assert len(list(imports_of_rooms(ast.parse(code), "registry"))) == 2
