"""data2vec 2.0 for series of several channels: its front end. No Ray, no MLflow.

B series, C channels, S steps, P steps of a patch, N = S / P, T = C * N tokens (channel by channel), D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from data2vec.config import Data2VecMultiConfig, ModalityConfig
from data2vec.context import ContextEncoder
from data2vec.decoders import Decoder1d
from data2vec.errors import Problem
from data2vec.families import register_family
from data2vec.modality import ModalityEncoder
from data2vec.student import register_front_end


@dataclass(kw_only=True)
class SeriesModalityConfig(ModalityConfig):
    """The front end: a linear layer over patches of each channel, learned channels and times."""

    channels: int = 8  # channels of a series
    steps: int = 8  # steps of a series
    patch: int = 2  # steps of one token

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one series."""
        return self.channels, self.steps


@dataclass(kw_only=True)
class Data2VecSeriesConfig(Data2VecMultiConfig):
    """data2vec 2.0 whose front end reads series; its teacher is the shared blocks alone."""

    own_modality = "series"
    series: SeriesModalityConfig = field(default_factory=SeriesModalityConfig)

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible, all of it."""
        found, series = super().problems(path), self.series
        if series.patch < 1 or series.steps < 1 or series.steps % series.patch:
            found.append(Problem(f"{path}.series.patch", series.patch, f"must divide steps {series.steps}"))
        if series.channels < 1:
            found.append(Problem(f"{path}.series.channels", series.channels, "must be >= 1"))
        if not self.ema_encoder_only:
            found.append(Problem(f"{path}.ema_encoder_only", False, "series support true only"))
        return found


class SeriesEncoder(ModalityEncoder):
    """Patches, positions, context encoder and decoder."""

    def __init__(self, config: Data2VecSeriesConfig, _: int | None, with_decoder: bool) -> None:
        super().__init__(config)
        series, dim = config.series, config.embed_dim
        self.series = series
        self.extra_tokens = None
        self.local_encoder = nn.Linear(series.patch, dim)
        self.channels = nn.Embedding(series.channels, dim)
        self.times = nn.Embedding(series.steps // series.patch, dim)
        self.context_encoder = ContextEncoder(config, series, final_norm=series.prenet_depth > 0)
        self.decoder = Decoder1d(series.decoder, dim) if with_decoder and series.decoder else None

    def compute_local_features(self, source: torch.Tensor) -> torch.Tensor:
        """(B, C, S) to (B, T, D), positions added."""
        x_BCND = self.local_encoder(source.unflatten(-1, (-1, self.series.patch)))
        return (x_BCND + self.channels.weight[:, None] + self.times.weight).flatten(1, 2)


register_front_end("SERIES", SeriesEncoder)
register_family("data2vec_series", Data2VecSeriesConfig, "SERIES")
