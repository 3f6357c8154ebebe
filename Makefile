# `make demo` and `make test` do everything, installation included.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := demo

OLDEST_PYTHON ?= python3.10

.PHONY: setup demo bench check test test-oldest docs test-gpu bench-gpu clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py resnet_deploy/quantize/counting.c constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[export,cpu,rtx,openvino,peers,cpp,parquet,ray,bench,dev]'
	@touch $@

# Train on real images, export, build FP32/FP16/INT8, compare with PyTorch, report.
demo: setup
	$(BIN)/python examples/digits/train.py --out $(DEMO)/digits
	$(BIN)/resnet-deploy run --weights $(DEMO)/digits/resnet50-digits.safetensors --image-size 32 --resize 32 \
	    --calib $(DEMO)/digits/train --data $(DEMO)/digits/val --output $(DEMO)

# The speed of ResNet-50 at 224x224 beside that of its peers, untrained: no figure of accuracy, and speed does not depend
# on the weights. Then what our own code costs.
bench: setup
	$(BIN)/resnet-deploy bench --suite benchmarks/cpu.toml --work $(DEMO)/imagenet-sized
	$(BIN)/python benchmarks/overhead.py $(DEMO)/imagenet-sized/resnet50-int8-onnxruntime

# On a machine with an NVIDIA GPU, with what is installed there.
test-gpu:
	$(PYTHON) -m pytest tests/gpu --strict-markers -m gpu

bench-gpu:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A process for each core, a file of tests at a time, the longest files first (tests/conftest.py); threads that wait
# leave their core to the others. Memory stays with a process that has freed it: the kernel clears every page that it
# hands out, which took a tenth of the time. Tests that measure memory run without that.
MALLOC := MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=1073741824
test: check
	OMP_WAIT_POLICY=PASSIVE $(MALLOC) $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# With the oldest Python and the oldest dependencies that pyproject.toml allows, in an environment of its own.
test-oldest:
	$(OLDEST_PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[export,cpu,rtx,openvino,peers,cpp,parquet,ray,bench]'
	$(VENV)-oldest/bin/pip install --quiet --constraint constraints-oldest.txt pytest pytest-timeout hypothesis jsonschema scikit-learn
	OMP_WAIT_POLICY=PASSIVE $(VENV)-oldest/bin/pytest tests/unit tests/cpu

# Into build/docs; a link that leads nowhere is an error.
docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs build/docs

clean:
	rm -rf resnet_deploy/quantize/libcounting.so $(VENV) $(VENV)-oldest $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
