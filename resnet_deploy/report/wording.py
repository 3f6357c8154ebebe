"""What the terminal and the page say alike: figures as text, names made printable, conditions in words."""

import math
from collections.abc import Callable
from typing import Final, get_args

from resnet_deploy.bench import statistics
from resnet_deploy.bench.loadgen_records import LoadgenRecord
from resnet_deploy.bench.pairs import pairs_needed
from resnet_deploy.bench.records import BenchRecord, EngineRecord, NotRun, Role, Samples, Way
from resnet_deploy.bench.statistics import Interval, Summary
from resnet_deploy.bench.verdicts import TOO_FEW
from resnet_deploy.bench_spec import Scope
from resnet_deploy.contract import Preprocess
from resnet_deploy.environment import Environment
from resnet_deploy.names import printable

NOTHING: Final = "\N{EN DASH}"  # stands where there is no figure, and between the ends of an interval
MICRO: Final = "\N{MICRO SIGN}"

_SCOPES: Final = {
    "host": "host: arrays in host memory in, logits in host memory out; image decoding not included",
    "device": "device: the engine alone, on arrays that are already in its memory; copies and decoding not included",
    "h2d": "copy in: the images from host memory to the device, alone",
    "d2h": "copy out: the logits from the device to host memory, alone",
    "end_to_end": "end to end: bytes of JPEG files in, labels out; decoding included",
}
_SCOPE_NAMES: Final = {"h2d": "copy in", "d2h": "copy out", "end_to_end": "end to end"}


def scope_name(scope: Scope) -> str:
    """Name what lies inside the timer, in a word or a few."""
    return _SCOPE_NAMES.get(scope, scope)


def counted(number: int, what: str) -> str:
    """Put a noun after a number: ``1 core``, ``2 cores``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def significant(value: float, digits: int = 3) -> str:
    """Round to so many significant digits, never dropping digits before the point."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("\N{INFINITY}" if value > 0 else "-\N{INFINITY}")
    decimals = 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def size(size_bytes: int) -> str:
    """Megabytes (10^6 bytes) as text, without the unit."""
    return significant(size_bytes / 1e6)


def milliseconds(seconds: float) -> str:
    """Milliseconds as text, without the unit."""
    return significant(seconds * 1e3)


def percent(share: float) -> str:
    """Percent as text, without the unit."""
    return f"{share * 100:.2f}"


def points(share: float) -> str:
    """Difference of two shares in percentage points, with its sign."""
    return f"{share * 100:+.2f}"


def ratio(value: float) -> str:
    """Write a speed-up with two decimals, or none once they say nothing."""
    return f"{value:.2f}" if value < 100 else significant(value)


def decibels(value: float) -> str:
    """Decibels as text, without the unit."""
    return f"{value:.1f}" if math.isfinite(value) else significant(value)


def limits(interval: Interval, write: Callable[[float], str]) -> str:
    """Write the two ends of an interval."""
    low, high = write(interval.low), write(interval.high)
    return f"{low} to {high}" if low.startswith(("-", "+")) else f"{low}{NOTHING}{high}"


def reference_name(record: BenchRecord) -> str:
    """Name the reference as prose does."""
    return "PyTorch" if record.reference in ("pytorch", "torch") else printable(record.reference)


def role(record: BenchRecord, engine: EngineRecord) -> Role:
    """Tell what an engine is in its run; records of schema 1 name the reference, and have no other roles."""
    return "reference" if engine.name == record.reference else engine.role


def callers(concurrency: int) -> str:
    """Say how many called at once."""
    return counted(concurrency, "caller")


def way(way: Way) -> str:
    """Say how an engine was called."""
    parts = [f"batch {way.batch}", scope_name(way.scope), callers(way.concurrency)]
    if way.graphs is not None:
        parts.append("CUDA graphs" if way.graphs else "no CUDA graphs")
    if way.offered is not None:
        parts.append(f"{significant(way.offered)} calls/s due")
    return ", ".join(parts)


def title(record: BenchRecord) -> str:
    """Say what was measured and when."""
    return f"{record.architecture} on {data_name(record)}, {created(record)}"


def created(record: BenchRecord | LoadgenRecord) -> str:
    """Write the time of the run without the fractions and the T of ISO 8601."""
    return f"{record.created[:16].replace('T', ' ')} UTC"


def data_name(record: BenchRecord) -> str:
    """Name the data set."""
    return printable(record.dataset.name) if record.dataset is not None else "synthetic images"


def timed(record: BenchRecord) -> tuple[str, ...]:
    """Say what lies inside the timer, once per scope that was used."""
    return tuple(_SCOPES[scope] for scope in scopes(record))


def scopes(record: BenchRecord) -> tuple[Scope, ...]:
    """List the scopes that were measured, in the order in which they are told."""
    used = {samples.scope for engine in record.engines for samples in engine.latency}
    return tuple(scope for scope in get_args(Scope) if scope in used)


def data(record: BenchRecord) -> tuple[str, ...]:
    """Describe the images, and what cannot be said without them or their labels."""
    dataset = record.dataset
    if dataset is None:
        return ("no images: latencies are taken on synthetic ones, and there is no accuracy",)
    labelled = "labelled" if dataset.labels else "unlabelled"
    lines = [f"{printable(dataset.name)}: {dataset.images:,} images, {labelled}, SHA-256 {dataset.digest[:12]}"]
    if not dataset.labels:
        only = (
            f"agreement with {reference_name(record)} only" if record.reference else "no accuracy without a reference"
        )
        lines.append(f"no labels: {only}")
    if dataset.labels_note:
        lines.append(printable(dataset.labels_note))
    if dataset.skipped:
        names = ", ".join(printable(name) for name in dataset.skipped[:3])
        more = ", ..." if len(dataset.skipped) > 3 else ""
        lines.append(f"{len(dataset.skipped)} corrupt left out at your request: {names}{more}")
    return tuple(lines)


def prepared(contract: Preprocess) -> str:
    """Say by whose rule images become inputs, and at what size."""
    rule = {"torchvision": "torchvision's", "mlperf": "MLPerf's", "custom": "torchvision's rule, other numbers"}
    size = f"shorter side to {contract.resize} ({contract.interpolation}), centre crop {contract.image_size}"
    return f"{rule[contract.name]}: {size}"


def procedure(record: BenchRecord) -> str:
    """Say how the calls were made."""
    threads = counted(record.threads, "thread")
    reference = (
        "; PyTorch runs eagerly, in FP32, channels last, and normalises" if record.reference == "pytorch" else ""
    )
    return (
        f"{threads} per engine on the CPU; up to {record.warmup_calls} untimed calls first; "
        f"engines take turns, in random order (seed {record.seed}){reference}"
    )


def harness(record: BenchRecord) -> str:
    """Say what the harness itself costs, as the null runner shows it."""
    plain = [one for one in record.harness if (one.scope, one.concurrency, one.offered) == ("host", 1, None)]
    if not plain:
        return "overhead not measured"
    costs = ", ".join(f"{_microseconds(samples)} at batch {samples.batch}" for samples in plain)
    return f"costs {costs} per call, as the null runner shows; included in the latencies"


def environment(record: BenchRecord | LoadgenRecord) -> tuple[tuple[str, str], ...]:
    """Describe the machine as pairs of a name and a value."""
    env = record.environment
    cores = counted(env.cpu.cores, "core")
    features = ", ".join(env.cpu.features) or env.cpu.reason or "none that matter here"
    memory = f"{env.memory_bytes / 2**30:.0f} GiB" if env.memory_bytes else "unknown"
    rows = [
        ("CPU", f"{env.cpu.model}, {cores}"),
        ("CPU features", f"{features}; INT8 dot product: {'yes' if env.cpu.has_vnni else 'no'}"),
        *([("governor", record.governor)] if isinstance(record, BenchRecord) and record.governor else []),
        ("memory", memory),
        *(("GPU", line) for line in _gpus(env)),
        ("system", f"{env.os}, kernel {env.kernel}, {env.machine}"),
        ("Python", env.python),
        *((library.name, library.version) for library in env.libraries),
    ]
    return tuple((name, printable(value)) for name, value in rows)


def machine(record: BenchRecord | LoadgenRecord) -> str:
    """Describe the machine in one line."""
    return "; ".join(_phrase(name, value) for name, value in environment(record))


def quietness(record: BenchRecord) -> tuple[str, ...]:
    """Say what the machine did that moves all figures of the run."""
    return tuple(map(printable, statistics.machine_warnings(record.machine)))


def verdict(row: Summary, record: BenchRecord) -> str:
    """Say whether an engine is faster than the reference, and its answers better; empty where nothing is to say."""
    if row.speed_verdict is None:
        return ""
    text = f"{row.speed_verdict} than {reference_name(record)}"
    if row.speed_verdict not in ("faster", "slower"):
        text = f"{row.speed_verdict} in speed"
    if row.speed_verdict == TOO_FEW:
        text += f", which takes {pairs_needed(row.level)}"
    if row.accuracy is None or row.accuracy.flips is None:
        return text
    flips = row.accuracy.flips
    return (
        f"{text}; top-1: {row.accuracy_verdict} ({flips.gained} images gained, {flips.lost} lost, "
        f"McNemar's exact p = {significant(flips.p_value, 2)})"
    )


def speedup_limits(interval: Interval) -> str:
    """Write the interval of a speed-up; an infinite one as what it means."""
    return "too few rounds" if math.isinf(interval.high) else limits(interval, ratio)


def confidence(row: Summary) -> str:
    """Write the confidence of the interval of a speed-up."""
    return f"{100 * (1 - row.level):.4g} %"


def not_run(missing: NotRun) -> str:
    """Say which engine was found and not run, and why."""
    kind = f"{missing.backend} {missing.precision}, {size(missing.size_bytes)} MB"
    return f"{printable(missing.name)} ({kind}): {printable(missing.reason)}"


def peer(engine: EngineRecord) -> str:
    """Say what a peer is and how it was called."""
    return f"{printable(engine.name)}: {printable(engine.settings) or 'settings not recorded'}"


def meanings(record: BenchRecord) -> tuple[str, ...]:
    """Explain the columns."""
    several = any(samples.concurrency > 1 for engine in record.engines for samples in engine.latency)
    scope = statistics.headline_scope(record.engines)
    lines = []
    if scope is not None:
        within = f", scope {scope_name(scope)}" if len(scopes(record)) > 1 or scope != "host" else ""
        best = f"batch{' and number of callers' if several else ''} where it is highest"
        lines.append(f"images/s: at the {best}, in brackets{within}")
    if record.reference:
        name = reference_name(record)
        if scope is not None:
            lines.append(_speedup_meaning(record, alike=several))
        if record.dataset is not None:
            lines.append(f"agreement: images with the same best class as {name}'s")
            lines.append(f"SQNR: {name}'s logits over the difference from them; 20 dB is 10 % off, 40 dB 1 %")
    return tuple(lines)


def _speedup_meaning(record: BenchRecord, *, alike: bool) -> str:
    """Say what a speed-up is: neither the quotient of two rates in the table, nor certain for each engine by itself."""
    callers = ", both with numbers of callers that both have" if alike else ""
    count = len(record.engines) - 1
    together = "with its 95 % interval"
    if count > 1:
        together = f"with intervals wide enough for all {count} of them to hold together with 95 %"
    return f"speed-up: images/s over {reference_name(record)}'s in a typical round{callers}, {together}"


def _microseconds(samples: Samples) -> str:
    return f"{significant(statistics.percentile(samples.seconds, 50) * 1e6)} {MICRO}s"


def _gpus(env: Environment) -> list[str]:
    driver = f"CUDA {env.gpu.driver}" + (f", driver {env.gpu.kernel_driver}" if env.gpu.kernel_driver else "")
    if not env.gpu.gpus:
        return [f"none ({env.gpu.reason})"]
    return [
        f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_bytes / 2**30:.0f} GiB; {driver}"
        for gpu in env.gpu.gpus
    ]


def _phrase(name: str, value: str) -> str:
    if name == "GPU" and value.startswith("none "):
        return f"no GPU {value[5:]}"
    return value if name in ("CPU", "CPU features", "GPU", "system") else f"{name} {value}"
