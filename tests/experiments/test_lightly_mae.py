"""The outside mark: lightly's masked autoencoder trains in our task and is what lightly's own parts say."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.models import utils
from PIL import Image

from data2vec.image_masking import image_masks

REPO = Path(__file__).resolve().parents[2]
# The file alone: the package registers its task, which other tests of this process would see.
_spec = importlib.util.spec_from_file_location(
    "lightly_mae_of_a_test", REPO / "experiments" / "lightly_mae" / "mae.py"
)
assert _spec is not None and _spec.loader is not None
mae = sys.modules["lightly_mae_of_a_test"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mae)
SMALL = mae.LightlyMaeConfig(
    input_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2,
    decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_that_of_lightlys_recipe(normalised: bool) -> None:
    config = mae.LightlyMaeConfig.from_dict(SMALL.to_dict() | {"norm_pix_loss": normalised})
    model, ids = mae.LightlyMae(config, seed=1), torch.arange(5, 8)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    output = model(images, None, ids, update=4, seed=1, watch=False)

    mask_BT = image_masks(ids, 16, config.encoder().modality, 1, 4).mask_RT  # pyright: ignore[reportArgumentType]
    order_BT = mask_BT.int().argsort(dim=1, stable=True) + 1  # lightly's positions begin with the class token
    keep, gone = F.pad(order_BT[:, :4], (1, 0)), order_BT[:, 4:]
    net = model.student
    hidden = net.between(net.encoder.encode(images, idx_keep=keep))
    full = utils.set_at_index(utils.repeat_token(net.decoder.mask_token, (3, 17)), keep, hidden)
    predicted = net.pixels(utils.get_at_index(net.decoder(full), gone))
    target = utils.get_at_index(utils.patchify(images, 4), gone - 1)
    if normalised:
        target = utils.normalize_mean_var(target, dim=-1)
    assert output.sample_size == gone.numel() == 3 * 12
    torch.testing.assert_close(output.loss / output.sample_size, F.mse_loss(predicted, target))


def test_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = mae.LightlyMae(SMALL, seed=3).state_dict()
    before = torch.random.get_rng_state()
    again, other = mae.LightlyMae(SMALL, seed=3).state_dict(), mae.LightlyMae(SMALL, seed=4).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["student.between.weight"], other["student.between.weight"])


def test_its_recipe_trains_and_is_probed(home: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    done = subprocess.run(
        [sys.executable, "experiments/train.py", "experiments/lightly_mae/image_pretraining.yaml",
         f"task.data={tmp_path / 'images'}", "task.probe_bank=train", "task.probe_neighbours=2",
         "dataset.disable_validation=false", "dataset.valid_subset=val", "dataset.batch_size=4",
         "optimization.max_update=2", "optimizer.groups.with_decay.lr_scheduler.warmup_updates=1",
         "optimizer.groups.no_decay.lr_scheduler.warmup_updates=1", "common.log_interval=1",
         "platform.num_workers=0"],
        cwd=REPO, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "update 2/2" in said and "val/linear_probe" in said
