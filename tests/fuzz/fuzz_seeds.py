"""Sound files of every kind that is read, small and made in milliseconds; no engine was built and nothing measured."""

import hashlib
import io
import json
import sys
from pathlib import Path

import msgspec
import numpy as np

from resnet_deploy import artifact
from resnet_deploy.bundle import HashChain, Manifest, Measured, Requirements, seal
from resnet_deploy.driver import GpuProbe
from resnet_deploy.environment import Cpu, Environment
from resnet_deploy.quantize.observations import Observations, Observed
from resnet_deploy.quantize.observers import Histogram
from resnet_deploy.specs import BuildSpec, CalibrationSpec, ModelCard, Preprocess

UNIT = Path(__file__).parents[1] / "unit"
sys.path.append(str(UNIT))  # records and plans made by hand are there

SPEC = Preprocess(image_size=8, resize=9)
CLASSES = 3
CARD = ModelCard(
    architecture="resnet18",
    num_classes=CLASSES,
    weights="x",
    weights_sha256="1" * 64,
    labels=("a", "b", "c"),
    preprocess=SPEC,
)
TENSOR = "conv1.relu"
ENVIRONMENT = Environment(
    os="Linux", kernel="6", python="3", machine="x86_64", cpu=Cpu("", 1), memory_bytes=0, gpu=GpuProbe(), libraries=()
)
MEASURED = Measured(by="engine", inputs="images", images=1, agreement=1.0, sqnr_db=1.0, max_difference=0.0)
CONTENTS = ("model.onnx", "golden.npz", "calibration.json", "search.json", "observations.safetensors")


def manifest_of(folder: Path) -> bytes:
    """A manifest of an INT8 engine of ONNX Runtime's with what lies in ``folder``."""
    files = {name: artifact.sha256_file(folder / name) if (folder / name).is_file() else "0" * 64 for name in CONTENTS}
    manifest = Manifest(
        name="net",
        card=CARD,
        spec=BuildSpec(backend="onnxruntime", precision="int8", calibration=CalibrationSpec()),
        engine="model.onnx",
        files=files,
        chain=HashChain(weights="", onnx="", lowered="", engine=""),
        cache_key="",
        requires=Requirements(library="onnxruntime", version="1.2.3"),
        toolchain={"onnx": "1"},
        environment=ENVIRONMENT,
        measured=MEASURED,
    )
    return seal(msgspec.to_builtins(manifest))


def state_dict():
    """A few tensors, as a network has them; one is a view."""
    import torch

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    return {"conv1.weight": torch.randn(2, 3, 3, 3, generator=generator), "fc.weight": base.T, "n": torch.tensor(7)}


def pickled() -> list[bytes]:
    """Checkpoints as ``torch.save`` writes them now, and as it used to."""
    import torch

    found = []
    for content in (state_dict(), {"state_dict": {f"module.{k}": v for k, v in state_dict().items()}, "epoch": 3}):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            found.append(file.getvalue())
    return found


def safetensors() -> list[bytes]:
    """The same as safetensors."""
    from safetensors.torch import save

    return [save({name: one.contiguous() for name, one in state_dict().items()}, {"weights_sha256": "1" * 64})]


def corrections() -> list[bytes]:
    """Corrections of biases."""
    from safetensors.numpy import save

    return [save({"conv1": np.ones(4, np.float32)})]


def onnx_model() -> list[bytes]:
    """A network of two layers with the card of an exported one."""
    from onnx import helper, parser

    from resnet_deploy.onnx_files import attach_card, bytes_from_onnx, initializers_digest, onnx_from_bytes

    proto = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (uint8[N, 8, 8, 3] images) => (float[N, 3] logits)
        <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3] b = {0, 0, 0}>
        {
            shift = Constant <value = float {0.5}> ()
            pixels = Cast <to = 1> (images)
            moved = Add (pixels, shift)
            means = ReduceMean <axes = [1, 2], keepdims = 0> (moved)
            logits = Gemm <transB = 1> (means, w, b)
        }""")
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(helper.make_tensor(tensor.name, 1, list(tensor.dims), np.ones(tensor.dims, np.float32)))
    model = onnx_from_bytes(proto.SerializeToString(), name="seed")
    attach_card(model, msgspec.structs.replace(CARD, initializers_sha256=initializers_digest(model.graph)))
    return [bytes_from_onnx(model)]


def golden() -> list[bytes]:
    """Two images and their logits, as ``numpy.savez`` writes them."""
    file = io.BytesIO()
    np.savez(file, images=np.zeros((2, *SPEC.shape), np.uint8), logits=np.zeros((2, CLASSES), np.float32))
    return [file.getvalue()]


def histogram() -> Histogram:
    """Of a thousand normal values."""
    one = Histogram()
    one.update(np.random.default_rng(0).standard_normal(1000, np.float32))
    return one


def observations() -> list[bytes]:
    """Of one tensor over one image."""
    model = Observed(onnx_sha256="1" * 64, weights_sha256="2" * 64, preprocess_sha256="3" * 64, graph_sha256="4" * 64)
    return [Observations(model, "train", {"a.png": "5" * 64}, 1, (), {TENSOR: histogram()}).to_bytes()]


def calibration() -> list[bytes]:
    """Of the same tensor."""
    from resnet_deploy.quantize.calibrate import Calibration, CalibrationSource, TensorCalibration

    source = CalibrationSource(
        dataset="train", dataset_sha256="", images=1, preprocess_sha256="", weights_sha256="", onnx_sha256=""
    )
    ranges = {"max": (-3.0, 3.0), "percentile": (-2.0, 2.0), "entropy": (-2.0, 2.0), "mse": (-2.0, 2.0)}
    tensor = TensorCalibration(
        observed=(-3.0, 3.0), method="percentile", ranges=ranges, values=1000, histogram_sha256=""
    )
    return [Calibration(source=source, spec=CalibrationSpec(), tensors={TENSOR: tensor}).to_json()]


def search() -> list[bytes]:
    """A search of two steps."""
    from resnet_deploy.quantize.search import Point, Search

    points = [
        Point(in_float=(), noise=1.0, cost=1.0, drop=2.0),
        Point(in_float=("conv1",), noise=0.1, cost=2.0, drop=0.1),
    ]
    found = Search(
        max_drop=0.5,
        metric="top-1",
        cost="seconds",
        dataset="val",
        dataset_sha256="",
        images=9,
        sensitivity={"conv1": points[1]},
        steps=tuple(points),
    )
    return [msgspec.json.encode(found)]


def notes() -> list[bytes]:
    """What a search has measured so far."""
    return [b'{"key":"k","points":[{"in_float":["conv1"],"noise":0.5,"cost":1.5,"drop":0.25}]}']


def journal() -> list[bytes]:
    """An evaluation's: its subject and one step of two images."""
    from fuzz_mutators import sealed_lines

    from resnet_deploy.bench.evaluation import Step, Subject
    from resnet_deploy.bench.records import Outputs

    subject = Subject(
        version="1",
        created="2026-01-01T00:00:00Z",
        environment=ENVIRONMENT,
        weights_sha256="",
        classes=3,
        preprocess_sha256="",
        engines=(("net", "2" * 64, "CPU"), ("other", "5" * 64, "CPU")),
        threads=1,
        batch=2,
        images=2,
        files_sha256="",
    )
    step = Step(
        session=1,
        end=2,
        kept=(0, 1),
        digests=("3" * 64, "4" * 64),
        answers=(
            Outputs(top5=((0, 1, 2), (1, 0, 2))),
            Outputs(top5=((0, 1, 2), (1, 0, 2)), noise=(0.1, 0.1), signal=(1.0, 1.0), max_difference=(0.1, 0.1)),
        ),
        seconds=1.0,
        waiting=0.5,
        inferring=0.25,
    )
    return [sealed_lines(msgspec.json.encode(subject) + b"\n" + msgspec.json.encode(step) + b"\n")]


def bench_record() -> list[bytes]:
    """Of two engines on eight images, and of everything that there can be."""
    from record_factory import ENGINES, make_record

    from resnet_deploy.bench import record_files

    small = {"batches": (1,), "rounds": 2, "calls": 3}
    return [record_files.encode(make_record(ENGINES[:2], images=count, **small)) for count in (8, 0)]


def evaluation_record() -> list[bytes]:
    """Of one engine on two images."""
    from resnet_deploy.bench import record_files
    from resnet_deploy.bench.evaluation_records import EvaluatedEngine, EvaluationCost, EvaluationRecord
    from resnet_deploy.bench.records import DatasetRecord, DecodeTimes, Outputs

    engine = EvaluatedEngine(
        name="net",
        backend="onnxruntime",
        precision="int8",
        size_bytes=9,
        sha256="2" * 64,
        device="CPU",
        role="engine",
        in_sample=False,
        outputs=Outputs(top5=((0, 1, 2), (1, 0, 2))),
    )
    record = EvaluationRecord(
        created="2026-01-01T00:00:00Z",
        environment=ENVIRONMENT,
        architecture="resnet18",
        weights_sha256="",
        preprocess=SPEC,
        threads=1,
        batch=2,
        workers=1,
        dataset=DatasetRecord(name="val", digest="", images=2, labels=(0, 1)),
        engines=(engine,),
        cost=EvaluationCost(sessions=1, seconds=1.0, waiting=0.5, inferring=0.25),
        decoding=DecodeTimes(workers=1, images=2, decode=100.0, engines={"net": (50.0, 40.0)}),
    )
    return [record_files.encode(record)]


def loadgen_record() -> list[bytes]:
    """Of one test, whose log LoadGen wrote."""
    from loadgen_factory import make_record, run_of

    from resnet_deploy.bench import record_files

    return [record_files.encode(make_record((run_of("server-valid"),)))]


def detail_logs() -> list[bytes]:
    """Logs of LoadGen's."""
    return [path.read_bytes() for path in sorted((UNIT / "loadgen_logs").glob("*-valid.txt"))]


def accuracy_log() -> list[bytes]:
    """Answers to two images."""
    entry = {"seq_id": 0, "qsl_idx": 0, "data": "0100000000000000", "token_count": 0}
    return [json.dumps([entry, entry | {"seq_id": 1, "qsl_idx": 1}]).encode()]


def inspected() -> list[bytes]:
    """What the engine inspector says."""
    from compiled_factory import inspected_engine, int8_layers

    return [json.dumps(inspected_engine(version, int8_layers(version))).encode() for version in (10, 11)]


def plan() -> list[bytes]:
    """A plan of TensorRT-RTX."""
    from compiled_factory import PROGRAM, plan_bytes

    return [plan_bytes(PROGRAM)]


def fleet(manifest: bytes) -> list[bytes]:
    """An index of one engine, of that manifest."""
    from resnet_deploy.fleet import Fleet, FleetEngine

    engine = FleetEngine(
        folder="net",
        backend="onnxruntime",
        precision="int8",
        requires=Requirements(library="onnxruntime"),
        size_bytes=9,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        measured=MEASURED,
    )
    return [msgspec.json.encode(Fleet(onnx_sha256="", weights_sha256="", engines=(engine,)))]


def suite() -> list[bytes]:
    """The suites that are shipped."""
    return [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "benchmarks").glob("*.toml"))]


def labels_file() -> list[bytes]:
    """Lists of two images in three forms."""
    return [b"a.png 0\nb.png c\n", b"ImageId,PredictionString\na,b 1 2 3 4\nb,c 1 2 3 4\n", b"a.png\t1\nb.png\t2\n"]


def scoring_record() -> list[bytes]:
    """Of a folder of scores of two images."""
    from resnet_deploy.pipeline.scoring_output import ScoringRecord

    return [msgspec.json.encode(ScoringRecord(request=scoring_request()))]


def scoring_request():
    """What was asked for."""
    from resnet_deploy.pipeline.scoring_plan import ScoringRequest

    return ScoringRequest(
        engine="net", engine_sha256="", source="/i", images=2, list_sha256="", shard_size=2, top=1, logits=False
    )


def scores() -> list[bytes]:
    """A table of no rows and two errors."""
    from resnet_deploy.integrations.pyarrow import errors_to_parquet

    about = {"scoring_sha256": scoring_request().digest, "bad": "2"}
    return [errors_to_parquet({"a.png": "damaged", "b.png": "damaged"}, about)]


def interface() -> list[bytes]:
    """What a folder for Triton says of what goes in and out."""
    return [json.dumps({"kind": "engine", "labels": ["a"], "input": {"dims": [8, 8, 3]}}).encode()]


def images() -> list[bytes]:
    """The formats that are read and the odd modes, with EXIF, a colour profile, text and frames."""
    from PIL import Image, PngImagePlugin

    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image, exif, text = Image.fromarray(pixels), Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010E] = 6, "described"
    text.add_text("Comment", "x" * 100, zip=True)
    profile = {"icc_profile": b"profile" * 20}
    wanted = [
        ("JPEG", image, {"exif": exif, **profile}),
        ("JPEG", image.convert("CMYK"), {"progressive": True}),
        ("PNG", image, {"exif": exif, "pnginfo": text, **profile}),
        ("PNG", image.convert("P"), {"transparency": 3}),
        ("PNG", Image.fromarray(pixels[..., 0].astype(np.uint16) * 256), {}),
        ("PNG", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("WEBP", image, {"exif": exif, "save_all": True, "append_images": [image.rotate(180)]}),
        ("GIF", image.convert("P"), {"save_all": True, "append_images": [image.convert("P").rotate(180)]}),
        ("BMP", image, {}),
        ("PPM", image, {}),
        ("TIFF", image, {"exif": exif, "compression": "tiff_lzw"}),
        ("TIFF", image.convert("F"), {}),
        ("TIFF", image.convert("1"), {"compression": "group4"}),
    ]
    Image.init()
    wanted += [(form, image, {"exif": exif}) for form in ("AVIF", "JPEG2000") if form in Image.SAVE]
    found = []
    for form, picture, options in wanted:
        file = io.BytesIO()
        picture.save(file, form, **options)
        found.append(file.getvalue())
    return found
