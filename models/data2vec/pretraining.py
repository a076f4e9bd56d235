"""The data2vec 2.0 objective: predict the teacher's features of the whole input from a part of it.

One step (v2 paper, section 3): local features of each sample once; M masks a sample, and the student sees
only what each mask leaves; a convolutional decoder fills the gaps; the teacher sees the complete input once,
and its averaged top layers are the target at masked positions.

B samples, M clones, R = B * M rows, T positions, K kept, N masked positions in all rows, D width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from .clone_chunks import CloneChunk, clone_chunks
from .collapse import Scatter, stage_scatters
from .config import NO_TEACHER, Data2VecMultiConfig
from .errors import ConfigError, Problem
from .image import ImageEncoder, pixel_targets
from .masking import MaskSet, clone_ids, row_noise
from .placing import moved
from .randomness import hashed_normal, row_keys
from .student import Data2VecMulti, Features
from .targets import TargetAverage
from .teacher import Teacher
from .transformer import make_blocks, transformer_blocks

Student = TypeVar("Student", bound=nn.Module)


@dataclass(frozen=True)
class Moments:
    """Sums over vectors, which add up over micro-batches and workers to a variance."""

    count: int  # number of vectors
    total_D: torch.Tensor  # (D,) float64 sum
    square_D: torch.Tensor  # (D,) float64 sum of squares

    @classmethod
    def of(cls, x_ND: torch.Tensor) -> Moments:
        """Moments of N vectors, computed about their own mean for accuracy."""
        count = x_ND.shape[0]
        variance, mean = torch.var_mean(x_ND.detach().float(), dim=0, correction=0)
        mean64 = mean.double()
        return cls(count, count * mean64, count * (variance.double() + mean64.square()))

    def deviation(self) -> float:
        """Mean over channels of ``sqrt(variance + 1e-6)``: what the reference logs as ``target_var``."""
        if self.count < 2:
            return 0.0
        mean = self.total_D / self.count
        variance = (self.square_D - self.count * mean.square()) / (self.count - 1)
        return float((variance.clamp_min(0.0) + 1e-6).sqrt().mean())


@dataclass(frozen=True)
class PretrainOutput:
    """Result of one micro-batch.

    Attributes:
        losses: loss sums by name, weighted and scaled; their sum is what is differentiated.
        sample_size: number of masked positions, the divisor of losses and gradients.
        prediction: moments of the predictions at masked positions.
        target: moments of the targets there.
        masked_pct: masked share of positions.
        stages: sums for the collapse watch by stage, if they were asked for.
    """

    losses: dict[str, torch.Tensor]
    sample_size: int
    prediction: Moments
    target: Moments
    masked_pct: float
    stages: Mapping[str, Scatter] = field(default_factory=dict)

    @property
    def loss(self) -> torch.Tensor:
        """Sum of all losses."""
        return torch.stack(list(self.losses.values())).sum()


@dataclass(frozen=True)
class Comparison:
    """Predictions against targets: the end of every objective."""

    losses: dict[str, torch.Tensor]  # as in :class:`PretrainOutput`
    prediction_ND: torch.Tensor  # predictions at masked positions
    target_ND: torch.Tensor  # targets there
    prediction: Moments  # moments of the predictions
    target: Moments  # moments of the targets

    @classmethod
    def of(
        cls, losses: dict[str, torch.Tensor], prediction_ND: torch.Tensor, target_ND: torch.Tensor
    ) -> Comparison:
        """With the moments of both."""
        return cls(losses, prediction_ND, target_ND, Moments.of(prediction_ND), Moments.of(target_ND))

    def output(self, masked_pct: float, stages: Mapping[str, Scatter]) -> PretrainOutput:
        """What the micro-batch gives; for its other arguments see :class:`PretrainOutput`."""
        size = len(self.prediction_ND)
        return PretrainOutput(self.losses, size, self.prediction, self.target, masked_pct, stages)


class PretrainingModel(nn.Module, Generic[Student]):
    """A network that learns with what only pretraining needs; ``forward`` gives a :class:`PretrainOutput`."""

    student: Student

    def student_features(
        self, source: torch.Tensor, padding_mask: torch.Tensor | None = None, *, all_layers: bool = False
    ) -> Features:
        """The student's features of complete input, as its ``forward`` gives them."""
        return self.student(source, padding_mask, all_layers=all_layers)


class Data2VecPretraining(PretrainingModel[Data2VecMulti]):
    """Student, decoder and teacher with the v2 objective.

    Args:
        config: architecture and objective.
        vocab_size: V, of a text model only.
        seed: seed of the initial weights.
    """

    regions = ("_compare", "_hashed_noise")

    def __init__(self, config: Data2VecMultiConfig, *, vocab_size: int | None = None, seed: int = 1) -> None:
        super().__init__()
        if config.modality.decoder is None:
            where = f"model.modalities.{config.modality_name.lower()}.decoder"
            rule = "pretraining needs a decoder; give its fields, or leave the key out for the defaults"
            raise ConfigError([Problem(where, None, rule)], "the model configuration")
        if config.skip_ema:
            raise ConfigError([NO_TEACHER], "the model configuration")
        self.config = config
        self.student = Data2VecMulti(config, vocab_size=vocab_size, seed=seed)
        self.teacher = make_teacher(self.student)
        if not config.ema_same_dtype:
            for block in transformer_blocks(self.teacher):
                block.in_fp32 = True

    def forward(
        self,
        source: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        ids: torch.Tensor | None = None,
        *,
        update: int = 0,
        seed: int | None = None,
        masks: MaskSet | None = None,
        noise_RJD: torch.Tensor | None = None,
        watch: bool = False,
        chunk: CloneChunk | None = None,
    ) -> PretrainOutput:
        """Losses of one micro-batch.

        Args:
            source: what the front end takes: (B, T) token ids, (B, 3, S, S) images, (B, samples) of audio.
            padding_mask: (B, T) bool, or (B, samples) for audio, true where padded; best on the CPU, as is
                ``ids``: then a GPU is asked for nothing.
            ids: (B,) sample ids; masks and noise are functions of (seed, update, id, clone).
            update: completed optimizer updates.
            seed: seed of masks and noise; by default the configuration's.
            masks: given masks instead of drawn ones.
            noise_RJD: (R, T - K, D) given decoder noise instead of drawn one.
            watch: also sum what the collapse watch looks at.
            chunk: the clones to compute now; the chunks of a micro-batch come in order, each with its
                backward pass, and their sums are those of the micro-batch. By default all at once.
        """
        config, encoder = self.config, self.student.encoder
        clones, device = config.clone_batch, source.device
        if chunk is None:
            (chunk,) = clone_chunks(clones, clones)
        shared = chunk.shared
        if chunk.first:
            shared.local_BTD = encoder.local_features(source)
        local_BTD = chunk.local_features()
        length = local_BTD.shape[1]
        padding_mask = encoder.token_padding(padding_mask, length)

        seed = config.seed if seed is None else seed
        ids = torch.arange(len(source)) if ids is None else ids
        masks = shared.masks or masks
        if masks is None:
            row_ids_R = clone_ids(ids, clones)
            if encoder.counts_are_known:
                row_ids_R = moved(row_ids_R, device)
            masks = encoder.draw_masks(row_ids_R, length, padding_mask, int(ids[0]), seed, update)
        shared.masks = masks = masks.to(device)
        padding_mask = moved(padding_mask, device)
        total_size = masks.masked_N.numel()
        if len(chunk.clones) < clones:
            masks = masks.rows(chunk.rows(len(source), device))
        if shared.targets_BTD is None:  # before the student: working memory on top of nothing that is kept
            with self._teacher_precision(device):
                shared.targets_BTD = self._targets(source, local_BTD, padding_mask, (seed, update))
        targets_BTD = shared.targets_BTD

        kept_padding = None if padding_mask is None else masks.gather_kept_flags(padding_mask)
        kept_RKD = encoder.kept_features(local_BTD, masks, padding_mask)
        x_RKD = self.student.encode(kept_RKD, kept_padding, seed, update, positions_RK=masks.ids_keep_RK)
        if noise_RJD is None:
            row_ids_R = clone_ids(ids, clones)[chunk.rows(len(source), ids.device)]
            noise_RJD = self._noise(row_ids_R, length - masks.num_kept, device, seed, update)
        elif len(chunk.clones) < clones:
            noise_RJD = noise_RJD[chunk.rows(len(source), device)]
        found = self._compare(x_RKD, masks, noise_RJD, source, targets_BTD, total_size)
        del noise_RJD
        stages: dict[str, Scatter] = {}
        if watch:
            seen_RKD = x_RKD[:, encoder.num_extra_tokens :]
            stages = stage_scatters({
                "encoder": (seen_RKD, kept_padding), "targets": (found.target_ND, None),
                "predictions": (found.prediction_ND, None),
            } | ({"local_features": (local_BTD, padding_mask)} if chunk.first else {}))  # fmt: skip
        return found.output(1.0 - masks.num_kept / length, stages)

    def _noise(self, row_ids_R: torch.Tensor, gaps: int, device: torch.device, *key: int) -> torch.Tensor:
        """(R, gaps, D) decoder noise; ``key`` is (seed, update)."""
        std = self.student.encoder.config.mask_noise_std
        if device.type == "cpu":
            return row_noise(row_ids_R, gaps, self.config.embed_dim, std, *key)
        keys_R = row_keys("noise", *key, ids_R=moved(row_ids_R, device))
        return self._hashed_noise(keys_R, gaps, std)

    def _hashed_noise(self, keys_R: torch.Tensor, gaps: int, std: float) -> torch.Tensor:
        """Where rows are many and small: all of them at once."""
        dim = self.config.embed_dim
        return hashed_normal(keys_R, gaps * dim).view(-1, gaps, dim) * std

    def _compare(
        self,
        x_RKD: torch.Tensor,
        masks: MaskSet,
        noise_RJD: torch.Tensor,
        source: torch.Tensor,
        targets_BTD: torch.Tensor,
        total_size: int,
    ) -> Comparison:
        """Decode, and compare with the targets; ``total_size`` is the N of all clones."""
        config, encoder = self.config, self.student.encoder
        prediction_ND = self._decode(x_RKD, masks, noise_RJD)
        target_ND = masks.gather_masked_targets(targets_BTD)
        losses: dict[str, torch.Tensor] = {}
        if config.cls_loss > 0:
            class_RD = x_RKD[:, encoder.num_extra_tokens - 1]
            mean_RD = targets_BTD.mean(dim=1).repeat_interleave(len(x_RKD) // len(targets_BTD), dim=0)
            # Times the local sample size, as in the reference: its weight grows with the micro-batch.
            losses["cls"] = self._distance(class_RD, mean_RD, config.cls_loss * total_size)
        if config.recon_loss > 0:
            losses["recon"] = self._reconstruction(source, prediction_ND, masks)
        if config.d2v_loss > 0:
            name = f"{config.modality_name}_regression"
            losses[name] = self._distance(prediction_ND, target_ND, config.d2v_loss)
        return Comparison.of(losses, prediction_ND, target_ND)

    def _decode(self, x_RKD: torch.Tensor, masks: MaskSet, noise_RJD: torch.Tensor) -> torch.Tensor:
        """Predictions at masked positions, (N, D): only those are projected back to the model's width."""
        encoder = self.student.encoder
        decoder = encoder.decoder
        assert decoder is not None
        kept_RKD = decoder.input_dropout(x_RKD[:, encoder.num_extra_tokens :])
        full_RTD = masks.scatter_kept(kept_RKD, noise_RJD)
        if decoder.add_positions_masked or decoder.add_positions_all:
            positions_1TD = encoder.positions(full_RTD.shape[1])
            assert positions_1TD is not None, "Data2VecMultiConfig.check refuses this"
            where_RT1 = None if decoder.add_positions_all else masks.mask_RT[..., None]
            full_RTD = full_RTD + (positions_1TD if where_RT1 is None else positions_1TD * where_RT1)
        return decoder.project(masks.gather_masked(decoder.convolve(full_RTD)))

    def _teacher_precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """The student's, or ``ema_same_dtype=false``: fp32, whatever the student computes in."""
        if self.config.ema_same_dtype:
            return contextlib.nullcontext()
        return torch.autocast(device.type, enabled=False)

    @torch.no_grad()
    def _targets(
        self,
        source: torch.Tensor,
        local_BTD: torch.Tensor,
        padding_mask: torch.Tensor | None,
        key: tuple[int, int],
    ) -> torch.Tensor:
        """Normalised teacher features of every position, (B, T, D) in fp32; ``key`` is (seed, update)."""
        module = self.teacher.module
        if isinstance(module, Data2VecMulti):
            encoder, blocks = module.encoder, module.blocks
        else:
            # The student's own front end feeds the teacher, dropout and a layer drop of this pass's own
            # included: as the published models were trained.
            assert isinstance(module, nn.ModuleList)
            encoder, blocks = self.student.encoder, module
        x = local_BTD.detach() if self.config.ema_same_dtype else local_BTD.detach().float()
        if encoder.config.ema_local_encoder and isinstance(module, Data2VecMulti):
            x = encoder.local_features(source)
        x, padding = encoder.prepend_extra_tokens(encoder.add_positions(x, padding_mask), padding_mask)
        positions_1T = torch.arange(x.shape[1], device=x.device)[None]
        biases = encoder.attention_biases(positions_1T, padding, encoder.config.prenet_depth + len(blocks))
        x = encoder.context_encoder(x, biases, "teacher", *key)
        average, extra = TargetAverage(self.config), encoder.num_extra_tokens
        for index, block in enumerate(blocks):
            x, candidate = block(x, biases[index - len(blocks)])
            average.add(index, candidate[:, extra:])
        return average.result()

    def _reconstruction(
        self, source: torch.Tensor, prediction_ND: torch.Tensor, masks: MaskSet
    ) -> torch.Tensor:
        """Loss against the pixels of each masked patch, normalised within the patch."""
        assert self.student.recon_proj is not None and isinstance(self.student.encoder, ImageEncoder)
        pixels_BTD = pixel_targets(source, self.student.encoder.image.patch_size)
        target_ND = masks.gather_masked_targets(pixels_BTD)
        predicted_ND = self.student.recon_proj(prediction_ND)
        return self._distance(predicted_ND, target_ND, self.config.recon_loss)

    def _distance(self, prediction_ND: torch.Tensor, target_ND: torch.Tensor, weight: float) -> torch.Tensor:
        """Squared error or smooth L1, summed, scaled and weighted."""
        config = self.config
        scale = config.embed_dim**-0.5 if config.loss_scale is None else config.loss_scale
        return regression_loss(prediction_ND.float(), target_ND, config.loss_beta, scale * weight)


def regression_loss(
    prediction_ND: torch.Tensor, target_ND: torch.Tensor, beta: float, scale: float
) -> torch.Tensor:
    """Summed squared error (``beta`` 0) or smooth L1, times ``scale``."""
    if beta == 0:
        return F.mse_loss(prediction_ND, target_ND, reduction="sum") * scale
    return F.smooth_l1_loss(prediction_ND, target_ND, reduction="sum", beta=beta) * scale


def make_teacher(student: Data2VecMulti) -> Teacher:
    """The part of the student that its configuration averages, as a teacher.

    ``ema_encoder_only``: the shared blocks alone. Otherwise everything but the decoder, without the front
    end where ``ema_local_encoder`` is false.
    """
    config = student.config
    if config.ema_encoder_only:
        return Teacher(make_blocks(config), student.blocks, config)
    module = copy.deepcopy(student)
    module.recon_proj = None
    module.encoder.decoder = None
    module.encoder.discard_unaveraged()
    return Teacher(module, student, config)
