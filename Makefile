# `make help` lists the targets. Each sets up what it needs: the virtual environment, RabbitMQ.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BASE_MODEL ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUILDER ?= $(firstword $(foreach tool,docker podman buildah,$(if $(shell command -v $(tool)),$(tool))))
# For images: pip's settings for an index of your own, another build of torch.
comma := ,
PIP_CONF ?=
TORCH ?= torch==2.13.0
BUILD = $(BUILDER) build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) \
	--build-arg CREATED=$(shell git log -1 --format=%cI) \
	$(if $(PIP_CONF),--secret id=pip$(comma)src=$(PIP_CONF)) $(BUILD_ARGS)
COMPILE = pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-emit-trusted-host --strip-extras --no-annotate --no-header --constraint requirements.lock
# Threads that spin while they wait cost a shared CPU many times what they gain.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test lint format unit test-cluster bench-trainer bench-dispatcher images k8s chart-docs \
	kind-demo lock image-locks clean rabbitmq
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

demo: $(READY) rabbitmq ## Train a style end to end on this machine (BASE_MODEL=... for a real base)
	@BASE_MODEL="$(BASE_MODEL)" exec $(BIN)/python -m tests.demo

test: lint unit ## Lint, types and all tests

unit: $(READY) rabbitmq ## All tests (PYTEST_ARGS="-k name" for some)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY) ## ruff, formatting, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-dispatcher: $(READY) rabbitmq ## Latency, throughput, memory beside bare create calls (KUBECONFIG, AMQP_URL)
	$(BIN)/python -m tests.bench_dispatcher $(BENCH_ARGS)

bench-trainer: $(READY) ## This trainer beside a plain diffusers loop, as ratios
	$(BIN)/python trainer_image/bench.py $(BENCH_ARGS)

test-cluster: $(READY) rabbitmq ## The cluster tests against KUBECONFIG, or the tests' own API server
	$(BIN)/python -m pytest -m cluster $(PYTEST_ARGS)

images: ## Build both images with docker, podman or buildah, and print their sizes
	$(BUILD) -f dispatcher/Dockerfile -t lora-trainer-dispatcher:$(VERSION) .
	$(BUILD) -f trainer_image/Dockerfile --build-arg TORCH=$(TORCH) -t lora-trainer:$(VERSION) .
	$(BUILDER) images | grep lora-trainer

k8s: $(READY) ## Render k8s/ from the chart
	$(BIN)/python helm/render_k8s.py

chart-docs: $(READY) ## Write the table of values into the chart's README
	$(BIN)/python helm/values_table.py

kind-demo: ## kind, the images, the chart, a request, the PATCH: on a laptop with docker
	helm/demo/run.sh

lock: ## Resolve the newest versions that pyproject.toml allows into requirements.lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install -q --upgrade pip
	build/lock/bin/pip install -q --only-binary=:all: torch==2.13.0
	build/lock/bin/pip install -q --only-binary=:all: '.[dispatcher,trainer,dev]' setuptools
	build/lock/bin/pip install -q --no-deps open_clip_torch
	(echo "# Every package that is installed, pinned; made by 'make lock'."; \
	 build/lock/bin/pip list --format=freeze | grep -viE '^(pip|lora-trainer)==' | sed 's/+cpu$$//') > requirements.lock
	rm -rf build/lock

image-locks: ## Pin the images' packages with hashes, at the versions of requirements.lock (needs pip-tools)
	$(COMPILE) --extra dispatcher --output-file dispatcher/requirements.lock pyproject.toml
	$(COMPILE) --extra trainer --unsafe-package torch --unsafe-package setuptools \
	  --output-file trainer_image/requirements.lock pyproject.toml
	echo torch==2.13.0 | $(COMPILE) --unsafe-package torch --output-file trainer_image/torch.lock -
	sed -i '/^# WARNING/,$$d' dispatcher/requirements.lock trainer_image/*.lock
	sed -i '1i # Made by `make image-locks` from pyproject.toml; the versions are those of the lock at the root.' \
	  dispatcher/requirements.lock trainer_image/requirements.lock trainer_image/torch.lock

clean: ## Remove what the targets made, the virtual environment included
	rm -rf $(VENV) demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# The lock names every package, so nothing is resolved, and pip finds torch wherever it looks for it.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || ./tests/install_debian.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

rabbitmq:
	@if [ -z "$$AMQP_URL" ] && [ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then \
	  ./tests/install_debian.sh rabbitmq-server; fi
