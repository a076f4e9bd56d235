"""The recipe components of audio: pretraining, and fine-tuning for CTC and for audio events.

Field names and defaults are the reference's (``audio_pretraining``, ``audio_finetuning``, ``wav2vec_ctc``,
``ctc``, ``audio_classification``); the trailing comment of a field is its documentation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from data2vec.audio_events import AudioEventOptions
from data2vec.audio_mixup import MixupOptions
from data2vec.ctc import CTCConfig
from data2vec.errors import Problem

from .groups import MISSING, LabelledProbe


@dataclass(kw_only=True)
class AudioTask:
    """Utterances listed in ``<split>.tsv``, as ``d2v prepare audio-manifest`` writes them."""

    data: str = MISSING  # folder with <split>.tsv and, for labels, <split>.<labels> and dict.<labels>.txt
    sample_rate: int = 16_000  # samples a second that files must have
    normalize: bool = False  # zero mean and unit variance over each utterance; every data2vec model has it
    enable_padding: bool = False  # pad to the longest utterance instead of cropping to the shortest
    max_sample_size: int | None = None  # longest piece of an utterance, in samples
    min_sample_size: int | None = None  # shorter utterances are left out
    num_batch_buckets: int = 0  # with padding: pad batches up to so many lengths; 0 = their own
    subsample: float = 1.0  # share of the training utterances to use
    skip_broken: bool = False  # replace an unreadable file by its neighbour instead of stopping


@dataclass(kw_only=True)
class AudioPretrainingTask(LabelledProbe, AudioTask):
    """Audio without labels."""

    precompute_mask_config: dict[str, Any] | None = None  # {}: block masks with the model's values
    masks_before_crop: bool = False  # as the reference: unequal rows, whose kept length follows row 0


@dataclass(kw_only=True)
class AudioFinetuningTask(AudioTask):
    """Audio with labels, for CTC."""

    labels: str = "ltr"  # extension of the label files
    target_dictionary: str | None = None  # folder of dict.<labels>.txt; null = data


@dataclass(kw_only=True)
class Wav2VecCTC(CTCConfig):
    """A pretrained audio model of either generation with a projection onto letters."""

    parent_field: ClassVar[tuple[str, str]] = ("model", "w2v_path")

    w2v_path: str = MISSING  # pretrained model: models:/NAME@ALIAS, runs:/..., a folder, s3://, or a .pt
    no_pretrained_weights: bool = False  # take the architecture only and start from random weights


@dataclass(kw_only=True)
class AudioClassificationTask(AudioTask):
    """Audio with the classes of what is heard, several a clip."""

    labels: str = "lbl"  # extension of the label files: start, end and comma-separated class indices
    label_descriptors: str = "label_descriptors.csv"  # file in data with <index>,<label> a line


@dataclass(kw_only=True)
class AudioClassificationModel(MixupOptions, AudioEventOptions):
    """A pretrained audio model of either generation with scores of audio events."""

    parent_field: ClassVar[tuple[str, str]] = ("model", "model_path")

    model_path: str = MISSING  # pretrained model: models:/NAME@ALIAS, runs:/..., a folder, s3://, or a .pt
    no_pretrained_weights: bool = False  # take the architecture only and start from random weights

    def problems(self, path: str = "model") -> list[Problem]:
        """What is impossible about these options, all of it."""
        return AudioEventOptions.problems(self, path) + MixupOptions.problems(self, path)


@dataclass(kw_only=True)
class CTCCriterion:
    """CTC loss, and error rates of greedy (and, if configured, language-model) decoding."""

    zero_infinity: bool = False  # without effect: utterances with too few frames are left out and counted
    post_process: str = "letter"  # how symbols become words; only "letter"
    wer_kenlm_model: str | None = None  # language model (ARPA or KenLM binary) for the word error rate
    wer_lexicon: str | None = None  # its lexicon
    wer_lm_weight: float = 2.0  # weight of the language model
    wer_word_score: float = -1.0  # added for each word
    wer_sil_weight: float = 0.0  # without effect, as in the reference
    wer_args: list[Any] | str | None = None  # the four as one: [language model, lexicon, weight, word score]


@dataclass(frozen=True)
class WordErrorModel:
    """What word error rates during training are decoded with."""

    path: str
    lexicon: str
    weight: float = 2.0
    word_score: float = -1.0
    problems: tuple[str, ...] = field(default=())
