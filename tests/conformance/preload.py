"""What every worker has from its start: the suite, read once by the process that all of them are forked from."""

from tests.conformance.cases import scored_cases

scored_cases()
