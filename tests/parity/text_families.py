"""data2vec 1 text cases: pretraining with a given mask.

B samples, T tokens.
"""

from __future__ import annotations

import torch
from cases import Case, UnreadableCase
from compare import SCHEDULE, Report
from families import compare_after, compare_forward, compare_output, step
from intermediates import intermediates
from weights import import_case

from data2vec.config import Data2VecMultiConfig
from data2vec.text import PAD
from data2vec.v1.text import Data2VecTextPretraining
from data2vec.v1.text_config import Data2VecTextConfig


def build_v1_text(case: Case, notes: list[str]) -> Data2VecTextPretraining:
    """Student, head and teacher of data2vec 1 for text with the recorded weights."""
    imported = import_case(case, {"model": {"_name": "data2vec_text", **case.value("config")}}, notes)
    assert isinstance(imported.model_config, Data2VecTextConfig) and imported.vocab_size is not None
    model = Data2VecTextPretraining(imported.model_config, vocab_size=imported.vocab_size)
    model.student.load_state_dict(imported.state)
    if imported.teacher is None:
        model.teacher.copy_from_student()
    else:
        model.teacher.module.load_state_dict(imported.teacher)
    return model.to(case.device)


def v1_text_pretraining(case: Case, report: Report, notes: list[str]) -> None:
    """Forward, backward, one optimizer step and the teacher's step after it."""
    model = build_v1_text(case, notes)
    model.train(case.info.get("training", True))
    report.seen("mask_token_id", "pad_id", "vocab_size")
    report.number("pad_id", PAD, case.info.get("pad_id", PAD), 0.0)
    report.number("mask_token_id", model.mask_id, case.info.get("mask_token_id", model.mask_id), 0.0)
    masked, mask = case.feed("input/src_tokens"), case.feed("mask/mask").bool()
    seen_by_teacher = case.feed("input/target_tokens")
    # Our model masks by itself; what it is given must become exactly what the reference was given.
    if not torch.equal(seen_by_teacher.masked_fill(mask, model.mask_id), masked):
        model.config.teacher_sees_masked_only = True
        seen_by_teacher = torch.where(mask, seen_by_teacher, masked)
        if not torch.equal(seen_by_teacher.masked_fill(mask, model.mask_id), masked):
            raise UnreadableCase(f"{case.folder}: input/src_tokens is not input/target_tokens masked")
    with intermediates(model) as found:
        output = model(seen_by_teacher, mask_BT=mask)
    compare_forward(case, report, found)
    compare_output(report, output, case.info)
    if "ema_decay" in case.info:
        report.number("ema_decay", model.teacher.decay(0) * 1000, case.info["ema_decay"], SCHEDULE)
    step(case, report, model.student, Data2VecMultiConfig(), output.loss)
    if "ema_step" in case.info:
        update = int(case.value("ema_step", "num_updates"))
        decay = case.value("ema_step", "decay")
        report.number("ema_step.decay", model.teacher.decay(update), decay, SCHEDULE)
        if "copied_not_averaged" in case.info["ema_step"]:
            copied = {
                name
                for name, _ in model.teacher.module.named_parameters()
                if not name.startswith("layers.") and model.config.ema_transformer_layers_only
            }
            report.names(
                "ema_step.copied_not_averaged", copied, set(case.info["ema_step"]["copied_not_averaged"])
            )
        model.teacher.step(update)
    compare_after(case, report, model.student, model.teacher.module)
