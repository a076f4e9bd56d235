"""Tasks and models of users: a package in ``common.user_dir``, from its import to a model that is served."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from d2v_platform.recipe import user_code
from d2v_platform.recipe.compose import compose
from d2v_platform.recipe.schema import Recipe
from data2vec.errors import ConfigError

REPO = Path(__file__).resolve().parents[2]
PLUGIN = REPO / "experiments" / "plugin"


@pytest.fixture
def package(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A user's package, empty, of a name that no other test uses."""
    folder = tmp_path / f"package_of_{abs(hash(request.node.name))}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    yield folder
    sys.modules.pop(folder.name, None)
    user_code._loaded.pop(folder.name, None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def composed(folder: Path | str) -> tuple[str | None, tuple[str, ...]]:
    made = compose("tiny/text_pretraining", ["task.data=/data", f"common.user_dir={folder}"])
    return made.recipe.common.user_dir, made.notes


def test_a_package_is_imported_once_and_its_place_is_kept(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "__init__.py").write_text("print('imported')\n")
    monkeypatch.chdir(tmp_path)
    assert composed(package.name) == (str(package), ())
    assert package.name in sys.modules and str(package) in user_code.folders()
    assert composed(package) == (str(package), ())


def test_the_references_own_folder_has_no_effect_and_that_is_said(tmp_path: Path) -> None:
    there = tmp_path / "examples" / "data2vec"
    there.mkdir(parents=True)
    (there / "__init__.py").write_text("import fairseq\n")
    for folder in ("examples/data2vec", there, tmp_path):
        place, notes = composed(folder)
        assert place is None and "common.user_dir: no effect here" in notes[0], folder


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'.*__init__.py:1"),
        ("\n1 / 0", "ZeroDivisionError.*__init__.py:2"),
        ("raise SyntaxError('odd')", "SyntaxError: odd"),
    ],
)
def test_code_that_fails_is_told_with_its_line(package: Path, code: str, said: str) -> None:
    (package / "__init__.py").write_text(code)
    with pytest.raises(ConfigError, match=r"common\.user_dir = .*cannot be imported") as caught:
        composed(package)
    caught.match(said)


def test_a_folder_named_as_another_module_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    (folder / "__init__.py").touch()
    with pytest.raises(ConfigError, match="json is the name of another module"):
        composed(folder)


def test_a_package_that_another_one_hides_is_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python experiments/train.py`` finds ``experiments/demo`` before a user's own ``demo``."""
    first = tmp_path / "first" / package.name
    first.mkdir(parents=True)
    (first / "__init__.py").touch()
    monkeypatch.syspath_prepend(first.parent)
    with pytest.raises(ConfigError, match=f"{package.name} is the name of another module .*first"):
        composed(package)
    sys.modules.pop(package.name)
    monkeypatch.setenv(user_code.VARIABLE, f"/elsewhere{os.pathsep}{package}")
    assert composed(package) == (str(package), ()), "in a process that Ray gave its copy to"


def test_its_place_does_not_make_another_recipe(package: Path) -> None:
    from d2v_platform.recipe.difference import difference, digest, resume_differences

    plain = compose("tiny/text_pretraining", ["task.data=/data"]).recipe
    moved = compose("tiny/text_pretraining", ["task.data=/data", f"common.user_dir={package}"]).recipe
    assert digest(plain) == digest(moved)
    assert difference(moved, plain) == {} == resume_differences(plain, moved)


def test_a_stored_recipe_is_read_with_the_package_that_this_process_has(
    package: Path, tmp_path: Path
) -> None:
    """A job that is submitted again is unpacked into a new folder, while the old one is still there."""
    (package / "__init__.py").write_text("raise RuntimeError('the old one')\n")
    stored = compose("tiny/text_pretraining", ["task.data=/data"]).recipe.to_dict()
    stored["common"]["user_dir"] = str(package)
    again = tmp_path / "again" / package.name
    again.mkdir(parents=True)
    (again / "__init__.py").touch()
    assert composed(again) == (str(again), ())
    assert Recipe.from_dict(stored).common.user_dir == str(package)
    assert user_code.folders().count(str(again)) == 1 and str(package) not in user_code.folders()
    with pytest.raises(ConfigError, match=f"{package.name} is the name of another module"):
        composed(package)  # asked for by name, it is refused all the same


def test_names_that_are_taken_are_refused() -> None:
    from d2v_platform.recipe.components import register_component
    from d2v_platform.recipe.text_components import MaskedLMTask

    register_component("task", "masked_lm", MaskedLMTask)  # the same again
    with pytest.raises(ConfigError, match=r"task\._name = 'masked_lm'.*is the name of .*MaskedLMTask"):
        register_component("task", "masked_lm", Path)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_a_modality_of_ones_own_from_its_recipe_to_the_registry(home: Path, tmp_path: Path) -> None:
    """The example: planned, trained by two Ray workers, probed, registered; served without the platform."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=REPO, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run(str(PLUGIN / "digits.py"), str(tmp_path / "digits"))
    data = f"task.data={tmp_path / 'digits'}"
    train = ["experiments/train.py", "experiments/plugin/series.yaml", data, "optimization.max_update=30",
             "lr_scheduler.warmup_updates=5", "platform.num_workers=2"]  # fmt: skip
    refused = subprocess.run(
        [sys.executable, *train, "model.series.patch=3", "model.layers=2"],
        cwd=REPO, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert (
        "model.series.patch = 3   must divide steps 8" in refused.stderr and "model.layers" in refused.stderr
    )
    said = run(*train, "platform.run_name=digits", "platform.register_as=digits", "platform.alias=champion")
    assert "registered as models:/digits/1 (digits@champion)" in said  # so it beats its random weights
    served = f"""
import sys, mlflow, numpy as np, pandas as pd
import d2v_platform.home
mlflow.set_tracking_uri(d2v_platform.home.default_tracking_uri())
model = mlflow.pyfunc.load_model("models:/digits@champion")
x = np.load({str(tmp_path / "digits" / "valid.npz")!r})["x"][:2]
rows = model.predict(pd.DataFrame({{"input": [one.tolist() for one in x]}}))["embedding"]
assert "plugin" not in sys.modules
try:
    model.predict(pd.DataFrame({{"input": [x[0].tolist(), [[1.0]], None]}}))
except Exception as error:
    assert "row 2: input = null must be an array of numbers" in str(error), error
try:
    model.predict(pd.DataFrame({{"input": [x[0].tolist(), [[1.0]]]}}))
except Exception as error:
    print(error)
print("embeddings", len(rows), len(rows[0]), float(np.abs(rows[0]).max()))
"""
    *_, refusal, line = run("-c", served).splitlines()
    assert "row 1: input: an array of the shape (1, 1); the model takes (8, 8)" in refusal
    words = line.split()
    assert words[:3] == ["embeddings", "2", "64"] and np.isfinite(float(words[3])) and float(words[3]) > 0
