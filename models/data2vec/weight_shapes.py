"""Names and shapes of a model's weights, from the model itself on PyTorch's device without memory."""

from __future__ import annotations

import torch
from torch import nn

from .audio_events import AudioEventConfig, AudioEventModel
from .config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from .ctc import CTCConfig, CTCModel
from .families import ModelConfig
from .heads import SentenceClassifier
from .image_heads import ImageClassifier
from .lm.config import TransformerLMConfig
from .lm.transformer import TransformerLM
from .mae_config import MaeConfig
from .student import Data2VecMulti
from .v1.audio import Data2VecAudio
from .v1.config import Data2VecAudioConfig
from .v1.image import Data2VecVision
from .v1.text import Data2VecText
from .v1.text_config import Data2VecTextConfig

HeadConfig = SentenceHeadConfig | CTCConfig | ImageHeadConfig | AudioEventConfig
Shapes = dict[str, tuple[int, ...]]


def weight_shapes(
    config: ModelConfig, head: HeadConfig | None, *, vocab_size: int = 0, num_symbols: int = 0
) -> Shapes:
    """What the weights of a fine-tuned model, or of a pretrained one without its pretraining parts, hold.

    Args:
        config: of the network.
        head: of the fine-tuning head.
        vocab_size: V of a text or language model.
        num_symbols: of a CTC model.
    """
    with torch.device("meta"):
        network = _network(config, head, vocab_size, num_symbols)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _network(config: ModelConfig, head: HeadConfig | None, vocab_size: int, num_symbols: int) -> nn.Module:
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
