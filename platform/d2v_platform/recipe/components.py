"""The recipe groups that are chosen by ``_name``: task, model, criterion, optimizer, lr_scheduler.

Field names and defaults are the reference's; formulas stand beside the code that computes them
(``data2vec.schedules``, ``data2vec.optim``). The trailing comment of a field is its documentation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data2vec.config import Data2VecMultiConfig
from data2vec.errors import ConfigError, Problem
from data2vec.lm.config import TransformerLMConfig
from data2vec.mae_config import MaeConfig
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image_config import Data2VecVisionConfig
from data2vec.v1.text_config import Data2VecTextConfig

from .audio_components import (
    AudioClassificationModel,
    AudioClassificationTask,
    AudioFinetuningTask,
    AudioPretrainingTask,
    CTCCriterion,
    Wav2VecCTC,
)
from .image_components import (
    Data2VecImageClassification,
    ImageClassificationData,
    ImageClassificationTask,
    ImageClassifierModel,
    ImagePretraining,
    ImagePretrainingTask,
    MaeImageClassification,
    MaeImageClassificationTask,
    MaeImagePretrainingTask,
)
from .language_components import (
    AdaptiveLossCriterion,
    CrossEntropyCriterion,
    LanguageCriterion,
    LanguageModelingTask,
)
from .text_components import (
    MaskedLMTask,
    Roberta,
    SentencePredictionCriterion,
    SentencePredictionTask,
    TextClassification,
)


@dataclass(kw_only=True)
class ModelCriterion:
    """The model computes its own losses (pretraining)."""

    loss_weights: dict[str, float] = field(default_factory=dict)  # weight of each named loss; empty = all 1
    log_keys: list[str] = field(default_factory=list)  # values of the model to log besides the losses


@dataclass(kw_only=True)
class AdamOptions:
    """Adam with decoupled weight decay, as the reference computes it."""

    adam_betas: tuple[float, ...] = (0.9, 0.999)  # decay of the two moments
    adam_eps: float = 1e-8  # added to the root of the second moment before bias correction
    weight_decay: float = 0.0  # decoupled: p -= lr * weight_decay * p


@dataclass(kw_only=True)
class CosineSchedule:
    """Linear warm-up, then a half cosine to ``min_lr``."""

    warmup_updates: int = 0  # updates of linear warm-up
    warmup_init_lr: float = -1.0  # rate at update 0; -1 = min_lr
    min_lr: float = 0.0  # rate at the end
    t_mult: float = 1.0  # each period is this much longer than the one before
    lr_period_updates: float = -1.0  # updates of the first period; -1 = max_update - warmup_updates
    lr_shrink: float = 0.1  # factor of the peak and of min_lr from one period to the next
    max_update: int = 0  # length of the run


@dataclass(kw_only=True)
class TriStageSchedule:
    """Linear warm-up, constant, exponential decay, constant."""

    warmup_steps: int = 0  # updates of warm-up (without phase_ratio)
    hold_steps: int = 0  # updates at the peak
    decay_steps: int = 0  # updates of decay
    phase_ratio: tuple[float, ...] | None = None  # the three phases as fractions of max_update; sum 1
    init_lr_scale: float = 0.01  # rate at update 0 / peak
    final_lr_scale: float = 0.01  # rate after the decay / peak
    max_update: int = 0  # length of the run


@dataclass(kw_only=True)
class PolynomialSchedule:
    """Linear warm-up, then polynomial decay."""

    warmup_updates: int = 0  # updates of linear warm-up
    end_learning_rate: float = 0.0  # rate at the end
    power: float = 1.0  # 1 = linear decay
    total_num_update: int = 0  # update at which the decay ends


@dataclass(kw_only=True)
class FixedSchedule:
    """The rate of the epoch, after linear warm-up."""

    warmup_updates: int = 0  # updates of linear warm-up


@dataclass(kw_only=True)
class PassThrough:
    """Every group of the composite optimizer has its own schedule."""


Schedule = CosineSchedule | TriStageSchedule | PolynomialSchedule | FixedSchedule


@dataclass(kw_only=True)
class OptimizerGroup:
    """Optimizer and schedule of one group of parameters."""

    lr: list[float] | None = None  # peak rate by epoch; null = optimization.lr
    lr_float: float | None = None  # peak rate; wins over lr
    optimizer: AdamOptions = field(default_factory=AdamOptions)  # adam
    lr_scheduler: Schedule = field(
        default_factory=FixedSchedule
    )  # cosine, tri_stage, polynomial_decay or fixed


@dataclass(kw_only=True)
class Composite:
    """Named groups of parameters, each with its own optimizer and schedule."""

    groups: dict[str, OptimizerGroup] = field(
        default_factory=dict
    )  # by parameter group: default, decoder, ...
    dynamic_groups: bool = (
        False  # parameters with overrides (such as a layer's lr scale) form groups of their own
    )


ImageTask = ImagePretraining | ImageClassificationData
TextTask = MaskedLMTask | SentencePredictionTask | LanguageModelingTask
AnyAudioTask = AudioPretrainingTask | AudioFinetuningTask | AudioClassificationTask
Task = TextTask | AnyAudioTask | ImageTask
Model = (
    Data2VecMultiConfig | Data2VecTextConfig | TextClassification | Roberta | Data2VecAudioConfig | Wav2VecCTC
    | AudioClassificationModel | Data2VecVisionConfig | MaeConfig | ImageClassifierModel | TransformerLMConfig
)  # fmt: skip
Criterion = ModelCriterion | SentencePredictionCriterion | CTCCriterion | LanguageCriterion
Optimizer = AdamOptions | Composite
LRScheduler = Schedule | PassThrough

CHOICES: dict[str, dict[str, type[Any]]] = {
    "task": {
        "masked_lm": MaskedLMTask,
        "sentence_prediction": SentencePredictionTask,
        "language_modeling": LanguageModelingTask,
        "audio_pretraining": AudioPretrainingTask,
        "audio_finetuning": AudioFinetuningTask,
        "audio_classification": AudioClassificationTask,
        "mae_image_pretraining": MaeImagePretrainingTask,
        "image_pretraining": ImagePretrainingTask,
        "mae_image_classification": MaeImageClassificationTask,
        "image_classification": ImageClassificationTask,
    },
    "model": {
        "data2vec_multi": Data2VecMultiConfig,
        "data2vec_text": Data2VecTextConfig,
        "data2vec_text_classification": TextClassification,
        "roberta": Roberta,
        "data2vec_audio": Data2VecAudioConfig,
        "wav2vec_ctc": Wav2VecCTC,
        "audio_classification": AudioClassificationModel,
        "data2vec_vision": Data2VecVisionConfig,
        "mae": MaeConfig,
        "mae_image_classification": MaeImageClassification,
        "data2vec_image_classification": Data2VecImageClassification,
        "transformer_lm": TransformerLMConfig,
    },
    "criterion": {
        "model": ModelCriterion,
        "sentence_prediction": SentencePredictionCriterion,
        "ctc": CTCCriterion,
        "cross_entropy": CrossEntropyCriterion,
        "adaptive_loss": AdaptiveLossCriterion,
    },
    "optimizer": {"adam": AdamOptions, "composite": Composite},
    "lr_scheduler": {
        "cosine": CosineSchedule,
        "tri_stage": TriStageSchedule,
        "polynomial_decay": PolynomialSchedule,
        "fixed": FixedSchedule,
        "pass_through": PassThrough,
    },
}
GROUP_CHOICES = {"optimizer": ("adam",), "lr_scheduler": ("cosine", "tri_stage", "polynomial_decay", "fixed")}
NAMES: dict[type[Any], str] = {cls: name for group in CHOICES.values() for name, cls in group.items()}

# A field that is not given takes the value of another one, as the reference's interpolations do.
INHERITED: dict[str, dict[str, str]] = {
    "dataset": {"max_tokens_valid": "dataset.max_tokens", "batch_size_valid": "dataset.batch_size"},
    "data2vec_multi": {"seed": "common.seed", "max_update": "optimization.max_update"},
    "data2vec_audio": {"seed": "common.seed", "max_update": "optimization.max_update"},
    "data2vec_text": {"seed": "common.seed", "max_update": "optimization.max_update"},
    "data2vec_vision": {"seed": "common.seed", "max_update": "optimization.max_update"},
    "transformer_lm": {"max_target_positions": "task.tokens_per_sample"},
    "cosine": {"max_update": "optimization.max_update"},
    "tri_stage": {"max_update": "optimization.max_update"},
    "polynomial_decay": {"total_num_update": "optimization.max_update"},
}


def pretrained_field(model: object) -> str | None:
    """The field that names the pretrained model of such a ``model`` component; ``None`` without one."""
    found = getattr(model, "parent_field", None)
    return None if found is None else ".".join(found)


def register_component(group: str, name: str, cls: type[Any]) -> None:
    """Let recipes choose ``cls`` by ``group._name=name``.

    Raises:
        ConfigError: the name is taken by another class.
    """
    taken = CHOICES[group].setdefault(name, cls)
    if taken is not cls:
        rule = f"is the name of {taken.__module__}.{taken.__qualname__}; choose another one"
        raise ConfigError([Problem(f"{group}._name", name, rule)])
    NAMES[cls] = name


def component_name(component: object) -> str:
    """The ``_name`` under which a recipe chooses this component."""
    return NAMES[type(component)]
