"""Models of our library built from a case, with the reference-named weights put in.

The weights take the way of every foreign checkpoint: a case's tensors and configuration become the content of
a fairseq checkpoint, and the importer turns that into a model's configuration and weights.
"""

from __future__ import annotations

from typing import Any

import torch
from cases import Case, UnreadableCase, UnsupportedCase

from data2vec.config import Data2VecMultiConfig, ImageHeadConfig, SentenceHeadConfig
from data2vec.ctc import CTCConfig, CTCModel
from data2vec.errors import ConfigError
from data2vec.heads import SentenceClassifier
from data2vec.image_heads import ImageClassifier
from data2vec.interop.fairseq import import_checkpoint
from data2vec.interop.fairseq_file import FairseqCheckpoint
from data2vec.interop.imported import ImportedModel
from data2vec.pretraining import Data2VecPretraining
from data2vec.v1.audio import Data2VecAudioPretraining
from data2vec.v1.config import Data2VecAudioConfig
from data2vec.v1.image import Data2VecVisionPretraining
from data2vec.v1.image_config import Data2VecVisionConfig


def build_pretraining(case: Case, notes: list[str]) -> Data2VecPretraining:
    """Student, decoder and teacher with the recorded weights; without teacher tensors it starts as a copy.

    Args:
        case: the case.
        notes: receives what the importer left out.

    Raises:
        UnsupportedCase: the configuration asks for something that the library does not build.
    """
    config = case.value("config")
    _refuse_unsupported(config)
    imported = import_case(case, {"model": {"_name": "data2vec_multi", **config}}, notes)
    assert isinstance(imported.model_config, Data2VecMultiConfig)
    if imported.model_config.modalities.audio is not None:
        imported.model_config.modalities.audio.padding_leaks = True  # the reference's behaviour
    model = Data2VecPretraining(imported.model_config, vocab_size=imported.vocab_size)
    model.student.load_state_dict(imported.state)
    if imported.teacher is None:
        model.teacher.copy_from_student()
    else:
        model.teacher.module.load_state_dict(imported.teacher)
    return model.to(case.device)


def build_classifier(case: Case, notes: list[str]) -> SentenceClassifier:
    """Network and sentence head with the recorded weights; arguments and errors as above."""
    config, head = case.value("pretrain_config"), case.value("config")
    _refuse_unsupported(config)
    model = {
        "_name": "data2vec_text_classification",
        "pretrained_model_args": {"model": config},
        "pooler_activation_fn": head.get("pooler_activation", head.get("pooler_activation_fn")),
        "pooler_dropout": head.get("pooler_dropout"),
    }
    imported = import_case(
        case, {"model": model, "criterion": {"regression_target": is_regression(case)}}, notes
    )
    assert isinstance(imported.head_config, SentenceHeadConfig)
    if "num_classes" in head and imported.head_config.num_classes != head["num_classes"]:
        raise UnreadableCase(
            f"{case.folder}: num_classes is {head['num_classes']}, "
            f"but the head has {imported.head_config.num_classes} outputs"
        )
    classifier = SentenceClassifier(
        imported.model_config, imported.head_config, vocab_size=imported.vocab_size
    )
    classifier.load_state_dict(imported.state)
    return classifier.to(case.device)


def build_image_classifier(case: Case, notes: list[str]) -> ImageClassifier:
    """Trunk and image head with the recorded weights; arguments and errors as above."""
    config, head = case.value("pretrain_config"), case.value("config")
    name = "data2vec_image_classification"
    if "modalities" in config:
        _refuse_unsupported(config)
        name = "mae_image_classification"
    model = {"_name": name, "pretrained_model_args": {"model": config}, **head}
    imported = import_case(case, {"model": model}, notes)
    assert isinstance(imported.head_config, ImageHeadConfig)
    assert isinstance(imported.model_config, Data2VecMultiConfig | Data2VecVisionConfig)
    if imported.head_config.num_classes != head["num_classes"]:
        raise UnreadableCase(
            f"{case.folder}: num_classes is {head['num_classes']}, "
            f"but the head has {imported.head_config.num_classes} outputs"
        )
    classifier = ImageClassifier(imported.model_config, imported.head_config)
    classifier.load_state_dict(imported.state)
    return classifier.to(case.device)


def build_v1_vision(case: Case, notes: list[str]) -> Data2VecVisionPretraining:
    """Student and teacher of data2vec 1 for images with the recorded weights."""
    imported = import_case(case, {"model": {"_name": "data2vec_vision", **case.value("config")}}, notes)
    assert isinstance(imported.model_config, Data2VecVisionConfig)
    model = Data2VecVisionPretraining(imported.model_config)
    model.student.load_state_dict(imported.state)
    if imported.teacher is None:
        model.teacher.copy_from_student()
    else:
        model.teacher.module.load_state_dict(imported.teacher)
    return model.to(case.device)


def build_v1_audio(case: Case, notes: list[str]) -> Data2VecAudioPretraining:
    """Student, head and teacher of data2vec 1 with the recorded weights."""
    imported = import_case(case, {"model": {"_name": "data2vec_audio", **case.value("config")}}, notes)
    assert isinstance(imported.model_config, Data2VecAudioConfig)
    imported.model_config.padding_leaks = True  # the reference's behaviour
    model = Data2VecAudioPretraining(imported.model_config)
    model.student.load_state_dict(imported.state)
    if imported.teacher is None:
        model.teacher.copy_from_student()
    else:
        model.teacher.module.load_state_dict(imported.teacher)
    return model.to(case.device)


def build_ctc(case: Case, notes: list[str]) -> CTCModel:
    """Trunk and projection with the recorded weights."""
    config, options = case.value("pretrain_config"), case.value("config")
    overrides = case.info.get("checkpoint_overrides", {})
    model = {"_name": "wav2vec_ctc", "w2v_args": {"model": config}, **options}
    model |= {name: overrides[name] for name in ("zero_mask", "mask_dropout") if name in overrides}
    imported = import_case(case, {"model": model}, notes)
    assert isinstance(imported.head_config, CTCConfig) and imported.vocab_size is not None
    if isinstance(imported.model_config, Data2VecMultiConfig):
        assert imported.model_config.modalities.audio is not None
        imported.model_config.modalities.audio.padding_leaks = True  # the reference's behaviour
    else:
        imported.model_config.padding_leaks = True
    ctc = CTCModel(imported.model_config, imported.head_config, num_symbols=imported.vocab_size)
    ctc.load_state_dict(imported.state)
    return ctc.to(case.device)


def is_regression(case: Case) -> bool:
    """Whether the head predicts a number (STS-B)."""
    head = case.value("config")
    return bool(head.get("regression", head.get("regression_target", False)))


def _refuse_unsupported(values: Any) -> None:
    try:
        config = Data2VecMultiConfig.from_dict(values, unknown=[])
        config.check()
    except ConfigError as error:
        reasons = "; ".join(f"{p.field} = {p.value!r}: {p.rule}" for p in error.problems)
        raise UnsupportedCase(f"configuration: {reasons}") from None
    if config.layer_norm_first:
        raise UnsupportedCase(
            "layer_norm_first: the reference loses the residual around its feed-forward network "
            "in this mode; ours keeps it, so the numbers cannot agree"
        )


def import_case(case: Case, cfg: dict[str, Any], notes: list[str]) -> ImportedModel:
    """The case through the importer, as the content of a fairseq file with this configuration."""
    teacher = case.feed_under("teacher/")
    checkpoint = FairseqCheckpoint(
        path=case.folder,
        cfg=cfg,
        model={name: _fp32(tensor) for name, tensor in case.feed_under("student/").items()},
        teacher={name: _fp32(tensor) for name, tensor in teacher.items()} if teacher else None,
        task_state={},
        num_updates=None,
        symbols=None,
    )
    imported = import_checkpoint(checkpoint)
    notes += [f"{name}: dropped by the importer: {why}" for name, why in imported.report.dropped.items()]
    notes += [f"config.{name}: ignored, {why}" for name, why in imported.report.ignored_config.items()]
    return imported


def _fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
