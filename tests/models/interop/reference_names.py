"""Names and shapes of the reference's files, written down from its own classes: nothing here asks our models.

A line is a name and its sides: ``.*`` is a weight and a bias as long as its first side, ``[0:depth]`` counts.
Sides are made of sizes: D width, F hidden width, H heads, V vocabulary, P positions, T patches, S side of a
patch, C channels of the convolutions over a waveform, N groups and Q kernel of those over frames, W width, G
groups, K kernel and J layers of a decoder, Y classes or symbols.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from data2vec.interop.fairseq_file import FairseqCheckpoint

Shapes = dict[str, tuple[int, ...]]


def shapes(lines: str, prefix: str = "", **sizes: int) -> Shapes:
    """The lines with counts and sides worked out; ``prefix`` stands before every name."""
    found: Shapes = {}
    for line in filter(None, lines.split("\n")):
        name, *sides = line.split()
        shape = tuple(int(eval(side, {}, sizes)) for side in sides)  # noqa: S307 - written in tests
        count = re.search(r"\[(\d):(\w+)\]", name)
        last = "1" if count is None else count[2]
        for number in range(
            0 if count is None else int(count[1]), sizes[last] if last in sizes else int(last)
        ):
            one = prefix + (name if count is None else name.replace(count[0], str(number)))
            both = {f"{one[:-1]}weight": shape, f"{one[:-1]}bias": shape[:1]}
            found |= both if one.endswith(".*") else {one: shape}
    return found


def below(place: str, lines: str) -> str:
    """The lines with ``place`` before each name."""
    return "".join(f"\n{place}{line}" for line in filter(None, lines.split("\n")))


def filled(wanted: Shapes) -> dict[str, torch.Tensor]:
    """Random numbers that fp16 holds."""
    draw = torch.Generator().manual_seed(7)
    return {name: torch.randn(shape, generator=draw).half().float() for name, shape in wanted.items()}


def unfilled(wanted: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of any size that take no memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in wanted.items()}


# --- data2vec 2.0: each modality without its decoder, the decoder, the teacher where it is no part of these

_BLOCK = """
norm1.* D
norm2.* D
attn.qkv.* 3*D D
attn.proj.* D D
mlp.fc1.* 4*D D
mlp.fc2.* D 4*D
"""
_BLOCKS = below("blocks.[0:depth].", _BLOCK)

_TEXT = "modality_encoders.TEXT."
TEXT_2 = _BLOCKS + below(f"{_TEXT}local_encoder.", """
embed_tokens.weight V D
embed_positions.weight P+2 D
layernorm_embedding.* D
""")  # fmt: skip
TEXT_2_DECODER = below(f"{_TEXT}decoder.", """
blocks.0.0.* W D//G K
blocks.[1:J].0.* W W//G K
proj.0.* 2*W W
proj.2.* D 2*W
""")  # fmt: skip
TEXT_2_TEACHER = below("[0:depth].", _BLOCK)
SENTENCE_HEAD = below("classification_heads.sentence_classification_head.", """
dense.* D D
out_proj.* Y D
""")  # fmt: skip

_IMAGE = "modality_encoders.IMAGE."
IMAGE_2 = _BLOCKS + below(f"{_IMAGE}context_encoder.blocks.[0:prenet].", _BLOCK) + below(_IMAGE, """
context_encoder.norm.* D
extra_tokens 1 1 D
local_encoder.proj.* D 3 S S
fixed_positional_encoder.positions 1 T D
""")  # fmt: skip
IMAGE_2_DECODER = below(f"{_IMAGE}decoder.", """
blocks.0.0.* W D//G K K
blocks.[1:J].0.* W W//G K K
proj.* D W
""")  # fmt: skip
IMAGE_HEAD = """
fc_norm.* D
head.* Y D
"""

_WAVEFORM = """
conv_layers.0.0.weight C 1 10
conv_layers.[1:5].0.weight C C 3
conv_layers.[5:7].0.weight C C 2
conv_layers.[0:7].2.1.* C
"""
_AUDIO = "modality_encoders.AUDIO."
AUDIO_2_TEACHER = _BLOCKS + below(f"{_AUDIO}context_encoder.blocks.[0:prenet].", _BLOCK) + below(_AUDIO, """
context_encoder.norm.* D
alibi_scale 1 1 H 1 1
relative_positional_encoder.[1:6].0.* D D//N Q
""")  # fmt: skip
AUDIO_2 = AUDIO_2_TEACHER + below(f"{_AUDIO}local_encoder.", _WAVEFORM) + below(_AUDIO, """
project_features.1.* C
project_features.2.* D C
""")  # fmt: skip
AUDIO_2_DECODER = below(f"{_AUDIO}decoder.", """
blocks.0.0.* W D//G K
blocks.[1:J].0.* W W//G K
proj.* D W
""")  # fmt: skip
CTC_TRUNK, CTC_HEAD = "w2v_encoder.w2v_model.", "w2v_encoder.proj.* Y D"

# --- data2vec: each modality without its regression head, the head, the teacher ------------------------

_LAYER = """
self_attn.k_proj.* D D
self_attn.v_proj.* D D
self_attn.q_proj.* D D
self_attn.out_proj.* D D
self_attn_layer_norm.* D
fc1.* F D
fc2.* D F
final_layer_norm.* D
"""
AUDIO_1_TEACHER = (
    below("layers.[0:depth].", _LAYER)
    + """
pos_conv.[0:5].0.* D D//N Q
layer_norm.* D
"""
)
AUDIO_1 = (
    below("encoder.", AUDIO_1_TEACHER)
    + below("feature_extractor.", _WAVEFORM)
    + """
mask_emb D
layer_norm.* C
post_extract_proj.* D C
"""
)
AUDIO_1_HEAD = "\nfinal_proj.* D D"

TEXT_1_TEACHER = (
    below("layers.[0:depth].", _LAYER)
    + """
version 1
embed_tokens.weight V D
embed_positions.weight P+2 D
layernorm_embedding.* D
"""
)
TEXT_1 = below("encoder.sentence_encoder.", TEXT_1_TEACHER)
TEXT_1_HEAD = below("encoder.regression_head.", """
0.* 2*D D
2.* D 2*D
""")  # fmt: skip

_POSITIONS = """
relative_position_bias_table (2*T**.5-1)**2+3 H
relative_position_index T+1 T+1
"""
_BLOCK_1 = """
norm1.* D
norm2.* D
attn.qkv.weight 3*D D
attn.q_bias D
attn.v_bias D
attn.proj.* D D
gamma_1 D
gamma_2 D
"""
_ENCODER_1 = below("blocks.[0:depth].", _BLOCK_1 + """
mlp.0.* 4*D D
mlp.2.* D 4*D
""")  # fmt: skip
_FRONT_1 = """
cls_emb 1 1 D
patch_embed.conv.* D 3 S S
"""
IMAGE_1_TEACHER = _ENCODER_1 + below("rel_pos_bias.", _POSITIONS) + "\nnorm.* D"
IMAGE_1_TRUNK = _FRONT_1 + below("encoder.", _ENCODER_1 + below("rel_pos_bias.", _POSITIONS))
IMAGE_1 = (
    _FRONT_1
    + below("encoder.", IMAGE_1_TEACHER)
    + """
mask_emb 1 1 D
final_proj.* D D
"""
)
_BEIT = below("blocks.[0:depth].", _BLOCK_1 + """
mlp.fc1.* 4*D D
mlp.fc2.* D 4*D
""") + """
cls_token 1 1 D
patch_embed.proj.* D 3 S S
"""  # fmt: skip
BEIT = (
    _BEIT
    + below("rel_pos_bias.", _POSITIONS)
    + """
norm.* D
mask_token 1 1 D
lm_head.* D D
"""
)
BEIT_FINETUNED = _BEIT + below("blocks.[0:depth].attn.", _POSITIONS) + IMAGE_HEAD

# --- the published sizes, by modality, generation and name ---------------------------------------------

_TEXT_SIZES = {"V": 50265, "P": 512, "W": 768, "G": 1, "K": 9, "J": 5}
_IMAGE_SIZES = {"S": 16, "T": 196, "W": 1024, "G": 16, "K": 5, "J": 3, "prenet": 0}
_AUDIO_SIZES = {"C": 512, "N": 16, "Q": 19, "G": 16, "K": 7, "J": 4, "prenet": 0}
_BASE, _LARGE = {"D": 768, "F": 3072, "H": 12, "depth": 12}, {"D": 1024, "F": 4096, "H": 16, "depth": 24}
SIZES: dict[tuple[str, int, str], dict[str, int]] = {
    ("IMAGE", 2, "base"): _IMAGE_SIZES | _BASE | {"depth": 10, "prenet": 2, "W": 768, "K": 3, "J": 6},
    ("IMAGE", 2, "large"): _IMAGE_SIZES | _LARGE,
    ("IMAGE", 2, "huge"): _IMAGE_SIZES | {"D": 1280, "depth": 32, "S": 14, "T": 256},
    ("AUDIO", 2, "base"): _AUDIO_SIZES | _BASE | {"W": 384},
    ("AUDIO", 2, "large"): _AUDIO_SIZES | _LARGE | {"depth": 16, "prenet": 8, "W": 768},
    ("TEXT", 2, "base"): _TEXT_SIZES | _BASE,
    ("TEXT", 2, "large"): _TEXT_SIZES | _LARGE,
    ("AUDIO", 1, "base"): _AUDIO_SIZES | _BASE,
    ("AUDIO", 1, "large"): _AUDIO_SIZES | _LARGE,
    ("TEXT", 1, "base"): _TEXT_SIZES | _BASE,
    ("IMAGE", 1, "base"): _IMAGE_SIZES | _BASE,
    ("IMAGE", 1, "large"): _IMAGE_SIZES | _LARGE,
}

# --- small whole files ---------------------------------------------------------------------------------

_DECODER = {"decoder_dim": 4, "decoder_groups": 2, "decoder_kernel": 3, "decoder_layers": 2}
_CONVOLUTIONS = "[(6, 10, 5)] + [(6, 3, 2)] * 4 + [(6, 2, 2)] * 2"
_ALIBI = {"use_alibi_encoder": True, "learned_alibi_scale": True, "learned_alibi_scale_per_head": True}
SMALL = {"D": 8, "F": 12, "H": 2, "V": 15, "P": 9, "S": 4, "T": 4, "C": 6, "N": 2, "Q": 3, "depth": 1,
         "prenet": 1, "W": 4, "G": 2, "K": 3, "J": 2}  # fmt: skip


def _multi(modality: str, **front: Any) -> dict[str, Any]:
    fronts = {modality.lower(): {"decoder": _DECODER, **front}}
    return {"embed_dim": 8, "depth": 1, "num_heads": 2, "average_top_k_layers": 1, "modalities": fronts,
            "supported_modality": modality, "ema_encoder_only": modality == "TEXT"}  # fmt: skip


_TEXT_2 = _multi(
    "TEXT", prenet_depth=0, mask_length=1, max_source_positions=9,
    decoder={**_DECODER, "projection_layers": 2},
)  # fmt: skip
_IMAGE_2 = _multi("IMAGE", prenet_depth=1, input_size=8, patch_size=4, embed_dim=8, num_extra_tokens=1)
_AUDIO_2 = _multi(
    "AUDIO",
    prenet_depth=1,
    feature_encoder_spec=_CONVOLUTIONS,
    conv_pos_width=15,
    conv_pos_groups=2,
    **_ALIBI,
)
_TEXT_1 = {
    "average_top_k_layers": 1, "head_layers": 2, "transformer": {
        "activation_fn": "gelu", "max_source_positions": 9, "layernorm_embedding": True, "encoder": {
            "embed_dim": 8, "ffn_embed_dim": 12, "layers": 1, "attention_heads": 2, "learned_pos": True}},
}  # fmt: skip
_AUDIO_1 = {
    "extractor_mode": "layer_norm", "encoder_layers": 1, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2, "pos_conv_depth": 5, "conv_pos": 15, "conv_pos_groups": 2,
    "average_top_k_layers": 1, "conv_feature_layers": _CONVOLUTIONS,
}  # fmt: skip
_IMAGE_1 = {
    "image_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 8, "num_heads": 2, "num_mask_patches": 2,
    "min_mask_patches_per_block": 1, "average_top_k_layers": 1,
}  # fmt: skip
# Family, a complete configuration and its tensors.
WHOLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "text 2": ("data2vec_multi", _TEXT_2, TEXT_2 + TEXT_2_DECODER),
    "image 2": ("data2vec_multi", _IMAGE_2, IMAGE_2 + IMAGE_2_DECODER),
    "audio 2": ("data2vec_multi", _AUDIO_2, AUDIO_2 + AUDIO_2_DECODER),
    "text 1": ("data2vec_text", _TEXT_1, TEXT_1 + TEXT_1_HEAD),
    "audio 1": ("data2vec_audio", _AUDIO_1, AUDIO_1 + AUDIO_1_HEAD),
    "image 1": ("data2vec_vision", _IMAGE_1, IMAGE_1),
}
TEACHERS = {  # ``image 2``: without the patches, which are the student's
    "text 2": TEXT_2_TEACHER,
    "image 2": re.sub(r"\n\S*local_encoder.*", "", IMAGE_2),
    "audio 2": AUDIO_2_TEACHER,
    "text 1": TEXT_1_TEACHER,
    "audio 1": AUDIO_1_TEACHER,
    "image 1": IMAGE_1_TEACHER,
}


def checkpoint_of(values: dict[str, Any], tensors: dict[str, torch.Tensor], **more: Any) -> FairseqCheckpoint:
    """What reading a file would give, whose configuration has ``values`` as its model."""
    rest = {"teacher": None, "task_state": {}, "num_updates": None, "symbols": None}
    rest |= {"path": Path("file.pt"), "cfg": {"model": values}}
    return FairseqCheckpoint(model=tensors, **(rest | more))  # pyright: ignore
