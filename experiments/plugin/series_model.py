"""data2vec 2.0 for series of several channels: its front end, and a model to use. No Ray, no MLflow.

B series, C channels, S steps, P steps of a patch, N = S / P, T = C * N tokens (channel by channel), D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from data2vec.artifact import Artifact, load_strictly
from data2vec.config import Data2VecMultiConfig, ModalityConfig
from data2vec.context import ContextEncoder
from data2vec.decoders import Decoder1d
from data2vec.errors import DataError, Problem
from data2vec.families import register_family
from data2vec.modality import ModalityEncoder
from data2vec.student import Data2VecMulti, register_front_end


@dataclass(kw_only=True)
class SeriesModalityConfig(ModalityConfig):
    """The front end: a linear layer over patches of each channel, learned channels and times."""

    channels: int = 8  # channels of a series
    steps: int = 8  # steps of a series
    patch: int = 2  # steps of one token


@dataclass(kw_only=True)
class Data2VecSeriesConfig(Data2VecMultiConfig):
    """data2vec 2.0 whose front end reads series; its teacher is the shared blocks alone."""

    series: SeriesModalityConfig = field(default_factory=SeriesModalityConfig)

    @property
    def modality_name(self) -> str:
        """In names of tensors."""
        return "SERIES"

    def front_end(self) -> ModalityConfig:
        """Of series."""
        return self.series

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
        super().__init__()
        series, dim = config.series, config.embed_dim
        self.config = self.series = series
        self.extra_tokens = None
        self.local_encoder = nn.Linear(series.patch, dim)
        self.channels = nn.Embedding(series.channels, dim)
        self.times = nn.Embedding(series.steps // series.patch, dim)
        self.context_encoder = ContextEncoder(config, series, final_norm=series.prenet_depth > 0)
        self.decoder = Decoder1d(series.decoder, dim) if with_decoder and series.decoder else None

    def compute_local_features(self, source: torch.Tensor) -> torch.Tensor:
        """(B, C, S) to (B, T, D), positions added."""
        wanted = (self.series.channels, self.series.steps)
        if source.shape[1:] != wanted:
            raise DataError(
                f"a series of {tuple(source.shape[1:])}; the model takes {wanted} channels, steps"
            )
        x_BCND = self.local_encoder(source.unflatten(-1, (-1, self.series.patch)))
        return (x_BCND + self.channels.weight[:, None] + self.times.weight).flatten(1, 2)


class SeriesModel:
    """What ``data2vec.load`` gives for a model folder of series."""

    def __init__(self, artifact: Artifact) -> None:
        self.config = artifact.config
        self.network = Data2VecMulti(artifact.model_config, with_decoder=False).eval()  # type: ignore[arg-type]
        load_strictly(self.network, artifact.trunk_state, artifact.folder)

    def to(self, device: Any) -> SeriesModel:
        """The same model, computing on ``device``."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def embed(self, series_CS: Any) -> np.ndarray:
        """Mean of the last block's tokens, (D,), of one series."""
        source = torch.as_tensor(np.asarray(series_CS, dtype=np.float32))[None]
        device = next(self.network.parameters()).device
        return self.network(source.to(device)).x_BTD.mean(dim=1)[0].float().cpu().numpy()


register_front_end("SERIES", SeriesEncoder)
register_family("data2vec_series", Data2VecSeriesConfig, "SERIES", f"{__name__}:SeriesModel")
