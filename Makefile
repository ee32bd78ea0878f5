# make demo: install and run the main job on the bundled model and data.
# make test: lint, types and tests, without the slow and the GPU ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
# A process per core and one thread in each; the tests of a file stay together, as they share what they train.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all bench clean

demo: $(VENV)/.installed
	$(BIN)/robust eval --model vmamba-pico --transform paper21 --out $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not gpu"

test-all: $(VENV)/.installed-dev
	$(PYTEST)

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/transforms.py
	$(BIN)/python benchmarks/segmenters.py
	$(BIN)/python benchmarks/finetune.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "robust needs Python >= 3.11; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) runs
