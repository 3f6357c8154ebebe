"""How to have a run again: the command, as far as the record tells it."""

import shlex
from statistics import median

from resnet_deploy.bench.records import BenchRecord, Samples
from resnet_deploy.report import wording


def command(record: BenchRecord) -> str:
    """Write the command that makes such a run again, empty without engines; where folders lie is not in the record."""
    if record.suite:
        return shlex.join(["resnet-deploy", "bench", "--suite", wording.printable(record.suite)])
    listed = [samples for engine in record.engines for samples in engine.latency]
    if not listed:
        return ""
    engines = [one for one in record.engines if wording.role(record, one) == "engine"]
    words = ["resnet-deploy", "bench", *(wording.printable(engine.name) for engine in engines)]
    if record.dataset is not None:
        words += ["--data", wording.printable(record.dataset.name)]
    words += ["--batches", ",".join(str(batch) for batch in sorted({samples.batch for samples in listed}))]
    words += ["--rounds", str(max(len(set(samples.rounds)) for samples in listed))]
    words += ["--seconds", f"{_seconds(listed):.0f}", "--seed", str(record.seed), "--threads", str(record.threads)]
    return shlex.join(words + ([] if record.reference else ["--no-pytorch"]))


def _seconds(listed: list[Samples]) -> float:
    """Guess the time that each way was given by what its calls took, in the median: it is not in the record."""
    return max(1.0, median(sum(one.seconds) / one.concurrency for one in listed))
