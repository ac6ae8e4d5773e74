# Every target sets up .venv first, where it is missing or older than what it is made from.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: run test lint bench validate golden fuzz load clean

run: $(READY)
	$(BIN)/python -m rapid_dse -m +sweeps=llama3_1_70b_512xh100

test: $(READY)
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/bench_sweep.py
	$(BIN)/python benchmarks/bench_network.py
	$(BIN)/python benchmarks/bench_backends.py
	$(BIN)/python benchmarks/bench_search.py

validate: $(READY)
	$(BIN)/python -m rapid_dse.validate

# Results held to the digit.
golden: $(READY)
	$(BIN)/python -m pytest -n 2 -m golden

# Ten times as many random examples as make test draws.
fuzz: $(READY)
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n 2 -m 'not golden'

# A million layouts, and the large sweep, under a bound on memory.
load: $(READY)
	$(BIN)/python benchmarks/bench_sweep.py --only million,sweep

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
