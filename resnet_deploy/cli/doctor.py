"""``resnet-deploy doctor``: what this machine is, which backends it can build and run, and what would change that.

Always ends with status 0: it is a report, not a check.
"""

import functools
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from resnet_deploy.backends import BACKENDS
from resnet_deploy.capabilities import BackendStatus, Capability, backend_status
from resnet_deploy.cli.options import json_option
from resnet_deploy.cli.output import print_json
from resnet_deploy.driver import GpuProbe
from resnet_deploy.environment import LIBRARIES, Cpu, Environment, collect

if TYPE_CHECKING:
    from rich.console import Console

_INT8_WORDS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "I8MM",
    "asimddp": "SDOT and UDOT",
}


class Diagnosis(msgspec.Struct, frozen=True):
    """What ``--json`` prints; ``calibration_not_in_c`` is the reason, and empty where it is."""

    environment: Environment
    backends: tuple[BackendStatus, ...]
    calibration_not_in_c: str


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Report what this machine can build and run.

    Every library that is found is imported once, in a process of its own, so that a broken one cannot hide the rest.

    \b
    Examples:
      resnet-deploy doctor
      resnet-deploy doctor --json
    """
    from resnet_deploy.quantize import counting

    environment = collect()
    import_failure = functools.cache(try_import)  # several backends share a library
    statuses = tuple(backend_status(backend, environment, import_failure=import_failure) for backend in BACKENDS)
    diagnosis = Diagnosis(environment, statuses, counting.NOT_NATIVE)
    if as_json:
        print_json(diagnosis)
        return
    from rich.console import Console

    console = Console(highlight=False)
    _print_machine(console, environment, calibration_in_words(diagnosis.calibration_not_in_c))
    _print_libraries(console, environment)
    _print_backends(console, statuses)


def try_import(module: str, timeout_s: float = 120.0) -> str:
    """Import ``module`` in a process of its own, which may crash or hang; return why it failed, or an empty string."""
    # The child looks where we do: by itself it would also look in the current folder.
    code = "import sys; sys.path[:] = sys.argv[2:]; __import__(sys.argv[1])"
    command = [sys.executable, "-c", code, module, *sys.path]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"importing {module} took more than {timeout_s:g} s"
    except OSError as error:
        return f"importing {module} could not be tried: {error}"
    if done.returncode < 0:
        return f"importing {module} crashed: {signal.strsignal(-done.returncode)}"
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return f"importing {module} failed: {lines[-1]}" if done.returncode else ""


def int8_in_words(cpu: Cpu) -> str:
    """Say what the processor's features mean for INT8 engines."""
    if cpu.has_vnni:
        return f"{', '.join(word for name, word in _INT8_WORDS.items() if name in cpu.features)}: full-range INT8"
    found = f"unknown ({cpu.reason}), taken for no VNNI" if cpu.reason else "no VNNI"
    return f"{found}: INT8 weights are reduced to 7 bits on ONNX Runtime"


def calibration_in_words(not_native: str) -> str:
    """Say in what activations are counted, given why not in C."""
    if not_native:
        return f"calibration counts in NumPy, not in C, and takes longer: {not_native}"
    return "calibration counts in C"


def gpu_in_words(gpu: GpuProbe) -> tuple[str, ...]:
    """Describe the GPUs, one line each, and their driver; or say why there is none."""
    lines = [
        f"{one.name}, compute capability {one.compute_capability}, {_gib(one.memory_bytes)}" for one in gpu.gpus
    ] or [f"none: {gpu.reason}"]
    if gpu.driver:
        lines.append(f"driver {gpu.kernel_driver or 'of unknown version'}, supports CUDA {gpu.driver}")
    return tuple(lines)


def _print_machine(console: "Console", environment: Environment, calibration: str) -> None:
    cpu = environment.cpu
    system = (
        f"{environment.os}, kernel {environment.kernel}, {environment.machine}",
        f"Python {environment.python}",
    )
    rows = {
        "system": system,
        "CPU": (f"{cpu.model}, {cpu.cores} usable core{'s' if cpu.cores != 1 else ''}",),
        "INT8": (int8_in_words(cpu), calibration),
        "memory": (_gib(environment.memory_bytes) if environment.memory_bytes else "unknown",),
        "GPU": gpu_in_words(environment.gpu),
    }
    _print_rows(console, "Machine", {name: "\n".join(lines) for name, lines in rows.items()})


def _print_libraries(console: "Console", environment: Environment) -> None:
    versions = {library.name: library.version for library in environment.libraries}
    _print_rows(console, "Libraries", {name: versions.get(name, "not installed") for name in LIBRARIES})
    if {"onnxruntime", "onnxruntime-gpu"} <= versions.keys():
        note = "onnxruntime and onnxruntime-gpu share one folder and overwrite each other; keep one:"
        _print_note(console, note, "pip uninstall onnxruntime onnxruntime-gpu, then install the one you want")


def _print_backends(console: "Console", statuses: tuple[BackendStatus, ...]) -> None:
    from rich.text import Text

    width = max(len(status.backend) for status in statuses)
    console.print(Text("Backends", style="bold"))
    for status in statuses:
        line = Text(f"  {status.backend:{width}}  ")
        for label, able in (("can build: ", status.build), ("  can run: ", status.run)):
            line.append(label).append("yes" if able.ok else "no ", "green" if able.ok else "yellow")
        console.print(line)
        for reason, fix in _reasons(status):
            _print_note(console, reason, fix)


def _reasons(status: BackendStatus) -> tuple[tuple[str, str], ...]:
    """Pair each reason with its fix; one pair where building and running fail for the same reason."""
    failed: dict[Capability, list[str]] = {}
    for verb, able in (("build", status.build), ("run", status.run)):
        if not able.ok:
            failed.setdefault(able, []).append(verb)
    return tuple((f"{' and '.join(verbs)}: {able.reason}", able.fix) for able, verbs in failed.items())


def _print_rows(console: "Console", title: str, rows: dict[str, str]) -> None:
    """Print names and values in two columns, wrapping the values."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(f"  {name}"), Text(value))  # Text, since rich would read "[rtx]" in a string as markup
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def _print_note(console: "Console", reason: str, fix: str) -> None:
    """Print a reason, wrapped, and its fix on a line of its own that copies as one piece."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding.indent(Text(reason, overflow="fold"), 4))
    if fix:
        console.print(Text(f"    -> {fix}", style="cyan"), soft_wrap=True)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
