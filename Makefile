# make pretrain   train a small model on the embedded texts, in about ten minutes on two cores
# make demo       the whole path at a tiny size, in less than half an hour; then the chat page opens
# make test       all tests but the slow ones and those for GPUs
# make test-slow  the slow ones, some hours: for every night
# make test-proofs  those of the slow ones that no change may break
# make check      what CI runs: lint, types, tests, proofs
#
# Each target does its own set-up. Variables:
#   PYTHON=python3.12        the interpreter (3.11 to 3.13)
#   VENV=.venv               where the virtual environment is made
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu     a package index to take torch from: without
#                            a GPU, the one with CPU builds saves gigabytes

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
RUN ?= demo

BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: setup pretrain demo test test-slow test-proofs lint types check clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/system_packages.sh
	bash scripts/system_packages.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch)
	$(BIN)/python -m pip install --quiet -c constraints.txt --build-constraint constraints.txt -e '.[dev]'
	touch $(READY)

pretrain: $(READY)
	$(BIN)/python jobs/pretrain.py --run $(RUN) --total-batch-tokens 8192 --num-steps 360 --validate-every 120

demo: RUN = assistant
demo: $(READY)
	bash scripts/demo.sh $(BIN) $(RUN)

test: $(READY)
	bash scripts/test_packages.sh
	$(BIN)/python -m pytest -m "not slow and not gpu" --durations=20

test-slow: $(READY)
	bash scripts/test_packages.sh
	$(BIN)/python -m pytest -m "slow and not gpu"

test-proofs: $(READY)
	bash scripts/test_packages.sh
	$(BIN)/python -m pytest -m "proof and not gpu" --durations=20

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

check: lint types test test-proofs

clean:
	rm -rf $(VENV) build *.egg-info
