"""How to have a run again: the command, as far as the record tells it."""

import shlex
from collections.abc import Iterable, Sequence
from statistics import median
from typing import get_args

from resnet_deploy.bench.records import BenchRecord, Samples
from resnet_deploy.bench_spec import Scope
from resnet_deploy.names import printable
from resnet_deploy.report import wording


def command(record: BenchRecord) -> str:
    """Write the command that makes such a run again, empty without engines; where folders lie is not in the record."""
    if record.suite:
        return shlex.join(["resnet-deploy", "bench", "--suite", printable(record.suite)])
    listed = [samples for engine in record.engines for samples in engine.latency]
    if not listed:
        return ""
    engines = [one for one in record.engines if wording.role(record, one) == "engine"]
    words = ["resnet-deploy", "bench", *(printable(engine.name) for engine in engines)]
    if record.dataset is not None:
        words += ["--data", printable(record.dataset.name)]
    words += ["--batches", _joined(samples.batch for samples in listed)]
    words += _ways(listed)
    words += ["--rounds", str(max(len(set(samples.rounds)) for samples in listed))]
    words += ["--seconds", f"{_seconds(listed):.0f}", "--seed", str(record.seed), "--threads", str(record.threads)]
    peers = [printable(engine.name) for engine in record.engines if engine.role == "peer"]
    words += ["--peers", ",".join(peers)] if peers else []
    words += ["--layers"] if any(engine.layers is not None for engine in record.engines) else []
    return shlex.join(words + ([] if record.reference else ["--no-pytorch"]))


def _ways(listed: Sequence[Samples]) -> list[str]:
    """Name what was varied besides the batch size; what is the default goes unsaid."""
    scopes = [scope for scope in get_args(Scope) if any(samples.scope == scope for samples in listed)]
    words = ["--scopes", ",".join(scopes)] if scopes != ["host"] else []
    if any(samples.concurrency > 1 for samples in listed):
        words += ["--concurrency", _joined(samples.concurrency for samples in listed)]
    rates = {samples.offered for samples in listed if samples.offered is not None}
    words += ["--rate", ",".join(f"{rate:g}" for rate in sorted(rates))] if rates else []
    graphs = {samples.graphs for samples in listed} - {None}
    return words + (["--graphs", "both" if len(graphs) == 2 else "off"] if False in graphs else [])


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(str(number) for number in sorted(set(numbers)))


def _seconds(listed: Sequence[Samples]) -> float:
    """Guess the time that each way was given by what its calls took, in the median: it is not in the record."""
    return max(1.0, median(sum(one.seconds) / one.concurrency for one in listed))
