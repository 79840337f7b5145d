"""Random ONNX graphs: drawn, run in ONNX Runtime, compiled, compared. `python -m tests.random_graphs --help`."""
