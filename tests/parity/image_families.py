"""Image cases: classification heads, and the parameter groups of the recipes."""

from __future__ import annotations

from typing import Any

import torch
from cases import Case, UnsupportedCase
from compare import LOSS, OUT, SCHEDULE, Report
from families import compare_after, compare_forward, compare_output, step
from intermediates import intermediates
from torch import nn
from weights import build_image_classifier, build_v1_vision

from data2vec.config import Data2VecMultiConfig
from data2vec.image_heads import finetuning_lr_scales, layer_decay_scales
from data2vec.optim import parameter_groups
from data2vec.student import Data2VecMulti, Features


def image_classifier(case: Case, report: Report, notes: list[str]) -> None:
    """Pooling, head, loss, backward and one optimizer step; then an evaluation pass."""
    model = build_image_classifier(case, notes)
    model.train(case.info.get("training", True))
    report.seen("pretrain_config", "config")
    found: dict[str, torch.Tensor] = {}

    def keep_features(_module: nn.Module, _inputs: object, features: Features) -> None:
        x = features.x_BTD
        if model.head_config.prediction_mode == "CLS_TOKEN" and features.extra_BED is not None:
            x = torch.cat([features.extra_BED, x], dim=1)  # recorded with what is pooled
        found["feats"] = x.detach().clone()

    def keep_pooled(_module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        found["pooled"] = inputs[0].detach().clone()

    handles = [
        model.model.register_forward_hook(keep_features),
        model.head.register_forward_pre_hook(keep_pooled),
    ]
    images = case.feed("input/imgs")
    labels, soft = case.feed_optional("input/labels"), case.feed_optional("input/soft_labels")
    logits_BC = model(images)
    found["logits"] = logits_BC.detach().clone()
    for handle in handles:
        handle.remove()
    target = soft if soft is not None else labels
    if target is not None:
        output = model.loss(logits_BC, target)
        found["loss_elementwise"] = output.elementwise.detach().clone()
        compare_forward(case, report, found)
        report.number("losses_sum", float(output.loss.detach()), case.info.get("losses_sum"), LOSS)
        if "sample_size" in case.info:
            report.number("sample_size", len(target), case.info["sample_size"], 0.0)
        scales = _lr_scales(case, report, model)
        step(case, report, model, Data2VecMultiConfig(), output.loss, scales)
    else:
        compare_forward(case, report, found)
    compare_after(case, report, model, None)
    if "eval" in case.info and labels is not None:
        model.eval()
        with torch.no_grad():
            logits_BC = model(images)
            loss = float(model.loss(logits_BC, labels).loss)
        correct = int((logits_BC.argmax(-1) == labels).sum())
        report.number("eval.loss_sum", loss, case.value("eval", "loss_sum"), OUT)
        report.number("eval.correct", correct, case.value("eval", "correct"), 0.0)


def v1_vision(case: Case, report: Report, notes: list[str]) -> None:
    """Forward, backward, one optimizer step and the teacher's step after it."""
    model = build_v1_vision(case, notes)
    model.train(case.info.get("training", True))
    with intermediates(model) as found:
        output = model(case.feed("input/img"), mask_BT=case.feed("mask/mask").bool())
    compare_forward(case, report, found)
    compare_output(report, output, case.info)
    if "ema_decay" in case.info:
        report.number("ema_decay", model.teacher.decay(0) * 1000, case.info["ema_decay"], SCHEDULE)
    step(case, report, model.student, Data2VecMultiConfig(), output.loss)
    if "ema_step" in case.info:
        update = int(case.value("ema_step", "num_updates"))
        decay = case.value("ema_step", "decay")
        report.number("ema_step.decay", model.teacher.decay(update), decay, SCHEDULE)
        model.teacher.step(update)
    compare_after(case, report, model.student, model.teacher.module)


def _lr_scales(case: Case, report: Report, model: Any) -> dict[str, float] | None:
    """Layer decay, compared with the recipe's recorded groups where the case has them."""
    decay = case.value("config").get("layer_decay")
    if decay is None:
        return None
    scales = finetuning_lr_scales(model, decay)
    if "recipe_param_groups" in case.info:
        recorded = case.info["recipe_param_groups"]
        _compare_groups(report, "recipe_param_groups", model, recorded, scales)
    return scales


def _compare_groups(
    report: Report,
    name: str,
    model: nn.Module,
    recorded: list[dict[str, Any]],
    scales: dict[str, float] | None = None,
) -> None:
    """Which names share a group, and each group's learning rate and weight decay.

    Whether the recipe splits by tags and has a group for the decoder shows in the recorded names alone.
    """
    splits = [
        parameter_groups(model, dynamic=dynamic, decoder_group=decoder, lr_scales=scales)
        for dynamic in (True, False)
        for decoder in (False, True)
    ]
    wanted = {frozenset(entry["names"]) for entry in recorded}
    mine = max(splits, key=lambda split: len({frozenset(g.names) for g in split} & wanted))
    report.number(f"{name}.groups", len(mine), len(recorded), 0.0)
    group_of = {frozenset(group.names): group for group in mine}
    pairs = [(entry, group_of.get(frozenset(entry["names"]))) for entry in recorded]
    for index, (entry, group) in enumerate(pairs):
        own = [other for other, g in pairs if g is not None and group is not None and g.name == group.name]
        peak = max((other["lr"] for other in own), default=0.0)
        lr = None if group is None else group.lr_scale * peak
        report.number(f"{name}.{index}.lr", lr, entry["lr"], SCHEDULE)
        # The exemption of 1-D tensors is not honoured: one decay for all parts of a named group.
        decays = {other["weight_decay"] for other in own}
        report.number(f"{name}.{index}.weight_decays", len(decays), 1, 0.0)


def param_groups(case: Case, report: Report, notes: list[str]) -> None:
    """Groups of the recipes' optimizers by name, and the factors of layer decay."""
    for name, entry in case.value("models").items():
        names = [n for group in entry["groups"] for n in group["names"]]
        model = _model_like(name, names)
        missing = {n for n, p in model.named_parameters() if p.requires_grad} ^ set(names)
        report.number(f"models.{name}.names_differing", len(missing), 0, 0.0)
        _compare_groups(report, f"models.{name}", model, entry["groups"])
    for name, entry in case.value("layer_decay_lr_scales").items():
        scales = layer_decay_scales(entry["blocks"], entry["layer_decay"])
        for index, (mine, recorded) in enumerate(zip(scales, entry["scale_of_block"], strict=True)):
            report.number(f"layer_decay_lr_scales.{name}.{index}", mine, recorded, SCHEDULE)
        report.number(f"layer_decay_lr_scales.{name}.everything_else", 1.0, entry["everything_else"], 0.0)
    notes.append("fact: checked as weight_decays, one value over all groups")
    report.seen("fact")


def _model_like(name: str, names: list[str]) -> nn.Module:
    """A tiny model of the recipe with as many blocks and layers as the recorded names show."""

    def count(prefix: str) -> int:
        found = {n[len(prefix) :].split(".")[0] for n in names if n.startswith(prefix)}
        return len([index for index in found if index.isdigit()])

    built = {n.split(".")[1] for n in names if n.startswith("modality_encoders.")}
    if len(built) != 1 or not built <= {"TEXT", "IMAGE", "AUDIO"}:
        raise UnsupportedCase(f"parameter groups of {name} are not built: {sorted(built)}")
    (modality,) = built
    where = f"modality_encoders.{modality}."
    decoder = {"decoder_dim": 16, "decoder_groups": 1, "decoder_layers": count(f"{where}decoder.blocks.")}
    decoder["projection_layers"] = max(1, count(f"{where}decoder.proj."))
    values: dict[str, Any] = {"prenet_depth": count(f"{where}context_encoder.blocks."), "decoder": decoder}
    values["num_extra_tokens"] = int(f"{where}extra_tokens" in names)
    if modality == "IMAGE":
        values |= {"input_size": 8, "patch_size": 4, "embed_dim": 16, "ema_local_encoder": True}
    elif modality == "TEXT":
        values |= {"mask_length": 1, "max_source_positions": 8}
    else:
        positions, learned = f"{where}relative_positional_encoder.", f"{where}alibi_scale" in names
        before = f"{positions}0.weight" in names
        layers = count(f"{where}local_encoder.conv_layers.")
        depth = count(f"{positions}1." if before else positions)
        values |= {"feature_encoder_spec": f"[(16, 2, 2)] * {layers}", "conv_pos_groups": 1,
                   "conv_pos_pre_ln": before, "conv_pos_depth": depth,
                   "use_alibi_encoder": learned, "learned_alibi_scale": learned}  # fmt: skip
    config = Data2VecMultiConfig.from_dict(
        {"embed_dim": 16, "num_heads": 2, "depth": count("blocks."), "average_top_k_layers": 1,
         "supported_modality": modality, "ema_encoder_only": modality == "TEXT",
         "modalities": {"text": None, modality.lower(): values}}
    )  # fmt: skip
    return Data2VecMulti(config, vocab_size=10)
