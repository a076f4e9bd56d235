"""The audio front end of data2vec 2.0: waveform convolutions, convolutional positions, ALiBi.

Positions come from convolutions over the frames themselves. The student's run over the masked sequence, so
that they cannot carry what is hidden; the teacher's run over the complete one.

B clips, S samples, R rows (clips x clones), T frames, K kept frames, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import nn

from .audio_masking import audio_span_masks
from .config import Data2VecMultiConfig
from .context import ContextEncoder
from .conv_spec import frame_count, parse_conv_layers
from .decoders import Decoder1d
from .errors import DataError
from .masking import MaskSet, random_masks
from .modality import ModalityEncoder, with_gradient_times
from .randomness import generator
from .waveform import PositionalConvolutions, WaveformConvolutions, frame_padding


class AudioEncoder(ModalityEncoder):
    """Local features, positions, attention bias, context encoder and decoder of the audio modality."""

    def __init__(self, config: Data2VecMultiConfig, with_decoder: bool) -> None:
        super().__init__(config)
        audio = config.modalities.audio
        assert audio is not None
        self.audio = audio
        dim = config.embed_dim
        self.layers = parse_conv_layers(audio.feature_encoder_spec)
        channels = self.layers[-1][0]
        self.local_encoder: nn.Module | None = WaveformConvolutions(self.layers)
        # Names follow the reference, which counts a transposition before the norm and before the positions.
        self.project_features: nn.ModuleDict | None = nn.ModuleDict(
            {"1": nn.LayerNorm(channels, eps=1e-5), "2": nn.Linear(channels, dim)}
        )
        positions = PositionalConvolutions(
            dim, audio.conv_pos_width, audio.conv_pos_groups, audio.conv_pos_depth, first=1
        )
        self.relative_positional_encoder: nn.ModuleDict = (
            nn.ModuleDict({"0": nn.LayerNorm(dim, eps=1e-5), "1": positions})
            if audio.conv_pos_pre_ln
            else positions
        )
        self.extra_tokens = None
        self.context_encoder = ContextEncoder(config, audio, final_norm=True)
        self.decoder = None
        if with_decoder and audio.decoder is not None:
            self.decoder = Decoder1d(audio.decoder, dim)

    def discard_unaveraged(self) -> None:
        """A teacher reads the student's frames: it has neither convolutions nor projection."""
        self.local_encoder = None
        self.project_features = None

    def compute_local_features(self, source: torch.Tensor) -> torch.Tensor:
        """(B, S) samples at 16 kHz to (B, T, D) frames; the gradient multiplier acts on the convolutions."""
        if source.ndim != 2 or frame_count(self.layers, source.shape[1]) == 0:
            raise DataError(
                f"audio is {tuple(source.shape)}; the model takes (B, samples), at least one frame"
            )
        assert self.local_encoder is not None
        return self.project(with_gradient_times(self.audio.local_grad_mult, self.local_encoder, source))

    def local_features(self, source: torch.Tensor) -> torch.Tensor:
        """Norm and projection after the convolutions always train, as in the reference."""
        return self.compute_local_features(source)

    def project(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, C) convolution outputs to (B, T, D)."""
        assert self.project_features is not None
        return self.project_features["2"](self.project_features["1"](x_BTC))

    def token_padding(self, padding_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
        """(B, S) flags of padded samples to (B, T) flags of padded frames; (B, T) flags pass through."""
        if padding_mask is not None and padding_mask.shape[1] == length:
            return padding_mask if bool(padding_mask.any()) else None
        return frame_padding(padding_mask, self.layers)

    def relative_positions(
        self, x_RTD: torch.Tensor, padding_mask_RT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Positions from the frames' own neighbourhood: (R, T, D) to (R, T, D).

        Padded frames do not reach real ones: a clip gives the same positions alone and in a longer batch.
        ``padding_leaks`` lets them, as the reference does.
        """
        if self.audio.padding_leaks:
            padding_mask_RT = None
        if self.audio.conv_pos_pre_ln:
            x_RTD = self.relative_positional_encoder["0"](x_RTD)
            return self.relative_positional_encoder["1"](x_RTD, padding_mask_RT)
        return self.relative_positional_encoder(x_RTD, padding_mask_RT)

    def add_positions(self, x_BTD: torch.Tensor, padding_mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Complete frames with their positions added."""
        return x_BTD + self.relative_positions(x_BTD, padding_mask_BT)

    def kept_features(
        self, x_BTD: torch.Tensor, masks: MaskSet, padding_mask_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The student's frames with positions that come from the masked sequence: (R, K, D)."""
        clones = masks.mask_RT.shape[0] // x_BTD.shape[0]
        padding = None if padding_mask_BT is None else padding_mask_BT.repeat_interleave(clones, dim=0)
        hidden_RTD = self.hide(
            x_BTD.repeat_interleave(clones, dim=0), masks.mask_RT, count=masks.masked_N.numel()
        )
        positions_RTD = self.relative_positions(hidden_RTD, padding)
        return masks.gather_kept(x_BTD) + masks.gather_kept_rows(positions_RTD)

    def hide(
        self,
        x_RTD: torch.Tensor,
        mask_RT: torch.Tensor,
        fill_ND: torch.Tensor | None = None,
        count: int | None = None,
    ) -> torch.Tensor:
        """Masked frames become zero, noise without ``encoder_zero_mask``, or given vectors, row by row.

        Without their ``count`` a GPU is asked for it where there is noise.
        """
        if fill_ND is None and not self.audio.encoder_zero_mask:
            count = int(mask_RT.sum()) if count is None else count
            fill_ND = torch.empty(count, x_RTD.shape[-1], device=x_RTD.device)
            fill_ND.normal_(0.0, self.audio.mask_noise_std)  # from the generator that dropout draws from
        if fill_ND is None:
            return x_RTD.masked_fill(mask_RT[..., None], 0.0)
        return x_RTD.masked_scatter(mask_RT[..., None], fill_ND.to(x_RTD.dtype))

    @property
    def counts_are_known(self) -> bool:
        """Spans overlap by chance."""
        return self.audio.mask_length == 1

    @torch.no_grad()
    def draw_masks(
        self,
        row_ids_R: torch.Tensor,
        length: int,
        padding_mask_BT: torch.Tensor | None,
        first_id: int,
        seed: int,
        update: int,
    ) -> MaskSet:
        """Spans, of which padded frames are no part; of length 1: random frames."""
        share, config = self.masked_share(first_id, seed, update), self.audio
        if config.mask_length > 1:
            return audio_span_masks(row_ids_R, length, share, config, padding_mask_BT, seed, update)
        return random_masks(row_ids_R, length, share, seed, update)

    def reset_parameters(self, seed: int, name: str) -> None:
        """Kaiming convolutions; PyTorch's own distribution in the decoder's and the features' projections."""
        if isinstance(self.local_encoder, WaveformConvolutions):
            self.local_encoder.reset_parameters(seed, name)
        linears: dict[str, nn.Linear] = {}
        if self.project_features is not None:
            projection = self.project_features["2"]
            assert isinstance(projection, nn.Linear)
            linears["project_features"] = projection
        if self.decoder is not None:
            modules = self.decoder.proj.named_modules()
            linears |= {f"proj.{key}": m for key, m in modules if isinstance(m, nn.Linear)}
        for key, linear in linears.items():
            bound = linear.in_features**-0.5
            linear.weight.uniform_(-bound, bound, generator=generator("init", seed, name, key, "weight"))
            linear.bias.uniform_(-bound, bound, generator=generator("init", seed, name, key, "bias"))
