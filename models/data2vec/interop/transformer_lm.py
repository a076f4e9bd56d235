"""The reference's transformer language models (``transformer_lm`` and its named sizes), in and out.

Our names are the reference's, but for tensors that it stores twice (tied weights) and markers without
content: those are dropped on the way in, after a comparison, and written on the way out.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ..data.dictionary import Dictionary
from ..errors import CheckpointError, ConfigError
from ..lm.config import TransformerLMConfig
from ..weight_shapes import weight_shapes
from .fairseq_file import FairseqCheckpoint
from .imported import ImportedModel, Sorting, State
from .v2_config import broken_config, model_section, read_config

NAME = "transformer_lm"
_EMBEDDING = "decoder.embed_tokens.weight"
_MARKERS = (r"decoder\.(.*\.)?(version|_float_tensor|buffer)$", r"decoder\.embed_positions\.weights$")
# Options of the reference that change what is computed and that we do not build, with their harmless values.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "character_embeddings": (False, None),
    "quant_noise_pq": (0, 0.0, None), "quant_noise_scalar": (0, 0.0, None),
    "decoder_layers_to_keep": (None, ""), "add_bos_token": (False, None), "scale_fc": (False, None),
    "scale_attn": (False, None), "scale_heads": (False, None), "scale_resids": (False, None),
    "decoder_xformers_att_config": (None, ""), "moe_freq": (0, None),
    "alternate_decoder_ffn_embed_dim": (0, None),
}  # fmt: skip
_REFUSED_TASK: dict[str, tuple[Any, ...]] = {
    "self_target": (False, None), "past_target": (False, None), "future_target": (True, False, None),
    "output_dictionary_size": (-1, None), "add_bos_token": (False, None),
}  # fmt: skip


def import_transformer_lm(
    checkpoint: FairseqCheckpoint, dictionary: Dictionary | None = None
) -> ImportedModel:
    """A language model with its dictionary.

    Args:
        checkpoint: the file's content.
        dictionary: its ``dict.txt``; without it the vocabulary cannot be checked, and the report says so.

    Raises:
        CheckpointError: an option that is not built here; tensors missing, unknown or of another shape than
            the configuration inside the file says; a vocabulary that does not fit the dictionary.
    """
    sorting = checkpoint.sorting()
    model = _renamed(checkpoint.model)
    config = _config(checkpoint, model, sorting)
    vocab_size = _vocab_size(checkpoint, model, config)
    if problems := config.vocabulary_problems(vocab_size):
        raise broken_config(checkpoint, "cfg.model", ConfigError(problems))
    sorting.compare_depth(model, "decoder.layers.", config.decoder_layers, "layers")
    for name, source in tied_names(config).items():
        copy = model.pop(name, None)
        if copy is None:
            continue
        if source in model and not torch.equal(copy, model[source]):
            sorting.refused.append(
                f"{name} and {source} differ, but its configuration says that they are tied"
            )
        sorting.dropped[name] = f"the same as {source}"
    for pattern in _MARKERS:
        sorting.drop(pattern, "a marker without content")
    state = sorting.take(model, weight_shapes(config, vocab_size=vocab_size))
    if dictionary is None:
        sorting.notes.append(f"no dictionary given: the vocabulary of {vocab_size} symbols is not checked")
    elif len(dictionary) != vocab_size:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has a vocabulary of {vocab_size} symbols, but the dictionary has "
            f"{len(dictionary)} (specials included); give the dict.txt that belongs to it"
        )
    return sorting.imported(
        "transformer language model",
        config,
        state,
        vocab_size=vocab_size,
        dictionary=dictionary,
    )


def tied_names(config: TransformerLMConfig) -> dict[str, str]:
    """Tensors that the reference stores a second time, and the names under which we keep them."""
    if config.share_decoder_input_output_embed:
        return {"decoder.output_projection.weight": _EMBEDDING}
    if not config.tie_adaptive_weights:
        return {}
    softmax, words = "decoder.adaptive_softmax.", "decoder.embed_tokens.embeddings."
    found = {f"{softmax}head.word_proj.weight": f"{words}0.0.weight"}
    for band in range(1, len(config.input_cutoff) + 1):
        found[f"{softmax}tail.{band - 1}.2.weight"] = f"{words}{band}.0.weight"
        if config.tie_adaptive_proj:
            found[f"{softmax}tail.{band - 1}.0.weight"] = f"{words}{band}.1.weight"
    return found


def reference_state(config: TransformerLMConfig, state: State) -> State:
    """Our tensors as the reference stores them: tied ones twice, with its markers."""
    out = dict(state)
    out |= {name: state[source] for name, source in tied_names(config).items() if source in state}
    out["decoder.version"] = torch.tensor([3.0])
    if not (config.decoder_learned_pos or config.no_token_positional_embeddings):
        out["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    if config.adaptive_input:
        out["decoder.embed_tokens._float_tensor"] = torch.zeros(1)
    if config.softmax_cutoff is not None:
        out["decoder.adaptive_softmax.version"] = torch.tensor([1])
    if config.tie_adaptive_weights:
        out["decoder.adaptive_softmax.head._float_tensor"] = torch.zeros(1)
    return out


def reference_cfg(config: TransformerLMConfig) -> dict[str, Any]:
    """The run's configuration as fairseq's loaders look for it."""
    widths = {"decoder_input_dim": config.input_dim, "decoder_output_dim": config.output_dim}
    positions = config.max_target_positions
    model = {"_name": NAME, **config.to_dict(), **widths, "tokens_per_sample": positions}
    task = {"_name": "language_modeling", "tokens_per_sample": positions, "max_target_positions": positions}
    banded = config.softmax_cutoff is not None
    return {
        "model": model,
        "task": task,
        "criterion": {"_name": "adaptive_loss" if banded else "cross_entropy"},
    }


def _renamed(tensors: State) -> State:
    """Tensors of older files under today's names."""
    out: State = {}
    for name, tensor in tensors.items():
        joint = re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", name)
        if joint and tensor.ndim and tensor.shape[0] % 3 == 0:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{joint.group(1)}{part}_proj.{joint.group(2)}"] = piece.clone()
            continue
        out["decoder.output_projection.weight" if name == "decoder.embed_out" else name] = tensor
    return out


def _config(checkpoint: FairseqCheckpoint, model: State, sorting: Sorting) -> TransformerLMConfig:
    values = model_section(checkpoint, "model")
    task = checkpoint.section("task")
    wrong = [f"model.{k} = {values[k]!r}" for k, good in _REFUSED.items() if values.get(k) not in good]
    wrong += [f"task.{k} = {task[k]!r}" for k, good in _REFUSED_TASK.items() if task.get(k) not in good]
    if values.get("arch") not in (None, "", NAME) and not str(values["arch"]).startswith(NAME):
        wrong.append(f"arch = {values['arch']!r}")
    if wrong:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is a language model with options that are not built here: "
            + ", ".join(wrong)
        )
    if values.get("no_tie_adaptive_proj") is not None:  # files from before tie_adaptive_proj
        values["no_decoder_final_norm"] = True
        values.setdefault("tie_adaptive_proj", not values["no_tie_adaptive_proj"])
    if values.get("decoder_final_norm") is not None:
        values["no_decoder_final_norm"] = not values["decoder_final_norm"]
    if not values.get("tie_adaptive_weights"):
        values["tie_adaptive_proj"] = False  # means nothing then
    positions = model.get("decoder.embed_positions.weight")
    if positions is not None and positions.ndim == 2:
        values["max_target_positions"] = positions.shape[0] - 2
    elif values.get("max_target_positions") is None:
        values["max_target_positions"] = (
            values.get("tokens_per_sample") or task.get("tokens_per_sample") or 1024
        )
    for name in ("adaptive_softmax_cutoff", "adaptive_input_cutoff"):
        if isinstance(values.get(name), list):
            values[name] = ",".join(map(str, values[name]))
    names = TransformerLMConfig.__dataclass_fields__
    given = {k: v for k, v in values.items() if k in names and v is not None}
    known = {*names, *_REFUSED}
    sorting.ignored_config |= dict.fromkeys((k for k in values if k not in known), "no part of the model")
    return read_config(TransformerLMConfig, checkpoint, sorting, "model", values=given)


def _vocab_size(checkpoint: FairseqCheckpoint, model: State, config: TransformerLMConfig) -> int:
    names = [_EMBEDDING]
    if config.adaptive_input:
        pattern = re.compile(r"decoder\.embed_tokens\.embeddings\.\d+\.0\.weight")
        names = [name for name in model if pattern.fullmatch(name)]
    tables = [model[name] for name in names if name in model and model[name].ndim == 2]
    if not tables:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is no transformer language model: {_EMBEDDING} is missing or no "
            "table"
        )
    return sum(table.shape[0] for table in tables)
