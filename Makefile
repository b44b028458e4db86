# `make help` lists the targets. Each sets up what it needs: the virtual environment, RabbitMQ.
SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
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
# For locks: uv reads metadata alone, so CUDA's gigabytes are pinned wherever it runs, without a download.
RESOLVE = build/uv/bin/uv pip compile --quiet --no-header --no-annotate --only-binary :all: --upgrade \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28
PART = $(RESOLVE) --offline --constraint build/everything.lock
PIN = $(RESOLVE) --generate-hashes --constraint requirements.lock
CUDA = $(shell sed -n 's/==.*//p' trainer_image/cuda.lock)

.PHONY: help venv demo test lint format unit test-cluster test-gpu bench-trainer bench-dispatcher images k8s chart-docs \
	kind-demo lock image-locks clean rabbitmq
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

venv: $(READY) ## Make the virtual environment, .venv

demo: $(READY) rabbitmq ## Train a style end to end on this machine (BASE_MODEL=... for a real base)
	@BASE_MODEL="$(BASE_MODEL)" exec $(BIN)/python -m tests.demo

test: lint unit ## Lint, types and all tests

# Where several tests share a CPU, threads that spin while they wait cost many times what they gain.
unit test-cluster: export OMP_WAIT_POLICY ?= PASSIVE

unit: $(READY) rabbitmq ## All tests (PYTEST_ARGS="-k name" for some)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

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

test-cluster: $(READY) rabbitmq ## The cluster tests on KUBECONFIG, else KUBEBUILDER_ASSETS, else the tests' own API server
	$(BIN)/python -m pytest -m cluster $(PYTEST_ARGS)

test-gpu: $(READY) ## The tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

images: ## Build both images with docker, podman or buildah, and print their sizes
	@[ -n "$(BUILDER)" ] || { echo "docker, podman or buildah is needed: install one of them"; exit 1; }
	$(BUILD) -f dispatcher/Dockerfile -t lora-trainer-dispatcher:$(VERSION) .
	$(BUILD) -f trainer_image/Dockerfile --build-arg TORCH=$(TORCH) -t lora-trainer:$(VERSION) .
	$(BUILDER) images | grep lora-trainer
	@echo "What each is made of: /usr/share/sbom/*.cdx.json in it"

k8s: $(READY) ## Render k8s/ from the chart
	$(BIN)/python helm/render_k8s.py

chart-docs: $(READY) ## Write the table of values into the chart's README
	$(BIN)/python helm/values_table.py

kind-demo: $(READY) ## kind, the images, the chart, a request, the PATCH: on a laptop with docker
	PYTHON=$(BIN)/python helm/demo/run.sh

lock: build/uv ## Resolve the newest versions that pyproject.toml allows into all lock files
	printf '%s\n' 'setuptools>=77' cyclonedx-bom | \
	  $(RESOLVE) --all-extras --output-file build/everything.lock pyproject.toml -
	echo open_clip_torch | $(RESOLVE) --no-deps --output-file build/open-clip.lock -
	# The rest is parts of that, and asks no index again: it might answer with newer versions.
	echo 'setuptools>=77' | $(PART) --all-extras --output-file build/all.lock pyproject.toml -
	echo torch | $(PART) --output-file build/torch.lock -
	grep -E '^(cuda|nvidia|triton)' build/torch.lock > build/cuda.lock
	(sed -n "s/^torch==\(.*\)/# What the CUDA build of torch \1 brings, by version: the trainer image's constraints./p" \
	  build/torch.lock; cat build/cuda.lock) > trainer_image/cuda.lock
	(echo "# Every package of the project and its tests but CUDA's, pinned; made by \`make lock\`."; \
	 grep -vxFf build/cuda.lock build/all.lock | cat - build/open-clip.lock | LC_ALL=C sort) > requirements.lock
	$(MAKE) image-locks RESOLVE="$(PART)"

image-locks: build/uv ## Pin the images' packages with hashes, at the versions of requirements.lock
	$(PIN) --extra dispatcher pyproject.toml --output-file dispatcher/requirements.lock
	$(PIN) --extra trainer $(CUDA:%=--no-emit-package %) --no-emit-package torch --no-emit-package setuptools \
	  pyproject.toml --output-file trainer_image/requirements.lock
	echo torch | $(PIN) $(CUDA:%=--no-emit-package %) --no-emit-package torch - --output-file trainer_image/torch.lock
	echo cyclonedx-bom | $(PIN) - --output-file trainer_image/sbom.lock
	sed -i '1i # Made by `make image-locks` from pyproject.toml; the versions are those of the lock at the root.' \
	  dispatcher/requirements.lock trainer_image/requirements.lock trainer_image/torch.lock
	sed -i '1i # What makes the SBOM of both images, while they are built; made by `make image-locks`.' \
	  trainer_image/sbom.lock

build/uv:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check uv

clean: ## Remove what the targets made, the virtual environment included
	rm -rf $(VENV) demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

# The lock names every package but what torch's CUDA build brings, so nothing is resolved, and pip finds torch
# wherever it looks for it.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || ./tests/install_debian.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --no-deps --only-binary=:all: -r requirements.lock
	$(PIP_INSTALL) --only-binary=:all: -c trainer_image/cuda.lock torch
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@# pip would compile on one core. What was written for another Python stays as it is.
	@$(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib || true
	@touch $@

rabbitmq:
	@if [ -z "$$AMQP_URL" ] && [ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then \
	  ./tests/install_debian.sh rabbitmq-server; fi
