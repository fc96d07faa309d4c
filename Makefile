# Every target sets up what it needs: a virtual environment with torch, mtlkit (editable) and the tools.

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch
EXTRAS ?= $(if $(filter demo oracle,$(MAKECMDGOALS)),train,bench$(COMMA)test)
COMMA  := ,
SANITIZER ?= compute-sanitizer
TARGET_PYTHON ?= python3.12
TARGET_TORCH  ?= 2.11
JOBS   ?= auto
PARALLEL = -n $(JOBS) --maxprocesses 8 --dist worksteal

PY      := $(VENV)/bin/python
MTLKIT  := $(VENV)/bin/mtlkit
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)

# One stamp per checkout and settings: several can share the environment, in which only the last install is valid.
SETTINGS := $(CURDIR) $(TORCH) $(EXTRAS) $(MTLKIT_NATIVE) $(MTLKIT_CUDA) $(MTLKIT_CUDA_ARCHS)
STAMP    := $(VENV)/.mtlkit-$(firstword $(shell echo '$(SETTINGS)' | cksum))

.PHONY: help install test test-all test-minimum mutants fuzz asan ubsan tsan avx512 bench docs demo oracle gpu gpu-bundle native-all wheel lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 21
	@echo
	@echo '  VENV=$(VENV)  virtual environment to create or reuse'
	@echo '  TORCH=$(TORCH)  requirement for torch, e.g. TORCH="torch==2.13.0"'
	@echo '  JOBS=$(JOBS)  number of test processes; 0 runs the tests in pytest itself'
	@echo '  EXTRAS=$(EXTRAS)  extras of mtlkit to install'
	@echo '  SANITIZER=$(SANITIZER)  compute-sanitizer of make gpu, which finds wrong addresses and races'
	@echo '  PYTHON=$(PYTHON)  Python that creates the environment'

install: $(STAMP) ## build and install mtlkit into VENV

test: $(STAMP) ## run the tests; COVER=1 also measures coverage and lists the functions that no test calls
	$(PY) -m pytest tests $(PARALLEL) $(if $(COVER),--cov --cov-report=json:build/coverage.json)
	$(if $(COVER),$(PY) tools/uncovered.py build/coverage.json)

test-all: $(STAMP) ## run the tests, including the slow ones
	$(PY) -m pytest tests $(PARALLEL) -m "not large"

# The oldest dependencies, e.g. torch==2.6 numpy==1.26. The compiled module in this checkout works with every torch, so
# this environment does not compile it again.
OLDEST = $(shell sed -n 's/^dependencies = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' | sed 's/>=/==/g')

test-minimum: $(STAMP) ## test the operators with the oldest torch and numpy, in .venv-minimum
	[ -x .venv-minimum/bin/python ] || $(PY) -m venv .venv-minimum
	MTLKIT_NATIVE=off .venv-minimum/bin/python -m pip install --disable-pip-version-check $(OLDEST) pytest hypothesis -e .
	.venv-minimum/bin/python -m pytest tests/operators tests/test_import.py

mutants: $(STAMP) ## plant faults in a copy of the sources; the tests must detect 97 % of them
	$(PY) -m tests.mutants

bench: $(STAMP) ## benchmark every operator and print the table; FAST=1: only the README's rows; FORCE=1: even on a busy machine
	$(PY) -m pytest benchmarks --benchmark-only $(if $(FAST),--fast) $(if $(FORCE),--force)

docs: $(STAMP) ## build the documentation, with warnings as errors; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

demo: $(STAMP) ## train a small network on phantoms, evaluate it, predict on real ultrasound: five minutes on two cores
	$(MTLKIT) demo --out demo --force

# Smaller than the recipe, because three seeds take long; SMALLER= uses the unchanged recipe.
SMALLER ?= --set data.size=64 --set stopping.epochs=12 --set second_stage.stopping.epochs=5

oracle: $(STAMP) ## train three seeds on phantoms, and measure the benefit of task interaction by forcing its gates (docs/oracle.md)
	$(MTLKIT) data synthesize ultrasound demo/busi --force
	$(MTLKIT) train demo --data demo/busi --out demo/oracle-runs --repeats 3 $(SMALLER) --force
	$(MTLKIT) evaluate demo/oracle-runs --data demo/busi --out demo/oracle --oracle --rivals --force

gpu: $(STAMP) ## run doctor, GPU tests, compute-sanitizer and benchmarks, into build/gpu and benchmarks/results; MINUTES=10 limits the time
	$(PY) tools/gpu.py --sanitizer $(SANITIZER) $(if $(MINUTES),--minutes $(MINUTES))

gpu-bundle: ## pack what make gpu needs on a machine without a network, into dist; TARGET_PYTHON, TARGET_TORCH, VMAMBA, PEERS, WHEEL
	$(PYTHON) tools/gpu_bundle.py --python $(TARGET_PYTHON) --torch $(TARGET_TORCH) \
		$(if $(VMAMBA),--vmamba $(VMAMBA)) $(if $(PEERS),--peers $(PEERS)) $(if $(WHEEL),--wheel $(WHEEL))

fuzz: $(STAMP) ## compare random operator calls with float64 for half an hour
	$(PY) -m tests.fuzz --minutes 30

asan: ## test the CPU kernels with AddressSanitizer
ubsan: ## test the CPU kernels with UndefinedBehaviorSanitizer
tsan: ## test the CPU kernels with ThreadSanitizer
avx512: ## test the AVX-512 kernels on a CPU that has only AVX2
asan ubsan tsan avx512: $(STAMP)
	$(PY) tests/variants.py $@

native-all: $(STAMP) ## build the libraries for Linux (x86-64, aarch64) and Windows, into build/native
	$(PY) tools/native.py linux-x86_64 linux-aarch64 windows-x86_64

# Needs the tools of the extra `wheel`, but neither torch nor mtlkit itself.
TOOLS = $(shell sed -n 's/^wheel = \[\(.*\)\]/\1/p' pyproject.toml)

wheel: | $(PY) ## build a wheel for Linux with glibc 2.28 or later, into dist; CUDA=on: with CUDA kernels
	$(PY) -m pip install --disable-pip-version-check --quiet $(subst $(COMMA) , ,$(TOOLS))
	$(PY) tools/wheel.py --cuda $(or $(CUDA),off)

# Only the last 100 subjects, so that a shallow clone is enough; outside a clone there are none.
lint: $(STAMP) ## check style, types, spelling and commit subjects: ruff, pyright, clang-format, codespell
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m pyright --project pyproject.toml --pythonpath $(PY)
	$(PY) tools/typed_names.py
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format --dry-run -Werror
	git ls-files 2>/dev/null | xargs -r $(PY) -m codespell_lib
	@git log -100 --no-merges --format=%s 2>/dev/null | \
		awk 'length > 72 { print "commit subject of " length " characters, expected at most 72: " $$0; bad = 1 } END { exit bad }'

format: $(STAMP) ## rewrite the sources in the house style
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(VENV)/bin/clang-format -i

clean: ## remove everything that was built here, but keep VENV
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -rf mtlkit/_C.*.so mtlkit/deploy/lib mtlkit/deploy/include $(VENV)/.mtlkit-*
	find . -path ./.git -prune -o -path './.venv*' -prune -o -name __pycache__ -print | xargs rm -rf

$(STAMP): $(SOURCES) | $(PY)
	$(PY) -m pip install --disable-pip-version-check "$(TORCH)" -e ".[$(EXTRAS)]"
	@rm -f $(VENV)/.mtlkit-*
	@touch $@

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "mtlkit needs Python 3.10 or newer; name one, e.g. PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo '$(PYTHON) cannot create virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)'; exit 1; }
	$(PYTHON) -m venv $(VENV)
