"""Every published file, at its true shapes (without the numbers): recognised, counted, complete."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.recipe.compose import compose
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import CheckpointError
from data2vec.interop import audio_tables, key_tables, v1_text, v1_vision
from data2vec.interop.fairseq import import_checkpoint
from data2vec.interop.fairseq_file import FairseqCheckpoint
from data2vec.interop.published import BEIT_FILES, PUBLISHED, PublishedFile, candidates, describe, recipe_of

VOCAB = 50265
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


def meta(shapes: key_tables.Shapes, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


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
    teacher, extra = None, dict[str, torch.Tensor]()
    if file.modality == "IMAGE":
        trunk, decoder, teacher = key_tables.image_encoder(config), key_tables.image_decoder(config), None
        if file.finetuning is None:
            model, teacher = meta(trunk | decoder), meta(key_tables.image_teacher(config))
        else:
            model = meta(trunk, "model.") | meta(key_tables.image_head(config.embed_dim, 1000, True))
            cfg["model"] = {"_name": "mae_image_classification", "pretrained_model_args": dict(cfg)}
    elif file.modality == "TEXT" and file.generation == 2:
        model = meta(key_tables.text_encoder(config, VOCAB) | key_tables.text_decoder(config))
        teacher = meta(key_tables.text_teacher(config))
    elif file.modality == "TEXT":
        model = meta(v1_text.sentence_encoder(config, VOCAB) | v1_text.regression_head(config))
        teacher = meta(v1_text.sentence_encoder(config, VOCAB, ""))
    else:
        v2 = isinstance(config, Data2VecMultiConfig)
        trunk = audio_tables.v2_audio_encoder(config) if v2 else audio_tables.v1_audio(config)
        if file.finetuning is None:
            head = audio_tables.v2_audio_decoder(config) if v2 else audio_tables.v1_head(config)
            model = meta(trunk | head)
            teacher = meta(
                audio_tables.v2_audio_encoder(config, local=False)
                if v2
                else audio_tables.v1_transformer(config)
            )
        else:
            model = meta(trunk, audio_tables.CTC_PREFIX) | meta(
                audio_tables.ctc_projection(config.embed_dim, 32)
            )
            if v2:  # the reference leaves the decoder in its fine-tuned files
                extra = meta(audio_tables.v2_audio_decoder(config), audio_tables.CTC_PREFIX)
            tuned = file.recipe or "wav2vec/finetuning/vox_960h_2"
            recipe = compose(tuned, ["task.data=/none", "model.w2v_path=/none"], check=False).recipe
            options = {k: v for k, v in vars(recipe.model).items() if not dataclasses.is_dataclass(v)}
            cfg = {
                "model": {**options, "_name": "wav2vec_ctc", "w2v_args": dict(cfg)},
                "task": {"normalize": True, "labels": "ltr"},
                "optimization": {"max_update": recipe.optimization.max_update},
            }
    return FairseqCheckpoint(
        path=Path(file.name),
        cfg=cfg,
        model=model | extra,
        teacher=teacher,
        task_state={},
        num_updates=1,
        symbols=None,
    )


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


@pytest.mark.parametrize("file", BEIT_FILES, ids=lambda file: file.name)
def test_files_of_the_vision_repository_are_recognised(file: PublishedFile) -> None:
    """BEiT's names, no configuration; fine-tuned ones have a table of positions in every block."""
    dim, tuned = file.width, file.finetuning is not None
    names: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, dim), "patch_embed.proj.bias": (dim,)}
    names["patch_embed.proj.weight"] = (dim, 3, 16, 16)
    table = {"relative_position_bias_table": (732, dim // 64), "relative_position_index": (197, 197)}
    for i in range(file.depth):
        block: dict[str, tuple[int, ...]] = {
            "attn.qkv.weight": (3 * dim, dim), "attn.q_bias": (dim,), "attn.v_bias": (dim,),
            "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,), "gamma_1": (dim,), "gamma_2": (dim,),
            "mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,), "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }  # fmt: skip
        block |= {f"norm{n}.{kind}": (dim,) for n in (1, 2) for kind in ("weight", "bias")}
        block |= {f"attn.{name}": shape for name, shape in table.items()} if tuned else {}
        names |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    if tuned:
        names |= {
            "fc_norm.weight": (dim,),
            "fc_norm.bias": (dim,),
            "head.weight": (1000, dim),
            "head.bias": (1000,),
        }
    else:
        names |= {f"rel_pos_bias.{name}": shape for name, shape in table.items()}
        names |= {"mask_token": (1, 1, dim), "norm.weight": (dim,), "norm.bias": (dim,),
                  "lm_head.weight": (dim, dim), "lm_head.bias": (dim,)}  # fmt: skip
    checkpoint = FairseqCheckpoint(
        path=Path(file.name), cfg={"args": {"layer_scale_init_value": 1e-5, "num_mask_patches": 120}},
        model=meta(names), teacher=None if tuned else meta(names), task_state={}, num_updates=None,
        symbols=None,
    )  # fmt: skip
    imported = import_checkpoint(checkpoint)
    assert imported.kind == file.kind and file in candidates(imported)
    assert len(imported.state) == len(names)
    config: Any = imported.model_config
    assert config.shared_rel_pos_bias is not tuned and config.norm_eps == 1e-6
    if not tuned:
        assert imported.teacher is not None and imported.teacher.keys() == {
            name
            for name in v1_vision.student_shapes(config, True)
            if not name.startswith(("mask_emb", "final_proj"))
        }
    else:
        assert imported.head_config.drop_first_patch is False


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
