"""Tensors of v1 models (and of v2 text) under Hugging Face's names, and back; the same numbers either way.

D width.
"""

from __future__ import annotations

import re

import torch

from ..v1.image import relative_position_index
from .hf_tables import Row, translate
from .imported import State

_VISION_QKV = re.compile(r"encoder\.blocks\.(\d+)\.attn\.(qkv\.weight|q_bias|v_bias)")
_V2_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_V2_PARTS = {
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_LARGEST_INDEX = 8  # times the numbers of the model; the published ones have a hundredth of them
_QKV = ("query", "key", "value")


def to_theirs(state: State, rows: tuple[Row, ...], prefix: str, own_prefix: str) -> tuple[State, list[str]]:
    """Tensors below ``own_prefix`` under their names, and the names that have no place there."""
    renamed, left = State(), list[str]()
    for name, tensor in state.items():
        if not name.startswith(own_prefix):
            left.append(name)
            continue
        target = translate(name.removeprefix(own_prefix), rows, to_theirs=True)
        if target is None:
            left.append(name)
        else:
            renamed[prefix + target] = tensor
    return renamed, left


def to_ours(state: State, rows: tuple[Row, ...], prefix: str, own_prefix: str) -> tuple[State, list[str]]:
    """The way back of :func:`to_theirs`."""
    renamed, left = State(), list[str]()
    for name, tensor in state.items():
        target = None
        if name.startswith(prefix):
            target = translate(name.removeprefix(prefix), rows, to_theirs=False)
        if target is None:
            left.append(name)
        else:
            renamed[own_prefix + target] = tensor
    return renamed, left


def split_vision(state: State, own_prefix: str, prefix: str) -> tuple[State, list[str]]:
    """The image model's joint matrices and its two biases as query, key and value; the key has no bias."""
    made, used = State(), list[str]()
    for name, tensor in state.items():
        match = _VISION_QKV.fullmatch(name.removeprefix(own_prefix)) if name.startswith(own_prefix) else None
        if match is None:
            continue
        used.append(name)
        layer = f"{prefix}encoder.layer.{match[1]}.attention.attention."
        if match[2] == "qkv.weight":
            for part, rows in zip(_QKV, tensor.chunk(3), strict=True):
                made[f"{layer}{part}.weight"] = rows.clone()
        else:
            made[f"{layer}{'query' if match[2] == 'q_bias' else 'value'}.bias"] = tensor
    return made, used


def join_vision(state: State, prefix: str, own_prefix: str, depth: int) -> tuple[State, list[str]]:
    """The way back of :func:`split_vision`; what is missing shows when the model is checked."""
    made, used = State(), list[str]()
    for index in range(depth):
        layer = f"{prefix}encoder.layer.{index}.attention.attention."
        weights = [f"{layer}{part}.weight" for part in _QKV]
        own = f"{own_prefix}encoder.blocks.{index}.attn."
        if all(name in state for name in weights):
            made[f"{own}qkv.weight"] = torch.cat([state[name] for name in weights])
            used += weights
        for part, bias in (("query", "q_bias"), ("value", "v_bias")):
            if f"{layer}{part}.bias" in state:
                made[f"{own}{bias}"] = state[f"{layer}{part}.bias"]
                used.append(f"{layer}{part}.bias")
    return made, used


def with_relative_index(state: State, grid: int) -> State:
    """The index of relative positions, which Hugging Face computes and does not store.

    Where the grid is not the table's, or its index would dwarf the model, there is none, and it is missed.
    """
    tables = [name for name, tensor in state.items() if name.endswith("relative_position_bias_table")
              and tensor.shape[:1] == ((2 * grid - 1) ** 2 + 3,)]  # fmt: skip
    numbers = sum(tensor.numel() for tensor in state.values())
    if len(tables) * (grid**2 + 1) ** 2 > _LARGEST_INDEX * numbers:
        return state
    added = {name.replace("bias_table", "index"): relative_position_index(grid) for name in tables}
    return {**state, **added}


def v2_text(state: State, own_prefix: str, prefix: str) -> tuple[State, list[str]]:
    """A v2 text model under the names of their v1 class: same mathematics, joint matrices split."""
    made, left = State(), list[str]()
    local = f"{own_prefix}modality_encoders.TEXT.local_encoder."
    embeddings = {"embed_tokens": "word_embeddings", "embed_positions": "position_embeddings",
                  "layernorm_embedding": "LayerNorm"}  # fmt: skip
    for name, tensor in state.items():
        base, _, ending = name.rpartition(".")
        if name.startswith(local) and (part := embeddings.get(base.removeprefix(local))):
            made[f"{prefix}embeddings.{part}.{ending}"] = tensor
            continue
        block = _V2_BLOCK.fullmatch(base.removeprefix(own_prefix)) if name.startswith(own_prefix) else None
        if block is None:
            left.append(name)
            continue
        layer = f"{prefix}encoder.layer.{block[1]}."
        if block[2] == "attn.qkv":
            for part, rows in zip(_QKV, tensor.chunk(3), strict=True):
                made[f"{layer}attention.self.{part}.{ending}"] = rows.clone()
        else:
            made[f"{layer}{_V2_PARTS[block[2]]}.{ending}"] = tensor
    return made, left
