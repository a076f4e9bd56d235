"""What all models in use share: where they compute, and one item or many in a call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import nn

from .errors import DataError
from .families import ModelConfig, describe

_SHOWN_LABELS = 4


def device_of(name: torch.device | str) -> torch.device:
    """A device by its name.

    Args:
        name: "auto" (the first GPU, or the CPU where there is none), "cpu", "cuda", or "cuda:1" and so on.

    Raises:
        DataError: another name, or a GPU that this machine does not have.
    """
    if isinstance(name, torch.device):
        return name
    if (rule := device_problem(name)) is not None:
        raise DataError(f"device = {name!r} {rule}")
    return torch.device(("cuda" if _num_gpus() else "cpu") if name == "auto" else name)


def device_problem(name: str) -> str | None:
    """Why :func:`device_of` refuses a name; ``None`` if it does not."""
    kind, colon, number = name.partition(":")
    if name not in ("auto", "cpu") and not (kind == "cuda" and (not colon or number.isdecimal())):
        return "must be auto, cpu, cuda, or one of several such as cuda:1"
    count = _num_gpus()
    if kind != "cuda" or int(number or 0) < count:
        return None
    if not count:
        return "is not here: this machine has no GPU that PyTorch can use; take auto or cpu"
    return f"is not here: this machine has {count} GPU{'s' if count > 1 else ''}, counted from cuda:0"


def _num_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


class ModelInUse:
    """A network in evaluation mode that can be moved."""

    _module: nn.Module
    """The network with its head: everything that moves."""
    config: dict[str, Any]
    """``config.json`` of its folder."""
    model_config: ModelConfig

    def __repr__(self) -> str:
        """Kind, labels, architecture with modality, size, place."""
        facts = [self.config["kind"].replace("_", " ")]
        labels = [str(label) for label in (self.config.get("task") or {}).get("labels") or ()]
        if labels:
            more = f", ... {len(labels)} labels" if len(labels) > _SHOWN_LABELS else ""
            facts[0] += f" of {', '.join(labels[:_SHOWN_LABELS])}{more}"
        facts.append(describe(self.model_config))
        facts.append(f"{sum(parameter.numel() for parameter in self._module.parameters()):,} parameters")
        return f"<{type(self).__name__}: {'; '.join(facts)}; {self.device}>"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self._module.parameters()).device

    def _with(self, network: nn.Module) -> Self:
        """The same around another network, without a head."""
        other = copy.copy(self)
        other.__dict__ |= dict.fromkeys(("classifier", "ctc") & self.__dict__.keys())
        other.__dict__ |= {"network": network, "_module": network.eval().to(self.device)}
        return other

    def to(self, device: torch.device | str) -> Self:
        """Move it; returns itself.

        Args:
            device: as :func:`device_of` takes it, or a device of PyTorch.

        Raises:
            DataError: this machine does not have it.
        """
        self._module.to(device_of(device))
        return self


def items_of(
    given: Any, is_item: Callable[[Any], bool], what: str, batch_size: int = 1
) -> tuple[list[Any], bool]:
    """What a call was given, as a list, and whether it was one item alone.

    Args:
        given: an item, or a sequence or iterator of items.
        is_item: whether something is an item.
        what: an item in words, such as "a text".
        batch_size: of the call, which must be at least 1.

    Raises:
        DataError: neither, or something in it is no item.
    """
    if batch_size < 1:
        raise DataError(f"batch_size = {batch_size} must be >= 1")
    if is_item(given):
        return [given], True
    many = isinstance(given, Sequence | Iterator) or hasattr(given, "tolist")  # arrays and pandas' columns
    if not many or isinstance(given, str | bytes | bytearray | memoryview):
        raise DataError(f"give {what}, or a list of such, not {_kind(given)}")
    if getattr(given, "ndim", 1) == 0:
        raise DataError(f"give {what}, or a list of such, not a single value")
    items = list(given)
    wrong = [index for index, item in enumerate(items) if not is_item(item)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DataError(f"item {wrong[0]} of {len(items)} is {_kind(items[wrong[0]])}{more}; give {what}")
    return items, False


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}" if value is not None else "None"
