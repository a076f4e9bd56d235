"""data2vec 2.0 in random configurations: losses, targets and gradients are those of the plain formulas."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig
from data2vec.masking import MaskSet
from data2vec.pretraining import Data2VecPretraining
from tests.models.plain import agree, informative
from tests.models.plain_v2 import PlainStep
from tests.parity.intermediates import intermediates

VOCAB = 12
WAVE = "[(8, 4, 2)] + [(12, 3, 2)]"


def decoder(pick: random.Random, width: int) -> dict[str, Any]:
    groups = pick.choice([1, 2, 4])
    return {"decoder_dim": pick.choice([8, width]), "decoder_groups": groups, "input_dropout": 0.0,
            "decoder_kernel": pick.choice([3, 4, 5]), "decoder_layers": pick.choice([1, 2, 3]),
            "decoder_residual": pick.random() < 0.5, "projection_layers": pick.choice([1, 2, 3]),
            "projection_ratio": pick.choice([1.5, 2.0])}  # fmt: skip


def options(pick: random.Random) -> dict[str, Any]:
    flags = ("layer_norm_target_layer", "batch_norm_target_layer", "instance_norm_target_layer",
             "instance_norm_targets", "layer_norm_targets", "end_of_block_targets")  # fmt: skip
    depth = pick.choice([2, 3])
    return {"depth": depth, "embed_dim": 12, "num_heads": pick.choice([2, 4]),
            "mlp_ratio": pick.choice([1.5, 2.0]),
            "average_top_k_layers": pick.randint(1, depth), "clone_batch": pick.choice([1, 2, 3]),
            "norm_eps": pick.choice([1e-6, 1e-2]), "norm_affine": pick.random() < 0.7,
            "layer_norm_first": pick.random() < 0.3, "loss_beta": pick.choice([0.0, 0.5, 4.0]),
            "loss_scale": pick.choice([None, 2.0]), "d2v_loss": pick.choice([1.0, 0.5]),
            "encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0,
            **{flag: pick.random() < 0.4 for flag in flags}}  # fmt: skip


def front(pick: random.Random) -> dict[str, Any]:
    return {
        "prenet_depth": pick.choice([0, 1, 2]),
        "local_grad_mult": pick.choice([1.0, 0.25]),
        "decoder": decoder(pick, 12),
    }


def alibi(pick: random.Random) -> dict[str, Any]:
    return {
        "use_alibi_encoder": pick.random() < 0.8,
        "alibi_scale": 0.7,
        "learned_alibi_scale": True,
        "learned_alibi_scale_per_head": pick.random() < 0.5,
        "learned_alibi_scale_per_layer": pick.random() < 0.5,
    }


def text(pick: random.Random) -> tuple[Data2VecMultiConfig, torch.Tensor, torch.Tensor, int]:
    """Configuration, input, its padding, and positions."""
    modality = {"mask_length": 1, "max_source_positions": 16, "dropout": 0.0, **front(pick),
                "no_scale_embedding": pick.random() < 0.5, "layernorm_embedding": pick.random() < 0.7,
                "no_token_positional_embeddings": pick.random() < 0.3, **alibi(pick)}  # fmt: skip
    config = Data2VecMultiConfig.from_dict({**options(pick), "modalities": {"text": modality}})
    source = torch.randint(4, VOCAB, (2, 9))
    source[1, 6:] = 1
    return config, source, source.eq(1), 9


def image(pick: random.Random) -> tuple[Data2VecMultiConfig, torch.Tensor, torch.Tensor, int]:
    modality = {"input_size": 9, "patch_size": 3, "in_chans": 3, "mask_length": 3, **front(pick),
                "embed_dim": pick.choice([12, 6]), "num_extra_tokens": pick.choice([1, 2, 3]),
                "fixed_positions": True, "ema_local_encoder": pick.random() < 0.5}  # fmt: skip
    where = pick.choice([None, "add_positions_masked", "add_positions_all"])
    if where:
        modality["decoder"][where] = True
    values = {
        **options(pick),
        "cls_loss": pick.choice([0.0, 0.1, 0.2]),
        "ema_encoder_only": pick.random() < 0.3,
    }
    if pick.random() < 0.5:  # needs as many values in a patch as the model is wide
        values |= {"embed_dim": 12, "recon_loss": 0.3}
        modality |= {"in_chans": 3, "patch_size": 2, "input_size": 6}
    config = Data2VecMultiConfig.from_dict(
        {**values, "supported_modality": "IMAGE", "modalities": {"text": None, "image": modality}}
    )
    size = modality["input_size"]
    return config, torch.randn(2, 3, size, size), torch.zeros(2, 9, dtype=torch.bool), 9


def audio(pick: random.Random) -> tuple[Data2VecMultiConfig, torch.Tensor, torch.Tensor, int]:
    modality = {"feature_encoder_spec": WAVE, "conv_pos_width": pick.choice([7, 9]),
                "conv_pos_depth": pick.choice([1, 2]),
                "conv_pos_groups": pick.choice([1, 3]), "conv_pos_pre_ln": pick.random() < 0.5,
                "padding_leaks": pick.random() < 0.3, **alibi(pick), **front(pick)}  # fmt: skip
    values = {**options(pick), "ema_encoder_only": False, "supported_modality": "AUDIO"}
    config = Data2VecMultiConfig.from_dict({**values, "modalities": {"text": None, "audio": modality}})
    source = torch.randn(2, 44)  # 10 frames
    padding = torch.zeros(2, 44, dtype=torch.bool)
    padding[0, 33:] = True  # 7 frames are left
    frames = torch.arange(10)[None] >= torch.tensor([7, 10])[:, None]
    return config, source, frames, 10


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("make", [text, image, audio])
def test_the_step_is_its_formulas(make: Any, seed: int) -> None:
    torch.manual_seed(seed)
    pick = random.Random(seed)
    config, source, padded, length = make(pick)
    model = Data2VecPretraining(config, vocab_size=VOCAB).train()
    informative(model.student, seed)
    informative(model.teacher, seed + 100)
    rows, hidden = len(source) * config.clone_batch, pick.randint(3, 6)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(length)[:hidden]] = True
    noise = 0.5 * torch.randn(rows, hidden, config.embed_dim)

    padding = padded
    if make is audio:
        padding = torch.arange(44)[None] >= torch.tensor([33, 44])[:, None]
    with intermediates(model) as found:
        output = model(source, padding, masks=MaskSet.from_mask(mask), noise_RJD=noise)
    plain = PlainStep(model)
    losses, targets = plain(source, padded, mask, noise)
    agree(found["targets"], targets, "targets")
    others = dict(output.losses)
    agree(others.pop(f"{config.modality_name}_regression"), losses["main"], "loss")
    assert set(others) == {name for name in ("cls", "recon") if getattr(config, f"{name}_loss") > 0}
    for name, loss in others.items():
        agree(loss, losses[name], name)
    assert output.sample_size == rows * hidden and output.masked_pct == pytest.approx(hidden / length)

    output.loss.backward()
    sum(losses.values(), torch.zeros(())).backward()
    for name, parameter in model.student.named_parameters():
        agree(parameter.grad, plain.state[name].grad, f"gradient of {name}", 2e-3)
