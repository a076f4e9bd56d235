"""What a transformer language model is, with the reference's field names (``transformer_lm``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import Problem
from ..rules import ModelConfig, Rules


@dataclass(kw_only=True)
class TransformerLMConfig(ModelConfig):
    """A decoder-only transformer that predicts the next word, unit or BPE token.

    ``decoder_normalize_before`` is true by default: the reference sets it for this model whatever is asked.
    """

    activation_fn: Literal["relu", "gelu"] = "relu"  # between the feed-forward layers
    dropout: float = 0.1  # dropout on embeddings and branches
    attention_dropout: float = 0.0  # dropout on attention probabilities
    activation_dropout: float = 0.0  # dropout after the activation
    decoder_embed_dim: int = 512  # width
    decoder_output_dim: int | None = None  # width before the softmax; null = decoder_embed_dim
    decoder_input_dim: int | None = None  # width of the embeddings; null = decoder_embed_dim
    decoder_ffn_embed_dim: int = 2048  # feed-forward width
    decoder_layers: int = 6  # transformer layers
    decoder_attention_heads: int = 8  # attention heads
    decoder_normalize_before: bool = True  # pre-LN layers
    no_decoder_final_norm: bool = False  # no norm after the last pre-LN layer
    adaptive_softmax_cutoff: str | None = (
        None  # ends of the softmax's bands: "20000,60000"; null = one softmax
    )
    adaptive_softmax_dropout: float = 0.0  # dropout inside the bands after the first
    adaptive_softmax_factor: float = 4.0  # each band is narrower than the one before by this factor
    no_token_positional_embeddings: bool = False  # no positions at all
    share_decoder_input_output_embed: bool = False  # the softmax uses the embeddings
    adaptive_input: bool = False  # embeddings in bands too
    adaptive_input_factor: float = 4.0  # as adaptive_softmax_factor
    adaptive_input_cutoff: str | None = None  # as adaptive_softmax_cutoff
    tie_adaptive_weights: bool = False  # the softmax's bands use the embeddings' words
    tie_adaptive_proj: bool = False  # ... and their projections
    decoder_learned_pos: bool = False  # learned positions instead of sine waves
    decoder_layerdrop: float = 0.0  # probability of skipping a layer while training
    layernorm_embedding: bool = False  # layer norm of the embeddings
    no_scale_embedding: bool = False  # embeddings are not multiplied by sqrt(decoder_embed_dim)
    max_target_positions: int = 1024  # longest sequence; by default task.tokens_per_sample

    @property
    def depth(self) -> int:
        """Layers, by the name that data2vec's models use."""
        return self.decoder_layers

    @property
    def embed_dim(self) -> int:
        """Width, by the name that data2vec's models use."""
        return self.decoder_embed_dim

    @property
    def num_heads(self) -> int:
        """Attention heads, by the name that data2vec's models use."""
        return self.decoder_attention_heads

    @property
    def input_dim(self) -> int:
        """Width of the embeddings."""
        return self.decoder_input_dim or self.decoder_embed_dim

    @property
    def output_dim(self) -> int:
        """Width of what the softmax reads."""
        return self.decoder_output_dim or self.decoder_embed_dim

    @property
    def softmax_cutoff(self) -> list[int] | None:
        """Ends of the softmax's bands but the last; ``None`` for one softmax."""
        return cutoffs(self.adaptive_softmax_cutoff)

    @property
    def input_cutoff(self) -> list[int]:
        """Ends of the embeddings' bands but the last."""
        return cutoffs(self.adaptive_input_cutoff) or []

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about this configuration, all of it."""
        rule = Rules(self, path)
        rule.at_least(1, "decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_layers",
                      "decoder_attention_heads")  # fmt: skip
        rule.at_least(2, "max_target_positions")
        rule.probability("dropout", "attention_dropout", "activation_dropout", "adaptive_softmax_dropout",
                         "decoder_layerdrop")  # fmt: skip
        dim, heads = self.decoder_embed_dim, self.decoder_attention_heads
        if min(dim, heads) >= 1:
            rule("decoder_attention_heads", dim % heads == 0, f"must divide decoder_embed_dim {dim}")
        for name in ("decoder_input_dim", "decoder_output_dim"):
            value = getattr(self, name)
            rule(name, value is None or value >= 1, "must be >= 1, or null for decoder_embed_dim")
        sines = not (self.decoder_learned_pos or self.no_token_positional_embeddings)
        rule(
            "decoder_embed_dim",
            not sines or (dim >= 4 and dim % 2 == 0),
            "sine positions need an even width >= 4",
        )
        self._check_bands(rule)
        return rule.found

    def _check_bands(self, rule: Rules) -> None:
        for name in ("adaptive_softmax_cutoff", "adaptive_input_cutoff"):
            try:
                ends = cutoffs(getattr(self, name))
                good = ends is None or (ends == sorted(set(ends)) and ends[0] > 0)
            except ValueError:
                good = False
            rule(name, good, 'must be rising numbers separated by commas, such as "20000,60000"')
            if not good:
                return
        for name in ("adaptive_softmax_factor", "adaptive_input_factor"):
            rule(name, getattr(self, name) >= 1, "must be >= 1")
        rule("adaptive_input_cutoff", not self.adaptive_input or bool(self.input_cutoff),
             "is required with adaptive_input")  # fmt: skip
        banded = self.softmax_cutoff is not None
        shared = self.share_decoder_input_output_embed
        rule("share_decoder_input_output_embed", not (shared and (banded or self.adaptive_input)),
             "is for one softmax; bands share with tie_adaptive_weights")  # fmt: skip
        rule("share_decoder_input_output_embed", not shared or self.input_dim == self.output_dim,
             "needs decoder_input_dim = decoder_output_dim")  # fmt: skip
        if self.tie_adaptive_weights:
            same = (
                self.adaptive_input
                and banded
                and self.input_cutoff == self.softmax_cutoff
                and self.adaptive_input_factor == self.adaptive_softmax_factor
                and self.input_dim == self.output_dim == self.decoder_embed_dim
            )
            text = "needs adaptive_input, equal cutoffs and factors at both ends, and one width everywhere"
            rule("tie_adaptive_weights", same, text)
        rule("tie_adaptive_proj", self.tie_adaptive_weights or not self.tie_adaptive_proj,
             "needs tie_adaptive_weights")  # fmt: skip

    def vocabulary_problems(self, vocab_size: int, path: str = "model") -> list[Problem]:
        """Bands that end beyond the vocabulary."""
        found = []
        for name in ("adaptive_softmax_cutoff", "adaptive_input_cutoff"):
            ends = cutoffs(getattr(self, name))
            used = self.adaptive_input if name == "adaptive_input_cutoff" else True
            if ends and used and ends[-1] > vocab_size:
                rule = f"ends beyond the vocabulary of {vocab_size} symbols"
                found.append(Problem(f"{path}.{name}", getattr(self, name), rule))
        return found


def cutoffs(text: str | None) -> list[int] | None:
    """The numbers of ``"20000,60000"``; brackets around them do no harm.

    Raises:
        ValueError: something else stands there.
    """
    if text is None or not text.strip("[]() "):
        return None
    return [int(part) for part in text.strip("[]() ").split(",")]
