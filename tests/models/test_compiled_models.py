"""Models under ``torch.compile``: one graph for what a device does by itself, few for changing sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._guards import CompileContext

from data2vec.compilation import compile_regions
from data2vec.masking import MaskSet, masked_index
from data2vec.transformer import TransformerBlock
from tests.models.test_training_rates import build

KINDS = ("text", "image", "audio", "v1 text", "v1 audio", "v1 vision")


class Counting:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Earlier tests compiled the same code."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pretraining(kind: str, rate: str | None = None) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """A model in training without layer drop, its input, and masks and noise as they reach the device."""
    torch.manual_seed(0)
    model, source, length = build(kind, rate, 0.3)
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[0, 2:6] = mask[1, 4:8] = True
    given: dict[str, Any] = {"masks": MaskSet.from_mask(mask), "noise_RJD": torch.randn(2, 4, 16)}
    return model.train(), source, {"mask_BT": mask} if kind.startswith("v1") else given


def on_device(kind: str, model: Any, source: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """The loss of what a device does by itself: front end, student, decoder, loss and teacher."""
    if not kind.startswith("v1"):
        return model(source, **given).loss
    mask, masked = given["mask_BT"], given["masked_N"]
    if kind == "v1 audio":
        found = model.compute(model.student.local_features(source), None, mask, None, masked, 1, 2)
    elif kind == "v1 text":
        found = model.compute(source, None, mask, masked, 1, 2)
    else:
        found = model.compute(source, mask, masked)
    return torch.stack(list(found[-1].losses.values())).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_student_decoder_loss_and_teacher_are_one_graph(kind: str) -> None:
    model, source, given = pretraining(kind)
    if "mask_BT" in given:
        given["masked_N"] = masked_index(given["mask_BT"])
    counted = Counting()
    compiled = torch.compile(partial(on_device, kind), backend=counted, fullgraph=True)
    loss = compiled(model, source, given)
    assert counted.graphs == 1
    torch.testing.assert_close(loss, on_device(kind, model, source, given))


class ByRegion(Counting):
    """Counts the graphs of each region, whatever module it is called of."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int | None] = Counter()

    def __call__(self, graph: Any, inputs: Any) -> Any:
        compiling = CompileContext.current_compile_id()
        assert compiling is not None
        self.of[compiling.frame_id] += 1
        return super().__call__(graph, inputs)


LENGTHS = {"text": (9, 1), "v1 text": (9, 1), "audio": (40, 4), "v1 audio": (40, 4)}


@pytest.mark.parametrize("kind", LENGTHS)
def test_changing_sizes_compile_a_region_at_most_twice_more(kind: str) -> None:
    model, _, _ = pretraining(kind)
    (least, step), counted, first = LENGTHS[kind], ByRegion(), None
    assert compile_regions(model, sizes_change=True, backend=counted) >= 3 + 3 + 1  # blocks, twice, and loss
    for update, (samples, more) in enumerate(((2, 0), (3, 2), (2, 3))):
        length = least + step * more
        source = torch.randn(samples, length) if "audio" in kind else torch.randint(4, 19, (samples, length))
        model(source, update=update).loss.backward()
        first = first or Counter(counted.of)
    assert first is not None and len(first) >= 2
    assert max(first.values()) <= 3, "the blocks of student and teacher are one region"
    assert max((counted.of - first).values(), default=0) <= 2


@pytest.mark.parametrize("kind", ["image", "v1 vision"])
def test_drop_path_of_every_rate_is_one_region(kind: str) -> None:
    """Each block has its rate, and each draw another number of rows."""
    model, source, _ = pretraining(kind)
    blocks = [part for part in model.student.modules() if isinstance(part, TransformerBlock)]
    for index, block in enumerate(blocks):
        block.drop_path = 0.2 + 0.1 * index
    counted = ByRegion()
    compile_regions(model, sizes_change=False, backend=counted)
    source = source[:1].expand(7, *source.shape[1:])
    for update in range(12):
        model(source, update=update).loss.backward()
    assert max(counted.of.values()) <= 3, "the teacher's, the first number of rows, and any number"
