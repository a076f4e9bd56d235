"""The data2vec 2.0 network: modality front end, context encoder, shared blocks and (optionally) a decoder.

Parameter names are the reference's, so that its checkpoints and ours are the same files.

B samples, R rows (samples x clones), T positions, K kept positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .audio import AudioEncoder
from .config import Data2VecMultiConfig
from .dropout import Dropout
from .image import ImageEncoder
from .modality import ModalityEncoder
from .placing import moved
from .randomness import generator
from .text import TextEncoder
from .transformer import kept_blocks, make_blocks, make_norm


@dataclass(frozen=True)
class Features:
    """What an encoder gives for B unmasked samples.

    Attributes:
        x_BTD: (B, T, D) output of the last block, extra tokens cut.
        layers: output of every block, lowest first, each (B, E + T, D), if asked for; the last one through
            the final norm of a pre-LN network.
        extra_BED: (B, E, D) output at the extra tokens.
    """

    x_BTD: torch.Tensor
    layers: tuple[torch.Tensor, ...] = ()
    extra_BED: torch.Tensor | None = None


class Data2VecMulti(nn.Module):
    """The network of one modality.

    Args:
        config: architecture.
        vocab_size: V, of a text model only.
        with_decoder: build what only pretraining needs: the decoder and a pixel projection.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        config: Data2VecMultiConfig,
        *,
        vocab_size: int | None = None,
        with_decoder: bool = True,
        seed: int = 1,
    ) -> None:
        super().__init__()
        config.check()
        self.config = config
        encoder = make_encoder(config, vocab_size, with_decoder)
        self.modality_encoders = nn.ModuleDict({config.modality_name: encoder})
        self.dropout_input = Dropout(config.dropout_input)
        self.blocks = make_blocks(config)
        self.norm = make_norm(config) if config.layer_norm_first else None
        dim = config.embed_dim
        self.recon_proj = nn.Linear(dim, dim) if with_decoder and config.recon_loss > 0 else None
        initialise(self, seed, xavier=config.mae_init)

    @property
    def encoder(self) -> ModalityEncoder:
        """The modality's front end."""
        encoder = self.modality_encoders[self.config.modality_name]
        assert isinstance(encoder, ModalityEncoder)
        return encoder

    def encode(
        self,
        x_RKD: torch.Tensor,
        padding_mask_RK: torch.Tensor | None,
        *key: int | str,
        positions_RK: torch.Tensor | None = None,
        layers: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Extra tokens, context encoder and shared blocks over (kept) local features.

        Args:
            x_RKD: (R, K, D), positions added.
            padding_mask_RK: (R, K) bool, true where padded.
            key: decides layer drop while training.
            positions_RK: (R, K) int64 positions of the kept features; ``None`` = all of them, in order.
            layers: gets the output of every shared block.

        Returns:
            (R, E + K, D).
        """
        x_RKD, padding_mask_RK = self.encoder.prepend_extra_tokens(x_RKD, padding_mask_RK)
        if positions_RK is None:
            positions_RK = torch.arange(x_RKD.shape[1], device=x_RKD.device)[None]
        count = self.encoder.config.prenet_depth + len(self.blocks)
        biases = self.encoder.attention_biases(positions_RK, padding_mask_RK, count)
        x = self.dropout_input(self.encoder.context_encoder(x_RKD, biases, *key))
        for index, block in kept_blocks(self.blocks, self.config.layerdrop, self.training, *key):
            x, _ = block(x, biases[index - len(self.blocks)])
            if layers is not None:
                layers.append(x)
        return x if self.norm is None else self.norm(x)

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        *key: int | str,
        all_layers: bool = False,
    ) -> Features:
        """Features of complete, unmasked input: what fine-tuning and embedding use.

        Args:
            source: what the front end takes: (B, T) token ids, (B, 3, S, S) images, (B, samples) of audio.
            padding_mask: (B, T) bool, or (B, samples) for audio, true where padded.
            key: decides layer drop while training.
            all_layers: also return every block's output.
        """
        layers: list[torch.Tensor] = []
        x = self.encoder.local_features(source)
        padding_mask = self.encoder.token_padding(padding_mask, x.shape[1])
        padding_mask = moved(padding_mask, x.device)
        x = self.encoder.add_positions(x, padding_mask)
        x = self.encode(x, padding_mask, *key, layers=layers if all_layers else None)
        if layers:
            layers[-1] = x
        extra = self.encoder.num_extra_tokens
        return Features(x[:, extra:], tuple(layers), x[:, :extra] if extra else None)


FrontEnd = Callable[[Any, int | None, bool], ModalityEncoder]
"""Makes a front end from (configuration, size of the vocabulary if there is one, with decoder)."""

_FRONT_ENDS: dict[str, FrontEnd] = {
    "TEXT": TextEncoder,
    "IMAGE": lambda config, _, with_decoder: ImageEncoder(config, with_decoder),
    "AUDIO": lambda config, _, with_decoder: AudioEncoder(config, with_decoder),
}


def register_front_end(modality: str, make: FrontEnd) -> None:
    """Let configurations whose ``modality_name`` is ``modality`` have a front end of your own."""
    _FRONT_ENDS[modality] = make


def make_encoder(config: Data2VecMultiConfig, vocab_size: int | None, with_decoder: bool) -> ModalityEncoder:
    """The front end of the configured modality."""
    return _FRONT_ENDS[config.modality_name](config, vocab_size, with_decoder)


@torch.no_grad()
def initialise(model: nn.Module, seed: int, *, xavier: bool = False, prefix: str = "") -> None:
    """BERT's initialisation, each tensor from its own generator so that build order does not matter.

    Linear and embedding weights are N(0, 0.02) with zero biases and zero padding rows; convolutions keep
    PyTorch's own uniform distribution; norms start as the identity. What a modality does otherwise stands in
    its ``reset_parameters``; text keeps N(0, 0.02) in its decoder projections too, as the reference does.

    Args:
        model: its parameters are overwritten.
        seed: of the weights.
        xavier: linear weights are Xavier-uniform instead, as in masked autoencoders.
        prefix: of the names that decide the draws, for a part that is built beside others.
    """
    for name, module in model.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear | nn.Embedding):
            draw = generator("init", seed, name)
            if xavier:
                nn.init.xavier_uniform_(module.weight, generator=draw)
            else:
                module.weight.normal_(0.0, 0.02, generator=draw)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            module.weight.uniform_(-bound, bound, generator=generator("init", seed, name))
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator("init", seed, name, "bias"))
    for name, module in model.named_modules():
        if isinstance(module, ModalityEncoder):
            module.reset_parameters(seed, name)
