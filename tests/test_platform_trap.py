"""Python's own ``platform`` module stays visible however our code is started.

The folder ``platform/`` is a source root. Were it ever a package, ``import platform`` would find it first and
Ray jobs would hang without a message. The cases with Ray workers and submitted jobs are in the cluster tests.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
PROBE = f"""
import platform
assert platform.system() and platform.machine()
assert platform.__file__.startswith({str(STDLIB)!r}), platform.__file__
import data2vec, d2v_platform
print(data2vec.__file__)
print(d2v_platform.__file__)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command in a clean environment; its error output is the test's message."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{command} in {cwd}:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_this_process_sees_the_standard_library() -> None:
    assert platform.system()
    assert platform.__file__ is not None
    assert Path(platform.__file__).resolve().is_relative_to(STDLIB)


@pytest.mark.parametrize(
    "launcher", [[sys.executable, "-m", "pytest"], [SCRIPTS / "pytest"]], ids=["-m", "script"]
)
def test_pytest(launcher: list[str | Path]) -> None:
    name = "tests/test_platform_trap.py::test_this_process_sees_the_standard_library"
    assert "1 passed" in run(*launcher, "-q", "-p", "no:cacheprovider", name, cwd=REPO)


@pytest.mark.parametrize("python_path", ["", ".", "platform:models"])
def test_python_in_the_checkout(python_path: str) -> None:
    environment = {"PYTHONPATH": python_path} if python_path else {}
    found = run(sys.executable, "-c", PROBE, cwd=REPO, **environment).split()
    assert [Path(p).resolve() for p in found] == [
        REPO / "models/data2vec/__init__.py",
        REPO / "platform/d2v_platform/__init__.py",
    ]


def test_editable_install_from_an_empty_folder(tmp_path: Path) -> None:
    found = run(sys.executable, "-c", PROBE, cwd=tmp_path).split()
    assert [Path(p).resolve() for p in found] == [
        REPO / "models/data2vec/__init__.py",
        REPO / "platform/d2v_platform/__init__.py",
    ]


def test_the_command_line_as_a_module() -> None:
    assert "train" in run(sys.executable, "-m", "d2v_platform.cli", "--help", cwd=REPO)


def test_the_probe_notices_a_package_called_platform(tmp_path: Path) -> None:
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "__init__.py").touch()
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "platform" in done.stderr


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the built wheel and, for its dependencies, a path to ours."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("models", "platform", "configs", "experiments/results/reference"):
        shutil.copytree(REPO / name, checkout / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, checkout / name)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=checkout)
    (wheel,) = (folder / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    # A plain path line: the editable install's own .pth there is not read; our packages are the wheel's.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(checkout)
    return python


def test_wheel_from_an_empty_folder(installed_wheel: Path, tmp_path: Path) -> None:
    environment = installed_wheel.parents[1]
    for path in run(installed_wheel, "-c", PROBE, cwd=tmp_path).split():
        assert Path(path).resolve().is_relative_to(environment.resolve()), path


def test_wheel_carries_the_recipes(installed_wheel: Path, tmp_path: Path) -> None:
    listing = run(
        installed_wheel,
        "-c",
        "from importlib.resources import files\n"
        "root = files('d2v_platform') / '_configs'\n"
        "print(*[p.relative_to(root) for p in root.rglob('*.yaml')], sep='\\n')",
        cwd=tmp_path,
    )
    shipped = {str(path.relative_to(REPO / "configs")) for path in (REPO / "configs").rglob("*.yaml")}
    assert shipped
    assert set(listing.split()) == shipped


def test_wheel_carries_the_reference_curves(installed_wheel: Path, tmp_path: Path) -> None:
    code = "from d2v_platform.reports.reference import reference_root as r; print(*r().rglob('*.csv'))"
    found = [Path(path).name for path in run(installed_wheel, "-c", code, cwd=tmp_path).split()]
    assert sorted(found) == sorted(p.name for p in (REPO / "experiments/results/reference").rglob("*.csv"))
    assert found


def test_wheel_command(installed_wheel: Path, tmp_path: Path) -> None:
    assert "train" in run(installed_wheel.parent / "d2v", "--help", cwd=tmp_path)
