"""The tasks that recipes can name: one entry each, with what must be known before anything is built."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data2vec.config import Data2VecMultiConfig
from data2vec.lm.config import TransformerLMConfig
from data2vec.mae_config import MaeConfig
from data2vec.metrics import EVENT_METRICS
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text_config import Data2VecTextConfig

from .audio_checks import CTC_METRICS, audio_recipe_problems, without_language_model
from .audio_components import (
    AudioClassificationModel,
    AudioClassificationTask,
    AudioFinetuningTask,
    AudioPretrainingTask,
    CTCCriterion,
    Wav2VecCTC,
)
from .components import ModelCriterion, register_component
from .image_checks import CLASSIFICATION_METRICS, image_problems
from .image_components import (
    Data2VecImageClassification,
    ImageClassificationTask,
    ImagePretrainingTask,
    MaeImageClassification,
    MaeImageClassificationTask,
    MaeImagePretrainingTask,
)
from .language_checks import PERPLEXITY, language_problems
from .language_components import AdaptiveLossCriterion, CrossEntropyCriterion, LanguageModelingTask
from .pretraining_checks import pretraining_problems, probe_metrics
from .text_checks import masked_lm_problems, reported_sentence_metrics, sentence_problems
from .text_components import (
    MaskedLMTask,
    Roberta,
    SentencePredictionCriterion,
    SentencePredictionTask,
    TextClassification,
)

if TYPE_CHECKING:
    from data2vec.errors import Problem

    from .overrides import Override
    from .schema import Recipe

_TOKENS = "the folder that d2v prepare text wrote (dict.txt, train.bin, train.idx)"
_IMAGES = "a folder with train/CLASS/..., or the shards that d2v prepare images wrote"


def _no_metrics(recipe: Recipe) -> Mapping[str, bool]:
    return {}


def _none_unused(recipe: Recipe, given: Sequence[Override], notes: list[str]) -> list[Problem]:
    return []


def _always(names: Iterable[str], larger_is_better: bool) -> Callable[[Recipe], Mapping[str, bool]]:
    return lambda recipe: dict.fromkeys(names, larger_is_better)


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A task.

    Attributes:
        models: components that ``model`` may be.
        room: its ``TrainingTask``, or ``package.module:Class`` of it, imported when a run needs it.
        rooms: those of models that need another one.
        data: what ``task.data`` is, for a message that it is not there.
        modality: what it reads, in small letters; names its MLflow experiment.
        criteria: components that ``criterion`` may be.
        problems: what is impossible about a recipe of this task; model and criterion may be of other tasks.
        metrics: what validation reports besides the loss, with whether larger is better.
        unused: options that have no effect beside others: problems of those that the command line gives,
            notes about those of a file.
        words: parts of recipe names that say that a recipe is about this modality, for suggestions.
        sweep_data: ``package.module:Class`` that makes the data of a sweep's trials, as ``RawGlue`` does.
        after_sweep: ``package.module:function`` of what is made of a sweep's winners of this task besides
            their registration, as ``write_test_files`` does.
    """

    models: tuple[type[Any], ...]
    room: str | type[Any]
    data: str
    modality: str
    criteria: tuple[type[Any], ...] = (ModelCriterion,)
    problems: Callable[[Recipe], Iterable[Any]] = pretraining_problems
    metrics: Callable[[Recipe], Mapping[str, bool]] = _no_metrics
    rooms: Mapping[type[Any], str] = field(default_factory=dict)
    unused: Callable[[Recipe, Sequence[Override], list[str]], list[Problem]] = _none_unused
    words: tuple[str, ...] = ()
    sweep_data: str | None = None
    after_sweep: str | None = None


def _ours(module: str, name: str) -> str:
    return f"d2v_platform.tasks.{module}:{name}"


_text = functools.partial(TaskEntry, modality="text", words=("text", "txt", "language", "roberta", "words"))
_audio = functools.partial(
    TaskEntry,
    modality="audio",
    problems=audio_recipe_problems,
    words=("audio", "speech", "wav2vec", "vox", "libri"),
)
_images = functools.partial(
    TaskEntry,
    modality="image",
    data=_IMAGES,
    problems=image_problems,
    words=("image", "vision", "mae", "beit"),
)
_ENTRIES: dict[type[Any], TaskEntry] = {
    MaskedLMTask: _text(
        models=(Data2VecMultiConfig, Data2VecTextConfig),
        room=_ours("text_pretraining", "TextPretraining"),
        data=_TOKENS,
        problems=masked_lm_problems,
        metrics=probe_metrics,
    ),
    SentencePredictionTask: _text(
        models=(TextClassification, Roberta),
        criteria=(SentencePredictionCriterion,),
        room=_ours("sentence_prediction", "SentencePrediction"),
        data="the <TASK>-bin folder that d2v prepare glue wrote",
        sweep_data="d2v_platform.sweeps.glue_data:RawGlue",
        after_sweep="d2v_platform.sweeps.glue_submission:write_test_files",
        problems=sentence_problems,
        metrics=reported_sentence_metrics,
    ),
    LanguageModelingTask: _text(
        models=(TransformerLMConfig,),
        criteria=(CrossEntropyCriterion, AdaptiveLossCriterion),
        room=_ours("language_modeling", "LanguageModeling"),
        data=_TOKENS,
        problems=language_problems,
        metrics=_always((PERPLEXITY,), False),
    ),
    AudioPretrainingTask: _audio(
        models=(Data2VecMultiConfig, Data2VecAudioConfig),
        room=_ours("audio_pretraining", "AudioPretraining"),
        data="the folder that d2v prepare audio-manifest wrote (train.tsv)",
        metrics=probe_metrics,
    ),
    AudioFinetuningTask: _audio(
        models=(Wav2VecCTC,),
        criteria=(CTCCriterion,),
        room=_ours("audio_finetuning", "AudioFinetuning"),
        data="the folder that d2v prepare audio-manifest and audio-labels wrote",
        unused=without_language_model,
        after_sweep="d2v_platform.sweeps.ctc_decoding:decode_winners",
        metrics=_always(CTC_METRICS, False),
    ),
    AudioClassificationTask: _audio(
        models=(AudioClassificationModel,),
        room=_ours("audio_classification", "AudioClassification"),
        data="the folder that d2v prepare audio-manifest and audio-events wrote",
        metrics=_always(EVENT_METRICS, True),
    ),
    MaeImagePretrainingTask: _images(
        models=(Data2VecMultiConfig, MaeConfig),
        room=_ours("image_pretraining", "ImagePretraining"),
        rooms={MaeConfig: _ours("mae_pretraining", "MaePretraining")},
        metrics=probe_metrics,
    ),
    ImagePretrainingTask: _images(
        models=(Data2VecVisionConfig,),
        room=_ours("image_pretraining", "ImagePretraining"),
        metrics=probe_metrics,
    ),
    MaeImageClassificationTask: _images(
        models=(MaeImageClassification,),
        room=_ours("image_classification", "ImageClassification"),
        metrics=_always(CLASSIFICATION_METRICS, True),
    ),
    ImageClassificationTask: _images(
        models=(Data2VecImageClassification,),
        room=_ours("image_classification", "ImageClassification"),
        metrics=_always(CLASSIFICATION_METRICS, True),
    ),
}


def entries() -> list[TaskEntry]:
    """Of all tasks."""
    return list(_ENTRIES.values())


def entry_of(task: object) -> TaskEntry:
    """The entry of a recipe's ``task`` component."""
    return _ENTRIES[type(task)]


def imported(name: str) -> Any:
    """What ``package.module:name`` of an entry stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def modality_of_name(name: str) -> str | None:
    """What a recipe's name says that it is about, if it says so."""
    words = {entry.modality: entry.words for entry in entries()}
    return next((found for found in sorted(words) if any(word in name for word in words[found])), None)


def register_task(
    name: str,
    options: type[Any],
    entry: TaskEntry,
    *,
    models: Mapping[str, type[Any]] | None = None,
    criteria: Mapping[str, type[Any]] | None = None,
) -> None:
    """Let recipes name a task of your own as ``task._name=name``.

    Args:
        name: of the task.
        options: its fields: a dataclass with a default for each; ``data`` is one of them.
        entry: everything else.
        models: names of those of ``entry.models`` that are new.
        criteria: names of those of ``entry.criteria`` that are new.

    Raises:
        ConfigError: a name is taken.
    """
    register_component("task", name, options)
    for group, new in (("model", models), ("criterion", criteria)):
        for key, cls in (new or {}).items():
            register_component(group, key, cls)
    _ENTRIES[options] = entry
