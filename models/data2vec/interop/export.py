"""Model folders of ours as fairseq checkpoints, and as safetensors with a table of what each tensor is.

Our parameter names are fairseq's, so a checkpoint that goes in and out again holds the same tensors bit for
bit; half precision is exact for models that were half before.
"""

from __future__ import annotations

import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..artifact import LETTERS, WORDS, Artifact
from ..config import Data2VecMultiConfig
from ..ctc import CTCConfig
from ..errors import CheckpointError
from ..families import family_of, generation_of, modality_of
from ..folders import written_file, written_folder
from ..lm.config import TransformerLMConfig
from ..mae_config import MaeConfig
from ..typed import to_dict
from .transformer_lm import reference_cfg, reference_state

KEYS_FILE = "KEYS.md"


def export_fairseq(artifact: Artifact, path: Path | str, *, half: bool = False) -> list[str]:
    """Write a ``.pt`` file in fairseq's layout: cfg, model, the teacher under ``_ema``.

    Args:
        artifact: a model of any family.
        path: the file; must not exist. A dictionary goes beside it under its usual name.
        half: store the student in fp16, as the reference's own runs do; the teacher stays fp32.

    Returns:
        Remarks in words.

    Raises:
        CheckpointError: the file exists, or the reference has no such model.
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists; give a new file name")
    config = artifact.model_config
    if isinstance(config, MaeConfig) or (isinstance(config, Data2VecMultiConfig) and config.layer_norm_first):
        raise CheckpointError(
            f"{artifact.folder} holds a pre-LN network, as masked autoencoders are, which the reference's "
            "data2vec_multi computes otherwise; use --to safetensors"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    state = artifact.state
    if isinstance(artifact.model_config, TransformerLMConfig):
        state = reference_state(artifact.model_config, state)
    model: OrderedDict[str, Any] = OrderedDict(
        (name, tensor.half() if half and tensor.is_floating_point() else tensor)
        for name, tensor in state.items()
    )
    teacher = artifact.teacher
    if teacher is not None:
        model["_ema"] = OrderedDict(teacher)
    update = artifact.config.get("origin", {}).get("update")
    content = {
        "args": None,
        "cfg": fairseq_cfg(artifact),
        "model": model,
        "criterion": None,
        "optimizer_history": [{"num_updates": update if isinstance(update, int) else 0}],
        "task_state": {},
        "extra_state": {"metrics": [], "previous_training_time": 0},
    }
    with written_file(path) as beside:
        torch.save(content, beside)
    remarks: list[str] = []
    if artifact.tokenizer is not None:
        artifact.tokenizer.dictionary.save(path.parent / "dict.txt")
        remarks.append(f"dictionary: {path.parent / 'dict.txt'}")
    if artifact.letters is not None:
        artifact.letters.save(path.parent / LETTERS)
        remarks.append(f"letters: {path.parent / LETTERS}")
    if artifact.words is not None:
        artifact.words.save(path.parent / WORDS)
        remarks.append(f"dictionary: {path.parent / WORDS}")
    return remarks


def fairseq_cfg(artifact: Artifact) -> dict[str, Any]:
    """The run's configuration as fairseq's loaders look for it; they drop fields that only we have."""
    if isinstance(artifact.model_config, TransformerLMConfig):
        return reference_cfg(artifact.model_config)
    family = family_of(artifact.model_config)
    model = {"_name": family, **artifact.model_config.to_dict()}
    task = _task(artifact)
    if artifact.kind == "pretrained":
        return {"model": model, "task": task}
    head = to_dict(artifact.head_config) if artifact.head_config is not None else {}
    inner = {"model": model, "task": _task(artifact, pretraining=True)}
    if artifact.kind == "ctc":
        assert isinstance(artifact.head_config, CTCConfig)
        normalize = bool(artifact.config["task"].get("normalize", True))
        outer = {"_name": "wav2vec_ctc", **head, "normalize": normalize, "w2v_args": inner}
        return {"model": outer, "task": task, "criterion": {"_name": "ctc"}}
    if artifact.kind == "audio_classifier":
        normalize = bool(artifact.config["task"].get("normalize", True))
        head = {name: value for name, value in head.items() if name not in ("num_classes", "pool_padding")}
        outer = {"_name": "audio_classification", **head, "normalize": normalize, "d2v_args": inner}
        return {"model": outer, "task": task, "criterion": {"_name": "model"}}
    if artifact.kind == "image_classifier":
        name = "mae_image_classification" if family == "data2vec_multi" else "data2vec_image_classification"
        outer = {"_name": name, **head, **_regularisation(model), "pretrained_model_args": inner}
        return {"model": outer, "task": task, "criterion": {"_name": "model"}}
    criterion = {
        "_name": "sentence_prediction",
        "regression_target": bool(artifact.config["task"].get("regression")),
    }
    if family == "data2vec_text":
        outer = {**model, **head, "_name": "roberta"}
    else:
        outer = {"_name": "data2vec_text_classification", **head, "pretrained_model_args": inner}
    return {"model": outer, "task": task, "criterion": criterion}


def _regularisation(model: dict[str, Any]) -> dict[str, Any]:
    """Dropouts of a fine-tuned v2 image trunk, which fairseq keeps beside the pretraining configuration."""
    names = ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout", "dropout_input",
             "layerdrop")  # fmt: skip
    image = (model.get("modalities") or {}).get("image") or {}
    inner = {name: image[name] for name in ("prenet_layerdrop", "prenet_dropout") if name in image}
    return {name: model[name] for name in names if name in model} | inner


def _task(artifact: Artifact, *, pretraining: bool = False) -> dict[str, Any]:
    modality = modality_of(artifact.model_config)
    pretrained = pretraining or artifact.kind == "pretrained"
    names = {
        ("TEXT", True): "masked_lm", ("TEXT", False): "sentence_prediction",
        ("AUDIO", True): "audio_pretraining", ("AUDIO", False): "audio_finetuning",
        ("IMAGE", True): "image_pretraining", ("IMAGE", False): "image_classification",
    }  # fmt: skip
    task: dict[str, Any] = {"_name": names[modality, pretrained]}
    if generation_of(artifact.model_config) == 2 and modality == "IMAGE":
        task["_name"] = f"mae_{task['_name']}"
    if modality == "AUDIO":
        task["normalize"] = bool(artifact.config["task"].get("normalize", True))
    if artifact.kind == "ctc" and not pretraining:
        task["labels"] = "ltr"
    if artifact.kind == "audio_classifier" and not pretraining:
        task |= {"_name": "audio_classification", "labels": "lbl"}
    return task


def export_safetensors(artifact: Artifact, folder: Path | str) -> list[str]:
    """Copy a model folder and add a table of its tensors; ``data2vec.load(folder)`` reads it, without more.

    Raises:
        CheckpointError: the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; give a new folder")
    with written_folder(folder) as beside:
        for entry in sorted(artifact.folder.iterdir()):
            if entry.is_dir():
                shutil.copytree(entry, beside / entry.name)
            else:
                shutil.copyfile(entry, beside / entry.name)
        (beside / KEYS_FILE).write_text(key_table(artifact), encoding="utf-8")
    return [f"what each tensor is: {folder / KEYS_FILE}"]


def key_table(artifact: Artifact) -> str:
    """Markdown: every tensor with shape and meaning, repeated blocks once."""
    sections = [f"# Tensors of this model\n\n`{family_of(artifact.model_config)}`, {artifact.kind}. `{{i}}` "
                "counts from 0. The names are the reference's (fairseq)."]  # fmt: skip
    for file, title in (("model.safetensors", "Model"), ("teacher.safetensors", "Teacher (`_ema`)")):
        path = artifact.folder / file
        if not path.is_file():
            continue
        rows: dict[tuple[str, tuple[int, ...]], int] = {}
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                general = re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "{i}", name, count=1)
                shape = tuple(tensors.get_slice(name).get_shape())
                rows[general, shape] = rows.get((general, shape), 0) + 1
        lines = [f"## {title}: `{file}`", "", "| tensor | shape | count | what it is |", "|---|---|---:|---|"]
        lines += [
            f"| `{name}` | {' x '.join(map(str, shape)) or 'scalar'} | {count} | {meaning(name)} |"
            for (name, shape), count in rows.items()
        ]
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"embed_tokens\.embeddings|adaptive_softmax|output_projection",
        "words, in bands of frequency or all together",
    ),
    (r"project_(in|out)_dim", "between the widths of words and model"),
    (r"attn\.qkv|self_attn\.[qkv]_proj", "queries, keys, values"),
    (r"q_bias|v_bias", "bias of queries or values (keys have none)"),
    (r"attn\.proj|self_attn\.out_proj", "output of the attention"),
    (r"mlp\.|fc1|fc2", "feed-forward network"),
    (r"gamma_[12]", "scale of a branch"),
    (r"relative_position_bias_table", "relative positions: bias of the attention"),
    (r"relative_position_index", "row of that table for each pair of positions"),
    (r"norm1|norm2|_layer_norm|layer_norm|layernorm|fc_norm|\bnorm\b", "layer norm"),
    (r"alibi_scale", "slope of the distance bias, a head each"),
    (r"embed_tokens", "token embedding"),
    (r"positions|embed_positions", "positions"),
    (r"extra_tokens|cls_emb", "class token"),
    (r"mask_emb", "vector at masked positions"),
    (r"local_encoder\.conv_layers|feature_extractor", "convolutions over the waveform"),
    (r"local_encoder\.proj|patch_embed", "patches to vectors"),
    (r"relative_positional_encoder|pos_conv", "convolutional positions"),
    (r"project_features|post_extract_proj", "frames to the model's width"),
    (r"decoder", "decoder of pretraining"),
    (r"final_proj|regression_head|recon_proj", "regression head of pretraining"),
    (r"classification_heads|\bhead\b|w2v_encoder\.proj", "fine-tuning head"),
    (r"version", "marker of fairseq's text encoder"),
)


def meaning(name: str) -> str:
    """A tensor in words, from its name."""
    return next((words for pattern, words in _MEANINGS if re.search(pattern, name)), "")
