"""The version of this package, and what artifacts say they were written by."""

__version__ = "0.1.0"
PROGRAM = f"tvmbridge {__version__}"
