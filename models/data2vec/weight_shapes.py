"""Names and shapes of a model's weights, from the model itself on PyTorch's device without memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .audio_events import AudioEventConfig, AudioEventModel
from .audio_trunk import TrunkOptions
from .config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from .ctc import CTCConfig, CTCModel
from .families import ModelConfig
from .heads import SentenceClassifier
from .image_heads import ImageClassifier
from .lm.config import TransformerLMConfig
from .lm.transformer import TransformerLM
from .mae_config import MaeConfig
from .pretraining import make_teacher
from .student import Data2VecMulti
from .v1.audio import Data2VecAudio, Data2VecAudioPretraining
from .v1.config import Data2VecAudioConfig
from .v1.image import Data2VecVision, Data2VecVisionPretraining
from .v1.image_config import Data2VecVisionConfig
from .v1.text import Data2VecText, Data2VecTextPretraining
from .v1.text_config import Data2VecTextConfig

HeadConfig = SentenceHeadConfig | CTCConfig | ImageHeadConfig | AudioEventConfig
Shapes = dict[str, tuple[int, ...]]


class _Unfilled(TorchFunctionMode):
    """In-place changes do nothing: on "meta" the first one imports 400 modules, 2.7 CPU-seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else None
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Models that are built inside have shapes, but neither memory nor numbers."""
    with torch.device("meta"), _Unfilled():
        yield


def weight_shapes(
    config: ModelConfig, head: HeadConfig | None = None, *, vocab_size: int = 0, num_symbols: int = 0
) -> Shapes:
    """What the weights of a fine-tuned model, or of a pretrained one without its pretraining parts, hold.

    Args:
        config: of the network.
        head: of the fine-tuning head.
        vocab_size: V of a text or language model.
        num_symbols: of a CTC model.
    """
    with without_memory():
        return _shapes(_network(config, head, vocab_size, num_symbols))


def pretraining_shapes(config: ModelConfig, *, vocab_size: int | None = None) -> tuple[Shapes, Shapes]:
    """What the weights of a pretrained model hold, pretraining parts included, and those of its teacher.

    Args:
        config: of the network.
        vocab_size: V of a text model.
    """
    with without_memory():
        if isinstance(config, Data2VecMultiConfig):
            student = Data2VecMulti(config, vocab_size=vocab_size)
            return _shapes(student), _shapes(make_teacher(student).module)
        if isinstance(config, Data2VecAudioConfig):
            model = Data2VecAudioPretraining(config)
        elif isinstance(config, Data2VecTextConfig):
            model = Data2VecTextPretraining(config, vocab_size=vocab_size or 0)
        else:
            assert isinstance(config, Data2VecVisionConfig), "the others have no teacher"
            model = Data2VecVisionPretraining(config)
        return _shapes(model.student), _shapes(model.teacher.module)


def _shapes(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _network(config: ModelConfig, head: HeadConfig | None, vocab_size: int, num_symbols: int) -> nn.Module:
    if isinstance(head, TrunkOptions):
        head = dataclasses.replace(head, freeze_regex=None)  # a stranger's pattern may search for ever
    if isinstance(config, TransformerLMConfig):
        return TransformerLM(config, vocab_size, seed=None)
    if isinstance(head, CTCConfig):
        return CTCModel(config, head, num_symbols=num_symbols)  # pyright: ignore[reportArgumentType]
    if isinstance(head, AudioEventConfig):
        return AudioEventModel(config, head)  # pyright: ignore[reportArgumentType]
    if isinstance(head, SentenceHeadConfig):
        return SentenceClassifier(config, head, vocab_size=vocab_size)  # pyright: ignore[reportArgumentType]
    if isinstance(head, ImageHeadConfig):
        return ImageClassifier(config, head)  # pyright: ignore[reportArgumentType]
    if isinstance(config, Data2VecAudioConfig):
        return Data2VecAudio(config, with_head=False)
    if isinstance(config, Data2VecTextConfig):
        return Data2VecText(config, vocab_size=vocab_size, with_head=False)
    if isinstance(config, Data2VecMultiConfig | MaeConfig):
        multi = config.encoder() if isinstance(config, MaeConfig) else config
        return Data2VecMulti(multi, vocab_size=vocab_size, with_decoder=False)
    return Data2VecVision(config, pretraining=False)
