"""Models of our library built from a case, with the reference-named weights put in.

The weights take the way of every foreign checkpoint: through the importer.
"""

from __future__ import annotations

from typing import Any

from cases import Case, UnreadableCase, UnsupportedCase

from data2vec.config import Data2VecMultiConfig, SentenceHeadConfig
from data2vec.errors import CheckpointError, ConfigError
from data2vec.heads import SentenceClassifier
from data2vec.pretraining import Data2VecPretraining

EMBEDDING = "modality_encoders.TEXT.local_encoder.embed_tokens.weight"


def read_config(values: Any, unknown: list[str]) -> Data2VecMultiConfig:
    """The model configuration of a case; fields that we do not have are listed in ``unknown``.

    Raises:
        UnsupportedCase: the configuration asks for something that the library does not build.
    """
    try:
        config = Data2VecMultiConfig.from_dict(values, unknown=unknown)
        config.check()
    except ConfigError as error:
        reasons = "; ".join(f"{p.field} = {p.value!r}: {p.rule}" for p in error.problems)
        raise UnsupportedCase(f"configuration: {reasons}") from None
    if config.layer_norm_first:
        raise UnsupportedCase(
            "layer_norm_first: the reference loses the residual around its feed-forward network "
            "in this mode; ours keeps it, so the numbers cannot agree"
        )
    return config


def build_pretraining(case: Case, unknown: list[str]) -> Data2VecPretraining:
    """Student, decoder and teacher with the recorded weights; without teacher tensors it starts as a copy."""
    config = read_config(case.value("config"), unknown)
    student, teacher = case.feed_under("student/"), case.feed_under("teacher/")
    model = Data2VecPretraining(config, vocab_size=_vocab_size(case, EMBEDDING))
    load_strictly(model.student, student, "student")
    if teacher:
        load_strictly(model.teacher.module, teacher, "teacher")
    else:
        model.teacher.copy_from_student()
    return model


def build_classifier(case: Case, unknown: list[str]) -> SentenceClassifier:
    """Network and sentence head with the recorded weights."""
    config = read_config(case.value("pretrain_config"), unknown)
    head = case.value("config")
    classifier = SentenceClassifier(
        config,
        SentenceHeadConfig(
            num_classes=head.get("num_classes", 1),
            pooler_activation_fn=head.get("pooler_activation", head.get("pooler_activation_fn", "tanh")),
            pooler_dropout=head.get("pooler_dropout", 0.0),
        ),
        vocab_size=_vocab_size(case, "model." + EMBEDDING),
    )
    load_strictly(classifier, case.feed_under("student/"), "student")
    return classifier


def load_strictly(module: Any, weights: Any, what: str) -> None:
    """Load all weights, none missing or left over."""
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{what}: {error}") from None


def _vocab_size(case: Case, name: str) -> int:
    key = f"student/{name}"
    if key not in case.tensors:
        raise UnreadableCase(f"{case.folder}: no tensor {key!r}")
    return case.tensors[key].shape[0]
