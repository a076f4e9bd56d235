"""The recipe components of text: ``masked_lm``, and sentences to classify or score.

Field names and defaults are the reference's; the trailing comment of a field is its documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .groups import MISSING, LabelledProbe

Shorten = Literal["none", "truncate", "random_crop"]


@dataclass(kw_only=True)
class MaskedLMTask(LabelledProbe):
    """Blocks of tokens from a folder of ``.bin/.idx`` files; the models mask them, from seed and sample."""

    data: str = (
        MISSING  # folder with dict.txt, train.bin, train.idx; several with ":" are taken epoch by epoch
    )
    sample_break_mode: Literal["none", "complete", "complete_doc", "eos"] = "none"  # where blocks may break
    tokens_per_sample: int = 1024  # tokens of a block, <s> included
    mask_prob: float = 0.15  # data2vec 1: masked share if spans did not overlap
    mask_multiple_length: int = 1  # data2vec 1: tokens of a masked span
    shorten_method: Shorten = "none"  # what happens to lines longer than a block before blocking
    shorten_data_split_list: str = ""  # subsets to shorten, separated by commas; "" = all


@dataclass(kw_only=True)
class SentencePredictionTask:
    """Sentences or pairs of sentences with a label, in the reference's ``<TASK>-bin`` layout."""

    data: str = MISSING  # folder with input0, label and, for pairs, input1
    num_classes: int = -1  # classes; 1 for regression
    init_token: int | None = None  # token id put before the first sentence; 0 = <s>
    separator_token: int | None = None  # token id put before the second sentence; 2 = </s>
    no_shuffle: bool = False  # keep the order of the file
    shorten_method: Shorten = "none"  # what happens to inputs longer than max_positions
    shorten_data_split_list: str = ""  # subsets to shorten, separated by commas; "" = all
    max_positions: int = 512  # longest input in tokens


@dataclass(kw_only=True)
class TextClassification:
    """A pretrained text model with a sentence head."""

    parent_field: ClassVar[tuple[str, str]] = (
        "model",
        "model_path",
    )  # of a recipe: names the pretrained model

    model_path: str = (
        MISSING  # pretrained model: models:/NAME@ALIAS, runs:/..., a folder, s3://, or a reference .pt
    )
    no_pretrained_weights: bool = False  # take the architecture only and start from random weights
    pooler_dropout: float = 0.0  # dropout before each linear layer of the head
    pooler_activation_fn: Literal["tanh", "relu", "gelu", "linear"] = (
        "tanh"  # between the head's linear layers
    )


@dataclass(kw_only=True)
class Roberta:
    """A data2vec 1 text model, given by ``checkpoint.restore_file``, with a sentence head."""

    parent_field: ClassVar[tuple[str, str]] = ("checkpoint", "restore_file")

    dropout: float = 0.1  # dropout on embeddings and branches
    attention_dropout: float = 0.1  # dropout on attention probabilities
    activation_dropout: float = 0.0  # dropout inside the feed-forward networks
    encoder_layerdrop: float = 0.0  # probability of skipping a layer while training
    pooler_dropout: float = 0.0  # dropout before each linear layer of the head
    pooler_activation_fn: Literal["tanh", "relu", "gelu", "linear"] = (
        "tanh"  # between the head's linear layers
    )


@dataclass(kw_only=True)
class SentencePredictionCriterion:
    """Cross-entropy, or squared error for regression, with the GLUE metrics."""

    classification_head_name: str = "sentence_classification_head"  # name of the head in the model
    regression_target: bool = False  # the label is a number
    report_mcc: bool = False  # Matthews correlation (CoLA)
    report_acc_and_f1: bool = False  # F1 and its mean with accuracy (MRPC, QQP)
    report_pearson_and_spearman: bool = False  # both correlations and their mean (STS-B)
