"""Fine-tuning heads over the pretrained network.

B sentences (or pairs), T tokens, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .config import Data2VecMultiConfig, SentenceHeadConfig
from .dropout import Dropout
from .randomness import generator
from .student import Data2VecMulti
from .v1.text import Data2VecText
from .v1.text_config import Data2VecTextConfig

TextConfig = Data2VecMultiConfig | Data2VecTextConfig
_ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "linear": lambda x: x}


@dataclass(frozen=True)
class SentenceOutput:
    """Result of one micro-batch."""

    loss: torch.Tensor  # summed over sentences (differentiable); the divisor is the number of sentences
    logits_BC: torch.Tensor  # (B, C) in fp32


class SentenceHead(nn.Module):
    """Dropout, linear, activation, dropout, linear over the first token's features."""

    def __init__(self, dim: int, config: SentenceHeadConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.pooler_activation_fn]
        self.dropout = Dropout(config.pooler_dropout)
        self.dense = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, config.num_classes)

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B, D) to (B, C)."""
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(x_BD)))))


class SentenceClassifier(nn.Module):
    """GLUE fine-tuning: the pretrained network and a head over ``<s>``.

    The network keeps its pretraining dropouts, as the recipes say. The head keeps PyTorch's default
    initialisation, drawn from a generator of its own. The network's parameters are named as in the
    reference: below ``model.`` for v2, ``encoder.sentence_encoder.`` for v1.

    Args:
        config: the pretrained network, of either generation.
        head: the head.
        vocab_size: V.
        seed: seed of the head's (and, without a pretrained model, the network's) initial weights.
    """

    def __init__(
        self, config: TextConfig, head: SentenceHeadConfig, *, vocab_size: int, seed: int = 1
    ) -> None:
        super().__init__()
        self.head_config = head
        trunk = make_text_trunk(config, vocab_size=vocab_size, seed=seed)
        self._trunk = (trunk,)  # a plain tuple: its parts are registered under the reference's names
        if isinstance(trunk, Data2VecText):
            self.encoder = trunk.encoder
        else:
            self.model = trunk
        module = SentenceHead(config.embed_dim, head)
        self.classification_heads = nn.ModuleDict({"sentence_classification_head": module})
        with torch.no_grad():
            bound = config.embed_dim**-0.5  # both layers read embed_dim features
            for name, parameter in module.named_parameters():
                parameter.uniform_(-bound, bound, generator=generator("init", seed, "head", name))

    @property
    def trunk(self) -> Data2VecMulti | Data2VecText:
        """The pretrained network."""
        return self._trunk[0]

    def forward(
        self, source: torch.Tensor, padding_mask: torch.Tensor | None = None, *key: int | str
    ) -> torch.Tensor:
        """(B, T) token ids to (B, C) logits in fp32; ``key`` decides layer drop while training."""
        x_BTD = self.trunk(source, padding_mask, *key).x_BTD
        return self.classification_heads["sentence_classification_head"](x_BTD[:, 0]).float()

    def loss(self, logits_BC: torch.Tensor, target_B: torch.Tensor, regression: bool) -> SentenceOutput:
        """Summed negative log-likelihood, or summed squared error of a regression.

        Args:
            logits_BC: (B, C).
            target_B: (B,) class ids, or (B,) or (B, C) targets of a regression.
            regression: which of the two.
        """
        if regression:
            value = F.mse_loss(logits_BC, target_B.float().view_as(logits_BC), reduction="sum")
        else:
            value = F.nll_loss(F.log_softmax(logits_BC, dim=-1), target_B, reduction="sum")
        return SentenceOutput(value, logits_BC)


def make_text_trunk(config: TextConfig, *, vocab_size: int, seed: int = 1) -> Data2VecMulti | Data2VecText:
    """The text network of either generation without its pretraining parts."""
    if isinstance(config, Data2VecTextConfig):
        return Data2VecText(config, vocab_size=vocab_size, with_head=False, seed=seed)
    return Data2VecMulti(config, vocab_size=vocab_size, with_decoder=False, seed=seed)


def max_text_positions(config: TextConfig) -> int:
    """The longest text in tokens."""
    if isinstance(config, Data2VecTextConfig):
        return config.transformer.max_source_positions
    text = config.modalities.text
    assert text is not None, "a text model has its section"
    return text.max_source_positions
