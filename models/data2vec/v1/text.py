"""data2vec 1 for text: RoBERTa's encoder over masked tokens, and the regression of its teacher's features.

The student sees ``<mask>`` in place of the masked tokens; the teacher, an average of the student's encoder,
sees the same sentence unmasked, as the paper (section 3.2) describes it. The reference's code gives its
teacher the masked tokens alone, with everything else as padding: ``teacher_sees_masked_only`` does the same.

B samples, T tokens, D width, V vocabulary, N masked tokens of all samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..attention import attention_bias
from ..dropout import Dropout
from ..errors import DataError
from ..masking import masked_index
from ..placing import moved
from ..pretraining import Comparison
from ..randomness import hashed_scores, row_keys
from ..student import Features, initialise
from ..targets import TargetAverage
from ..teacher import Teacher
from ..text import PAD, position_ids
from ..transformer import kept_blocks
from .layers import EncoderLayer
from .objective import RegressionPretraining, Seen
from .text_config import Data2VecTextConfig

_EMBEDDINGS = ("embed_tokens.", "embed_positions.", "layernorm_embedding.")
Each = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Receives index, output and feed-forward output of every layer that runs."""


@dataclass(frozen=True, kw_only=True)
class SpanMasking:
    """How tokens are masked: spans that may overlap, starting anywhere (``<s>`` and ``</s>`` included)."""

    mask_prob: float = 0.15  # masked share if spans did not overlap
    mask_multiple_length: int = 1  # tokens of a span


class SentenceEncoder(nn.Module):
    """Embeddings and transformer layers: what the teacher averages."""

    version: torch.Tensor

    def __init__(self, config: Data2VecTextConfig, vocab_size: int) -> None:
        super().__init__()
        options, sizes = config.transformer, config.transformer.encoder
        dim = sizes.embed_dim
        self.scale = 1.0 if options.no_scale_embedding else dim**0.5
        self.layerdrop, self.max_positions = sizes.layerdrop, options.max_source_positions
        self.register_buffer("version", torch.tensor([3.0]))  # a marker that the reference's files carry
        self.embed_tokens = nn.Embedding(vocab_size, dim, padding_idx=PAD)
        self.embed_positions = (
            None
            if options.no_token_positional_embeddings
            else nn.Embedding(options.max_source_positions + PAD + 1, dim, padding_idx=PAD)
        )
        self.layernorm_embedding = nn.LayerNorm(dim, eps=1e-5) if options.layernorm_embedding else None
        self.dropout = Dropout(options.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                sizes.ffn_embed_dim,
                sizes.attention_heads,
                dropout=options.dropout,
                attention_dropout=options.attention_dropout,
                activation_dropout=options.activation_dropout,
                activation=options.activation_fn,
                pre_norm=sizes.normalize_before,
            )
            for _ in range(sizes.layers)
        )
        self.layer_norm = nn.LayerNorm(dim, eps=1e-5) if sizes.normalize_before else None

    def local_features(self, source_BT: torch.Tensor) -> torch.Tensor:
        """(B, T) token ids to (B, T, D) embeddings; padded rows are not zeroed."""
        if source_BT.shape[1] > self.max_positions:
            raise DataError(f"{source_BT.shape[1]} tokens are more than the model's {self.max_positions}")
        x_BTD = self.embed_tokens(source_BT)
        if self.scale != 1.0:
            x_BTD = x_BTD * self.scale
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(position_ids(source_BT))
        return x_BTD if self.layernorm_embedding is None else self.layernorm_embedding(x_BTD)

    def forward(
        self,
        local_BTD: torch.Tensor,
        padding_BT: torch.Tensor | None,
        *key: int | str,
        each: Each | None = None,
    ) -> torch.Tensor:
        """(B, T, D) embeddings to (B, T, D).

        Args:
            local_BTD: of :meth:`local_features`.
            padding_BT: (B, T) bool, true where padded.
            key: decides layer drop while training.
            each: sees every layer.
        """
        x, bias = self.dropout(local_BTD), attention_bias(padding_BT)
        if padding_BT is not None:
            x = x.masked_fill(padding_BT[..., None], 0.0)
        for index, layer in kept_blocks(self.layers, self.layerdrop, self.training, *key):
            x, candidate = layer(x, bias)
            if each is not None:
                each(index, x, candidate)
        return x if self.layer_norm is None else self.layer_norm(x)


class _Encoder(nn.Module):
    """Holds the parts under the reference's names."""

    def __init__(self, config: Data2VecTextConfig, vocab_size: int, with_head: bool) -> None:
        super().__init__()
        self.sentence_encoder = SentenceEncoder(config, vocab_size)
        self.regression_head = make_regression_head(config) if with_head else None


class Data2VecText(nn.Module):
    """The network: sentence encoder and (for pretraining) the regression head.

    Args:
        config: architecture.
        vocab_size: V, ``<mask>`` included.
        with_head: build the regression head, which fine-tuning does not need.
        seed: seed of the initial weights.
    """

    def __init__(
        self, config: Data2VecTextConfig, *, vocab_size: int, with_head: bool = True, seed: int = 1
    ) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.encoder = _Encoder(config, vocab_size, with_head)
        initialise(self, seed)

    @property
    def sentence_encoder(self) -> SentenceEncoder:
        """Embeddings and layers."""
        return self.encoder.sentence_encoder

    @property
    def max_positions(self) -> int:
        """Longest input in tokens."""
        return self.sentence_encoder.max_positions

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        *key: int | str,
        all_layers: bool = False,
    ) -> Features:
        """Features of complete, unmasked text.

        Args:
            source: (B, T) token ids, 1 where padded.
            padding_mask: (B, T) bool, true where padded; such tokens become padding whatever they are.
            key: decides layer drop while training.
            all_layers: also return every layer's output.
        """
        layers: list[torch.Tensor] = []
        source, padding = padded_source(source, padding_mask)
        keep = (lambda _, output, __: layers.append(output)) if all_layers else None
        encoder = self.sentence_encoder
        return Features(encoder(encoder.local_features(source), padding, *key, each=keep), tuple(layers))


def padded_source(
    source_BT: torch.Tensor, padding_mask_BT: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids that are ``PAD`` where padded, and where that is; ``None`` if it is nowhere.

    Without a given mask the ids say it, for which a GPU that holds them is asked.
    """
    if padding_mask_BT is None:
        padding_mask_BT = source_BT.eq(PAD)
    if not bool(padding_mask_BT.any()):
        return source_BT, None
    padding_BT = moved(padding_mask_BT, source_BT.device)
    return source_BT.masked_fill(padding_BT, PAD), padding_BT


def make_regression_head(config: Data2VecTextConfig) -> nn.Sequential:
    """``head_layers`` linear layers with exact GELUs between them; hidden ones are twice as wide."""
    dim = config.embed_dim
    layers: list[nn.Module] = []
    width = dim
    for _ in range(config.head_layers - 1):
        layers += [nn.Linear(width, 2 * dim), nn.GELU()]
        width = 2 * dim
    return nn.Sequential(*layers, nn.Linear(width, dim))


class Data2VecTextPretraining(RegressionPretraining[Data2VecText, Data2VecTextConfig]):
    """Student, head and teacher with the objective of data2vec 1.

    Args:
        config: architecture and objective.
        vocab_size: V; ``<mask>`` is its last symbol.
        masking: how tokens are masked where no mask is given.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        config: Data2VecTextConfig,
        *,
        vocab_size: int,
        masking: SpanMasking | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.config, self.masking = config, masking or SpanMasking()
        self.mask_id = vocab_size - 1
        self.student = Data2VecText(config, vocab_size=vocab_size, seed=seed)
        copied = _EMBEDDINGS if config.ema_transformer_layers_only else ()
        self.teacher = Teacher(
            SentenceEncoder(config, vocab_size), self.student.sentence_encoder, config, copied=copied
        )

    def see(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None,
        ids: torch.Tensor,
        mask_BT: torch.Tensor | None,
        *key: int,
    ) -> Seen:
        """Embeddings of tokens, spans of which are masked."""
        if padding_mask is None:
            padding_mask = source.eq(PAD)
        if mask_BT is None:
            mask_BT = token_spans(ids, ~padding_mask, self.masking, *key)
        masked_N = moved(masked_index(mask_BT), source.device)
        mask_BT = moved(mask_BT, source.device)
        source, padding = padded_source(source, padding_mask)
        local_BTD, x_BTD, found = self.compute(source, padding, mask_BT, masked_N, *key)
        return Seen(local_BTD, x_BTD, padding, found)

    def compute(
        self,
        source_BT: torch.Tensor,
        padding_BT: torch.Tensor | None,
        mask_BT: torch.Tensor,
        masked_N: torch.Tensor,
        *key: int,
    ) -> tuple[torch.Tensor, torch.Tensor, Comparison]:
        """Embeddings and the encoder's output, (B, T, D), and what comes of them: all that a device does by
        itself."""
        encoder = self.student.sentence_encoder
        local_BTD = encoder.local_features(source_BT.masked_fill(mask_BT, self.mask_id))
        x_BTD = encoder(local_BTD, padding_BT, *key)
        if self.config.teacher_sees_masked_only:
            source_BT, padding_BT = source_BT.masked_fill(~mask_BT, PAD), ~mask_BT
        return local_BTD, x_BTD, self._compare(x_BTD, self._targets(source_BT, padding_BT), masked_N)

    def predict(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The regression head."""
        assert self.student.encoder.regression_head is not None
        return self.student.encoder.regression_head(x_ND)

    def loss_factor(self) -> float:
        """Here a scale that is not positive means the usual one too."""
        given = self.config.loss_scale
        return self.config.embed_dim**-0.5 if given is None or given <= 0 else given

    @torch.no_grad()
    def _targets(self, source_BT: torch.Tensor, padding_BT: torch.Tensor | None) -> torch.Tensor:
        """Normalised teacher features of every token, (B, T, D) in fp32."""
        average, teacher = TargetAverage(self.config), self.teacher.module
        assert isinstance(teacher, SentenceEncoder)
        teacher(
            teacher.local_features(source_BT),
            padding_BT,
            each=lambda index, _, candidate: average.add(index, candidate),
        )
        return average.result()


def token_spans(
    ids_B: torch.Tensor, real_BT: torch.Tensor, masking: SpanMasking, *key: int | str
) -> torch.Tensor:
    """(B, T) bool: masked spans of each row, a function of ``key`` and the row's id alone.

    ``int(mask_prob * n / length + u)`` distinct starts, u uniform in [0, 1), among the n real tokens; each
    covers ``length`` tokens, cut at the end; spans may overlap (about 30 % masked with 0.35 and 4).

    Args:
        ids_B: (B,) int64 sample ids.
        real_BT: (B, T) bool, false where padded.
        masking: share and length.
        key: further parts of the key, such as the seed and the update.
    """
    length, columns = masking.mask_multiple_length, real_BT.shape[1]
    keys_B = row_keys("text spans", *key, ids_R=ids_B)
    scores_BT = hashed_scores(keys_B, columns + 1)
    # The last score is the row's own uniform number; 53 bits of it are exact in a float64.
    uniform_B = ((scores_BT[:, -1] >> 11) & ((1 << 53) - 1)).double() / 2**53
    starts_B = (masking.mask_prob / length * real_BT.sum(1).double() + uniform_B).floor()
    order_BT = scores_BT[:, :-1].masked_fill(~real_BT, torch.iinfo(torch.int64).max).argsort(dim=1)
    rank_BT = torch.empty_like(order_BT).scatter_(
        1, order_BT, torch.arange(columns, device=order_BT.device).expand_as(order_BT).contiguous()
    )
    start_BT = (rank_BT < starts_B[:, None]) & real_BT
    mask_BT = start_BT.clone()
    for shift in range(1, min(length, columns)):
        mask_BT[:, shift:] |= start_BT[:, :-shift]
    return mask_BT & real_BT
