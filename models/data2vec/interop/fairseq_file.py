"""What a fairseq ``.pt`` file holds, as plain values: the same for every family of models."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .imported import Sorting, State, some
from .pickles import load_inert, plain

PRETRAINING_ONLY = "pretraining only"
_TEACHER = "_ema"
_BEIT_TEACHER = "model_ema"
_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True, kw_only=True)
class FairseqCheckpoint:
    """One fairseq checkpoint; tensors are on the CPU, floating-point ones in fp32."""

    path: Path
    cfg: dict[str, Any]  # the run's configuration, interpolations resolved; empty if the file has none
    model: State  # the student
    teacher: State | None  # the nested "_ema" of pretraining files
    task_state: dict[str, Any]
    num_updates: int | None  # optimizer updates that the run had done
    symbols: list[str] | None  # of the dictionary inside the task's state (speech), specials included

    def section(self, *names: str) -> dict[str, Any]:
        """A group of the configuration, such as ``("model", "pretrained_model_args")``; empty if absent."""
        value: Any = self.cfg
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def sorting(self, *, finetuned: bool = False) -> Sorting:
        """For its tensors; a fine-tuned model has no use for a teacher."""
        sorting = Sorting(self.path, self.num_updates)
        if finetuned and self.teacher is not None:
            sorting.dropped[_TEACHER] = PRETRAINING_ONLY
        return sorting

    @property
    def family(self) -> str | None:
        """The reference's name of the model class, such as ``data2vec_multi``; ``None`` if not recorded."""
        name = self.section("model").get("_name")
        return str(name) if name else None


def read_checkpoint(path: str | os.PathLike[str]) -> FairseqCheckpoint:
    """Read a fairseq ``.pt`` file without running anything that it contains.

    Floating-point tensors become fp32; half-precision runs store the student in fp16, which fp32 holds
    exactly. Tensors are copies, so the file may be removed afterwards. The optimizer's state is not read.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, or names classes outside a short list.
    """
    path = Path(path)
    top = load_inert(path)
    if isinstance(top, Mapping) and isinstance(top.get("module"), Mapping) and "model" not in top:
        top = {**top, "model": top["module"]}  # DeepSpeed's name for the same
    if not isinstance(top, Mapping) or not isinstance(top.get("model"), Mapping):
        found = (
            f"the entries {some(map(str, top))}" if isinstance(top, Mapping) else f"a {type(top).__name__}"
        )
        raise CheckpointError(f"checkpoint {path} is no fairseq checkpoint: it holds {found}, but no 'model'")
    try:
        cfg = plain(top.get("cfg")) or {}
        task_state = plain(top.get("task_state")) or {}
        history, extra = plain(top.get("optimizer_history")), plain(top.get("extra_state"))
        model, teacher = dict(top["model"]), None
        if isinstance(model.get(_TEACHER), Mapping):
            teacher = as_fp32(model.pop(_TEACHER), f"{_TEACHER}.")
        if teacher is None and isinstance(top.get(_BEIT_TEACHER), Mapping):
            teacher = as_fp32(top[_BEIT_TEACHER], f"{_BEIT_TEACHER}.")
        if not cfg:
            cfg = _from_arguments(plain(top.get("args")))
        if not isinstance(cfg, dict):
            raise CheckpointError(f"its configuration is no mapping but a {type(cfg).__name__}")
        return FairseqCheckpoint(
            path=path,
            cfg=_resolve(cfg, cfg),
            model=as_fp32(model, ""),
            teacher=teacher,
            task_state=task_state if isinstance(task_state, dict) else {},
            num_updates=_num_updates(history, extra),
            symbols=_symbols(task_state),
        )
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None


def _from_arguments(args: Any) -> dict[str, Any]:
    """The configuration of files from before fairseq's groups: one flat set of command-line arguments."""
    if not isinstance(args, dict):
        return {}
    arch = str(args.get("arch") or "")
    name = "roberta" if arch.startswith("roberta") else arch
    groups = ("task", "criterion", "optimization")
    return {"args": args, "model": {**args, "_name": name} if arch else {}} | dict.fromkeys(groups, args)


def as_fp32(values: Mapping[Any, Any], prefix: str = "") -> State:
    """Copies of all tensors, floating-point ones in fp32; ``prefix`` stands before names in messages.

    Raises:
        CheckpointError: something is no dense, real tensor, or claims more than its storage holds.
    """
    state: State = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{name} is no tensor but a {type(value).__name__}")
        if (
            value.device.type != "cpu"
            or value.layout != torch.strided
            or value.is_quantized
            or value.is_complex()
        ):
            raise CheckpointError(f"{name} is no dense, real tensor")
        state[str(key)] = value.detach()
    # Views that repeat or share their storage unfold to any size when copied; tied weights are there twice.
    asked = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    if asked > 2 * sum(stored.values()):
        name, largest = max(state.items(), key=lambda item: item[1].numel())
        raise CheckpointError(
            f"its {len(state)} tensors have {asked} bytes, more than the file holds for them "
            f"({sum(stored.values())}); the largest, {prefix}{name}, has shape {tuple(largest.shape)}"
        )
    for name, tensor in state.items():
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        state[name] = torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
    return state


def _resolve(value: Any, root: dict[str, Any]) -> Any:
    """OmegaConf's references (``${group.field}``) replaced by what they refer to.

    Fields without a value ("???") and references to nothing are left out: they take the field's default.
    """
    if isinstance(value, dict):
        pairs = ((k, _lookup(v, root) if isinstance(v, str) else v) for k, v in value.items())
        return {k: _resolve(v, root) for k, v in pairs if not _unset(v)}
    if isinstance(value, list):
        return [_resolve(v, root) for v in value]
    return value


def _unset(value: Any) -> bool:
    return isinstance(value, str) and (value == "???" or value.startswith("${"))


def _lookup(text: str, root: dict[str, Any], depth: int = 0) -> Any:
    """The value that ``${group.field}`` refers to; the text itself if it is no reference or leads nowhere."""
    match = _INTERPOLATION.fullmatch(text)
    if match is None or depth > 10:
        return text
    value: Any = root
    for name in match.group(1).split("."):
        if not isinstance(value, dict) or name not in value:
            return text
        value = value[name]
    if isinstance(value, dict | list):
        return text  # no field refers to a whole group, and following it could go round in a circle
    return _lookup(value, root, depth + 1) if isinstance(value, str) else value


def _num_updates(history: Any, extra: Any) -> int | None:
    """From the optimizer's history, which every fairseq file has."""
    if isinstance(history, list) and history and isinstance(history[-1], dict):
        value = history[-1].get("num_updates")
        if isinstance(value, int):
            return value
    value = extra.get("num_updates") if isinstance(extra, dict) else None
    return value if isinstance(value, int) else None


def _symbols(task_state: Any) -> list[str] | None:
    dictionary = task_state.get("target_dictionary") if isinstance(task_state, dict) else None
    symbols = dictionary.get("symbols") if isinstance(dictionary, dict) else None
    return [str(symbol) for symbol in symbols] if isinstance(symbols, list) else None
