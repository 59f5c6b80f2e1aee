# Two commands do everything on a machine with Python 3.11 or newer: `make demo` and `make test`.
# Each target brings up the environment it needs: uv in .tools, the pinned packages of constraints.txt in .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 test` to choose another.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,$(call new_enough,$(name))))
new_enough = $(shell $(1) -c 'import sys; print("$(1)" * (sys.version_info >= (3, 11)))' 2>/dev/null)

UV := .tools/bin/uv
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help venv demo test test-long check lint types docs format lock report-models zoo zoo-full zoo-sample bench bench-cost bench-switch bench-server bench-load fuzz kill check-costs study many native speculative clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(READY) ## convert, train, evaluate and extract a ResNet on real handwritten digits
	$(BIN)/python examples/demo.py

test: $(READY) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10

test-long: fuzz kill ## 2,000 random models against the laws, damaged files, kills; resumes where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python tests/long/run_random_models.py --cases 2000 --out out/random_models.jsonl

fuzz: $(READY) ## 10,000 damaged and hostile checkpoints and model files; resumes where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python tests/long/fuzz_files.py --cases 10000 --out out/fuzz_files.jsonl

kill: $(READY) ## kill -9 at 100 random moments of saving and extracting
	OMP_NUM_THREADS=1 $(BIN)/python tests/long/kill_saves.py --kills 100

check: lint types docs ## ruff, mypy --strict and the documentation build

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict over sortify and cli
	$(BIN)/mypy sortify cli

docs: $(READY) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report-models: $(READY) ## prove the first models and time their conversion, into docs/models.md
	$(BIN)/python examples/report_models.py --page docs/models.md

zoo: $(READY) ## convert every torchvision model, 1 or 2 per timm module, every transformers type; hours, resumable
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.coverage.sweep --zoo zoo --page docs/coverage.md

zoo-full: $(READY) ## all other timm names, evaluation only; hours, resumable
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.coverage.sweep --zoo zoo-full --page docs/coverage-timm.md

bench: $(READY) ## a training step inside the family against the extracted model's: time and memory of four models; minutes
	OMP_NUM_THREADS=1 $(BIN)/python examples/bench_step.py --page docs/step-cost.md

bench-cost: $(READY) ## how many sub-networks of a ResNet-50 are costed per second, and a budget among a million, on one core
	OMP_NUM_THREADS=1 $(BIN)/python examples/bench_cost.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/bench_lookup.py

bench-switch: $(READY) ## how long it takes to switch to another sub-network, beside extracting it; a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.bench_switch --page docs/switching.md

bench-server: $(READY) ## a small HTTP server under load, at full size and with budgets that follow the load; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.bench_server --page docs/serving.md

bench-load: $(READY) ## loading a sorted checkpoint against from_pretrained: time, memory, size
	$(BIN)/python examples/bench_load.py --page docs/loading.md

native: $(READY) ## which sub-networks are models of their own class again; minutes, resumable
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.native_models --page docs/native.md

study: $(READY) ## ways to train side by side, on digits; DATA=fashion_mnist.npz for a file of pictures; resumable
	OMP_NUM_THREADS=1 $(BIN)/python examples/study.py $(if $(DATA),--data $(DATA) --steps 600 --batch-size 128)

many: $(READY) ## 160 sub-networks in one training; needs DATA=fashion_mnist.npz; resumable
	OMP_NUM_THREADS=1 $(BIN)/python examples/many.py --data $(DATA)

speculative: $(READY) ## a member drafts, the full model verifies; DATA=DIR of llama2.c's stories260K; minutes, resumable
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.speculative \
		$(if $(DATA),--weights $(DATA) --out docs/assets/speculative.jsonl --page docs/speculative.md)

check-costs: $(READY) ## predicted against counted costs of 12 library models, 50 sub-networks each; minutes, resumable
	OMP_NUM_THREADS=1 $(BIN)/python examples/check_costs.py --out out/check_costs.jsonl

zoo-sample: $(READY) ## the same over a fixed dozen of small models; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.coverage.sweep --zoo zoo-sample --out out/coverage --strict --retry pass fail refused not-built

venv: $(READY) ## make the environment and nothing else

lock: $(UV) ## renew constraints.txt: the newest versions, for every supported Python
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade --quiet \
		--no-emit-index-url --no-annotate --no-header --output-file constraints.txt

clean: ## remove environments, caches and built things
	rm -rf .venv .tools build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one with PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet $(if $(wildcard constraints.txt),-c constraints.txt) uv

$(READY): pyproject.toml constraints.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python "$$(.tools/bin/python -c 'import sys; print(sys.executable)')" .venv
	$(UV) pip install --python .venv -c constraints.txt -b constraints.txt -e '.[dev,docs,onnx]'
	@touch $@
