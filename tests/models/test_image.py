"""The image model of data2vec 2.0: positions, patches, sizes, objective, head."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.errors import ConfigError, DataError
from data2vec.image import interpolate_positions, patchify, sincos_positions
from data2vec.image_heads import (
    ImageClassifier,
    TrunkRegularisation,
    finetuning_config,
    finetuning_lr_scales,
    fit_positions,
    linear_softmax,
    make_image_trunk,
)
from data2vec.pretraining import Data2VecPretraining
from data2vec.student import Data2VecMulti
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.positions import interpolate_bias_table
from data2vec.weight_shapes import pretraining_shapes, weight_shapes
from tests.parity.intermediates import intermediates


def image_config(
    model: dict[str, Any] | None = None, image: dict[str, Any] | None = None
) -> Data2VecMultiConfig:
    decoder = {"decoder_dim": 16, "decoder_groups": 4, "decoder_kernel": 3, "decoder_layers": 2,
               "input_dropout": 0.0}  # fmt: skip
    values = {"input_size": 24, "patch_size": 4, "embed_dim": 32, "prenet_depth": 1, "num_extra_tokens": 1,
              "init_extra_token_zero": False, "ema_local_encoder": True, "mask_prob": 0.8,
              "mask_prob_adjust": 0.07, "mask_length": 3, "inverse_mask": True,
              "decoder": decoder}  # fmt: skip
    return Data2VecMultiConfig.from_dict(
        {"embed_dim": 32, "num_heads": 2, "depth": 2, "average_top_k_layers": 2, "clone_batch": 2,
         "supported_modality": "IMAGE", "ema_encoder_only": False, "cls_loss": 0.01, "max_update": 10,
         "encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0,
         "instance_norm_target_layer": True, "layer_norm_targets": True, **(model or {}),
         "modalities": {"text": None, "image": {**values, **(image or {})}}}
    )  # fmt: skip


def test_positions_are_the_formula() -> None:
    side, dim = 5, 16
    positions = sincos_positions(side, dim)[0]
    for row in range(side):
        for column in range(side):
            for i in range(dim // 4):
                w = 10000 ** (-i / (dim / 4))
                got = positions[row * side + column]
                wanted = [math.sin(column * w), math.cos(column * w), math.sin(row * w), math.cos(row * w)]
                for part, value in enumerate(wanted):
                    assert float(got[part * (dim // 4) + i]) == pytest.approx(value, abs=1e-6)


def test_interpolated_positions() -> None:
    own = sincos_positions(6, 8)
    assert torch.allclose(interpolate_positions(own, 36), own, atol=1e-6)
    assert torch.allclose(interpolate_positions(torch.ones(1, 36, 8), 81), torch.ones(1, 81, 8), atol=1e-6)
    with pytest.raises(DataError, match="no square"):
        interpolate_positions(own, 35)


def test_patches_are_the_convolution() -> None:
    model = Data2VecMulti(image_config())
    images = torch.randn(2, 3, 24, 24)
    local = model.encoder.local_features(images)
    patches = patchify(images, 4)
    proj = model.encoder.local_encoder.proj  # pyright: ignore
    assert torch.allclose(local, patches @ proj.weight.flatten(1).T + proj.bias, atol=1e-5)
    with pytest.raises(DataError, match="takes"):
        model.encoder.local_features(torch.randn(2, 1, 24, 24))


@pytest.mark.parametrize(
    ("dim", "depth", "prenet", "patch", "decoder", "total", "without"),
    [
        (768, 10, 2, 16, (768, 3, 6), 88_383_744, 85_797_888),
        (1024, 24, 0, 16, (1024, 5, 3), 309_268_480, 303_300_608),
        (1280, 32, 0, 14, (1024, 5, 3), 637_403_392, 630_763_520),
    ],
)
def test_parameter_counts_of_the_recipes(
    dim: int, depth: int, prenet: int, patch: int, decoder: tuple[int, int, int], total: int, without: int
) -> None:
    width, kernel, layers = decoder
    config = image_config(
        {"embed_dim": dim, "depth": depth, "num_heads": 16 if dim > 768 else 12},
        {"input_size": 224, "patch_size": patch, "embed_dim": dim, "prenet_depth": prenet,
         "decoder": {"decoder_dim": width, "decoder_groups": 16, "decoder_kernel": kernel,
                     "decoder_layers": layers}},
    )  # fmt: skip
    student, _ = pretraining_shapes(config)
    assert sum(map(math.prod, weight_shapes(config).values())) == without
    assert sum(map(math.prod, student.values())) == total


def test_the_student_never_sees_masked_pixels() -> None:
    model = Data2VecPretraining(image_config()).eval()
    images = torch.randn(1, 3, 24, 24)
    from data2vec.image_masking import image_masks
    from data2vec.masking import clone_ids

    masks = image_masks(clone_ids(torch.tensor([0]), 2), 36, model.student.encoder.config, 1, 0)  # type: ignore[arg-type]
    hidden_by_both = (masks.mask_RT[0] & masks.mask_RT[1]).view(6, 6)
    pixels = hidden_by_both.repeat_interleave(4, 0).repeat_interleave(4, 1)
    changed = torch.where(pixels, torch.randn_like(images), images)
    seen: list[dict[str, torch.Tensor]] = []
    for source in (images, changed):
        with intermediates(model) as found:
            model(source, masks=masks)
        seen.append(found)
    assert torch.equal(seen[0]["student_encoder_output"], seen[1]["student_encoder_output"])
    assert not torch.equal(seen[0]["targets"], seen[1]["targets"])


def test_the_teacher_follows_and_gets_no_gradient() -> None:
    model = Data2VecPretraining(image_config({"ema_decay": 0.0, "ema_end_decay": 0.0}))
    output = model(torch.randn(2, 3, 24, 24))
    assert set(output.losses) == {"cls", "IMAGE_regression"} and output.sample_size == 4 * 29
    output.loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    with torch.no_grad():
        for parameter in model.student.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    model.teacher.step(1)
    student = model.student.state_dict()
    assert all(torch.equal(t, student[name]) for name, t in model.teacher.module.state_dict().items())


@pytest.mark.parametrize(
    ("model", "image", "field"),
    [
        ({"cls_loss": 0.1}, {"num_extra_tokens": 0}, "cls_loss"),
        ({"recon_loss": 0.1}, {}, "recon_loss"),
        ({}, {"patch_size": 40}, "patch_size"),
        ({}, {"use_alibi_encoder": True}, "use_alibi_encoder"),
        ({}, {"mask_prob": 1.0}, "mask_prob"),
        ({"embed_dim": 30, "num_heads": 2}, {}, "embed_dim"),
    ],
)
def test_impossible_configurations(model: dict[str, Any], image: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Data2VecMulti(image_config(model, image))
    assert any(problem.field.endswith(field) for problem in caught.value.problems)


# --- fine-tuning ------------------------------------------------------------------------------------------


def test_drop_path_of_the_base_recipe() -> None:
    config = image_config({"depth": 10}, {"prenet_depth": 2})
    tuned = finetuning_config(config, TrunkRegularisation(drop_path_rate=0.1))
    trunk = Data2VecMulti(tuned, with_decoder=False)  # pyright: ignore
    prenet = [block.drop_path for block in trunk.encoder.context_encoder.blocks]
    shared = [block.drop_path for block in trunk.blocks]
    assert prenet == pytest.approx([0.0, 0.1 / 9])
    assert shared == pytest.approx(torch.linspace(0.2 / 9, 0.1, 10).tolist())
    no_prenet = finetuning_config(
        image_config({"depth": 4}, {"prenet_depth": 0}), TrunkRegularisation(drop_path_rate=0.2)
    )
    assert (no_prenet.start_drop_path_rate, no_prenet.end_drop_path_rate) == pytest.approx((0.0, 0.2))  # pyright: ignore


def test_a_teacher_with_patches_of_its_own_may_compute_in_fp32() -> None:
    image = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))

    def targets(same: bool, autocast: bool) -> torch.Tensor:
        config = image_config(
            {"ema_same_dtype": same, "ema_encoder_only": False}, {"ema_local_encoder": True}
        )
        model = Data2VecPretraining(config)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), intermediates(model) as found:
            model(image)
        return found["targets"]

    exact = targets(True, False)
    assert torch.equal(targets(False, True), exact) and not torch.equal(targets(True, True), exact)


REGULARISATION = {"encoder_dropout": 0.11, "post_mlp_drop": 0.12, "attention_dropout": 0.13,
                  "activation_dropout": 0.14, "dropout_input": 0.15, "layerdrop": 0.16,
                  "start_drop_path_rate": 0.17, "end_drop_path_rate": 0.18, "norm_eps": 1e-4}  # fmt: skip
PRENET = {"prenet_layerdrop": 0.21, "prenet_dropout": 0.22, "start_drop_path_rate": 0.23,
          "end_drop_path_rate": 0.24}  # fmt: skip


def test_regularisation_that_is_not_given_stays_as_pretrained() -> None:
    pretrained = image_config(REGULARISATION, PRENET)
    left = dict.fromkeys((f.name for f in dataclasses.fields(TrunkRegularisation)), None)
    kept = finetuning_config(pretrained, TrunkRegularisation(**left))
    assert isinstance(kept, Data2VecMultiConfig) and kept.modalities.image is not None
    assert {name: getattr(kept, name) for name in REGULARISATION} == REGULARISATION
    assert {name: getattr(kept.modalities.image, name) for name in PRENET} == PRENET
    given = finetuning_config(
        pretrained, TrunkRegularisation(**{**left, "drop_path_rate": 0.0, "prenet_dropout": 0.0})
    )
    assert isinstance(given, Data2VecMultiConfig) and given.modalities.image is not None
    image = given.modalities.image
    rates = (given.start_drop_path_rate, given.end_drop_path_rate, image.start_drop_path_rate,
             image.end_drop_path_rate, image.prenet_dropout)  # fmt: skip
    assert rates == (0.0,) * 5 and image.prenet_layerdrop == 0.21 and given.layerdrop == 0.16


def test_regularisation_of_data2vec_1_that_is_not_given_stays_as_pretrained() -> None:
    pretrained = Data2VecVisionConfig(drop_path=0.25, attention_dropout=0.05)
    for path, attention, wanted in (
        (None, None, (0.25, 0.05)), (0.2, None, (0.2, 0.05)),
        (None, 0.0, (0.25, 0.0)), (0.0, 0.1, (0.0, 0.1)),
    ):  # fmt: skip
        given = TrunkRegularisation(drop_path_rate=path, attention_dropout=attention)
        tuned = finetuning_config(pretrained, given)
        assert isinstance(tuned, Data2VecVisionConfig)
        assert (tuned.drop_path, tuned.attention_dropout) == wanted


def test_layer_decay_leaves_what_is_outside_blocks() -> None:
    model = ImageClassifier(image_config({"depth": 3}, {"decoder": None}), ImageHeadConfig(num_classes=4))
    scales = finetuning_lr_scales(model, 0.5)
    assert scales["model.blocks.2.mlp.fc1.weight"] == 0.5
    assert scales["model.modality_encoders.IMAGE.context_encoder.blocks.0.norm1.bias"] == 0.5**4
    assert scales["model.modality_encoders.IMAGE.extra_tokens"] == 1.0
    assert "head.weight" not in scales


def test_soft_labels_and_smoothing_agree() -> None:
    model = ImageClassifier(image_config(image={"decoder": None}), ImageHeadConfig(num_classes=5))
    logits, labels = torch.randn(3, 5), torch.tensor([1, 4, 0])
    soft = torch.nn.functional.one_hot(labels, 5) * 0.9 + 0.1 / 5
    assert torch.allclose(model.loss(logits, soft).loss, model.loss(logits, labels).loss)
    model.eval()
    assert torch.allclose(
        model.loss(logits, labels).loss, torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    )


def test_linear_softmax_is_the_formula() -> None:
    x = torch.randn(2, 7, 3)
    p = x.double().sigmoid()
    wanted = (p.square().sum(1) / p.sum(1)).logit()
    assert torch.allclose(linear_softmax(x).double(), wanted, atol=1e-4)


def test_another_input_size_keeps_the_weights() -> None:
    config = image_config()
    state = Data2VecMulti(config, with_decoder=False).state_dict()
    tuned = finetuning_config(config, TrunkRegularisation(), input_size=40)
    classifier = ImageClassifier(tuned, ImageHeadConfig(num_classes=3))
    classifier.model.load_state_dict(fit_positions(state, tuned))
    assert classifier(torch.randn(2, 3, 40, 40)).shape == (2, 3)


@pytest.mark.parametrize("shared", [True, False])
def test_another_input_size_stretches_relative_positions_shared_or_of_each_block(shared: bool) -> None:
    config = Data2VecVisionConfig(
        image_size=24, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_mask_patches=9,
        min_mask_patches_per_block=4, max_mask_patches_per_block=9, average_top_k_layers=2,
        shared_rel_pos_bias=shared,
    )  # fmt: skip
    trunk = make_image_trunk(config, seed=1)
    for name, parameter in trunk.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    tuned = finetuning_config(config, TrunkRegularisation(), input_size=36)
    classifier = ImageClassifier(tuned, ImageHeadConfig(num_classes=3))
    fitted = fit_positions(trunk.state_dict(), tuned)
    classifier.model.load_state_dict(fitted)
    tables = {name: t for name, t in fitted.items() if name.endswith("relative_position_bias_table")}
    assert len(tables) == (1 if shared else 2)
    for name, table in tables.items():
        assert torch.equal(table, interpolate_bias_table(trunk.state_dict()[name], 9))
    assert classifier(torch.randn(2, 3, 36, 36)).shape == (2, 3)


def test_a_linear_classifier_trains_its_head_alone() -> None:
    model = ImageClassifier(
        image_config(image={"decoder": None}), ImageHeadConfig(num_classes=3, linear_classifier=True)
    )
    model.loss(model(torch.randn(2, 3, 24, 24)), torch.tensor([0, 2])).loss.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
