# Everything that a newcomer types. `quickstart` and `test` set up what they need first.
.PHONY: setup quickstart test lint bench

PYTHON := .venv/bin/python

setup:
	tools/setup.sh

quickstart: setup
	tools/quickstart.sh

test:
	tools/setup.sh --test
	$(MAKE) --no-print-directory lint
	# Three workers on two cores: the tests of Slurm come first and mostly wait.
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 3 --dist load --durations 15

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: setup
	$(PYTHON) tools/bench.py
