"""Every reader of files that somebody else may have written, as the fuzzers call it."""

import contextlib
import functools
import io
from pathlib import Path

import fuzz_seeds as seeds
import msgspec
from fuzz_harness import Target
from fuzz_mutators import sealed_lines

from resnet_deploy import artifact
from resnet_deploy.bundle import Bundle, open_bundle, seal
from resnet_deploy.contract import MLPERF_MEAN, MLPERF_STD
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import Preprocess

CONTRACTS = (
    seeds.SPEC,
    Preprocess(image_size=8, resize=9, interpolation="area", mean=MLPERF_MEAN, std=MLPERF_STD),
    Preprocess(image_size=8, resize=9, dtype="float32", layout="NCHW"),
)
MOST_PIXELS = 1 << 20  # Pillow's own limit of 89 million takes seconds, and a GiB, that are not of interest here


# --- weights and models


def read_checkpoint(path: Path) -> None:
    from resnet_deploy import checkpoints

    state = checkpoints.read_state_dict(path)
    checkpoints.state_dict_digest(checkpoints.fit_state_dict(state, _expected(), path.name, "net"))


@functools.cache
def _expected():
    return {name: tensor.to("meta") for name, tensor in seeds.state_dict().items()}


def read_model(folder: Path) -> None:
    from resnet_deploy.pipeline.source import read_source

    read_source(folder / "model.onnx")


def read_digest(folder: Path) -> None:
    from resnet_deploy.pipeline.references import read_weights_digest

    read_weights_digest(folder / "weights.safetensors")


# --- bundles


def fill_bundle(folder: Path) -> None:
    """Make the other files of a bundle, and a manifest that names them."""
    made = (seeds.onnx_model, seeds.golden, seeds.calibration, seeds.search, seeds.observations)
    for name, make in zip(seeds.CONTENTS, made, strict=True):
        (folder / name).write_bytes(make()[0])
    (folder / "manifest.json").write_bytes(seeds.manifest_of(folder))


def sealed_manifest(data: bytes) -> bytes:
    """Give a manifest the digest of what it says now, where it is JSON."""
    with contextlib.suppress(Exception):
        return seal(msgspec.json.decode(data, type=dict[str, object]))
    return data


def read_manifest(folder: Path) -> None:
    from resnet_deploy.pipeline.inspecting import inspect_engine, to_json

    bundle = open_bundle(folder)
    bundle.verify_files()
    bundle.manifest.requires.takes_version("1.2.3")
    bundle.manifest.requires.takes_gpu("8.9")
    to_json(inspect_engine(folder, need_graph=False, progress=Silent()))


def bundle_in(folder: Path) -> Bundle:
    """The bundle, whatever became of one file: a digest is no signature, and whoever changes one changes both."""
    path = folder / "manifest.json"
    path.write_bytes(seeds.manifest_of(folder))
    return open_bundle(folder)


def read_golden(folder: Path) -> None:
    from resnet_deploy.pipeline import replaying

    replaying.read_golden(bundle_in(folder))


def read_calibration(folder: Path) -> None:
    from resnet_deploy.pipeline.diagnosing import worst_histograms
    from resnet_deploy.pipeline.inspecting import inspect_engine, to_json

    bundle = bundle_in(folder)
    to_json(inspect_engine(folder, need_graph=False, progress=Silent()))
    worst_histograms(bundle)


def read_search(folder: Path) -> None:
    from resnet_deploy.pipeline.diagnosing import search_steps

    search_steps(bundle_in(folder))


def read_observations(folder: Path) -> None:
    from resnet_deploy.quantize.observations import merge_observations, read_observations
    from resnet_deploy.quantize.outliers import activation_spread

    observations = merge_observations([read_observations(folder / "seen.safetensors")])
    observations.to_bytes()
    _ = observations.dataset_digest
    for name, histogram in observations.histograms.items():
        activation_spread(name, histogram)


def read_corrections(folder: Path) -> None:
    from resnet_deploy.quantize.bias import read_corrections

    read_corrections(folder / "corrections.safetensors")


def fill_fleet(folder: Path) -> None:
    """Make the bundle that the index names."""
    (folder / "net").mkdir()
    fill_bundle(folder / "net")


def read_fleet(folder: Path) -> None:
    from resnet_deploy.fleet import open_engine, read_fleet

    for engine in read_fleet(folder).engines:
        open_engine(folder, engine)


def read_layers(folder: Path) -> None:
    from resnet_deploy.compiled.inspector import read_inspector

    _use_kernels(read_inspector(artifact.read_bytes(folder / "layers.json")))


def read_plan(folder: Path) -> None:
    from resnet_deploy.compiled.plan import read_plan

    _use_kernels(read_plan(artifact.read_bytes(folder / "model.plan")))


def _use_kernels(graph):
    from resnet_deploy.compiled.lint import Expected, lint

    lint(graph, Expected("tensorrt", "int8", frozenset()))
    fields = (graph, graph.weighted_types(), graph.fused_counts(), graph.activation_bytes(1024))
    msgspec.json.encode([msgspec.to_builtins(field) for field in fields])


# --- records, logs and what long work leaves behind


def _console():
    from rich.console import Console

    return Console(file=io.StringIO(), width=160)


def read_bench_record(folder: Path) -> None:
    from resnet_deploy.bench.records import read_record
    from resnet_deploy.report import data
    from resnet_deploy.report.table import print_table

    record = read_record(folder / "record.json")
    print_table(record, _console())
    msgspec.json.encode(data.bench_data(record))


def read_evaluation_record(folder: Path) -> None:
    from resnet_deploy.bench.evaluation_records import read_evaluation
    from resnet_deploy.report import data
    from resnet_deploy.report.evaluation_table import print_evaluation

    record = read_evaluation(folder / "record.json")
    print_evaluation(record, _console())
    msgspec.json.encode(data.evaluation_data(record))


def read_loadgen_record(folder: Path) -> None:
    from resnet_deploy.bench.loadgen_records import read_loadgen_record
    from resnet_deploy.report.loadgen_table import print_loadgen

    record = read_loadgen_record(folder / "record.json")
    print_loadgen(record, _console())
    msgspec.json.encode(record)


def read_comparison(folder: Path) -> None:
    from resnet_deploy.bench.compare import CompareSpec, compare
    from resnet_deploy.bench.records import read_record
    from resnet_deploy.report.comparison import print_comparison

    old, new = read_record(folder / "old.json"), read_record(folder / "record.json")
    comparison = compare(old, new, CompareSpec(anyway=True))
    print_comparison(comparison, _console())
    msgspec.json.encode(msgspec.to_builtins(comparison))


def add_old_record(folder: Path) -> None:
    (folder / "old.json").write_bytes(seeds.bench_record()[0])


def read_detail(folder: Path) -> None:
    from resnet_deploy.bench.loadgen_logs import read_detail

    msgspec.json.encode(read_detail(folder / "mlperf_log_detail.txt"))


def read_answers(folder: Path) -> None:
    from resnet_deploy.bench.loadgen_logs import read_answers

    read_answers(folder / "mlperf_log_accuracy.json", 2)


def read_notes(folder: Path) -> None:
    from resnet_deploy.pipeline.searching import Notebook

    Notebook(folder / "notes.json", "k").find(("conv1",), with_drop=True)


def read_journal(folder: Path) -> None:
    from resnet_deploy.bench.evaluation import collect
    from resnet_deploy.bench.journal import Journal
    from resnet_deploy.pipeline.evaluating import read_steps, read_subject

    with Journal(folder / "journal") as journal:
        subject = read_subject(journal)
        if subject is not None and (steps := list(read_steps(journal))):
            collected = collect(steps)
            assert len(collected.digests) == steps[-1].end <= subject.images
            assert len(set(collected.kept)) == len(collected.kept) == len(collected.answers[0].top5)


def read_scoring(folder: Path) -> None:
    from resnet_deploy.pipeline.scoring_output import ScoringOutput

    output = ScoringOutput(str(folder), seeds.scoring_request())
    _ = output.missing


def add_scoring_record(folder: Path) -> None:
    (folder / "_scoring.json").write_bytes(seeds.scoring_record()[0])
    (folder / "errors").mkdir()
    (folder / "errors" / "part-00000.parquet").write_bytes(seeds.scores()[0])


def read_interface(folder: Path) -> None:
    from resnet_deploy.integrations.triton.folders import INTERFACE, ModelFolder, origin
    from resnet_deploy.pipeline.packaging import _require_same_interface

    path = folder / "interface.json"
    origin(path.read_bytes())
    wanted = ModelFolder(name="net", config=b"", files={}, version_files={INTERFACE: seeds.interface()[0]})
    _require_same_interface(path, wanted)


# --- what users write


def read_suite(folder: Path) -> None:
    from resnet_deploy.pipeline.suites import read_suite

    _ = read_suite(folder / "suite.toml").builds


def read_labels(folder: Path) -> None:
    from resnet_deploy.labels import labels_from_file

    labels_from_file(folder / "labels.txt", ["a.png", "b.png"], seeds.CARD)


def read_class_names(folder: Path) -> None:
    from resnet_deploy.pipeline.exporting import read_labels

    read_labels(folder / "names.txt")


def read_image(folder: Path) -> None:
    from PIL import Image

    from resnet_deploy.errors import DataError
    from resnet_deploy.images import tensor_from_source

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS
    try:
        for contract in CONTRACTS:
            with contextlib.suppress(DataError) if contract is not CONTRACTS[-1] else contextlib.nullcontext():
                tensor_from_source(folder / "image.png", contract)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


TARGETS = (
    Target("checkpoint, pickled", "weights.pth", seeds.pickled, lambda folder: read_checkpoint(folder / "weights.pth")),
    Target(
        *("checkpoint, safetensors", "weights.safetensors", seeds.safetensors),
        lambda folder: read_checkpoint(folder / "weights.safetensors"),
    ),
    Target("digest of weights", "weights.safetensors", seeds.safetensors, read_digest),
    Target("exported model", "model.onnx", seeds.onnx_model, read_model),
    Target(
        "manifest", "manifest.json", lambda: [_manifest()], read_manifest, prepare=fill_bundle, repair=sealed_manifest
    ),
    Target("golden vectors", "golden.npz", seeds.golden, read_golden, prepare=fill_bundle),
    Target("calibration", "calibration.json", seeds.calibration, read_calibration, prepare=fill_bundle),
    Target("search", "search.json", seeds.search, read_search, prepare=fill_bundle),
    Target("observations", "seen.safetensors", seeds.observations, read_observations),
    Target("corrections", "corrections.safetensors", seeds.corrections, read_corrections),
    Target("fleet", "index.json", lambda: seeds.fleet(_manifest()), read_fleet, prepare=fill_fleet),
    Target("layers of an engine", "layers.json", seeds.inspected, read_layers),
    Target("plan", "model.plan", seeds.plan, read_plan),
    Target("record of bench", "record.json", seeds.bench_record, read_bench_record),
    Target("record of evaluate", "record.json", seeds.evaluation_record, read_evaluation_record),
    Target("record of loadgen", "record.json", seeds.loadgen_record, read_loadgen_record),
    Target("comparison", "record.json", seeds.bench_record, read_comparison, prepare=add_old_record),
    Target("log of LoadGen", "mlperf_log_detail.txt", seeds.detail_logs, read_detail),
    Target("answers of LoadGen", "mlperf_log_accuracy.json", seeds.accuracy_log, read_answers),
    Target("notes of a search", "notes.json", seeds.notes, read_notes),
    Target("journal of evaluate", "journal", seeds.journal, read_journal, repair=sealed_lines),
    Target("record of scoring", "_scoring.json", seeds.scoring_record, read_scoring),
    Target("table of scores", "part-00000.parquet", seeds.scores, read_scoring, prepare=add_scoring_record),
    Target("interface for Triton", "interface.json", seeds.interface, read_interface),
    Target("suite", "suite.toml", seeds.suite, read_suite),
    Target("labels of images", "labels.txt", seeds.labels_file, read_labels),
    Target("names of classes", "names.txt", seeds.labels_file, read_class_names),
    Target("image", "image.png", seeds.images, read_image),
)


@functools.cache
def _manifest() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        fill_bundle(Path(folder))
        return (Path(folder) / "manifest.json").read_bytes()
