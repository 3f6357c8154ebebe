"""Which of Triton's backends runs which of ours, how batches are expressed there, and what cannot be."""

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from resnet_deploy.bundle import Manifest
from resnet_deploy.errors import BackendError, SpecError
from resnet_deploy.specs import MAX_THREADS, BatchRange, require_at_most

_MOST_INSTANCES: Final = 64
_LONGEST_DELAY_US: Final = 60_000_000


class Serving(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How Triton is to serve an engine.

    Attributes:
        name: Of the model, by which clients ask for it.
        max_delay_us: How long a request may wait for others to be run with it, in microseconds.
        instances: Copies of the engine; on GPUs, on each of them.
        gpus: Numbers of the GPUs; empty for all that the server has.
        threads: CPU threads of each instance; 0 leaves it to the server, which takes all cores for each.
        cuda_graphs: Whether TensorRT is to capture CUDA graphs for the batch sizes it is tuned for.

    Raises:
        SpecError: If the name is none that a folder and Triton take, or a number is out of range.
    """

    name: str
    max_delay_us: int = 0
    instances: int = 1
    gpus: tuple[int, ...] = ()
    threads: int = 0
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name) or ".." in self.name:
            hint = "give --name letters, digits, and _ - . between them"
            raise SpecError(f"{self.name!r} cannot name a model in Triton", hint=hint)
        if self.instances < 1:
            raise SpecError(f"{self.instances} instances", hint="give --instances a positive number")
        require_at_most("number of instances", self.instances, _MOST_INSTANCES)
        if self.max_delay_us < 0:
            raise SpecError(f"a delay of {self.max_delay_us} microseconds", hint="give --max-delay 0 or more")
        require_at_most("delay in microseconds", self.max_delay_us, _LONGEST_DELAY_US)
        if len(set(self.gpus)) < len(self.gpus) or min(self.gpus, default=0) < 0:
            numbers = ",".join(map(str, self.gpus))
            raise SpecError(f"{numbers} are not numbers of GPUs", hint="give --gpus each number once, such as 0,1")
        if self.threads < 0:
            raise SpecError(f"{self.threads} threads", hint="give --threads 0 or more")
        require_at_most("number of threads", self.threads, MAX_THREADS)


@dataclass(frozen=True)
class Host:
    """How one of our backends is run by Triton.

    Attributes:
        backend: Triton's name for it.
        file: The engine's file, by the name that Triton's backend looks for.
        on_gpu: Whether instances are on GPUs.
        combines: Whether requests may be combined. Triton's OpenVINO backend sets the network to the largest batch, and
            answers smaller ones by an error or by padding; without batching in Triton's sense it takes any size.
        threads: Parameter that says how many CPU threads an instance has; empty for none.
    """

    backend: str
    file: str
    on_gpu: bool
    combines: bool = True
    threads: str = ""


ONNX: Final = "model.onnx"
HOSTS: Final = {
    "onnxruntime": Host("onnxruntime", ONNX, on_gpu=False, threads="intra_op_thread_count"),
    "onnxruntime-cuda": Host("onnxruntime", ONNX, on_gpu=True),
    "onnxruntime-tensorrt": Host("onnxruntime", ONNX, on_gpu=True),
    "openvino": Host("openvino", ONNX, on_gpu=False, combines=False, threads="INFERENCE_NUM_THREADS"),
    "tensorrt": Host("tensorrt", "model.plan", on_gpu=True),
}
_INSTEAD: Final = {
    "tensorrt-rtx": "build with --backend tensorrt, on the server's kind of GPU and with its TensorRT",
    "onnxruntime-rtx": "build with --backend onnxruntime-cuda or onnxruntime-tensorrt",
}


@dataclass(frozen=True)
class Batching:
    """How batches are expressed.

    Attributes:
        most: ``max_batch_size``; 0 for a model that does not batch in Triton's sense.
        leading: What dimensions begin with: nothing where Triton adds the batch itself, else -1 or the fixed size.
    """

    most: int
    leading: tuple[int, ...] = ()


def require_host(manifest: Manifest) -> Host:
    """Find how Triton runs an engine.

    Raises:
        BackendError: If it cannot.
    """
    backend = manifest.spec.backend
    if backend not in HOSTS:
        hint = _INSTEAD.get(backend, f"package an engine built for one of: {', '.join(HOSTS)}")
        raise BackendError(f"Triton has no backend that runs {backend} engines", hint=hint)
    if manifest.spec.trt.strip_weights:
        hint = "build it again without --strip-weights"
        raise BackendError("Triton does not put weights back into a plan that was stripped of them", hint=hint)
    return HOSTS[backend]


def require_effect(manifest: Manifest, host: Host, serving: Serving) -> None:
    """Refuse what would change nothing.

    Raises:
        SpecError: Naming the option.
    """
    backend, sizes = manifest.spec.backend, manifest.spec.batch
    if serving.max_delay_us and express_batching(host, sizes).most <= 1:
        reason = (
            f"a batch of {sizes}" if host.combines else f"{backend} engines, whose requests Triton does not combine"
        )
        raise SpecError(f"--max-delay has no effect with {reason}", hint="drop it")
    if serving.gpus and not host.on_gpu:
        raise SpecError(f"--gpus has no effect with {backend} engines, which run on the CPU", hint="drop it")
    if serving.threads and not host.threads:
        raise SpecError(f"--threads has no effect with {backend} engines, which run on GPUs", hint="drop it")
    if serving.cuda_graphs and backend != "tensorrt":
        raise SpecError(f"--cuda-graphs has no effect with {backend} engines: it is for TensorRT plans", hint="drop it")


def express_batching(host: Host, sizes: BatchRange) -> Batching:
    """Express a range of batch sizes.

    Triton knows a largest batch and no least one: requests go alone when no others wait.

    Raises:
        SpecError: If there is a least batch size that is not the only one.
    """
    if sizes.min == sizes.max and (sizes.min > 1 or not host.combines):
        return Batching(0, (sizes.min,))
    if sizes.min > 1:
        raise SpecError(
            f"the engine takes batches of {sizes}, and Triton cannot be told of a least batch size",
            hint="build it with --batch 1:OPT:MAX, or with one fixed size such as --batch 8",
        )
    return Batching(sizes.max) if host.combines else Batching(0, (-1,))


def notes(manifest: Manifest) -> tuple[str, ...]:
    """Say what a server must be or have to run the engine, one line each."""
    requires, said = manifest.requires, []
    if manifest.spec.backend == "tensorrt":
        if requires.later_versions:
            said.append(
                f"needs TensorRT {requires.version} or a later one of that major release, and a server started with "
                "--backend-config=tensorrt,version-compatible=true"
            )
        else:
            said.append(f"needs a server with TensorRT {requires.version}: plans run on the very version they are of")
        if requires.compute_capabilities:
            said.append(f"runs on GPUs of compute capability {', '.join(requires.compute_capabilities)} alone")
    if requires.int8_dot_product:
        said.append("needs a CPU with an INT8 dot product (VNNI or its kin): elsewhere its INT8 saturates, unnoticed")
    if manifest.spec.backend == "openvino":
        said.append("Triton's OpenVINO backend combines no requests: clients send batches, the batch dimension first")
        said.append(
            "a CPU with BF16 instructions may compute in BF16 there: Triton cannot tell OpenVINO to keep to FP32"
        )
    return tuple(said)
