"""What a data2vec 1 text model is, with the reference's field names (``data2vec_text``) and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..errors import Problem
from ..rules import ModelConfig, Rules


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
class Data2VecTextConfig(ModelConfig):
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
        rule.share("ema_decay", "ema_end_decay")
        rule("average_top_k_layers", 1 <= self.average_top_k_layers <= max(sizes.layers, 1),
             f"must lie in 1 ... transformer.encoder.layers ({sizes.layers})")  # fmt: skip
        rule.at_least(0, "loss_beta")
        return rule.found
