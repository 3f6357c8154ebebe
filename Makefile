# `make demo` and `make test` do everything, installation included.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := demo

.PHONY: setup demo check test clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[export,cpu,rtx,openvino,bench,dev]'
	@touch $@

# Train on real images, export, build FP32/FP16/INT8, compare with PyTorch, report.
demo: setup
	$(BIN)/python examples/digits/train.py --out $(DEMO)/digits
	$(BIN)/resnet-deploy run --weights $(DEMO)/digits/resnet50-digits.safetensors --image-size 32 --resize 32 \
	    --calib $(DEMO)/digits/train --data $(DEMO)/digits/val --output $(DEMO)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest

clean:
	rm -rf $(VENV) $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
