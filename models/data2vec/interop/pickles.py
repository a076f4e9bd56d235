"""Reading another program's PyTorch checkpoint without running any code that it names.

A checkpoint is a pickle, and a pickle is a program. PyTorch's restricted unpickler (``weights_only=True``)
builds tensors and plain containers only; the few foreign classes that fairseq's checkpoints mention become
*stand-ins*: empty classes of ours, registered under the foreign names, which hold what they are given and do
nothing. A file that names anything else is refused, and the names are listed.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import CheckpointError

_MAX_VALUES = 1_000_000  # plain values in one checkpoint; a few thousand are usual


class StandIn:
    """An object of a foreign class: what it was built with and its state, and nothing else."""

    qualified_name: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> StandIn:
        self = super().__new__(cls)
        self.arguments = arguments
        self.state = None
        return self

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def attributes(self) -> dict[str, Any]:
        """The instance attributes of the foreign object."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {str(k): v for part in parts if isinstance(part, Mapping) for k, v in part.items()}


def _empty_dict(*_: Any) -> dict[Any, Any]:
    """Stands in for ``collections.defaultdict``, whose default is a callable that we do not want."""
    return {}


# How a stand-in becomes a plain value: the attribute that holds it, or all attributes ("*"), or its only
# argument ("()", enums), or nothing but its name ("type").
_OMEGACONF_NODES = ("Any", "String", "Integer", "Float", "Boolean", "Enum")
_MEANING: dict[str, str] = {
    "argparse.Namespace": "*",
    "fairseq.data.dictionary.Dictionary": "*",
    "omegaconf.dictconfig.DictConfig": "_content",
    "omegaconf.listconfig.ListConfig": "_content",
    **{f"omegaconf.nodes.{kind}Node": "_val" for kind in _OMEGACONF_NODES},
    **{f"omegaconf.base.{kind}": "*" for kind in ("Metadata", "ContainerMetadata", "Node")},
    "examples.data2vec.data.modality.Modality": "()",
    "fairseq.dataclass.constants.Choices": "()",
    "numpy.core.multiarray.scalar": "number",
    "numpy._core.multiarray.scalar": "number",
    "numpy.dtype": "*",
    "typing.Any": "type",
    **{
        f"builtins.{kind}": "type"
        for kind in ("bool", "int", "float", "str", "list", "dict", "tuple", "object")
    },
}
_STAND_INS: dict[str, type[StandIn]] = {
    name: type(name.rpartition(".")[2], (StandIn,), {"qualified_name": name}) for name in _MEANING
}
_MODALITIES = {1: "AUDIO", 2: "IMAGE", 3: "TEXT"}  # the reference numbers its enum in this order
_ALLOWED: list[Any] = [
    *((cls, name) for name, cls in _STAND_INS.items()),
    (_empty_dict, "collections.defaultdict"),
]


def load_inert(path: str | os.PathLike[str]) -> Any:
    """The object in a ``.pt`` file, foreign objects as stand-ins; see :func:`plain`.

    Tensors of files in the current (zip) format are mapped, not read: only what is copied costs memory, and
    the optimizer's state of a large run does not.

    Raises:
        CheckpointError: the file is missing, truncated, no PyTorch checkpoint, or names classes or functions
            that are not in the table.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {kind}; give the path of a fairseq .pt file")
    is_zip = _check_container(path)
    with torch.serialization.safe_globals(_ALLOWED):
        try:
            unsafe = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if is_zip else []
            if unsafe:
                raise _refusal(path, unsafe)
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # about pickle protocols; what cannot be read is an error below
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way, and none of them is our bug
            text = str(error)
            if isinstance(error, pickle.UnpicklingError) and (named := re.search(r"GLOBAL (\S+)", text)):
                raise _refusal(path, [named.group(1)]) from None
            # PyTorch's own reason stands after its advice to trust the file.
            own = re.search(r"WeightsUnpickler error: (.+)", text)
            first = own.group(1) if own else text.splitlines()[0] if text else type(error).__name__
            raise CheckpointError(f"checkpoint {path} is damaged or no PyTorch checkpoint: {first}") from None


def named_objects(path: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """The foreign classes and functions that a file names: those read as stand-ins, and the refused ones.

    Nothing is loaded. Files from before PyTorch 1.6 cannot be listed: they are refused when they are read.

    Raises:
        CheckpointError: the file is missing, truncated or no PyTorch checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {path} {kind}; give the path of a fairseq .pt file")
    if not _check_container(path):
        return [], []
    try:
        foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        with torch.serialization.safe_globals(_ALLOWED):
            refused = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # a damaged pickle can fail in any way
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} is damaged or no PyTorch checkpoint: {first}") from None
    return sorted(foreign - refused), sorted(refused)


def _refusal(path: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is refused: it names {', '.join(names)}, which could run code when loaded. "
        "Only tensors, plain containers and the classes of fairseq's own checkpoints are read"
    )


def _check_container(path: Path) -> bool:
    """Whether the file is a zip (the format since PyTorch 1.6); refuses what is truncated or inflated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {path} is truncated or damaged ({error}); copy it again"
            ) from None
        # torch.save never compresses: a compressed or overlapping entry is a way to fill the memory.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"checkpoint {path} has compressed entries, which torch.save never writes")
        if sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(f"checkpoint {path} claims more data than its {size} bytes; copy it again")
        return True
    if head[:1] != b"\x80":  # the first byte of a pickle: the format before PyTorch 1.6
        raise CheckpointError(f"checkpoint {path} is no PyTorch checkpoint (it starts with {head!r})")
    return False


def plain(value: Any) -> Any:
    """Stand-ins as plain dictionaries, lists and scalars; tensors stay.

    OmegaConf containers become dictionaries and lists, enums their names, numpy scalars Python numbers.

    Raises:
        CheckpointError: the value holds something with no plain form, or is unreasonably large or deep.
    """
    try:
        return _Plain().convert(value)
    except RecursionError:
        raise CheckpointError("the checkpoint's values are nested too deeply to be a configuration") from None


class _Plain:
    """One conversion; counts values, because a small pickle can refer to one list a billion times."""

    def __init__(self) -> None:
        self.count = 0

    def convert(self, value: Any) -> Any:
        self.count += 1
        if self.count > _MAX_VALUES:
            raise CheckpointError(
                f"the checkpoint's values are more than {_MAX_VALUES}; it is no fairseq checkpoint"
            )
        if value is None or isinstance(value, bool | int | float | str | bytes | complex | torch.Tensor):
            return value
        if isinstance(value, Mapping):
            return {_key(self.convert(k)): self.convert(v) for k, v in value.items()}
        if isinstance(value, list | tuple | set):
            return [self.convert(v) for v in value]
        if isinstance(value, torch.dtype | torch.device):
            return str(value)
        if isinstance(value, type) and issubclass(value, StandIn):
            return value.qualified_name
        if isinstance(value, StandIn):
            return self._stand_in(value)
        raise CheckpointError(f"the checkpoint holds a {type(value).__name__}, which has no plain form")

    def _stand_in(self, value: StandIn) -> Any:
        meaning = _MEANING[value.qualified_name]
        if meaning == "number":
            return _number(value)
        if meaning == "()":
            member = self.convert(value.arguments[0]) if value.arguments else None
            if value.qualified_name.endswith(".Modality") and isinstance(member, int):
                return _MODALITIES.get(member, member)
            return member
        if meaning == "type":
            return value.qualified_name
        attributes = value.attributes()
        return self.convert(attributes if meaning == "*" else attributes.get(meaning))


def _key(key: Any) -> Any:
    return key if isinstance(key, str | int | float | bool | type(None)) else str(key)


def _number(scalar: StandIn) -> int | float | bool:
    """A numpy scalar: its dtype (code and byte order) and its bytes."""
    try:
        dtype, data = scalar.arguments
        code, order = str(dtype.arguments[0]), dtype.state[1] if dtype.state else "|"
        if not re.fullmatch(r"[biuf][1248]", code) or order not in ("<", ">", "|", "="):
            raise ValueError(code)
        (number,) = np.frombuffer(data, dtype=np.dtype(order + code))
        return number.item()
    except (ValueError, TypeError, AttributeError, IndexError):
        raise CheckpointError("the checkpoint holds a numpy scalar that is no plain number") from None
