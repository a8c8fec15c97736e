# make demo    train hn-gru, generate a continuation and plot the run
# make test    the whole suite
# make lint    formatting, lint and types
# make clean   remove what these made
#
# TORCH picks the PyTorch (make test TORCH=torch==2.13.0), PYTHON the interpreter that makes .venv.
TORCH ?= torch
PYTHON ?= python3
PYTEST_FLAGS ?= --numprocesses=auto --maxprocesses=8

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN := runs/demo

# The install is editable: only these make it stale.
BUILD_INPUTS := pyproject.toml setup.py $(wildcard build_tools/*.*) $(shell find csrc -type f)

.PHONY: demo test lint clean FORCE

demo: $(VENV)/lm.stamp
	rm -rf $(RUN)
	$(BIN)/fusedrnn train hn-gru --threads 1 --out $(RUN)
	$(BIN)/fusedrnn generate $(RUN) --prompt "six thousand nine hundred ninety eight ." --temperature 0
	@echo "The curves of this run are in $(RUN)/curves.png"

test: $(VENV)/lm,test.stamp
	$(BIN)/pytest $(PYTEST_FLAGS)

lint: $(VENV)/lm,test,dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info fusedrnn/*.so fusedrnn/_build_info.py

$(VENV)/%.stamp: $(BUILD_INPUTS) $(VENV)/torch.txt
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet --editable '.[$*]'
	touch $@

# Rewritten only when TORCH names another release, which makes every stamp stale.
$(VENV)/torch.txt: FORCE | $(BIN)/pip
	@echo '$(TORCH)' | cmp --silent - $@ || echo '$(TORCH)' > $@

# Python 3.10 brings a pip that cannot install an editable package without setup.py's own command.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
