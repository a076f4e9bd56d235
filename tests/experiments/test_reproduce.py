"""experiments/reproduce.sh: what it says of itself, and what it refuses before it does anything."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from d2v_platform.recipe.locate import recipe_names, sweep_names

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "experiments" / "reproduce.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *words], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", **environment},
    )  # fmt: skip


def test_help_lists_every_lane_with_its_hours() -> None:
    for words in ((), ("--help",)):
        done = run(*words)
        assert done.returncode == 0 and not done.stderr
        told = re.findall(r"^  (\w+) +([\d.]+)  \w", done.stdout, re.MULTILINE)
        known = re.search(r'" ([a-z ]+) " == ', TEXT)
        assert known is not None and [lane for lane, _ in told] == known[1].split()
        assert all(float(hours) > 0 for _, hours in told)
        assert all(re.search(rf"^{lane}\(\) {{$", TEXT, re.MULTILINE) for lane, _ in told)


@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        (("text", "imgaes"), "/x", "error: there is no lane 'imgaes'; there are text, words, images"),
        (("text",), "/does/not/exist", "error: DATA=/does/not/exist has no text/; give the folder"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_made(
    words: tuple[str, ...], data: str, said: str, tmp_path: Path
) -> None:
    done = run(*words, DATA=data, WORK=str(tmp_path / "work"))
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_the_recipes_and_sweeps_it_names_exist() -> None:
    recipes = set(re.findall(r"\btiny/[a-z_0-9]*[a-z0-9]\b", TEXT))
    assert recipes <= set(recipe_names()), recipes
    sweeps = {found for line in re.findall(r"^ *sweep \S+ (\S+)", TEXT, re.MULTILINE) for found in [line]}
    assert sweeps and sweeps - {"definition"} <= set(sweep_names()), sweeps
