"""A campaign: `python -m tests.mutations --count 2000 --seed 1`."""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path

from tests.mutations.bases import small_models, suite_models
from tests.mutations.campaign import mutate
from tests.mutations.hostile import HOSTILE, LARGE
from tests.mutations.trial import Outcome, try_model, warm_up


def main() -> int:
    """Try the hostile models and the mutants; print totals; 1 where one is bad."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-build", action="store_true", help="import only")
    parser.add_argument("--no-hostile", action="store_true", help="no models that are hostile from the start")
    parser.add_argument("--output", type=Path, default=Path("build/mutations"), help="where bad ones are saved")
    options = parser.parse_args()
    bases = small_models() + suite_models()
    warm_up()
    started = time.monotonic()
    report = _Report(options.output)
    for make in () if options.no_hostile else (*HOSTILE, *LARGE):
        data = make().SerializeToString()
        report.note(make.__name__, data, try_model(data, build=not options.no_build and make not in LARGE))
    for index in range(options.first, options.first + options.count):
        data, named = mutate(bases, options.seed, index)
        report.note(f"{options.seed}-{index} {named}", data, try_model(data, build=not options.no_build))
    report.show(time.monotonic() - started)
    return 1 if report.bad else 0


class _Report:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kinds: collections.Counter[str] = collections.Counter()
        self._slowest: list[tuple[float, str]] = []
        self._largest: list[tuple[int, str]] = []
        self.bad: collections.Counter[str] = collections.Counter()

    def note(self, name: str, data: bytes, outcome: Outcome) -> None:
        """Count an outcome; print and save what is bad."""
        self._kinds[outcome.kind] += 1
        self._slowest = sorted([*self._slowest, (outcome.seconds, name)], reverse=True)[:5]
        self._largest = sorted([*self._largest, (outcome.grown_bytes, name)], reverse=True)[:5]
        if outcome.is_bad:
            self.bad[f"{outcome.kind} {outcome.where} {outcome.why}"] += 1
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{name.split()[0]}.onnx"
            path.write_bytes(data)
            print(f"{name}: {outcome.kind} {outcome.why} at {outcome.where}, {outcome.seconds:.1f} s", flush=True)
        done = sum(self._kinds.values())
        if done % 200 == 0:
            print(f"{done}: {self._totals()}", flush=True)

    def _totals(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self._kinds.items()))

    def show(self, seconds: float) -> None:
        """Print what was found."""
        print(f"\n{sum(self._kinds.values())} models in {seconds:.0f} s: {self._totals()}")
        print("slowest: " + ", ".join(f"{name} {took:.1f} s" for took, name in self._slowest))
        print("largest: " + ", ".join(f"{name} {size / 1e9:.2g} GB" for size, name in self._largest))
        for why, count in self.bad.most_common():
            print(f"bad {count}: {why}")


if __name__ == "__main__":
    sys.exit(main())
