"""data2vec 1 in random configurations: losses, targets and gradients are those of the plain formulas."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text import Data2VecTextPretraining
from data2vec.v1.text_config import Data2VecTextConfig
from tests.models.plain import agree, informative
from tests.models.plain_v1 import PlainAudio, PlainText, PlainVision
from tests.parity.intermediates import intermediates

VOCAB = 12
FLAGS = ("layer_norm_target_layer", "batch_norm_target_layer", "instance_norm_target_layer",
         "instance_norm_targets", "layer_norm_targets")  # fmt: skip


def options(pick: random.Random, depth: int) -> dict[str, Any]:
    return {"average_top_k_layers": pick.randint(1, depth),
            "loss_beta": pick.choice([0.0, 0.5, 4.0]),
            "loss_scale": pick.choice([None, 2.0]),
            **{flag: pick.random() < 0.4 for flag in FLAGS}}  # fmt: skip


def audio(pick: random.Random) -> tuple[Any, Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Model, plain model, input, its padding, and the padding of positions."""
    depth = pick.choice([2, 3])
    config = Data2VecAudioConfig.from_dict({
        "extractor_mode": "layer_norm", "encoder_layers": depth, "encoder_embed_dim": 12,
        "encoder_ffn_embed_dim": 20, "encoder_attention_heads": pick.choice([2, 3]),
        "activation_fn": pick.choice(["gelu", "relu"]), "dropout": 0.0, "attention_dropout": 0.0,
        "layer_norm_first": pick.random() < 0.4, "conv_feature_layers": "[(8, 4, 2)] + [(10, 3, 2)]",
        "feature_grad_mult": pick.choice([1.0, 0.25]), "conv_pos": pick.choice([7, 9]),
        "conv_pos_groups": pick.choice([1, 3]), "pos_conv_depth": pick.choice([2, 3]),
        "padding_leaks": pick.random() < 0.3, "group_norm_target_layer": pick.random() < 0.5,
        **options(pick, depth),
    })  # fmt: skip
    model = Data2VecAudioPretraining(config)
    padding = torch.arange(44)[None] >= torch.tensor([33, 44])[:, None]
    return model, PlainAudio, torch.randn(2, 44), padding, torch.arange(10)[None] >= torch.tensor([[7], [10]])


def text(pick: random.Random) -> tuple[Any, Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    depth = pick.choice([2, 3])
    config = Data2VecTextConfig.from_dict({
        "head_layers": pick.choice([1, 2, 3]), "teacher_sees_masked_only": pick.random() < 0.4,
        "transformer": {
            "activation_fn": pick.choice(["gelu", "relu"]), "dropout": 0.0, "max_source_positions": 16,
            "no_token_positional_embeddings": pick.random() < 0.3,
            "layernorm_embedding": pick.random() < 0.6, "no_scale_embedding": pick.random() < 0.5,
            "encoder": {"embed_dim": 12, "ffn_embed_dim": 20, "layers": depth, "learned_pos": True,
                        "attention_heads": pick.choice([2, 3]), "normalize_before": pick.random() < 0.4},
        },
        **options(pick, depth),
    })  # fmt: skip
    source = torch.randint(4, VOCAB - 1, (2, 9))
    source[0, 7:] = 1
    return Data2VecTextPretraining(config, vocab_size=VOCAB), PlainText, source, source.eq(1), source.eq(1)


def vision(pick: random.Random) -> tuple[Any, Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    depth, side = pick.choice([2, 3]), pick.choice([2, 3])
    config = Data2VecVisionConfig.from_dict({
        "layer_scale_init_value": pick.choice([0.0, 0.5]), "num_mask_patches": 2, "in_channels": 3,
        "min_mask_patches_per_block": 1, "max_mask_patches_per_block": 2, "image_size": 4 * side,
        "patch_size": 4, "shared_rel_pos_bias": pick.random() < 0.6, "drop_path": 0.0, "depth": depth,
        "embed_dim": 12, "num_heads": pick.choice([2, 3]), "mlp_ratio": 2,
        "end_of_block_targets": pick.random() < 0.5, "ema_transformer_only": pick.random() < 0.5,
        "norm_eps": pick.choice([1e-5, 1e-2]), "use_final_proj": pick.random() < 0.5,
        "mean_loss": pick.random() < 0.5, **options(pick, depth),
    })  # fmt: skip
    nothing = torch.zeros(2, side**2, dtype=torch.bool)
    return (
        Data2VecVisionPretraining(config),
        PlainVision,
        torch.randn(2, 3, 4 * side, 4 * side),
        nothing,
        nothing,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("make", [audio, text, vision])
def test_the_step_is_its_formulas(make: Any, seed: int) -> None:
    torch.manual_seed(seed)
    model, plain_of, source, padding, padded = make(random.Random(seed))
    model.train()
    informative(model.student, seed)
    informative(model.teacher, seed + 100)
    mask = torch.rand(padded.shape) < 0.5
    mask[:, 0] = True
    mask &= ~padded
    given = None if make is vision else padding
    with intermediates(model) as found:
        output = model(source, given, mask_BT=mask)
    plain = plain_of(model)
    loss, targets = plain(source, padded, mask)
    agree(found["targets_masked"], targets, "targets")
    assert list(output.losses) == ["main" if make is text else "regression"]
    agree(output.loss, loss, "loss")
    assert output.sample_size == int(mask.sum())
    assert output.masked_pct == pytest.approx(float(mask.float().mean()))

    output.loss.backward()
    loss.backward()
    for name, parameter in model.student.named_parameters():
        agree(parameter.grad, plain.state[name].grad, f"gradient of {name}", 2e-3)
