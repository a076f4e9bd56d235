"""The transformer language model, under the reference's parameter names (``decoder.*``).

Sequences begin with ``</s>``: the model reads ``</s> A B`` and predicts ``A B </s>``.

B sequences, T positions, D width, V vocabulary, N positions of all sequences, S cached positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import DataError
from ..randomness import generator
from ..transformer import kept_blocks
from ..v1.layers import EncoderLayer, SelfAttention
from .adaptive import PAD, AdaptiveInput, AdaptiveSoftmax
from .config import TransformerLMConfig

_FIRST_POSITION = PAD + 1  # positions count from here; 1 belongs to padding


class CausalDecoder(nn.Module):
    """Embeddings, causal layers and softmax."""

    def __init__(self, config: TransformerLMConfig, vocab_size: int) -> None:
        super().__init__()
        dim = config.decoder_embed_dim
        self.config, self.scale = config, 1.0 if config.no_scale_embedding else math.sqrt(dim)
        self.embed_tokens: AdaptiveInput | nn.Embedding
        if config.adaptive_input:
            self.embed_tokens = AdaptiveInput(
                vocab_size, config.input_dim, dim, config.adaptive_input_factor, config.input_cutoff
            )
        else:
            self.embed_tokens = nn.Embedding(vocab_size, config.input_dim, padding_idx=PAD)
        narrow = not config.adaptive_input and config.input_dim != dim
        self.project_in_dim = nn.Linear(config.input_dim, dim, bias=False) if narrow else None
        self.embed_positions = None
        if config.decoder_learned_pos and not config.no_token_positional_embeddings:
            rows = config.max_target_positions + _FIRST_POSITION
            self.embed_positions = nn.Embedding(rows, dim, padding_idx=PAD)
        self.layernorm_embedding = nn.LayerNorm(dim, eps=1e-5) if config.layernorm_embedding else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                config.decoder_ffn_embed_dim,
                config.decoder_attention_heads,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                activation=config.activation_fn,
                pre_norm=config.decoder_normalize_before,
            )
            for _ in range(config.decoder_layers)
        )
        final = config.decoder_normalize_before and not config.no_decoder_final_norm
        self.layer_norm = nn.LayerNorm(dim, eps=1e-5) if final else None
        other = config.output_dim != dim
        self.project_out_dim = nn.Linear(dim, config.output_dim, bias=False) if other else None
        self.adaptive_softmax: AdaptiveSoftmax | None = None
        self.output_projection: nn.Linear | None = None
        cutoff = config.softmax_cutoff
        if cutoff is not None:
            tied = self.embed_tokens if config.tie_adaptive_weights else None
            assert tied is None or isinstance(tied, AdaptiveInput)
            self.adaptive_softmax = AdaptiveSoftmax(
                vocab_size,
                config.output_dim,
                config.adaptive_softmax_factor,
                cutoff,
                config.adaptive_softmax_dropout,
                tied,
                config.tie_adaptive_proj,
            )
        elif not config.share_decoder_input_output_embed:
            self.output_projection = nn.Linear(config.output_dim, vocab_size, bias=False)

    def embed(self, source: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Vectors of token ids at positions (from 0), both of the same or of matching shapes.

        Raises:
            DataError: a position beyond the learned ones.
        """
        x = self.embed_tokens(source) * self.scale
        if self.project_in_dim is not None:
            x = self.project_in_dim(x)
        if self.embed_positions is not None:
            limit = self.config.max_target_positions
            if int(position.max()) >= limit:
                raise DataError(
                    f"a sequence of more than {limit} tokens does not fit the language model "
                    "(model.max_target_positions)"
                )
            x = x + self.embed_positions(position + _FIRST_POSITION)
        elif not self.config.no_token_positional_embeddings:
            x = x + sine_positions(position, x.shape[-1]).to(x.dtype)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout(x)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        """What follows the last layer, up to the softmax."""
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x if self.project_out_dim is None else self.project_out_dim(x)

    def output_weight(self) -> torch.Tensor:
        """(V, D) rows of the one softmax."""
        if self.output_projection is not None:
            return self.output_projection.weight
        assert isinstance(self.embed_tokens, nn.Embedding)
        return self.embed_tokens.weight


class TransformerLM(nn.Module):
    """A language model: probabilities of the next token.

    Args:
        config: architecture.
        vocab_size: V, special symbols included.
        seed: of the initial weights.
    """

    def __init__(self, config: TransformerLMConfig, vocab_size: int, seed: int | None = 1) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.decoder = CausalDecoder(config, vocab_size)
        if seed is not None:
            self._initialise(seed)

    def forward(self, source_BT: torch.Tensor, *key: int | str) -> torch.Tensor:
        """(B, T) token ids to (B, T, D) features before the softmax; padding stands on the right.

        Args:
            source_BT: what was said so far, ``</s>`` first.
            key: decides layer drop while training.
        """
        decoder, length = self.decoder, source_BT.shape[1]
        x = decoder.embed(source_BT, torch.arange(length, device=source_BT.device)[None])
        bias = torch.full((length, length), -math.inf, device=x.device).triu(1)[None, None]
        drop = self.config.decoder_layerdrop
        for _, layer in kept_blocks(decoder.layers, drop, self.training, *key):
            x, _ = layer(x, bias)
        return decoder.finish(x)

    def nll(self, hidden_ND: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        """(N,) negative natural log probabilities of the targets."""
        if self.decoder.adaptive_softmax is not None:
            return self.decoder.adaptive_softmax.nll(hidden_ND, target_N)
        logits = F.linear(hidden_ND, self.decoder.output_weight()).float()
        return F.cross_entropy(logits, target_N, reduction="none")

    def log_probs(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """(N, V) natural log probabilities of every token."""
        if self.decoder.adaptive_softmax is not None:
            return self.decoder.adaptive_softmax.log_probs(hidden_ND)
        return F.log_softmax(F.linear(hidden_ND, self.decoder.output_weight()).float(), dim=-1)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """As the reference: words N(0, 1 / sqrt(width)), other matrices Glorot's, biases zero.

        Each tensor has its own generator, so that build order does not matter.
        """
        for name, module in self.named_modules():
            draw = generator("init", seed, name)
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0.0, module.embedding_dim**-0.5, generator=draw)
                if module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            elif isinstance(module, nn.Linear):
                if name.endswith("output_projection"):
                    module.weight.normal_(0.0, module.in_features**-0.5, generator=draw)
                else:
                    joint = name.endswith(("q_proj", "k_proj", "v_proj"))  # one matrix in the paper
                    gain = 2**-0.5 if joint else 1.0
                    bound = gain * math.sqrt(6.0 / (module.in_features + module.out_features))
                    module.weight.uniform_(-bound, bound, generator=draw)
                if module.bias is not None:
                    module.bias.zero_()


def sine_positions(position: torch.Tensor, dim: int) -> torch.Tensor:
    """Sine and cosine waves of positions (from 0): sines in the first half of the channels, cosines after."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=position.device) * (-math.log(10000.0) / (half - 1)))
    angle = (position + _FIRST_POSITION)[..., None].float() * rates
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def step_layer(
    layer: EncoderLayer,
    x_ND: torch.Tensor,
    keys_SD: torch.Tensor,
    values_SD: torch.Tensor,
    own_N: torch.Tensor,
    seen_NT: torch.Tensor,
    bias_NT: torch.Tensor,
) -> torch.Tensor:
    """One position of N sequences through a layer, their earlier positions taken from a store.

    Args:
        layer: in evaluation mode.
        x_ND: what enters the layer.
        keys_SD: keys of all stored positions; receives those of ``x_ND`` at ``own_N``.
        values_SD: values, likewise.
        own_N: places of the new positions in the store.
        seen_NT: places of each sequence's positions, the new one included, padded.
        bias_NT: 0, or minus infinity where padded.
    """
    attention, heads = layer.self_attn, layer.self_attn.num_heads
    assert isinstance(attention, SelfAttention)
    h = layer.self_attn_layer_norm(x_ND) if layer.pre_norm else x_ND
    keys_SD[own_N], values_SD[own_N] = attention.k_proj(h), attention.v_proj(h)
    count, length, dim = *seen_NT.shape, x_ND.shape[-1]
    q = attention.q_proj(h).view(count, heads, 1, dim // heads)
    k = keys_SD[seen_NT].view(count, length, heads, dim // heads).transpose(1, 2)
    v = values_SD[seen_NT].view(count, length, heads, dim // heads).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_NT[:, None, None])
    branch = attention.out_proj(mixed.transpose(1, 2).reshape(count, dim))
    return layer.after_attention(x_ND, branch)
