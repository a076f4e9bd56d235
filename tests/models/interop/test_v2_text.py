"""v2 text checkpoints: what is taken, dropped, missing and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data2vec.config import Data2VecMultiConfig, SentenceHeadConfig
from data2vec.data.dictionary import Dictionary
from data2vec.errors import CheckpointError
from data2vec.heads import SentenceClassifier
from data2vec.interop import import_checkpoint, load_pretrained_text, read_checkpoint
from data2vec.student import Data2VecMulti

VOCAB = 20
Write = Callable[..., Path]


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same file with its content changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


# --- pretrained -------------------------------------------------------------------------------------------


def test_a_pretrained_file(pretrained_file: Write, dictionary: Dictionary, tmp_path: Path) -> None:
    path = pretrained_file()
    dictionary.save(tmp_path / "dict.txt")
    imported = load_pretrained_text(path, tmp_path / "dict.txt")
    stored = torch.load(path, weights_only=True)["model"]
    assert imported.kind == "pretrained"
    assert imported.vocab_size == VOCAB
    assert imported.num_updates == 321
    assert imported.dictionary is not None
    assert imported.dictionary.digest() == dictionary.digest()
    assert imported.teacher is not None
    assert imported.teacher.keys() == stored["_ema"].keys()
    model = Data2VecMulti(imported.model_config, vocab_size=imported.vocab_size)
    model.load_state_dict(imported.state, strict=True)
    model.blocks.load_state_dict(imported.teacher, strict=True)
    assert imported.state.keys() == stored.keys() - {"_ema"}
    assert all(torch.equal(value, stored[name]) for name, value in imported.state.items())
    report = imported.report
    assert (report.dropped, report.missing, report.ignored_config, report.notes) == ({}, [], {}, [])
    assert len(report.mapped) == len(imported.state) + len(imported.teacher)


def test_half_precision(pretrained_file: Write) -> None:
    path = pretrained_file()
    before = import_checkpoint(read_checkpoint(path)).state

    def halve(content: dict[str, Any]) -> None:
        content["model"] = {k: v if k == "_ema" else v.half() for k, v in content["model"].items()}

    after = import_checkpoint(read_checkpoint(edited(path, halve))).state
    assert all(value.dtype == torch.float32 for value in after.values())
    assert all(torch.equal(after[name], before[name]) for name in before)  # the values fit into fp16


def test_an_omegaconf_configuration(
    pretrained_file: Write, config: Data2VecMultiConfig, foreign: Any
) -> None:
    values = {"_name": "data2vec_multi", **config.to_dict(), "supported_modality": foreign.Modality.TEXT}
    values["modalities"] = {
        "_name": None,
        "text": {**values["modalities"]["text"], "type": foreign.Modality.TEXT},
    }
    values["max_update"] = "${optimization.max_update}"
    path = pretrained_file(cfg=foreign.omega({"model": values, "optimization": {"max_update": 1000}}))
    imported = import_checkpoint(read_checkpoint(path))
    expected = config.to_dict() | {"max_update": 1000}
    expected["modalities"]["text"]["type"] = "TEXT"
    assert imported.model_config.to_dict() == expected
    assert imported.report.ignored_config == {}


def test_old_fields_are_reported_and_absent_ones_take_their_defaults(pretrained_file: Write) -> None:
    def change(content: dict[str, Any]) -> None:
        model = content["cfg"]["model"]
        model |= {"mae_masking": True, "rebuild_batches": 1}
        model["modalities"] |= {"_name": None, "image": {"patch_size": 16}, "audio": None}
        model["modalities"]["text"]["model_depth"] = 2
        del model["cls_loss"], model["decoder_group"], model["supported_modality"]

    imported = import_checkpoint(read_checkpoint(edited(pretrained_file(), change)))
    assert imported.model_config.cls_loss == 0.0
    assert imported.report.ignored_config == {
        "modalities.image": "another modality",
        "mae_masking": "unknown here",
        "rebuild_batches": "unknown here",
        "modalities.text.model_depth": "unknown here",
    }
    assert any("mae_masking" in line for line in imported.report.lines())


def test_other_modalities_are_dropped(pretrained_file: Write) -> None:
    names = ["modality_encoders.IMAGE.extra_tokens", "modality_encoders.AUDIO.alibi_scale", "recon_proj.bias"]

    def change(content: dict[str, Any]) -> None:
        content["model"].update({name: torch.zeros(2) for name in names})

    report = import_checkpoint(read_checkpoint(edited(pretrained_file(), change))).report
    assert report.dropped == {
        names[0]: "another modality",
        names[1]: "another modality",
        names[2]: "not used by text",
    }


def test_without_decoder_and_teacher(pretrained_file: Write) -> None:
    def strip(content: dict[str, Any]) -> None:
        content["model"] = {k: v for k, v in content["model"].items() if k != "_ema" and ".decoder." not in k}

    imported = import_checkpoint(read_checkpoint(edited(pretrained_file(), strip)))
    assert imported.teacher is None
    assert imported.model_config.modalities.text is not None
    assert imported.model_config.modalities.text.decoder is None
    assert "_ema" in imported.report.missing
    assert any(".decoder." in name for name in imported.report.missing)
    assert any("pretrained further" in note for note in imported.report.notes)


def edits() -> dict[str, tuple[Callable[[dict[str, Any]], Any], str]]:
    norm = "blocks.1.norm1.weight"
    return {
        "missing": (lambda c: c["model"].pop(norm), rf"missing: {norm}"),
        "shape": (
            lambda c: c["model"].update({norm: torch.zeros(9)}),
            rf"{norm} is \(9,\), but .* says \(8,\)",
        ),
        "unknown": (lambda c: c["model"].update({"extra.w": torch.zeros(1)}), r"unknown: extra\.w"),
        "teacher": (lambda c: c["model"]["_ema"].pop("0.norm1.bias"), r"missing: _ema\.0\.norm1\.bias"),
        "depth": (lambda c: c["cfg"]["model"].update(depth=3), r"2 blocks are there, but .* says depth 3"),
        "too deep": (
            lambda c: c["cfg"]["model"].update(depth=1, average_top_k_layers=1),
            r"2 blocks are there, but .* says depth 1",
        ),
        "width": (lambda c: c["cfg"]["model"].update(embed_dim=16), r"embed_tokens.weight is \(20, 8\), but"),
        "part of the decoder": (
            lambda c: c["model"].pop("modality_encoders.TEXT.decoder.proj.0.bias"),
            r"missing: modality_encoders\.TEXT\.decoder\.proj\.0\.bias",
        ),
        "type": (
            lambda c: c["cfg"]["model"].update(depth="two"),
            r"cfg\.model has 1 problem\s+depth = 'two'\s+must be int",
        ),
        "option": (lambda c: c["cfg"]["model"].update(mae_init=True), r"mae_init = True"),
        "no configuration": (lambda c: c.update(cfg=None), r"has no model configuration"),
        "family": (
            lambda c: c["cfg"]["model"].update(_name="wav2vec2"),
            r"family 'wav2vec2'; families that can be imported: data2vec_multi",
        ),
        "modality": (
            lambda c: c.update(model={"modality_encoders.VIDEO.extra_tokens": torch.zeros(1)}),
            r"is a v2 model of VIDEO",
        ),
    }


@pytest.mark.parametrize("case", edits())
def test_what_does_not_fit_is_refused(pretrained_file: Write, case: str) -> None:
    change, message = edits()[case]
    path = edited(pretrained_file(), change)
    with pytest.raises(CheckpointError, match=message) as error:
        import_checkpoint(read_checkpoint(path))
    assert str(path) in str(error.value)


def test_a_dictionary_of_another_size(pretrained_file: Write) -> None:
    other = Dictionary(["a", "b"], [1, 1])
    with pytest.raises(CheckpointError, match=r"vocabulary of 20 symbols, but the dictionary has 7"):
        import_checkpoint(read_checkpoint(pretrained_file()), other)


def test_without_dictionary_the_report_says_so(pretrained_file: Write) -> None:
    imported = load_pretrained_text(pretrained_file())
    assert imported.dictionary is None
    assert "no dictionary given: the vocabulary of 20 symbols is not checked" in imported.report.notes[0]
    assert "/somewhere/else" in imported.report.notes[0]


# --- fine-tuned ---------------------------------------------------------------------------------------------


def test_a_finetuned_file(finetuned_file: Write, dictionary: Dictionary) -> None:
    extra = {"model.modality_encoders.TEXT.decoder.proj.bias": torch.zeros(8)}
    imported = import_checkpoint(read_checkpoint(finetuned_file(extra)), dictionary)
    assert imported.kind == "sentence_classifier"
    assert imported.head_config == SentenceHeadConfig(
        num_classes=3, pooler_dropout=0.1, pooler_activation_fn="relu"
    )
    assert not imported.regression
    assert imported.num_updates == 99
    assert imported.report.dropped == {next(iter(extra)): "pretraining only"}
    classifier = SentenceClassifier(
        imported.model_config, imported.head_config, vocab_size=imported.vocab_size
    )
    classifier.load_state_dict(imported.state, strict=True)


def test_a_regression(finetuned_file: Write) -> None:
    def change(content: dict[str, Any]) -> None:
        content["cfg"]["criterion"]["regression_target"] = True

    assert import_checkpoint(read_checkpoint(edited(finetuned_file(), change))).regression


def test_a_finetuned_file_without_head_or_pretraining_configuration(finetuned_file: Write) -> None:
    def beheaded(content: dict[str, Any]) -> None:
        content["model"] = {k: v for k, v in content["model"].items() if k.startswith("model.")}

    def bare(content: dict[str, Any]) -> None:
        del content["cfg"]["model"]["pretrained_model_args"]

    with pytest.raises(CheckpointError, match="has no sentence head"):
        import_checkpoint(read_checkpoint(edited(finetuned_file(), beheaded)))
    with pytest.raises(CheckpointError, match=r"no model configuration \(cfg\.model\.pretrained_model_args"):
        import_checkpoint(read_checkpoint(edited(finetuned_file(), bare)))


# --- the reference's own weights --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["v2_text_base_clone1", "v2_text_large", "v2_text_large_pgrp", "ft_text_v2_cls"]
)
def test_recorded_weights_survive(shared_dir: Path, tmp_path: Path, name: str) -> None:
    folder = shared_dir / "golden" / name
    case = json.loads((folder / "case.json").read_text())
    tensors = load_file(folder / "tensors.safetensors")
    student = {k.removeprefix("student/"): v for k, v in tensors.items() if k.startswith("student/")}
    teacher = {k.removeprefix("teacher/"): v for k, v in tensors.items() if k.startswith("teacher/")}
    if name.startswith("ft_"):
        pretraining = {"_name": "data2vec_multi", **case["pretrain_config"]}
        pooler = case["config"]["pooler_activation"]
        model = {"_name": "data2vec_text_classification", "pooler_activation_fn": pooler}
        cfg = {"model": model | {"pretrained_model_args": {"model": pretraining}}}
    else:
        cfg = {"model": {"_name": "data2vec_multi", **case["config"]}}
    nested = {"_ema": teacher} if teacher else {}
    torch.save({"cfg": cfg, "model": {**student, **nested}}, tmp_path / "golden.pt")
    imported = import_checkpoint(read_checkpoint(tmp_path / "golden.pt"))
    assert imported.state.keys() == student.keys()
    assert all(torch.equal(imported.state[k], v) for k, v in student.items())
    assert (imported.teacher or {}).keys() == teacher.keys()
    assert all(torch.equal((imported.teacher or {})[k], v) for k, v in teacher.items())
    assert "modalities.text.model_depth" in imported.report.ignored_config
