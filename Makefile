# Everything lives in .venv. PYTHON is the interpreter that it is made with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
DIST ?= dist
ARGS ?=
FFCV_PACKAGES := libopencv-dev libturbojpeg0-dev pkg-config
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo -n)
BESIDE := -n logical --maxprocesses 8 --dist loadfile
# Compiled once: else every process compiles what it imports, 20 s each time, where the environment forbids Python to keep it.
INSTALL := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt

.PHONY: help setup ffcv demo test test-long lint types wheel clean

help:
	@echo "make setup   .venv with every extra this machine can have (done once)"
	@echo "make demo    the main job on embedded data, and where its report lies"
	@echo "make test    the tests; ARGS='-k views' and the like are passed on"
	@echo "make test-long   those that take about a minute each, which make test leaves out"
	@echo "make lint    ruff check and ruff format --check"
	@echo "make types   mypy, strict on the package"
	@echo "make wheel   the wheel, in $(DIST)/"
	@echo "make clean   caches and built files (keeps .venv and runs)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make setup PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(INSTALL) -e '.[all,dev]'
	@$(MAKE) --no-print-directory ffcv
	@touch $@

# The one extra that is compiled against system libraries: without them the rest goes on.
ffcv:
	@pkg-config --exists opencv4 libturbojpeg 2>/dev/null \
	  || { $(SUDO) apt-get update -q; $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(FFCV_PACKAGES); } \
	  || true
	@if pkg-config --exists opencv4 libturbojpeg 2>/dev/null && $(INSTALL) -e '.[ffcv]'; \
	  then echo "ffcv: installed"; \
	  else echo "ffcv: left out. It needs a C++ compiler and: sudo apt-get install $(FFCV_PACKAGES)   (then: make ffcv)"; fi

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" launch/demo.sh

test: setup
	$(BIN)/python -m pytest $(BESIDE) $(ARGS)

test-long: setup
	$(BIN)/python -m pytest $(BESIDE) --long -m long $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

wheel: setup
	$(BIN)/python -m build --wheel --no-isolation --outdir $(DIST)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .coverage
	find cass_scale tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
