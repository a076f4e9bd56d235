"""Going on under an old name needs the recipe and the data that the run was started with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from d2v_platform.launch import launch
from d2v_platform.recipe.compose import compose
from data2vec.errors import ConfigError


class Began(Exception):
    """Training would have begun."""


def test_changed_fields_and_changed_data_are_named_together(
    mlflow_home: Path,
    tmp_path: Path,
    tiny_recipe: dict[str, Any],
    tiny_text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise Began

    monkeypatch.setattr("d2v_platform.launch.train", train)
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    text = yaml.safe_dump(tiny_recipe | {"platform": {"num_workers": 0, "run_name": "same"}})
    (recipe / "tiny_run.yaml").write_text("# @package _group_\n" + text)

    def again(*overrides: str) -> None:
        launch(compose("tiny_run", list(overrides), str(recipe)))

    with pytest.raises(Began):
        again()
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(tiny_text, moved)
    shutil.copytree(tiny_text, other)
    for part in ("bin", "idx"):  # valid in the place of train: fewer lines
        shutil.copyfile(other / f"valid.{part}", other / f"train.{part}")
    with pytest.raises(Began):
        again(f"task.data={moved}", "common.log_interval=3")  # the same data elsewhere
    with pytest.raises(ConfigError) as caught:
        again(f"task.data={other}", "optimization.clip_norm=2", "model.depth=3")
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"task.data", "optimization.clip_norm", "model.depth"}
    assert "holds other data" in str(caught.value) and "another platform.run_name" in str(caught.value)
    with pytest.raises(Began):
        again()
