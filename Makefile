# `make demo` and `make test` need python3 (3.10 or newer, with its headers), a C++ compiler, make and git; whatever else
# is missing comes from PyPI into .venv. With `VENV=` the Python that is active is used as it is.
PYTHON ?= python3
VENV ?= .venv
BUILD ?= build/dev
# More options: JOBS=n (compilers at a time), WERROR=ON|OFF, EMULATED=ON|OFF (test levels with software for instructions
# that few machines have), PYTEST_ARGS=..., DEMO_ARGS=..., BENCH_ARGS=..., PROTOCOLS=... (which source peers
# `make interop` builds; all)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test sanitize lint docs bench speed plots dev build format interop peers cuda-matrix wheel clean

# csrc/spec is generated, one row an id.
CXX_FILES = $(filter-out csrc/spec/%,$(shell git ls-files --cached --others --exclude-standard 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' \
	'csrc/*.cuh' 'tests/cuda/*.h' 'tests/cuda/*.cpp' 'tests/cuda/*.cu'))
PIP_INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check
# Editable: the venv refers to this folder, and the extensions are built into it by the rule `build`.
INSTALL_SELF = $(PIP_INSTALL) --config-settings=editable.mode=inplace --config-settings=wheel.cmake=false -e

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
else
PY := $(abspath $(VENV))/bin/python
export PATH := $(abspath $(VENV))/bin:$(PATH)
BASE := $(VENV)/.made-base
TESTING := $(VENV)/.made-test
LINTING := $(VENV)/.made-lint
DOCS := $(VENV)/.made-docs
endif

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: build  ## a stock llama.cpp client writes text on two of our servers
	$(PY) -m ggml_rpc.peers prepare 8.0
	$(PY) -m ggml_rpc.peers prepare model
	$(PY) -m ggml_rpc.cli.main demo $(DEMO_ARGS)

# Without a network the tests that need a stock peer say so and are skipped.
test: build $(TESTING)  ## build and run all tests (PYTEST_ARGS=... for some)
	-@$(PY) -m ggml_rpc.peers prepare
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(LINTING)  ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	cython-lint ggml_rpc
	clang-format --dry-run -Werror $(CXX_FILES)

# Warnings are errors: `strict` in mkdocs.yml.
docs: build $(DOCS)  ## build the documentation into build/docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

format: $(LINTING)  ## rewrite the sources in the style that lint asks for
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	clang-format -i $(CXX_FILES)

# The full table takes ten minutes of an idle machine, building the native stock server a few more, once. Where it does
# not build, the stock wheel takes its place.
bench: build $(TESTING)  ## compare with a native stock server: the README's table (BENCH_ARGS=...)
	-@$(PY) -m bench.native
	$(PY) -m bench.run --save $(BENCH_ARGS)

# An idle machine for an hour; ik_llama.cpp's client comes from `make interop`.
speed: build $(TESTING)  ## all figures of the README, added to the history: bench, AVX2, ik, scaling, kernels, plots
	$(PY) -m bench.native llama.cpp ik
	$(PY) -m bench.run --save --record
	$(PY) -m bench.run --save --record --isa avx2
	$(PY) -m bench.run --save --record --opponent ik tinyllama-Q4_0 tinyllama-Q4_K_M
	$(PY) -m bench.scaling --save
	$(PY) -m bench.kernels --save
	$(PY) -m bench.load --save --record
	$(PY) -m bench.sessions --save --record
	$(PY) -m bench.plans
	$(PY) -m bench.plot bench/results/*.json

plots: build $(TESTING)  ## draw bench/results as docs/images
	$(PY) -m bench.plot bench/results/*.json

dev: WERROR ?= ON
dev: EMULATED ?= ON
dev: build  ## build the extensions in place, warnings as errors

# Builds five versions of llama.cpp and one of ik_llama.cpp, an hour of one processor, at the first run.
interop: build $(TESTING)  ## older protocols on either side, built from source (PYTEST_ARGS=... for some)
	$(PY) -m ggml_rpc.peers build $(if $(JOBS),--jobs $(JOBS)) $(PROTOCOLS)
	GGML_RPC_INTEROP=1 GGML_RPC_REQUIRE_PEERS=1 $(PY) -m pytest tests/interop $(PYTEST_ARGS)

# An hour of one processor; what did not change since is not compiled again.
cuda-matrix: build $(TESTING)  ## compile every CUDA kernel for sm_75 to sm_120: registers, spills, shared memory
	$(PY) -m tests.cuda.matrix

# The tree is copied with the checked extensions in it, so that the ones in place stay as they are. The compiler's own
# runtime must come first in the process; Python never frees all that it allocates; hostile frames ask for too much; a
# soak test watches memory; one file of the server's waits for graphs that take too long with checks. What is captured by
# file descriptor would be lost with a process that ends.
SANITIZED = build/sanitize
SANITIZED_TESTS = tests/ops tests/graph tests/wire tests/cli/test_hostile.py tests/server --ignore tests/server/test_embedding.py
sanitize: $(TESTING)  ## run ops, graphs and hostile sessions under ASan and UBSan (PYTEST_ARGS=..., LEVELS=avx2 for some)
	@cmake -S . -B $(SANITIZED)/cmake -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_RPC_SANITIZE=ON \
		-DPython_EXECUTABLE="$$($(PY) -c 'import sys; print(sys.executable)')" \
		-DGGML_RPC_LEVELS="$(LEVELS)" -DGGML_RPC_EMULATED_LEVELS=$(if $(EMULATED),$(EMULATED),$(if $(LEVELS),OFF,ON)) > /dev/null
	@cmake --build $(SANITIZED)/cmake $(if $(JOBS),--parallel $(JOBS))
	@rm -rf $(SANITIZED)/tree && mkdir -p $(SANITIZED)/tree
	@git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $(SANITIZED)/tree
	@cmake --install $(SANITIZED)/cmake --prefix $(SANITIZED)/tree > /dev/null
	cd $(SANITIZED)/tree && \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=4 UBSAN_OPTIONS=print_stacktrace=1 \
		$(PY) -m pytest --capture=sys $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(SANITIZED_TESTS))

peers: build
	$(PY) -m ggml_rpc.peers prepare

# CMake keeps both in its cache: `make test` after `make dev` builds nothing twice.
build: $(BASE)
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release \
		-DPython_EXECUTABLE="$$($(PY) -c 'import sys; print(sys.executable)')" \
		$(if $(WERROR),-DGGML_RPC_WERROR=$(WERROR)) \
		$(if $(EMULATED),-DGGML_RPC_EMULATED_LEVELS=$(EMULATED)) > /dev/null
	@cmake --build $(BUILD) $(if $(JOBS),--parallel $(JOBS))
	@cmake --install $(BUILD) --prefix . > /dev/null

wheel: $(BASE)  ## build a wheel and a source package into dist/
	$(PIP_INSTALL) build
	$(PY) -m build --outdir dist .

clean:  ## remove what was built
	rm -rf build dist $(VENV)
	find ggml_rpc -name '*.so' -delete

$(VENV)/.made-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "ggml-rpc needs Python 3.10 or newer: set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2> /dev/null || \
		{ echo "$(PYTHON) has no headers here: install them (on Debian: apt install python3-dev)"; exit 1; }
	@command -v $(CXX) > /dev/null || { echo "no C++ compiler $(CXX) here (on Debian: apt install g++)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) > /dev/null || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make a venv (on Debian: apt install python3-venv)"; exit 1; }
	@touch $@

# CMakeLists.txt asks for CMake 3.20; Ninja makes the incremental build quick.
$(VENV)/.made-base: $(VENV)/.made-venv pyproject.toml ggml_rpc/_version.py
	$(INSTALL_SELF) '.[dev]'
	@cmake --version 2> /dev/null | $(PY) -c 'import re, sys; v = re.search(r"(\d+)\.(\d+)", sys.stdin.read()); \
		sys.exit(not v or (int(v[1]), int(v[2])) < (3, 20))' || $(PIP_INSTALL) 'cmake>=3.20'
	@ninja --version > /dev/null 2>&1 || $(PIP_INSTALL) ninja
	@touch $@

$(VENV)/.made-test: $(VENV)/.made-base
	$(INSTALL_SELF) '.[test]'
	@touch $@

$(VENV)/.made-lint: $(VENV)/.made-base
	$(INSTALL_SELF) '.[llm,lint]'
	@touch $@

$(VENV)/.made-docs: $(VENV)/.made-base
	$(INSTALL_SELF) '.[llm,docs]'
	@touch $@
