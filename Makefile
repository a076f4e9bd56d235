# Every task of the project. `make help` lists them; nothing but Python, make and bash is needed beforehand.
SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?=
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SOURCES := models platform experiments tests

.PHONY: help setup demo test test-slow test-gpu gpu-check parity mutation lint format ui clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the virtual environment with everything in it; repeats are instant
	@$(if $(filter setup,$(MAKECMDGOALS)),echo "setup: $(VENV) is ready",:)

$(STAMP): pyproject.toml constraints.txt
	@.ci/setup "$(VENV)" $(PYTHON)
	@date > $@

demo: setup ## The main job, small: pretrain, sweep, register, predict (DATA=<GLUE folder> for real tasks, KILL=1 kills a worker)
	@$(PY) experiments/quickstart.py $(if $(DATA),--data '$(DATA)') $(if $(filter-out 0,$(KILL)),--kill)

JOBS ?= 3
test: setup ## All tests but the slow ones, in three processes: some only wait (JOBS=…; ARGS=… goes to pytest)
	@$(PY) -m pytest -m "not slow and not gpu" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: setup ## The tests that take minutes each
	@$(PY) -m pytest -m "slow and not gpu" $(ARGS)

test-gpu: setup ## The tests that need a CUDA device (a minute)
	@$(PY) -m pytest -m gpu $(ARGS)

gpu-check: setup ## Tests and speed on this machine's GPU, as tables (8 minutes; ARGS='--out FOLDER')
	@$(PY) experiments/gpu_check.py $(ARGS)

# Families of the recorded cases that are built; a case of another family would print UNSUPPORTED and fail.
# The repository holds copies of some cases of ../shared/golden: each is checked once.
PARITY_FAMILIES := v2_* v1_* ft_* trajectory_v2_* schedules optimizer_param_groups mask_generator_statistics
GOLDEN := $(wildcard $(PARITY_FAMILIES:%=../shared/golden/%))
COPIES := $(wildcard $(PARITY_FAMILIES:%=tests/parity/cases/%))
PARITY_CASES ?= $(sort $(GOLDEN) $(filter-out $(patsubst ../shared/golden/%,tests/parity/cases/%,$(GOLDEN)),$(COPIES)))

parity: setup ## Compare with the recorded numbers of the reference, and write tests/parity/table.md (PARITY_CASES='<folders>' for others)
	@$(PY) tests/parity/check.py --markdown tests/parity/table.md $(or $(PARITY_CASES),$(error no recorded cases in tests/parity/cases or ../shared/golden: give PARITY_CASES=<folders>))

# The library, and what decides on the platform: selection, gate, checkpoint, queue, forecast, checks.
FILES ?= $(wildcard models/data2vec/*.py models/data2vec/v1/*.py) $(addprefix platform/d2v_platform/, \
    recipe/checks.py recipe/audio_checks.py recipe/image_checks.py sweeps/selection.py sweeps/engine.py \
    registry/promotion.py tracking/metric_queue.py tracking/metric_sender.py redaction.py \
    training/checkpoint.py training/forecast.py training/optimizer.py training/train_loop.py)
MUTANTS ?= 5
SEED ?= 1

mutation: setup ## Plant MUTANTS=5 mistakes in each of FILES='…' (SEED=1) and count those that tests notice; goes on where stopped
	@nice $(PY) tests/mutation.py $(wildcard $(FILES)) --mutants $(MUTANTS) --seed $(SEED)

lint: setup ## Style, types, spelling and the container files, as the reviewer runs them
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyright
	@$(PY) -m codespell_lib
	@.ci/lint-docker $(VENV)/bin

format: setup ## Rewrite the sources in the project's format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

PORT ?= 5000
ui: setup ## MLflow's pages over your runs and registered models (PORT=… for another port than 5000)
	@exec $(VENV)/bin/d2v ui --port $(PORT)

clean: ## Remove build outputs and caches, not the environment and not your runs
	@rm -rf dist build .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
