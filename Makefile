# demo, test and bench set up all they need themselves: a virtual environment in .venv, a linker for aarch64, a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
BENCH_READY := .venv/bench-ready
# Tests side by side, one on each core; each of at most four takes up to a gigabyte. Those of a file share what they build.
PARALLEL := -n logical --maxprocesses=4
BY_FILE := $(PARALLEL) --dist loadfile

.PHONY: demo test test-quick test-compiler test-slow arm-board test-arm test-arm-quick test-cuda check conformance bench \
	bench-tune random-graphs mutations clean

demo: $(READY)          ## build the digits model for every target, tune it briefly, show speed and accuracy
	$(BIN)/python examples/digits/demo.py

test: check test-quick test-compiler test-slow          ## everything, in rising order of time

test-quick: $(READY)    ## pure tests: seconds
	$(BIN)/python -m pytest -q $(BY_FILE) -m "not compiler and not slow and not arm and not cuda and not gpu"

test-compiler: $(READY) ## tests that need TVM's compiler
	$(BIN)/python -m pytest -q $(BY_FILE) -m "compiler and not slow and not arm and not cuda and not gpu"

test-slow: $(READY)     ## end to end
	$(BIN)/python -m pytest -q $(BY_FILE) -m "slow and not arm and not gpu"

arm-board: $(READY)     ## an emulated ARM board (root; a minute to set it up); tests on it are NOT RUN where it cannot be had
	$(BIN)/python scripts/arm_environment.py || test $$? = 3

test-arm: arm-board     ## ARM code on the board: all networks, tuning on two of it, one of which dies
	$(BIN)/python -m pytest -q -m arm

test-arm-quick: arm-board ## of these what takes minutes, for CI: two networks, and a board that only SSH reaches
	$(BIN)/python -m pytest -q -m "arm and not slow"

test-cuda: $(READY)     ## CUDA code of whole networks, built and inspected; what needs a GPU is NOT RUN where there is none
	$(BIN)/python -m pytest -q $(PARALLEL) --dist worksteal -m "cuda or gpu"

random-graphs: $(READY) ## 2,000 random ONNX graphs compiled and held against ONNX Runtime; wrong ones in build/random-graphs
	$(BIN)/python -m tests.random_graphs --count 2000 --jobs 2

mutations: $(READY)     ## hostile models, and 2,000 broken ones: each import, build and run in a process of its own
	$(BIN)/python -m tests.mutations --count 2000

check: $(READY)         ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tvmbridge

conformance: $(READY)   ## the ONNX project's backend suite: totals by outcome, beside ONNX Runtime's
	$(BIN)/python -m tests.conformance

bench: $(BENCH_READY)   ## untuned builds beside ONNX Runtime and OpenVINO, all networks; table, JSON and chart
	$(BIN)/python benchmarks/peers.py --json build/bench/peers.json --chart build/bench/peers.png

bench-tune: $(BENCH_READY) ## ten minutes of tuning for each network: untuned, express and tuned beside the peers; table, JSON
	$(BIN)/python benchmarks/tuned.py --json build/bench/tuned.json

$(READY): pyproject.toml setup.py scripts/install_aarch64_linker.sh scripts/install_cpp_compiler.sh
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	sh scripts/install_aarch64_linker.sh $(BIN)/python
	sh scripts/install_cpp_compiler.sh
	touch $(READY)

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $(BENCH_READY)

clean:                  ## remove what make has made
	rm -rf .venv build demo-out *.egg-info
