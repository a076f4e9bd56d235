"""How an audio recipe's clips are read, whatever is trained on them."""

from __future__ import annotations

from data2vec.data.speech import SpeechOptions

from ..recipe.audio_components import AudioClassificationTask, AudioFinetuningTask, AudioPretrainingTask
from ..recipe.schema import Recipe


def speech_options(
    recipe: Recipe, subset: str, *, pad: bool, drop_longer: bool, labels: str | None = None
) -> SpeechOptions:
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
    return SpeechOptions(
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
