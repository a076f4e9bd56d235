"""The model families: the reference's name of each, its configuration, and what its models read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from .config import Data2VecMultiConfig
from .errors import CheckpointError
from .lm.config import TransformerLMConfig
from .mae_config import MaeConfig
from .v1.config import Data2VecAudioConfig
from .v1.image_config import Data2VecVisionConfig
from .v1.text_config import Data2VecTextConfig

ModelConfig = (
    Data2VecMultiConfig
    | Data2VecAudioConfig
    | Data2VecTextConfig
    | Data2VecVisionConfig
    | MaeConfig
    | TransformerLMConfig
)

FAMILIES: dict[str, type[ModelConfig]] = {
    "data2vec_multi": Data2VecMultiConfig,
    "data2vec_audio": Data2VecAudioConfig,
    "data2vec_text": Data2VecTextConfig,
    "data2vec_vision": Data2VecVisionConfig,
    "mae": MaeConfig,
    "transformer_lm": TransformerLMConfig,
}
_MODALITIES: dict[type[Any], str] = {
    Data2VecAudioConfig: "AUDIO",
    Data2VecTextConfig: "TEXT",
    Data2VecVisionConfig: "IMAGE",
    MaeConfig: "IMAGE",
    TransformerLMConfig: "TEXT",
}
# What ``data2vec.load`` gives for a kind of model or for a modality; imported when it is needed.
_IN_USE: dict[str, str] = {
    "language_model": "data2vec.lm.loaded:LanguageModel",
    "TEXT": "data2vec.text_model:TextModel",
    "AUDIO": "data2vec.audio_model:AudioModel",
    "IMAGE": "data2vec.image_model:ImageModel",
}


def register_family(
    name: str, config: type[ModelConfig], modality: str, in_use: str = "data2vec.array_model:ArrayModel"
) -> None:
    """Let model folders hold models of a family of your own.

    Args:
        name: of the family, as ``config.json`` has it.
        config: its configuration, with ``from_dict``, ``to_dict`` and ``problems``.
        modality: what its models read, in capitals.
        in_use: ``package.module:Class`` of what ``data2vec.load`` gives, made from an ``Artifact``.
    """
    FAMILIES[name], _MODALITIES[config], _IN_USE[modality] = config, modality, in_use


def model_in_use(kind: str, modality: str) -> Any:
    """The class of a ready model."""
    module, _, name = (_IN_USE.get(kind) or _IN_USE[modality]).partition(":")
    return getattr(importlib.import_module(module), name)


def family_of(config: ModelConfig) -> str:
    """The reference's name of the model class."""
    return next(name for name, cls in FAMILIES.items() if type(config) is cls)


def modality_of(config: ModelConfig) -> str:
    """What models of this configuration read: "TEXT", "AUDIO", "IMAGE" or a registered one."""
    return config.modality_name if isinstance(config, Data2VecMultiConfig) else _MODALITIES[type(config)]


def generation_of(config: object) -> int:
    """1 or 2; masked autoencoders share data and fine-tuning with the second."""
    return 2 if isinstance(config, Data2VecMultiConfig | MaeConfig) else 1


def generation_in_words(config: ModelConfig) -> str:
    """What people call models of this configuration; empty where the kind of model says all."""
    if isinstance(config, MaeConfig):
        return "MAE"
    if isinstance(config, TransformerLMConfig):
        return ""
    return {1: "data2vec", 2: "data2vec 2.0"}[generation_of(config)]


def shape_of(config: ModelConfig) -> tuple[int, int, int, int | None]:
    """Blocks, blocks before the shared ones (v2), width, and the patch of images in pixels."""
    if isinstance(config, Data2VecMultiConfig):
        modality = config.modality
        return config.depth, modality.prenet_depth, config.embed_dim, getattr(modality, "patch_size", None)
    return config.depth, 0, config.embed_dim, getattr(config, "patch_size", None)


def shape_in_words(config: ModelConfig) -> str:
    """Such as "2 + 10 blocks, width 768, 12 heads, patches of 16 pixels"."""
    depth, prenet, width, patch = shape_of(config)
    heads = config.encoder_attention_heads if isinstance(config, Data2VecAudioConfig) else config.num_heads
    blocks = f"{prenet} + {depth}" if prenet else str(depth)
    patches = f", patches of {patch} pixels" if patch else ""
    return f"{blocks} blocks, width {width}, {heads} heads{patches}"


def describe(config: ModelConfig) -> str:
    """Family, modality and shape in words."""
    return f"{family_of(config)}, {modality_of(config)}: {shape_in_words(config)}"


def read_model_config(family: object, values: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a family from a plain mapping; folders without a family hold v2 models.

    Raises:
        CheckpointError: an unknown family.
        ConfigError: a field is unknown or has a wrong type.
    """
    name = "data2vec_multi" if family is None else str(family)
    if name not in FAMILIES:
        raise CheckpointError(f"unknown model family {name!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[name].from_dict(values)
