"""Cases in the recorded format, made from our own library straight from its classes (tests)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from data2vec.optim import GroupSettings, ScheduledAdam, parameter_groups, scale_and_clip
from data2vec.schedules import Fixed

BETAS, EPS, LR = (0.9, 0.95), 1e-3, 1e-2


def informative(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def copies(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def norms(state: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value.double().norm()) for name, value in state.items()}


def train(
    model: nn.Module, loss: torch.Tensor, divisor: int, decays: dict[str, float], **groups: bool
) -> Any:
    """Backward and one step; what a case records of them: (entries of case.json, tensors)."""
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    info: dict[str, Any] = {
        "grad_norms": {
            name: float(gradients[name].double().norm()) if name in gradients else None
            for name, _ in model.named_parameters()
        }
    }
    norm = scale_and_clip(model.parameters(), divisor, 1.0)
    split = parameter_groups(model, dynamic=False, **groups)
    settings = {
        name: GroupSettings(betas=BETAS, eps=EPS, weight_decay=decay) for name, decay in decays.items()
    }
    ScheduledAdam(split, settings, [[Fixed(peak=LR)]] * len(split)).step(0)
    info["optim_step"] = {
        "lr": LR, "grad_divisor": float(divisor), "clip_norm": 1.0, "grad_norm_before_clip": norm,
        "betas": BETAS, "eps": EPS, "weight_decay": decays["default"],
    }  # fmt: skip
    if groups:
        info["optim_step"]["groups"] = {
            f"hash of {g.name}": {
                "n_tensors": len(g.params),
                "weight_decay": decays[g.name],
                "betas": BETAS,
                "eps": EPS,
            }
            for g in split
        }
    tensors = {f"grad/{name}": value for name, value in gradients.items()}
    tensors |= {f"after/student/{name}": value for name, value in copies(model).items()}
    info["student_after_norms"] = norms(copies(model))
    return info, tensors


def write(folder: Path, info: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "case.json").write_text(json.dumps(info))
    save_file(
        {name: value.contiguous().clone() for name, value in tensors.items()}, folder / "tensors.safetensors"
    )
    return folder
