"""What must hold between the values of an audio recipe."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.audio_checks import audio_problems as front_end_problems
from data2vec.config import Data2VecMultiConfig
from data2vec.conv_spec import parse_conv_layers, samples_needed
from data2vec.errors import Data2VecError, Problem, nearest_names
from data2vec.typed import build, to_dict
from data2vec.v1.config import Data2VecAudioConfig

from .audio_components import (
    AudioClassificationTask,
    AudioFinetuningTask,
    AudioPretrainingTask,
    AudioTask,
    CTCCriterion,
    WordErrorModel,
)
from .components import ModelCriterion
from .pretraining_checks import pretraining_problems

if TYPE_CHECKING:
    from .overrides import Override
    from .schema import Recipe

MASK_FIELDS = ("feature_encoder_spec", "mask_prob", "mask_prob_adjust", "mask_length", "inverse_mask",
               "mask_dropout", "clone_batch", "expand_adjacent", "non_overlapping")  # fmt: skip
CTC_METRICS = ("wer", "raw_wer", "uer")
_EVENT_LOGS = ("_predictions", "_targets")  # what the reference's recipe lists; gathered here anyway


def audio_recipe_problems(recipe: Recipe) -> Iterator[Problem]:
    """Problems of tasks, models and criteria of audio."""
    task = recipe.task
    assert isinstance(task, AudioTask)
    if task.sample_rate < 1:
        yield Problem("task.sample_rate", task.sample_rate, "must be > 0")
    for name in ("max_sample_size", "min_sample_size"):
        value = getattr(task, name)
        if value is not None and value < 1:
            yield Problem(f"task.{name}", value, "must be > 0")
    shortest, longest = task.min_sample_size, task.max_sample_size
    if shortest is not None and longest is not None and shortest > longest:
        yield Problem("task.min_sample_size", shortest, f"is more than task.max_sample_size {longest}")
    if not 0.0 < task.subsample <= 1.0:
        yield Problem("task.subsample", task.subsample, "must lie in 0 < share <= 1")
    padded = task.enable_padding or isinstance(task, AudioFinetuningTask | AudioClassificationTask)
    if task.num_batch_buckets and not padded:
        yield Problem("task.num_batch_buckets", task.num_batch_buckets, "needs task.enable_padding=true")
    tokens = recipe.dataset.max_tokens
    if not padded and tokens is not None and longest is not None and longest > tokens:
        rule = f"is more than dataset.max_tokens {tokens}: one utterance would not fit a batch"
        yield Problem("task.max_sample_size", longest, rule)
    if isinstance(task, AudioPretrainingTask):
        yield from _pretraining(recipe, task)
    elif isinstance(task, AudioClassificationTask):
        yield from _events(recipe)
    else:
        yield from _finetuning(recipe)


def _pretraining(recipe: Recipe, task: AudioPretrainingTask) -> Iterator[Problem]:
    yield from pretraining_problems(recipe)
    model, given = recipe.model, task.precompute_mask_config
    if isinstance(model, Data2VecMultiConfig) and model.modality_name != "AUDIO":
        yield Problem("model.supported_modality", model.supported_modality, "audio_pretraining needs AUDIO")
        return
    if given is not None and isinstance(model, Data2VecAudioConfig):
        yield Problem("task.precompute_mask_config", given, "data2vec 1 masks by itself; leave it out")
    if given is not None and task.enable_padding:
        yield Problem("task.precompute_mask_config", given, "needs cropping; set task.enable_padding=false")
    if given is not None and isinstance(model, Data2VecMultiConfig):
        yield from _mask_values(model, given)
    for name, value in (given or {}).items():
        if name not in MASK_FIELDS:
            rule = f"unknown key{nearest_names(name, MASK_FIELDS)}"
            yield Problem(f"task.precompute_mask_config.{name}", value, rule)
        elif name in ("expand_adjacent", "non_overlapping") and value:
            rule = "is not built: no recipe uses it; use false"
            yield Problem(f"task.precompute_mask_config.{name}", value, rule)
    if task.masks_before_crop and given is None:
        yield Problem("task.masks_before_crop", True, "needs task.precompute_mask_config={}")
    if not task.normalize:
        rule = "every data2vec model was trained on normalised audio; set task.normalize=true"
        yield Problem("task.normalize", task.normalize, rule)
    yield from _frames(task, model)


def _mask_values(model: Data2VecMultiConfig, given: Mapping[str, Any]) -> Iterator[Problem]:
    """What the model would say of these values if they were its own."""
    place, of_model = "task.precompute_mask_config", "model.modalities.audio"
    audio = model.modalities.audio
    if audio is None:
        return
    own = {name: value for name, value in given.items() if name in MASK_FIELDS and hasattr(audio, name)}
    found: list[Problem] = []
    changed = build(type(audio), to_dict(audio) | own, of_model, found)
    for problem in [*found, *front_end_problems(model, changed, "model")]:
        name = problem.field.removeprefix(f"{of_model}.")
        if name in own:
            yield Problem(f"{place}.{name}", problem.value, problem.rule)
    clones = given.get("clone_batch", model.clone_batch)
    if clones != model.clone_batch:
        rule = f"must equal model.clone_batch {model.clone_batch}; leave it out"
        yield Problem(f"{place}.clone_batch", clones, rule)


def _frames(task: AudioTask, model: object) -> Iterator[Problem]:
    """An utterance must give some frames."""
    if isinstance(model, Data2VecAudioConfig):
        spec = model.conv_feature_layers
    elif isinstance(model, Data2VecMultiConfig) and model.modalities.audio is not None:
        spec = model.modalities.audio.feature_encoder_spec
    else:
        return
    try:
        needed = samples_needed(parse_conv_layers(spec), 2)
    except Data2VecError:
        return  # the model's own check says so
    for name in ("min_sample_size", "max_sample_size"):
        value = getattr(task, name)
        if value is not None and value < needed:
            yield Problem(f"task.{name}", value, f"gives fewer than two frames; use at least {needed}")


def _finetuning(recipe: Recipe) -> Iterator[Problem]:
    criterion = recipe.criterion
    if not isinstance(criterion, CTCCriterion):
        return
    if criterion.post_process != "letter":
        yield Problem("criterion.post_process", criterion.post_process, "only letter is built")
    found = word_error_model(criterion)
    name = "wer_kenlm_model" if criterion.wer_args is None else "wer_args"
    for text in found.problems if found is not None else ():
        yield Problem(f"criterion.{name}", getattr(criterion, name), text)


def _events(recipe: Recipe) -> Iterator[Problem]:
    for key in recipe.criterion.log_keys if isinstance(recipe.criterion, ModelCriterion) else []:
        if key not in _EVENT_LOGS:
            rule = f"the model reports {', '.join(_EVENT_LOGS)}{nearest_names(key, _EVENT_LOGS)}"
            yield Problem("criterion.log_keys", key, rule)


def word_error_model(criterion: CTCCriterion) -> WordErrorModel | None:
    """The language model of a criterion, from its single fields or from ``wer_args``; ``None`` without one.

    ``wer_args`` is a list, or one in text, whose names may be bare: a shell takes the quotes off the
    reference's command line.
    """
    problems: list[str] = []
    if criterion.wer_args is not None:
        given = criterion.wer_args
        values = _list(given) if isinstance(given, str) else given
        if values is None or len(values) != 4:
            text = "must be a list of four: [language model, lexicon, weight, word score]"
            return WordErrorModel("", "", problems=(text,))
        path, lexicon = str(values[0]), str(values[1])
        try:
            weight, score = float(values[2]), float(values[3])
        except (TypeError, ValueError):
            return WordErrorModel(path, lexicon, problems=("weight and word score must be numbers",))
    elif criterion.wer_kenlm_model is not None:
        path, lexicon = criterion.wer_kenlm_model, criterion.wer_lexicon or ""
        weight, score = criterion.wer_lm_weight, criterion.wer_word_score
        if not lexicon:
            problems.append("needs criterion.wer_lexicon")
    else:
        return None
    return WordErrorModel(path, lexicon, weight, score, tuple(problems))


def without_language_model(recipe: Recipe, given: Sequence[Override], notes: list[str]) -> list[Problem]:
    """``criterion.wer_*`` beside no language model: refused where it was asked for, noted in a file."""
    criterion = recipe.criterion
    if not isinstance(criterion, CTCCriterion) or criterion.wer_args or criterion.wer_kenlm_model:
        return []
    asked = {(o.key, o.value) for o in given if isinstance(o.value, str | int | float)}
    fields = ("wer_lexicon", "wer_lm_weight", "wer_word_score")
    values = {f"criterion.{name}": getattr(criterion, name) for name in fields}
    wrong = [name for name, value in values.items() if (name, value) in asked]
    if criterion.wer_lexicon is not None and "criterion.wer_lexicon" not in wrong:
        notes.append("criterion.wer_lexicon: no effect here; only used with criterion.wer_kenlm_model")
    return [Problem(name, values[name], "needs criterion.wer_kenlm_model") for name in wrong]


def missing_files(criterion: CTCCriterion) -> list[Problem]:
    """Files of the language model that are not here: asked before training decodes, not to read a recipe."""
    found = word_error_model(criterion)
    if found is None:
        return []
    fields = ("wer_args",) * 2 if criterion.wer_args is not None else ("wer_kenlm_model", "wer_lexicon")
    rule = "no such file; give your own, or validate without a language model: criterion.wer_args=null"
    return [
        Problem(f"criterion.{name}", path, rule)
        for name, path in zip(fields, (found.path, found.lexicon), strict=True)
        if not Path(path).is_file()
    ]


def _list(text: str) -> list[str | float] | None:
    """The values of a list in text: literals, or bare words between brackets and commas."""
    try:
        values = ast.literal_eval(text)
        return list(values) if isinstance(values, list | tuple) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        inner = text.strip()
        if not (inner.startswith(("[", "(")) and inner.endswith(("]", ")"))):
            return None
        return [part.strip().strip("'\"") for part in inner[1:-1].split(",")]
