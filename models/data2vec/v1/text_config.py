"""What a data2vec 1 text model is, with the reference's field names (``data2vec_text``) and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..config import RegressionConfig
from ..errors import Problem
from ..rules import Rules


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
class Data2VecTextConfig(RegressionConfig):
    """data2vec 1 for text: a transformer over masked tokens, regressing its own teacher's features."""

    head_layers: int = 1  # linear layers of the regression head; hidden ones are twice as wide
    transformer: TextTransformer = field(default_factory=TextTransformer)  # the sentence encoder
    ema_transformer_layers_only: bool = True  # embeddings are copied instead of averaged
    min_target_var: float = 0.0  # stop below this deviation of the targets (after update 5000); 0 = never
    min_pred_var: float = 0.0  # stop below this deviation of the predictions (after update 5000)
    teacher_sees_masked_only: bool = (
        False  # as the reference's code: the teacher gets the masked tokens alone
    )

    @property
    def depth(self) -> int:
        """Transformer layers, by the name that v2 uses."""
        return self.transformer.encoder.layers

    def loss_names(self) -> tuple[str, ...]:
        """By the reference's name."""
        return ("main",)

    @property
    def embed_dim(self) -> int:
        """Width, by the name that v2 uses."""
        return self.transformer.encoder.embed_dim

    @property
    def num_heads(self) -> int:
        """Attention heads, by the name that v2 uses."""
        return self.transformer.encoder.attention_heads

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""
        rule = Rules(self, path)
        sizes = self.transformer.encoder
        names = ("embed_dim", "ffn_embed_dim", "layers", "attention_heads")
        rule.at_least(1, *(f"transformer.encoder.{name}" for name in names))
        if min(sizes.embed_dim, sizes.attention_heads) >= 1:
            divides = sizes.embed_dim % sizes.attention_heads == 0
            rule("transformer.encoder.attention_heads", divides, f"must divide embed_dim {sizes.embed_dim}")
        learned = sizes.learned_pos or self.transformer.no_token_positional_embeddings
        rule("transformer.encoder.learned_pos", learned, "only learned positions are built; use true")
        names = ("dropout", "attention_dropout", "activation_dropout", "encoder.layerdrop")
        rule.probability(*(f"transformer.{name}" for name in names))
        rule.at_least(2, "transformer.max_source_positions")
        rule.at_least(1, "head_layers")
        self.objective_rules(rule, sizes.layers, "transformer.encoder.layers")
        return rule.found
