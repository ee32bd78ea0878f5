# make demo: install the tested versions and compare the two bundled classifiers on the bundled images.
# make test: lint, types and tests with the tested versions, without the slow and the GPU ones;
#   `make --jobs 2 test` checks the types beside the tests.
# make test-newest: the same with the newest version of every dependency, in .venv-newest.
# make test-oldest: the tests with the oldest versions that pyproject.toml allows, in .venv-oldest.
# make gallery: run the evaluations of docs/gallery.md and write the page.
# make check-release: what must hold before a release (docs/release.md); PYTHONS="python3.11 python3.13".
# make constraints: test the newest versions and write them to constraints.txt.
PYTHON ?= python3
VENV := .venv
NEWEST := .venv-newest
OLDEST := .venv-oldest
RELEASE := .venv-release
BIN := $(VENV)/bin
DEMO := demo
# A process per core and one thread in each; the tests of a file stay together, as they share what they train.
# Compiled files are kept: each of the processes would compile the sources and tests anew.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile
QUICK := -m "not slow and not gpu"
PIP := -m pip install --quiet
# constraints.txt was made for Python 3.11 to 3.14; later ones may find no builds of its versions.
NEWER_PYTHON := import sys; sys.exit(sys.version_info < (3, 15))
CONSTRAINED = $$($(BIN)/python -c '$(NEWER_PYTHON)' || echo --constraint constraints.txt)
# imgaug requires two packages with OpenCV's files. pip installs the one last that needs the system's
# OpenGL library; without this library, the files of the other one replace them.
define without_opengl
@$(1) -c 'import cv2' 2> /dev/null || $(1) $(PIP) --force-reinstall --no-deps \
  "opencv-python-headless==$$($(1) -c 'from importlib.metadata import version; print(version("opencv-python-headless"))')"
endef

.PHONY: demo gallery test lint types quick test-all test-newest test-oldest test-long check-release constraints \
  bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/robust eval --model vmamba-pico --model resnet-pico --transform paper21 --out $(DEMO)
	$(BIN)/robust compare $(DEMO)

gallery: $(VENV)/.installed
	$(BIN)/python benchmarks/gallery.py

test: lint types quick

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

quick: $(VENV)/.installed-dev
	$(PYTEST) $(QUICK)

test-all: $(VENV)/.installed-dev
	$(PYTEST)

# Installs each time, because what is newest changes.
test-newest: $(NEWEST)/bin/python
	$(NEWEST)/bin/python $(PIP) --upgrade --upgrade-strategy eager --editable '.[dev]'
	$(call without_opengl,$(NEWEST)/bin/python)
	touch $(NEWEST)/.installed $(NEWEST)/.installed-dev
	$(MAKE) test VENV=$(NEWEST)

# Old releases cannot know what the libraries below them deprecate today.
test-oldest: $(OLDEST)/.installed-oldest
	$(subst $(BIN),$(OLDEST)/bin,$(PYTEST)) -W default::DeprecationWarning -W default::FutureWarning $(QUICK)

PYTHONS ?= $(PYTHON)
check-release: $(RELEASE)/bin/python
	$(RELEASE)/bin/python $(PIP) build markdown-it-py pip-audit pip-licenses pyyaml twine uv
	$(RELEASE)/bin/python .ci/check_release.py $(PYTHONS:%=--python %)

# What the tests passed with is kept; uv adds what other systems and Pythons need. torch itself
# names the versions of its CUDA libraries.
constraints: test-newest
	$(NEWEST)/bin/python $(PIP) uv
	$(NEWEST)/bin/python -m pip freeze --exclude-editable > $(NEWEST)/freeze.txt
	$(NEWEST)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
	  --extra dev --output-file $(NEWEST)/freeze.txt pyproject.toml
	{ echo "# Tested on $$(date +%F) with $$($(NEWEST)/bin/python --version); written by \`make constraints\`."; \
	  grep -vE '^(nvidia-(cu|nccl|nv)|cuda-|triton)' $(NEWEST)/freeze.txt; } > constraints.txt

# What takes hours: crashes at random moments (tests/crash), and all hostile input (tests/hostile).
test-long: $(VENV)/.installed-dev
	$(BIN)/pytest tests/crash tests/hostile

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/sharing.py
	$(BIN)/python benchmarks/transforms.py
	$(BIN)/python benchmarks/segmenters.py
	$(BIN)/python benchmarks/finetune.py
	$(BIN)/python benchmarks/reports.py
	$(BIN)/python benchmarks/explain.py
	$(BIN)/python benchmarks/explain_mamba.py

$(sort $(VENV)/bin/python $(NEWEST)/bin/python $(OLDEST)/bin/python $(RELEASE)/bin/python):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "robust needs Python >= 3.11; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

$(VENV)/.installed: WHAT := .
$(VENV)/.installed-dev: WHAT := .[dev]
$(VENV)/.installed $(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@if $(BIN)/python -c '$(NEWER_PYTHON)'; \
	then echo "constraints.txt is for Python < 3.15: the newest versions are installed"; fi
	$(BIN)/python $(PIP) $(CONSTRAINED) --editable '$(WHAT)'
	$(call without_opengl,$(BIN)/python)
	touch $(VENV)/.installed $@

$(OLDEST)/.installed-oldest: pyproject.toml .ci/lowest.py | $(OLDEST)/bin/python
	@$(OLDEST)/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || { rm -r $(OLDEST); \
	  echo "the oldest versions have builds for Python 3.11 and 3.12 only; name one: make PYTHON=python3.11 test-oldest"; exit 2; }
	$(OLDEST)/bin/python .ci/lowest.py > $(OLDEST)/lowest.txt
	$(OLDEST)/bin/python $(PIP) --constraint $(OLDEST)/lowest.txt --editable '.[dev]'
	$(call without_opengl,$(OLDEST)/bin/python)
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(OLDEST) $(RELEASE) $(DEMO) runs
