# Every target sets up .venv first, where it is missing or older than what it is made from: make run with what running needs, the others
# with what tests and tools need besides.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUNS := .venv/.runs
WEB := .web/.ready
READY := .venv/.ready
DOCS := .venv-docs
MEASURED := .venv-measure/.ready

# Packages are installed without bytecode. Python compiles what is imported, once, and keeps it: even where the caller forbids that,
# because the tests start many processes.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint requirements.lock
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test web lint bench validate golden fuzz laws chaos chaos-short supply load launch-fields measure-test docs clean
.NOTPARALLEL:

run: $(RUNS)
	$(BIN)/python -m rapid_dse -m +sweeps=llama3_1_70b_512xh100

# A file's tests stay together: what they share is made once.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The local page and the report in a real Chromium, which is the system's; pictures of them go to output/web.
web: $(READY) $(WEB)
	PYTHONPATH=.web $(BIN)/python -m pytest -n 2 --dist loadfile tests/web

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/bench_sweep.py
	$(BIN)/python benchmarks/bench_evaluate.py
	$(BIN)/python benchmarks/bench_network.py
	$(BIN)/python benchmarks/bench_backends.py
	$(BIN)/python benchmarks/bench_search.py
	$(BIN)/python benchmarks/bench_explore.py

validate: $(READY)
	$(BIN)/python -m rapid_dse.validate

# Results held to the digit.
golden: $(READY)
	$(BIN)/python -m pytest -n 2 -m golden

# Inputs that are wrong in every way, and ten times as many random examples of the laws as make test draws.
fuzz: $(READY)
	$(BIN)/python benchmarks/fuzz.py --inputs 100000
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n 2 -m 'not golden'

# What breaks the laws of serving, and by how much, of systems drawn by chance: the table in docs/inference.md, in ten minutes.
laws: $(READY)
	$(BIN)/python benchmarks/serving_laws.py --trials 1000 --laws more_running more_arriving more_at_once
	$(BIN)/python benchmarks/serving_laws.py --trials 200 --laws machine generated prompt

# Kills, full disks, flipped bits and races, done to real studies: minutes on an idle machine, with another seed each time; or a twentieth
# of it, with the same moments and bits each time.
chaos: $(READY)
	$(BIN)/python benchmarks/chaos.py

chaos-short: $(READY)
	$(BIN)/python benchmarks/chaos.py --share 0.05 --seed 11

# The timers of measure, on PyTorch's CPU device: PyTorch has an environment of its own.
measure-test: $(MEASURED)
	.venv-measure/bin/python -m pytest -n 0 tests/test_measure.py

# What the program is delivered with: packages, licences, and known weaknesses where pip-audit can be installed and reaches its service.
# It has an environment of its own; without it supply says why nothing was asked.
supply: $(READY)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet \
		--disable-pip-version-check 'pip-audit>=2.7,<3'; } || echo "pip-audit cannot be installed here"
	$(BIN)/python benchmarks/supply.py

# The launch files that export writes, parsed by the frameworks' own parsers: half a GB of packages, which are not installed, in .launch.
launch-fields: $(READY)
	$(BIN)/python benchmarks/launch_fields.py

# Studies at their largest, each under bounds on memory and time.
load: $(READY)
	$(BIN)/python benchmarks/load.py

# The documentation as a site, build/docs/index.html, with warnings as errors; and every page typed by a reader.
docs: $(DOCS)/.ready
	$(DOCS)/bin/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs
	$(DOCS)/bin/python -m pytest -q -p no:cacheprovider docs/_tests

$(DOCS)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[docs]'
	touch $@

$(MEASURED): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv-measure
	.venv-measure/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint requirements.lock --editable . \
		'pytest>=8.3,<10' 'pytest-xdist>=3.6,<4' 'hypothesis>=6.115,<7' 'fastjsonschema>=2.20,<3' torch==2.13.0
	touch $(MEASURED)

$(RUNS): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $(RUNS)

# Chakra's schema comes without mlc-chakra's dependencies, which are JupyterLab and a hundred more: it imports protobuf alone.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps mlc-chakra
	touch $(RUNS) $(READY)

$(WEB): tests/web/requirements.txt requirements.lock
	$(INSTALL) --upgrade --target .web --requirement tests/web/requirements.txt
	touch $(WEB)

clean:
	rm -rf .venv .web .launch .venv-docs .venv-measure .venv-audit build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
