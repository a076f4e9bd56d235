"""How an audio recipe's clips are read, whatever is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data2vec.artifact import Artifact
from data2vec.audio_model import SAMPLE_RATE
from data2vec.audio_trunk import AudioConfig, TrunkOptions, trunk_config
from data2vec.data.audio import AudioDataset, AudioOptions
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import WORD_END
from data2vec.errors import DataError

from ..recipe.audio_components import AudioClassificationTask, AudioFinetuningTask, AudioPretrainingTask
from ..recipe.schema import Recipe
from .task import TrainingTask


class OnAudio(TrainingTask):
    """What all tasks on recordings have."""

    speed_unit = ("s of audio", "audio_s", SAMPLE_RATE)

    @staticmethod
    def size_in_words(recipe: Recipe, dataset: AudioDataset) -> str:
        """Recordings and their length."""
        task = recipe.task
        assert isinstance(task, AudioPretrainingTask | AudioFinetuningTask | AudioClassificationTask)
        seconds = float(dataset.manifest.frames.sum()) / task.sample_rate
        length = f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
        return f"{len(dataset):,} recordings, {length}"

    @staticmethod
    def network(recipe: Recipe, parent: Artifact | None) -> object:
        """A pretrained network with the recipe's dropouts and frozen parts."""
        model, config = recipe.model, None if parent is None else parent.model_config
        if isinstance(model, TrunkOptions) and isinstance(config, AudioConfig):
            return trunk_config(config, model)
        return TrainingTask.network(recipe, parent)


def audio_options(
    recipe: Recipe, subset: str, *, pad: bool, drop_longer: bool, labels: str | None = None
) -> AudioOptions:
    """The recipe's options for one subset; validation takes all of it, in batches of its own size.

    Args:
        recipe: of an audio task.
        subset: which.
        pad: clips are padded to the longest of a batch instead of cropped to the shortest.
        drop_longer: training leaves out clips that are longer than a batch.
        labels: extension of the label files.
    """
    task, settings = recipe.task, recipe.dataset
    assert isinstance(task, AudioPretrainingTask | AudioFinetuningTask | AudioClassificationTask)
    training = subset == settings.train_subset
    return AudioOptions(
        sample_rate=task.sample_rate,
        normalize=task.normalize,
        pad=pad,
        max_sample_size=task.max_sample_size,
        min_sample_size=task.min_sample_size,
        labels=labels,
        subsample=task.subsample if training else 1.0,
        num_batch_buckets=task.num_batch_buckets,
        skip_broken=task.skip_broken,
        max_tokens=settings.max_tokens if training else settings.max_tokens_valid,
        drop_longer=training and drop_longer,
    )


def audio_samples(batch: Mapping[str, Any]) -> int:
    """Samples of a batch's clips without their padding, for the speed figures."""
    padding = batch["padding_mask"]
    return batch["source"].numel() - (0 if padding is None else int(padding.sum()))


def check_symbols(dataset: AudioDataset, letters: Dictionary, remedy: str) -> str | None:
    """Labels of another alphabet must not turn into ``<unk>`` in silence.

    Args:
        dataset: with labels.
        letters: the model's.
        remedy: against a dictionary of other labels.

    Returns:
        One line if a few labels are unknown.

    Raises:
        DataError: most labels are unknown.
    """
    symbols: dict[str, int] = {}
    for index in range(len(dataset)):
        for symbol in dataset.label_line(index).split():
            symbols[symbol] = symbols.get(symbol, 0) + 1
    unknown = {symbol: n for symbol, n in symbols.items() if letters.index(symbol) == Dictionary.unk}
    # Every dictionary of letters has the delimiter, so it says nothing about the others.
    share = sum(unknown.values()) / max(sum(n for symbol, n in symbols.items() if symbol != WORD_END), 1)
    if not unknown:
        return None
    shown = ", ".join(f"{symbol!r} x {n}" for symbol, n in sorted(unknown.items(), key=lambda x: -x[1])[:8])
    where = f"{dataset.folder / dataset.split}.{dataset.options.labels}"
    if share > 0.5:
        raise DataError(
            f"{where}: {share:.0%} of the labels are not in the dictionary ({shown}); it belongs to other "
            f"labels: {remedy}, or make labels in its letters (upper case)"
        )
    return f"{where}: {100 * share:.2f} % of the labels become <unk>: {shown}"
