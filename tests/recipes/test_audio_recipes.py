"""Speech recipes: the numbers of the reference's files, and the readme's commands for speech."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2v_platform.recipe.audio_checks import missing_files, word_error_model
from d2v_platform.recipe.audio_components import (
    AudioFinetuningTask,
    AudioPretrainingTask,
    CTCCriterion,
    Wav2VecCTC,
)
from d2v_platform.recipe.checks import problems
from d2v_platform.recipe.components import AdamOptions, Composite, CosineSchedule, TriStageSchedule
from d2v_platform.recipe.compose import compose, compose_loaded, load_file
from d2v_platform.recipe.locate import find_recipe, recipe_names
from d2v_platform.recipe.schema import Recipe
from data2vec.config import Data2VecMultiConfig
from data2vec.errors import ConfigError
from data2vec.v1.config import Data2VecAudioConfig

CTC = [name for name in recipe_names() if name.startswith("wav2vec/finetuning/")]


def recipe(name: str, *overrides: str) -> Recipe:
    given = ["task.data=/data", *(["model.w2v_path=/model"] if name.startswith("wav2vec") else [])]
    return compose_loaded(load_file(find_recipe(name)), [*given, *overrides]).recipe


@pytest.mark.parametrize(
    ("name", "world", "tokens", "updates", "lr", "clip", "clones", "depth", "prenet", "share"),
    [
        ("v2/base_audio_only_task", 8, 1_000_000, 400_000, 7.5e-4, 0.0, 8, 12, 0, 0.5),
        ("v2/large_audio_only_task", 48, 320_000, 600_000, 4e-4, 1.0, 12, 16, 8, 0.55),
    ],
)
def test_v2_pretraining_numbers(
    name: str, world: int, tokens: int, updates: int, lr: float, clip: float, clones: int, depth: int,
    prenet: int, share: float,
) -> None:  # fmt: skip
    made = recipe(name)
    model, task = made.model, made.task
    assert isinstance(model, Data2VecMultiConfig) and isinstance(task, AudioPretrainingTask)
    audio = model.modalities.audio
    assert audio is not None and audio.decoder is not None
    assert (made.world_size(), made.dataset.max_tokens, made.optimization.max_update) == (
        world,
        tokens,
        updates,
    )
    assert made.parameter_groups()["default"].peaks == (lr,)
    assert made.optimization.clip_norm == clip
    assert (model.clone_batch, model.depth, audio.prenet_depth, audio.mask_prob) == (
        clones,
        depth,
        prenet,
        share,
    )
    assert (task.max_sample_size, task.min_sample_size) == (320_000, 32_000)
    assert task.normalize and task.precompute_mask_config == {}
    assert audio.learned_alibi_scale and audio.learned_alibi_scale_per_head
    assert model.max_update == updates


def test_v1_pretraining_numbers() -> None:
    base, events = recipe("audio/pretraining/base_librispeech"), recipe("audio/pretraining/audioset")
    assert isinstance(base.model, Data2VecAudioConfig) and isinstance(events.model, Data2VecAudioConfig)
    assert (base.world_size(), base.dataset.max_tokens, base.optimization.lr) == (16, 3_800_000, [5e-4])
    assert (base.model.average_top_k_layers, base.model.ema_layers_only) == (8, True)
    assert isinstance(base.lr_scheduler, TriStageSchedule)
    assert base.lr_scheduler.phase_ratio == (0.03, 0.9, 0.07)
    assert (events.model.average_top_k_layers, events.model.ema_layers_only) == (12, False)
    assert events.model.layer_norm_targets and isinstance(events.lr_scheduler, CosineSchedule)


def test_every_ctc_recipe_of_the_reference_is_there() -> None:
    assert len(CTC) == 28
    for name in CTC:
        made = recipe(name)
        assert isinstance(made.task, AudioFinetuningTask) and isinstance(made.model, Wav2VecCTC)
        assert made.task.normalize is not (
            name.rpartition("/")[2].startswith("base") or name.endswith("v100")
        )
        assert made.checkpoint.best_checkpoint_metric == "wer"
        assert (made.dataset.valid_subset, made.model.feature_grad_mult) == ("dev_other", 0.0)


@pytest.mark.parametrize(
    ("name", "world", "freq", "updates", "lr", "mask", "length", "channels", "drop", "freeze"),
    [
        ("base_100h", 2, 4, 80_000, 3e-5, 0.65, 10, 0.5, 0.1, 0),
        ("base_10m", 2, 4, 13_000, 5e-5, 0.65, 10, 0.25, 0.1, 10_000),
        ("vox_960h", 24, 1, 320_000, 3e-5, 0.5, 10, 0.25, 0.1, 10_000),
        ("vox_10h_2_aws", 4, 1, 60_000, 1e-5, 0.75, 5, 0.1, 0.0, 100),
        ("vox_960h_3", 16, 1, 200_000, 1e-5, 0.4, 5, 0.1, 0.1, 100),
    ],
)
def test_ctc_numbers(
    name: str, world: int, freq: int, updates: int, lr: float, mask: float, length: int, channels: float,
    drop: float, freeze: int,
) -> None:  # fmt: skip
    made = recipe(f"wav2vec/finetuning/{name}")
    model = made.model
    assert isinstance(model, Wav2VecCTC) and isinstance(made.optimizer, AdamOptions)
    assert (made.world_size(), made.update_freq_for_epoch(1), made.optimization.max_update) == (
        world,
        freq,
        updates,
    )
    assert (made.optimization.lr, made.optimizer.adam_betas) == ([lr], (0.9, 0.98))
    assert (model.mask_prob, model.mask_length, model.mask_channel_prob) == (mask, length, channels)
    assert (model.layerdrop, model.freeze_finetune_updates, model.mask_channel_length) == (drop, freeze, 64)


def test_the_composite_variants_keep_masked_frames_zero() -> None:
    made = recipe("wav2vec/finetuning/vox_10m_2")
    assert isinstance(made.optimizer, Composite) and isinstance(made.model, Wav2VecCTC)
    assert made.optimizer.groups["default"].optimizer.adam_betas == (0.9, 0.95)
    assert made.model.zero_mask and not made.model.update_alibi
    assert isinstance(made.criterion, CTCCriterion) and made.criterion.wer_lm_weight == 5.0


def test_the_readmes_fine_tuning_command() -> None:
    made = recipe(
        "wav2vec/finetuning/base_100h", "task.normalize=true", "+distributed_training.distributed_port=1",
        "distributed_training.distributed_world_size=1", "+optimization.update_freq=[8]",
        "common.user_dir=examples/data2vec",
    )  # fmt: skip
    assert isinstance(made.task, AudioFinetuningTask) and made.task.normalize
    assert made.micro_batches() == 8


def test_all_problems_of_a_speech_recipe_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(
            "v2/base_audio_only_task", "task.min_sample_size=400000", "task.normalize=false",
            "task.precompute_mask_config={mask_probb: 0.5, non_overlapping: true}",
            "model.modalities.audio.feature_encoder_spec='__import__(1)'",
            "dataset.max_tokens=1000",
        )  # fmt: skip
    fields = {problem.field for problem in caught.value.problems}
    assert {
        "task.min_sample_size", "task.normalize", "task.precompute_mask_config.mask_probb",
        "task.precompute_mask_config.non_overlapping", "model.modalities.audio.feature_encoder_spec",
        "task.max_sample_size",
    } <= fields  # fmt: skip


def test_language_model_arguments(tmp_path: Path) -> None:
    name = "wav2vec/finetuning/vox_10m_3"
    for file in ("lm.bin", "lexicon.txt"):
        (tmp_path / file).touch()
    made = recipe(name, f"+criterion.wer_args='[{tmp_path}/lm.bin, {tmp_path}/lexicon.txt, 3, -0.5]'")
    assert isinstance(made.criterion, CTCCriterion) and problems(made) == []
    found = word_error_model(made.criterion)
    assert found is not None and (found.weight, found.word_score) == (3.0, -0.5)
    # What a shell passes on of the reference's command line: its quotes are gone.
    bare = recipe(name, f"+criterion.wer_args=[{tmp_path}/lm.bin, {tmp_path}/lexicon.txt, 3, -0.5]")
    assert isinstance(bare.criterion, CTCCriterion) and problems(bare) == []
    assert word_error_model(bare.criterion) == found
    for field in ("wer_lexicon=/lexicon.txt", "wer_lm_weight=3", "wer_word_score=-1"):
        with pytest.raises(ConfigError, match=rf"criterion\.{field[:8]}.* needs criterion\.wer_kenlm_model"):
            recipe(name, f"criterion.{field}")
    with pytest.raises(ConfigError, match=r"wer_kenlm_model = '/lm' +needs criterion\.wer_lexicon"):
        recipe(name, "criterion.wer_kenlm_model=/lm")


_AUTHORS = ("criterion.wer_kenlm_model=/author/lm.bin", "criterion.wer_lexicon=/author/lexicon",
            "criterion.wer_lm_weight=5")  # fmt: skip


def test_files_of_a_language_model_are_asked_for_when_training_decodes(tmp_path: Path) -> None:
    made = recipe("wav2vec/finetuning/base_100h", *_AUTHORS)
    assert isinstance(made.criterion, CTCCriterion)
    found = {problem.field: problem for problem in missing_files(made.criterion)}
    assert {name: problem.value for name, problem in found.items()} == {
        "criterion.wer_kenlm_model": "/author/lm.bin", "criterion.wer_lexicon": "/author/lexicon"
    }  # fmt: skip
    assert all("criterion.wer_args=null" in problem.rule for problem in found.values())
    (tmp_path / "here").touch()
    made.criterion.wer_kenlm_model = made.criterion.wer_lexicon = f"{tmp_path}/here"
    assert missing_files(made.criterion) == []
    listed = recipe("wav2vec/finetuning/base_100h", f"+criterion.wer_args=[/lm,{tmp_path}/here,2,-1]")
    assert isinstance(listed.criterion, CTCCriterion)
    assert [(p.field, p.value) for p in missing_files(listed.criterion)] == [("criterion.wer_args", "/lm")]


@pytest.mark.parametrize("first", [(), ("criterion.wer_args=[/lm,/lexicon,2,-1]",)])
@pytest.mark.parametrize("word", ["criterion.wer_args=null", "~criterion.wer_args"])
def test_the_four_as_one_stand_for_the_single_fields(word: str, first: tuple[str, ...]) -> None:
    given = ["task.data=/data", "model.w2v_path=/model", *first, *_AUTHORS, word]
    composed = compose("wav2vec/finetuning/base_100h", given)
    criterion = composed.recipe.criterion
    assert isinstance(criterion, CTCCriterion) and word_error_model(criterion) is None
    assert criterion == CTCCriterion(zero_infinity=True)
    told = "criterion.wer_args: takes the place of criterion.wer_kenlm_model, criterion.wer_lexicon"
    assert any(note.startswith(told) for note in composed.notes)
    with pytest.raises(ConfigError, match=r"~criterion\.wer_args.*nothing to remove"):
        recipe("wav2vec/finetuning/base_100h", "~criterion.wer_args")


def test_mask_values_are_checked_as_the_models_own() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe("v2/base_audio_only_task", "task.precompute_mask_config={clone_batch: 2, mask_prob: 2.0, "
               "mask_length: 0, mask_dropout: abc}")  # fmt: skip
    told = {problem.field.rpartition(".")[2] for problem in caught.value.problems}
    assert told == {"clone_batch", "mask_prob", "mask_length", "mask_dropout"}
    assert problems(recipe("v2/base_audio_only_task", "task.precompute_mask_config={mask_length: 7}")) == []
