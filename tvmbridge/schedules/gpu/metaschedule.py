"""Any kernel, by a trace of schedule primitives that a record names."""

from tvmbridge.schedules.metaschedule import TEMPLATE

__all__ = ["TEMPLATE"]
