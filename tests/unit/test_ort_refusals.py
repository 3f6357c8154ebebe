"""What ONNX Runtime raises where memory is short is a MemoryError, which the command line explains."""

from types import SimpleNamespace

import numpy as np
import pytest

from resnet_deploy.batching import infer, run_once
from resnet_deploy.errors import BuildError, FeedError
from resnet_deploy.ort_session import translate_refusals
from resnet_deploy.runners import ort, ort_gpu, ort_plain
from resnet_deploy.specs import BatchRange, ModelCard, Preprocess

CARD = ModelCard(
    architecture="resnet18",
    num_classes=3,
    weights="none",
    weights_sha256="",
    preprocess=Preprocess(image_size=2, resize=2),
)
IMAGES = np.zeros((2, 2, 2, 3), np.uint8)


class RuntimeFaultError(Exception):
    """A stand-in for the library's own, which is known by its module."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    ("text", "kind"),
    [  # the first as ONNX Runtime 1.32 gave it where the address space was limited
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc", MemoryError),
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena: Failed to allocate memory for 9 bytes", MemoryError),
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model", BuildError),
    ],
)
@pytest.mark.parametrize("raised", [RuntimeFaultError, RuntimeError])
def test_memory_is_told_from_the_model(text, kind, raised):
    with pytest.raises(kind, match=r"\[ONNXRuntimeError\]") as caught, translate_refusals():
        raise raised(text)
    assert isinstance(caught.value.__cause__, raised)


def test_words_of_a_binding_s_own_are_left_out():
    with pytest.raises(BuildError, match=r"^ONNX Runtime refuses the model: Non-zero status$"), translate_refusals():
        raise RuntimeError("Error in execution: Non-zero status\nand more")


@pytest.mark.parametrize("error", [FeedError("no"), ValueError("no"), NotImplementedError("no"), KeyboardInterrupt()])
def test_what_is_not_onnx_runtimes_passes(error):
    with pytest.raises(type(error)) as caught, translate_refusals():
        raise error
    assert caught.value is error


# --- faults that show when a graph is run


class Session:
    """In place of ONNX Runtime's session, its binding and its values: ``fails`` at one step, does nothing in others."""

    def __init__(self, fails):
        for step in ("run", "bind_cpu_input", "bind_output", "bind_ortvalue_input", "bind_ortvalue_output"):
            setattr(self, step, self.step(step, fails))
        for step in ("run_with_iobinding", "synchronize_outputs", "update_inplace", "numpy"):
            setattr(self, step, self.step(step, fails))
        self.ortvalue_from_shape_and_type = self.step("ortvalue_from_shape_and_type", fails)

    def step(self, name, fails):
        def done(*_):
            if name == fails:
                if "bind" in name or "value" in name:
                    raise RuntimeError("Error in execution: std::bad_alloc")
                raise RuntimeFaultError("[ONNXRuntimeError] : 6 : std::bad_alloc")
            return self

        return done

    def get_providers(self):
        return ["CPUExecutionProvider"]

    def io_binding(self):
        return self


def fails_at(kind, step, monkeypatch):
    """Make a runner whose session fails at a step."""
    session, batch = Session(step), BatchRange(1, 2, 8)
    if kind == "plain":
        monkeypatch.setattr(ort_plain, "open_plain_session", lambda *_, **__: session)
        return ort_plain.PlainOrtRunner("model.onnx", CARD, batch)
    if kind == "on a GPU":
        options = SimpleNamespace(add_run_config_entry=lambda *_: None)
        library = SimpleNamespace(OrtValue=session, RunOptions=lambda: options)
        monkeypatch.setattr(ort_gpu, "open_on", lambda *_: session)
        monkeypatch.setattr(ort_gpu, "import_onnxruntime", lambda: library)
        return ort_gpu.OrtGpuRunner("model.onnx", CARD, batch, "CUDAExecutionProvider")
    monkeypatch.setattr(ort, "open_session", lambda *_, **__: session)
    return ort.OrtRunner("model.onnx", CARD, batch)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("feeding", "run"),
        *(("binding", step) for step in ("bind_cpu_input", "bind_output", "run_with_iobinding")),
        ("plain", "run"),
        *(("on a GPU", step) for step in ("ortvalue_from_shape_and_type", "bind_ortvalue_input", "update_inplace")),
        *(("on a GPU", step) for step in ("run_with_iobinding", "numpy")),
    ],
)
def test_memory_that_a_batch_takes_is_told(kind, step, monkeypatch):
    runner = fails_at(kind, step, monkeypatch)
    run = infer if kind == "binding" else run_once
    with pytest.raises(MemoryError, match="std::bad_alloc"):
        run(runner, IMAGES)


def test_waiting_for_a_gpu_is_translated_too(monkeypatch):
    runner = fails_at("on a GPU", "synchronize_outputs", monkeypatch)
    runner.load(IMAGES)
    runner.enqueue()
    with pytest.raises(MemoryError, match="std::bad_alloc"):
        runner.synchronize()


# --- what a GPU's provider is told


@pytest.mark.parametrize(
    ("backend", "memory"),
    [("onnxruntime-cuda", ("cuda", 0)), ("onnxruntime-tensorrt", ("cuda", 0)), ("onnxruntime-rtx", ("gpu", 0, 0x10DE))],
)
def test_memory_is_taken_where_the_provider_computes_and_nothing_waits_for_it(monkeypatch, backend, memory):
    session, told, taken = Session(""), [], []
    options = SimpleNamespace(add_run_config_entry=lambda *entry: told.append(entry))
    values = SimpleNamespace(ortvalue_from_shape_and_type=lambda *asked: taken.append(asked[2:]) or session)
    monkeypatch.setattr(ort_gpu, "open_on", lambda *_: session)
    monkeypatch.setattr(
        ort_gpu, "import_onnxruntime", lambda: SimpleNamespace(OrtValue=values, RunOptions=lambda: options)
    )
    spec = SimpleNamespace(backend=backend, batch=BatchRange(1, 2, 8))
    bundle = SimpleNamespace(engine_path="model.onnx", manifest=SimpleNamespace(spec=spec, card=CARD))
    runner = ort_gpu.OrtGpuRunner.open(bundle, 1)
    runner.load(IMAGES)
    assert taken == [memory, memory]
    session.run_with_iobinding = lambda *run: told.append(run[1:])
    runner.enqueue()
    assert told == [("disable_synchronize_execution_providers", "1"), (options,)]
