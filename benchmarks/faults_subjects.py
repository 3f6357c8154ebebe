"""The commands that faults befall, and what a folder must be like after one: whatever is in it, whole."""

import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from faults_children import run

from resnet_deploy.bench.evaluation_records import read_evaluation
from resnet_deploy.bench.records import read_record
from resnet_deploy.bundle import MANIFEST, open_bundle
from resnet_deploy.fleet import INDEX, read_fleet

IMAGES: Final = {"calibration": 8, "flat": 24}
_NOTES: Final = ("*.search", "*.journal", "[!.]*.lock")  # to go on from, and against others
_STAMP: Final = re.compile(r"-\d{8}T\d{6}Z")
_OF_THE_CLOCK: Final = {"latency_s", "speedup", "sha256", "manifest_sha256", "environment", "notes", "files"}


@dataclass(frozen=True)
class Subject:
    """A command that writes something.

    Attributes:
        name: Of it.
        line: What is typed in an empty folder; ``BASE`` is where its inputs are.
        earlier: A command that has been there before, of another request for the same place; empty for none.
        exact: Whether a second run writes the same, times left out; a search does not, which goes by times.
    """

    name: str
    line: str
    earlier: str = ""
    exact: bool = True

    def words(self, base: Path, *, earlier: bool = False) -> list[str]:
        """The command line, with its inputs in ``base``."""
        return [word.replace("BASE", str(base)) for word in (self.earlier if earlier else self.line).split()]


_BUILD: Final = "build BASE/resnet18.onnx --backend onnxruntime -o engine"
_EXPORT: Final = "export --arch resnet18 --weights none --image-size 32 --resize 32"
_SCORE: Final = "predict BASE/flat --engine BASE/fp32 --out scores --shard-size 4 --workers 1"
SUBJECTS: Final = {
    one.name: one
    for one in (
        Subject("export", f"{_EXPORT} --num-classes 10 -o model.onnx", f"{_EXPORT} --num-classes 7 -o model.onnx"),
        Subject("build --fp32", f"{_BUILD} --fp32", f"{_BUILD} --fp32 --batch 1:2:4"),
        Subject("build --int8", f"{_BUILD} --int8 --calib BASE/calibration", f"{_BUILD} --fp32 --batch 1:2:4"),
        Subject(
            "calibrate",
            "calibrate BASE/resnet18.onnx --calib BASE/calibration --shard 1/2 -o seen.safetensors",
            "calibrate BASE/resnet18.onnx --calib BASE/calibration --shard 2/2 -o seen.safetensors",
        ),
        Subject(
            "merge",
            "merge BASE/one.safetensors BASE/two.safetensors -o seen.safetensors",
            "merge BASE/one.safetensors -o seen.safetensors",
        ),
        Subject(
            "build --max-drop",
            f"{_BUILD} --int8 --calib BASE/calibration --data BASE/flat --max-drop 4.5",
            f"{_BUILD} --fp32 --batch 1:2:4",
            exact=False,
        ),
        Subject(
            "bench", "bench BASE/fp32 --no-pytorch --seconds 0.1 --rounds 2 --batches 1 --data BASE/flat -o results"
        ),
        Subject("evaluate", "evaluate BASE/fp32 BASE/int8 --data BASE/flat --batch 2 -o results"),
        Subject(
            "package",
            "package BASE/int8 --triton models --name net",
            "package BASE/fp32 --triton models --name net",
        ),
        Subject("predict --out", _SCORE),
        Subject(
            "prebuild",
            "prebuild BASE/resnet18.onnx --precisions fp32,fp16 --backends onnxruntime --jobs 1 -o fleet",
            "prebuild BASE/resnet18.onnx --precisions fp32 --backends onnxruntime --jobs 1 --batch 1:2:4 -o fleet",
        ),
    )
}
_BASE: Final = (
    f"{_EXPORT} --num-classes 10 -o resnet18.onnx",
    "build resnet18.onnx --backend onnxruntime --fp32 -o fp32",
    "build resnet18.onnx --backend onnxruntime --int8 --calib calibration -o int8",
    "calibrate resnet18.onnx --calib calibration --shard 1/2 -o one.safetensors",
    "calibrate resnet18.onnx --calib calibration --shard 2/2 -o two.safetensors",
)


def make_base(folder: Path) -> None:
    """Draw images, and make the model, engines and observations that the commands read."""
    from PIL import Image

    folder.mkdir()
    for kind, count in IMAGES.items():
        (folder / kind).mkdir()
        draw = np.random.default_rng(zlib.crc32(kind.encode()))
        for number in range(count):
            coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / kind / f"{number:02}.png")
    for line in _BASE:
        ended = run(line.split(), folder)
        if ended.status:
            raise RuntimeError(f"{line}: {ended.said}")


@dataclass(frozen=True)
class Findings:
    """What was found in a folder.

    Attributes:
        broken: What is half-written and bears the name of something whole, with what is wrong.
        left: Hidden files and folders, locks, and notes to go on from: what a killed command leaves behind.
        content: What every whole thing holds, times left out, by name, as digests.
    """

    broken: tuple[str, ...]
    left: tuple[str, ...]
    content: dict[str, str]


def examine(folder: Path) -> dict[str, Any]:
    """Look at everything in a folder; to be called in a child, since engines are run (``Findings``' fields)."""
    broken: list[str] = []
    content: dict[str, str] = {}
    for name, check in _claims(folder):
        try:
            content |= {f"{name}{below}": digest(value) for below, value in check().items()}
        except Exception as error:  # noqa: BLE001, PERF203 - of whatever kind: it is not whole
            broken.append(f"{name}: {type(error).__name__}: {error}")
    hidden = [path for path in folder.rglob(".*") if not any(one.startswith(".") for one in _above(path, folder))]
    notes = [path for names in _NOTES for path in folder.rglob(names)]
    left = sorted(path.relative_to(folder).as_posix() for path in (*hidden, *notes))
    return {"broken": broken, "left": left, "content": content}


def digest(value: Any) -> str:
    """Digest bytes, or what is JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _above(path: Path, folder: Path) -> Sequence[str]:
    return path.relative_to(folder).parts[:-1]


def _claims(folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield all that says of itself, by its name, that it is whole, with what tells whether it is."""
    triton = folder / "models"
    for path in sorted(folder.rglob("*")):
        name, parts = path.relative_to(folder).as_posix(), path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts) and triton not in path.parents:
            continue
        if triton in path.parents:
            if path.parent == triton and path.is_dir():  # Triton takes folders for models, and passes over files
                yield name, lambda path=path: _triton_model(path)
        elif (path / MANIFEST).is_file():
            yield name, lambda path=path: _bundle(path)
        elif path.is_file() and not (path.parent / MANIFEST).is_file() and not name.endswith(".lock"):
            check = next((check for ending, check in _FILES.items() if path.name.endswith(ending)), None)
            untimed = _STAMP.sub("", name)
            yield untimed, lambda path=path, check=check: {"": check(path)} if check is not None else _unknown(path)


def _unknown(path: Path) -> dict[str, Any]:
    raise ValueError(f"nobody knows what {path.name} is")


def _without(value: Any, names: set[str]) -> Any:
    """Leave fields out, at every depth."""
    if isinstance(value, dict):
        return {key: _without(inner, names) for key, inner in value.items() if key not in names}
    return [_without(inner, names) for inner in value] if isinstance(value, list) else value


def _bundle(path: Path) -> dict[str, Any]:
    from resnet_deploy.engine import load
    from resnet_deploy.pipeline.replaying import replay_golden

    bundle = open_bundle(path)
    bundle.verify_files()
    with load(path, threads=1) as engine:
        difference = replay_golden(engine)
    if np.max(difference.max_difference) > 0:  # the very machine and library that recorded the answers
        raise ValueError(f"its answers differ from those recorded by {np.max(difference.max_difference)}")
    manifest = _without(json.loads((path / MANIFEST).read_bytes()), _OF_THE_CLOCK)
    # What a search found, and the timing cache, go by times.
    files = {f"/{name}": (path / name).read_bytes() for name in bundle.manifest.files if name != "search.json"}
    return {"": manifest, **files}


def _triton_model(path: Path) -> dict[str, Any]:
    from resnet_deploy.integrations.triton.folders import CONFIG, origin

    if path.name.startswith("."):
        raise ValueError("Triton takes hidden folders for models, too")
    if origin((path / CONFIG).read_bytes()) != "ours":
        raise ValueError(f"{CONFIG} is not what was written")
    versions = [version for version in path.iterdir() if version.name.isdecimal()]
    if not versions:
        raise ValueError("no version")
    for version in versions:
        manifest = json.loads((version / MANIFEST).read_bytes())
        engine = (version / manifest["engine"]).read_bytes()
        if digest(engine) != manifest["files"][manifest["engine"]]:
            raise ValueError(f"version {version.name} has another engine than its manifest")
    return {f"/{file.relative_to(path)}": file.read_bytes() for file in path.rglob("*") if file.is_file()}


def _onnx(path: Path) -> Any:
    from resnet_deploy.pipeline.source import read_source

    return read_source(path).sha256


def _safetensors(path: Path) -> Any:
    from safetensors import safe_open

    from resnet_deploy.quantize.observations import read_observations

    with safe_open(path, "np") as file:
        if "weights_sha256" in (file.metadata() or {}) and path.with_suffix(".onnx").name == "model.onnx":
            return [[name, digest(file.get_tensor(name).tobytes())] for name in sorted(file.keys())]
    return digest(read_observations(path).to_bytes())


def _record(path: Path) -> Any:
    record = read_record(path)
    return [[engine.name, engine.sha256, repr(engine.outputs)] for engine in record.engines]


def _evaluation(path: Path) -> Any:
    record = read_evaluation(path)
    return [record.dataset.digest, *([engine.name, repr(engine.outputs)] for engine in record.engines)]


def _html(path: Path) -> Any:
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("it does not end")
    return ""


def _journal(path: Path) -> Any:
    from resnet_deploy.bench.evaluation import Step
    from resnet_deploy.bench.evaluation import Subject as Evaluated

    with path.open("rb") as file:  # not by Journal, which would remove an empty one, and cut off what is not whole
        lines = [line for line in file if line.endswith(b"\n")]
    for number, line in enumerate(lines):
        checksum, _, content = line[:-1].partition(b" ")
        if int(checksum, 16) != zlib.crc32(content):
            raise ValueError(f"line {number} is damaged, and not the last")
        msgspec.json.decode(content, type=Step if number else Evaluated)
    return ""


def _search(path: Path) -> Any:
    return bool(json.loads(path.read_bytes())["points"]) and ""


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()


def _scoring(path: Path) -> Any:
    record = json.loads(path.read_bytes())
    return [record["request"], record["scored"], record["bad"]]


def _index(path: Path) -> Any:
    fleet = read_fleet(path.parent)
    for engine in fleet.engines:
        bundle = open_bundle(path.parent / engine.folder)
        bundle.verify_files()  # whole, though an index of before may name another, which loading then refuses
    return [[engine.folder, engine.precision, engine.size_bytes] for engine in fleet.engines]


# By what their names end in, the longest first.
_FILES: Final[dict[str, Callable[[Path], Any]]] = {
    "_scoring.json": _scoring,
    INDEX: _index,
    ".onnx": _onnx,
    ".safetensors": _safetensors,
    ".html": _html,
    ".journal": _journal,
    ".search": _search,
    ".parquet": _parquet,
}


def _json(path: Path) -> Any:
    return _evaluation(path) if "-evaluation-" in path.name else _record(path)


_FILES[".json"] = _json
