"""Folders of Hugging Face's ``Data2Vec*`` models, read and written without the transformers package.

v1 audio, text and vision go both ways, with their CTC, sentence and image heads; v2 text goes out to the text
class, whose mathematics it shares. There is no class for v2 audio and images (ALiBi, prenet, decoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..artifact import Artifact
from ..config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from ..ctc import CTCConfig
from ..data.dictionary import Dictionary
from ..errors import CheckpointError, ConfigError
from ..families import modality_of
from ..folders import written_folder
from ..json_files import read_json
from ..text import PAD
from ..v1.config import Data2VecAudioConfig
from ..v1.image_config import Data2VecVisionConfig
from ..v1.text_config import Data2VecTextConfig
from ..weight_shapes import Shapes, pretraining_shapes, weight_shapes
from . import hf_config, hf_state, hf_tables, v1_text
from .audio import CTC_TRUNK
from .fairseq_file import as_fp32
from .hf_processor import (
    label_fields,
    read_dictionary,
    read_letters,
    write_json,
    write_processor,
)
from .imported import ImportedModel, Sorting, State, rename_report
from .pickles import load_inert
from .v2_text import SENTENCE_HEAD

_CLASSES = {
    (hf_config.AUDIO, "pretrained"): "Data2VecAudioModel",
    (hf_config.AUDIO, "ctc"): "Data2VecAudioForCTC",
    (hf_config.TEXT, "pretrained"): "Data2VecTextModel",
    (hf_config.TEXT, "sentence_classifier"): "Data2VecTextForSequenceClassification",
    (hf_config.VISION, "pretrained"): "Data2VecVisionModel",
    (hf_config.VISION, "image_classifier"): "Data2VecVisionForImageClassification",
}
_PREFIXES = {
    hf_config.AUDIO: "data2vec_audio.",
    hf_config.TEXT: "data2vec_text.",
    hf_config.VISION: "data2vec_vision.",
}
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 5, "max_position_embeddings": 512,
}  # fmt: skip


def export_folder(artifact: Artifact, folder: Path | str) -> list[str]:
    """Write a model folder as a Hugging Face folder.

    Args:
        artifact: a v1 model, or a v2 text model.
        folder: made; must not exist or be empty.

    Returns:
        What was left out, in words.

    Raises:
        CheckpointError: there is no class for the model, or it cannot compute one of its options.
    """
    config, state, left = to_huggingface(artifact)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; give a new folder")
    with written_folder(folder) as beside:
        save_file({name: t.contiguous().clone() for name, t in state.items()}, beside / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip
        write_json(beside / "config.json", config)
        write_processor(artifact, beside)
    return left


def to_huggingface(artifact: Artifact) -> tuple[dict[str, Any], State, list[str]]:
    """Their configuration and tensors, and what was left out, in words."""
    config, kind = artifact.model_config, artifact.kind
    if kind == "language_model":
        raise CheckpointError(
            "there is no class for transformer language models; use --to fairseq or safetensors"
        )
    state, head = dict(artifact.state), artifact.head_config
    bare = kind == "pretrained"
    if kind == "audio_classifier":
        raise CheckpointError(
            "Hugging Face has no class that pools scores of frames, as models of audio events do; export "
            "them with --to safetensors or --to fairseq"
        )
    if isinstance(config, Data2VecAudioConfig):
        symbols = None if bare else int(artifact.config["task"]["num_symbols"])
        theirs = hf_config.audio_config(config, symbols)
        prefix, own = ("", "") if bare else (_PREFIXES[hf_config.AUDIO], CTC_TRUNK)
        made, left = hf_state.to_theirs(state, hf_tables.AUDIO, prefix, own)
        heads = hf_tables.CTC_HEAD
    elif modality_of(config) == "TEXT":
        assert isinstance(config, Data2VecTextConfig | Data2VecMultiConfig)
        theirs = hf_config.text_config(config, artifact.vocab_size)
        prefix = "" if bare else _PREFIXES[hf_config.TEXT]
        if isinstance(config, Data2VecMultiConfig):
            made, left = hf_state.v2_text(state, "" if bare else "model.", prefix)
        else:
            made, left = hf_state.to_theirs(state, hf_tables.TEXT, prefix, v1_text.ENCODER)
        made[f"{prefix}embeddings.token_type_embeddings.weight"] = _zeros(config.embed_dim)
        heads = hf_tables.SENTENCE_HEAD
    elif isinstance(config, Data2VecVisionConfig):
        image_head = head if isinstance(head, ImageHeadConfig) else None
        theirs = hf_config.vision_config(config, image_head)
        prefix, own = ("", "") if bare else (_PREFIXES[hf_config.VISION], "model.")
        made, left = hf_state.to_theirs(state, hf_tables.VISION, prefix, own)
        split, used = hf_state.split_vision(state, own, prefix)
        made |= split
        left = [name for name in left if name not in used]
        heads = hf_tables.VISION_HEAD
    else:
        what = modality_of(config).lower()
        raise CheckpointError(
            f"Hugging Face has no class for data2vec 2.0 {what} models (ALiBi, prenet blocks); export them "
            "with --to safetensors or --to fairseq"
        )
    if not bare:
        tops, left = hf_state.to_theirs({name: state[name] for name in left}, heads, "", "")
        made |= tops
        theirs |= label_fields(artifact)
    theirs["architectures"] = [_CLASSES[theirs["model_type"], kind]]
    computed = ("version", "relative_position_index")
    words = [f"{name}: no place in their class" for name in left if not name.endswith(computed)]
    if (artifact.folder / "teacher.safetensors").is_file():
        words.append("the teacher: no place in their class")
    return theirs, made, words


def import_folder(folder: Path | str) -> ImportedModel:
    """A ``Data2Vec*`` model of Hugging Face in our terms.

    Raises:
        CheckpointError: another kind of model, a damaged file, or tensors that do not fit its configuration.
    """
    folder = Path(folder)
    theirs = {**_DEFAULTS, **read_json(folder / "config.json")}
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in _PREFIXES:
        known = ", ".join(_PREFIXES)
        raise CheckpointError(
            f"{folder}/config.json is of the type {kind!r}; those that can be read: {known}"
        )
    try:
        reader = {hf_config.AUDIO: _audio, hf_config.TEXT: _text, hf_config.VISION: _vision}[kind]
        return reader(folder, theirs, _read_state(folder))
    except ConfigError as error:
        raise CheckpointError(str(ConfigError(error.problems, f"{folder}/config.json"))) from None
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder}/config.json has a field that is missing or of a wrong type: {error}"
        ) from None


def _audio(folder: Path, theirs: Mapping[str, Any], state: State) -> ImportedModel:
    config = hf_config.from_audio(theirs)
    config.check(len(state))
    ctc = "lm_head.weight" in state
    prefix = _found_prefix(state, hf_config.AUDIO)
    own = CTC_TRUNK if ctc else ""
    made, left = hf_state.to_ours(state, hf_tables.AUDIO, prefix, own)
    head, symbols = None, None
    if f"{own}mask_emb" not in made:
        made[f"{own}mask_emb"] = _zeros(config.encoder_embed_dim)[0]
    if ctc:
        tops, left = hf_state.to_ours({n: state[n] for n in left}, hf_tables.CTC_HEAD, "", "")
        made |= tops
        symbols = len(state["lm_head.weight"])
        head = CTCConfig(apply_mask=True, mask_prob=config.mask_prob, mask_length=config.mask_length)
        head.final_dropout = float(theirs.get("final_dropout", 0.0))
        head.dropout, head.attention_dropout = config.dropout, config.attention_dropout
        head.activation_dropout, head.layerdrop = config.activation_dropout, config.encoder_layerdrop
    wanted = weight_shapes(config, head, num_symbols=symbols or 0)
    return _checked(
        folder, config, made, left, wanted, "v1 audio", head, symbols, read_letters(folder, symbols)
    )


def _text(folder: Path, theirs: Mapping[str, Any], state: State) -> ImportedModel:
    config = hf_config.from_text(theirs)
    config.check(len(state))
    prefix = _found_prefix(state, hf_config.TEXT)
    made, left = hf_state.to_ours(state, hf_tables.TEXT, prefix, v1_text.ENCODER)
    tops, left = hf_state.to_ours({n: state[n] for n in left}, hf_tables.SENTENCE_HEAD, "", "")
    made |= tops
    types = state.get(f"{prefix}embeddings.token_type_embeddings.weight")
    if types is not None and bool(types.any()):
        table = f"{v1_text.ENCODER}embed_positions.weight"
        if table in made:  # one type for all tokens: its vector can be part of every real position's
            made[table] = made[table].clone()
            made[table][2:] += types[0]
    made[f"{v1_text.ENCODER}version"] = _zeros(1)[0] + 3.0
    rows = made.get(v1_text.EMBEDDING)
    vocabulary, head = 0 if rows is None else len(rows), None
    if tops:
        out = tops.get(f"{SENTENCE_HEAD}out_proj.weight")
        head = SentenceHeadConfig(num_classes=1 if out is None else len(out))
    wanted = weight_shapes(config, head, vocab_size=max(vocabulary, PAD + 1))
    return _checked(
        folder, config, made, left, wanted, "v1 text", head, vocabulary, read_dictionary(folder, vocabulary)
    )


def _vision(folder: Path, theirs: Mapping[str, Any], state: State) -> ImportedModel:
    config = hf_config.from_vision(theirs)
    config.check(len(state))
    prefix = _found_prefix(state, hf_config.VISION)
    finetuned = "classifier.weight" in state
    own = "model." if finetuned else ""
    made, left = hf_state.to_ours(state, hf_tables.VISION, prefix, own)
    joined, used = hf_state.join_vision(state, prefix, own, config.depth)
    made = hf_state.with_relative_index(made | joined, config.grid)
    left = [name for name in left if name not in used]
    head = None
    if finetuned:
        tops, left = hf_state.to_ours({n: state[n] for n in left}, hf_tables.VISION_HEAD, "", "")
        made |= tops
        head = ImageHeadConfig(num_classes=len(state["classifier.weight"]), fc_norm_eps=config.norm_eps)
        wanted = weight_shapes(config, head)
    else:
        student, _ = pretraining_shapes(config)
        wanted = {n: shape for n, shape in student.items() if not n.startswith("final_proj.")}
        if "mask_emb" not in made:
            made["mask_emb"] = _zeros(config.embed_dim)[None]
    return _checked(folder, config, made, left, wanted, "v1 images", head, None, None)


def _checked(
    folder: Path,
    config: Any,
    made: State,
    left: list[str],
    wanted: Shapes,
    family: str,
    head: Any,
    symbols: int | None,
    letters: Dictionary | None,
) -> ImportedModel:
    sorting = Sorting(folder / "model.safetensors")
    for name in left:
        sorting.dropped[name] = "no place in our model"
    state = sorting.take(made, wanted)
    if head is None:
        sorting.missing.append("_ema and the regression head")
        sorting.notes.append("without regression head: not to be pretrained further")
    normalize = family == "v1 audio"
    facts = {"vocab_size": symbols, "dictionary": letters, "normalize": normalize}
    return rename_report(sorting.imported(family, config, state, head, **facts), f"{family} of Hugging Face")


def weights_file(folder: Path) -> Path:
    """The file of a Hugging Face folder that holds its weights.

    Raises:
        CheckpointError: there is none, or they are split into several.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
        if (folder / f"{name}.index.json").is_file():
            raise CheckpointError(
                f"{folder} is split into several files; save it again in one (max_shard_size)"
            )
    raise CheckpointError(f"{folder} has no weights: model.safetensors is missing")


def _read_state(folder: Path) -> State:
    """Weights as fp32, from safetensors, or from PyTorch's format without running anything in it."""
    path = weights_file(folder)
    if path.suffix == ".bin":
        values = load_inert(path)
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{path} holds a {type(values).__name__}, not tensors by name")
        return as_fp32(values)
    try:
        return as_fp32(load_file(path))
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None


def _found_prefix(state: State, kind: str) -> str:
    prefix = _PREFIXES[kind]
    return prefix if any(name.startswith(prefix) for name in state) else ""


def _zeros(width: int) -> Any:
    import torch

    return torch.zeros(1, width)
