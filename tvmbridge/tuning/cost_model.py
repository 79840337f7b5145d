"""Predicts how good a candidate is from what was measured: gradient-boosted trees (XGBoost) over its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tvmbridge.tuning.tasks import Candidate, Task

_ROUNDS = 60
_MINIMUM_TRIALS = 8  # fewer teach nothing


class CostModel:
    """Trained on the trials of all tasks together: score 1 is a task's best time, 0.5 is twice as slow, 0 failed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._columns: tuple[str, ...] = ()
        self._booster = None

    def train(self, tasks: Sequence[Task]) -> None:
        """Fit to every trial so far; does nothing while there are too few."""
        import xgboost

        rows, scores = [], []
        for task in tasks:
            best_us = task.best_us
            for candidate, record in task.trials:
                rows.append(_features(candidate))
                scores.append(best_us / record.median_us if best_us and record.median_us else 0.0)
        if len(rows) < _MINIMUM_TRIALS:
            return
        self._columns = tuple(sorted({name for row in rows for name in row}))
        parameters = {"max_depth": 6, "eta": 0.2, "objective": "reg:squarederror", "seed": self._seed, "verbosity": 0}
        data = xgboost.DMatrix(self._matrix(rows), label=np.asarray(scores))
        self._booster = xgboost.train(parameters, data, num_boost_round=_ROUNDS)

    def predict(self, candidates: Sequence[Candidate]) -> np.ndarray | None:
        """One score a candidate, higher is better; None before there was enough to learn from."""
        import xgboost

        if self._booster is None or not candidates:
            return None
        return self._booster.predict(xgboost.DMatrix(self._matrix([_features(c) for c in candidates])))

    def _matrix(self, rows: Sequence[dict[str, float]]) -> np.ndarray:
        return np.array([[row.get(name, math.nan) for name in self._columns] for row in rows], dtype=np.float32)


def _features(candidate: Candidate) -> dict[str, float]:
    """The template, the numbers of the config and of the kernel's tensors, on a logarithmic scale."""
    features = {f"template={candidate.template.name}": 1.0}
    for name, value in candidate.config.items():
        if isinstance(value, str):
            features[f"config.{name}={value}"] = 1.0
        else:
            features[f"config.{name}"] = math.log2(1 + value)
    for position, tensor in enumerate(candidate.kernel.function.params):
        for axis, size in enumerate(tensor.shape):
            features[f"tensor{position}.{axis}"] = math.log2(1 + int(size))
    return features
