"""What a data2vec 1 text model is, with the reference's field names (``data2vec_text``) and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ConfigError, Problem
from ..typed import build, to_dict


@dataclass(kw_only=True)
class TextTransformerEncoder:
    """Sizes of the transformer."""

    embed_dim: int = 512  # width
    ffn_embed_dim: int = 2048  # feed-forward width
    layers: int = 6  # transformer layers
    attention_heads: int = 8  # attention heads
    normalize_before: bool = False  # pre-LN layers and a final norm
    learned_pos: bool = False  # learned positions, as every data2vec recipe has them
    layerdrop: float = 0.0  # probability of skipping a layer while training


@dataclass(kw_only=True)
class TextTransformer:
    """The sentence encoder (RoBERTa's): embeddings, dropouts, sizes."""

    activation_fn: Literal["gelu", "relu"] = "relu"  # between the feed-forward layers
    dropout: float = 0.1  # dropout on embeddings and branches
    attention_dropout: float = 0.0  # dropout on attention probabilities
    activation_dropout: float = 0.0  # dropout after the activation
    max_source_positions: int = 1024  # longest input in tokens
    no_token_positional_embeddings: bool = False  # no positions at all
    layernorm_embedding: bool = False  # layer norm of the embeddings
    no_scale_embedding: bool = False  # embeddings are not multiplied by sqrt(embed_dim)
    encoder: TextTransformerEncoder = field(default_factory=TextTransformerEncoder)  # sizes


@dataclass(kw_only=True)
class Data2VecTextConfig:
    """data2vec 1 for text: a transformer over masked tokens, regressing its own teacher's features."""

    head_layers: int = 1  # linear layers of the regression head; hidden ones are twice as wide
    transformer: TextTransformer = field(default_factory=TextTransformer)  # the sentence encoder
    loss_beta: float = 0.0  # 0 = squared error, > 0 = smooth L1 with this beta
    loss_scale: float | None = None  # factor of the loss; null or <= 0 = 1 / sqrt(embed_dim)
    average_top_k_layers: int = 8  # teacher layers averaged into the target, from the top
    layer_norm_target_layer: bool = False  # layer norm of each teacher layer
    instance_norm_target_layer: bool = False  # instance norm of each teacher layer
    batch_norm_target_layer: bool = False  # batch norm of each teacher layer
    instance_norm_targets: bool = False  # instance norm of the averaged target
    layer_norm_targets: bool = False  # layer norm of the averaged target
    ema_decay: float = 0.999  # teacher decay at the first update
    ema_end_decay: float = 0.9999  # teacher decay after annealing
    ema_anneal_end_step: int | None = None  # updates of annealing; null = max_update
    ema_transformer_layers_only: bool = True  # embeddings are copied instead of averaged
    max_update: int | None = None  # length of the run, for the annealing
    min_target_var: float = 0.0  # stop below this deviation of the targets (after update 5000); 0 = never
    min_pred_var: float = 0.0  # stop below this deviation of the predictions (after update 5000)
    teacher_sees_masked_only: bool = (
        False  # as the reference's code: the teacher gets the masked tokens alone
    )
    seed: int = 1  # seed of the masks

    @property
    def depth(self) -> int:
        """Transformer layers, by the name that v2 uses."""
        return self.transformer.encoder.layers

    @property
    def embed_dim(self) -> int:
        """Width, by the name that v2 uses."""
        return self.transformer.encoder.embed_dim

    @property
    def num_heads(self) -> int:
        """Attention heads, by the name that v2 uses."""
        return self.transformer.encoder.attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], unknown: list[str] | None = None) -> Data2VecTextConfig:
        """Read a plain mapping; see :func:`data2vec.typed.build` for ``unknown``."""
        return build(cls, {k: v for k, v in values.items() if k != "_name"}, unknown=unknown)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary."""
        return to_dict(self)

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""
        found: list[Problem] = []

        def rule(name: str, holds: bool, text: str) -> None:
            if not holds:
                value: Any = self
                for part in name.split("."):
                    value = getattr(value, part)
                found.append(Problem(f"{path}.{name}", value, text))

        sizes = self.transformer.encoder
        for name in ("embed_dim", "ffn_embed_dim", "layers", "attention_heads"):
            rule(f"transformer.encoder.{name}", getattr(sizes, name) >= 1, "must be >= 1")
        if min(sizes.embed_dim, sizes.attention_heads) >= 1:
            divides = sizes.embed_dim % sizes.attention_heads == 0
            rule("transformer.encoder.attention_heads", divides, f"must divide embed_dim {sizes.embed_dim}")
        learned = sizes.learned_pos or self.transformer.no_token_positional_embeddings
        rule("transformer.encoder.learned_pos", learned, "only learned positions are built; use true")
        for name in ("dropout", "attention_dropout", "activation_dropout", "encoder.layerdrop"):
            value: Any = self.transformer
            for part in name.split("."):
                value = getattr(value, part)
            rule(f"transformer.{name}", 0.0 <= value < 1.0, "must lie in 0 <= p < 1")
        rule("transformer.max_source_positions", self.transformer.max_source_positions >= 2, "must be >= 2")
        rule("head_layers", self.head_layers >= 1, "must be >= 1")
        for name in ("ema_decay", "ema_end_decay"):
            rule(name, 0.0 <= getattr(self, name) <= 1.0, "must lie in 0 ... 1")
        rule("average_top_k_layers", 1 <= self.average_top_k_layers <= max(sizes.layers, 1),
             f"must lie in 1 ... transformer.encoder.layers ({sizes.layers})")  # fmt: skip
        rule("loss_beta", self.loss_beta >= 0, "must be >= 0")
        return found

    def check(self) -> None:
        """Raise :class:`ConfigError` with all problems."""
        if found := self.problems():
            raise ConfigError(found, "the model configuration")
