# `make demo` and `make test` are what a new user runs; `make dev` is the fast loop of a developer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BUILD ?= build/dev

.PHONY: dev
dev:  ## build the extensions in place, incrementally
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_RPC_WERROR=ON -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') > /dev/null
	cmake --build $(BUILD)
	cmake --install $(BUILD) --prefix . > /dev/null
