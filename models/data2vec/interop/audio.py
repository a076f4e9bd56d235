"""The reference's audio models of both generations: pretrained, fine-tuned for CTC or for audio events."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from ..audio_events import AudioEventConfig
from ..audio_trunk import AudioConfig, TrunkOptions
from ..ctc import CTCConfig
from ..data.dictionary import NUM_SPECIALS, SPECIALS, Dictionary
from ..errors import CheckpointError, ConfigError
from ..families import generation_of
from ..rules import impossible
from ..typed import build
from ..v1.config import Data2VecAudioConfig
from ..weight_shapes import pretraining_shapes, weight_shapes
from .fairseq_file import PRETRAINING_ONLY, FairseqCheckpoint
from .imported import ImportedModel, Sorting, State
from .v2_config import (
    broken_config,
    multi_config,
    read_config,
    without_absent_decoder,
    without_names,
)

V1, CTC, EVENTS = "data2vec_audio", "wav2vec_ctc", "audio_classification"
CTC_TRUNK, EVENT_TRUNK = "w2v_encoder.w2v_model.", "d2v_model."
Options = TypeVar("Options", bound=TrunkOptions)


def import_audio(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None = None) -> ImportedModel:
    """An audio model of either generation, pretrained or fine-tuned for CTC or for audio events.

    Args:
        checkpoint: the file's content.
        dictionary: the letters; by default those inside the file.

    Raises:
        CheckpointError: another modality; tensors missing, unknown or of another shape than the configuration
            inside the file says; letters that do not fit the projection.
    """
    if checkpoint.family == CTC:
        return _ctc(checkpoint, dictionary)
    if checkpoint.family == EVENTS:
        return _events(checkpoint)
    if checkpoint.family == V1:
        return _v1_pretrained(checkpoint)
    return _v2_pretrained(checkpoint)


def _v2_pretrained(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = checkpoint.sorting()
    config = multi_config(checkpoint, sorting, "AUDIO", "model")
    sorting.compare_depth(checkpoint.model, "blocks.", config.depth, "blocks", "depth ")
    model = _five_dimensional(checkpoint.model)
    student, averaged = pretraining_shapes(config)
    student = without_absent_decoder(config, student, model, sorting)
    sorting.drop(r"modality_encoders\.(?!AUDIO\.)", "another modality")
    sorting.drop(
        r"modality_encoders\.AUDIO\.encoder_mask$|shared_decoder\.|recon_proj\.", "not used by audio"
    )
    state = sorting.take(model, student)
    sorting.drop(r"modality_encoders\.AUDIO\.decoder\.", "not part of the teacher")
    found = checkpoint.teacher and _five_dimensional(checkpoint.teacher)
    sorting.take_teacher(found, averaged)
    return _model(checkpoint, sorting, config, state)


def _v1_pretrained(checkpoint: FairseqCheckpoint) -> ImportedModel:
    sorting = checkpoint.sorting()
    config = read_config(Data2VecAudioConfig, checkpoint, sorting, "model")
    student, averaged = pretraining_shapes(config)
    # The released files' head is a sequence of one layer.
    model = {name.replace("final_proj.0.", "final_proj."): t for name, t in checkpoint.model.items()}
    state = sorting.take(model, student)
    sorting.take_teacher(checkpoint.teacher, averaged)
    return _model(checkpoint, sorting, config, state)


def _ctc(checkpoint: FairseqCheckpoint, dictionary: Dictionary | None) -> ImportedModel:
    sorting = checkpoint.sorting(finetuned=True)
    config = _trunk(checkpoint, sorting, "w2v_args", CTC_TRUNK)
    options = _build_options(checkpoint, CTCConfig)
    projection = checkpoint.model.get("w2v_encoder.proj.weight")
    if projection is None or projection.ndim != 2:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no projection (w2v_encoder.proj.weight)")
    wanted = weight_shapes(config, options, num_symbols=len(projection))
    state = sorting.take(_five_dimensional(checkpoint.model), wanted)
    return _model(
        checkpoint,
        sorting,
        config,
        state,
        options,
        "w2v_args",
        dictionary=_letters(checkpoint, dictionary, projection.shape[0], sorting),
        vocab_size=projection.shape[0],
    )


def _events(checkpoint: FairseqCheckpoint) -> ImportedModel:
    """Class names are not in the file: classes are called by their numbers."""
    sorting = checkpoint.sorting(finetuned=True)
    config = _trunk(checkpoint, sorting, "d2v_args", EVENT_TRUNK)
    options = _build_options(checkpoint, AudioEventConfig)
    last = next((n for n in ("proj2.weight", "proj.4.weight", "proj.1.weight", "proj.weight")
                 if n in checkpoint.model), None)  # fmt: skip
    if last is None:
        raise CheckpointError(f"checkpoint {checkpoint.path} has no projection onto classes (proj.weight)")
    options.num_classes = checkpoint.model[last].shape[0]
    state = sorting.take(_five_dimensional(checkpoint.model), weight_shapes(config, options))
    return _model(checkpoint, sorting, config, state, options, "d2v_args")


def _model(
    checkpoint: FairseqCheckpoint,
    sorting: Sorting,
    config: AudioConfig,
    state: State,
    head: CTCConfig | AudioEventConfig | None = None,
    pretrained: str = "",
    **facts: Any,
) -> ImportedModel:
    """With what the task says; that of pretraining counts, whose group a fine-tuned file holds."""
    task = checkpoint.section("model", pretrained, "task") or checkpoint.section("task")
    facts["normalize"] = _normalize(task, sorting)
    return sorting.imported(f"v{generation_of(config)} audio", config, state, head, **facts)


def _trunk(checkpoint: FairseqCheckpoint, sorting: Sorting, group: str, prefix: str) -> AudioConfig:
    """The pretraining configuration inside a fine-tuned file, and rules for what only pretraining needs."""
    where, start = ("model", group, "model"), re.escape(prefix)
    sorting.drop(rf"{start}(_ema|final_proj|recon_proj|shared_decoder|modality_encoders\.AUDIO\.decoder)",
                 PRETRAINING_ONLY)  # fmt: skip
    sorting.drop(rf"{start}modality_encoders\.(?!AUDIO\.)", "another modality")
    sorting.drop(rf"{start}modality_encoders\.AUDIO\.encoder_mask$", "not used: noise is drawn")
    if any(name.startswith(f"{prefix}modality_encoders.") for name in checkpoint.model):
        config = multi_config(checkpoint, sorting, "AUDIO", *where)
        sorting.compare_depth(checkpoint.model, f"{prefix}blocks.", config.depth, "blocks", "depth ")
        return config
    return read_config(Data2VecAudioConfig, checkpoint, sorting, *where)


def _build_options(checkpoint: FairseqCheckpoint, kind: type[Options]) -> Options:
    """The fine-tuning options of a file, as far as they are ours."""
    known: dict[str, Any] = {
        name: value
        for name, value in without_names(checkpoint.section("model")).items()
        if name in kind.__dataclass_fields__ and value is not None
    }
    try:
        options = build(kind, known)
        if found := impossible(options, "model", len(checkpoint.model)):
            raise ConfigError(found)
        return options
    except ConfigError as error:
        raise broken_config(checkpoint, "cfg.model", error) from None


def _five_dimensional(tensors: State) -> State:
    """Old files hold the ALiBi scale without the axis of layers."""
    return {
        name: tensor[None] if name.endswith("alibi_scale") and tensor.ndim == 4 else tensor
        for name, tensor in tensors.items()
    }


def _normalize(task: dict[str, Any], sorting: Sorting) -> bool:
    """Whether the waveform is normalised; every published model is, so that is what is assumed."""
    value = task.get("normalize")
    if isinstance(value, bool):
        return value
    sorting.notes.append("the file does not say whether audio is normalised (task.normalize); taken as true")
    return True


def _letters(
    checkpoint: FairseqCheckpoint, dictionary: Dictionary | None, size: int, sorting: Sorting
) -> Dictionary | None:
    if dictionary is None and checkpoint.symbols is not None:
        symbols = checkpoint.symbols
        if tuple(symbols[:NUM_SPECIALS]) != SPECIALS:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: its dictionary begins with {symbols[:NUM_SPECIALS]}, not "
                f"with {', '.join(SPECIALS)}"
            )
        dictionary = Dictionary(symbols[NUM_SPECIALS:], [1] * (len(symbols) - NUM_SPECIALS))
    if dictionary is None:
        sorting.notes.append(f"no dictionary in the file or given: the {size} symbols have no names")
        return None
    if len(dictionary) != size:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has {size} output symbols, but the dictionary has "
            f"{len(dictionary)} (specials included); give the dict.ltr.txt that belongs to it"
        )
    return dictionary
