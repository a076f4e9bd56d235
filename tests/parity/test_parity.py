"""The recorded numbers of the reference are reproduced, and the check that says so can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
CASES = HERE / "cases"
FAMILIES = (
    "v2_text_*", "v2_audio_*", "v2_image_*", "v1_*", "ft_*", "trajectory_v2_*", "schedules",
    "optimizer_param_groups", "mask_generator_statistics",
)  # fmt: skip
V2, FINE_TUNING = "v2_text_base_clone3_pad_ids", "ft_text_v2_cls"


@pytest.fixture(scope="module")
def check() -> Iterator[ModuleType]:
    """The script, with its siblings importable as they are when it runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        import check  # pyright: ignore[reportMissingImports]

        threads = torch.get_num_threads()
        yield check
        torch.set_num_threads(threads)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return Path(shutil.copytree(CASES / name, tmp_path / name))

    return make


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(folder / "tensors.safetensors")
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")
    return folder


def change_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    info = json.loads((folder / "case.json").read_text())
    change(info)
    (folder / "case.json").write_text(json.dumps(info))
    return folder


def nudge(key: str, by: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        if tensors[key].dtype == torch.bool:  # another position of the first row becomes visible
            tensors[key][0, :] = tensors[key][0, :].roll(1)
        else:
            tensors[key].view(-1)[0] += by

    return change


def test_committed_cases_pass(check: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "reports" / "table.md"
    assert check.main([str(CASES), "--markdown", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(CASES.iterdir())) >= 7
    assert all(line.split()[1] == "PASS" and float(line.split()[2]) < 5e-5 for line in lines)
    assert table.read_text().count("| PASS |") == len(lines)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_cases_pass(check: ModuleType, shared_dir: Path, family: str) -> None:
    folders = sorted((shared_dir / "golden").glob(family))
    assert folders
    assert check.main([str(folder) for folder in folders]) == 0


def test_a_family_that_is_not_built_fails(
    check: ModuleType, copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if ".TEXT." in n]:
            tensors[name.replace(".TEXT.", ".VIDEO.")] = tensors.pop(name)

    folder = change_json(change_tensors(copy_of(V2), rename), lambda info: info.pop("tensors"))
    assert check.main([str(folder)]) == 1
    line = capsys.readouterr().out
    assert line.split()[:2] == [V2, "UNSUPPORTED"] and "VIDEO" in line


@pytest.mark.parametrize(
    ("name", "key", "by"),
    [
        ("trajectory_v2_image", "step2/mask", True),
        ("trajectory_v2_image", "after/teacher/blocks.1.norm2.weight", 1e-5),
        ("ft_image_v2_mean", "out/pooled", 1e-4),
        ("ft_image_v2_mean", "student/fc_norm.bias", 1e-3),
        ("v1_vision_base", "out/targets_masked", 1e-3),
        ("v1_vision_base", "student/encoder.blocks.1.gamma_2", 1e-3),
        ("v1_vision_base", "student/encoder.rel_pos_bias.relative_position_bias_table", 1e-2),
        (V2, "student/blocks.1.mlp.fc2.weight", 1e-3),
        (V2, "student/modality_encoders.TEXT.decoder.proj.2.bias", 1e-3),
        (V2, "teacher/0.attn.proj.bias", 1e-3),
        (V2, "out/targets", 1e-3),
        (V2, "loss_rowsum/TEXT_regression", 1e-2),
        (V2, "grad/blocks.0.norm1.bias", 0.1),
        (V2, "after/student/blocks.0.norm1.bias", 1e-5),
        (V2, "after/teacher/0.norm1.bias", 1e-5),
        (V2, "out/decoder_output", float("nan")),
        ("trajectory_v2_text", "after/teacher/1.norm2.weight", 1e-5),
        ("trajectory_v2_text", "step3/decoder_mask_token_noise", 0.1),
        (FINE_TUNING, "out/logits", 1e-4),
        (FINE_TUNING, "student/classification_heads.sentence_classification_head.dense.bias", 1e-3),
    ],
)
def test_a_changed_number_fails(
    check: ModuleType, copy_of: Callable[[str], Path], name: str, key: str, by: float
) -> None:
    assert check.main([str(change_tensors(copy_of(name), nudge(key, by)))]) == 1


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("ft_image_v2_mean", ("config", "layer_decay"), 0.7),
        ("ft_image_v2_mean", ("config", "label_smoothing"), 0.0),
        ("ft_image_v2_mean", ("eval", "correct"), 2),
        ("trajectory_v2_image", ("config", "cls_loss"), 0.02),
        ("trajectory_v2_image", ("config", "layer_norm_targets"), False),
        ("v1_vision_base", ("config", "end_of_block_targets"), False),
        ("v1_vision_base", ("config", "loss_beta"), 0.0),
        ("optimizer_param_groups", ("layer_decay_lr_scales", "base", "layer_decay"), 0.66),
        (V2, ("losses", "TEXT_regression"), 1.0),
        (V2, ("losses_sum",), None),
        (V2, ("sample_size",), 107),
        (V2, ("target_var",), 0.5),
        (V2, ("masked_pct",), 0.4),
        (V2, ("grad_norms", "blocks.0.norm1.bias"), None),
        (V2, ("student_after_norms", "blocks.0.norm1.bias"), 1.0),
        (V2, ("teacher_after_norms", "0.norm1.bias"), 1.0),
        (V2, ("ema_step", "decay"), 0.9),
        (V2, ("optim_step", "groups", "default", "n_tensors"), 15),
        (V2, ("optim_step", "clip_norm"), 0),
        (V2, ("config", "norm_eps"), 1e-4),
        (V2, ("config", "loss_scale"), 2.0),
        (V2, ("config", "average_top_k_layers"), 1),
        (V2, ("config", "end_of_block_targets"), True),
        (V2, ("config", "instance_norm_target_layer"), False),
        (V2, ("config", "modalities", "text", "decoder", "decoder_residual"), True),
        (FINE_TUNING, ("pretrain_config", "norm_eps"), 1e-4),
        (FINE_TUNING, ("config", "pooler_activation"), "gelu"),
        (FINE_TUNING, ("losses_sum",), 3.0),
        ("trajectory_v2_text", ("optimizer", "weight_decay"), 0.1),
        ("trajectory_v2_text", ("optimizer", "warmup_updates"), 3),
        ("trajectory_v2_text", ("log", 2, "grad_norm"), 1.0),
        ("schedules", ("lr", 0, "peak_lr"), 0.000751),
        ("schedules", ("ema", 0, "end"), 0.9999),
    ],
)
def test_another_setting_or_recorded_value_fails(
    check: ModuleType, copy_of: Callable[[str], Path], name: str, path: tuple[Any, ...], value: object
) -> None:
    def change(info: dict[str, Any]) -> None:
        node: Any = info
        for part in path[:-1]:
            node = node[part]
        assert node[path[-1]] != value
        node[path[-1]] = value

    assert check.main([str(change_json(copy_of(name), change))]) == 1


@pytest.mark.parametrize("name", [V2, FINE_TUNING, "trajectory_v2_text"])
def test_tanh_gelu_fails(check: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    exact = F.gelu

    def tanh(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
        return exact(x, approximate="tanh")

    monkeypatch.setattr(F, "gelu", tanh)
    assert check.main([str(CASES / name)]) == 1


def test_adams_usual_epsilon_fails(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from data2vec.optim import Adam

    monkeypatch.setattr(Adam, "step", torch.optim.AdamW.step)
    assert check.main([str(CASES / V2)]) == 1


def test_eager_attention_passes(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from data2vec import attention

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attention._attend_step_by_step)
    assert check.main([str(CASES)]) == 0


def test_a_tensor_that_nothing_compares_fails(
    check: ModuleType, copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = change_tensors(copy_of(V2), lambda tensors: tensors.update({"rng/other": torch.zeros(2)}))
    assert check.main([str(folder)]) == 1
    assert "rng/other" in capsys.readouterr().out


def test_verbose_accounts_for_every_recorded_tensor(
    check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([str(CASES), "--verbose"]) == 0
    printed = capsys.readouterr().out
    for folder in CASES.iterdir():
        for key in load_file(folder / "tensors.safetensors"):
            assert f" {key}" in printed
    assert "rng/mask_rand_noise: not compared" in printed


def test_a_refused_option_is_unsupported(
    check: ModuleType, copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = change_json(copy_of(V2), lambda info: info["config"].update(layer_norm_first=True))
    assert check.main([str(folder)]) == 1
    assert capsys.readouterr().out.startswith(f"{V2} UNSUPPORTED layer_norm_first")


def _truncate(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "no json": lambda folder: (folder / "case.json").unlink(),
    "truncated tensors": _truncate,
    "bad json": lambda folder: (folder / "case.json").write_text('{"config": '),
    "no object": lambda folder: (folder / "case.json").write_text("[1]"),
    "listed tensor missing": lambda folder: change_tensors(folder, lambda t: t.pop("out/targets")),
    "no weights": lambda folder: change_tensors(
        folder, lambda t: [t.pop(k) for k in list(t) if k.startswith("student/")]
    ),
    "no mask": lambda folder: (
        change_tensors(folder, lambda t: t.pop("mask/mask")),
        change_json(folder, lambda info: info["tensors"].pop("mask/mask")),
    ),
    "no config": lambda folder: change_json(folder, lambda info: info.pop("config")),
    "not a case": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_an_unreadable_case_exits_with_2(
    check: ModuleType, copy_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = copy_of(V2)
    UNREADABLE[damage](folder)
    assert check.main([str(CASES / "schedules"), str(folder)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["schedules", "PASS"], [V2, "UNREADABLE"]]
    assert str(folder) in lines[1]


def test_command_prints_no_trace(copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    """As a program: unreadable goes before failed, and the other cases are still checked."""
    failing, broken = copy_of(FINE_TUNING), copy_of(V2)
    change_tensors(failing, nudge("out/logits", 1.0))
    _truncate(broken)
    command = [sys.executable, str(HERE / "check.py"), str(tmp_path), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    verdicts = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert verdicts == {FINE_TUNING: "FAIL", V2: "UNREADABLE", "nowhere": "UNREADABLE"}
