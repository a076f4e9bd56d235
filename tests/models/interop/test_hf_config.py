"""Hugging Face's configurations, field by field: unusual values in all of them, out and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.errors import CheckpointError
from data2vec.interop import hf_config, hf_state
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import relative_position_index
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text_config import Data2VecTextConfig

AUDIO = Data2VecAudioConfig(
    extractor_mode="layer_norm",
    encoder_layers=3,
    encoder_embed_dim=24,
    encoder_ffn_embed_dim=40,
    encoder_attention_heads=6,
    activation_fn="relu",
    dropout=0.11,
    attention_dropout=0.12,
    activation_dropout=0.13,
    encoder_layerdrop=0.14,
    dropout_input=0.15,
    conv_feature_layers="[(6, 10, 5)] + [(7, 4, 3)]",
    conv_bias=True,
    conv_pos=27,
    conv_pos_groups=4,
    pos_conv_depth=3,
    mask_prob=0.21,
    mask_length=7,
    mask_channel_prob=0.22,
    mask_channel_length=9,
    average_top_k_layers=3,
    instance_norm_target_layer=True,
)
THEIR_AUDIO = {
    "model_type": "data2vec-audio", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6,
    "intermediate_size": 40, "hidden_act": "relu", "hidden_dropout": 0.11, "attention_dropout": 0.12,
    "activation_dropout": 0.13, "feat_proj_dropout": 0.15, "layerdrop": 0.14, "layer_norm_eps": 1e-5,
    "feat_extract_activation": "gelu", "conv_dim": [6, 7], "conv_kernel": [10, 4], "conv_stride": [5, 3],
    "conv_bias": True, "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 9,
    "num_conv_pos_embedding_groups": 4, "apply_spec_augment": True, "mask_time_prob": 0.21,
    "mask_time_length": 7, "mask_feature_prob": 0.22, "mask_feature_length": 9, "vocab_size": 29,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "ctc_loss_reduction": "sum",
    "ctc_zero_infinity": True,
}  # fmt: skip


def test_audio_out_and_back() -> None:
    theirs = hf_config.audio_config(AUDIO, 29)
    assert theirs == THEIR_AUDIO
    back = hf_config.from_audio(theirs)
    for name in AUDIO.__dataclass_fields__:
        if name not in (
            "conv_feature_layers",
            "dropout_input",
        ):  # the last has no field of theirs to come from
            assert getattr(back, name) == getattr(AUDIO, name), name
    assert back.conv_feature_layers == "[(6, 10, 5), (7, 4, 3)]"
    bare = Data2VecAudioConfig(mask_prob=0.0, conv_pos=5, pos_conv_depth=3)
    assert hf_config.audio_config(bare, None)["vocab_size"] == 32
    assert hf_config.audio_config(bare, None)["mask_time_prob"] == 0.05
    assert hf_config.audio_config(bare, None)["conv_pos_kernel_size"] == 3  # never narrower
    with pytest.raises(CheckpointError, match="layer_norm_first"):
        hf_config.audio_config(Data2VecAudioConfig(layer_norm_first=True), None)


def test_what_their_audio_configurations_leave_out_is_their_default() -> None:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim",
             "conv_kernel", "conv_stride", "num_conv_pos_embeddings")  # fmt: skip
    back = hf_config.from_audio({name: THEIR_AUDIO[name] for name in names} | {"num_hidden_layers": 12})
    assert (back.activation_fn, back.conv_bias, back.conv_pos, back.conv_pos_groups) == (
        "gelu",
        False,
        57,
        16,
    )
    assert (back.dropout, back.attention_dropout, back.activation_dropout) == (0.1, 0.1, 0.1)
    assert (back.encoder_layerdrop, back.average_top_k_layers) == (0.1, 8)
    assert (back.mask_prob, back.mask_length) == (0.05, 10)
    assert (back.mask_channel_prob, back.mask_channel_length) == (0.0, 10)


def text_1(**options: Any) -> Data2VecTextConfig:
    sizes = {"embed_dim": 24, "ffn_embed_dim": 40, "layers": 3, "attention_heads": 6, "learned_pos": True}
    sizes |= options.pop("encoder", {})
    transformer = {"activation_fn": "relu", "dropout": 0.11, "attention_dropout": 0.12,
                   "max_source_positions": 21, "layernorm_embedding": True,
                   "no_scale_embedding": True}  # fmt: skip
    return Data2VecTextConfig.from_dict(
        {
            "head_layers": 2,
            "average_top_k_layers": 3,
            "layer_norm_target_layer": True,
            "loss_beta": 4.0,
            "loss_scale": 1.0,
            "transformer": {**transformer, **options, "encoder": sizes},
        }
    )


def text_2(front: dict[str, Any] | None = None, **fields: Any) -> Data2VecMultiConfig:
    text = {"prenet_depth": 0, "max_source_positions": 21, "mask_length": 1, **(front or {})}
    sizes = {"embed_dim": 24, "depth": 3, "num_heads": 6, "mlp_ratio": 1.75, "encoder_dropout": 0.11,
             "attention_dropout": 0.12, "norm_eps": 1e-5, "average_top_k_layers": 3}  # fmt: skip
    return Data2VecMultiConfig.from_dict(
        {**sizes, **fields, "supported_modality": "TEXT", "modalities": {"text": text}}
    )


THEIR_TEXT = {
    "model_type": "data2vec-text", "vocab_size": 33, "hidden_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 6, "intermediate_size": 40, "hidden_act": "relu", "hidden_dropout_prob": 0.11,
    "attention_probs_dropout_prob": 0.12, "max_position_embeddings": 23, "type_vocab_size": 1,
    "layer_norm_eps": 1e-5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def test_text_out_and_back() -> None:
    assert hf_config.text_config(text_1(), 33) == THEIR_TEXT
    assert hf_config.from_text(THEIR_TEXT) == text_1()
    second = hf_config.text_config(text_2(), 33)
    assert second == {**THEIR_TEXT, "hidden_act": "gelu", "intermediate_size": 42}
    for wrong in ({}, {"layer_norm_eps": 1e-12}, {"layer_norm_eps": 1e-6}):
        theirs = {name: value for name, value in THEIR_TEXT.items() if name != "layer_norm_eps"}
        with pytest.raises(CheckpointError, match="layer_norm_eps"):
            hf_config.from_text({**theirs, **wrong})
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "max_position_embeddings", "layer_norm_eps")  # fmt: skip
    back = hf_config.from_text({name: THEIR_TEXT[name] for name in names} | {"num_hidden_layers": 12})
    options = back.transformer
    assert (options.activation_fn, options.dropout, options.attention_dropout) == ("gelu", 0.1, 0.1)
    assert back.average_top_k_layers == 10


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (text_1(encoder={"normalize_before": True}), "normalize_before"),
        (text_1(layernorm_embedding=False), "layernorm_embedding=false"),
        (text_1(no_scale_embedding=False), "no_scale_embedding=false"),
        (text_1(no_token_positional_embeddings=True), "no_token_positional_embeddings"),
        (text_2(layer_norm_first=True), "layer_norm_first"),
        (text_2(norm_affine=False), "norm_affine=false"),
        (text_2(norm_eps=1e-6), "norm_eps=1e-06"),
        (text_2({"prenet_depth": 1}), "prenet_depth"),
        (text_2({"layernorm_embedding": False}), "layernorm_embedding=false"),
        (text_2({"no_scale_embedding": False}), "no_scale_embedding=false"),
        (text_2({"no_token_positional_embeddings": True}), "no_token_positional_embeddings"),
        (text_2({"use_alibi_encoder": True}), "use_alibi_encoder"),
    ],
)
def test_what_their_text_class_cannot_compute(config: Any, named: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot compute [a-z.]*{named}$"):
        hf_config.text_config(config, 33)


def vision(**fields: Any) -> Data2VecVisionConfig:
    given: dict[str, Any] = {
        "image_size": 45, "patch_size": 15, "in_channels": 2, "embed_dim": 24, "depth": 3, "num_heads": 6,
        "mlp_ratio": 3, "attention_dropout": 0.11, "drop_path": 0.12, "layer_scale_init_value": 0.13,
        "norm_eps": 1e-7, "average_top_k_layers": 3, "num_mask_patches": 9, "max_mask_patches_per_block": 16,
        "layer_norm_target_layer": True, "layer_norm_targets": True,
    }  # fmt: skip
    return Data2VecVisionConfig(**(given | fields))


THEIR_VISION = {
    "model_type": "data2vec-vision", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6,
    "intermediate_size": 72, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.11, "layer_norm_eps": 1e-7, "image_size": 45, "patch_size": 15,
    "num_channels": 2, "use_mask_token": True, "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False, "use_shared_relative_position_bias": True,
    "layer_scale_init_value": 0.13, "drop_path_rate": 0.12, "use_mean_pooling": False,
}  # fmt: skip


def test_images_out_and_back() -> None:
    assert hf_config.vision_config(vision(), None) == THEIR_VISION
    assert hf_config.from_vision(THEIR_VISION) == vision()
    own = {"use_relative_position_bias": True, "use_shared_relative_position_bias": False}
    single = vision(shared_rel_pos_bias=False)
    assert hf_config.vision_config(single, None) == THEIR_VISION | own
    assert hf_config.from_vision(THEIR_VISION | own) == single
    head = ImageHeadConfig(num_classes=5, fc_norm_eps=1e-7)
    tuned = {"use_mask_token": False, "use_mean_pooling": True}
    assert hf_config.vision_config(vision(), head) == THEIR_VISION | tuned
    for wrong in (
        {"use_absolute_position_embeddings": True},
        {"use_relative_position_bias": True},
        {"use_shared_relative_position_bias": False},
    ):
        with pytest.raises(CheckpointError, match="relative positions, shared or one table a block"):
            hf_config.from_vision(THEIR_VISION | wrong)
    bare = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "use_relative_position_bias": True}  # fmt: skip
    back = hf_config.from_vision(bare)
    assert (back.image_size, back.patch_size, back.in_channels, back.mlp_ratio) == (224, 16, 3, 4)
    assert (back.attention_dropout, back.drop_path, back.layer_scale_init_value) == (0.0, 0.1, 0.1)
    assert (back.norm_eps, back.average_top_k_layers, back.num_mask_patches) == (1e-12, 6, 120)
    assert back.max_mask_patches_per_block == 196 and not back.shared_rel_pos_bias


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("drop_first_patch", True, "drop_first_patch"),
        ("prediction_mode", "CLS_TOKEN", "prediction_mode=CLS_TOKEN"),
        ("use_fc_norm", False, "use_fc_norm=false"),
        ("fc_norm_eps", 1e-6, "fc_norm_eps=1e-06 beside norm_eps=1e-07"),
    ],
)
def test_heads_that_their_image_class_cannot_compute(field: str, value: Any, named: str) -> None:
    head = ImageHeadConfig(num_classes=5, **{"fc_norm_eps": 1e-7, field: value})
    with pytest.raises(CheckpointError, match=f"cannot compute {named}"):
        hf_config.vision_config(vision(), head)


def test_joint_matrices_are_query_key_value_in_this_order() -> None:
    q, k, v = (torch.full((2, 2), float(i)) for i in range(3))
    joint = torch.cat([q, k, v])
    own = "model.encoder.blocks.10.attn."
    state = {f"{own}qkv.weight": joint, f"{own}q_bias": q[0], f"{own}v_bias": v[0], "head.bias": k[0]}
    made, used = hf_state.split_vision(state, "model.", "theirs.")
    place = "theirs.encoder.layer.10.attention.attention."
    wanted = {"query.weight": q, "key.weight": k, "value.weight": v, "query.bias": q[0], "value.bias": v[0]}
    assert made.keys() == {place + name for name in wanted}
    assert all(torch.equal(made[place + name], tensor) for name, tensor in wanted.items())
    assert used == [f"{own}qkv.weight", f"{own}q_bias", f"{own}v_bias"]
    back, used = hf_state.join_vision(made, "theirs.", "model.", 11)
    assert back.keys() == state.keys() - {"head.bias"} and sorted(used) == sorted(made)
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())
    assert hf_state.join_vision(made, "theirs.", "model.", 10) == ({}, [])
    table = torch.zeros((2 * 3 - 1) ** 2 + 3, 12)
    index = hf_state.with_relative_index({"a.relative_position_bias_table": table}, 3)
    assert hf_state.with_relative_index({"a.relative_position_bias_table": table}, 4).keys() == {
        "a.relative_position_bias_table"
    }
    assert torch.equal(index["a.relative_position_index"], relative_position_index(3))

    local = "model.modality_encoders.TEXT.local_encoder."
    text = {f"{local}embed_tokens.weight": q, f"{local}embed_positions.weight": k,
            f"{local}layernorm_embedding.bias": v, "model.blocks.10.attn.qkv.bias": torch.arange(6.0),
            "model.blocks.10.attn.qkv.weight": joint, "model.blocks.10.attn.proj.weight": q,
            "model.blocks.10.norm1.bias": k, "model.blocks.10.norm2.bias": v,
            "model.blocks.10.mlp.fc1.bias": q, "model.blocks.10.mlp.fc2.bias": k, "head.bias": v}  # fmt: skip
    made, left = hf_state.v2_text(text, "model.", "t.")
    layer = "t.encoder.layer.10."
    wanted = {
        "t.embeddings.word_embeddings.weight": q, "t.embeddings.position_embeddings.weight": k,
        "t.embeddings.LayerNorm.bias": v, f"{layer}attention.self.query.weight": q,
        f"{layer}attention.self.key.weight": k, f"{layer}attention.self.value.weight": v,
        f"{layer}attention.self.query.bias": torch.tensor([0.0, 1.0]),
        f"{layer}attention.self.key.bias": torch.tensor([2.0, 3.0]),
        f"{layer}attention.self.value.bias": torch.tensor([4.0, 5.0]),
        f"{layer}attention.output.dense.weight": q, f"{layer}attention.output.LayerNorm.bias": k,
        f"{layer}output.LayerNorm.bias": v, f"{layer}intermediate.dense.bias": q,
        f"{layer}output.dense.bias": k,
    }  # fmt: skip
    assert left == ["head.bias"] and made.keys() == wanted.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items())
