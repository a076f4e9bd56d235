"""The reference's v1 text models: pretrained (``data2vec_text``), fine-tuned for sentences (``roberta``)."""

from __future__ import annotations

import re
from typing import Any

from ..data.dictionary import Dictionary
from ..errors import CheckpointError
from ..text import PAD
from ..v1.text_config import Data2VecTextConfig
from ..weight_shapes import pretraining_shapes, weight_shapes
from .fairseq_file import PRETRAINING_ONLY, FairseqCheckpoint
from .imported import ImportedModel, Sorting, State, count_blocks
from .v2_config import model_section, read_config
from .v2_text import sentence_head_config, text_model

PRETRAINED = "data2vec_text"
FINETUNED = "roberta"
ENCODER = "encoder.sentence_encoder."
HEAD = "encoder.regression_head."
EMBEDDING = f"{ENCODER}embed_tokens.weight"
_LAYERS = f"{ENCODER}layers."

# RoBERTa's flat names of what ``data2vec_text`` nests below ``transformer``.
_FLAT = {"dropout": "dropout", "attention_dropout": "attention_dropout", "activation_fn": "activation_fn",
         "activation_dropout": "activation_dropout", "max_source_positions": "max_positions"}  # fmt: skip
_FLAT_SIZES = {"embed_dim": "encoder_embed_dim", "ffn_embed_dim": "encoder_ffn_embed_dim",
               "layers": "encoder_layers", "attention_heads": "encoder_attention_heads",
               "layerdrop": "encoder_layerdrop"}  # fmt: skip
_HEAD_WIDTH = 64  # channels of an attention head in every RoBERTa size


def import_v1_text(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None = None) -> ImportedModel:
    """A v1 text model, pretrained or fine-tuned for sentences.

    Args:
        checkpoint: the file's content.
        dictionary: its dictionary; without it the vocabulary cannot be checked, and the report says so.

    Raises:
        CheckpointError: tensors missing, unknown or of another shape than the configuration inside the file
            says; a vocabulary that does not fit the dictionary.
    """
    return (_finetuned if checkpoint.family == FINETUNED else _pretrained)(checkpoint, dictionary)


def _pretrained(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None) -> ImportedModel:
    sorting = checkpoint.sorting()
    model = renamed(checkpoint.model, of_pretraining=True)
    vocab_size = _vocab_size(checkpoint, model)
    config = _config(checkpoint, model, sorting)
    sorting.compare_depth(model, _LAYERS, config.depth, "layers")
    sorting.drop(r"classification_heads\.", "a head that the pretraining configuration does not name")
    student, averaged = pretraining_shapes(config, vocab_size=vocab_size)
    state = sorting.take(model, student)
    found = checkpoint.teacher and renamed(checkpoint.teacher, of_pretraining=True)
    sorting.take_teacher(found, averaged)
    return text_model(checkpoint, sorting, dictionary, config, state, vocab_size)


def _finetuned(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None) -> ImportedModel:
    sorting = checkpoint.sorting(finetuned=True)
    model = renamed(checkpoint.model, of_pretraining=False)
    vocab_size = _vocab_size(checkpoint, model)
    config = _config(checkpoint, model, sorting)
    sorting.compare_depth(model, _LAYERS, config.depth, "layers")
    head_config = sentence_head_config(checkpoint)
    sorting.drop(r"encoder\.lm_head\.", "not used by the sentence head")
    sorting.drop(r"encoder\.(regression_head|_ema)", PRETRAINING_ONLY)
    state = sorting.take(model, weight_shapes(config, head_config, vocab_size=vocab_size))
    return text_model(checkpoint, sorting, dictionary, config, state, vocab_size, head_config)


def renamed(tensors: State, *, of_pretraining: bool) -> State:
    """Tensors of older files under today's names."""

    def today(name: str) -> str:
        name = re.sub(r"^decoder\.", "encoder.", name)
        name = name.replace(".emb_layer_norm.", ".layernorm_embedding.")
        name = re.sub(r"^emb_layer_norm\.", "layernorm_embedding.", name)
        name = re.sub(r"(layers\.\d+\.)layer_norms\.0\.", r"\1self_attn_layer_norm.", name)
        name = re.sub(r"(layers\.\d+\.)layer_norms\.1\.", r"\1final_layer_norm.", name)
        return name.replace("encoder.lm_head.", HEAD) if of_pretraining else name

    return {today(name): tensor for name, tensor in tensors.items()}


def _config(checkpoint: FairseqCheckpoint, model: State, sorting: Sorting) -> Data2VecTextConfig:
    values = model_section(checkpoint, "model")
    if "transformer" not in values:
        values = _from_roberta(values, model, sorting)
    return read_config(Data2VecTextConfig, checkpoint, sorting, "model", values=values)


def _from_roberta(flat: dict[str, Any], model: State, sorting: Sorting) -> dict[str, Any]:
    """RoBERTa's flat fields as ours; what older files lack follows from the shapes."""
    embedding, positions = model[EMBEDDING], model.get(f"{ENCODER}embed_positions.weight")
    hidden = model.get(f"{ENCODER}layers.0.fc1.weight")
    dim = embedding.shape[1]
    layers = count_blocks(model, _LAYERS)
    sizes: dict[str, Any] = {"embed_dim": dim, "layers": layers, "learned_pos": True,
                             "attention_heads": max(dim // _HEAD_WIDTH, 1)}  # fmt: skip
    if hidden is not None and hidden.ndim == 2:
        sizes["ffn_embed_dim"] = hidden.shape[0]
    if flat.get("encoder_attention_heads") is None:
        sorting.notes.append(
            f"the file does not tell the number of attention heads; taken as {sizes['attention_heads']} "
            f"({_HEAD_WIDTH} channels each, as in every RoBERTa size)"
        )
    sizes |= {ours: flat[name] for ours, name in _FLAT_SIZES.items() if flat.get(name) is not None}
    options: dict[str, Any] = {
        "activation_fn": "gelu",
        "layernorm_embedding": f"{ENCODER}layernorm_embedding.weight" in model,
        "no_scale_embedding": True,
        "no_token_positional_embeddings": positions is None,
    }
    options |= {ours: flat[name] for ours, name in _FLAT.items() if flat.get(name) is not None}
    if positions is not None and positions.ndim == 2:
        options["max_source_positions"] = positions.shape[0] - 2
    return {
        "transformer": {**options, "encoder": sizes},
        "average_top_k_layers": min(8, max(layers, 1)),
    }


def _vocab_size(checkpoint: FairseqCheckpoint, model: State) -> int:
    embedding = model.get(EMBEDDING)
    if embedding is None or embedding.ndim != 2 or len(embedding) <= PAD:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is no v1 text model: {EMBEDDING} is missing or no table"
        )
    return embedding.shape[0]
