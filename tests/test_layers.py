"""Who imports whom inside the packages, drawn from the source: downwards only, no circles, nothing hidden.

Imports inside functions count like all others. They stand there for start-up time alone: each must bring, by
itself or through what it imports, a module of ``HEAVY`` that the top of its file does not bring already.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ROOTS = {"data2vec": REPO / "models", "d2v_platform": REPO / "platform"}
# Packages and single files of the platform, lowest first; those of one line know nothing of each other.
LAYERS = (
    "figures home markdown redaction retries",
    "bars environment storage",
    "preparation tracking",
    "recipe",
    "reports",
    "tasks",
    "training",
    "registry",
    "launch",
    "inference",
    "sweeps",
    "doctor importing",
    "cli",
)
# Third-party modules that a start pays for only when it needs them: milliseconds of CPU, the least of three
# imports on two busy cores, beside numpy, torch or pandas where a module builds on them.
HEAVY = {
    "timm": 4200, "torch": 3300, "torchvision": 3200, "mlflow": 2200, "scipy": 1800, "matplotlib": 930,
    "ray": 830, "pandas": 570, "sklearn": 430, "boto3": 430, "hydra": 390, "joblib": 350, "fsspec": 270,
    "requests": 250, "soundfile": 210, "omegaconf": 200, "numpy": 170, "rich": 60, "pyarrow": 60,
    "torch.distributed.fsdp": 1500,
}  # fmt: skip
STARTS = ("d2v_platform.cli", "d2v_platform.registry.pyfunc_")  # a verb's dispatch; files that MLflow runs
OPEN_CIRCLE = ("data2vec.artifact", "data2vec.interop")  # a folder is read by formats that write folders


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        module: its full name, or the top-level name of a third-party one.
        line: in the importing file.
        late: inside a function.
        typing: for type checkers alone.
    """

    module: str
    line: int
    late: bool
    typing: bool


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of both packages."""
    found = {}
    for name, root in ROOTS.items():
        for path in sorted((root / name).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(text: str, package: str, known: Mapping[str, object]) -> Iterator[Import]:
    """What a source imports, in its functions too.

    Args:
        text: the source.
        package: that it lies in, for relative imports.
        known: our modules; ``from package import module`` is told from ``from module import name`` by them.
    """

    def visit(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(_named(alias.name, known), node.lineno, late, typing)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(_named(f"{base}.{alias.name}", known), node.lineno, late, typing)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, late, True)
            for child in node.orelse:
                yield from visit(child, late, typing)
        else:
            inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside, typing)

    yield from dict.fromkeys(visit(ast.parse(text), False, False))


def _named(name: str, known: Mapping[str, object]) -> str:
    """The longest part of a dotted name that is a module of ours or heavy; of others the top-level name."""
    if name.partition(".")[0] not in ROOTS:
        return next(
            (heavy for heavy in HEAVY if "." in heavy and name.startswith(heavy)), name.partition(".")[0]
        )
    while name not in known:
        name = name.rpartition(".")[0]
    return name


@functools.cache
def graph() -> dict[str, list[Import]]:
    """Imports by module."""
    found = {}
    for name, path in modules().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = [one for one in imports_of(path.read_text(), package, modules()) if one.module != name]
    return found


def layer(module: str) -> str:
    """The package or single file of the platform that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other."""
    reach = {name: _reached(name, edges) for name in edges}
    groups = {tuple(sorted(o for o in reach[name] if name in reach.get(o, ()))) for name in edges}
    return sorted(list(group) for group in groups if len(group) > 1)


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = edges.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


@functools.cache
def brings(module: str) -> frozenset[str]:
    """Heavy modules that importing a module of ours, or a third-party one, imports."""
    if module not in modules():
        return frozenset({module} & HEAVY.keys())
    top = {name: {i.module for i in found if not (i.late or i.typing)} for name, found in graph().items()}
    for name in top:  # importing a module runs its packages first
        if "." in name:
            top[name] = top[name] | {name.rpartition(".")[0]}
    return frozenset(_reached(module, top) & HEAVY.keys())


def upward(imports: Mapping[str, list[Import]]) -> list[str]:
    """Imports of the platform from a package that is not below."""
    height = {name: number for number, line in enumerate(LAYERS) for name in line.split()}
    return [
        f"{module}:{one.line} imports {one.module}"
        for module, imported in imports.items()
        for one in imported
        if layer(module) != layer(one.module)
        and "d2v_platform." in module
        and "d2v_platform." in one.module
        and height[layer(module)] <= height[layer(one.module)]
    ]


def needless(imports: Mapping[str, list[Import]]) -> list[str]:
    """Imports inside the platform's functions that save no start-up time."""
    found = []
    for module, imported in imports.items():
        if not module.startswith("d2v_platform.") or module.startswith(STARTS):
            continue
        there = brings(module)
        lines: dict[int, set[str]] = {}
        for one in imported:
            if one.late:
                lines.setdefault(one.line, set()).update(brings(one.module))
        found += [f"{module}:{line}" for line, heavy in lines.items() if heavy <= there]
    return found


def test_every_package_has_a_layer() -> None:
    packages = {layer(module) for module in modules() if module.startswith("d2v_platform.")}
    assert packages == {name for line in LAYERS for name in line.split()}


def test_the_platform_imports_downwards_only() -> None:
    """Types of arguments too."""
    assert upward(graph()) == []


def test_no_circle_of_files() -> None:
    edges = {name: {one.module for one in found if not one.typing} for name, found in graph().items()}
    found = [circle for circle in circles(edges) if not all(name.startswith(OPEN_CIRCLE) for name in circle)]
    assert found == []


def test_an_import_in_a_function_saves_start_up_time() -> None:
    assert needless(graph()) == [], "move them to the top of the file"


@pytest.mark.parametrize(
    ("line", "finds"),
    [
        ("from ..training import launch", ["d2v_platform.training"]),
        ("def f():\n    from ..registry.serving import Served", ["d2v_platform.registry.serving"]),
        ("if TYPE_CHECKING:\n    from .. import cli", ["d2v_platform.cli"]),
        ("import d2v_platform.home, os.path", ["d2v_platform.home", "os"]),
    ],
)
def test_the_graph_sees(line: str, finds: list[str]) -> None:
    found = list(imports_of(line, "d2v_platform.tasks", modules()))
    assert [one.module for one in found] == finds
    assert [one.late for one in found] == ["def" in line] * len(finds)
    assert [one.typing for one in found] == ["TYPE" in line] * len(finds)
    made = {"d2v_platform.tasks.task": found}
    assert bool(upward(made)) == ("home" not in line) and bool(needless(made)) == ("def" in line)


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
