"""The convolutions of an audio front end, written as in the reference's recipes.

``"[(512, 10, 5)] + [(512, 3, 2)] * 4"`` means (channels, width, stride) of each layer. The text is read as
literals, lists, ``+`` and ``*`` only and never evaluated.
"""

from __future__ import annotations

import ast
import functools

from .errors import Data2VecError

MAX_LAYERS = 64  # far more than any model has; keeps a mistyped factor from filling the memory

ConvLayer = tuple[int, int, int]
"""Channels, width in frames, stride in frames."""


@functools.lru_cache(maxsize=64)
def parse_conv_layers(spec: str) -> tuple[ConvLayer, ...]:
    """The layers of a specification.

    Raises:
        Data2VecError: the text is anything but lists of three positive integers, added and repeated.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Data2VecError(f"{spec!r} is no list of convolutions; {_EXAMPLE}") from None
    layers = tuple(_layer(item, spec) for item in _items(tree, spec))
    if not layers:
        raise Data2VecError(f"{spec!r} has no convolution; {_EXAMPLE}")
    return layers


_EXAMPLE = "write (channels, width, stride) of each layer, like '[(512, 10, 5)] + [(512, 3, 2)] * 4'"


def _items(node: ast.expr, spec: str) -> list[ast.expr]:
    if isinstance(node, ast.List | ast.Tuple) and not _is_layer(node):
        return list(node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        items = _items(node.left, spec) + _items(node.right, spec)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = node.left, node.right
        if isinstance(left, ast.Constant):
            left, right = right, left
        count = right.value if isinstance(right, ast.Constant) else None
        if type(count) is not int or not 0 <= count <= MAX_LAYERS:
            raise Data2VecError(f"{spec!r}: repeat layers 0 to {MAX_LAYERS} times; {_EXAMPLE}")
        items = _items(left, spec) * count
    else:
        raise Data2VecError(f"{spec!r} is no list of convolutions; {_EXAMPLE}")
    if len(items) > MAX_LAYERS:
        raise Data2VecError(f"{spec!r} has more than {MAX_LAYERS} layers")
    return items


def _is_layer(node: ast.List | ast.Tuple) -> bool:
    return bool(node.elts) and all(isinstance(e, ast.Constant) for e in node.elts)


def _layer(node: ast.expr, spec: str) -> ConvLayer:
    elements = node.elts if isinstance(node, ast.List | ast.Tuple) else []
    values = [element.value for element in elements if isinstance(element, ast.Constant)]
    if len(values) != 3 or any(type(value) is not int or value < 1 for value in values):
        raise Data2VecError(f"{spec!r}: each layer has three whole numbers > 0; {_EXAMPLE}")
    channels, width, stride = (int(value) for value in values if isinstance(value, int))
    return channels, width, stride


def frame_count(layers: tuple[ConvLayer, ...], samples: int) -> int:
    """Frames that the convolutions (without padding) make of a number of samples; 0 if there are too few."""
    for _, width, stride in layers:
        samples = (samples - width) // stride + 1
        if samples <= 0:
            return 0
    return samples


def samples_needed(layers: tuple[ConvLayer, ...], frames: int = 1) -> int:
    """The fewest samples that give so many frames."""
    for _, width, stride in reversed(layers):
        frames = (frames - 1) * stride + width
    return frames


def total_stride(layers: tuple[ConvLayer, ...]) -> int:
    """Samples from one frame to the next."""
    stride = 1
    for layer in layers:
        stride *= layer[2]
    return stride
