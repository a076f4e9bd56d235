"""``d2v sweep decoding``: its trials on Ray Tune, what they leave, and their table."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import torch
from rich.console import Console

from data2vec.ctc_decoding import BeamOptions, LetterBeam, LexiconBeam
from data2vec.errors import ConfigError, Data2VecError, Problem
from data2vec.folders import write_text
from data2vec.speech_metrics import ErrorCount, total, word_errors

from ..figures import clock
from ..inference.decoding import DecodingJob, Search, job_on_this_node, load_search, open_dataset
from ..inference.emissions import StoredEmissions, Utterance, emission_folder, stored_emissions
from ..training import ray_session
from ..training.ray_output import last_line
from .decoding_sweep import NAME, TUNED, DecodingSweep, infer_command_of, read_sweep, transcribe_command_of

logger = logging.getLogger(__name__)
_SHOWN = 15


@dataclass(frozen=True, kw_only=True)
class WeightTrial:
    """One decoding of the subset."""

    number: int  # from 0, in the order in which they were asked for
    lmweight: float  # of the language model
    wordscore: float  # added for each word
    silweight: float  # added for each word delimiter
    wer: float  # word error rate in percent
    errors: int  # wrong words
    words: int  # words of the references
    seconds: float  # of its own work

    @property
    def values(self) -> dict[str, float]:
        """What was tried."""
        return {name: getattr(self, name) for name in TUNED}


def decoding_sweep_main(words: Sequence[str], config: Path, plan_only: bool) -> None:
    """``d2v sweep decoding ...``.

    Args:
        words: overrides of ``search.*``, of infer's options and ``platform.run_name``.
        config: the definition.
        plan_only: say what would be done, and stop.

    Raises:
        Data2VecError: everything that is wrong, before anything is computed.
    """
    sweep = read_sweep(words, config)
    if plan_only:
        for line in tuning_lines(sweep):
            logger.info("%s", line)
        return
    sweep.root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(sweep.root / "sweep.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise Data2VecError(
            f"the sweep {sweep.name!r} is being run by another process; wait for it, stop it, or choose "
            "another platform.run_name"
        ) from None
    with lock:
        _refuse_changes(sweep)
        if sweep.fresh:
            logger.info("to go on with it: the same command with platform.run_name=%s", sweep.name)
        load_search(sweep.job.model, sweep.job.search)  # what is wrong with lexicon or model is said here
        emissions, there = stored_emissions(sweep.job, Console(markup=False))
        logger.info(
            "emissions of %s: %d utterances, %s (%s)", sweep.job.subset, len(emissions.utterances),
            "taken from an earlier run" if there else "computed", emissions.folder,
        )  # fmt: skip
        run_search(sweep, emissions.folder)


def tuning_lines(sweep: DecodingSweep) -> list[str]:
    """What a run of it would do."""
    done = len(read_trials(sweep.root))
    there = (emission_folder(sweep.job) / "utterances.json").is_file()
    ranges = ", ".join(f"{n} {low:g} ... {high:g}" for n, (low, high) in sweep.search.bounds().items())
    fixed = "".join(f", {name} {value:g} (fixed)" for name, value in sweep.search.fixed().items())
    decoding = sweep.infer.decoding
    name = "" if sweep.fresh else f", name {sweep.name}"
    return [
        f"sweep {NAME}{name}: {sweep.search.trials} trials, {done} done",
        f"  {ranges}{fixed}",
        f"  {decoding.type}, beam {decoding.beam}, {decoding.lmpath}, lexicon {decoding.lexicon}",
        f"  {sweep.job.subset} in {sweep.job.data}: {len(open_dataset(sweep.job))} utterances, of which "
        f"{sweep.search.utterances or 'all'} are decoded in each trial",
        f"  emissions of {sweep.model}: {'there' if there else 'to be computed once'}",
    ]


def _refuse_changes(sweep: DecodingSweep) -> None:
    """A tuning may not change under its name: its trials would not compare."""
    path = sweep.root / "settings.json"
    now = json.loads(json.dumps(sweep.settings(), default=str))
    if not path.is_file():
        path.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    problems = []
    for group in now:
        pairs = {group: (before.get(group), now[group])}
        if isinstance(now[group], dict):
            old = before.get(group) or {}
            pairs = {f"{group}.{key}": (old.get(key), value) for key, value in now[group].items()}
        for key, (old, new) in pairs.items():
            if old != new:
                rule = f"was {old!r} under this name; use that, or another platform.run_name"
                problems.append(Problem(key, new, rule))
    if problems:
        raise ConfigError(problems, "resuming the sweep")


def read_trials(root: Path) -> list[WeightTrial]:
    """The trials of all launches; a line that a killed driver left half written is not counted."""
    path = root / "trials.jsonl"
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(WeightTrial(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def run_search(sweep: DecodingSweep, emissions: Path) -> WeightTrial:
    """Run what is missing, then show and keep the table; returns the best trial."""
    known = read_trials(sweep.root)
    _keep_whole(sweep.root, known)
    left = sweep.search.trials - len(known)
    if left > 0 and not _exhausted(sweep, known):
        _run(sweep, emissions, known)
    else:
        logger.info("nothing is left to run: %d trials are done", len(known))
    trials = read_trials(sweep.root)
    best = best_trial(trials)
    table = write_table(sweep, trials)
    for line in table:
        logger.info("%s", line)
    return best


def _keep_whole(root: Path, trials: Sequence[WeightTrial]) -> None:
    """Without a half line at the end, to which the next one would be joined."""
    write_text(root / "trials.jsonl", "".join(json.dumps(asdict(trial)) + "\n" for trial in trials))


def best_trial(trials: Sequence[WeightTrial]) -> WeightTrial:
    """The lowest word error rate; of equal ones the earliest."""
    return min(trials, key=lambda trial: (trial.wer, trial.number))


def write_table(sweep: DecodingSweep, trials: Sequence[WeightTrial]) -> list[str]:
    """``trials.csv`` and ``results.md``; returns the latter's lines."""
    ordered = sorted(trials, key=lambda trial: (trial.wer, trial.number))
    pd.DataFrame([asdict(trial) for trial in ordered]).to_csv(sweep.root / "trials.csv", index=False)
    best = ordered[0]
    lines = [
        f"{len(ordered)} trials on {sweep.job.subset}, {best.words} words, {sweep.infer.decoding.type}, "
        f"beam {sweep.infer.decoding.beam}",
        "",
        "| trial | lmweight | wordscore | silweight | WER % | errors |",
        "|---|---|---|---|---|---|",
        *(
            f"| {t.number} | {t.lmweight:g} | {t.wordscore:g} | {t.silweight:g} | {t.wer:.2f} | {t.errors} |"
            for t in ordered[:_SHOWN]
        ),
        "",
        f"best: WER {best.wer:.2f} % on {sweep.job.subset}, the subset tuned on; judge it on others:",
        "",
        infer_command_of(sweep, best.values),
        "",
        transcribe_command_of(sweep, best.values),
        "",
        f"all trials: {sweep.root / 'trials.csv'}",
    ]
    (sweep.root / "results.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    (sweep.root / "best.json").write_text(json.dumps(asdict(best), indent=1) + "\n", encoding="utf-8")
    return lines


def _exhausted(sweep: DecodingSweep, trials: Sequence[WeightTrial]) -> bool:
    """Whether patience is spent already."""
    patience, best, since = sweep.search.patience, float("inf"), 0
    for trial in trials:
        since = 0 if trial.wer < best - sweep.search.epsilon else since + 1
        best = min(best, trial.wer)
    return 0 < patience <= since


def _run(sweep: DecodingSweep, emissions: Path, known: Sequence[WeightTrial]) -> None:
    # Ray Tune reads its switches when it is imported, Ray's are set by the connection.
    with ray_session.connected() as cluster:
        from .tune_run import set_environment

        set_environment()
        from ray import tune

        from .improvement import ExpectedImprovement

        gpu = sweep.job.device != "cpu" and sweep.infer.decoding.type == "fairseqlm"
        slots = max(1, int(cluster.cpus))
        share = 0.0
        if gpu:
            slots = min(slots, 4 * max(1, int(cluster.gpus)))  # language models of several trials share a GPU
            share = cluster.gpus / slots
        left = sweep.search.trials - len(known)
        logger.info("%d trials to run, %d at a time, 1 CPU each", left, min(slots, left))
        bounds = sweep.search.bounds()
        done = [({name: trial.values[name] for name in bounds}, trial.wer) for trial in known]
        watch = _watch(tune, sweep, known)
        place = sweep.root / "tune"
        spec = {
            "job": asdict(sweep.job),
            "emissions": str(emissions),
            "fixed": sweep.search.fixed(),
            "utterances": sweep.search.utterances,
            "seed": sweep.search.seed,
        }
        trainable = tune.with_resources(
            tune.with_parameters(weight_trial, spec=spec), {"cpu": 1, **({"gpu": share} if share else {})}
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=ExpectedImprovement(bounds, sweep.search.trials, sweep.search.seed, done),
                num_samples=left,
                max_concurrent_trials=slots,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(place),
                verbose=0,
                callbacks=[watch],
                stop=watch.stopper,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        try:
            found = tuner.fit()
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if found.errors and len(watch.trials) == len(known):
            raise Data2VecError(f"no trial could be run: {last_line(found.errors[0])}")


def weight_trial(config: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """The trainable: decode the subset with one set of weights."""
    from ray import tune

    torch.set_num_threads(1)
    plain = dict(spec["job"])
    beam = tuple((str(name), value) for name, value in plain["search"]["beam"])
    job = job_on_this_node(DecodingJob(**{**plain, "search": Search(**{**plain["search"], "beam": beam})}))
    emissions = Path(spec["emissions"])
    if not (emissions / "utterances.json").is_file():  # the driver's; each other node computes them once
        emissions = stored_emissions(job)[0].folder
    weights = {**spec["fixed"], **{name: config[name] for name in TUNED if name in config}}
    begin = time.perf_counter()
    count = decode_with(job, emissions, weights, spec["utterances"], spec["seed"])
    tune.report(
        {
            "number": config["number"], **weights, "wer": count.rate, "errors": count.errors,
            "words": count.reference, "trial_s": time.perf_counter() - begin,
        }
    )  # fmt: skip


def decode_with(
    job: DecodingJob, emissions: Path, weights: Mapping[str, float], utterances: int | None, seed: int
) -> ErrorCount:
    """Errors of the stored subset with these weights; lexicon and language model are loaded once a process.

    Args:
        job: the subset and the decoder's other options.
        emissions: folder of the store.
        weights: by their names in ``decoding``.
        utterances: decode a fixed random choice of so many.
        seed: of the choice.
    """
    store = _store(str(emissions))
    base = load_search(job.model, job.search)
    assert isinstance(base, LexiconBeam | LetterBeam)
    options = replace(
        BeamOptions(**dict(job.search.beam)),
        lm_weight=weights["lmweight"],
        word_score=weights["wordscore"],
        sil_weight=weights["silweight"],
        nbest=1,
    )
    search = base.with_options(options)
    return total(
        word_errors(u.reference, search.decode(store[u])[0].text) for u in _chosen(store, utterances, seed)
    )


def _chosen(store: StoredEmissions, count: int | None, seed: int) -> list[Utterance]:
    everything = store.utterances
    if count is None or count >= len(everything):
        return everything
    picked = np.random.default_rng(seed).permutation(len(everything))[:count]
    return [everything[index] for index in sorted(picked)]


@functools.lru_cache(maxsize=1)
def _store(folder: str) -> StoredEmissions:
    return StoredEmissions(Path(folder))


def _watch(tune: Any, sweep: DecodingSweep, known: Sequence[WeightTrial]) -> Any:
    """Keeps each result on disk, says a line about it, and stops when patience is spent."""

    class Watch(tune.Callback):
        def __init__(self) -> None:
            self.trials, self.begin, self.stop = list(known), time.perf_counter(), False
            self.stopper = _Stopper(self)
            self.total = sweep.search.trials

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: Any
        ) -> None:
            if "wer" not in result:
                return
            one = WeightTrial(
                number=int(result["number"]),
                **{name: float(result[name]) for name in TUNED},
                wer=float(result["wer"]),
                errors=int(result["errors"]),
                words=int(result["words"]),
                seconds=float(result["trial_s"]),
            )
            with (sweep.root / "trials.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")
            self.trials.append(one)
            self.stop = _exhausted(sweep, self.trials)
            new = len(self.trials) - len(known)
            rest = (time.perf_counter() - self.begin) / new * (self.total - len(self.trials))
            logger.info(
                "trial %d/%d  lmweight %.3f  wordscore %.3f  silweight %.3f  WER %.2f  best %.2f  eta %s",
                len(self.trials), self.total, one.lmweight, one.wordscore, one.silweight, one.wer,
                best_trial(self.trials).wer, clock(rest),
            )  # fmt: skip
            if self.stop:
                logger.info("no improvement in %d trials (search.patience)", sweep.search.patience)

    class _Stopper(tune.Stopper):
        def __init__(self, watch: Any) -> None:
            self.watch = watch

        def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return bool(self.watch.stop)

        def __getstate__(self) -> dict[str, Any]:
            return {"watch": None}

    return Watch()
