"""The results of an evaluation as a table for the terminal, with the conditions they were got under."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_deploy.bench import statistics
from resnet_deploy.bench.accuracy import Flips
from resnet_deploy.bench.decoding import bound
from resnet_deploy.bench.evaluation_records import EvaluationRecord
from resnet_deploy.bench.records import DatasetRecord
from resnet_deploy.bench.statistics import Accuracy
from resnet_deploy.names import printable
from resnet_deploy.report import wording


def print_evaluation(record: EvaluationRecord, console: Console) -> None:
    """Print the answers counted, then how they were got."""
    console.print(Text(f"{record.architecture} on {_data(record.dataset)}", style="bold"), Text(), _answers(record))
    if record.decoding is not None:
        console.print(Text(), _decoding(record))
    console.print(Text(), _notes(record))


def _answers(record: EvaluationRecord) -> Table:
    first, labelled = record.engines[0], bool(record.dataset.labels)
    table = _table("engine", "precision")
    for name in (
        (("top-1 %", "top-5 %") if labelled else ()) + ("agree %", "SQNR dB") + (("+/-", "p") if labelled else ())
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for engine in record.engines:
        is_first = engine is first
        counted = statistics.accuracy(engine.outputs, None if is_first else first.outputs, record.dataset)
        cells = [printable(engine.name), engine.precision]
        if labelled:
            cells += [_share(counted.top1, counted), _share(counted.top5, counted)]
        cells += [wording.NOTHING] * 2 if is_first else [_percent(counted.agreement), _decibels(counted.sqnr_db)]
        if labelled:
            cells += _flips(counted.flips)
        table.add_row(*map(Text, cells))
    return table


def _decoding(record: EvaluationRecord) -> Table:
    """Set what was measured beside its bound."""
    times = record.decoding
    assert times is not None
    table = _table("images/s")
    for name in ("decode", "engine", "together", "bound", "of bound"):
        table.add_column(name, justify="right", no_wrap=True)
    on_gpu = {one.name: is_on_gpu(one.device) for one in record.engines}
    for name, (alone, together) in times.engines.items():
        most = bound(times.decode, alone, shared=not on_gpu.get(name, False))
        figures = [wording.significant(rate) for rate in (times.decode, alone, together, most)]
        table.add_row(Text(printable(name)), *figures, f"{together / most:.0%}")
    return table


def is_on_gpu(device: str) -> bool:
    """Whether an engine runs elsewhere than on the CPU that decodes, by its runner's name of the device."""
    return "cpu" not in device.lower()


def _notes(record: EvaluationRecord) -> Table:
    cost, images = record.cost, record.dataset.images
    first = printable(record.engines[0].name)
    sessions = "one session" if cost.sessions == 1 else f"{cost.sessions} sessions"
    threads, engines = wording.counted(record.threads, "thread"), wording.counted(len(record.engines), "engine")
    speed = (
        f"{wording.significant(images / cost.seconds)} images/s through {engines}, in "
        f"{duration(cost.seconds)} ({sessions}); engines busy {cost.inferring / cost.seconds:.0%}, waiting for images "
        f"{cost.waiting / cost.seconds:.0%} of it"
    )
    meanings = f"; agree, SQNR, +/- (images gained and lost) and p (McNemar's exact test) are against {first}"
    notes = [
        ("columns", f"in brackets 95 % intervals (Wilson){meanings if len(record.engines) > 1 else ''}"),
        ("input", wording.prepared(record.preprocess)),
        ("speed", speed),
        ("procedure", f"batches of {record.batch}; {threads} per engine, {record.workers} decoding"),
    ]
    if record.dataset.labels_note:
        notes.append(("labels", record.dataset.labels_note))
    if record.dataset.skipped:
        names = ", ".join(record.dataset.skipped[:3]) + (", ..." if len(record.dataset.skipped) > 3 else "")
        notes.append(("data", f"{len(record.dataset.skipped)} corrupt left out at your request: {names}"))
    notes += [("not run", wording.not_run(missing)) for missing in record.not_run]
    notes += [
        ("warning", f"{one.name}: its INT8 form was chosen on these very images: measure accuracy on others")
        for one in record.engines
        if one.in_sample
    ]
    if record.decoding is not None:
        notes.append(("bound", "of decoding and engine together: harmonic on one CPU, the slower one beside a GPU"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold", max_width=110)
    for name, line in notes:
        grid.add_row(name, Text(printable(line)))
    return grid


def duration(seconds: float) -> str:
    """Write a time as a person says it: 41 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _data(dataset: DatasetRecord) -> str:
    return f"{printable(dataset.name)}: {dataset.images:,} images, SHA-256 {dataset.digest[:12]}"


def _share(share: float | None, counted: Accuracy) -> str:
    if share is None:
        return wording.NOTHING
    interval = statistics.share_interval(share, counted.images)
    return f"{wording.percent(share)} ({wording.limits(interval, wording.percent)})"


def _percent(share: float | None) -> str:
    return wording.NOTHING if share is None else wording.percent(share)


def _decibels(value: float | None) -> str:
    return wording.NOTHING if value is None else wording.decibels(value)


def _flips(flips: Flips | None) -> list[str]:
    if flips is None:
        return [wording.NOTHING] * 2
    p_value = f"{flips.p_value:.3f}" if flips.p_value >= 0.001 else f"{flips.p_value:.0e}"
    return [f"+{flips.gained} -{flips.lost}", p_value]
