"""Predicts how good a candidate is from what was measured: gradient-boosted trees (XGBoost) over its features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tvmbridge.interrupts import hold_interrupts
from tvmbridge.tuning.features import Features, candidate_features
from tvmbridge.tuning.record import TrialRecord

if TYPE_CHECKING:
    from tvmbridge.tuning.tasks import Candidate

_ROUNDS = 60
_MINIMUM_TRIALS = 8  # fewer teach nothing
_NEWS = 0.04  # of the trials: where fewer are new, what was learnt from the others still holds


class CostModel:
    """Learns from the trials of all kernels together: score 1 is a kernel's best time, 0.5 twice as slow, 0 failed.

    earlier: trials of other kernels on the same target, from logs of other models.
    """

    def __init__(self, seed: int, earlier: Iterable[TrialRecord] = ()) -> None:
        with hold_interrupts():
            import xgboost

        self._xgboost = xgboost
        self._seed = seed
        self._seen = _Table()
        self._candidates = _Table(self._seen.columns)
        self._places: dict[tuple[str, str, int, str], int] = {}
        self._kernels: list[str] = []
        self._times_us: list[float] = []  # infinite where the trial failed
        self._trained_on = 0
        self._booster = None
        self.learn(earlier)

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Take in trials; `train` makes them count."""
        for record in records:
            self._seen.add(candidate_features(record.kernel, record.template, record.config))
            self._kernels.append(record.kernel)
            self._times_us.append(math.inf if record.median_us is None else record.median_us)

    def train(self) -> None:
        """Fit to every trial so far; does nothing while there are too few, or too few new ones."""
        count = len(self._kernels)
        if count < _MINIMUM_TRIALS or count - self._trained_on <= _NEWS * count:
            return
        best: dict[str, float] = {}
        for kernel, time_us in zip(self._kernels, self._times_us, strict=True):
            best[kernel] = min(time_us, best.get(kernel, math.inf))
        scores = [
            best[kernel] / time_us if math.isfinite(time_us) else 0.0
            for kernel, time_us in zip(self._kernels, self._times_us, strict=True)
        ]
        parameters = {
            "max_depth": 6,
            "eta": 0.2,
            "objective": "reg:squarederror",
            "seed": self._seed,
            "nthread": 1,  # on a busy machine more of them wait for each other, at ten times the cost
            "verbosity": 0,
        }
        data = self._xgboost.DMatrix(self._seen.rows(range(count)), label=np.asarray(scores))
        self._booster = self._xgboost.train(parameters, data, num_boost_round=_ROUNDS)
        self._trained_on = count

    def predict(self, candidates: Sequence[Candidate]) -> np.ndarray | None:
        """One score a candidate, higher is better; None before there was enough to learn from."""
        if self._booster is None or not candidates:
            return None
        for candidate in candidates:
            if candidate.key not in self._places:
                features = candidate_features(candidate.kernel.key, candidate.template.name, candidate.config)
                self._places[candidate.key] = self._candidates.add(features)
        rows = self._candidates.rows([self._places[candidate.key] for candidate in candidates])
        return self._booster.inplace_predict(rows[:, : self._booster.num_features()])


class _Table:
    """Rows of features, a column each; what a row lacks is NaN. columns: by name; tables that share them agree."""

    def __init__(self, columns: dict[str, int] | None = None) -> None:
        self.columns = {} if columns is None else columns
        self._data = np.full((0, 0), np.nan, np.float32)
        self._count = 0

    def add(self, features: Features) -> int:
        """Append a row, and say which it is."""
        for name in features:
            self.columns.setdefault(name, len(self.columns))
        self._grow(self._count + 1)
        self._data[self._count, [self.columns[name] for name in features]] = list(features.values())
        self._count += 1
        return self._count - 1

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """These rows, with every column that there is."""
        self._grow(self._count)
        return self._data[np.asarray(indices, np.int64), : len(self.columns)]

    def _grow(self, rows: int) -> None:
        height, width = self._data.shape
        if rows > height or len(self.columns) > width:
            taller = max(height, 2 * rows if rows > height else 0)
            wider = max(width, 2 * len(self.columns) if len(self.columns) > width else 0)
            grown = np.full((taller, wider), np.nan, np.float32)
            grown[:height, :width] = self._data
            self._data = grown
