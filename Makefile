# The short commands; CMake does the work (CMakePresets.json), tools/ the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BUILD := build/release
# tools/setup.sh puts a CMake here where the system's is too old.
export PATH := $(CURDIR)/build/venv/bin:$(PATH)

.PHONY: help demo test build bench format format-check clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo          install what is missing, build, calibrate, pack, run and audit data/'
	@echo 'make test          install what is missing, build, run all tests'
	@echo 'make build         build $(BUILD)/headroom'
	@echo 'make bench         measure every kernel this machine runs; docs/cpu-peers.md has peers'
	@echo 'make format        format the C files in place; format-check only looks'
	@echo 'make clean         delete build/'

# The demo does without the tests; once they are configured, they stay so.
build:
	@tools/setup.sh build
	@test -f $(BUILD)/build.ninja || cmake --preset release -DHEADROOM_BUILD_TESTS=OFF
	cmake --build $(BUILD) --target headroom_cli headroom_static headroom_shared

demo: build
	@tools/demo.sh $(BUILD)/headroom data/minilm.safetensors build/demo

test:
	@tools/setup.sh test
	cmake --preset release -DHEADROOM_BUILD_TESTS=ON
	cmake --build $(BUILD)
	ctest --preset release -j $$(nproc)

bench: build
	$(BUILD)/headroom bench
	@echo 'Beside ggml, ik_llama.cpp, oneDNN, PyTorch and OpenVINO: docs/cpu-peers.md'

format format-check:
	git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' | \
	    xargs clang-format-14 --style=file $(if $(filter format,$@),-i,--dry-run -Werror)

clean:
	rm -rf build
