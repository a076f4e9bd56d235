"""Every published file, at its true shapes (without the numbers): recognised, counted, complete."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

from d2v_platform.cli import app
from d2v_platform.importing.importing import origin_of
from d2v_platform.preparation.glue import prepare_glue
from d2v_platform.recipe.compose import compose
from d2v_platform.registry.register import get_version
from d2v_platform.tracking.tracker import Tracker
from data2vec.data.letters import released_letters
from data2vec.data.manifest import manifest_text
from data2vec.errors import CheckpointError
from data2vec.families import describe
from data2vec.interop.fairseq import import_checkpoint
from data2vec.interop.fairseq_file import FairseqCheckpoint
from data2vec.interop.published import BEIT_FILES, PUBLISHED, PublishedFile, candidates, recipe_of
from data2vec.v1.image import relative_position_index
from tests.models.interop import reference_names as names

# Tensors without _ema, in _ema, numbers in all, by pretrained v2 file (spec/checkpoints.md section 3).
COUNTS = {
    "data2vec2/base_imagenet.pt": (164, 150, 88_383_744),
    "data2vec2/large_imagenet.pt": (302, 294, 309_268_480),
    "data2vec2/huge_imagenet.pt": (398, 390, 637_403_392),
    "data2vec2/base_libri.pt": (192, 157, 93_783_308),
    "data2vec2/large_vox.pt": (336, 301, 315_184_144),
    "data2vec2/nlp_base.pt": (162, 144, 152_961_792),
}
PRETRAINED = {
    ("IMAGE", 2, "base"): "v2/base_images_only_task", ("IMAGE", 2, "large"): "v2/large_images_only_task",
    ("IMAGE", 2, "huge"): "v2/huge_images14_only_task", ("AUDIO", 2, "base"): "v2/base_audio_only_task",
    ("AUDIO", 2, "large"): "v2/large_audio_only_task", ("TEXT", 2, "base"): "v2/base_text_only_task",
    ("AUDIO", 1, "base"): "audio/pretraining/base_librispeech",
    ("AUDIO", 1, "large"): "audio/pretraining/large_librilight", ("TEXT", 1, "base"): "text/pretraining/base",
}  # fmt: skip


def d2v(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# By modality and generation: the trunk, what only pretraining has, the teacher.
NAMES: dict[tuple[str, int], tuple[str, str, str]] = {
    ("IMAGE", 2): (names.IMAGE_2, names.IMAGE_2_DECODER, names.IMAGE_2),
    ("AUDIO", 2): (names.AUDIO_2, names.AUDIO_2_DECODER, names.AUDIO_2_TEACHER),
    ("TEXT", 2): (names.TEXT_2, names.TEXT_2_DECODER, names.TEXT_2_TEACHER),
    ("AUDIO", 1): (names.AUDIO_1, names.AUDIO_1_HEAD, names.AUDIO_1_TEACHER),
    ("TEXT", 1): (names.TEXT_1, names.TEXT_1_HEAD, names.TEXT_1_TEACHER),
}


def pretraining_config(file: PublishedFile) -> Any:
    return compose(
        PRETRAINED[file.modality, file.generation, file.size], ["task.data=/none"], check=False
    ).recipe.model


def checkpoint_like(file: PublishedFile) -> FairseqCheckpoint:
    """What reading the published file would give."""
    config = pretraining_config(file)
    inner = {"_name": {2: "data2vec_multi"}.get(file.generation, f"data2vec_{file.modality.lower()}")}
    inner |= config.to_dict()
    cfg: dict[str, Any] = {"model": inner, "task": {"normalize": True, "data": "/checkpoint/somebody"}}
    listed, decoder, averaged = NAMES[file.modality, file.generation]
    sizes = names.SIZES[file.modality, file.generation, file.size]
    wanted, teacher = names.shapes(listed + decoder, **sizes), None
    if file.finetuning is None:
        teacher = names.unfilled(names.shapes(averaged, **sizes))
    elif file.modality == "IMAGE":
        wanted = names.shapes(listed, "model.", **sizes) | names.shapes(names.IMAGE_HEAD, Y=1000, **sizes)
        cfg["model"] = {"_name": "mae_image_classification", "pretrained_model_args": dict(cfg)}
    else:
        # The reference leaves the decoder of the second generation in its fine-tuned files.
        kept = listed + decoder if file.generation == 2 else listed
        wanted = names.shapes(kept, names.CTC_TRUNK, **sizes) | names.shapes(names.CTC_HEAD, Y=32, **sizes)
        tuned = file.recipe or "wav2vec/finetuning/vox_960h_2"
        recipe = compose(tuned, ["task.data=/none", "model.w2v_path=/none"], check=False).recipe
        options = {k: v for k, v in vars(recipe.model).items() if not dataclasses.is_dataclass(v)}
        cfg = {
            "model": {**options, "_name": "wav2vec_ctc", "w2v_args": dict(cfg)},
            "task": {"normalize": True, "labels": "ltr"},
            "optimization": {"max_update": recipe.optimization.max_update},
        }
    model = names.unfilled(wanted)
    return names.checkpoint_of({}, model, path=Path(file.name), cfg=cfg, teacher=teacher, num_updates=1)


def test_the_twenty_files_are_listed() -> None:
    assert len(PUBLISHED) == len({file.name for file in PUBLISHED}) == 20
    kinds = [(file.generation, file.modality) for file in PUBLISHED]
    assert [kinds.count(k) for k in ((2, "IMAGE"), (2, "AUDIO"), (2, "TEXT"), (1, "AUDIO"), (1, "TEXT"))] == [
        6,
        4,
        1,
        8,
        1,
    ]
    assert all((file.licence == "MIT") != (file.modality == "IMAGE") for file in PUBLISHED)
    assert all(file.url and file.url.endswith(file.name) for file in PUBLISHED)


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
def test_a_file_of_its_shapes_is_recognised_and_complete(file: PublishedFile) -> None:
    checkpoint = checkpoint_like(file)
    imported = import_checkpoint(checkpoint)
    assert imported.kind == file.kind
    assert file in candidates(imported), describe(imported.model_config)
    assert not imported.report.missing
    if file.recipe is not None:
        assert recipe_of(imported, checkpoint.cfg) == file.recipe
    dropped = set(imported.report.dropped)
    assert dropped == {n for n in checkpoint.model if n not in imported.state}
    if file.name in COUNTS:
        numbers = sum(tensor.numel() for tensor in checkpoint.model.values())
        assert (len(checkpoint.model), len(checkpoint.teacher or {}), numbers) == COUNTS[file.name]
    if file.finetuning is None:
        assert imported.teacher is not None and len(imported.teacher) == len(checkpoint.teacher or {})


def beit_checkpoint(file: PublishedFile) -> FairseqCheckpoint:
    """BEiT's names, no configuration; fine-tuned ones have a table of positions in every block."""
    lines = names.BEIT_FINETUNED if file.finetuning else names.BEIT
    tensors = names.unfilled(names.shapes(lines, Y=1000, **names.SIZES["IMAGE", 1, file.size]))
    args = {"layer_scale_init_value": 1e-5, "num_mask_patches": 120}
    teacher = None if file.finetuning else tensors
    return names.checkpoint_of({}, tensors, path=Path(file.name), cfg={"args": args}, teacher=teacher)


@pytest.mark.parametrize("file", BEIT_FILES, ids=lambda file: file.name)
def test_files_of_the_vision_repository_are_recognised(file: PublishedFile) -> None:
    tuned = file.finetuning is not None
    checkpoint = beit_checkpoint(file)
    imported = import_checkpoint(checkpoint)
    assert imported.kind == file.kind and file in candidates(imported)
    assert len(imported.state) == len(checkpoint.model)
    config: Any = imported.model_config
    assert config.shared_rel_pos_bias is not tuned and config.norm_eps == 1e-6
    if not tuned:
        assert imported.teacher is not None
        assert imported.state.keys() - imported.teacher.keys() == {
            "mask_emb",
            "final_proj.weight",
            "final_proj.bias",
        }
    else:
        assert imported.head_config.drop_first_patch is False and imported.head_config.fc_norm_eps == 1e-6
        assert imported.pixel_norm == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    "name", ["data2vec2/large_imagenet.pt", "data2vec2/base_libri_960h.pt", "data2vec/nlp_base.pt"]
)
def test_a_missing_a_foreign_and_a_reshaped_tensor_are_refused_by_name(name: str) -> None:
    checkpoint = checkpoint_like(next(file for file in PUBLISHED if file.name == name))
    model = dict(checkpoint.model)
    removed, reshaped = [n for n in model if n.endswith(("fc2.weight", "fc1.weight"))][:2]
    del model[removed]
    model[reshaped] = torch.empty(3, 3, device="meta")
    model["something.else"] = torch.empty(1, device="meta")
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(dataclasses.replace(checkpoint, model=model))
    for text in (f"missing: {removed}", "unknown: something.else", f"{reshaped} is (3, 3)"):
        assert text in str(caught.value)


# ---- whole files of base size: written, imported into the registry, trained on from there -----------------


def write_whole_file(file: PublishedFile, folder: Path) -> Path:
    """A checkpoint as the reference writes it, at the published file's true shapes, with random weights.

    Half-precision weights and a teacher in fp32, a configuration, arguments and a trainer's history; files of
    the vision repository hold arguments and weights in fp32.
    """
    beit = file in BEIT_FILES
    checkpoint = beit_checkpoint(file) if beit else checkpoint_like(file)
    draw = torch.Generator().manual_seed(5)

    def fill(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, Any]:
        return {name: values(name, tensor.shape, dtype, draw) for name, tensor in tensors.items()}

    content: dict[str, Any]
    if beit:
        arguments = argparse.Namespace(**checkpoint.cfg["args"])
        content = {"model": fill(checkpoint.model, torch.float32), "epoch": 799, "args": arguments}
    else:
        model = fill(checkpoint.model, torch.float16)
        model["_ema"] = fill(checkpoint.teacher or {}, torch.float32)
        history = [{"criterion_name": "ModelCriterion", "num_updates": 400_000}]
        content = {
            "args": None, "cfg": checkpoint.cfg, "model": model, "optimizer_history": history,
            "task_state": {}, "criterion": None, "last_optimizer_state": {"loss_scale": 128.0},
            "extra_state": {"best": np.float64(1.5), "val_loss": 2.0},
        }  # fmt: skip
    path = folder / Path(file.name).with_suffix(".pt").name
    torch.save(content, path)
    return path


def values(name: str, shape: torch.Size, dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    """Gains of one, else small random numbers; what is fixed by the architecture has its fixed value."""
    if name.endswith("relative_position_index"):
        return relative_position_index(14)
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=dtype)
    return (torch.randn(shape, generator=draw) * 0.03).to(dtype)


def text_data(folder: Path, raw: Path) -> list[str]:
    """RTE in GPT-2's full dictionary, which has the size of the published models'."""
    symbols = [*map(str, range(50_257)), *(f"madeupword{n:04}" for n in range(3))]
    (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols))
    prepare_glue(raw, folder / "glue", tasks=["RTE"], dictionary=folder / "dict.txt")
    return [
        f"task.data={folder}/glue/RTE-bin",
        "dataset.batch_size=2",
        "optimization.max_update=2",
        "lr_scheduler.warmup_updates=1",
    ]


def image_data(folder: Path, raw: Path) -> list[str]:
    for split, name in ((s, n) for s in ("train", "val") for n in ("day", "night")):
        (folder / "images" / split / name).mkdir(parents=True)
        for index in range(2):
            level = 200 if name == "day" else 30
            Image.new("RGB", (40, 30), (level, level, 90 * index)).save(
                folder / "images" / split / name / f"{index}.png"
            )
    return [f"task.data={folder}/images", "model.num_classes=2", "dataset.batch_size=2",
            "optimization.max_update=2"]  # fmt: skip


def audio_data(folder: Path, raw: Path) -> list[str]:
    entries = []
    for index in range(4):
        wave = 0.3 * np.sin((0.05 + 0.1 * (index % 2)) * np.arange(12_000))
        soundfile.write(str(folder / f"{index}.flac"), wave, 16_000)
        entries.append((f"{index}.flac", len(wave)))
    for split in ("train", "dev_other"):
        (folder / f"{split}.tsv").write_text(manifest_text(str(folder), entries))
        (folder / f"{split}.ltr").write_text("A B |\nB A |\n" * 2)
    released_letters().save(folder / "dict.ltr.txt")
    return [f"task.data={folder}", "dataset.max_tokens=24000", "optimization.max_update=2",
            "dataset.validate_after_updates=0", "model.freeze_finetune_updates=0"]  # fmt: skip


WARMUP = "lr_scheduler.warmup_updates=1"  # a run of two updates must be longer than its warm-up
GROUP_WARMUP = f"optimizer.groups.default.{WARMUP}"
WHOLE_FILES = {
    "data2vec2/nlp_base.pt": ("v2/text_finetuning/rte", "model.model_path", text_data, WARMUP),
    "data2vec2/base_imagenet.pt": (
        "vision/finetuning/mae_imagenet_clean",
        "model.model_path",
        image_data,
        GROUP_WARMUP,
    ),
    "data2vec2/base_libri.pt": ("wav2vec/finetuning/vox_10h_2", "model.w2v_path", audio_data, WARMUP),
    "data2vec/nlp_base.pt": ("roberta/finetuning/rte", "checkpoint.restore_file", text_data, WARMUP),
    "data2vec/audio_base_ls.pt": ("wav2vec/finetuning/vox_10h", "model.w2v_path", audio_data, ""),
    "data2vec_vision/base_800": (
        "vision/finetuning/beit_imagenet",
        "model.model_path",
        image_data,
        GROUP_WARMUP,
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_whole_file_is_registered_and_trained_on_from_its_alias(
    name: str, tiny_glue: Any, tmp_path: Path, mlflow_home: Path
) -> None:
    file = next(entry for entry in (*PUBLISHED, *BEIT_FILES) if entry.name == name)
    recipe, key, make_data, warmup = WHOLE_FILES[name]
    data = [*make_data(tmp_path, tiny_glue.raw), *filter(None, [warmup])]
    path = write_whole_file(file, tmp_path)
    words = ["--dict", str(tmp_path / "dict.txt")] if make_data is text_data else []
    shown = d2v("import", path, "--dry-run", *words)
    assert name in shown and "tensors taken" in shown, shown
    assert "registered: models:/whole/1 (whole@champion)" in d2v(
        "import", path, "--register", "whole", "--alias", "champion", *words
    )
    kept = d2v("registry", "show", "whole", "--version", "1")
    assert "import.sha256" in kept and ("CC-BY-NC" in kept) is (file.modality == "IMAGE")
    d2v("train", recipe, f"{key}=models:/whole@champion", *data, "platform.num_workers=0",
        "distributed_training.distributed_world_size=1", "optimization.update_freq=[1]",
        "dataset.num_workers=0", "common.log_interval=1", "platform.run_name=downstream",
        "platform.register_as=tuned")  # fmt: skip
    with Tracker() as tracker:
        version = get_version(tracker, "tuned", 1)
        assert version.tags["parent.version"] == "models:/whole/1"
        losses = tracker.client.get_metric_history(version.tags["run.id"], "train/loss")
        assert [point.step for point in losses] == [1, 2] and all(np.isfinite(p.value) for p in losses)


def test_a_licence_is_known_of_files_with_the_published_name_only() -> None:
    entry = PUBLISHED[0]
    imported: Any = SimpleNamespace(report=SimpleNamespace(family="f"))
    for file, licence in ((entry.name.rpartition("/")[2], entry.licence), ("mine.pt", "unknown")):
        origin = origin_of(Path(file), "d", imported, [entry], None, "student")
        assert (origin["licence"], origin["licence.if_published"]) == (licence, entry.licence)
