"""The check takes every kind of case of the recorded format, also those of which none lies here.

Models are recorded from our own library, which proves the check's plumbing; span masks come from a generator
of their own, written here row by row as the reference describes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from data2vec.config import Data2VecMultiConfig, ImageHeadConfig
from data2vec.image_heads import ImageClassifier
from data2vec.masking import clone_ids, random_masks, row_noise
from data2vec.optim import GroupSettings, ScheduledAdam, parameter_groups, scale_and_clip
from data2vec.pretraining import Data2VecPretraining
from data2vec.schedules import Cosine
from data2vec.student import Data2VecMulti
from tests.parity.recording import BETAS, EPS, copies, informative, norms, train, write

NO_DROPOUT = {"encoder_dropout": 0.0, "post_mlp_drop": 0.0, "attention_dropout": 0.0}
DECODER = {"decoder_dim": 16, "decoder_groups": 2, "decoder_kernel": 3, "decoder_layers": 2,
           "input_dropout": 0.0}  # fmt: skip


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        import check  # pyright: ignore[reportMissingImports]

        yield check


def audio_config(**audio: Any) -> Data2VecMultiConfig:
    front = {"feature_encoder_spec": "[(8, 10, 5)] + [(8, 3, 2)] * 2", "conv_pos_width": 9,
             "decoder": DECODER, "conv_pos_depth": 2, "conv_pos_groups": 2, "prenet_depth": 1,
             "use_alibi_encoder": True, "learned_alibi_scale": True, "learned_alibi_scale_per_head": True,
             **audio}  # fmt: skip
    return Data2VecMultiConfig.from_dict(
        {"depth": 2, "embed_dim": 16, "num_heads": 2, "average_top_k_layers": 2, "clone_batch": 2,
         "ema_decay": 0.9, "ema_end_decay": 0.99, "ema_anneal_end_step": 10, "ema_encoder_only": False,
         "instance_norm_target_layer": True, "supported_modality": "AUDIO", **NO_DROPOUT,
         "modalities": {"text": None, "audio": front}}
    )  # fmt: skip


def record_trajectory(folder: Path, updates: int = 3) -> Path:
    """Padded clips; the teacher starts as a copy."""
    torch.manual_seed(7)
    config = audio_config(padding_leaks=True)  # as the reference, which the check assumes
    model = Data2VecPretraining(config).train()
    informative(model.student)
    model.teacher.copy_from_student()
    tensors = {f"student/{name}": value for name, value in copies(model.student).items()}
    schedule = Cosine(peak=5e-3, warmup_updates=2, max_update=9)
    settings = {"default": GroupSettings(betas=BETAS, eps=EPS, weight_decay=0.1)}
    optimizer = ScheduledAdam(parameter_groups(model.student, dynamic=False), settings, [[schedule]])
    log, padding = [], torch.arange(900)[None] >= torch.tensor([[900], [640]])
    for update in range(updates):
        model.teacher.step(update)
        source = torch.randn(2, 900).masked_fill(padding, 0.0)
        length = model.student.encoder.local_features(source).shape[1]
        rows = clone_ids(torch.arange(2), 2)
        masks = random_masks(rows, length, 0.4, update)
        noise = row_noise(rows, length - masks.num_kept, 16, 0.01, update)
        output = model(source, padding, update=update, masks=masks, noise_RJD=noise)
        for parameter in model.student.parameters():
            parameter.grad = None
        output.loss.backward()
        norm = scale_and_clip(model.student.parameters(), output.sample_size, 1.0)
        optimizer.step(update)
        loss = float(output.loss.detach())
        log.append({"update": update, "lr": schedule(update), "loss_sum": loss, "grad_norm": norm,
                    "ema_decay_in_force": model.teacher.decay(update), "sample_size": output.sample_size,
                    "losses": {"AUDIO_regression": loss}})  # fmt: skip
        given = {"input/source": source, "input/padding_mask": padding, "mask": masks.mask_RT,
                 "ids_keep": masks.ids_keep_RK, "ids_restore": masks.ids_restore_RT,
                 "decoder_mask_token_noise": noise}  # fmt: skip
        tensors |= {f"step{update}/{name}": value for name, value in given.items()}
    states = {"student": copies(model.student), "teacher": copies(model.teacher.module)}
    for side, state in states.items():
        tensors |= {f"after/{side}/{name}": value for name, value in state.items()}
    recipe = {"schedule": "cosine", "lr_peak": 5e-3, "warmup_updates": 2, "max_update": 9, "clip_norm": 1.0,
              "betas": BETAS, "eps": EPS, "weight_decay": 0.1}  # fmt: skip
    info = {"config": config.to_dict(), "optimizer": recipe, "log": log,
            **{f"{side}_after_norms": norms(state) for side, state in states.items()}}  # fmt: skip
    return write(folder, info, tensors)


def verdict(check: ModuleType, capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    check.main([str(folder)])
    return capsys.readouterr().out


def test_a_trajectory_of_an_audio_model(
    check: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = record_trajectory(tmp_path / "trajectory_v2_audio")
    assert verdict(check, capsys, folder).split()[1] == "PASS"
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "tensors.safetensors")
    tensors["step1/input/padding_mask"][1, 400:] = True
    save_file(tensors, folder / "tensors.safetensors")
    assert verdict(check, capsys, folder).split()[1] == "FAIL"


@pytest.mark.parametrize("mode", ["CLS_TOKEN", "MEAN_POOLING"])
def test_class_token_pooling_records_the_class_token(
    check: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: Any
) -> None:
    torch.manual_seed(3)
    config = Data2VecMultiConfig.from_dict(
        {"depth": 2, "embed_dim": 16, "num_heads": 2, "average_top_k_layers": 2, "ema_encoder_only": False,
         "supported_modality": "IMAGE", **NO_DROPOUT, "modalities": {"text": None, "image": {
             "input_size": 8, "patch_size": 4, "embed_dim": 16, "prenet_depth": 1, "num_extra_tokens": 1,
             "decoder": None}}}
    )  # fmt: skip
    model = ImageClassifier(config, ImageHeadConfig(num_classes=5, prediction_mode=mode)).train()
    informative(model)
    tensors = {f"student/{name}": value for name, value in copies(model).items()}
    images, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 4, 2])
    features = model.model(images)
    assert features.extra_BED is not None
    whole = torch.cat([features.extra_BED, features.x_BTD], dim=1)
    logits = model(images)
    output = model.loss(logits, labels)
    out = {"feats": whole if mode == "CLS_TOKEN" else features.x_BTD, "pooled": model.pool(features),
           "logits": logits, "loss_elementwise": output.elementwise}  # fmt: skip
    tensors |= {f"out/{name}": value.detach().clone() for name, value in out.items()}
    trained, more = train(model, output.loss, 3, {"default": 0.05})
    trained["grad_norms"] = {
        name: norm for name, norm in trained["grad_norms"].items() if "positional" not in name
    }
    info = {"pretrain_config": config.to_dict(), "losses_sum": float(output.loss.detach()), "sample_size": 3,
            "config": {"num_classes": 5, "prediction_mode": mode, "label_smoothing": 0.1},
            **trained}  # fmt: skip
    given = {"input/imgs": images, "input/labels": labels}
    folder = write(tmp_path / "ft_image", info, tensors | more | given)
    assert verdict(check, capsys, folder).split()[1] == "PASS"


@pytest.mark.parametrize(
    ("dynamic", "decoder", "audio"),
    [(True, False, {}), (False, True, {"conv_pos_pre_ln": True}), (True, True, {"use_alibi_encoder": False}),
     (False, False, {"learned_alibi_scale_per_layer": True, "prenet_depth": 2})],
)  # fmt: skip
def test_parameter_groups_of_audio_models(
    check: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, dynamic: bool, decoder: bool,
    audio: dict[str, Any],
) -> None:  # fmt: skip
    model = Data2VecMulti(audio_config(**audio))
    rates, decays = {"default": 1e-3, "decoder": 5e-4}, {"default": 0.01, "decoder": 0.02}
    groups = [
        {"names": g.names, "lr": rates[g.name], "weight_decay": decays[g.name]}
        for g in parameter_groups(model, dynamic=dynamic, decoder_group=decoder)
    ]
    info: dict[str, Any] = {"models": {"v2_audio_large": {"config": "any", "groups": groups}},
                            "layer_decay_lr_scales": {}}  # fmt: skip
    assert verdict(check, capsys, write(tmp_path / "groups", info, {})).split()[1] == "PASS"
    if len(groups) > 1:
        moved = groups[0]["names"].pop()
        groups[1]["names"].append(moved)
        assert verdict(check, capsys, write(tmp_path / "moved", info, {})).split()[1] == "FAIL"


def spans(rng: np.random.Generator, lengths: list[int], total: int, entry: dict[str, Any]) -> np.ndarray:
    """One batch of the reference's span masks: random rounding, distinct starts, perhaps equal counts."""
    prob, span, found = entry["mask_prob"], entry["mask_length"], []
    for length in lengths:
        count = max(int(prob * length / span + rng.random()), entry.get("min_masks", 0))
        high = length - span if length - span > count else count + 1
        starts = rng.choice(high, count, replace=False)
        found.append(sorted({int(s) + i for s in starts for i in range(span) if s + i < length}))
    fewest, most = min(map(len, found)), max(map(len, found))
    mask = np.zeros((len(lengths), total), dtype=bool)
    for row, at in enumerate(found):
        if entry["require_same_masks"] and entry.get("add_masks"):
            free = [t for t in range(lengths[row]) if t not in at]
            at = [*at, *rng.choice(free, most - len(at), replace=False).tolist()]
        elif entry["require_same_masks"]:
            at = rng.choice(at, fewest, replace=False).tolist()
        if dropped := round(len(at) * entry.get("mask_dropout", 0.0)):
            at = rng.choice(at, len(at) - dropped, replace=False).tolist()
        mask[row, at] = True
    return mask


def runs(row: np.ndarray, value: bool) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row == value, [False]]).astype(int)))
    return (edges[1::2] - edges[::2]).tolist()


SPANS: dict[str, dict[str, Any]] = {
    "unequal, padded": {"mask_prob": 0.6, "mask_length": 5, "require_same_masks": False, "padded": True},
    "added": {"mask_prob": 0.45, "mask_length": 6, "require_same_masks": True, "add_masks": True},
    "dropout": {"mask_prob": 0.5, "mask_length": 8, "require_same_masks": True, "mask_dropout": 0.2},
}


@pytest.fixture
def fewer_draws(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import mask_families  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(mask_families, "DRAWS", 300)


def record_spans(folder: Path, name: str) -> Path:
    rng, entry = np.random.default_rng(5), {"min_masks": 1, **SPANS[name]}
    lengths = [200, 150, 120, 90] if entry.pop("padded", False) else [200] * 4
    masks = [spans(rng, lengths, 200, entry) for _ in range(200)]
    rows = np.concatenate(masks)
    valid = np.array(lengths * 200)
    counts, fraction = rows.sum(1), rows.sum(1) / valid
    seen = [n for row, v in zip(rows, valid, strict=True) for n in runs(row[:v], False)]
    entry |= {
        "generator": "random spans", "shape": [4, 200], "rows": len(rows),
        "valid_lengths": lengths if len(set(lengths)) > 1 else None,
        "mean_masked_fraction": float(fraction.mean()), "std_masked_fraction": float(fraction.std()),
        "min_count": int(counts.min()), "max_count": int(counts.max()), "mean_count": float(counts.mean()),
        "distinct_counts": sorted({int(n) for n in counts})[:40],
        "masked_run_length_histogram": dict(Counter(n for row in rows for n in runs(row, True))),
        "visible_run_length_histogram": dict(Counter(seen)),
    }  # fmt: skip
    return write(folder, {"statistics": {"spans": entry}}, {"sample/spans": torch.from_numpy(rows[:8])})


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("name", SPANS)
def test_span_masks_of_every_option(
    check: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    folder = record_spans(tmp_path / "spans", name)
    line = verdict(check, capsys, folder)
    assert line.split()[1] == "PASS", line


@pytest.mark.usefixtures("fewer_draws")
def test_an_option_of_span_masks_that_is_not_passed_on_fails(
    check: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mask_families  # pyright: ignore[reportMissingImports]

    own = mask_families.span_masks
    monkeypatch.setattr(mask_families, "span_masks", lambda *a, **k: own(*a, **{**k, "equal_counts": True}))
    line = verdict(check, capsys, record_spans(tmp_path / "spans", "unequal, padded"))
    assert line.split()[1] == "FAIL", line
