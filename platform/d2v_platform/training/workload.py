"""What a recipe asks a worker to compute: the model, and the micro-batches that its data makes.

Where the data can be read, real batches are counted; otherwise every micro-batch is taken to be as large as
the recipe allows, and the plan says so.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data2vec.artifact import Artifact, read_artifact
from data2vec.audio_trunk import AudioConfig, TrunkOptions, trunk_config
from data2vec.config import (
    AudioModalityConfig,
    Data2VecMultiConfig,
    ImageModalityConfig,
)
from data2vec.conv_spec import frame_count, parse_conv_layers
from data2vec.data.dictionary import Dictionary
from data2vec.errors import ConfigError, Data2VecError
from data2vec.flops import StepCost, StepShape, Storage, finetuning_step, pretraining_step
from data2vec.lm.config import TransformerLMConfig
from data2vec.lm.flops import as_multi as as_blocks
from data2vec.lm.flops import language_model_step
from data2vec.mae_config import MaeConfig
from data2vec.mae_flops import autoencoder_step
from data2vec.v1.sizes import as_multi

from ..recipe.components import SentencePredictionTask
from ..recipe.entries import task_class
from ..recipe.image_components import ImageClassifierModel
from ..recipe.schema import Recipe

PUBLISHED_VOCABULARY = 50265  # of the released text models; where the data's dictionary cannot be read
_SAMPLED = 2000  # micro-batches of an epoch whose size is looked at


@dataclass(frozen=True)
class Workload:
    """Micro-batches of a recipe.

    Attributes:
        recipe: the recipe.
        config: the network.
        vocab_size: of a text model, else 0.
        pretraining: with teacher, clones and decoder.
        sizes: (samples, length) of the epoch's micro-batches, with how often each was seen.
        epoch_micro_batches: micro-batches of an epoch; ``None`` if the data was not read.
        dataset: the opened training data, ``None`` if it was not read.
        sees_all: the student sees masked positions too, as embeddings (data2vec 1).
        language: a language model, whose layers ``config`` describes.
        branch_scales: each block scales its branches (data2vec 1 for images).
    """

    recipe: Recipe
    config: Data2VecMultiConfig
    vocab_size: int
    pretraining: bool
    sizes: Counter[tuple[int, int]]
    epoch_micro_batches: int | None
    dataset: Any = None
    sees_all: bool = False
    language: TransformerLMConfig | None = None
    branch_scales: bool = False

    def under(self, recipe: Recipe) -> Workload:
        """The same model and data under another recipe."""
        sizes, count = _sizes(recipe, self.config, self.dataset)
        return dataclasses.replace(self, recipe=recipe, sizes=sizes, epoch_micro_batches=count)

    def shape(self, samples: int, length: int) -> StepShape:
        """A micro-batch as the model sees it."""
        config, modality = self.config, self.config.modality
        raw, positions = 0, length
        if isinstance(modality, ImageModalityConfig):
            positions = (modality.input_size // modality.patch_size) ** 2
        elif isinstance(modality, AudioModalityConfig):
            raw = length
            positions = max(frame_count(parse_conv_layers(modality.feature_encoder_spec), raw), 1)
        kept, clones = positions, 1
        if self.pretraining and not self.sees_all:
            clones = config.clone_batch
            visible = int(positions * (1.0 - modality.mask_prob))
            if isinstance(modality, AudioModalityConfig) and not modality.inverse_mask:
                visible = positions - int(positions * modality.mask_prob)
            kept = visible + round((positions - visible) * modality.keep_masked_pct)
        return StepShape(samples=samples, positions=positions, kept=max(kept, 1), clones=clones, raw=raw)

    def cost(self, size: tuple[int, int], storage: Storage, accumulates: bool, workers: int = 1) -> StepCost:
        """What a micro-batch of so many samples and such a length costs one of the workers."""
        if self.language is not None:
            return language_model_step(
                self.language,
                self.shape(*size),
                vocab_size=self.vocab_size,
                storage=storage,
                accumulates=accumulates,
                checkpoint_activations=self.recipe.platform.checkpoint_activations,
                workers=workers,
            )
        shared: dict[str, Any] = {
            "storage": storage,
            "accumulates": accumulates,
            "checkpoint_activations": self.recipe.platform.checkpoint_activations,
            "workers": workers,
        }
        if isinstance(self.recipe.model, MaeConfig):
            return autoencoder_step(self.recipe.model, self.shape(*size), **shared)
        shared |= {"vocab_size": self.vocab_size, "branch_scales": self.branch_scales}
        if self.pretraining:
            shared["clones_at_once"] = self.recipe.platform.clone_chunk
            return pretraining_step(self.config, self.shape(*size), **shared)
        holder = self.recipe.task if hasattr(self.recipe.task, "num_classes") else self.recipe.model
        listed = len(getattr(self.dataset, "classes", ()))
        classes = max(int(getattr(holder, "num_classes", 1)), listed, 1)
        return finetuning_step(self.config, self.shape(*size), num_classes=classes, **shared)

    def largest(
        self, storage: Storage, accumulates: bool, workers: int = 1
    ) -> tuple[tuple[int, int], StepCost]:
        """The micro-batch that needs most memory."""
        costs = [(size, self.cost(size, storage, accumulates, workers)) for size in self.sizes]
        return max(costs, key=lambda pair: pair[1].peak_bytes)

    def fingerprint(self) -> str | None:
        """Of the training data; ``None`` if it was not read."""
        held = getattr(self.dataset, "source", self.dataset)
        return None if held is None else held.fingerprint()

    def data_size(self) -> str | None:
        """How much training data it is, in words; ``None`` if it was not read."""
        if self.dataset is None:
            return None
        return task_class(self.recipe).size_in_words(self.recipe, self.dataset)

    def mean_flops(self) -> float:
        """Work of a micro-batch, on average."""
        total = sum(
            self.cost(size, Storage(), False).flops * count for size, count in sorted(self.sizes.items())
        )
        return total / self.sizes.total()


def make_workload(recipe: Recipe, pretrained: Path | None) -> Workload | None:
    """Size a recipe's micro-batches.

    Args:
        recipe: a checked recipe.
        pretrained: model folder that a fine-tuning recipe names.

    Returns:
        ``None`` for a model whose cost is not described here.
    """
    if isinstance(recipe.model, TransformerLMConfig):
        return _language_workload(recipe, recipe.model, training_data(recipe))
    own = as_multi(recipe.model)
    if own is not None:
        network, config, dataset = recipe.model, own, training_data(recipe)
        vocabulary = _vocabulary(recipe, dataset) if own.modality_name == "TEXT" else 0
    else:
        if pretrained is None:
            return None
        artifact = read_artifact(pretrained)
        network = finetuned_trunk(recipe, artifact)
        found = as_multi(network)
        if found is None:
            return None
        config, dataset = found, training_data(recipe)
        vocabulary = artifact.vocab_size if found.modality_name == "TEXT" else 0
    sizes, count = _sizes(recipe, config, dataset)
    return Workload(
        recipe=recipe,
        config=config,
        vocab_size=vocabulary,
        pretraining=own is not None,
        sizes=sizes,
        epoch_micro_batches=count,
        dataset=dataset,
        sees_all=own is not None and not isinstance(recipe.model, Data2VecMultiConfig | MaeConfig),
        branch_scales=getattr(network, "layer_scale_init_value", 0.0) > 0.0,
    )


def _language_workload(recipe: Recipe, model: TransformerLMConfig, dataset: Any) -> Workload:
    config = as_blocks(model)
    sizes, count = _sizes(recipe, config, dataset)
    vocabulary = _vocabulary(recipe, dataset)
    if found := model.vocabulary_problems(vocabulary):
        raise ConfigError(found)
    return Workload(recipe, config, vocabulary, False, sizes, count, dataset, language=model)


def finetuned_trunk(recipe: Recipe, parent: Artifact) -> object:
    """The pretrained network as a fine-tuning recipe changes it: dropouts, frozen parts, size of images.

    A model of another modality than the recipe's is taken as it is: training refuses it.
    """
    from ..tasks import image_classification, sentence_prediction

    model, config = recipe.model, parent.model_config
    if isinstance(model, TrunkOptions) and isinstance(config, AudioConfig):
        return trunk_config(config, model)
    if isinstance(model, ImageClassifierModel) and parent.modality == "IMAGE":
        return image_classification.trunk_config(recipe, parent)
    if isinstance(recipe.task, SentencePredictionTask) and parent.modality == "TEXT":
        return sentence_prediction.trunk_config(recipe, parent)
    return config


def matrix_work(recipe: Recipe, module: nn.Module) -> Callable[[int, int], float] | None:
    """FLOPs of a micro-batch of so many samples of such a length, for the model that is being trained.

    Work that activation checkpointing does twice counts once. ``None`` for a model that we cannot price.
    """
    if isinstance(recipe.model, TransformerLMConfig):
        size = int(getattr(module, "vocab_size", 0))
        priced = Workload(
            recipe, as_blocks(recipe.model), size, False, Counter(), None, language=recipe.model
        )
        return functools.cache(lambda samples, length: priced.cost((samples, length), Storage(), False).flops)
    networks = [found for part in module.modules() if (found := as_multi(getattr(part, "config", None)))]
    if not networks:
        return None
    pretraining = as_multi(recipe.model) is not None
    once = dataclasses.replace(recipe.platform, checkpoint_activations=False)
    workload = Workload(
        recipe=dataclasses.replace(recipe, platform=once),
        config=networks[0],
        vocab_size=0,
        pretraining=pretraining,
        sizes=Counter(),
        epoch_micro_batches=None,
        sees_all=not isinstance(recipe.model, Data2VecMultiConfig | MaeConfig),
    )

    @functools.cache
    def work(samples: int, length: int) -> float:
        return workload.cost((samples, length), Storage(), False).flops

    return work


def training_data(recipe: Recipe) -> Any:
    """The opened training subset, or ``None`` where it cannot be read (training says why)."""
    from ..tasks import open_subset

    try:
        return open_subset(recipe, recipe.dataset.train_subset)
    except (Data2VecError, OSError):
        return None


def smaller_batches(recipe: Recipe, factor: int) -> tuple[Recipe, str] | None:
    """The same update from micro-batches a ``factor``-th as large, and the overrides that ask for it."""
    data, world = recipe.dataset, recipe.distributed_training
    changed: dict[str, int] = {}
    for name in ("batch_size", "max_tokens"):
        value = getattr(data, name)
        if value is not None:
            if value % factor:
                return None
            changed[name] = value // factor
    longest = getattr(recipe.task, "max_sample_size", None)
    if longest is not None and changed.get("max_tokens", longest) < longest:
        return None  # one clip would not fit such a batch
    size, model = world.distributed_world_size * factor, recipe.model
    words = [f"dataset.{name}={value}" for name, value in changed.items()]
    words.append(f"distributed_training.distributed_world_size={size}")
    if isinstance(model, Data2VecMultiConfig) and model.cls_loss > 0:
        # Its weight grows with the rows of a micro-batch, as in the reference.
        model = dataclasses.replace(model, cls_loss=model.cls_loss * factor)
        words.append(f"model.cls_loss={model.cls_loss:g}")
    made = dataclasses.replace(
        recipe,
        model=model,
        dataset=dataclasses.replace(data, **changed),
        distributed_training=dataclasses.replace(world, distributed_world_size=size),
    )
    return made, " ".join(words)


def _sizes(
    recipe: Recipe, config: Data2VecMultiConfig, dataset: Any
) -> tuple[Counter[tuple[int, int]], int | None]:
    """How large the first epoch's micro-batches are and how many; full ones where the data was not read."""
    from ..tasks.task import batches_of

    if dataset is None:
        length = _longest(recipe, config)
        return Counter({(_full_batch(recipe, length), length): 1}), None
    batches = batches_of(dataset, recipe, 1, True, rebuild=False)
    lengths, step = np.asarray(dataset.sizes), max(1, len(batches) // _SAMPLED)
    seen = (batches[i] for i in range(0, len(batches), step))
    return Counter((len(batch), int(lengths[batch].max())) for batch in seen), len(batches)


def _vocabulary(recipe: Recipe, dataset: Any) -> int:
    if dataset is not None:
        return len(dataset.dictionary)
    try:
        return len(Dictionary.load(Path(recipe.task.data.split(":")[0]) / "dict.txt").with_mask())
    except (Data2VecError, OSError):
        return PUBLISHED_VOCABULARY


def _longest(recipe: Recipe, config: Data2VecMultiConfig) -> int:
    """The longest sample that the recipe lets through, in tokens or waveform samples; 1 for images."""
    if config.modality_name == "IMAGE":
        return 1
    for name in ("tokens_per_sample", "max_positions", "max_sample_size"):
        value = getattr(recipe.task, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return recipe.dataset.max_tokens or 1


def _full_batch(recipe: Recipe, length: int) -> int:
    data = recipe.dataset
    limits = [data.batch_size] if data.batch_size else []
    if data.max_tokens:
        limits.append(max(data.max_tokens // length, 1))
    count, multiple = min(limits, default=1), data.required_batch_size_multiple
    return count if count < multiple else count - count % multiple
