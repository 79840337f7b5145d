"""A campaign: `python -m tests.random_graphs --count 2000 --seed 1 --jobs 2`."""

from __future__ import annotations

import argparse
import collections
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.random_graphs.draw import Drawn
from tests.random_graphs.fault import find_fault
from tests.random_graphs.files import write_graph
from tests.random_graphs.judge import REFUSED, Verdict, cause
from tests.random_graphs.worker import Worker


def main() -> int:
    """Judge the graphs; print totals; 1 where one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_graphs", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="how many graphs")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="how many are judged at a time")
    parser.add_argument("--target", default="native")
    parser.add_argument("--output", type=Path, default=Path("build/random-graphs"), help="where wrong ones are saved")
    parser.add_argument("--shrink", type=int, default=20, help="how many of the wrong ones are shrunk")
    options = parser.parse_args()
    campaign = _Campaign(options)
    started = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda _: campaign.work(), range(options.jobs)))
    campaign.report(time.monotonic() - started)
    return 1 if campaign.wrong else 0


class _Campaign:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._next = iter(range(options.first, options.first + options.count))
        self._kinds: collections.Counter[str] = collections.Counter()
        self._operators: collections.Counter[str] = collections.Counter()
        self._refusals: collections.Counter[str] = collections.Counter()
        self._nodes = self._shrunk = 0
        self.wrong: list[tuple[int, Verdict, str]] = []

    def work(self) -> None:
        """Take graphs until there are none."""
        options = self._options
        with Worker(options.target) as worker:
            while True:
                with self._lock:
                    index = next(self._next, None)
                if index is None:
                    return
                verdict, drawn = worker.judge_seeded(options.seed, index)
                found = ""
                if drawn is not None and verdict.is_wrong:
                    verdict, found = self._keep(worker, index, verdict, drawn)
                with self._lock:
                    self._note(index, verdict, drawn.operators if drawn is not None else (), found)

    def _keep(self, worker: Worker, index: int, verdict: Verdict, drawn: Drawn) -> tuple[Verdict, str]:
        """Save a wrong graph and its smaller form; what it counts as, and what the smaller form is made of."""
        options = self._options
        folder = options.output / f"{options.seed}-{index}"
        write_graph(drawn, folder)
        with self._lock:
            self._shrunk += 1
            if self._shrunk > options.shrink:
                return verdict, " ".join(drawn.operators)
        fault = find_fault(worker, drawn, verdict)
        small = fault.small
        write_graph(small, folder / "small")
        (folder / "small" / "graph.txt").write_text(str(fault))
        inputs = ", ".join(f"{value.dtype}{list(value.shape)}" for value in small.feeds.values())
        return fault.verdict, f"{' '.join(small.operators)} of {inputs}: {fault.why[:200]}; {fault.opinion}"

    def _note(self, index: int, verdict: Verdict, operators: tuple[str, ...], found: str) -> None:
        self._kinds[verdict.kind] += 1
        self._operators.update(set(operators))
        self._nodes += len(operators)
        if verdict.kind == REFUSED:
            self._refusals[cause(verdict)] += 1
        if verdict.is_wrong:
            self.wrong.append((index, verdict, found))
        if found or verdict.is_wrong:
            print(f"{self._options.seed}-{index} {verdict.kind}: {verdict.why[:200]}\n    {found}", flush=True)
        done = sum(self._kinds.values())
        if done % 100 == 0:
            print(f"{done} of {self._options.count}: {self._totals()}", flush=True)

    def _totals(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self._kinds.items()))

    def report(self, seconds: float) -> None:
        """Print what was found."""
        done = sum(self._kinds.values())
        what = f"{done} graphs of {self._nodes} nodes, {len(self._operators)} operators"
        print(f"\n{what}, in {seconds:.0f} s: {self._totals()}")
        print("operators: " + ", ".join(f"{name} {count}" for name, count in self._operators.most_common()))
        for title, counter in (
            ("refused", self._refusals),
            ("wrong", collections.Counter(cause(verdict) for _, verdict, _ in self.wrong)),
        ):
            for why, count in counter.most_common():
                print(f"{title} {count}: {why}")


if __name__ == "__main__":
    sys.exit(main())
