"""Image classification: what the recipe sets in the trunk, pooling by its formulas, layer-wise decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.image_heads import (
    ImageClassifier,
    TrunkRegularisation,
    finetuning_config,
    finetuning_lr_scales,
    layer_decay_scales,
)
from data2vec.v1.image_config import Data2VecVisionConfig
from tests.models.plain import agree, informative, layer_norm, linear


def v2(depth: int = 5, prenet: int = 2, extra: int = 1) -> Data2VecMultiConfig:
    front = {"input_size": 12, "patch_size": 4, "embed_dim": 16, "prenet_depth": prenet,
             "num_extra_tokens": extra}  # fmt: skip
    return Data2VecMultiConfig.from_dict(
        {"embed_dim": 16, "num_heads": 2, "depth": depth, "average_top_k_layers": 1, "clone_batch": 4,
         "supported_modality": "IMAGE", "ema_encoder_only": False, "cls_loss": 0.01,
         "modalities": {"text": None, "image": front}}
    )  # fmt: skip


def v1(**values: Any) -> Data2VecVisionConfig:
    return Data2VecVisionConfig.from_dict(
        {"image_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2,
         "num_mask_patches": 9, "min_mask_patches_per_block": 4, "max_mask_patches_per_block": 9,
         "average_top_k_layers": 2, **values}
    )  # fmt: skip


def test_every_rate_reaches_the_trunk() -> None:
    given = v2()
    names = ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout", "dropout_input",
             "layerdrop", "prenet_layerdrop", "prenet_dropout")  # fmt: skip
    rates = {name: 0.01 * index for index, name in enumerate(names, start=11)}
    config = finetuning_config(given, TrunkRegularisation(**rates, norm_eps=0.5), input_size=24)
    assert isinstance(config, Data2VecMultiConfig) and config.modalities.image is not None
    image = config.modalities.image
    found = {name: getattr(image if name.startswith("prenet") else config, name) for name in names}
    assert found == rates and config.norm_eps == 0.5 and image.input_size == 24
    assert (config.clone_batch, config.cls_loss, config.recon_loss, image.decoder) == (1, 0.0, 0.0, None)
    assert given.clone_batch == 4 and given.modalities.image is not None, "the given one is left alone"
    assert given.modalities.image.decoder is not None and given.modalities.image.input_size == 12


@pytest.mark.parametrize(("depth", "prenet"), [(5, 2), (5, 0), (3, 1), (2, 3), (1, 1)])
def test_drop_path_rises_over_prenet_and_shared_blocks(depth: int, prenet: int) -> None:
    """d = linspace(0, rate, depth): prenet from d[0] to d[p - 1], shared blocks from d[p] to d[-1]."""
    config = finetuning_config(v2(depth, prenet), TrunkRegularisation(drop_path_rate=0.4))
    model = ImageClassifier(config, ImageHeadConfig(num_classes=3)).model
    steps = [0.4 * index / (depth - 1) if depth > 1 else 0.0 for index in range(depth)]
    last = depth - 1
    front = torch.linspace(steps[0], steps[min(prenet - 1, last)], prenet).tolist() if prenet else []
    shared = torch.linspace(steps[min(prenet, last)], steps[last], depth).tolist()
    assert [b.drop_path for b in model.encoder.context_encoder.blocks] == pytest.approx(front, abs=1e-6)  # type: ignore[union-attr]
    assert [b.drop_path for b in model.blocks] == pytest.approx(shared, abs=1e-6)  # type: ignore[union-attr]


def test_data2vec_1_takes_drop_path_attention_dropout_and_size() -> None:
    config = finetuning_config(
        v1(), TrunkRegularisation(drop_path_rate=0.3, attention_dropout=0.2), input_size=8
    )
    assert isinstance(config, Data2VecVisionConfig)
    assert (config.drop_path, config.attention_dropout, config.image_size) == (0.3, 0.2, 8)
    assert config.num_mask_patches == 4, "no more than there are patches"


@pytest.mark.parametrize("drop_first", [False, True])
@pytest.mark.parametrize("mode", ["MEAN_POOLING", "CLS_TOKEN", "LIN_SOFTMAX"])
@pytest.mark.parametrize("config", [v2(2, 1, 2), v1()], ids=["v2", "v1"])
def test_pooling_and_head_are_their_formulas(config: Any, mode: Any, drop_first: bool) -> None:
    torch.manual_seed(1)
    config = finetuning_config(config, TrunkRegularisation())
    for use_norm in (True, False):
        options = ImageHeadConfig(num_classes=4, prediction_mode=mode, drop_first_patch=drop_first,
                                  use_fc_norm=use_norm, fc_norm_eps=0.1)  # fmt: skip
        model = ImageClassifier(config, options).eval()
        informative(model, 3)
        images = torch.randn(2, 3, 12, 12)
        features = model.model(images)
        x = features.x_BTD.double()
        patches = x[:, 1:] if drop_first else x
        assert x.shape[1] == 9 and features.extra_BED is not None
        if mode == "MEAN_POOLING":
            pooled = patches.mean(dim=1)
        elif mode == "CLS_TOKEN":
            pooled = features.extra_BED[:, 0].double()
        else:
            p = patches.sigmoid()
            pooled = torch.logit(p.square().sum(1) / p.sum(1))
        state = {name: value.double() for name, value in model.state_dict().items()}
        pooled = layer_norm(pooled, state, "fc_norm", 0.1) if use_norm else pooled
        agree(model(images), linear(pooled, state, "head"), f"{mode}, norm {use_norm}", 1e-3)


def test_loss_is_summed_and_smoothed_in_training_alone() -> None:
    model = ImageClassifier(v1(), ImageHeadConfig(num_classes=4, label_smoothing=0.2)).train()
    logits, target = torch.randn(3, 4), torch.tensor([1, 0, 3])
    log_p = logits.double().log_softmax(dim=1)
    share = torch.full((3, 4), 0.2 / 4, dtype=torch.float64)
    share[range(3), target] += 0.8
    output = model.loss(logits, target)
    torch.testing.assert_close(output.elementwise.double(), -(share * log_p).sum(1), rtol=1e-5, atol=1e-5)
    assert float(output.loss) == pytest.approx(float(output.elementwise.sum()))
    plain = model.eval().loss(logits, target)
    torch.testing.assert_close(plain.elementwise.double(), -log_p[range(3), target], rtol=1e-5, atol=1e-5)
    soft = torch.rand(3, 4).double()
    mixed = model.train().loss(logits, soft)
    torch.testing.assert_close(mixed.elementwise.double(), -soft * log_p, rtol=1e-5, atol=1e-5)
    assert float(mixed.loss) == pytest.approx(float(-(soft * log_p).sum()), rel=1e-5)


def test_the_heads_initial_weights() -> None:
    def head(seed: int = 1, **values: Any) -> torch.Tensor:
        model = ImageClassifier(v1(), ImageHeadConfig(num_classes=500, **values), seed=seed)
        assert not model.head.bias.any()
        return model.head.weight.detach()

    assert float(head().std()) == pytest.approx(0.02, rel=0.05) and torch.equal(head(), head())
    assert not torch.equal(head(), head(seed=2))
    torch.testing.assert_close(head(init_scale=0.001), 0.001 * head())


def test_layer_decay_of_data2vec_2() -> None:
    assert layer_decay_scales(3, 0.5) == [0.125, 0.25, 0.5]
    model = ImageClassifier(
        finetuning_config(v2(3, 2), TrunkRegularisation()), ImageHeadConfig(num_classes=3)
    )
    scales = finetuning_lr_scales(model, 0.5)
    assert set(scales) == {f"model.{name}" for name, _ in model.model.named_parameters()}
    for name, scale in scales.items():
        if ".context_encoder.blocks." in name:
            wanted = 0.5 ** (5 - int(name.split(".blocks.")[1][0]))
        elif name.startswith("model.blocks."):
            wanted = 0.5 ** (3 - int(name.split(".blocks.")[1][0]))
        else:
            wanted = 1.0
        assert scale == wanted, name


@pytest.mark.parametrize("shared", [True, False])
def test_layer_decay_of_data2vec_1(shared: bool) -> None:
    config = finetuning_config(v1(shared_rel_pos_bias=shared), TrunkRegularisation())
    scales = finetuning_lr_scales(ImageClassifier(config, ImageHeadConfig(num_classes=3)), 0.5)
    for name, scale in scales.items():
        if name.startswith("model.encoder.blocks."):
            wanted = 0.5 ** (3 - int(name.split(".blocks.")[1][0]))
        elif "rel_pos_bias" in name:
            wanted = 1.0
        else:
            wanted = 0.5**4
        assert scale == wanted, name
    assert {"model.cls_emb", "model.patch_embed.conv.weight"} <= set(scales)
