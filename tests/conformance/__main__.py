"""python -m tests.conformance: run the suite, or a part of it, and print totals beside ONNX Runtime's."""

from __future__ import annotations

import argparse
import collections
import re
import sys
import time

import onnx

from tests.conformance.cases import Case, scored_cases
from tests.conformance.engines import ENGINES, OUTCOMES, PASS, Result
from tests.conformance.ledger import LEDGER_PATH, explain, read_ledger, render_ledger, update_ledger
from tests.conformance.operators import write_operators
from tests.conformance.pool import Task, run_tasks


def main() -> int:
    """Run what the arguments name."""
    arguments = _parse()
    cases = _select(scored_cases(), arguments.k, arguments.operator)
    engines = ["tvmbridge"] if arguments.no_reference else list(ENGINES)
    results: dict[str, dict[str, Result]] = {engine: {} for engine in engines}

    def take(task: Task, result: Result) -> None:
        results[task.engine][task.case] = result
        if task.engine == "tvmbridge" and arguments.verbose and result.outcome != PASS:
            print(f"{result.case}: {result.outcome}: {result.reason}", flush=True)

    started = time.monotonic()
    tasks = [Task(engine, name) for name in cases for engine in engines]
    run_tasks(tasks, jobs=arguments.jobs, timeout_s=arguments.timeout, on_result=take)
    if arguments.verbose:
        print()
        _print_reasons(results["tvmbridge"])
        slowest = sorted(results["tvmbridge"].values(), key=lambda result: -result.seconds)[:5]
        print("slowest: " + ", ".join(f"{result.case} {result.seconds:.1f} s" for result in slowest) + "\n")
    _print_totals(cases, results)
    print(f"{len(cases)} cases in {time.monotonic() - started:.0f} s")
    ours = list(results["tvmbridge"].values())
    if arguments.update_ledger:
        ledger = update_ledger(read_ledger(), ours, scored_cases(), onnx.__version__)
        LEDGER_PATH.write_text(render_ledger(ledger))
        write_operators(ledger, scored_cases())
        return 0
    ledger = read_ledger()
    surprises = [line for result in sorted(ours, key=lambda result: result.case) if (line := explain(ledger, result))]
    print(f"\n{len(surprises)} cases come out otherwise than the ledger says")
    print("".join(f"  {line}\n" for line in surprises), end="")
    return 1 if surprises else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("-k", metavar="PATTERN", help="only cases whose name this regular expression is found in")
    parser.add_argument("--operator", metavar="NAME", help="only cases whose model has this operator")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--timeout", type=float, default=180, metavar="SECONDS", help="of one case")
    parser.add_argument("--no-reference", action="store_true", help="without ONNX Runtime")
    parser.add_argument("--update-ledger", action="store_true", help="write what came out to the ledger and the docs")
    parser.add_argument("-v", "--verbose", action="store_true", help="print each case that does not pass, and why")
    return parser.parse_args()


def _select(cases: dict[str, Case], pattern: str | None, operator: str | None) -> dict[str, Case]:
    found = {name: case for name, case in cases.items() if pattern is None or re.search(pattern, name)}
    if operator is not None:
        found = {name: c for name, c in found.items() if any(n.op_type == operator for n in c.model().graph.node)}
    if not found:
        sys.exit("no case is called so")
    return found


def _print_reasons(results: dict[str, Result]) -> None:
    """How many cases fail for each reason, the most frequent first, numbers left out."""
    counts = collections.Counter(
        (result.outcome, re.sub(r"\d+", "N", result.reason)) for result in results.values() if result.outcome != PASS
    )
    for (outcome, why), count in counts.most_common():
        print(f"{count:5} {outcome}: {why}")
    print()


def _print_totals(cases: dict[str, Case], results: dict[str, dict[str, Result]]) -> None:
    suites = list(dict.fromkeys(case.suite for case in cases.values()))
    width = max(len(suite) for suite in [*suites, "outcome"]) + 2
    print("engine".ljust(13) + "outcome".ljust(16) + "".join(suite.rjust(width) for suite in [*suites, "all"]))
    for engine, found in results.items():
        for outcome in OUTCOMES:
            of_suite = collections.Counter(cases[r.case].suite for r in found.values() if r.outcome == outcome)
            if of_suite:
                counts = [*(of_suite[suite] for suite in suites), of_suite.total()]
                print(engine.ljust(13) + outcome.ljust(16) + "".join(str(count).rjust(width) for count in counts))
    passed = [result for result in results["tvmbridge"].values() if result.outcome == PASS]
    bound = [result for result in passed if result.bound]
    idle = [result for result in passed if not result.computes]
    print(f"\nof tvmbridge's {len(passed)} passes, {len(bound)} have inputs whose values were bound at build time")
    takes_nothing = sum(not cases[result.case].model().graph.input for result in idle)
    print(
        f"{len(idle)} leave nothing to compute at run time; {takes_nothing} of these because the model takes no input"
    )


if __name__ == "__main__":
    sys.exit(main())
