"""Recorded cases of the reference: where they are, what is in them, which family they belong to.

A case is a folder with ``case.json`` and ``tensors.safetensors``; ``schedules`` needs the first alone. The
family follows from the content, never from the folder's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

JSON_NAME, TENSORS_NAME = "case.json", "tensors.safetensors"


class UnreadableCase(Exception):
    """A file of the case is missing or broken; the message names it."""


class UnsupportedCase(Exception):
    """The case is fine, but what it records is not built here; the message says what."""


@dataclass
class Case:
    """One recorded case.

    Attributes:
        name: the folder's name.
        folder: where it lies.
        info: ``case.json``.
        tensors: ``tensors.safetensors``.
        device: where the code under test runs; everything recorded stays on the CPU.
        fed: keys of tensors that were given to the code under test.
    """

    name: str
    folder: Path
    info: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fed: set[str] = field(default_factory=set)

    def value(self, *path: str) -> Any:
        """A required entry of ``case.json``."""
        node: Any = self.info
        for depth, key in enumerate(path):
            if not isinstance(node, Mapping) or key not in node:
                raise UnreadableCase(f"{self.folder / JSON_NAME}: no entry {'.'.join(path[: depth + 1])!r}")
            node = node[key]
        return node

    def feed(self, key: str) -> torch.Tensor:
        """A required tensor that enters the code under test, on its device."""
        if key not in self.tensors:
            raise UnreadableCase(f"{self.folder / TENSORS_NAME}: no tensor {key!r}")
        self.fed.add(key)
        return self.tensors[key].to(self.device)

    def feed_optional(self, key: str) -> torch.Tensor | None:
        """The same for a tensor that may be absent."""
        return self.feed(key) if key in self.tensors else None

    def feed_under(self, prefix: str) -> dict[str, torch.Tensor]:
        """All tensors below a prefix, without it, to be put into the code under test (every one of them)."""
        self.fed.update(key for key in self.tensors if key.startswith(prefix))
        return self.under(prefix)

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """All tensors below a prefix, without it."""
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def find_cases(paths: Iterable[Path]) -> list[Path]:
    """The case folders among and below the given ones; a folder without any is an error."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UnreadableCase(f"{path}: no such folder")
        here = (
            [path]
            if _holds_case(path)
            else sorted({file.parent for name in (JSON_NAME, TENSORS_NAME) for file in path.rglob(name)})
        )
        if not here:
            raise UnreadableCase(f"{path}: holds neither a case nor folders with cases")
        for folder in here:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _holds_case(path: Path) -> bool:
    return (path / JSON_NAME).exists() or (path / TENSORS_NAME).exists()


def read_case(folder: Path, device: str = "cpu") -> Case:
    """Read a case and check it against its own list of tensors.

    Args:
        folder: its files.
        device: where the code under test will run.

    Raises:
        UnreadableCase: what is missing or broken.
    """
    info = _read_json(folder / JSON_NAME)
    path = folder / TENSORS_NAME
    tensors: dict[str, torch.Tensor] = {}
    if path.is_file():
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UnreadableCase(f"{path}: not a whole safetensors file ({error})") from None
    elif path.exists() or not is_schedules(info):
        raise UnreadableCase(f"{path}: missing")
    listed = info.get("tensors") or {}
    if not isinstance(listed, dict):
        raise UnreadableCase(f"{folder / JSON_NAME}: 'tensors' is not a mapping")
    for key, entry in listed.items():
        if not tensors and is_schedules(info):
            break
        if key not in tensors:
            raise UnreadableCase(f"{path}: tensor {key!r}, listed in {JSON_NAME}, is missing")
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if shape is not None and list(tensors[key].shape) != list(shape):
            raise UnreadableCase(f"{path}: {key!r} is {list(tensors[key].shape)}, listed as {shape}")
    return Case(folder.resolve().name, folder, info, tensors, torch.device(device))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableCase(f"{path}: missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise UnreadableCase(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(info, dict):
        raise UnreadableCase(f"{path}: holds a {type(info).__name__}, not an object")
    return info


def is_schedules(info: Mapping[str, Any]) -> bool:
    """Learning rates and decays at chosen updates, without any model."""
    return "config" not in info and any(isinstance(info.get(key), list) for key in ("lr", "ema"))


def family_of(case: Case) -> str:
    """``v2_text``, ``v2_image``, ``trajectory_v2_*``, ``ft_text``, ``ft_image`` or one without a model.

    Raises:
        UnsupportedCase: another family, named.
        UnreadableCase: the content fits none.
    """
    info = case.info
    if is_schedules(info):
        return "schedules"
    if "statistics" in info:
        return "mask_statistics"
    if "models" in info:
        return "param_groups"
    config = info.get("pretrain_config", info.get("config"))
    if not isinstance(config, dict) or not case.under("student/"):
        raise UnreadableCase(f"{case.folder}: neither a model's configuration nor its weights")
    if any(key.startswith("w2v_encoder.") for key in case.under("student/")):
        return "ft_ctc"
    if "modalities" not in config:
        if "conv_feature_layers" in config:
            return "v1_audio"
        if "num_mask_patches" in config:
            return "ft_image" if "pretrain_config" in info else "v1_vision"
        if "transformer" in config:
            return "v1_text"
        raise UnsupportedCase("data2vec 1 is built for audio and text only")
    built_in = ".modality_encoders."
    modalities = sorted(
        {("." + k).split(built_in)[1].split(".")[0] for k in case.under("student/") if built_in in "." + k}
    )
    if len(modalities) != 1 or modalities[0] not in ("TEXT", "IMAGE", "AUDIO"):
        raise UnsupportedCase(f"modality {', '.join(modalities) or 'unknown'} is not built yet")
    modality = modalities[0].lower()
    if "pretrain_config" not in info:
        return f"trajectory_v2_{modality}" if case.under("step0/") else f"v2_{modality}"
    head = {"text": "classification_heads.", "image": "head.", "audio": "w2v_encoder."}[modality]
    if not any(key.startswith(head) for key in case.under("student/")):
        raise UnsupportedCase("a fine-tuning head other than the sentence and image heads is not built yet")
    return f"ft_{modality}"
