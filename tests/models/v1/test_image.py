"""data2vec 1 for images: relative positions, teacher variants, position tables of other sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data2vec.artifact import read_artifact, save_artifact
from data2vec.errors import ConfigError
from data2vec.interop.v1_vision import from_beit_names
from data2vec.v1.image import Data2VecVision, Data2VecVisionPretraining, relative_position_index
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.positions import interpolate_bias_table
from tests.parity.intermediates import intermediates


def config(**values: object) -> Data2VecVisionConfig:
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2, "image_size": 24, "patch_size": 4,
             "num_mask_patches": 20, "min_mask_patches_per_block": 4, "max_mask_patches_per_block": 20,
             "average_top_k_layers": 2, "drop_path": 0.0, "max_update": 10}  # fmt: skip
    return Data2VecVisionConfig.from_dict({**small, **values})


def test_index_is_the_formula() -> None:
    index = relative_position_index(14)
    assert index.shape == (197, 197)
    assert (index[0, 1:] == 729).all() and (index[1:, 0] == 730).all() and index[0, 0] == 731
    for one, two in ((0, 195), (17, 3), (100, 100)):
        dy, dx = one // 14 - two // 14, one % 14 - two % 14
        assert index[1 + one, 1 + two] == (dy + 13) * 27 + dx + 13


def test_the_trunk_of_a_folder_is_what_fine_tuning_takes(tmp_path: Path) -> None:
    state = Data2VecVision(config()).state_dict()
    folder = save_artifact(tmp_path / "m", kind="pretrained", model_config=config(), state=state)
    trunk = Data2VecVision(config(), pretraining=False).state_dict()
    assert read_artifact(folder).trunk_state.keys() == trunk.keys()


def test_beit_names() -> None:
    names = ["cls_token", "blocks.0.mlp.fc1.weight", "patch_embed.proj.bias",
             "rel_pos_bias.relative_position_index", "lm_head.weight", "norm.bias",
             "encoder.blocks.0.gamma_1"]  # fmt: skip
    wanted = ["cls_emb", "encoder.blocks.0.mlp.0.weight", "patch_embed.conv.bias",
              "encoder.rel_pos_bias.relative_position_index", "final_proj.weight", "encoder.norm.bias",
              "encoder.blocks.0.gamma_1"]  # fmt: skip
    assert list(from_beit_names(dict.fromkeys(names, torch.zeros(1)))) == wanted


@pytest.mark.parametrize("whole", [False, True])
def test_mean_loss_is_the_mean_over_elements(whole: bool) -> None:
    """The BEiT-based code: smooth L1 averaged over masked patches and channels, through the linear head."""
    values = {"mean_loss": True, "use_final_proj": True, "loss_beta": 2.0, "ema_transformer_only": not whole}
    model = Data2VecVisionPretraining(config(**values))
    with intermediates(model) as found:
        output = model(torch.randn(2, 3, 24, 24))
    wanted = torch.nn.functional.smooth_l1_loss(found["pred_masked"], found["targets_masked"], beta=2.0)
    assert torch.allclose(output.loss / output.sample_size, wanted, rtol=1e-5)
    assert output.sample_size <= 2 * 20
    output.loss.backward()
    assert model.student.final_proj is not None and model.student.final_proj.weight.grad is not None


def test_interpolated_tables() -> None:
    table = torch.randn(11 * 11 + 3, 2)
    assert interpolate_bias_table(table, 6) is table
    flat = torch.cat([torch.full((121, 2), 0.5), table[-3:]])
    grown = interpolate_bias_table(flat, 9)
    assert grown.shape == (17 * 17 + 3, 2)
    assert torch.allclose(grown[:-3], torch.full((289, 2), 0.5), atol=1e-5)
    assert torch.equal(grown[-3:], table[-3:])
    near = interpolate_bias_table(table, 9)[:-3].view(17, 17, 2)[8, 8]
    assert torch.allclose(near, table[:-3].view(11, 11, 2)[5, 5], atol=1e-4), "offset 0 stays offset 0"


def test_impossible_values_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Data2VecVision(config(num_mask_patches=99, num_heads=5, loss_scale=-1.0))
    assert {p.field for p in caught.value.problems} == {
        "model.num_mask_patches", "model.num_heads", "model.loss_scale",
    }  # fmt: skip


def started(**values: object) -> dict[str, torch.Tensor]:
    """Initial weights of a network wide enough for statistics."""
    wide = config(embed_dim=256, num_heads=4, depth=3, patch_size=8, num_mask_patches=9, **values)
    return Data2VecVision(wide, seed=3).state_dict()


def spread(tensor: torch.Tensor) -> float:
    return float(tensor.double().std())


def test_the_reference_starts_tokens_wide_and_leaves_patches_and_head_to_pytorch() -> None:
    slight = config(embed_dim=256, mlp_ratio=1, depth=1, average_top_k_layers=1)
    drawn = [Data2VecVision(slight, seed=seed).state_dict() for seed in range(16)]
    tokens = torch.stack([one[name] for one in drawn for name in ("cls_emb", "mask_emb")])
    assert spread(tokens) == pytest.approx(0.8796, abs=0.03)  # N(0, 1) cut at two deviations
    assert 1.8 < float(tokens.abs().max()) <= 2.0
    weights = started()
    assert not torch.equal(weights["cls_emb"], weights["mask_emb"])
    for index in range(3):
        block = f"encoder.blocks.{index}"
        last = 0.02 / (2 * (index + 1)) ** 0.5
        for name, wanted in (
            ("attn.qkv", 0.02), ("attn.proj", last), ("mlp.0", 0.02), ("mlp.2", last)
        ):  # fmt: skip
            weight = weights[f"{block}.{name}.weight"]
            assert spread(weight) == pytest.approx(wanted, rel=0.02)
            assert 3.0 < float(weight.abs().max()) / wanted < 6.5  # not cut
        assert not any(
            weights[f"{block}.{name}"].any() for name in ("attn.proj.bias", "mlp.0.bias", "mlp.2.bias")
        )
    for name, inputs in (("patch_embed.conv", 3 * 8 * 8), ("final_proj", 256)):
        bound = inputs**-0.5
        for values in (weights[f"{name}.weight"], weights[f"{name}.bias"]):
            assert 0.95 * bound < float(values.abs().max()) <= bound
            assert spread(values) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_beit_starts_everything_within_one_deviation() -> None:
    weights = started(beit_init=True)
    for name, factor, tolerance in (
        ("cls_emb", 1.0, 0.1),
        ("mask_emb", 1.0, 0.1),
        ("patch_embed.conv.weight", 1.0, 0.02),
        ("final_proj.weight", 1.0, 0.02),
        ("encoder.blocks.1.attn.qkv.weight", 1.0, 0.02),
        ("encoder.blocks.1.mlp.2.weight", 2.0, 0.02),
        ("encoder.blocks.2.attn.proj.weight", 6**0.5, 0.02),
    ):
        tensor = weights[name] * factor
        assert spread(tensor) == pytest.approx(0.02 * 0.5396, rel=tolerance), name  # cut at one deviation
        assert 0.019 < float(tensor.abs().max()) <= 0.0200001
    for name in ("patch_embed.conv.bias", "final_proj.bias", "encoder.blocks.0.mlp.0.bias"):
        assert not weights[name].any()


def test_weights_start_from_seed_and_name_alone() -> None:
    one, other = (Data2VecVision(config(), seed=seed).state_dict() for seed in (1, 2))
    for name, value in Data2VecVision(config(), pretraining=False, seed=1).state_dict().items():
        assert torch.equal(value, one[name])
    for name in ("cls_emb", "mask_emb", "patch_embed.conv.bias", "encoder.blocks.1.attn.qkv.weight"):
        assert not torch.equal(one[name], other[name])
