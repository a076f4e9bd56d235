"""data2vec 1 for audio: front end, masked transformer, and the regression of its teacher's features.

The student sees the complete sequence with masked frames replaced by a learned vector; the teacher, an
average of the student's transformer, sees the same frames unmasked.

B clips, S samples, T frames, D width, N masked frames of all clips.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..attention import attention_bias
from ..audio_masking import span_masks
from ..conv_spec import frame_count, parse_conv_layers
from ..dropout import Dropout
from ..errors import DataError
from ..masking import masked_index
from ..modality import with_gradient_times
from ..placing import moved
from ..pretraining import Comparison
from ..randomness import generator
from ..student import Features, initialise
from ..targets import TargetAverage
from ..teacher import Teacher
from ..transformer import kept_blocks
from ..waveform import PositionalConvolutions, WaveformConvolutions, frame_padding
from .config import Data2VecAudioConfig
from .layers import EncoderLayer
from .objective import RegressionPretraining, Seen


class AudioTransformer(nn.Module):
    """Convolutional positions, norm and transformer layers: what the teacher averages."""

    def __init__(self, config: Data2VecAudioConfig) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.layerdrop, self.padding_leaks = config.encoder_layerdrop, config.padding_leaks
        self.pre_norm = config.layer_norm_first
        self.pos_conv = PositionalConvolutions(
            dim, config.conv_pos, config.conv_pos_groups, config.pos_conv_depth, first=0
        )
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                dim,
                config.encoder_ffn_embed_dim,
                config.encoder_attention_heads,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                activation=config.activation_fn,
                pre_norm=config.layer_norm_first,
            )
            for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(
        self,
        x_BTD: torch.Tensor,
        padding_mask_BT: torch.Tensor | None,
        *key: int | str,
        each: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """(B, T, D) frames to (B, T, D).

        Args:
            x_BTD: frames, masked or not.
            padding_mask_BT: (B, T) bool, true where padded.
            key: decides layer drop while training.
            each: receives the index, output and feed-forward output of every layer that runs.
        """
        if padding_mask_BT is not None:
            x_BTD = x_BTD.masked_fill(padding_mask_BT[..., None], 0.0)
        x = x_BTD + self.pos_conv(x_BTD, None if self.padding_leaks else padding_mask_BT)
        if not self.pre_norm:
            x = self.layer_norm(x)
        x = self.dropout(x)
        bias = attention_bias(padding_mask_BT)
        for index, layer in kept_blocks(self.layers, self.layerdrop, self.training, *key):
            x, candidate = layer(x, bias)
            if each is not None:
                each(index, x, candidate)
        return self.layer_norm(x) if self.pre_norm else x


class Data2VecAudio(nn.Module):
    """The network: waveform convolutions, projection, transformer and (for pretraining) the head.

    Args:
        config: architecture.
        with_head: build the regression head, which fine-tuning does not need.
        seed: seed of the initial weights.
    """

    def __init__(self, config: Data2VecAudioConfig, *, with_head: bool = True, seed: int = 1) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.conv_spec = parse_conv_layers(config.conv_feature_layers)
        dim, channels = config.encoder_embed_dim, self.conv_spec[-1][0]
        self.feature_extractor = WaveformConvolutions(self.conv_spec)
        self.layer_norm = nn.LayerNorm(channels, eps=1e-5)
        self.post_extract_proj = nn.Linear(channels, dim)
        self.dropout_input = Dropout(config.dropout_input)
        self.mask_emb = nn.Parameter(torch.zeros(dim))
        self.encoder = AudioTransformer(config)
        self.final_proj = nn.Linear(dim, dim) if with_head else None
        initialise(self, seed)
        self.feature_extractor.reset_parameters(seed, "feature_extractor")
        with torch.no_grad():
            self.mask_emb.uniform_(generator=generator("init", seed, "mask_emb"))
        for name, linear in (("post_extract_proj", self.post_extract_proj), ("final_proj", self.final_proj)):
            if linear is not None:
                _default_linear(linear, seed, name)

    def local_features(self, source_BS: torch.Tensor) -> torch.Tensor:
        """(B, S) samples at 16 kHz to (B, T, D) frames; the gradient multiplier acts on the convolutions."""
        if source_BS.ndim != 2 or frame_count(self.conv_spec, source_BS.shape[1]) == 0:
            raise DataError(
                f"audio is {tuple(source_BS.shape)}; the model takes (B, samples), at least one frame"
            )
        x_BTC = with_gradient_times(self.config.feature_grad_mult, self.feature_extractor, source_BS)
        return self.post_extract_proj(self.layer_norm(x_BTC))

    def token_padding(self, padding_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """(B, S) flags of padded samples to (B, T) flags of padded frames; ``None`` if nothing is padded."""
        return frame_padding(padding_mask, self.conv_spec)

    def draw_time_mask(
        self, ids_B: torch.Tensor, length: int, padding_mask_BT: torch.Tensor | None, *key: int | str
    ) -> torch.Tensor:
        """(B, T) bool: the spans that the configuration asks for."""
        config = self.config
        return span_masks(
            ids_B,
            length,
            mask_prob=config.mask_prob,
            mask_length=config.mask_length,
            valid_R=None if padding_mask_BT is None else (~padding_mask_BT).sum(dim=1),
            mask_dropout=config.mask_dropout,
            equal_counts=config.require_same_masks,
            key=key,
        )

    def draw_channel_mask(self, ids_B: torch.Tensor, *key: int | str) -> torch.Tensor | None:
        """(B, D) bool, or ``None`` without channel masking."""
        config = self.config
        if config.mask_channel_prob <= 0.0:
            return None
        return span_masks(
            ids_B,
            config.encoder_embed_dim,
            mask_prob=config.mask_channel_prob,
            mask_length=config.mask_channel_length,
            min_spans=0,
            equal_counts=config.require_same_masks,
            key=("channels", *key),
        )

    def hide(
        self,
        x_BTD: torch.Tensor,
        time_mask_BT: torch.Tensor | None,
        channel_mask_BD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Masked frames become the learned vector, masked channels zero, in the configured order."""
        if channel_mask_BD is not None and self.config.mask_channel_before:
            x_BTD = x_BTD.masked_fill(channel_mask_BD[:, None, :], 0.0)
        if time_mask_BT is not None:
            x_BTD = torch.where(time_mask_BT[..., None], self.mask_emb.to(x_BTD.dtype), x_BTD)
        if channel_mask_BD is not None and not self.config.mask_channel_before:
            x_BTD = x_BTD.masked_fill(channel_mask_BD[:, None, :], 0.0)
        return x_BTD

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        *key: int | str,
        all_layers: bool = False,
    ) -> Features:
        """Features of complete, unmasked audio.

        Args:
            source: (B, S) samples at 16 kHz.
            padding_mask: (B, S) bool, true where padded.
            key: decides layer drop while training.
            all_layers: also return every layer's output.
        """
        layers: list[torch.Tensor] = []
        x = self.local_features(source)
        padding = moved(self.token_padding(padding_mask, x.shape[1]), x.device)
        keep = (lambda _, output, __: layers.append(output)) if all_layers else None
        x = self.encoder(self.dropout_input(x), padding, *key, each=keep)
        return Features(x, tuple(layers))


class Data2VecAudioPretraining(RegressionPretraining[Data2VecAudio, Data2VecAudioConfig]):
    """Student, head and teacher with the objective of data2vec 1.

    Args:
        config: architecture and objective.
        seed: seed of the initial weights.
    """

    def __init__(self, config: Data2VecAudioConfig, *, seed: int = 1) -> None:
        super().__init__()
        self.config = config
        self.student = Data2VecAudio(config, seed=seed)
        copied = ("pos_conv.",) if config.ema_layers_only else ()
        self.teacher = Teacher(AudioTransformer(config), self.student.encoder, config, copied=copied)

    def see(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None,
        ids: torch.Tensor,
        mask_BT: torch.Tensor | None,
        *key: int,
    ) -> Seen:
        """Frames, masked in spans of frames and channels."""
        student = self.student
        local_BTD = student.local_features(source)
        padding = student.token_padding(padding_mask, local_BTD.shape[1])
        if mask_BT is None:
            mask_BT = student.draw_time_mask(ids, local_BTD.shape[1], padding, *key)
        channels, masked_N = student.draw_channel_mask(ids, *key), masked_index(mask_BT)
        device = source.device
        mask_BT, masked_N = moved(mask_BT, device), moved(masked_N, device)
        channels, padding = moved(channels, device), moved(padding, device)
        x_BTD, found = self.compute(local_BTD, padding, mask_BT, channels, masked_N, *key)
        return Seen(local_BTD, x_BTD, padding, found)

    def compute(
        self,
        local_BTD: torch.Tensor,
        padding_BT: torch.Tensor | None,
        mask_BT: torch.Tensor,
        channels_BD: torch.Tensor | None,
        masked_N: torch.Tensor,
        *key: int,
    ) -> tuple[torch.Tensor, Comparison]:
        """The encoder's output (B, T, D) and what comes of it: all that a device does by itself."""
        student = self.student
        hidden_BTD = student.hide(student.dropout_input(local_BTD), mask_BT, channels_BD)
        x_BTD = student.encoder(hidden_BTD, padding_BT, *key)
        return x_BTD, self._compare(x_BTD, self._targets(local_BTD, padding_BT), masked_N)

    def predict(self, x_ND: torch.Tensor) -> torch.Tensor:
        """One linear layer."""
        assert self.student.final_proj is not None
        return self.student.final_proj(x_ND)

    @torch.no_grad()
    def _targets(self, local_BTD: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """Normalised teacher features of every frame, (B, T, D) in fp32."""
        average = TargetAverage(self.config)
        self.teacher.module(
            local_BTD.detach(), padding, each=lambda index, _, candidate: average.add(index, candidate)
        )
        return average.result()


@torch.no_grad()
def _default_linear(linear: nn.Linear, seed: int, name: str) -> None:
    """PyTorch's own initialisation: only the transformer gets BERT's."""
    bound = linear.in_features**-0.5
    linear.weight.uniform_(-bound, bound, generator=generator("init", seed, name, "weight"))
    linear.bias.uniform_(-bound, bound, generator=generator("init", seed, name, "bias"))
