"""The cut of the project: who may import whom, what lies where, and which calls are never allowed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
PLATFORM_ONLY = {"ray", "mlflow", "hydra", "omegaconf", "boto3", "d2v_platform", "experiments"}
FORBIDDEN = {
    "models/data2vec": PLATFORM_ONLY,
    "platform/d2v_platform": {"experiments", "tests"},
    "experiments": {"tests"},
}
TOP_FOLDERS = {"platform", "models", "experiments", "configs", "tests", "docker"}
DYNAMIC_IMPORTS = ("importlib.import_module", "__import__")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPO / folder).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]
        elif isinstance(node, ast.Call) and dotted_name(node.func) in DYNAMIC_IMPORTS and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value).split(".")[0]


def dotted_name(node: ast.AST) -> str:
    """``a.b.c`` of a name or attribute; an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted_name(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def unsafe_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Calls that can run code hidden in a file or a string."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted_name(node.func)
        if name in (
            "eval",
            "exec",
            "pickle.load",
            "pickle.loads",
            "pickle.Unpickler",
            "yaml.load",
            "joblib.load",
        ):
            yield node.lineno, name
        if name == "torch.load":
            flags = {k.arg: k.value for k in node.keywords}
            flag = flags.get("weights_only")
            if not (isinstance(flag, ast.Constant) and flag.value is True):
                yield node.lineno, "torch.load without weights_only=True"
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield node.lineno, f"{name} with allow_pickle"


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_layers(folder: str) -> None:
    found = [
        f"{path.relative_to(REPO)}:{line} imports {package}"
        for path in sources(folder)
        for line, package in imports(ast.parse(path.read_text()))
        if package in FORBIDDEN[folder]
    ]
    assert not found, "\n".join(found)


def test_nothing_in_the_packages_loads_code_from_data() -> None:
    found = [
        f"{path.relative_to(REPO)}:{line} {what}"
        for path in sources("models", "platform", "experiments")
        for line, what in unsafe_calls(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "finds"),
    [
        ("import ray.train", "ray"),
        ("def f():\n    from mlflow.entities import Metric", "mlflow"),
        ("import importlib\nimportlib.import_module('hydra.core')", "hydra"),
    ],
)
def test_the_import_check_sees(line: str, finds: str) -> None:
    assert finds in [package for _, package in imports(ast.parse(line))]


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "import pickle\npickle.loads(b'')",
        "eval('1')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
    ],
)
def test_the_safety_check_sees(line: str) -> None:
    assert list(unsafe_calls(ast.parse(line)))


def test_source_roots_are_not_packages() -> None:
    roots = [REPO / "platform", REPO / "models", REPO / "experiments", REPO / "tests"]
    tests = [path.parent for path in (REPO / "tests").rglob("__init__.py")]
    found = [str(folder) for folder in roots + tests if (folder / "__init__.py").exists()]
    assert not found, (
        f"{found}: an __init__.py here makes a package that hides others (Python's own platform)"
    )


def test_no_test_file_directly_under_a_source_root() -> None:
    # pytest's importlib mode would put an empty module called "platform" into sys.modules for it.
    assert not [*(REPO / "platform").glob("*.py"), *(REPO / "models").glob("*.py")]


def test_top_level_names() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    folders = {name.split("/")[0] for name in listed.split("\0") if "/" in name}
    extra = {name for name in folders if not name.startswith(".")} - TOP_FOLDERS
    assert not extra, f"new top-level folders: {sorted(extra)}"


PLAN = """
from d2v_platform.cli import train_command
train_command(["tiny/image_pretraining", "task.data={data}", "platform.num_workers=0", "--plan"], "d2v train")
"""


@pytest.mark.parametrize(
    ("start", "absent"),
    [
        ("import d2v_platform.cli", "torch ray mlflow sklearn scipy"),
        (PLAN, "torchvision timm sklearn scipy pandas mlflow ray sympy torch._dynamo torch.distributed.fsdp"),
    ],
    ids=["help", "plan"],
)
def test_a_start_imports_what_it_needs(start: str, absent: str, tmp_path: Path) -> None:
    """Every driver, worker and trial pays for imports: a plan is a quarter more than importing torch."""
    for name in ("train/a/1.png", "train/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    code = (
        f"{start.format(data=tmp_path)}\nimport sys\nprint(sorted({set(absent.split())} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_printed_is_never_read_as_markup() -> None:
    """Rich takes ``[...]`` in a name for a style, unless its console is told not to."""
    made = re.compile(r"\bConsole\((?!markup=False|quiet=True)")
    found = [
        path.relative_to(REPO) for path in sources("platform", "experiments") if made.search(path.read_text())
    ]
    assert found == []


FOLDERS = "models/data2vec/folders.py"
ONE_ROOM = {  # what is written once, by where it stands; further places only with a reason
    "publishes": {FOLDERS: "write_text, written_file, written_folder, take_place"},
    "hashes a file": {FOLDERS: "file_sha256"},
    "waits": {
        "models/data2vec/data/audio_files.py": "a file on a network; the library has no retries",
        "platform/d2v_platform/training/shared_folder.py": "no retry: a network folder may show a file late",
        "models/data2vec/data/text_chunks.py": "no retry: looks once a second whether its parent lives",
        "platform/d2v_platform/registry/alias_turns.py": "no retry: its turn comes after the others",
        "experiments/benchmarks/scale.py": "no retry: until Ray has given back what a lost node held",
        "experiments/benchmarks/scale_processes.py": "no retry: a trial that takes its time",
    },
    "tries again": {"platform/d2v_platform/retries.py": "try_again"},
}


def written_once(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of calls and imports that belong into one room."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            if "tenacity" in [name.split(".")[0] for name in names]:
                yield node.lineno, "tries again"
            if isinstance(node, ast.ImportFrom) and node.module in ("time", "os", "hashlib"):
                for alias in node.names:
                    yield from _told(node.lineno, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Call):
            yield from _told(node.lineno, dotted_name(node.func))
            only = node.args[0] if len(node.args) == 1 and not node.keywords else None
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if only is not None and method in ("rename", "replace"):  # of pathlib: str.replace takes two
                yield node.lineno, "publishes"
            read = isinstance(only, ast.Call) and isinstance(only.func, ast.Attribute)
            if read and only.func.attr == "read_bytes" and dotted_name(node.func).startswith("hashlib."):
                yield node.lineno, "hashes a file"


def _told(line: int, name: str) -> Iterator[tuple[int, str]]:
    if name in ("os.replace", "os.rename", "os.renames", "shutil.move", "tempfile.mkstemp"):
        yield line, "publishes"
    elif name == "hashlib.file_digest":
        yield line, "hashes a file"
    elif name == "time.sleep":
        yield line, "waits"


def test_what_is_written_once_is_not_written_again() -> None:
    places: dict[str, dict[str, int]] = {what: {} for what in ONE_ROOM}
    for path in sources("models", "platform", "experiments"):
        for line, what in written_once(ast.parse(path.read_text())):
            places[what][str(path.relative_to(REPO))] = line
    for what, found in places.items():
        second = [f"{path}:{line} {what}" for path, line in found.items() if path not in ONE_ROOM[what]]
        assert not second, f"{second}: use that of {list(ONE_ROOM[what])}"
        assert found.keys() == ONE_ROOM[what].keys(), f"{what}: an exception that is none any more"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import os\nos.replace(a, b)", "publishes"),
        ("beside.rename(path)", "publishes"),
        ("beside.replace(path)", "publishes"),
        ("from os import replace", "publishes"),
        ("import shutil\nshutil.move(a, b)", "publishes"),
        ("hashlib.file_digest(file, 'sha256').hexdigest()", "hashes a file"),
        ("hashlib.sha256(path.read_bytes())", "hashes a file"),
        ("from hashlib import file_digest", "hashes a file"),
        ("import time\ntime.sleep(1)", "waits"),
        ("from time import sleep", "waits"),
        ("from tenacity import retry", "tries again"),
        ("import tenacity.wait", "tries again"),
        ("text.replace('a', 'b')\ndataclasses.replace(a, b=1)\ntable.rename(columns=names)", None),
    ],
)
def test_the_check_of_what_is_written_once_sees(line: str, what: str | None) -> None:
    assert {found for _, found in written_once(ast.parse(line))} == ({what} if what else set())
