"""The text input of a training: prepared blocks read, ordered and collated as the loop gets them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from d2v_platform.tasks.batches import Share, make_loader
from d2v_platform.tasks.task import batches_of
from d2v_platform.tasks.text_blocks import open_blocks
from data2vec.data.dictionary import Dictionary
from data2vec.data.indexed import IndexedTokensWriter
from data2vec.data.masked_lm import TextBlocksDataset

from .measure import Case
from .pretraining import load

_BATCHES = 1000  # of one measured step
_WORDS = 50000


def case(recipe_name: str, samples: int, length: int) -> Case:
    """Reading batches of B x T tokens, with a recipe's settings, in the process that trains.

    Args:
        recipe_name: a text pretraining recipe.
        samples: B.
        length: T.
    """
    return Case(
        name=f"input pipeline, {samples} x {length} tokens",
        build=build_epoch,
        options={"recipe_name": recipe_name, "samples": samples, "length": length},
        matrix_flops=0.0,
        units=_BATCHES * samples * length,
        unit="tokens",
    )


def build_epoch(recipe_name: str, samples: int, length: int) -> Callable[[int], None]:
    """One pass over made-up data; the argument is the number of passes made."""
    folder = tempfile.TemporaryDirectory(prefix="d2v_input_")  # goes with the function below, which holds it
    data = Path(folder.name)
    write_tokens(data, {"train": _BATCHES * samples}, length, _WORDS)
    overrides = [f"dataset.batch_size={samples}", f"task.tokens_per_sample={length}"]
    recipe = load(recipe_name, overrides, str(data))
    dataset = open_blocks(TextBlocksDataset, recipe, recipe.dataset.train_subset)

    def read(passes: int) -> None:
        assert folder
        batches = batches_of(dataset, recipe, passes + 1, True, rebuild=False)
        loader = make_loader(dataset, Share(batches, 0, 1, 0, 1))
        tokens = sum(batch["source"].numel() for batch in loader)
        assert tokens == _BATCHES * samples * length, tokens

    return read


def write_tokens(folder: Path, splits: dict[str, int], length: int, words: int) -> None:
    """A prepared folder of random words.

    Args:
        folder: where.
        splits: lines of each split.
        length: tokens of a block, ``<s>`` included: a line and its end fill one.
        words: size of the vocabulary.
    """
    dictionary = Dictionary.from_counts({str(word): 100 for word in range(words)})
    dictionary.save(folder / "dict.txt")
    random = np.random.default_rng(0)
    for split, lines in splits.items():
        writer = IndexedTokensWriter(folder / split, len(dictionary.with_mask()))
        for _ in range(lines):
            writer.add_line(dictionary.encode_line(random.integers(words, size=length - 2).tolist()))
        writer.close()
