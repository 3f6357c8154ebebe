"""What a TensorRT engine can be asked to be, beyond precision and batch sizes, and which flavour takes what."""

import re
from typing import Final, Literal, get_args

import msgspec

from resnet_deploy.errors import SpecError

TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"
HardwareCompatibility = Literal["none", "ampere+", "same-cc"]
HARDWARE_COMPATIBILITY: Final[tuple[HardwareCompatibility, ...]] = get_args(HardwareCompatibility)

# What the builder of TensorRT-RTX 1.7.1 accepts as a target; it refuses 8.7, 9.0, 10.0 and 10.3. The support matrix has
# all of these but 8.0, which NVIDIA's guide to building ahead of time adds:
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html
RTX_COMPUTE_CAPABILITIES: Final = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
ARCHITECTURES: Final = {"7.0": "Volta", "8.7": "Orin", "9.0": "Hopper", "10.0": "Blackwell", "10.3": "Blackwell Ultra"}

_MOST_EFFORT: Final = 5
_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}

# Flag and flavours of each option, and what to do on one that lacks it.
_WHERE: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "targets": (
        "--target",
        (TENSORRT_RTX,),
        "TensorRT compiles for the GPU that is present; see --hardware-compat",
    ),
    "workspace_bytes": ("--workspace", (TENSORRT, TENSORRT_RTX), ""),
    "optimization_level": ("--opt-level", (TENSORRT, TENSORRT_RTX), ""),
    "timing_cache": ("--timing-cache", (TENSORRT,), "TensorRT-RTX times no kernels where it builds"),
    "hardware_compatibility": ("--hardware-compat", (TENSORRT,), "name GPU generations with --target"),
    "version_compatible": (
        "--version-compatible",
        (TENSORRT,),
        "TensorRT-RTX engines need the version that built them",
    ),
    "strip_weights": ("--strip-weights", (TENSORRT,), "TensorRT-RTX cannot strip an engine without a GPU"),
    "refittable": ("--refittable", (TENSORRT,), "TensorRT-RTX cannot make an engine refittable without a GPU"),
}


class TrtOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a TensorRT engine is to be compiled; every default leaves the choice to the compiler.

    Attributes:
        targets: GPU generations to compile for, such as ``8.9``; empty for the flavour's own choice.
        workspace_bytes: Most device memory that a kernel may use for scratch.
        optimization_level: Effort of the compiler, 0 to 5.
        timing_cache: File of kernel timings to start from and to add to; empty for none.
        hardware_compatibility: ``ampere+`` for an engine that runs on any GPU from Ampere on, ``same-cc`` for any of
            the compute capability it was built on.
        version_compatible: Whether later versions of the same major release may run the engine.
        strip_weights: Leave weights out of the plan; the runtime puts those of the lowered graph back in.
        refittable: Let weights be exchanged in a built engine.

    Raises:
        SpecError: If a value is out of range.
    """

    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: str = ""
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    refittable: bool = False

    def __post_init__(self) -> None:
        known = ", ".join(RTX_COMPUTE_CAPABILITIES)
        for target in self.targets:
            if target not in RTX_COMPUTE_CAPABILITIES:
                name = f" ({ARCHITECTURES[target]})" if target in ARCHITECTURES else ""
                hint = f"it compiles for {known}"
                raise SpecError(f"TensorRT-RTX does not support compute capability {target}{name}", hint=hint)
        if len(set(self.targets)) < len(self.targets):
            raise SpecError(f"targets {', '.join(self.targets)} repeat themselves", hint="name each once")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise SpecError(f"a workspace of {self.workspace_bytes} bytes", hint="give --workspace such as 4G")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= _MOST_EFFORT:
            raise SpecError(f"optimization level {self.optimization_level}", hint=f"give 0 to {_MOST_EFFORT}")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            choice = ", ".join(HARDWARE_COMPATIBILITY)
            raise SpecError(f"hardware compatibility {self.hardware_compatibility!r}", hint=f"choose one of: {choice}")
        if self.strip_weights and self.refittable:
            hint = "drop --refittable: a stripped engine takes its own weights back, and no others"
            raise SpecError("an engine is either stripped or refittable", hint=hint)

    def require_backend(self, backend: str) -> None:
        """Refuse what ``backend`` does not take.

        Raises:
            SpecError: Naming the first option that it lacks.
        """
        for field, (flag, flavours, instead) in _WHERE.items():
            if backend not in flavours and getattr(self, field) != getattr(_DEFAULTS, field):
                hint = instead if backend in (TENSORRT, TENSORRT_RTX) else f"drop it, or use --backend {flavours[0]}"
                raise SpecError(f"{backend} has no {flag}", hint=hint)


_DEFAULTS: Final = TrtOptions()


def parse_targets(text: str) -> tuple[str, ...]:
    """Read GPU generations, such as ``sm86,sm89,sm120`` or ``8.6,8.9,12.0``.

    Raises:
        SpecError: If one has another form.
    """
    targets = []
    for part in text.split(","):
        found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", part.strip().lower())
        if not found:
            raise SpecError(f"{part.strip()!r} is no GPU generation", hint="write it like sm89, or 8.9")
        targets.append(f"{found[1]}.{found[2]}")
    return tuple(targets)


def parse_bytes(text: str) -> int:
    """Read a size in bytes with an optional K, M or G (powers of 1024), such as ``512M`` or ``4GiB``.

    Raises:
        SpecError: If the text has another form.
    """
    found = re.fullmatch(r"(\d{1,9})([KMG]?)(?:I?B)?", text.strip().upper())
    if not found:
        raise SpecError(f"{text!r} is no size", hint="write it like 512M or 4G")
    return int(found[1]) * _UNITS[found[2]]
