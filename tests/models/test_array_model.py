"""A family of a user's own in use: the example of ``experiments/plugin``, from its fields to a vector."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
from data2vec import families, student
from data2vec.artifact import save_artifact
from data2vec.errors import ConfigError, DataError
from data2vec.student import Data2VecMulti

PLACE = Path(__file__).resolve().parents[2] / "experiments" / "plugin" / "series_model.py"
SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2, "average_top_k_layers": 1,
         "series": {"channels": 3, "steps": 4, "prenet_depth": 0}}  # fmt: skip


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """The example's configuration, registered for one test."""
    tables: list[dict[Any, Any]] = [
        families.FAMILIES, families._MODALITIES, families._IN_USE, student._FRONT_ENDS
    ]  # fmt: skip
    before = [dict(table) for table in tables]
    spec = importlib.util.spec_from_file_location("series_model_of_a_test", PLACE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    yield module.Data2VecSeriesConfig
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


def test_a_family_names_its_front_end_and_is_checked(config: type[Any]) -> None:
    made = config.from_dict(SMALL)
    assert made.modality_name == "SERIES" and made.modality is made.series
    assert made.loss_names() == ("SERIES_regression",) and made.series.sample_shape == (3, 4)
    wrong = config.from_dict(
        SMALL | {"series": {"patch": 3, "prenet_dropout": 2.0}, "ema_encoder_only": False}
    )
    with pytest.raises(ConfigError) as caught:
        wrong.check()
    for field in ("model.series.patch = 3", "model.series.prenet_dropout = 2.0", "model.ema_encoder_only"):
        assert field in str(caught.value)


def test_it_gives_the_mean_of_the_last_block_and_refuses_other_shapes(
    config: type[Any], tmp_path: Path
) -> None:
    made = config.from_dict(SMALL)
    network = Data2VecMulti(made, with_decoder=False).eval()
    folder = save_artifact(tmp_path / "m", kind="pretrained", model_config=made, state=network.state_dict())
    model: Any = data2vec.load(folder)
    assert repr(model).startswith("<ArrayModel: pretrained; data2vec_series, SERIES: 2 blocks, width 16")
    series = np.arange(12.0).reshape(3, 4) / 12
    with torch.no_grad():
        wanted_D = network(torch.tensor(series, dtype=torch.float32)[None]).x_BTD.mean(1)[0]
    assert np.allclose(model.embed(series.tolist()), wanted_D, atol=1e-6)
    with pytest.raises(DataError, match=r"an array of the shape \(4, 3\); the model takes \(3, 4\)"):
        model.embed(series.T)
