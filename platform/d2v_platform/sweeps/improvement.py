"""A searcher for Ray Tune: points spread evenly, then those with the largest expected improvement.

A Gaussian process (scikit-learn's, Matern 5/2) is fitted to the results so far. Trials that still run count
as if they gave what the process expects of them, so that trials side by side do not ask the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from scipy.stats import norm, qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

Bounds = Mapping[str, tuple[float, float]]
_CANDIDATES = 512
_NEAR = 64  # candidates around the best point


def spread_points(bounds: Bounds, count: int, seed: int) -> list[dict[str, float]]:
    """``count`` points spread evenly inside the bounds (scrambled Sobol)."""
    sampler = qmc.Sobol(len(bounds), rng=np.random.default_rng(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a number of points that is no power of two is meant
        unit = sampler.random(count)
    return [_values(bounds, row) for row in unit]


def next_point(
    bounds: Bounds,
    tried: Sequence[tuple[Mapping[str, float], float]],
    running: Sequence[Mapping[str, float]],
    seed: int,
) -> dict[str, float]:
    """The point with the largest expected improvement.

    Args:
        bounds: lowest and highest value by name.
        tried: points with their results; smaller is better.
        running: points without a result yet.
        seed: of the candidates, a function of the trial's number.
    """
    x = np.array([_unit(bounds, point) for point, _ in tried])
    y = np.array([value for _, value in tried], dtype=float)
    middle = np.median(y)
    spread = 1.4826 * np.median(np.abs(y - middle)) or y.std()  # hopeless points do not widen it
    y = np.clip(y, None, middle + 3 * spread)
    scales: Any = np.full(len(bounds), 0.3)
    kernel = Matern(length_scale=scales, length_scale_bounds=(0.05, 5.0), nu=2.5)
    process = GaussianProcessRegressor(
        kernel + WhiteKernel(1e-3, (1e-6, 0.3)), normalize_y=True, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, y)
        if running:
            pending = np.array([_unit(bounds, point) for point in running])
            expected = np.asarray(process.predict(pending))
            x, y = np.concatenate([x, pending]), np.concatenate([y, expected])
            fitted: dict[str, Any] = {"optimizer": None, "normalize_y": True}
            process = GaussianProcessRegressor(process.kernel_, **fitted)
            process.fit(x, y)
    draw = np.random.default_rng(seed)
    near = x[y.argmin()] + draw.normal(0, 0.05, (_NEAR, len(bounds)))
    candidates = np.clip(np.concatenate([draw.random((_CANDIDATES, len(bounds))), near]), 0, 1)
    mean, deviation = process.predict(candidates, return_std=True)
    gain = y.min() - mean
    z = gain / np.maximum(deviation, 1e-9)
    improvement = gain * norm.cdf(z) + deviation * norm.pdf(z)
    return _values(bounds, candidates[int(np.argmax(improvement))])


def _unit(bounds: Bounds, point: Mapping[str, float]) -> list[float]:
    return [(point[name] - low) / (high - low) for name, (low, high) in bounds.items()]


def _values(bounds: Bounds, row: np.ndarray) -> dict[str, float]:
    return {
        name: round(low + float(u) * (high - low), 3)
        for (name, (low, high)), u in zip(bounds.items(), row, strict=True)
    }


class ExpectedImprovement(Searcher):
    """Suggests points to Ray Tune.

    Args:
        bounds: lowest and highest value by name.
        trials: points in all, those of earlier launches included.
        seed: of everything random.
        known: points of earlier launches with their results.
    """

    def __init__(
        self, bounds: Bounds, trials: int, seed: int, known: Sequence[tuple[Mapping[str, float], float]] = ()
    ) -> None:
        super().__init__(metric="wer", mode="min")
        self._bounds, self._total, self._seed = bounds, trials, seed
        self._spread = spread_points(bounds, max(trials // 4, min(trials, 2 * len(bounds))), seed)
        self._tried = [(dict(point), value) for point, value in known]
        self._running: dict[str, dict[str, float]] = {}
        done = [point for point, _ in self._tried]
        self._spread = [point for point in self._spread if point not in done]
        self._asked = len(self._tried)

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """The metric is fixed; nothing else is searched."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next point; ``FINISHED`` after the last one."""
        if self._asked >= self._total:
            return Searcher.FINISHED
        if self._spread:
            point = self._spread.pop(0)
        elif self._tried:
            seed = self._seed * 100_003 + self._asked
            point = next_point(self._bounds, self._tried, list(self._running.values()), seed)
        else:
            return None  # nothing has ended yet: wait
        number, self._asked = self._asked, self._asked + 1
        self._running[trial_id] = point
        return {"number": number, **point}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Learn from a result."""
        point = self._running.pop(trial_id, None)
        if point is not None and result and not error and np.isfinite(result.get("wer", np.nan)):
            self._tried.append((point, float(result["wer"])))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own folder is the truth, and a new launch learns from it."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""
