"""The recipe components of language models: ``language_modeling`` and the losses of ``transformer_lm``.

Field names and defaults are the reference's; the trailing comment of a field is its documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .groups import MISSING


@dataclass(kw_only=True)
class LanguageModelingTask:
    """Blocks of tokens from a folder of ``.bin/.idx`` files, each with the token that follows it."""

    data: str = (
        MISSING  # folder with dict.txt, train.bin, train.idx; several with ":" are taken epoch by epoch
    )
    sample_break_mode: Literal["none", "complete", "complete_doc", "eos"] = "none"  # where blocks may break
    tokens_per_sample: int = 1024  # most tokens of a block
    shorten_method: Literal["none", "truncate", "random_crop"] = (
        "none"  # what happens to lines longer than a block before blocking
    )
    shorten_data_split_list: str = ""  # subsets to shorten, separated by commas; "" = all


@dataclass(kw_only=True)
class CrossEntropyCriterion:
    """Cross-entropy of the next token, a token's share (for one softmax)."""


@dataclass(kw_only=True)
class AdaptiveLossCriterion:
    """The same for a softmax in bands: only the bands that occur are computed."""


LanguageCriterion = CrossEntropyCriterion | AdaptiveLossCriterion
