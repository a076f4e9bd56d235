"""Fine-tuning a speech model for recognition by CTC: letters out of audio, judged by word error rate."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data2vec.artifact import load_strictly, read_artifact, save_artifact
from data2vec.audio_model import conv_layers
from data2vec.ctc import BLANK, CTCConfig, CTCModel
from data2vec.ctc_decoding import BeamOptions, LexiconBeam
from data2vec.data.audio import AudioDataset
from data2vec.data.dictionary import Dictionary
from data2vec.data.letters import greedy_ids, words_of_ids
from data2vec.errors import ConfigError, Problem
from data2vec.speech_metrics import ErrorCount, count_errors, total, word_errors
from data2vec.v1.config import Data2VecAudioConfig

from ..recipe.audio_checks import missing_files, word_error_model
from ..recipe.audio_components import AudioFinetuningTask, CTCCriterion, Wav2VecCTC
from ..recipe.schema import Recipe
from .audio_data import OnAudio, audio_options, audio_samples, check_symbols
from .audio_parent import block_lr_scales, check_parent
from .batches import DECIDES
from .floor import Floor, transcript_floor
from .statistics import Layout, Sums
from .task import MicroBatch, OneModelTask

logger = logging.getLogger(__name__)
ONLY_BLANKS_AFTER = 500  # updates after which output that is all blank deserves a hint


class AudioFinetuning(OnAudio, OneModelTask[CTCModel]):
    """The ``audio_finetuning`` task with the ``wav2vec_ctc`` model."""

    on_cpu = DECIDES | {"target"}

    def __init__(self, recipe: Recipe, model_folder: Path | None) -> None:
        assert isinstance(recipe.model, Wav2VecCTC)
        assert isinstance(recipe.task, AudioFinetuningTask)
        assert isinstance(recipe.criterion, CTCCriterion)
        self.recipe, self.task, self.criterion = recipe, recipe.task, recipe.criterion
        if model_folder is None:
            raise ConfigError([Problem("model.w2v_path", None, "is required: a pretrained audio model")])
        parent = read_artifact(model_folder)
        self.parent = parent.config.get("origin", {})
        self.pretrained = check_parent(recipe, parent)
        self.letters = load_letters(self.task)
        self.dataset(recipe.dataset.train_subset)
        names = CTCConfig.__dataclass_fields__
        options = CTCConfig(**{name: getattr(recipe.model, name) for name in names})
        self.model = CTCModel(
            self.pretrained, options, num_symbols=len(self.letters), seed=recipe.common.seed
        )
        if not recipe.model.no_pretrained_weights:
            load_strictly(self.model.trunk, parent.trunk_state, parent.folder)
        self.layout = Layout(
            ("loss", "sample_size", "nsentences", "ntokens", "micro_batches", "too_short", "frames", "blanks")
        )
        self._hinted = False
        self._beam: Any = None

    @property
    def lr_scales(self) -> Mapping[str, float] | None:
        """Layer decay of a v2 trunk, by parameter name."""
        decay = self.model.options.layer_decay
        if decay == 1.0 or isinstance(self.pretrained, Data2VecAudioConfig):
            return None
        return block_lr_scales(self.model, "w2v_encoder.w2v_model.", decay)

    @staticmethod
    def open_subset(recipe: Recipe, subset: str) -> AudioDataset:
        """The data set of one subset; nothing is built."""
        assert isinstance(recipe.task, AudioFinetuningTask)
        return open_utterances(recipe, subset, load_letters(recipe.task), None)

    @classmethod
    def check_data(cls, recipe: Recipe, model_folder: Path | None) -> None:
        """Open every subset that training will use, and compare data and model."""
        assert isinstance(recipe.task, AudioFinetuningTask)
        layers = None
        if model_folder is not None:
            layers = conv_layers(check_parent(recipe, read_artifact(model_folder)))
        letters = load_letters(recipe.task)
        assert isinstance(recipe.criterion, CTCCriterion)
        if recipe.valid_subsets():  # a lexicon or language model that does not fit is refused here
            make_beam(recipe.criterion, letters)
        for subset in (recipe.dataset.train_subset, *recipe.valid_subsets()):
            dataset = open_utterances(recipe, subset, letters, layers)
            dataset.verify()
            told = check_symbols(dataset, letters, "give task.target_dictionary")
            if told and subset == recipe.dataset.train_subset:
                logger.warning("%s", told)

    def opened(self, subset: str) -> AudioDataset:
        """Utterances of one subset that the model can learn from."""
        return open_utterances(self.recipe, subset, self.letters, conv_layers(self.pretrained))

    def forward(self, batch: Mapping[str, torch.Tensor], update: int) -> MicroBatch:
        """Summed loss of one micro-batch; utterances with too few frames are counted and left out."""
        output = self.model(
            batch["source"], batch["padding_mask"], batch["id"], update=update, seed=self.recipe.common.seed
        )
        sums = self.model.loss(output, batch["target"], batch["target_lengths"])
        blanks = _blanks(output.logits_BTV, output.padding_mask_BT)
        scalars = {
            "loss": sums.loss.detach(),
            "sample_size": sums.sentences,
            "nsentences": len(batch["id"]),
            "ntokens": audio_samples(batch),
            "micro_batches": 1,
            "too_short": sums.too_short,
            "frames": int(output.frames_B.sum()),
            "blanks": blanks,
        }
        return MicroBatch(sums.loss, sums.sentences, scalars)

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Loss per utterance in bits, as the reference logs it, and the share of blank frames."""
        figures = {
            "loss": sums["loss"] / max(sums["sample_size"], 1.0) / math.log(2),
            "blank_rate": 100.0 * sums["blanks"] / max(sums["frames"], 1.0),
        }
        if sums["too_short"]:
            figures["too_short"] = sums["too_short"]
        return figures

    def guard(self, metrics: Mapping[str, float], update: int) -> str | None:
        """Nothing stops the run, but output that is all blank gets a hint, once."""
        only = metrics.get("blank_rate", 0.0) >= 99.99
        if (
            only
            and update >= self.model.options.freeze_finetune_updates + ONLY_BLANKS_AFTER
            and not self._hinted
        ):
            self._hinted = True
            logger.warning(
                "update %d: only blanks come out. That is usual in the first thousand updates; if it stays, "
                "raise optimization.lr, lower model.mask_prob and model.mask_channel_prob, or check that the "
                "labels fit the audio",
                update,
            )
        return None

    def predict(self, batch: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Loss, greedy letters and words, and (where configured) words with the language model."""
        output = self.model(batch["source"], batch["padding_mask"], batch["id"])
        emissions_BTV = output.emissions()
        best_BT = emissions_BTV.argmax(-1).tolist()
        results: list[dict[str, Any]] = []
        for row, identity in enumerate(batch["id"].tolist()):
            frames = int(output.frames_B[row])
            ids = greedy_ids(best_BT[row][:frames], BLANK)
            count = int(batch["target_lengths"][row])
            target = batch["target"][row, :count].tolist()
            one = slice(row, row + 1)
            part = type(output)(output.logits_BTV[one], output.frames_B[one], None)
            sums = self.model.loss(part, batch["target"][one], batch["target_lengths"][one])
            result = {
                "id": int(identity),
                "loss": float(sums.loss),
                "sentences": sums.sentences,
                "letters": ids,
                "target": target,
                "reference": words_of_ids(target, self.letters),
                "prediction": words_of_ids(ids, self.letters),
                "blank_frames": sum(best == BLANK for best in best_BT[row][:frames]),
                "frames": frames,
            }
            beam = self.beam()
            if beam is not None:
                result["prediction_lm"] = beam.decode(emissions_BTV[row, :frames].cpu().numpy())[0].text
            results.append(result)
        return results

    def beam(self) -> Any:
        """The beam decoder of ``criterion.wer_*``; ``None`` without a language model."""
        if self._beam is None:
            self._beam = make_beam(self.criterion, self.letters)
        return self._beam

    def score(self, subset: str, results: list[dict[str, Any]]) -> dict[str, float]:
        """Error rates over the whole subset, label coverage and share of blank frames."""
        letters = total(count_errors(r["target"], r["letters"]) for r in results)
        greedy = total(word_errors(r["reference"], r["prediction"]) for r in results)
        words: ErrorCount = greedy
        if results and "prediction_lm" in results[0]:
            words = total(word_errors(r["reference"], r["prediction_lm"]) for r in results)
        used = {symbol for r in results for symbol in r["letters"]}
        wanted = {symbol for r in results for symbol in r["target"]}
        sentences = sum(r["sentences"] for r in results)
        left_out = {"too_short": float(len(results) - sentences)} if sentences < len(results) else {}
        return {
            **left_out,
            "loss": sum(r["loss"] for r in results) / max(sentences, 1) / math.log(2),
            "uer": letters.rate,
            "raw_wer": greedy.rate,
            "wer": words.rate,
            "blank_rate": 100.0
            * sum(r["blank_frames"] for r in results)
            / max(sum(r["frames"] for r in results), 1),
            "label_coverage": 100.0 * len(used & wanted) / max(len(wanted), 1),
        }

    def export(self, folder: Path, origin: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
        """Trunk, projection and letters: needs no pretrained file to be used."""
        return save_artifact(
            folder,
            kind="ctc",
            model_config=self.pretrained,
            head_config=self.model.options,
            state=weights,
            task={
                "sample_rate": self.task.sample_rate,
                "normalize": self.task.normalize,
                "num_symbols": len(self.letters),
                "metric": self.recipe.checkpoint.best_checkpoint_metric,
            },
            letters=self.letters,
            origin=origin,
        )

    def floor(self, subset: str, metric: str) -> Floor | None:
        """An empty transcript."""
        return transcript_floor(metric)

    def facts(self) -> dict[str, str]:
        """Fingerprints, the parent's run, and the hash of the letters."""
        return super().facts() | {"dictionary.hash": self.letters.digest()}


def load_letters(task: AudioFinetuningTask) -> Dictionary:
    """``dict.<labels>.txt`` of the data, or of ``task.target_dictionary``."""
    folder = Path(task.target_dictionary or task.data)
    path = folder / f"dict.{task.labels}.txt" if folder.is_dir() else folder
    return Dictionary.load(path)


def make_beam(criterion: CTCCriterion, letters: Dictionary) -> Any:
    """The decoder of ``criterion.wer_*``, as the reference has it (beam 50); ``None`` without one.

    Raises:
        ConfigError: lexicon or language model are missing.
        DataError: they do not fit the letters or each other.
    """
    if missing := missing_files(criterion):
        raise ConfigError(missing)
    found = word_error_model(criterion)
    if found is None:
        return None

    narrow = min(50, len(letters))
    options = BeamOptions(
        beam=50,
        beam_threshold=narrow,
        beam_size_token=narrow,
        lm_weight=found.weight,
        word_score=found.word_score,
    )
    return LexiconBeam(letters, Path(found.lexicon), Path(found.path), options)


def open_utterances(
    recipe: Recipe, subset: str, letters: Dictionary, layers: tuple[tuple[int, int, int], ...] | None
) -> AudioDataset:
    """The utterances of one subset; training leaves out what cannot be learned from, and says how many."""
    task = recipe.task
    assert isinstance(task, AudioFinetuningTask)
    options = audio_options(recipe, subset, pad=True, drop_longer=True, labels=task.labels)
    return AudioDataset(
        task.data, subset, options, dictionary=letters, convolutions=layers, seed=recipe.common.seed
    )


def _blanks(logits_BTV: torch.Tensor, padding_mask_BT: torch.Tensor | None) -> torch.Tensor:
    """Number of real frames whose best class is the blank."""
    blank_BT = logits_BTV.detach().argmax(-1) == BLANK
    return blank_BT.sum() if padding_mask_BT is None else (blank_BT & ~padding_mask_BT).sum()
