# Everything a newcomer does, on a machine with Python 3.11 or newer, make, and a package index.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that really runs and is new enough: one broken candidate is skipped.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
# The certificates of the system, so that an index behind a private authority is trusted.
export UV_SYSTEM_CERTS ?= 1
UV = $(shell command -v uv || echo $(BIN)/uv)

.PHONY: help setup setup-dev run demo test conformance lint format bench lock clean \
	image wheels cluster-test bench-cluster

# What builds the image of the services; the first that is there and works.
BUILDER ?= $(shell for b in buildah podman docker; do \
	$$b version >/dev/null 2>&1 && echo $$b && break; done)
IMAGE ?= mayfly:0.1.0
# Of the tests of a cluster all, or those that are named: folders, files and options of pytest.
CLUSTER_TESTS ?= tests/cluster
# How many tests at a time; each waits more than it computes.
TEST_WORKERS ?= 2
TARGET ?= mayfly
BASE_PYTHON ?= 3.13

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## install what `make run` needs into .venv
setup-dev: $(VENV)/.ready-dev  ## install what tests and linters need as well

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Mayfly needs Python 3.11 or newer on PATH; set PYTHON=/path/to/python3" >&2; exit 1; }
	@if command -v uv >/dev/null; then uv venv --quiet --python "$(PYTHON)" $(VENV); \
	else "$(PYTHON)" -m venv $(VENV) \
		|| { echo "python3 -m venv failed: install your system's venv package (Debian: python3-venv)" >&2; exit 1; }; fi

$(VENV)/.ready: requirements.txt pyproject.toml hatch_build.py $(wildcard proto/mayfly/v1/*.proto) | $(VENV)/bin/python
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	@# xds-protos brings old copies of these two packages' modules; whichever is written last wins.
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt \
		--reinstall-package opentelemetry-proto --reinstall-package googleapis-common-protos
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --build-constraints requirements-dev.txt -e .
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.txt
	@touch $@

run: setup  ## the platform in the foreground on http://127.0.0.1:8080 until Ctrl-C
	@exec $(BIN)/python -m services.standalone

demo: setup  ## deploy the examples, call them, let a lease end, show its receipt and trace
	@exec $(BIN)/python -m examples.demo

test: setup-dev  ## all tests; those of a cluster skip where there is none
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

conformance: setup-dev  ## the conformance suite against URL=http://...
	$(BIN)/python -m pytest tests/conformance $(if $(URL),--url $(URL))

lint: setup-dev  ## ruff, pyright, buf lint, buf breaking, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	.ci/lint-proto
	$(BIN)/lint-imports

format: setup-dev  ## rewrite the code as the linters want it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-dev  ## a table of figures, each beside its peer's in the same run
	$(BIN)/python -m bench

image:  ## the services' image: IMAGE=name:tag, TARGET=mayfly or demo, BASE_IMAGE=...
	@test -n "$(BUILDER)" || { echo "an image is built by buildah, podman or docker, and none of them works here" >&2; exit 1; }
	$(BUILDER) build --target $(TARGET) --tag $(IMAGE) \
		$(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) --file Dockerfile .

# Those of the services (and of TARGET=demo), and of the build itself as pyproject.toml names it.
wheels: setup  ## fill wheels/ for `make image` without a network: BASE_PYTHON=3.13 is the base image's
	printf '%s\n' hatchling grpcio-tools mypy-protobuf googleapis-common-protos \
		| $(UV) pip compile --quiet --no-header --no-annotate --generate-hashes --no-emit-index-url \
			--universal --python-version 3.11 -c requirements-dev.txt - -o wheels/build.txt
	$(UV) tool run --quiet pip download --quiet --require-hashes --dest wheels \
		--python-version $(BASE_PYTHON) --only-binary :all: \
		-r $(if $(filter demo,$(TARGET)),requirements-demo.txt,requirements-cluster.txt)
	$(UV) tool run --quiet pip download --quiet --require-hashes --dest wheels \
		--python-version $(BASE_PYTHON) --only-binary :all: -r wheels/build.txt

cluster-test: setup-dev  ## the chart on a real cluster; needs KUBECONFIG and the variables of docs/kubernetes.md
	$(BIN)/python -m pytest $(CLUSTER_TESTS) --timeout 900 --durations 40

bench-cluster: setup-dev  ## figures on that cluster, each beside its peer's: KNATIVE=URL DEPLOYMENT=URL
	$(BIN)/python -m bench.cluster.images
	$(BIN)/python -m bench.cluster $(if $(KNATIVE),--knative $(KNATIVE)) \
		$(if $(DEPLOYMENT),--deployment $(DEPLOYMENT))

lock: setup  ## pin the requirements again, with hashes and without addresses
	$(UV) pip compile --quiet --no-header --generate-hashes --no-emit-index-url --no-emit-find-links \
		--universal --python-version 3.11 --upgrade --extra embedded --extra cluster --extra dev pyproject.toml -o requirements-dev.txt
	$(UV) pip compile --quiet --no-header --generate-hashes --no-emit-index-url --no-emit-find-links \
		--universal --python-version 3.11 --extra embedded pyproject.toml -c requirements-dev.txt -o requirements.txt
	$(UV) pip compile --quiet --no-header --generate-hashes --no-emit-index-url --no-emit-find-links \
		--universal --python-version 3.11 --extra cluster pyproject.toml -c requirements-dev.txt -o requirements-cluster.txt
	$(UV) pip compile --quiet --no-header --generate-hashes --no-emit-index-url --no-emit-find-links \
		--universal --python-version 3.11 --extra cluster --extra demo pyproject.toml -c requirements-dev.txt -o requirements-demo.txt

clean:  ## remove what was generated and installed
	rm -rf $(VENV) sdk/python/mayfly/v1 dist .hypothesis .ruff_cache .import_linter_cache
