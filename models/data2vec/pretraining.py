"""The data2vec 2.0 objective: predict the teacher's features of the whole input from a part of it.

One step (v2 paper, section 3): local features of each sample once; M masks a sample, and the student sees
only what each mask leaves; a convolutional decoder fills the gaps; the teacher sees the complete input once,
and its averaged top layers are the target at masked positions.

B samples, M clones, R = B * M rows, T positions, K kept, N masked positions in all rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .attention import attention_bias
from .config import Data2VecMultiConfig
from .errors import ConfigError, Problem
from .masking import MaskSet, batch_mask_prob, clone_ids, random_masks, row_noise
from .student import Data2VecMulti, Tap
from .targets import TargetAverage
from .teacher import Teacher
from .transformer import make_blocks


@dataclass(frozen=True)
class Moments:
    """Sums over vectors, which add up over micro-batches and workers to a variance.

    Attributes:
        count: number of vectors.
        total_D: (D,) float64 sum.
        square_D: (D,) float64 sum of squares.
    """

    count: int
    total_D: torch.Tensor
    square_D: torch.Tensor

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
    """

    losses: dict[str, torch.Tensor]
    sample_size: int
    prediction: Moments
    target: Moments
    masked_pct: float

    @property
    def loss(self) -> torch.Tensor:
        """Sum of all losses."""
        return torch.stack(list(self.losses.values())).sum()


class Data2VecPretraining(nn.Module):
    """Student, decoder and teacher with the v2 objective.

    Args:
        config: architecture and objective.
        vocab_size: vocabulary of a text model.
        seed: seed of the initial weights.
    """

    def __init__(self, config: Data2VecMultiConfig, *, vocab_size: int, seed: int = 1) -> None:
        super().__init__()
        if config.modalities.text is not None and config.modalities.text.decoder is None:
            rule = "pretraining needs a decoder; give its fields, or leave the key out for the defaults"
            raise ConfigError(
                [Problem("model.modalities.text.decoder", None, rule)], "the model configuration"
            )
        self.config = config
        self.student = Data2VecMulti(config, vocab_size=vocab_size, seed=seed)
        # Text: the teacher is the shared blocks alone, and its embeddings are the student's.
        self.teacher = Teacher(make_blocks(config), self.student.blocks, config)

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
        tap: Tap | None = None,
    ) -> PretrainOutput:
        """Losses of one micro-batch.

        Args:
            source: (B, T) token ids.
            padding_mask: (B, T) bool, true where padded.
            ids: (B,) sample ids; masks and noise are functions of (seed, update, id, clone).
            update: completed optimizer updates.
            seed: seed of masks and noise; by default the configuration's.
            masks: given masks instead of drawn ones.
            noise_RJD: (R, T - K, D) given decoder noise instead of drawn one.
            tap: receives named intermediates.
        """
        config, encoder, modality = self.config, self.student.encoder, self.student.encoder.config
        clones = config.clone_batch
        if padding_mask is not None and not bool(padding_mask.any()):
            padding_mask = None
        local_BTD = encoder.local_features(source)
        if tap:
            tap("local_features", local_BTD)

        seed = config.seed if seed is None else seed
        ids = torch.arange(len(source), device=source.device) if ids is None else ids
        row_ids_R = clone_ids(ids, clones)
        if masks is None:
            share = batch_mask_prob(modality.mask_prob, modality.mask_prob_min, seed, update, int(ids[0]))
            masks = random_masks(row_ids_R, source.shape[1], share, seed, update)
        if noise_RJD is None:
            gaps = source.shape[1] - masks.num_kept
            noise_RJD = row_noise(
                row_ids_R, gaps, config.embed_dim, modality.mask_noise_std, source.device, seed, update
            )

        kept_padding = None if padding_mask is None else masks.gather_kept_flags(padding_mask)
        if tap and kept_padding is not None:
            tap("student_padding_mask_unmasked", kept_padding)
        x_RKD = self.student.encode(masks.gather_kept(local_BTD), kept_padding, seed, update, tap=tap)
        prediction_ND = self._decode(x_RKD, masks, noise_RJD, tap)
        target_ND = self._targets(local_BTD, padding_mask, masks, tap)

        losses = {"TEXT_regression": self._regression(prediction_ND, target_ND, tap)}
        return PretrainOutput(
            losses=losses,
            sample_size=masks.masked_N.numel(),
            prediction=Moments.of(prediction_ND),
            target=Moments.of(target_ND),
            masked_pct=1.0 - masks.num_kept / source.shape[1],
        )

    def _decode(
        self, x_RKD: torch.Tensor, masks: MaskSet, noise_RJD: torch.Tensor, tap: Tap | None
    ) -> torch.Tensor:
        """Predictions at masked positions, (N, D): only those are projected back to the model's width."""
        decoder = self.student.encoder.decoder
        assert decoder is not None
        if tap:
            tap("student_encoder_output", x_RKD)
        full_RTD = masks.scatter_kept(decoder.input_dropout(x_RKD), noise_RJD)
        convolved_RTC = decoder.convolve(full_RTD)
        if tap:
            tap("decoder_input", full_RTD)
            tap("decoder_output", decoder.project(convolved_RTC))
        return decoder.project(masks.gather_masked(convolved_RTC))

    @torch.no_grad()
    def _targets(
        self, local_BTD: torch.Tensor, padding_mask: torch.Tensor | None, masks: MaskSet, tap: Tap | None
    ) -> torch.Tensor:
        """Teacher features at masked positions, (N, D) in fp32."""
        bias = attention_bias(padding_mask)
        # The student's own front end feeds the teacher, dropout included: as the published models were
        # trained.
        x = self.student.encoder.context_encoder(local_BTD.detach(), bias)
        if tap:
            tap("teacher_encoder_input", x)
            if padding_mask is not None:
                tap("teacher_padding_mask", padding_mask)
        average = TargetAverage(self.config)
        assert isinstance(self.teacher.module, nn.ModuleList)
        for index, block in enumerate(self.teacher.module):
            x, candidate = block(x, bias)
            average.add(index, candidate)
            if tap:
                tap(f"teacher_block{index}_layer_result", candidate)
        targets_BTD = average.result()
        if tap:
            tap("targets", targets_BTD)
        return masks.gather_masked_targets(targets_BTD)

    def _regression(
        self, prediction_ND: torch.Tensor, target_ND: torch.Tensor, tap: Tap | None
    ) -> torch.Tensor:
        """Squared error or smooth L1, summed, scaled and weighted."""
        config = self.config
        scale = config.embed_dim**-0.5 if config.loss_scale is None else config.loss_scale
        prediction_ND = prediction_ND.float()

        def distance(reduction: str) -> torch.Tensor:
            if config.loss_beta == 0:
                return F.mse_loss(prediction_ND, target_ND, reduction=reduction)
            return F.smooth_l1_loss(prediction_ND, target_ND, reduction=reduction, beta=config.loss_beta)

        if tap:
            tap("loss_rowsum/TEXT_regression", distance("none").sum(dim=-1) * (scale * config.d2v_loss))
        return distance("sum") * (scale * config.d2v_loss)
