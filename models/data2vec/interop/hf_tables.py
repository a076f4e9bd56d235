"""Which tensor of ours is which of Hugging Face's ``Data2Vec*`` models (transformers 5), by name.

Each row is (ours, theirs) without ``.weight`` and ``.bias``; ``{}`` stands for the same index or letter on
both sides. The rows are read in both directions. Tensors that are split (the joint query-key-value matrix of
the image model and of v2 text) stand in :mod:`data2vec.interop.hf_state`.
"""

from __future__ import annotations

import re

Row = tuple[str, str]

AUDIO: tuple[Row, ...] = (
    ("mask_emb", "masked_spec_embed"),
    ("feature_extractor.conv_layers.{}.0", "feature_extractor.conv_layers.{}.conv"),
    ("feature_extractor.conv_layers.{}.2.1", "feature_extractor.conv_layers.{}.layer_norm"),
    ("layer_norm", "feature_projection.layer_norm"),
    ("post_extract_proj", "feature_projection.projection"),
    ("encoder.pos_conv.{}.0", "encoder.pos_conv_embed.layers.{}.conv"),
    ("encoder.layer_norm", "encoder.layer_norm"),
    ("encoder.layers.{}.self_attn.{}_proj", "encoder.layers.{}.attention.{}_proj"),
    ("encoder.layers.{}.self_attn_layer_norm", "encoder.layers.{}.layer_norm"),
    ("encoder.layers.{}.fc1", "encoder.layers.{}.feed_forward.intermediate_dense"),
    ("encoder.layers.{}.fc2", "encoder.layers.{}.feed_forward.output_dense"),
    ("encoder.layers.{}.final_layer_norm", "encoder.layers.{}.final_layer_norm"),
)
CTC_HEAD: tuple[Row, ...] = (("w2v_encoder.proj", "lm_head"),)

TEXT: tuple[Row, ...] = (
    ("embed_tokens", "embeddings.word_embeddings"),
    ("embed_positions", "embeddings.position_embeddings"),
    ("layernorm_embedding", "embeddings.LayerNorm"),
    ("layers.{}.self_attn.q_proj", "encoder.layer.{}.attention.self.query"),
    ("layers.{}.self_attn.k_proj", "encoder.layer.{}.attention.self.key"),
    ("layers.{}.self_attn.v_proj", "encoder.layer.{}.attention.self.value"),
    ("layers.{}.self_attn.out_proj", "encoder.layer.{}.attention.output.dense"),
    ("layers.{}.self_attn_layer_norm", "encoder.layer.{}.attention.output.LayerNorm"),
    ("layers.{}.fc1", "encoder.layer.{}.intermediate.dense"),
    ("layers.{}.fc2", "encoder.layer.{}.output.dense"),
    ("layers.{}.final_layer_norm", "encoder.layer.{}.output.LayerNorm"),
)
SENTENCE_HEAD: tuple[Row, ...] = (
    ("classification_heads.sentence_classification_head.dense", "classifier.dense"),
    ("classification_heads.sentence_classification_head.out_proj", "classifier.out_proj"),
)

VISION: tuple[Row, ...] = (
    ("cls_emb", "embeddings.cls_token"),
    ("mask_emb", "embeddings.mask_token"),
    ("patch_embed.conv", "embeddings.patch_embeddings.projection"),
    ("encoder.rel_pos_bias.relative_position_bias_table",
     "encoder.relative_position_bias.relative_position_bias_table"),
    ("encoder.blocks.{}.norm1", "encoder.layer.{}.layernorm_before"),
    ("encoder.blocks.{}.norm2", "encoder.layer.{}.layernorm_after"),
    ("encoder.blocks.{}.attn.relative_position_bias_table",
     "encoder.layer.{}.attention.attention.relative_position_bias.relative_position_bias_table"),
    ("encoder.blocks.{}.attn.proj", "encoder.layer.{}.attention.output.dense"),
    ("encoder.blocks.{}.gamma_1", "encoder.layer.{}.lambda_1"),
    ("encoder.blocks.{}.gamma_2", "encoder.layer.{}.lambda_2"),
    ("encoder.blocks.{}.mlp.0", "encoder.layer.{}.intermediate.dense"),
    ("encoder.blocks.{}.mlp.2", "encoder.layer.{}.output.dense"),
    ("encoder.norm", "layernorm"),
)  # fmt: skip
VISION_HEAD: tuple[Row, ...] = (("fc_norm", "data2vec_vision.pooler.layernorm"), ("head", "classifier"))


def translate(name: str, rows: tuple[Row, ...], *, to_theirs: bool) -> str | None:
    """The other side's name of a tensor; ``None`` if no row fits."""
    base, ending = name, ""
    for suffix in (".weight", ".bias"):
        if name.endswith(suffix):
            base, ending = name.removesuffix(suffix), suffix
    for ours, theirs in rows:
        source, target = (ours, theirs) if to_theirs else (theirs, ours)
        match = _pattern(source).fullmatch(base)
        if match is not None:
            return target.format(*match.groups()) + ending
    return None


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(r"([a-z0-9]+)".join(re.escape(part) for part in text.split("{}")))
