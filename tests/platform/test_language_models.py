"""Language models: text to data, training with the one loop, registration, and what recipes refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from d2v_platform.preparation.commands import app as prepare_app
from d2v_platform.preparation.text import TextOptions
from d2v_platform.preparation.unit_text import prepare_units
from d2v_platform.recipe.compose import compose
from d2v_platform.registry.language_models import check_texts, language_check_outputs
from d2v_platform.registry.served_models import record_check
from d2v_platform.training.job import Job, ResolvedModels
from d2v_platform.training.train_loop import train
from d2v_platform.training.workload import make_workload
from data2vec.data.dictionary import Dictionary
from data2vec.data.indexed import IndexedTokens
from data2vec.errors import ConfigError, Data2VecError, DataError
from data2vec.flops import Storage
from data2vec.lm.loaded import LanguageModel
from data2vec.loading import load
from tests.platform.recorder import Recorder

SENTENCES = [f"{who} {what} {where}" for who in ("ANN", "BOB", "EVE") for what in ("SAW", "MET")
             for where in ("IT", "US", "ME", "HER")]  # fmt: skip
SMALL = ["model.decoder_embed_dim=16", "model.decoder_ffn_embed_dim=32", "model.decoder_layers=1",
         "model.decoder_attention_heads=2", "dataset.max_tokens=64", "task.tokens_per_sample=16",
         "platform.num_workers=0", "common.log_interval=5", "lr_scheduler.warmup_updates=1"]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "train.wrd").write_text("\n".join(SENTENCES[:20]) + "\n\n")
    (tmp_path / "valid.wrd").write_text("\n".join(SENTENCES[20:]) + "\nANN SAW ZOE\n")
    return tmp_path


@pytest.fixture
def data(text: Path) -> Path:
    sources = {split: text / f"{split}.wrd" for split in ("train", "valid")}
    prepare_units(sources, text / "words", "words", TextOptions(build_dict=True))
    return text / "words"


def run(data: Path, folder: Path, *overrides: str, name: str = "tiny/language_model") -> tuple[dict, Path]:
    composed = compose(name, [f"task.data={data}", *SMALL, *overrides])
    summary = train(Job(composed.recipe, folder), Recorder())
    assert summary.export is not None
    return dict(summary.metrics), Path(summary.export)


def test_words_and_letters_have_their_own_dictionaries(text: Path, data: Path) -> None:
    dictionary = Dictionary.load(data / "dict.txt")
    assert {"ANN", "SAW", "HER"} <= set(dictionary.symbols) and len(dictionary) % 8 == 0
    assert "ZOE" not in dictionary.symbols, "validation text adds no words"
    lines = IndexedTokens(data / "train")
    assert len(lines) == 20 and [dictionary.symbol(i) for i in lines[1]] == ["ANN", "SAW", "US", "</s>"]
    card = json.loads((data / "card.json").read_text())
    assert card["units"] == "words" and card["splits"]["train"]["empty_lines"] == 1
    assert card["splits"]["valid"]["unknown_tokens"] == 1
    done = CliRunner().invoke(
        prepare_app,
        ["text", "--units", "letters", "--build-dict", "--train", str(text / "train.wrd"), "--dest",
         str(text / "letters")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    letters = Dictionary.load(text / "letters/dict.txt")
    first = IndexedTokens(text / "letters/train")[0]
    assert [letters.symbol(i) for i in first] == [*"ANN|SAW|IT|", "</s>"]


def test_finished_splits_are_not_made_again_and_other_dictionaries_refused(text: Path, data: Path) -> None:
    sources = {"train": text / "train.wrd"}
    again = prepare_units(sources, data, "words", TextOptions(build_dict=True))
    assert again.splits["train"].skipped
    made = again.splits["train"].key
    letters = prepare_units(sources, text / "l", "letters", TextOptions(dictionary=data / "dict.txt"))
    assert letters.splits["train"].key != made, "the same text and dictionary in other units"
    (text / "train.wrd").write_text("QUITE OTHER WORDS\n")
    with pytest.raises(DataError, match="exists with other content"):
        prepare_units(sources, data, "words", TextOptions(build_dict=True))
    with pytest.raises(DataError, match=r"(?s)belong to BPE.*needs --build-dict.*does not exist"):
        prepare_units({"train": text / "no"}, data, "words", TextOptions(vocab_bpe=text / "x"))


def test_a_language_model_learns_and_resumes_exactly(data: Path, tmp_path: Path) -> None:
    metrics, folder = run(data, tmp_path / "a", "optimization.max_update=60", "model.dropout=0.1")
    assert metrics["valid/ppl"] < 20 < metrics["train/first_loss"] ** 2
    assert metrics["valid/ppl"] == pytest.approx(2 ** metrics["valid/loss"])
    model = load(folder)
    assert isinstance(model, LanguageModel)
    lines = (data.parent / "valid.wrd").read_text().splitlines()
    assert model.perplexity(lines) == pytest.approx(metrics["valid/best_ppl"], rel=1e-4)
    assert model.score(["ANN SAW IT"])[0] > model.score(["IT SAW ANN"])[0]
    half = ["optimization.max_update=60", "model.dropout=0.1", "checkpoint.save_interval_updates=30"]
    run(data, tmp_path / "b", *half, "optimization.stop_time_hours=1e-9")
    _, resumed = run(data, tmp_path / "b", *half)
    _, straight = run(data, tmp_path / "c", *half)
    for name, tensor in load(straight).network.state_dict().items():
        torch.testing.assert_close(load(resumed).network.state_dict()[name], tensor, rtol=0, atol=0)


def test_bands_and_the_reference_s_keys(data: Path, tmp_path: Path) -> None:
    bands = ["criterion=adaptive_loss", "model.share_decoder_input_output_embed=false",
             "model.adaptive_softmax_cutoff=6,10", "model.adaptive_input=true",
             "model.adaptive_input_cutoff=6,10", "model.tie_adaptive_weights=true",
             "model.tie_adaptive_proj=true", "model.decoder_layerdrop=0.2",
             "model.adaptive_input_factor=2", "model.adaptive_softmax_factor=2",
             "+task.future_target=true", "+task.add_bos_token=false"]  # fmt: skip
    metrics, folder = run(data, tmp_path / "a", "optimization.max_update=20", *bands)
    assert math.isfinite(metrics["valid/ppl"]) and load(folder).units == "words"
    with pytest.raises(ConfigError) as caught:
        compose("tiny/language_model", [f"task.data={data}", "+task.self_target=true",
                "+model.character_embeddings=true", "criterion=adaptive_loss", "model.dropout=2",
                "platform.checkpoint_activations=true", "checkpoint.best_checkpoint_metric=wer"])  # fmt: skip
    fields = {problem.field for problem in caught.value.problems}
    assert {"task.self_target", "model.character_embeddings", "model.adaptive_softmax_cutoff",
            "model.dropout", "platform.checkpoint_activations",
            "checkpoint.best_checkpoint_metric"} <= fields  # fmt: skip
    ends = ["model.adaptive_softmax_cutoff=6,100", "model.adaptive_input_cutoff=6,100"]
    recipe = compose("tiny/language_model", [f"task.data={data}", *SMALL, *bands, *ends]).recipe
    with pytest.raises(ConfigError, match="beyond the vocabulary of 16"):
        train(Job(recipe, tmp_path / "b"), Recorder())


def test_another_dictionary_cannot_be_trained_on(text: Path, data: Path, tmp_path: Path) -> None:
    _, folder = run(data, tmp_path / "a", "optimization.max_update=2")
    (text / "train.wrd").write_text("OTHER WORDS\n")
    other = dict.fromkeys(("train", "valid"), text / "train.wrd")
    prepare_units(other, text / "other", "words", TextOptions(build_dict=True))
    recipe = compose("tiny/language_model", [f"task.data={text / 'other'}", *SMALL]).recipe
    with pytest.raises(Data2VecError, match="another dictionary"):
        train(Job(recipe, tmp_path / "b", models=ResolvedModels(initial=folder)), Recorder())


def test_the_plan_counts_what_torch_counts(data: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from d2v_platform.tasks import make_task

    recipe = compose("tiny/language_model", [f"task.data={data}", *SMALL]).recipe
    workload = make_workload(recipe, None)
    assert workload is not None
    task = make_task(recipe, None)
    samples, length = next(iter(workload.sizes))
    cost = workload.cost((samples, length), Storage(), False)
    assert cost.parameters == sum(p.numel() for p in task.module.parameters())
    dataset = task.dataset("train")
    batch = dataset.collate([dataset[0]] * samples)
    with FlopCounterMode(display=False) as counter:
        task.forward(batch, 0).loss.backward()
    counted = counter.get_total_flops()
    assert batch["source"].shape == (samples, length) and cost.flops == pytest.approx(counted, rel=0.1)


def test_the_reload_check_records_probabilities(data: Path, tmp_path: Path) -> None:
    _, folder = run(data, tmp_path / "a", "optimization.max_update=2")
    content = json.loads(record_check(folder).read_text())
    model = load(folder)
    assert content["output"] == "log_prob" and content["texts"] == check_texts(model)
    assert (
        content["expected"] == language_check_outputs(model, content["texts"])
        and len(content["expected"]) == 3
    )
