# Two commands do everything: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HARNESS := $(VENV)/.harness
PEERS := $(VENV)/.peers
DEMO := configs/experiments/smollm2-135m-demo.yaml
SEEDS := 1 2

.PHONY: help install demo seeds test test-slow test-harness gpu-check check format clean

help:
	@echo "make install    set up .venv, which all of these do first"
	@echo "make demo       teach SmolLM2-135M 100 facts on two ZeRO-3 workers, and measure it"
	@echo "make seeds      the demo over three seeds: its own, 0, and $(SEEDS)"
	@echo "make test       the tests (make test-slow: the long ones)"
	@echo "make test-harness  those of the lm-evaluation-harness, which is fetched for them (350 MB)"
	@echo "make gpu-check  what has to be seen on GPUs, where there are 1 to 8: writes gpu-check.json"
	@echo "make check      ruff lint, ruff format, mypy --strict"

# The wheel of torch is the CPU build where the package index offers one at this version.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "missing: $(PYTHON) (on Debian: apt-get install python3 python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python 3.11 or later; have $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { echo "missing: python3-venv (on Debian: apt-get install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV); this takes a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,cluster,dev]' > $(VENV)/pip.log 2>&1 || { tail -20 $(VENV)/pip.log; echo "set-up failed: $(VENV)/pip.log says why"; exit 1; }
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/rotescale run $(DEMO) --on configs/launch/local.yaml

seeds: demo
	for seed in $(SEEDS); do $(BIN)/rotescale run $(DEMO) --on configs/launch/local.yaml --set seed=$$seed --set name=smollm2-135m-demo-seed-$$seed || exit $$?; done
	$(BIN)/rotescale compare runs/smollm2-135m-demo $(foreach seed,$(SEEDS),runs/smollm2-135m-demo-seed-$(seed))

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile tests/unit
	$(BIN)/python -m pytest -m "not slow" tests/distributed tests/cluster

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# An extra of pyproject.toml each, beside what is set up already.
$(HARNESS) $(PEERS): $(VENV)/.%: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]' > $(VENV)/pip.log 2>&1 || { tail -20 $(VENV)/pip.log; echo "set-up failed: $(VENV)/pip.log says why"; exit 1; }
	@touch $@

test-harness: $(HARNESS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/test_harness.py tests/distributed/test_harness_ranks.py

gpu-check: $(STAMP)
	$(BIN)/python benchmarks/gpu_check.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
