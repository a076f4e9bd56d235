"""A real MLflow on SQLite for each test, cheap: the tables are made once a session and the file is copied."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from PIL import Image

from d2v_platform.tracking.mlflow_access import open_client
from d2v_platform.tracking.tracker import Tracker
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.data.letters import letter_line, released_letters
from data2vec.data.manifest import manifest_text


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and no runs; making it takes some 10 s."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_home(mlflow_template: Path, home: Path) -> Path:
    """A fresh ``D2V_HOME`` whose default MLflow database is ready."""
    (home / "mlflow").mkdir(parents=True)
    shutil.copyfile(mlflow_template, home / "mlflow" / "mlflow.db")
    return home


@pytest.fixture
def new_tracker(
    mlflow_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Tracker]]:
    """Makes trackers on the test's database; they are closed at the end.

    The working directory is an empty folder that must stay empty: MLflow's default store would show there.
    """
    made: list[Tracker] = []
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def make(**settings: Any) -> Tracker:
        made.append(Tracker(**{"home": mlflow_home, "send_interval_s": 0.05, **settings}))
        return made[-1]

    yield make
    for tracker in made:
        tracker.close(timeout_s=5)
    assert list(work.iterdir()) == []


@pytest.fixture
def tracker(new_tracker: Callable[..., Tracker]) -> Tracker:
    """One tracker on a database of its own."""
    return new_tracker()


@pytest.fixture
def ctc_model(tmp_path: Path) -> Path:
    """A small CTC model with random weights."""
    config = Data2VecMultiConfig.from_dict(
        {"supported_modality": "AUDIO", "embed_dim": 16, "num_heads": 2, "depth": 1,
         "average_top_k_layers": 1, "ema_encoder_only": False, "modalities": {"text": None, "audio": {
             "feature_encoder_spec": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] * 2", "prenet_depth": 0,
             "conv_pos_width": 9, "conv_pos_depth": 3, "conv_pos_groups": 2, "decoder": None}}}
    )  # fmt: skip
    network = CTCModel(config, CTCConfig(), num_symbols=32)
    return save_artifact(
        tmp_path / "model", kind="ctc", model_config=config, head_config=network.options,
        state=network.state_dict(), letters=released_letters(),
        task={"normalize": True, "num_symbols": 32, "sample_rate": 16_000},
    )  # fmt: skip


@pytest.fixture
def utterances(tmp_path: Path) -> Path:
    """Eleven recordings of noise with labels (dev), three without (test)."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for subset, count in (("dev", 11), ("test", 3)):
        entries = []
        for index in range(count):
            length = 4000 + 1500 * index
            sf.write(str(folder / f"{subset}{index}.wav"), 0.1 * rng.normal(size=length), 16_000)
            entries.append((f"{subset}{index}.wav", length))
        (folder / f"{subset}.tsv").write_text(manifest_text(str(folder), entries))
    (folder / "dev.ltr").write_text(f"{letter_line('ONE TWO')}\n" * 11)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that a colour tells apart, 12 images each in train and val."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(1)
    for split in ("train", "val"):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(12):
                values = draw.integers(0, 120, (28, 32, 3))
                values[..., channel] += 120
                Image.fromarray(values.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def image_runs() -> Iterator[ModuleType]:
    """The module beside this file, under a name that processes it starts can import too."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    import image_runs  # pyright: ignore[reportMissingImports]

    yield image_runs
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def pretrained(pictures: Path, image_runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained data2vec 2.0 image model."""
    summary, _ = image_runs.run(image_runs.pretraining(pictures), tmp_path_factory.mktemp("pretrained"))
    return Path(summary.export)


@pytest.fixture(scope="session")
def classifier(
    pictures: Path, pretrained: Path, image_runs: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same, fine-tuned to tell blue from red."""
    folder = tmp_path_factory.mktemp("classifier")
    summary, _ = image_runs.run(image_runs.finetuning(pictures), folder, pretrained)
    return Path(summary.export)
