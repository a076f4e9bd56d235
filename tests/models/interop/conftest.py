"""Synthetic files in fairseq's format: the reference's names and shapes, random values, foreign classes."""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.config import Data2VecMultiConfig
from data2vec.data.dictionary import Dictionary
from tests.models.interop import reference_names as names

VOCAB = 20  # 4 specials, 15 symbols, <mask>
SIZES = {"D": 8, "depth": 2, "V": VOCAB, "P": 10, "W": 6, "G": 1, "K": 9, "J": 2}  # of ``config``


@pytest.fixture
def config() -> Data2VecMultiConfig:
    """The text recipe's architecture, tiny."""
    decoder = {"decoder_dim": 6, "decoder_groups": 1, "decoder_kernel": 9, "decoder_layers": 2,
               "decoder_residual": False, "projection_layers": 2}  # fmt: skip
    text = {
        "prenet_depth": 0,
        "mask_length": 1,
        "mask_prob": 0.48,
        "max_source_positions": 10,
        "decoder": decoder,
    }
    return Data2VecMultiConfig.from_dict(
        {"embed_dim": 8, "depth": 2, "num_heads": 2, "average_top_k_layers": 2, "supported_modality": "TEXT",
         "modalities": {"text": text}}
    )  # fmt: skip


@pytest.fixture
def dictionary() -> Dictionary:
    """As many symbols as the tiny model has embeddings."""
    return Dictionary([str(i) for i in range(VOCAB - 5)], [1] * (VOCAB - 5))


@pytest.fixture
def pretrained_file(tmp_path: Path, config: Data2VecMultiConfig) -> Callable[..., Path]:
    """Writes a v2 text pretraining checkpoint; keyword arguments replace entries of the file."""

    def write(name: str = "nlp_base.pt", **entries: Any) -> Path:
        model: dict[str, Any] = {**names.filled(names.shapes(names.TEXT_2 + names.TEXT_2_DECODER, **SIZES))}
        model["_ema"] = names.filled(names.shapes(names.TEXT_2_TEACHER, **SIZES))
        content = {
            "args": None,
            "cfg": {
                "model": {"_name": "data2vec_multi", **config.to_dict()},
                "task": {"_name": "masked_lm", "data": "/somewhere/else"},
                "optimization": {"max_update": 1000},
            },
            "model": model,
            "criterion": None,
            "optimizer_history": [{"criterion_name": "ModelCriterion", "num_updates": 321}],
            "task_state": {},
            "extra_state": {"val_loss": 1.0},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        }
        torch.save(content | entries, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def finetuned_file(tmp_path: Path, config: Data2VecMultiConfig) -> Callable[..., Path]:
    """Writes a fine-tuned v2 text checkpoint with three classes."""

    def write(extra: dict[str, torch.Tensor] | None = None, **entries: Any) -> Path:
        wanted = names.shapes(names.TEXT_2, "model.", **SIZES) | names.shapes(names.SENTENCE_HEAD, D=8, Y=3)
        model = names.filled(wanted) | (extra or {})
        pretraining = {
            "model": {"_name": "data2vec_multi", **config.to_dict()},
            "task": {"_name": "masked_lm"},
        }
        content = {
            "cfg": {
                "model": {
                    "_name": "data2vec_text_classification",
                    "pooler_dropout": 0.1,
                    "pooler_activation_fn": "relu",
                    "pretrained_model_args": pretraining,
                },
                "criterion": {"_name": "sentence_prediction", "regression_target": False},
            },
            "model": model,
            "optimizer_history": [{"num_updates": 99}],
        }
        path = tmp_path / "cola.pt"
        torch.save(content | entries, path)
        return path

    return write


class Foreign:
    """Classes that exist under the reference's names while a file is written, and nowhere when it is read."""

    def __init__(self) -> None:
        self.DictConfig = _foreign("omegaconf.dictconfig", "DictConfig")
        self.ListConfig = _foreign("omegaconf.listconfig", "ListConfig")
        self.AnyNode = _foreign("omegaconf.nodes", "AnyNode")
        self.IntegerNode = _foreign("omegaconf.nodes", "IntegerNode")
        self.ContainerMetadata = _foreign("omegaconf.base", "ContainerMetadata")
        self.Dictionary = _foreign("fairseq.data.dictionary", "Dictionary")
        modality = enum.Enum("Modality", ["AUDIO", "IMAGE", "TEXT"], module="examples.data2vec.data.modality")
        _module("examples.data2vec.data.modality").Modality = modality  # type: ignore[attr-defined]
        self.Modality = modality

    def omega(self, value: Any, parent: Any = None) -> Any:
        """A plain value as OmegaConf would hold it: nodes with metadata and a reference to their parent."""
        if isinstance(value, dict):
            node = self.DictConfig(
                _parent=parent, _metadata=self.ContainerMetadata(object_type=dict, key_type=Any)
            )
            node._content = {k: self.omega(v, node) for k, v in value.items()}
            return node
        if isinstance(value, list):
            node = self.ListConfig(_parent=parent)
            node._content = [self.omega(v, node) for v in value]
            return node
        cls = self.IntegerNode if type(value) is int else self.AnyNode
        return cls(_parent=parent, _val=value)


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    """See :class:`Foreign`; the modules are as before at the end."""
    before = dict(sys.modules)
    yield Foreign()
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    sys.modules.update(before)


def _module(name: str) -> types.ModuleType:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        dotted = ".".join(parts[:end])
        if end == len(parts) or dotted not in sys.modules:
            sys.modules[dotted] = types.ModuleType(dotted)
    return sys.modules[name]


def _foreign(module: str, name: str) -> Any:
    def __init__(self: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    cls = type(name, (), {"__module__": module, "__qualname__": name, "__init__": __init__})
    holder = sys.modules[module] if getattr(sys.modules.get(module), "_made_here", False) else _module(module)
    holder._made_here = True  # type: ignore[attr-defined]
    setattr(holder, name, cls)
    return cls
