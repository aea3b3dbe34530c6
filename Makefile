# make demo            a fresh machine to an answer: environment, install, pull, pack, ask
# make test            everything that must hold: format, lint, types, tests; with the versions of constraints.txt
# make test-pythons    the same on Python 3.11, 3.13 and 3.14; needs root and debootstrap
# make update          the newest versions into constraints.txt

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-pythons update clean

demo: $(BIN)/edgellm
	$(BIN)/edgellm pull smollm2-135m-instruct
	$(BIN)/edgellm run smollm2-135m-instruct "What is the capital of France?" --timings
	@echo "Go on chatting with:  $(BIN)/edgellm chat"

# mypy cannot follow the mapping of folders to packages, so it checks a plain installed copy.
test: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/lib build/typed && $(BIN)/python -m pip install --quiet --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml
	$(BIN)/pytest

test-pythons:
	tests/pythons.sh

# For every Python at once: where the newest NumPy needs a newer one than 3.11, there are two.
update: $(BIN)/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --extra dev --no-annotate \
		--custom-compile-command "make update" --output-file constraints.txt pyproject.toml

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'edgellm needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv $(VENV)

$(BIN)/edgellm: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
