"""A sweep over an image recipe is checked and prepared like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from d2v_platform.recipe.sweep_definition import load_sweep
from d2v_platform.sweeps.preparation import prepare_trials
from d2v_platform.sweeps.sweep_folder import identity
from data2vec.artifact import save_artifact
from data2vec.config import Data2VecMultiConfig
from data2vec.student import Data2VecMulti

DEFINITION = """
recipe: tiny/image_finetuning
grid: {lr: [5.0e-4, 1.0e-3], seed: [1, 2]}
fixed: {dataset.valid_subset: val, model.num_classes: 2}
"""


def test_trials_know_the_images_that_they_see(home: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 8)):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 255, (9, 9, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{index}.png")
    image = {"input_size": 64, "patch_size": 8, "embed_dim": 32, "prenet_depth": 1, "num_extra_tokens": 1,
             "ema_local_encoder": True}  # fmt: skip
    config = Data2VecMultiConfig.from_dict({
        "depth": 1, "embed_dim": 32, "num_heads": 2, "average_top_k_layers": 1, "supported_modality": "IMAGE",
        "ema_encoder_only": False, "modalities": {"text": None, "image": image},
    })  # fmt: skip
    network = Data2VecMulti(config, with_decoder=False)
    save_artifact(tmp_path / "model", kind="pretrained", model_config=config, state=network.state_dict())
    (tmp_path / "sweep.yaml").write_text(DEFINITION)
    data, model = tmp_path / "images", tmp_path / "model"
    sweep = load_sweep(str(tmp_path / "sweep.yaml"), [f"task.data={data}", f"model.model_path={model}"])
    prepared = prepare_trials(sweep, identity(sweep, "x")[1])
    assert len(prepared) == 4
    fingerprints = prepared[0].data
    assert set(fingerprints) == {"train", "val"} and len(set(fingerprints.values())) == 2
    assert all(stored.data == fingerprints for stored in prepared)
