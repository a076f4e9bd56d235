"""The reference's v2 text models: pretrained (``data2vec_multi``) and fine-tuned for sentences.

Our models use the names of the reference for their parameters, so an import is a check and a selection:
every tensor that the configuration inside the file asks for must be there in the right shape, what only
pretraining needs may be left out, and anything else is refused.
"""

from __future__ import annotations

from ..artifact import EMBEDDING_KEY
from ..config import Data2VecMultiConfig, SentenceHeadConfig
from ..data.dictionary import Dictionary
from ..errors import CheckpointError, ConfigError
from ..families import generation_of
from ..text import PAD
from ..typed import build
from ..v1.text_config import Data2VecTextConfig
from ..weight_shapes import pretraining_shapes, weight_shapes
from .fairseq_file import PRETRAINING_ONLY, FairseqCheckpoint
from .imported import ImportedModel, Sorting, State
from .v2_config import broken_config, modalities_in, multi_config, without_absent_decoder

PRETRAINED = "data2vec_multi"
FINETUNED = "data2vec_text_classification"
SENTENCE_HEAD = "classification_heads.sentence_classification_head."


def import_v2_text(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None = None) -> ImportedModel:
    """A v2 text model, pretrained or fine-tuned for sentences.

    Args:
        checkpoint: the file's content.
        dictionary: its dictionary; without it the vocabulary cannot be checked, and the report says so.

    Raises:
        CheckpointError: another modality; tensors missing, unknown or of another shape than the configuration
            inside the file says; a vocabulary that does not fit the dictionary.
    """
    return (_finetuned if checkpoint.family == FINETUNED else _pretrained)(checkpoint, dictionary)


def _pretrained(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None) -> ImportedModel:
    sorting = checkpoint.sorting()
    vocab_size = _vocab_size(checkpoint, "")
    config = multi_config(checkpoint, sorting, "TEXT", "model")
    sorting.compare_depth(checkpoint.model, "blocks.", config.depth, "blocks", "depth ")
    student, averaged = pretraining_shapes(config, vocab_size=vocab_size)
    student = without_absent_decoder(config, student, checkpoint.model, sorting)
    sorting.drop(r"modality_encoders\.(?!TEXT\.)", "another modality")
    sorting.drop(r"modality_encoders\.TEXT\.encoder_mask$|shared_decoder\.|recon_proj\.", "not used by text")
    state = sorting.take(checkpoint.model, student)
    sorting.take_teacher(checkpoint.teacher, averaged)
    return text_model(checkpoint, sorting, dictionary, config, state, vocab_size)


def _finetuned(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None) -> ImportedModel:
    sorting = checkpoint.sorting(finetuned=True)
    vocab_size = _vocab_size(checkpoint, "model.")
    config = multi_config(checkpoint, sorting, "TEXT", "model", "pretrained_model_args", "model")
    sorting.compare_depth(checkpoint.model, "model.blocks.", config.depth, "blocks", "depth ")
    head_config = sentence_head_config(checkpoint)
    sorting.drop(
        r"(model\.)?_ema|(model\.)?shared_decoder|model\.modality_encoders\.TEXT\.decoder", PRETRAINING_ONLY
    )
    sorting.drop(r"model\.modality_encoders\.(?!TEXT\.)", "another modality")
    state = sorting.take(checkpoint.model, weight_shapes(config, head_config, vocab_size=vocab_size))
    return text_model(checkpoint, sorting, dictionary, config, state, vocab_size, head_config)


def _vocab_size(checkpoint: FairseqCheckpoint, prefix: str) -> int:
    """Rows of the token embedding, which only a v2 text model has under this name."""
    embedding = checkpoint.model.get(prefix + EMBEDDING_KEY)
    if embedding is None or embedding.ndim != 2 or len(embedding) <= PAD:
        found = modalities_in(checkpoint, prefix)
        what = f"is a v2 model of {', '.join(found)}" if found else "has no text encoder"
        raise CheckpointError(
            f"checkpoint {checkpoint.path} {what}: {prefix}{EMBEDDING_KEY} is missing; "
            "give a v2 text checkpoint"
        )
    return embedding.shape[0]


def text_model(
    checkpoint: FairseqCheckpoint,
    sorting: Sorting,
    dictionary: Dictionary | None,
    config: Data2VecMultiConfig | Data2VecTextConfig,
    state: State,
    vocab_size: int,
    head: SentenceHeadConfig | None = None,
) -> ImportedModel:
    """A text model of either generation with what its file and the dictionary say of it."""
    return sorting.imported(
        f"v{generation_of(config)} text",
        config,
        state,
        head,
        regression=bool(checkpoint.section("criterion").get("regression_target")),
        vocab_size=vocab_size,
        dictionary=fitting_dictionary(checkpoint, dictionary, vocab_size, sorting),
    )


def sentence_head_config(checkpoint: FairseqCheckpoint) -> SentenceHeadConfig:
    """The head of a model fine-tuned for sentences, of either generation."""
    out_proj = checkpoint.model.get(f"{SENTENCE_HEAD}out_proj.weight")
    if out_proj is None or out_proj.ndim != 2:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no sentence head ({SENTENCE_HEAD}*)")
    model = checkpoint.section("model")
    given = {
        name: model[name]
        for name in ("pooler_activation_fn", "pooler_dropout")
        if model.get(name) is not None
    }
    try:
        return build(SentenceHeadConfig, {**given, "num_classes": out_proj.shape[0]})
    except ConfigError as error:
        raise broken_config(checkpoint, "cfg.model", error) from None


def fitting_dictionary(
    checkpoint: FairseqCheckpoint, dictionary: Dictionary | None, vocab_size: int, sorting: Sorting
) -> Dictionary | None:
    """The dictionary with ``<mask>``, if it has as many symbols as the model's embedding."""
    if dictionary is None:
        made_with = checkpoint.section("task").get("data")
        hint = f" (it was trained with the dict.txt in {made_with})" if made_with else ""
        sorting.notes.append(
            f"no dictionary given: the vocabulary of {vocab_size} symbols is not checked{hint}"
        )
        return None
    dictionary = dictionary.with_mask()
    if len(dictionary) != vocab_size:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has a vocabulary of {vocab_size} symbols, but the dictionary has "
            f"{len(dictionary)} (specials and <mask> included); give the dict.txt that belongs to it"
        )
    return dictionary
