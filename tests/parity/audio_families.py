"""Audio cases: the first generation's pretraining, and CTC fine-tuning of both.

B utterances, T frames, V symbols.
"""

from __future__ import annotations

import torch
from cases import Case
from compare import CTC_AFTER, CTC_GRAD, CTC_GRAD_NORM, LOSS, SCHEDULE, Report
from families import compare_after, compare_forward, compare_output, step
from intermediates import intermediates
from weights import build_ctc, build_v1_audio

from data2vec.audio_trunk import TrainingMasks
from data2vec.config import Data2VecMultiConfig


def v1_pretraining(case: Case, report: Report, notes: list[str]) -> None:
    """Forward, backward, one optimizer step and the teacher's step after it."""
    model = build_v1_audio(case, notes)
    model.train(case.info.get("training", True))
    with intermediates(model) as found:
        output = model(
            case.feed("input/source"),
            case.feed_optional("input/padding_mask"),
            mask_BT=case.feed("mask/mask").bool(),
        )
    for key in case.tensors:  # recorded for other layers or masks than ours passes on
        if key == "out/padding_mask_frames" and "padding_mask_frames" not in found:
            found["padding_mask_frames"] = torch.zeros_like(case.tensors[key])
    compare_forward(case, report, found)
    compare_output(report, output, case.info)
    if "ema_decay" in case.info:
        report.number("ema_decay", model.teacher.decay(0) * 1000, case.info["ema_decay"], SCHEDULE)
    step(case, report, model.student, Data2VecMultiConfig(), output.loss)
    if "ema_step" in case.info:
        update = int(case.value("ema_step", "num_updates"))
        decay = case.value("ema_step", "decay")
        report.number("ema_step.decay", model.teacher.decay(update), decay, SCHEDULE)
        copied = [name for name in model.teacher.module.state_dict() if name.startswith("pos_conv.")]
        if "copied_not_averaged" in case.info["ema_step"]:
            recorded = set(case.info["ema_step"]["copied_not_averaged"])
            report.names("ema_step.copied_not_averaged", set(copied), recorded)
        model.teacher.step(update)
    compare_after(case, report, model.student, model.teacher.module)


def ctc(case: Case, report: Report, notes: list[str]) -> None:
    """Features, projection, loss, backward and one optimizer step."""
    model = build_ctc(case, notes)
    model.train(case.info.get("training", True))
    report.grad_norm_limit, report.grad_limit, report.after_limit = CTC_GRAD_NORM, CTC_GRAD, CTC_AFTER
    report.seen("pretrain_config", "config", "num_updates", "blank", "classes", "checkpoint_overrides")
    report.seen("time_mask_fill", "sample_size_note")
    report.number("blank", 0, case.info.get("blank", 0), 0.0)
    masks = TrainingMasks(
        case.feed_optional("mask/time_mask"),
        case.feed_optional("mask/channel_mask"),
        case.feed_optional("rng/time_mask_fill_noise"),
    )
    output = model(
        case.feed("input/source"),
        case.feed_optional("input/padding_mask"),
        update=int(case.info.get("num_updates", 0)),
        masks=masks,
    )
    found = {
        "encoder_logits_TBV_raw": output.logits_BTV.detach().transpose(0, 1),
        "log_probs_TBV": output.emissions().detach().transpose(0, 1),
        "input_lengths": output.frames_B,
    }
    if output.padding_mask_BT is not None:
        found["padding_mask_frames"] = output.padding_mask_BT
    elif "out/padding_mask_frames" in case.tensors:
        found["padding_mask_frames"] = torch.zeros_like(case.tensors["out/padding_mask_frames"])
    compare_forward(case, report, found)
    targets = case.feed_optional("input/targets")
    if targets is not None:
        sums = model.loss(output, targets, case.feed("input/target_lengths"))
        report.number("losses_sum", float(sums.loss.detach()), case.info.get("losses_sum"), LOSS)
        if "sample_size" in case.info:
            report.number("sample_size", sums.sentences, case.info["sample_size"], 0.0)
        step(case, report, model, Data2VecMultiConfig(), sums.loss)
    compare_after(case, report, model, None)
