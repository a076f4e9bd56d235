"""Clones computed some at a time give the losses and gradients of all at once."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from data2vec.clone_chunks import clone_chunks
from data2vec.config import Data2VecMultiConfig
from data2vec.pretraining import Data2VecPretraining, PretrainOutput

STILL = {"encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0}
V2 = {"embed_dim": 32, "num_heads": 2, "depth": 2, "average_top_k_layers": 2, "clone_batch": 5} | STILL
FRONTS: dict[str, dict[str, Any]] = {
    "image": {"input_size": 16, "patch_size": 4, "embed_dim": 24, "prenet_depth": 1, "num_extra_tokens": 1,
              "ema_local_encoder": True, "mask_prob": 0.75, "mask_length": 2, "inverse_mask": True,
              "local_grad_mult": 0.5,
              "decoder": {"decoder_dim": 16, "decoder_groups": 4, "decoder_kernel": 3, "input_dropout": 0.0}},
    "text": {"prenet_depth": 0, "mask_prob": 0.48, "mask_length": 1, "max_source_positions": 64,
             "dropout": 0.0,
             "decoder": {"decoder_dim": 16, "decoder_groups": 1, "decoder_layers": 2, "projection_layers": 2,
                         "input_dropout": 0.0}},
    "audio": {"feature_encoder_spec": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2", "prenet_depth": 1,
              "mask_prob": 0.5, "mask_length": 2, "conv_pos_width": 15, "conv_pos_depth": 2,
              "conv_pos_groups": 2, "use_alibi_encoder": True, "learned_alibi_scale": True,
              "prenet_dropout": 0.0,
              "decoder": {"decoder_dim": 16, "decoder_groups": 2, "decoder_layers": 2, "input_dropout": 0.0}},
}  # fmt: skip


def build(kind: str) -> tuple[Data2VecPretraining, torch.Tensor, torch.Tensor | None]:
    """A model without dropout and a micro-batch of three samples, two of them padded where that can be."""
    values: dict[str, Any] = V2 | {
        "supported_modality": kind.upper(),
        "modalities": {"text": None, kind: FRONTS[kind]},
    }
    if kind != "text":
        values |= {"ema_encoder_only": False}
    if kind == "image":
        values |= {"cls_loss": 0.01, "recon_loss": 0.1}
        values["modalities"]["image"] |= {"patch_size": 4, "in_chans": 2}  # 4 * 4 * 2 pixels = the width
    draw = torch.Generator().manual_seed(1)
    if kind == "image":
        source = torch.randn(3, 2, 16, 16, generator=draw)
    elif kind == "text":
        source = torch.randint(4, 50, (3, 24), generator=draw)
    else:
        source = torch.randn(3, 6400, generator=draw)
    padding = None
    if kind != "image":
        padding = torch.zeros_like(source, dtype=torch.bool)
        padding[1, -source.shape[1] // 3 :] = True
    model = Data2VecPretraining(Data2VecMultiConfig.from_dict(values), vocab_size=50)
    return model.train(), source, padding


def gradients(model: Data2VecPretraining) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [2, 1])
@pytest.mark.parametrize("kind", FRONTS)
def test_losses_gradients_and_figures_are_equal(kind: str, size: int) -> None:
    model, source, padding = build(kind)
    ids = torch.tensor([7, 8, 9])
    whole = model(source, padding, ids, update=3, watch=True)
    (whole.loss * 0.5).backward()
    wanted = gradients(model)
    model.zero_grad()
    parts: list[PretrainOutput] = []
    counted = {"teacher": 0, "front": 0}
    honest_targets, honest_front = model._targets, model.student.encoder.compute_local_features

    def targets(*args: Any) -> torch.Tensor:
        counted["teacher"] += 1
        return honest_targets(*args)

    def front(*args: Any) -> torch.Tensor:
        counted["front"] += 1
        return honest_front(*args)

    with (
        patch.object(model, "_targets", targets),
        patch.object(model.student.encoder, "compute_local_features", front),
    ):
        for chunk in clone_chunks(5, size):
            parts.append(model(source, padding, ids, update=3, watch=True, chunk=chunk))
            (parts[-1].loss * 0.5).backward()
    assert len(parts) == -(-5 // size) and counted["teacher"] == 1
    assert counted["front"] <= 1, "the front end runs once (audio has its own way through it)"
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-4, atol=2e-5 * float(gradient.abs().max()))
    for name, loss in whole.losses.items():
        assert sum(float(part.losses[name].detach()) for part in parts) == pytest.approx(
            float(loss.detach()), rel=1e-5
        )
    assert sum(part.sample_size for part in parts) == whole.sample_size
    for kind_of in ("prediction", "target"):
        total = sum(getattr(part, kind_of).total_D for part in parts)
        torch.testing.assert_close(total, getattr(whole, kind_of).total_D, rtol=1e-4, atol=1e-4)
    assert sum(part.stages["encoder"].count for part in parts) == whole.stages["encoder"].count
    assert [("local_features" in part.stages) for part in parts] == [True] + [False] * (len(parts) - 1)


def test_given_masks_and_noise_are_dealt_out() -> None:
    model, source, _ = build("text")
    rows, gaps = 15, 24 - int(24 * (1 - 0.48))
    mask_RT = torch.rand(rows, 24, generator=torch.Generator().manual_seed(2)).argsort(dim=1) < gaps
    from data2vec.masking import MaskSet

    masks = MaskSet.from_mask(mask_RT)
    noise = torch.randn(rows, gaps, 32, generator=torch.Generator().manual_seed(3))
    whole = model(source, masks=masks, noise_RJD=noise).loss
    parts = [
        float(model(source, masks=masks, noise_RJD=noise, chunk=c).loss.detach()) for c in clone_chunks(5, 2)
    ]
    assert sum(parts) == pytest.approx(float(whole.detach()), rel=1e-5)


def test_a_front_end_that_does_not_learn() -> None:
    model, source, _ = build("image")
    model.student.encoder.config.local_grad_mult = 0.0
    for chunk in clone_chunks(5, 2):
        model(source, chunk=chunk).loss.backward()
    assert all(".local_encoder." not in name for name in gradients(model))
