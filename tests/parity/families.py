"""Running a case of each family through our library and comparing everything that it records.

B samples, M clones, R = B * M rows, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from cases import Case, UnreadableCase, UnsupportedCase, family_of
from compare import (
    LOSS,
    OUT,
    OUT_FINE_TUNING,
    SCHEDULE,
    SMALL_LOSS,
    SMALL_LOSS_SHARE,
    TINY_GRAD_NORM,
    TRAJECTORY_LOSS,
    Report,
)
from compare import cut as cut_like
from intermediates import intermediates
from torch import nn
from weights import build_classifier, build_pretraining, is_regression

from data2vec.config import Data2VecMultiConfig
from data2vec.masking import MaskSet
from data2vec.optim import GroupSettings, ParameterGroup, ScheduledAdam, parameter_groups, scale_and_clip
from data2vec.pretraining import PretrainOutput
from data2vec.schedules import Cosine, Fixed, PolynomialDecay, Schedule, TriStage
from data2vec.student import Features
from data2vec.teacher import annealed_decay


def run_case(case: Case) -> Report:
    """Run a case and compare.

    Raises:
        UnsupportedCase: its family or an option is not built.
        UnreadableCase: something it needs is missing.
    """
    report = Report(case)
    notes: list[str] = []
    from audio_families import ctc, v1_pretraining
    from image_families import image_classifier, param_groups, v1_vision  # it builds on this module
    from mask_families import mask_statistics
    from text_families import v1_text_pretraining

    runners: dict[str, Callable[[Case, Report, list[str]], None]] = {
        "v2_text": _pretraining,
        "v2_image": _pretraining,
        "v2_audio": _pretraining,
        "trajectory_v2_text": _trajectory,
        "trajectory_v2_image": _trajectory,
        "trajectory_v2_audio": _trajectory,
        "ft_text": _sentence_classifier,
        "schedules": _schedules,
        "ft_image": image_classifier,
        "v1_audio": v1_pretraining,
        "v1_vision": v1_vision,
        "v1_text": v1_text_pretraining,
        "ft_ctc": ctc,
        "param_groups": param_groups,
        "mask_statistics": mask_statistics,
    }
    runners[family_of(case)](case, report, notes)
    report.remarks += notes
    report.close()
    return report


def _pretraining(case: Case, report: Report, notes: list[str]) -> None:
    """Forward, backward, one optimizer step and the teacher's step after it."""
    model = build_pretraining(case, notes)
    model.train(case.info.get("training", True))
    mask = case.feed("mask/mask")
    given = case.feed_optional("input/precomputed_mask")
    if given is not None:
        differing = int((given.bool() != mask.bool()).sum())
        report.number("input/precomputed_mask (frames that differ from mask/mask)", differing, 0, 0.0)
    with intermediates(model) as found:
        output = model(
            case.feed("input/source"),
            case.feed_optional("input/padding_mask"),
            case.feed_optional("input/id"),
            masks=MaskSet.from_mask(
                mask, case.feed_optional("mask/ids_keep"), case.feed_optional("mask/ids_restore")
            ),
            noise_RJD=_noise(case, "rng/decoder_mask_token_noise", model.config),
        )
    compare_forward(case, report, found)
    compare_output(report, output, case.info)
    if "ema_decay" in case.info:  # as the model logs it: in thousandths, at update 0
        report.number("ema_decay", model.teacher.decay(0) * 1000, case.info["ema_decay"], SCHEDULE)
    step(case, report, model.student, model.config, output.loss)
    if "ema_step" in case.info:
        update = int(case.value("ema_step", "num_updates"))
        report.number(
            "ema_step.decay", model.teacher.decay(update), case.value("ema_step", "decay"), SCHEDULE
        )
        model.teacher.step(update)
    compare_after(case, report, model.student, model.teacher.module)


def _trajectory(case: Case, report: Report, notes: list[str]) -> None:
    """Several updates: teacher's step, forward, backward, clipping, optimizer step."""
    model = build_pretraining(case, notes)
    model.train()
    recipe, log = case.value("optimizer"), case.value("log")
    report.seen("config", "optimizer", "log")
    of_adam = {"clip_norm", "betas", "eps", "weight_decay"}
    renamed = {"lr_peak": "peak_lr"}
    schedule = _schedule({renamed.get(k, k): v for k, v in recipe.items() if k not in of_adam})
    groups = parameter_groups(model.student, dynamic=False)
    settings = {"default": _settings(recipe, recipe)}
    optimizer = ScheduledAdam(groups, settings, [[schedule]])
    for update, entry in enumerate(log):
        model.teacher.step(update)
        where = f"log.{update}"
        report.number(f"{where}.lr", schedule(update), entry["lr"], SCHEDULE)
        report.number(
            f"{where}.ema_decay_in_force", model.teacher.decay(update), entry["ema_decay_in_force"], SCHEDULE
        )
        key = f"step{update}/"
        case.feed_optional(key + "input/precomputed_mask")  # is step<u>/mask, which is what was used
        output = model(
            case.feed(key + "input/source"),
            case.feed_optional(key + "input/padding_mask"),
            case.feed_optional(key + "input/id"),
            update=update,
            masks=MaskSet.from_mask(
                case.feed(key + "mask"),
                case.feed_optional(key + "ids_keep"),
                case.feed_optional(key + "ids_restore"),
            ),
            noise_RJD=_noise(case, key + "decoder_mask_token_noise", model.config),
        )
        for parameter in model.student.parameters():
            parameter.grad = None
        output.loss.backward()
        norm = scale_and_clip(model.student.parameters(), output.sample_size, recipe["clip_norm"] or 0.0)
        optimizer.step(update)
        total = float(output.loss.detach())
        report.number(f"{where}.sample_size", output.sample_size, entry["sample_size"], 0.0)
        report.names(f"{where}.losses", set(output.losses), set(entry["losses"]))
        mine: dict[str, float] = {
            "loss_sum": total,
            "loss_per_token": total / output.sample_size,
            "grad_norm": norm,
            "pred_var": output.prediction.deviation(),
            "target_var": output.target.deviation(),
        }
        for name, value in mine.items():
            if name in entry:
                report.number(f"{where}.{name}", value, entry[name], TRAJECTORY_LOSS)
        for name in set(output.losses) & set(entry["losses"]):
            loss = float(output.losses[name].detach())
            report.number(f"{where}.losses.{name}", loss, entry["losses"][name], TRAJECTORY_LOSS)
        compared = {*mine, "lr", "ema_decay_in_force", "update", "sample_size", "losses"}
        report.remarks += [
            f"{where}.{name}: not compared: unknown to this check" for name in entry.keys() - compared
        ]
        if "losses_sum" in case.info:
            report.number(f"losses_sum.{update}", total, case.info["losses_sum"][update], TRAJECTORY_LOSS)
    compare_after(case, report, model.student, model.teacher.module)


def _sentence_classifier(case: Case, report: Report, notes: list[str]) -> None:
    """Features of the first token, head, loss, backward and one optimizer step."""
    model = build_classifier(case, notes)
    model.train(case.info.get("training", True))
    report.seen("pretrain_config", "config")
    found: dict[str, torch.Tensor] = {}

    def keep_features(_module: nn.Module, _inputs: object, features: Features) -> None:
        found["features"] = features.x_BTD.detach().clone()

    model.model.register_forward_hook(keep_features)
    logits_BC = model(case.feed("input/source"), case.feed_optional("input/padding_mask"))
    found["logits"] = logits_BC.detach().clone()
    compare_forward(case, report, found)
    target = case.feed_optional("input/target")
    if target is not None:
        loss = model.loss(logits_BC, target, is_regression(case)).loss
        report.number("losses_sum", float(loss.detach()), case.info.get("losses_sum"), LOSS)
        if len(case.info.get("losses", {})) == 1:
            (name,) = case.info["losses"]
            report.number(f"losses.{name}", float(loss.detach()), case.info["losses"][name], LOSS)
        if "sample_size" in case.info:
            report.number("sample_size", len(target), case.info["sample_size"], 0.0)
        step(case, report, model, model.model.config, loss)
    compare_after(case, report, model, None)


def _schedules(case: Case, report: Report, notes: list[str]) -> None:
    """Learning rates and teacher decays at given updates."""
    report.seen("lr", "ema")
    for index, entry in enumerate(case.info.get("lr", [])):
        name = f"lr.{index}.{entry.get('config', entry.get('schedule'))}"
        schedule = _schedule({k: v for k, v in entry.items() if k not in ("config", "steps", "lr")})
        for update, recorded in zip(entry["steps"], entry["lr"], strict=True):
            report.number(f"{name}@{update}", schedule(update), recorded, SCHEDULE)
    for index, entry in enumerate(case.info.get("ema", [])):
        name = f"ema.{index}.{entry.get('config', '')}"
        for position, (update, recorded) in enumerate(zip(entry["steps"], entry["decay"], strict=True)):
            decay = annealed_decay(entry["start"], entry["end"], entry["anneal_end"], update)
            report.number(f"{name}@{update}", decay, recorded, SCHEDULE)
            if "teacher_moves" in entry:
                report.number(
                    f"{name}@{update}.moves", int(decay != 1.0), int(entry["teacher_moves"][position]), 0.0
                )


def _schedule(entry: Mapping[str, Any]) -> Schedule:
    """A schedule from the recipe's field names; a field that is not understood is refused, not ignored."""
    fields = dict(entry)
    kind, peak, max_update = fields.pop("schedule", None), fields.pop("peak_lr"), fields.pop("max_update", 0)
    renamed = {"lr_period_updates": "period_updates", "end_learning_rate": "end", "total_num_update": "total",
               "init_lr_scale": "init_scale", "final_lr_scale": "final_scale"}  # fmt: skip
    fields = {renamed.get(name, name): value for name, value in fields.items()}
    try:
        if kind == "cosine":
            return Cosine(peak=peak, max_update=max_update, **fields)
        if kind == "polynomial_decay":
            return PolynomialDecay(peak=peak, **{"total": max_update, **fields})
        if kind == "tri_stage":
            if (ratios := fields.pop("phase_ratio", None)) is not None:
                names = ("warmup_steps", "hold_steps", "decay_steps")
                fields |= {name: int(max_update * ratio) for name, ratio in zip(names, ratios, strict=True)}
            return TriStage(peak=peak, **fields)
        if kind == "fixed":
            return Fixed(peak=peak, **fields)
    except TypeError as error:
        raise UnsupportedCase(f"schedule {kind}: {error}") from None
    raise UnsupportedCase(f"schedule {kind!r} is not built yet")


def _noise(case: Case, key: str, config: Data2VecMultiConfig) -> torch.Tensor | None:
    """The recorded decoder noise; it may be absent only where its deviation is 0 and ours is zero too."""
    if key not in case.tensors and config.modality.mask_noise_std == 0.0:
        return None
    return case.feed(key)


def compare_forward(case: Case, report: Report, found: Mapping[str, torch.Tensor]) -> None:
    limit = OUT_FINE_TUNING if "pretrain_config" in case.info else OUT
    for key in case.tensors:
        if not key.startswith(("out/", "loss_rowsum/")):
            continue
        mine = found.get(key.removeprefix("out/"))
        if mine is None and key.endswith("_padding_mask"):
            mine = torch.zeros_like(case.tensors[key])  # we pass no mask on where nothing is padded
        report.tensor(key, mine, limit)
    name = "student_padding_mask_unmasked"
    if (
        f"out/{name}" not in case.tensors and name in found
    ):  # the reference drops a mask of kept tokens without pads
        report.number(f"out/{name} (pads kept)", int(found[name].sum()), 0, 0.0)


def compare_output(report: Report, output: PretrainOutput, info: Mapping[str, Any]) -> None:
    losses = info.get("losses", {})
    report.seen("config", "losses")
    report.names("losses", set(output.losses), set(losses))
    for name in set(losses) & set(output.losses):
        small = abs(losses[name]) < SMALL_LOSS_SHARE * abs(info["losses_sum"])
        limit = SMALL_LOSS if small else LOSS
        report.number(f"losses.{name}", float(output.losses[name].detach()), losses[name], limit)
    report.number("losses_sum", float(output.loss.detach()), info.get("losses_sum"), LOSS)
    report.number("sample_size", output.sample_size, info.get("sample_size"), 0.0)
    for name, mine in (
        ("pred_var", output.prediction.deviation()),
        ("target_var", output.target.deviation()),
        ("masked_pct", output.masked_pct),
    ):
        if name in info:
            report.number(name, mine, info[name], OUT)


def step(
    case: Case,
    report: Report,
    model: nn.Module,
    config: Data2VecMultiConfig,
    loss: torch.Tensor,
    lr_scales: Mapping[str, float] | None = None,
) -> None:
    """Backward and the recorded optimizer step; evaluation-mode cases record neither."""
    if "grad_norms" in case.info:
        loss.backward()
        recorded = case.value("grad_norms")
        # Frozen parameters (sin-cos positions) are not recorded; trainable ones without a gradient are null.
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        frozen_here = {name for name, norm in recorded.items() if norm is None and name not in parameters}
        report.names("grad_norms", set(parameters), set(recorded) - frozen_here)
        for name in sorted(set(recorded) & set(parameters)):
            gradient, norm = parameters[name].grad, recorded[name]
            mine = None if gradient is None else float(torch.linalg.vector_norm(gradient.double()))
            if norm is not None and mine is not None and norm <= TINY_GRAD_NORM:
                report.number(f"grad_norms.{name}", mine, norm, TINY_GRAD_NORM, floor=1.0)
            else:
                report.number(f"grad_norms.{name}", mine, norm, report.grad_norm_limit)
            report.gradient(name, gradient, norm)
    if "optim_step" not in case.info:
        return
    step = case.value("optim_step")
    report.seen("optim_step")
    norm = scale_and_clip(model.parameters(), step["grad_divisor"], step.get("clip_norm") or 0.0)
    recorded = step["grad_norm_before_clip"]
    report.number("optim_step.grad_norm_before_clip", norm, recorded, report.grad_norm_limit)
    groups, settings, rates = _optimizer_groups(report, model, config, step, lr_scales)
    ScheduledAdam(groups, settings, [[Fixed(peak=rate)] for rate in rates]).step(0)


def _optimizer_groups(
    report: Report,
    model: nn.Module,
    config: Data2VecMultiConfig,
    step: Mapping[str, Any],
    lr_scales: Mapping[str, float] | None,
) -> tuple[list[ParameterGroup], dict[str, GroupSettings], list[float]]:
    """Our groups with the recorded settings, paired by their sizes: recorded names are no contract."""
    recorded = step.get("groups")
    if not recorded:
        return (parameter_groups(model, dynamic=False), {"default": _settings(step, step)}, [step["lr"]])
    sizes = sorted(group["n_tensors"] for group in recorded.values())
    splits = [
        parameter_groups(model, dynamic=dynamic, decoder_group=config.decoder_group, lr_scales=lr_scales)
        for dynamic in (False, True)
    ]
    fitting = [split for split in splits if sorted(len(group.params) for group in split) == sizes]
    ours = sorted(len(group.params) for group in splits[-1])
    report.number("optim_step.groups", len(fitting), len(fitting) or 1, 0.0)
    if not fitting:
        report.remarks.append(f"optim_step.groups: {sizes} tensors recorded, ours have {ours}")
    paired: list[ParameterGroup] = []
    settings: dict[str, GroupSettings] = {}
    rates: list[float] = []
    left = dict(recorded)
    for index, group in enumerate(fitting[0] if fitting else splits[0]):
        candidates = [name for name in left if left[name]["n_tensors"] == len(group.params)] or list(recorded)
        chosen = group.name if group.name in candidates else candidates[0]
        entry = left.pop(chosen, recorded[chosen])
        paired.append(replace(group, name=str(index)))
        settings[str(index)] = _settings(entry, step)
        rates.append(entry.get("lr", step.get("lr")))
    return paired, settings, rates


def _settings(entry: Mapping[str, Any], fallback: Mapping[str, Any]) -> GroupSettings:
    values = {name: entry.get(name, fallback.get(name)) for name in ("betas", "eps", "weight_decay")}
    if missing := [name for name, value in values.items() if value is None]:
        raise UnreadableCase(f"optimizer settings without {', '.join(missing)}")
    first, second = values["betas"]
    return GroupSettings(betas=(first, second), eps=values["eps"], weight_decay=values["weight_decay"])


def compare_after(case: Case, report: Report, student: nn.Module, teacher: nn.Module | None) -> None:
    states = {"student": dict(student.state_dict()), "teacher": dict(teacher.state_dict()) if teacher else {}}
    for side, state in states.items():
        prefix = f"after/{side}/"
        for key in (k for k in case.tensors if k.startswith(prefix)):
            mine = state.get(key.removeprefix(prefix).removesuffix(":head"))
            report.tensor(key, cut_like(mine, key, case), report.after_limit, absolute=True)
        if f"{side}_after_norms" in case.info:
            recorded = case.info[f"{side}_after_norms"]
            module = student if side == "student" else teacher
            assert module is not None
            constant = {name for name, _ in module.named_buffers()} - set(recorded)  # not always recorded
            kept = {name: value for name, value in state.items() if name not in constant}
            report.norms(f"{side}_after_norms", recorded, kept)
