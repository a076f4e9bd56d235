"""What is inside a checkpoint, without running anything in it and without building a model."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .fairseq_file import FairseqCheckpoint, read_checkpoint
from .imported import some
from .pickles import load_inert, named_objects

_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What :func:`inspect` found.

    Attributes:
        lines: for people.
        refused: names that the file mentions and that are never loaded.
        checkpoint: the file as plain values, if it is a fairseq checkpoint.
        problem: why it is none.
    """

    lines: list[str]
    refused: list[str]
    checkpoint: FairseqCheckpoint | None
    problem: str | None


def inspect(path: str | os.PathLike[str]) -> Contents:
    """Look into a ``.pt`` file; a hostile or damaged one is described as far as that is safe."""
    path = Path(path)
    lines, refused = [f"{path}: {_size(path)}"], list[str]()
    try:
        stand_ins, refused = named_objects(path)
    except CheckpointError as error:
        return Contents(lines=lines, refused=[], checkpoint=None, problem=str(error))
    lines.append(_container(path))
    if stand_ins:
        lines.append(f"foreign classes read as plain values: {', '.join(stand_ins)}")
    if refused:
        lines.append(f"REFUSED, would run code when unpickled: {', '.join(refused)}")
        problem = f"checkpoint {path} names {', '.join(refused)}; nothing of it was loaded"
        return Contents(lines=lines, refused=refused, checkpoint=None, problem=problem)
    try:
        top = load_inert(path)
        if isinstance(top, Mapping):
            lines += [f"  {key}: {_what(value)}" for key, value in list(top.items())[:_SHOWN]]
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        return Contents(lines=lines, refused=[], checkpoint=None, problem=str(error))
    return Contents(lines=lines, refused=[], checkpoint=checkpoint, problem=None)


def _size(path: Path) -> str:
    try:
        size = path.stat().st_size
    except OSError as error:
        return str(error.strerror)
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size} bytes"


def _container(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "container: a bare pickle (PyTorch before 1.6)"
    with zipfile.ZipFile(path) as archive:
        return f"container: zip of {len(archive.infolist())} entries (PyTorch 1.6 and later)"


def _what(value: Any) -> str:
    """A value in words."""
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        tensors = [v for v in value.values() if isinstance(v, torch.Tensor)]
        if tensors:
            kinds = sorted({str(t.dtype).removeprefix("torch.") for t in tensors})
            nested = [f"{k} ({len(v)})" for k, v in value.items() if isinstance(v, Mapping)]
            more = f", and nested: {', '.join(nested)}" if nested else ""
            numbers = sum(t.numel() for t in tensors)
            return f"{len(tensors)} tensors, {numbers:,} numbers, {', '.join(kinds)}{more}"
        return f"mapping: {some(map(str, value))}" if value else "empty mapping"
    if isinstance(value, list | tuple):
        return f"list of {len(value)}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value[:60])
    return type(value).__name__
