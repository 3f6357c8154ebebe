"""The table of backends: data only, nothing is imported or registered here.

Builders and runners are named as ``module:attribute`` strings and resolved when asked for, so that listing what exists
costs nothing and one broken installation does not hide the others.
"""

from dataclasses import dataclass
from typing import Literal

from resnet_deploy.errors import BackendError
from resnet_deploy.specs import PRECISIONS, Precision

Device = Literal["any", "cpu", "nvidia", "rtx"]


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        name: What ``--backend`` takes and manifests record.
        summary: What it is, in one line.
        module: Python module that must be importable to build or run with it; empty when none is needed.
        extra: Extra of this package that installs the modules.
        builder: ``module:function`` of the engine builder, or empty.
        runner: ``module:class`` of the runner, or empty.
        device: What it runs on: ``any``, ``cpu``, an ``nvidia`` GPU, or an ``rtx`` GPU (one that TensorRT-RTX
            supports). Building asks for a device only where ``builds_on_device``.
        builds_on_device: Whether the builder needs the device too.
        provider: Execution provider of ONNX Runtime that runs the engine; empty elsewhere.
        runtime_module: Another Python module, which only running needs; empty when there is none.
        precisions: What its engines may be built in; empty where there is no form of the graph for it.
    """

    name: str
    summary: str
    module: str
    extra: str
    builder: str
    runner: str
    device: Device
    builds_on_device: bool = False
    provider: str = ""
    runtime_module: str = ""
    precisions: tuple[Precision, ...] = ()


BACKENDS: tuple[Backend, ...] = (
    Backend(
        name="torch",
        summary="the reference: eager PyTorch in FP32",
        module="torch",
        extra="export",
        builder="",
        runner="resnet_deploy.runners.pytorch:TorchRunner",
        device="any",
    ),
    Backend(
        name="onnxruntime",
        summary="ONNX Runtime on the CPU, the embedded default",
        module="onnxruntime",
        extra="cpu",
        builder="resnet_deploy.builders.ort:build_engine",
        runner="resnet_deploy.runners.ort:OrtRunner",
        device="any",
        precisions=("fp32", "fp16", "int8"),  # its CPU kernels know neither BF16 nor FP8
    ),
    Backend(
        name="onnxruntime-cuda",
        summary="ONNX Runtime's CUDA provider",
        module="onnxruntime",
        extra="gpu",
        builder="resnet_deploy.builders.ort:build_for_gpu",
        runner="resnet_deploy.runners.ort_gpu:OrtGpuRunner",
        device="nvidia",
        builds_on_device=True,
        provider="CUDAExecutionProvider",
        precisions=("fp32", "fp16"),  # its INT8 convolutions are the CPU's
    ),
    Backend(
        name="onnxruntime-tensorrt",
        summary="ONNX Runtime's TensorRT provider",
        module="onnxruntime",
        extra="gpu",
        builder="resnet_deploy.builders.ort:build_for_gpu",
        runner="resnet_deploy.runners.ort_gpu:OrtGpuRunner",
        device="nvidia",
        builds_on_device=True,
        provider="TensorrtExecutionProvider",
        precisions=("fp32", "fp16", "int8"),
    ),
    Backend(
        name="onnxruntime-rtx",
        summary="ONNX Runtime's plugin for TensorRT-RTX",
        module="onnxruntime_ep_nv_tensorrt_rtx",
        extra="ort-rtx",
        builder="resnet_deploy.builders.ort:build_for_gpu",
        runner="resnet_deploy.runners.ort_gpu:OrtGpuRunner",
        device="rtx",
        builds_on_device=True,
        provider="nv_tensorrt_rtx",
        precisions=("fp32", "fp16", "int8"),
    ),
    Backend(
        name="openvino",
        summary="OpenVINO on the CPU",
        module="openvino",
        extra="openvino",
        builder="resnet_deploy.builders.openvino:build_engine",
        runner="resnet_deploy.runners.openvino:OpenVinoRunner",
        device="cpu",
        precisions=("fp32", "fp16", "int8"),
    ),
    Backend(
        name="tensorrt-rtx",
        summary="TensorRT for RTX: engines built ahead of time, without a GPU",
        module="tensorrt_rtx",
        extra="rtx",
        builder="resnet_deploy.builders.trt:build_engine",
        runner="resnet_deploy.runners.trt:TrtRunner",
        device="rtx",
        runtime_module="cuda.bindings",
        precisions=PRECISIONS,
    ),
    Backend(
        name="tensorrt",
        summary="TensorRT 10 and 11",
        module="tensorrt",
        extra="gpu",
        builder="resnet_deploy.builders.trt:build_engine",
        runner="resnet_deploy.runners.trt:TrtRunner",
        device="nvidia",
        builds_on_device=True,
        runtime_module="cuda.bindings",
        precisions=PRECISIONS,
    ),
    Backend(
        name="null",
        summary="does nothing: measures the harness and drives tests",
        module="",
        extra="",
        builder="",
        runner="resnet_deploy.runners.null:NullRunner",
        device="any",
    ),
)


def require_precision(name: str, precision: Precision) -> None:
    """Hold a precision against what a backend's engines may be built in.

    Raises:
        BackendError: If the backend lacks it, or there is no backend of that name.
    """
    backend = find_backend(name)
    if precision in backend.precisions:
        return
    others = " or ".join(one.name for one in BACKENDS if precision in one.precisions)
    instead = f", or build with {' or '.join(f'--{one}' for one in backend.precisions)}" if backend.precisions else ""
    raise BackendError(f"{name} has no {precision.upper()} engines", hint=f"choose --backend {others}{instead}")


def find_backend(name: str) -> Backend:
    """Look up a backend by name.

    Raises:
        BackendError: If there is none of that name.
    """
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise BackendError(f"unknown backend {name!r}", hint=f"choose one of: {known}")
