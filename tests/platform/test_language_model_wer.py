"""``criterion.wer_args``: word error rates with a language model while a recogniser is fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_platform.recipe.schema import Recipe
from d2v_platform.tasks import make_task
from data2vec.data.letters import released_letters
from data2vec.errors import ConfigError, DataError
from data2vec.language_model import NgramModel, lexicon_text
from data2vec.speech_metrics import total, word_errors


def recipe(data: Path, **criterion: Any) -> Recipe:
    released_letters().save(data / "dict.ltr.txt")
    return Recipe.from_dict(
        {
            "task": {"_name": "audio_finetuning", "data": str(data), "labels": "ltr", "normalize": True},
            "model": {"_name": "wav2vec_ctc", "w2v_path": "given"},
            "criterion": {"_name": "ctc", **criterion},
            "optimizer": "adam",
            "dataset": {"max_tokens": 60_000, "train_subset": "dev", "valid_subset": "dev"},
            "optimization": {"max_update": 2, "lr": [1e-3]},
        }
    )


def scores(made: Recipe, model: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    task = make_task(made, model)
    task.module.eval()
    results: list[dict[str, Any]] = []
    dataset = task.dataset("dev")
    with torch.no_grad():
        for indices in task.batches("dev", 1, training=False):
            results += task.predict(dataset.collate([dataset[int(i)] for i in indices]))
    return task.score("dev", results), results


def test_the_word_error_rate_is_the_language_models(
    ctc_model: Path, utterances: Path, tmp_path: Path
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    (tmp_path / "lm.arpa").write_text(NgramModel.estimate([["ONE", "TWO"]], 2).arpa())
    (tmp_path / "lexicon").write_text(lexicon_text(["ONE", "TWO"]))
    greedy, _ = scores(recipe(utterances), ctc_model)
    assert greedy["wer"] == greedy["raw_wer"]
    listed = f"[{tmp_path}/lm.arpa, {tmp_path}/lexicon, 0.5, 30]"
    found, results = scores(recipe(utterances, wer_args=listed), ctc_model)
    said = {word for result in results for word in result["prediction_lm"].split()}
    assert said and said <= {"ONE", "TWO"}
    wanted = total(word_errors("ONE TWO", result["prediction_lm"]) for result in results)
    assert found["wer"] == pytest.approx(wanted.rate) != found["raw_wer"]
    assert found["raw_wer"] == greedy["raw_wer"] and found["uer"] == greedy["uer"]
    fields = {"wer_kenlm_model": f"{tmp_path}/lm.arpa", "wer_lexicon": f"{tmp_path}/lexicon",
              "wer_lm_weight": 0.5, "wer_word_score": 30.0}  # fmt: skip
    assert scores(recipe(utterances, **fields), ctc_model)[0] == found, "the single fields mean the same"


def test_a_lexicon_that_does_not_fit_stops_before_training(
    ctc_model: Path, utterances: Path, tmp_path: Path
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    from d2v_platform.tasks import check_data

    (tmp_path / "lm.arpa").write_text(NgramModel.estimate([["ONE"]], 2).arpa())
    (tmp_path / "lexicon").write_text("one\to n e |\n")
    made = recipe(utterances, wer_args=f"[{tmp_path}/lm.arpa, {tmp_path}/lexicon, 2, -1]")
    with pytest.raises(DataError, match=r"left out: 'one' with o, n, e \(line 1\)"):
        check_data(made, ctc_model)
    absent = recipe(utterances, wer_kenlm_model="/author/lm", wer_lexicon=f"{tmp_path}/lexicon")
    with pytest.raises(ConfigError, match=r"criterion\.wer_kenlm_model = '/author/lm' +no such file"):
        check_data(absent, ctc_model)
    absent.dataset.disable_validation = True  # nothing is decoded
    check_data(absent, ctc_model)
