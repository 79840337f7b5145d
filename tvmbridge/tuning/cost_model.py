"""Predicts how good a candidate is from what was measured: gradient-boosted trees (XGBoost) over its features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tvmbridge.tuning.features import Features, candidate_features
from tvmbridge.tuning.record import TrialRecord

if TYPE_CHECKING:
    from tvmbridge.tuning.tasks import Candidate

_ROUNDS = 60
_MINIMUM_TRIALS = 8  # fewer teach nothing


class CostModel:
    """Learns from the trials of all kernels together: score 1 is a kernel's best time, 0.5 twice as slow, 0 failed.

    earlier: trials of other kernels on the same target, from logs of other models.
    """

    def __init__(self, seed: int, earlier: Iterable[TrialRecord] = ()) -> None:
        self._seed = seed
        self._columns: dict[str, int] = {}
        self._rows: list[Features] = []
        self._kernels: list[str] = []
        self._times_us: list[float] = []  # infinite where the trial failed
        self._booster = None
        self._features: dict[tuple[str, str, int, str], Features] = {}
        self.learn(earlier)

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Take in trials; `train` makes them count."""
        for record in records:
            self._rows.append(candidate_features(record.kernel, record.template, record.config))
            self._kernels.append(record.kernel)
            self._times_us.append(math.inf if record.median_us is None else record.median_us)

    def train(self) -> None:
        """Fit to every trial so far; does nothing while there are too few."""
        import xgboost

        if len(self._rows) < _MINIMUM_TRIALS:
            return
        best: dict[str, float] = {}
        for kernel, time_us in zip(self._kernels, self._times_us, strict=True):
            best[kernel] = min(time_us, best.get(kernel, math.inf))
        scores = [
            best[kernel] / time_us if math.isfinite(time_us) else 0.0
            for kernel, time_us in zip(self._kernels, self._times_us, strict=True)
        ]
        self._columns = {name: column for column, name in enumerate(sorted({n for row in self._rows for n in row}))}
        parameters = {"max_depth": 6, "eta": 0.2, "objective": "reg:squarederror", "seed": self._seed, "verbosity": 0}
        data = xgboost.DMatrix(self._matrix(self._rows), label=np.asarray(scores))
        self._booster = xgboost.train(parameters, data, num_boost_round=_ROUNDS)

    def predict(self, candidates: Sequence[Candidate]) -> np.ndarray | None:
        """One score a candidate, higher is better; None before there was enough to learn from."""
        if self._booster is None or not candidates:
            return None
        return self._booster.inplace_predict(self._matrix([self._of(candidate) for candidate in candidates]))

    def _of(self, candidate: Candidate) -> Features:
        if candidate.key not in self._features:
            features = candidate_features(candidate.kernel.key, candidate.template.name, candidate.config)
            self._features[candidate.key] = features
        return self._features[candidate.key]

    def _matrix(self, rows: Sequence[Features]) -> np.ndarray:
        matrix = np.full((len(rows), len(self._columns)), np.nan, np.float32)
        for index, row in enumerate(rows):
            for name, value in row.items():
                column = self._columns.get(name)
                if column is not None:
                    matrix[index, column] = value
        return matrix
