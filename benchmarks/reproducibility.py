"""Whether the same inputs give the same files: built again and again, under conditions that must not matter.

    python benchmarks/reproducibility.py IMAGES [--arch resnet18] [--weights FILE] [--times 12] [-o FILE]

Exports a model and builds an INT8 engine for ONNX Runtime, calibrated on the folder IMAGES; then does so again as it
was, with another hash seed, time zone and encoding, on a single core, and from a copy of the folder whose files were
written in reverse order: each in processes and a folder of its own. Every file is held against the first one's, byte
by byte; where a JSON file differs, the fields are named; a file that only one of both has is told.

Then what compilers make of one graph, each time in a process of its own: ONNX Runtime's optimized graph, OpenVINO's
compiled model, and, where its compiler is installed, TensorRT-RTX's plan of the FP16 graph. The first two answer the
same images each time, and their logits are held against each other. A plan cannot be run without a GPU.

Writes what differed to benchmarks/results/ unless told otherwise.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from resnet_deploy import environment
from resnet_deploy.bench import record_files
from resnet_deploy.bundle import open_bundle
from resnet_deploy.environment import Environment, usable_cpus
from resnet_deploy.openvino_session import open_compiled
from resnet_deploy.ort_session import import_onnxruntime, session_options
from resnet_deploy.pipeline.synthetic import synthetic_images

RESULTS = Path(__file__).parent / "results"
INT8, FP16 = "int8-onnxruntime", "fp16-tensorrt-rtx"
IMAGES = 64  # that compiled models answer


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One file beside that of the first build.

    Attributes:
        file: Its name.
        case: Under which conditions, or by which compiler, it was built again.
        size: Bytes of the first one.
        size_change: By how many bytes the other is longer.
        differing: Bytes that differ, of those that both have; 0 and no change for identical files.
        fields: Of a JSON file: those that differ.
        only_in: Which build has the file, where one has not: ``first`` or ``again``.
        logit: Largest difference of a logit; None where nothing was run.
        classes: Images with another best class.
    """

    file: str
    case: str
    size: int
    size_change: int
    differing: int
    fields: tuple[str, ...] = ()
    only_in: str = ""
    logit: float | None = None
    classes: int | None = None

    @property
    def is_identical(self) -> bool:
        """Whether the files are."""
        return not (self.size_change or self.differing or self.only_in)


class ReproducibilityRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What this script found; each case is held against the first build."""

    schema_version: int = 1
    kind: str = "reproducibility"
    created: str
    environment: Environment
    architecture: str
    images: int
    differences: tuple[Difference, ...]


def compare_files(first: Path, other: Path, case: str) -> Difference:
    """Hold one file against another; one of them may be missing, and then counts as empty."""
    before, after = (path.read_bytes() if path.is_file() else b"" for path in (first, other))
    only_in = "" if first.is_file() and other.is_file() else "first" if first.is_file() else "again"
    common = min(len(before), len(after))
    old, new = (np.frombuffer(data, np.uint8, common) for data in (before, after))
    fields: tuple[str, ...] = ()
    if first.suffix == ".json" and before != after and not only_in:
        fields = tuple(fields_that_differ(json.loads(before), json.loads(after)))
    return Difference(
        file=first.name,
        case=case,
        size=len(before),
        size_change=len(after) - len(before),
        differing=int(np.count_nonzero(old != new)),
        fields=fields,
        only_in=only_in,
    )


def compare_folders(first: Path, other: Path, case: str) -> Iterator[Difference]:
    """Hold every file of one folder, and of those in it, against the other's."""
    names = {path.relative_to(folder) for folder in (first, other) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(names):
        yield compare_files(first / name, other / name, case)


def fields_that_differ(first: Any, other: Any, path: str = "") -> Iterator[str]:
    """Name the fields of two JSON values that differ, such as ``measured.latency_s``."""
    if isinstance(first, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*first, *other]):
            yield from fields_that_differ(first.get(name), other.get(name), f"{path}.{name}" if path else name)
    elif first != other:
        yield path


def cases(images: Path, place: Path) -> dict[str, dict[str, Any]]:
    """Conditions that must not matter: what `subprocess` is told, and the images to calibrate on."""
    reversed_images = place / "reversed" / images.name
    for path in sorted((path for path in images.rglob("*") if path.is_file()), reverse=True):
        copy = reversed_images / path.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    core = {min(usable_cpus())}
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # text is ASCII unless told otherwise
    elsewhere = {"PYTHONHASHSEED": "4242", "TZ": "Asia/Kathmandu"} | ascii_only
    return {
        "first": {"images": images},
        "again": {"images": images},
        "hash seed, time zone, encoding": {"images": images, "env": elsewhere},
        "one core": {
            "images": images,
            "env": {"OMP_NUM_THREADS": "1"},
            "preexec_fn": lambda: os.sched_setaffinity(0, core),
        },
        "files in another order": {"images": reversed_images},
    }


def build(folder: Path, asked: argparse.Namespace, case: dict[str, Any]) -> None:
    """Export and build in a folder, under the conditions of a case."""
    folder.mkdir()
    export = ["export", "--arch", asked.arch, "--weights", str(asked.weights or "none"), "--num-classes", "10"]
    command(folder, case, *export, "--image-size", "32", "--resize", "32", "-o", "model.onnx")
    built = ["build", "model.onnx", "--int8", "--backend", "onnxruntime", "--calib", str(case["images"])]
    command(folder, case, *built, "-o", INT8)


def command(folder: Path, case: dict[str, Any], *arguments: str) -> None:
    """Run `resnet-deploy`, or a part of this script, in a process; the hash seed is 0 where the case has no other."""
    settings = os.environ | {"PYTHONHASHSEED": "0"} | case.get("env", {})
    module = ["-m", "resnet_deploy"] if arguments[0] != "compile" else [str(Path(__file__).resolve())]
    subprocess.run(
        [sys.executable, *module, *arguments],
        cwd=folder,
        env=settings,
        preexec_fn=case.get("preexec_fn"),
        stdout=subprocess.DEVNULL,
        check=True,
    )


def build_differences(asked: argparse.Namespace, place: Path) -> Iterator[Difference]:
    """Build under every condition, and hold each file against that of the first."""
    first = place / "first"
    for number, (name, case) in enumerate(cases(asked.images.resolve(), place).items()):
        folder = first if name == "first" else place / f"build-{number}"
        build(folder, asked, case)
        if folder != first:
            yield from compare_folders(first, folder, name)


def compile_differences(asked: argparse.Namespace, place: Path) -> Iterator[Difference]:
    """Compile the first build's INT8 graph again and again."""
    graph = place / "first" / INT8 / "model.onnx"
    for backend in ("onnxruntime", "openvino", "tensorrt-rtx"):
        if environment.installed_version(backend) is None:
            continue
        folders = [place / f"{backend}-{number}" for number in range(asked.times)]
        for folder in folders:
            folder.mkdir()
            command(folder, {}, "compile", backend, str(graph), str(place / "first" / "model.onnx"))
        for folder in folders[1:]:
            found = compare_files(folders[0] / "compiled", folder / "compiled", backend)
            logits = [one / "logits.npy" for one in (folders[0], folder)]
            if logits[0].exists():
                old, new = (np.load(path) for path in logits)
                found = msgspec.structs.replace(
                    found,
                    logit=float(np.abs(new - old).max()),
                    classes=int((new.argmax(1) != old.argmax(1)).sum()),
                )
            yield found


def compile_here(backend: str, graph: Path, model: Path) -> None:
    """Compile once, into the current folder: ``compiled``, and ``logits.npy`` where it can be run."""
    if backend == "tensorrt-rtx":
        arguments = ["build", str(model), "--fp16", "--backend", backend, "-o", FP16]
        command(Path(), {}, *arguments)
        shutil.copyfile(Path(FP16, "model.plan"), "compiled")
        return
    images = synthetic_images(open_bundle(graph.parent).manifest.card.preprocess, IMAGES)
    if backend == "openvino":
        compiled = open_compiled(graph)
        Path("compiled").write_bytes(compiled.export_model().getvalue())
        (logits,) = compiled({0: images}).values()
    else:
        ort = import_onnxruntime()
        options = session_options(ort, 0)
        options.optimized_model_filepath = "compiled"
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    np.save("logits.npy", logits)


def table(record: ReproducibilityRecord) -> list[str]:
    """Lines of a Markdown table: a row for each file and case."""
    rows = [("file", "built again", "bytes that differ", "logits"), ("---",) * 4]
    by_file = itertools.groupby(sorted(record.differences, key=lambda one: one.file), key=lambda one: one.file)
    for file, group in by_file:
        every = list(group)
        if file == "compiled":
            rows += [
                _compiled(backend, list(again)) for backend, again in itertools.groupby(every, lambda one: one.case)
            ]
        elif all(one.is_identical for one in every):
            rows.append((file, "under all conditions", "none", ""))
        else:
            rows += [(file, one.case, _bytes(one), "") for one in every]
    return [f"| {' | '.join(row)} |" for row in rows]


def _compiled(backend: str, again: list[Difference]) -> tuple[str, str, str, str]:
    """What one compiler made of the graph, time and again."""
    other = [one for one in again if not one.is_identical]
    differing = "none"
    if other:
        differing = f"in {len(other)} of {len(again)}: up to {_bytes(max(other, key=lambda one: one.differing))}"
    logits = [one.logit for one in again if one.logit is not None]
    classes = max((one.classes or 0 for one in again), default=0)
    told = f"at most {max(logits):.2g}; {classes} of {IMAGES} classes" if logits else ""
    return f"what {backend} compiles", f"{len(again)} times", differing, told


def _bytes(one: Difference) -> str:
    if one.only_in:
        return f"only in the {'first' if one.only_in == 'first' else 'other'} build"
    if one.is_identical:
        return "none"
    if one.fields:
        return f"fields {', '.join(one.fields)}"
    longer = f", {one.size_change:+,} in length" if one.size_change else ""
    return f"{one.differing:,} of {one.size:,}{longer}"


def main() -> None:
    """Build, compare, print a table, keep the record."""
    if sys.argv[1:2] == ["compile"]:
        compile_here(sys.argv[2], *map(Path, sys.argv[3:]))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path, metavar="IMAGES", help="a folder to calibrate on")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--weights", type=Path, help="of ten classes at 32 pixels; none for untrained ones")
    parser.add_argument("--times", type=int, default=12, help="how often each compiler runs")
    parser.add_argument("-o", "--out", type=Path)
    asked = parser.parse_args()
    asked.weights = asked.weights and asked.weights.resolve()
    created = record_files.created_now()
    with tempfile.TemporaryDirectory() as folder:
        found = (*build_differences(asked, Path(folder)), *compile_differences(asked, Path(folder)))
    record = ReproducibilityRecord(
        created=created,
        environment=environment.collect(),
        architecture=asked.arch,
        images=sum(path.is_file() for path in asked.images.rglob("*")),
        differences=found,
    )
    path = asked.out or RESULTS / f"reproducibility-{record_files.file_stamp(created)}.json"
    record_files.write(record, path)
    print("\n".join(table(record)))
    print(f"record: {path}")


if __name__ == "__main__":
    main()
