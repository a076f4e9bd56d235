"""Configurations of Hugging Face's ``Data2Vec*`` models and ours, in both directions.

The defaults of their configuration classes are not the reference's (epsilons of 1e-12), so every field that
matters is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import Data2VecMultiConfig, ImageHeadConfig
from ..conv_spec import parse_conv_layers
from ..errors import CheckpointError
from ..v1.config import Data2VecAudioConfig
from ..v1.image_config import Data2VecVisionConfig
from ..v1.text_config import Data2VecTextConfig

AUDIO, TEXT, VISION = "data2vec-audio", "data2vec-text", "data2vec-vision"
PAD, BOS, EOS = 1, 0, 2


def audio_config(config: Data2VecAudioConfig, num_symbols: int | None) -> dict[str, Any]:
    """``Data2VecAudioConfig`` of transformers.

    Raises:
        CheckpointError: a pre-LN model, which their class cannot compute.
    """
    if config.layer_norm_first:
        raise CheckpointError("Hugging Face's Data2VecAudioModel is post-LN; this model has layer_norm_first")
    layers = parse_conv_layers(config.conv_feature_layers)
    return {
        "model_type": AUDIO,
        "hidden_size": config.encoder_embed_dim,
        "num_hidden_layers": config.encoder_layers,
        "num_attention_heads": config.encoder_attention_heads,
        "intermediate_size": config.encoder_ffn_embed_dim,
        "hidden_act": config.activation_fn,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feat_proj_dropout": config.dropout_input,
        "layerdrop": config.encoder_layerdrop,
        "layer_norm_eps": 1e-5,
        "feat_extract_activation": "gelu",
        "conv_dim": [channels for channels, _, _ in layers],
        "conv_kernel": [width for _, width, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        "conv_bias": config.conv_bias,
        "num_feat_extract_layers": len(layers),
        "num_conv_pos_embeddings": config.pos_conv_depth,
        "conv_pos_kernel_size": max(3, config.conv_pos // config.pos_conv_depth),
        "num_conv_pos_embedding_groups": config.conv_pos_groups,
        "apply_spec_augment": True,
        # Without a mask probability their model has no mask vector, and ours would be lost.
        "mask_time_prob": config.mask_prob or 0.05,
        "mask_time_length": config.mask_length,
        "mask_feature_prob": config.mask_channel_prob,
        "mask_feature_length": config.mask_channel_length,
        "vocab_size": num_symbols or 32,
        "pad_token_id": 0,  # the blank, which fairseq calls <s>
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": True,
    }


def text_config(config: Data2VecTextConfig | Data2VecMultiConfig, vocab_size: int) -> dict[str, Any]:
    """``Data2VecTextConfig`` of transformers, of either generation.

    Raises:
        CheckpointError: an option that their class cannot compute.
    """
    if isinstance(config, Data2VecTextConfig):
        options, sizes = config.transformer, config.transformer.encoder
        wrong = [name for name, value in (
            ("transformer.encoder.normalize_before", sizes.normalize_before),
            ("transformer.layernorm_embedding=false", not options.layernorm_embedding),
            ("transformer.no_scale_embedding=false", not options.no_scale_embedding),
            ("transformer.no_token_positional_embeddings", options.no_token_positional_embeddings),
        ) if value]  # fmt: skip
        values = (sizes.embed_dim, sizes.layers, sizes.attention_heads, sizes.ffn_embed_dim,
                  options.activation_fn, options.dropout, options.attention_dropout,
                  options.max_source_positions, 1e-5)  # fmt: skip
    else:
        text = config.modalities.text
        assert text is not None, "a text model has its section"
        wrong = [name for name, value in (
            ("layer_norm_first", config.layer_norm_first),
            ("norm_affine=false", not config.norm_affine),
            ("modalities.text.prenet_depth", text.prenet_depth),
            ("modalities.text.layernorm_embedding=false", not text.layernorm_embedding),
            ("modalities.text.no_scale_embedding=false", not text.no_scale_embedding),
            ("modalities.text.no_token_positional_embeddings", text.no_token_positional_embeddings),
            ("modalities.text.use_alibi_encoder", text.use_alibi_encoder),
            # Their embeddings and blocks share one epsilon; ours have 1e-5 in the embedding.
            (f"norm_eps={config.norm_eps}", config.norm_eps != 1e-5),
        ) if value]  # fmt: skip
        values = (config.embed_dim, config.depth, config.num_heads, int(config.embed_dim * config.mlp_ratio),
                  "gelu", config.encoder_dropout, config.attention_dropout, text.max_source_positions,
                  config.norm_eps)  # fmt: skip
    if wrong:
        raise CheckpointError(f"Hugging Face's Data2VecTextModel cannot compute {', '.join(wrong)}")
    dim, layers, heads, hidden, activation, dropout, attention_dropout, positions, eps = values
    return {
        "model_type": TEXT,
        "vocab_size": vocab_size,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "hidden_act": activation,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": attention_dropout,
        "max_position_embeddings": positions + PAD + 1,
        "type_vocab_size": 1,
        "layer_norm_eps": eps,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def vision_config(config: Data2VecVisionConfig, head: ImageHeadConfig | None) -> dict[str, Any]:
    """``Data2VecVisionConfig`` of transformers.

    Raises:
        CheckpointError: a head that their class cannot compute.
    """
    if head is not None:
        wrong = [name for name, value in (
            ("drop_first_patch (fairseq's v1 heads pool without the first patch)", head.drop_first_patch),
            (f"prediction_mode={head.prediction_mode}", head.prediction_mode != "MEAN_POOLING"),
            ("use_fc_norm=false", not head.use_fc_norm),
            (f"fc_norm_eps={head.fc_norm_eps} beside norm_eps={config.norm_eps}",
             head.fc_norm_eps != config.norm_eps),
        ) if value]  # fmt: skip
        if wrong:
            raise CheckpointError(f"Hugging Face's image classifier cannot compute {', '.join(wrong)}")
    shared = config.shared_rel_pos_bias
    return {
        "model_type": VISION,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.embed_dim * config.mlp_ratio,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "use_mask_token": head is None,
        "use_absolute_position_embeddings": False,
        "use_relative_position_bias": not shared,
        "use_shared_relative_position_bias": shared,
        "layer_scale_init_value": config.layer_scale_init_value,
        "drop_path_rate": config.drop_path,
        "use_mean_pooling": head is not None,
    }


def from_audio(theirs: Mapping[str, Any]) -> Data2VecAudioConfig:
    """Our configuration of their audio model."""
    depth = int(theirs["num_conv_pos_embeddings"])
    convolutions = zip(theirs["conv_dim"], theirs["conv_kernel"], theirs["conv_stride"], strict=True)
    return Data2VecAudioConfig.from_dict(
        {
            "extractor_mode": "layer_norm",
            "encoder_layers": theirs["num_hidden_layers"],
            "encoder_embed_dim": theirs["hidden_size"],
            "encoder_ffn_embed_dim": theirs["intermediate_size"],
            "encoder_attention_heads": theirs["num_attention_heads"],
            "activation_fn": theirs.get("hidden_act", "gelu"),
            "dropout": theirs.get("hidden_dropout", 0.1),
            "attention_dropout": theirs.get("attention_dropout", 0.1),
            "activation_dropout": theirs.get("activation_dropout", 0.1),
            "encoder_layerdrop": theirs.get("layerdrop", 0.1),
            "dropout_input": theirs.get("feat_proj_dropout", 0.0),
            "conv_feature_layers": str([tuple(map(int, layer)) for layer in convolutions]),
            "conv_bias": bool(theirs.get("conv_bias", False)),
            "conv_pos": int(theirs.get("conv_pos_kernel_size", 19)) * depth,
            "conv_pos_groups": theirs.get("num_conv_pos_embedding_groups", 16),
            "pos_conv_depth": depth,
            "mask_prob": theirs.get("mask_time_prob", 0.05),
            "mask_length": theirs.get("mask_time_length", 10),
            "mask_channel_prob": theirs.get("mask_feature_prob", 0.0),
            "mask_channel_length": theirs.get("mask_feature_length", 10),
            "average_top_k_layers": min(8, int(theirs["num_hidden_layers"])),
            "instance_norm_target_layer": True,
        }
    )


def from_text(theirs: Mapping[str, Any]) -> Data2VecTextConfig:
    """Our configuration of their text model."""
    if abs(float(theirs.get("layer_norm_eps", 1e-12)) - 1e-5) > 1e-9:
        raise CheckpointError(
            f"layer_norm_eps = {theirs.get('layer_norm_eps', 1e-12)}: data2vec text has 1e-5; a model "
            "trained with another one cannot be computed here"
        )
    layers = int(theirs["num_hidden_layers"])
    return Data2VecTextConfig.from_dict(
        {
            "head_layers": 2,
            "average_top_k_layers": min(10, layers),
            "layer_norm_target_layer": True,
            "loss_beta": 4.0,
            "loss_scale": 1.0,
            "transformer": {
                "activation_fn": theirs.get("hidden_act", "gelu"),
                "dropout": theirs.get("hidden_dropout_prob", 0.1),
                "attention_dropout": theirs.get("attention_probs_dropout_prob", 0.1),
                "max_source_positions": int(theirs["max_position_embeddings"]) - PAD - 1,
                "layernorm_embedding": True,
                "no_scale_embedding": True,
                "encoder": {
                    "embed_dim": theirs["hidden_size"],
                    "ffn_embed_dim": theirs["intermediate_size"],
                    "layers": layers,
                    "attention_heads": theirs["num_attention_heads"],
                    "learned_pos": True,
                },
            },
        }
    )


def from_vision(theirs: Mapping[str, Any]) -> Data2VecVisionConfig:
    """Our configuration of their image model."""
    shared = bool(theirs.get("use_shared_relative_position_bias"))
    if theirs.get("use_absolute_position_embeddings") or shared == bool(
        theirs.get("use_relative_position_bias")
    ):
        raise CheckpointError(
            "a data2vec image model has relative positions, shared or one table a block, and no absolute ones"
        )
    dim, layers = int(theirs["hidden_size"]), int(theirs["num_hidden_layers"])
    grid = int(theirs.get("image_size", 224)) // int(theirs.get("patch_size", 16))
    return Data2VecVisionConfig.from_dict(
        {
            "image_size": theirs.get("image_size", 224),
            "patch_size": theirs.get("patch_size", 16),
            "in_channels": theirs.get("num_channels", 3),
            "embed_dim": dim,
            "depth": layers,
            "num_heads": theirs["num_attention_heads"],
            "mlp_ratio": int(theirs["intermediate_size"]) // dim,
            "attention_dropout": theirs.get("attention_probs_dropout_prob", 0.0),
            "drop_path": theirs.get("drop_path_rate", 0.1),
            "layer_scale_init_value": theirs.get("layer_scale_init_value", 0.1),
            "shared_rel_pos_bias": shared,
            "norm_eps": theirs.get("layer_norm_eps", 1e-12),
            "average_top_k_layers": min(6, layers),
            "num_mask_patches": min(120, grid * grid),
            "max_mask_patches_per_block": max(16, grid * grid),
            "layer_norm_target_layer": True,
            "layer_norm_targets": True,
        }
    )
