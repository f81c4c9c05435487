# Everything that a newcomer types. `quickstart` and `test` set up what they need first.
.PHONY: setup quickstart test tests lint bench docs

PYTHON := .venv/bin/python

setup:
	tools/setup.sh

quickstart: setup
	tools/quickstart.sh

test:
	tools/setup.sh --test
	# Those of Slurm mostly wait, on a worker of their own: three workers on two cores, and the checks of lint beside them.
	$(MAKE) --no-print-directory -j 2 lint tests

# Bytecode is written also where the environment asks for none: every job's snapshot would be compiled by each process.
# torch's compiler does without a pool of processes and without trying what g++ can do (it fails if it cannot).
tests: export PYTHONDONTWRITEBYTECODE =
tests: export TORCHINDUCTOR_COMPILE_THREADS = 1
tests: export TORCHINDUCTOR_VEC_ISA_OK = 1
tests: export OMP_NUM_THREADS = 1
tests:
	$(PYTHON) -m pytest -q -n 3 --dist load --durations 15

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# Into site/, to be read from there (site/index.html) without a network; a warning is an error.
docs: export NO_MKDOCS_2_WARNING = 1
docs: setup
	$(PYTHON) -m mkdocs build --strict
	@echo site/index.html

bench: setup
	$(PYTHON) tools/bench.py
