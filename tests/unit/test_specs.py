"""What each spec refuses, and the digest that artifacts carry."""

import hashlib
import math
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_deploy import bench_spec, specs
from resnet_deploy.bench_spec import BenchSpec
from resnet_deploy.errors import SpecError
from resnet_deploy.specs import (
    BatchRange,
    BuildSpec,
    CalibrationSpec,
    ExportSpec,
    ModelCard,
    Preprocess,
)
from resnet_deploy.trt_options import TrtOptions


@dataclass(frozen=True)
class Bad:
    """Arguments that a spec refuses, and what the message says."""

    kind: type
    arguments: dict = field(hash=False)
    message: str

    @property
    def id(self):
        return f"{self.kind.__name__}-" + "-".join(f"{name}={value}" for name, value in self.arguments.items())


CARD = {"architecture": "resnet18", "num_classes": 2, "weights": "none", "weights_sha256": "0" * 64}
INT8 = {"backend": "onnxruntime", "precision": "int8"}
FP8 = {"backend": "tensorrt-rtx", "precision": "fp8"}
RTX = {"backend": "tensorrt-rtx", "precision": "fp16"}
BAD = (
    Bad(Preprocess, {"image_size": 0}, "image size 0 is not positive"),
    Bad(Preprocess, {"image_size": -3}, "image size -3 is not positive"),
    Bad(Preprocess, {"image_size": 224, "resize": 223}, "resize 223 is smaller than the crop 224"),
    Bad(Preprocess, {"image_size": 2049, "resize": 4096}, "image size 2049 is too large"),
    Bad(Preprocess, {"resize": 8193}, "resize 8193 is too large"),
    Bad(Preprocess, {"interpolation": "lanczos"}, "unknown interpolation 'lanczos'"),
    Bad(Preprocess, {"std": (0.2, 0.0, 0.2)}, "std .* is not positive"),
    Bad(Preprocess, {"std": (0.2, 0.2, -0.2)}, "std .* is not positive"),
    Bad(Preprocess, {"std": (0.2, math.nan, 0.2)}, "std .* is not positive"),
    Bad(Preprocess, {"std": (math.inf, 0.2, 0.2)}, "std .* is not positive"),
    Bad(Preprocess, {"mean": (0.0, math.nan, 0.0)}, "mean .* is not finite"),
    Bad(Preprocess, {"mean": (0.0, 0.0, -math.inf)}, "mean .* is not finite"),
    Bad(Preprocess, {"dtype": "float32"}, "dtype float32 does not go with layout NHWC"),
    Bad(Preprocess, {"layout": "NCHW"}, "dtype uint8 does not go with layout NCHW"),
    Bad(Preprocess, {"dtype": "int4", "layout": "NHWC"}, "dtype int4 does not go with layout NHWC"),
    Bad(ModelCard, CARD | {"preprocess": Preprocess(), "labels": ("cat",)}, "1 labels for a model of 2 classes"),
    Bad(ModelCard, CARD | {"preprocess": Preprocess(), "folders": ("a", "b", "c")}, "3 folders for a model of 2"),
    Bad(ExportSpec, {"image_size": 0}, "image size 0 is not positive"),
    Bad(ExportSpec, {"resize": 0}, "resize 0 is smaller than the crop 224"),
    Bad(ExportSpec, {"resize": 100}, "resize 100 is smaller than the crop 224"),
    Bad(ExportSpec, {"std": (1.0, 1.0, 0.0)}, "std .* is not positive"),
    Bad(Preprocess, {"interpolation": "area"}, "area goes with MLPerf's mean and std alone"),
    Bad(ExportSpec, {"interpolation": "box"}, "unknown interpolation 'box'"),
    Bad(ExportSpec, {"interpolation": "area"}, "area goes with MLPerf's mean and std alone"),
    Bad(ExportSpec, {"image_size": 2049}, "image size 2049 is too large"),
    Bad(ExportSpec, {"image_size": 10**400}, "image size 1000.* is too large"),
    Bad(ExportSpec, {"resize": 8193}, "resize 8193 is too large"),
    Bad(ExportSpec, {"num_classes": 0}, "0 classes"),
    Bad(ExportSpec, {"num_classes": 100_001}, "number of classes 100001 is too large"),
    Bad(ModelCard, {**CARD, "preprocess": Preprocess(), "num_classes": 0}, "0 classes"),
    Bad(ModelCard, {**CARD, "preprocess": Preprocess(), "num_classes": 100_001}, "classes 100001 is too large"),
    Bad(BatchRange, {"max": 1025}, "batch size 1025 is too large"),
    Bad(BatchRange, {"min": 0}, "batch range 0:8:64 is not ordered"),
    Bad(BatchRange, {"min": 9}, "batch range 9:8:64 is not ordered"),
    Bad(BatchRange, {"opt": 65}, "batch range 1:65:64 is not ordered"),
    Bad(BatchRange, {"min": 3, "opt": 2, "max": 1}, "batch range 3:2:1 is not ordered"),
    Bad(CalibrationSpec, {"method": "mean"}, "unknown calibration method 'mean'"),
    Bad(CalibrationSpec, {"percentile": 50.0}, "percentile 50.0 is not in"),
    Bad(CalibrationSpec, {"percentile": 100.1}, "percentile 100.1 is not in"),
    Bad(CalibrationSpec, {"percentile": math.nan}, "percentile nan is not in"),
    Bad(CalibrationSpec, {"max_images": 0}, "0 calibration images"),
    Bad(BuildSpec, {"backend": "onnxruntime", "precision": "fp4"}, "unknown precision 'fp4'"),
    Bad(BuildSpec, INT8, "INT8 needs calibration data"),
    Bad(BuildSpec, INT8 | {"precision": "fp16", "calibration": CalibrationSpec()}, "fp16 takes no calibration"),
    Bad(BuildSpec, INT8 | {"precision": "fp32", "calibration": CalibrationSpec()}, "fp32 takes no calibration"),
    Bad(BuildSpec, INT8 | {"precision": "bf16", "calibration": CalibrationSpec()}, "bf16 takes no calibration"),
    Bad(BuildSpec, INT8 | {"precision": "fp8"}, "FP8 needs calibration data"),
    Bad(BuildSpec, FP8 | {"calibration": CalibrationSpec(method="entropy")}, "entropy chooses ranges for the even"),
    Bad(BuildSpec, FP8 | {"calibration": CalibrationSpec(method="mse")}, "mse chooses ranges for the even steps"),
    Bad(BuildSpec, FP8 | {"calibration": CalibrationSpec(), "max_drop": 1.0}, "fp8 takes no limit of accuracy"),
    Bad(BuildSpec, INT8 | {"calibration": CalibrationSpec(), "max_drop": -0.5}, "a drop of -0.5 points"),
    Bad(BuildSpec, INT8 | {"calibration": CalibrationSpec(), "max_drop": 100.5}, "a drop of 100.5 points"),
    Bad(BuildSpec, RTX | {"backend": "openvino", "profiles": (BatchRange(1, 8, 64),)}, "openvino has no profiles"),
    Bad(BuildSpec, RTX | {"profiles": (BatchRange(1, 4, 8),)}, "the profiles do not make up 1:8:64"),
    Bad(BuildSpec, RTX | {"trt": TrtOptions(refittable=True)}, "tensorrt-rtx has no --refittable"),
    Bad(BenchSpec, {"batches": ()}, "batch sizes"),
    Bad(BenchSpec, {"batches": (1, 0)}, "batch sizes"),
    Bad(BenchSpec, {"batches": (1, 8, 1)}, "batch sizes"),
    Bad(BenchSpec, {"batches": (1, 1025)}, "batch size 1025 is too large"),
    Bad(BenchSpec, {"rounds": 0}, "0 rounds in 3.0 seconds"),
    Bad(BenchSpec, {"seconds": 0.0}, "20 rounds in 0.0 seconds"),
    Bad(BenchSpec, {"seconds": -1.0}, "20 rounds in -1.0 seconds"),
    Bad(BenchSpec, {"seconds": math.nan}, "20 rounds in nan seconds"),
    Bad(BenchSpec, {"seconds": math.inf}, "20 rounds in inf seconds"),
    Bad(BenchSpec, {"scopes": ()}, "scopes"),
    Bad(BenchSpec, {"scopes": ("host", "host")}, "scopes"),
    Bad(BenchSpec, {"scopes": ("kernel",)}, "unknown scope 'kernel'"),
    Bad(BenchSpec, {"graphs": ()}, "graphs"),
    Bad(BenchSpec, {"graphs": (True, True)}, "graphs"),
    Bad(BenchSpec, {"concurrency": ()}, "callers"),
    Bad(BenchSpec, {"concurrency": (1, 0)}, "callers"),
    Bad(BenchSpec, {"concurrency": (2, 2)}, "callers"),
    Bad(BenchSpec, {"concurrency": (1025,)}, "number of callers 1025 is too large"),
    Bad(BenchSpec, {"rates": (0.0,)}, "rates"),
    Bad(BenchSpec, {"rates": (-1.0,)}, "rates"),
    Bad(BenchSpec, {"rates": (math.nan,)}, "rates"),
    Bad(BenchSpec, {"rates": (1e6,)}, "rates"),
    Bad(BenchSpec, {"rates": (5.0, 5.0)}, "rates"),
    Bad(BenchSpec, {"rates": (1e3, 33.0)}, r"at 33 calls/s, 4.95 fall into a turn of 0.15 s, and pacing takes 5"),
    Bad(BenchSpec, {"rates": (5.0,)}, r"at 5 calls/s, 0.75 fall into a turn of 0.15 s, and pacing takes 5"),
    Bad(BenchSpec, {"scopes": ("device",), "concurrency": (1, 2)}, "device is a part of a call"),
    Bad(BenchSpec, {"scopes": ("h2d", "d2h"), "rates": (5.0,)}, "h2d, d2h is a part of a call"),
)


@pytest.mark.parametrize("bad", BAD, ids=lambda one: one.id)
def test_refused_with_a_hint(bad):
    with pytest.raises(SpecError, match=bad.message) as caught:
        bad.kind(**bad.arguments)
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_every_spec_is_refused_somewhere_above():
    modules = (specs, bench_spec)
    names = [*(module.__name__ for module in modules), Preprocess.__module__]
    everything = [one for module in modules for one in vars(module).values()]
    here = {one for one in everything if isinstance(one, type) and one.__module__ in names}
    assert {bad.kind for bad in BAD} == {one for one in here if issubclass(one, msgspec.Struct)}


GOOD = (
    Preprocess(image_size=1, resize=1),
    Preprocess(dtype="float32", layout="NCHW", mean=(-1.0, 0.0, 2.0), std=(1e-3, 1.0, 255.0)),
    ModelCard(**CARD, preprocess=Preprocess(), labels=("cat", "dog"), folders=("n1", "n2")),
    ExportSpec(architecture="resnet18", weights="none", num_classes=2, image_size=32, resize=32, dtype="float32"),
    Preprocess(image_size=2048, resize=8192),
    ExportSpec(weights="none", num_classes=100_000, image_size=2048),
    BatchRange(1, 1, 1),
    BatchRange(1024, 1024, 1024),
    CalibrationSpec(method="max", percentile=100.0, max_images=1),
    BuildSpec(**INT8, calibration=CalibrationSpec(method="entropy", percentile=50.1)),
    BuildSpec(backend="onnxruntime", precision="fp16", batch=BatchRange(2, 4, 8)),
    BuildSpec(backend="tensorrt-rtx", precision="bf16"),
    BuildSpec(**RTX, batch=BatchRange(1, 4, 8), profiles=(BatchRange(1, 4, 8), BatchRange(1, 1, 2))),
    *(BuildSpec(**INT8, calibration=CalibrationSpec(), max_drop=points) for points in (0.0, 100.0)),
    *(BuildSpec(**FP8, calibration=CalibrationSpec(method=method)) for method in ("max", "percentile", "auto")),
    BenchSpec(batches=(1024, 1), seconds=1e-3, rounds=1, seed=-1),
    BenchSpec(scopes=bench_spec.SCOPES, concurrency=(1024, 1), graphs=(False, True), rates=(1e5,)),
    BenchSpec(seconds=1e5, rounds=20, rates=(1e-3, 1e5)),
    BenchSpec(scopes=("device",), graphs=(False,)),
)


@given(st.floats(1e-3, 100.0), st.integers(1, 100))
def test_what_is_hinted_at_for_a_low_rate_will_do(rate, rounds):
    with pytest.raises(SpecError, match="calls/s") as caught:
        BenchSpec(rates=(rate,), rounds=rounds, seconds=4.9 * rounds / rate)
    words = iter(caught.value.hint.replace(",", "").split())
    given = {word: float(next(words)) for word in words if word.startswith("--")}
    BenchSpec(rates=(rate,), rounds=rounds, seconds=given["--seconds"])
    if "--rounds" in given:
        BenchSpec(rates=(rate,), rounds=int(given["--rounds"]), seconds=4.9 * rounds / rate)
    assert rounds == 1 or "--rounds" in given


@pytest.mark.parametrize("spec", GOOD, ids=lambda one: type(one).__name__)
def test_edge_of_what_is_allowed_survives_json(spec):
    assert msgspec.json.decode(msgspec.json.encode(spec), type=type(spec)) == spec


@pytest.mark.parametrize("spec", GOOD, ids=lambda one: type(one).__name__)
def test_specs_are_frozen_and_refuse_unknown_fields(spec):
    with pytest.raises(AttributeError):
        setattr(spec, spec.__struct_fields__[0], None)
    fields = msgspec.to_builtins(spec) | {"colour": "BGR"}
    with pytest.raises(msgspec.ValidationError, match="unknown field `colour`"):
        msgspec.convert(fields, type(spec))


def test_choices_are_those_of_the_types():
    assert specs.PRECISIONS == ("fp32", "fp16", "bf16", "int8", "fp8")
    assert set(specs.QUANTIZED) < set(specs.PRECISIONS)
    assert set(specs.INTEGER_METHODS) < set(specs.RANGE_METHODS)
    assert specs.RANGE_METHODS == ("max", "percentile", "entropy", "mse")
    assert (*specs.RANGE_METHODS, "auto") == specs.CALIBRATION_METHODS
    assert specs.INTERPOLATIONS == ("nearest", "bilinear", "bicubic", "area")
    assert (specs.INPUT_NAME, specs.OUTPUT_NAME) == ("images", "logits")


# --- the input contract


def test_digest_of_the_default_contract_is_pinned():
    """Every artifact carries it: a change orphans them all, and must be a decision."""
    assert Preprocess().digest == "20530a1ac42ee5c8583a6abbc1350699ce325ed279a1be4ac1ae92b0ec83af04"


def test_digest_is_that_of_the_sorted_json():
    text = (
        '{"color":"RGB","dtype":"uint8","image_size":224,"interpolation":"bilinear","layout":"NHWC",'
        '"mean":[0.485,0.456,0.406],"resize":256,"std":[0.229,0.224,0.225]}'
    )
    assert Preprocess().digest == hashlib.sha256(text.encode()).hexdigest()


CHANGES = (
    {"image_size": 223},
    {"resize": 257},
    {"interpolation": "bicubic"},
    {"mean": (0.485, 0.456, 0.407)},
    {"std": (0.229, 0.224, 0.226)},
    {"dtype": "float32", "layout": "NCHW"},
)


def test_digest_changes_with_every_field():
    digests = {Preprocess(**change).digest for change in ({}, *CHANGES)}
    assert len(digests) == 1 + len(CHANGES)
    # `color` has one value so far, and `layout` goes with `dtype`.
    assert {name for change in CHANGES for name in change} == set(Preprocess.__struct_fields__) - {"color"}


@pytest.mark.parametrize(
    ("contract", "shape"),
    [
        (Preprocess(image_size=32, resize=40), (32, 32, 3)),
        (Preprocess(image_size=32, resize=40, dtype="float32", layout="NCHW"), (3, 32, 32)),
    ],
    ids=["uint8", "float32"],
)
def test_shape_follows_the_layout(contract, shape):
    assert contract.shape == shape


# --- what is exported


@dataclass(frozen=True)
class Sizes:
    image_size: int
    resize: int | None
    usual: int
    expected: int


SIZES = (
    Sizes(224, None, 256, 256),
    Sizes(224, None, 232, 232),
    Sizes(32, None, 256, 37),  # 32 * 256 / 224 = 36.57
    Sizes(448, None, 232, 464),
    Sizes(224, None, 200, 224),  # never smaller than the crop
    Sizes(224, 224, 256, 224),
    Sizes(32, 50, 256, 50),
)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_resize_follows_the_weights_unless_it_is_given(sizes):
    spec = ExportSpec(image_size=sizes.image_size, resize=sizes.resize)
    assert spec.preprocess(sizes.usual).resize == sizes.expected


def test_contract_takes_everything_from_the_request():
    spec = ExportSpec(image_size=8, interpolation="nearest", mean=(0, 0.5, 1), std=(0.1, 0.5, 1), dtype="float32")
    assert spec.preprocess(256) == Preprocess(
        image_size=8,
        resize=9,
        interpolation="nearest",
        mean=(0, 0.5, 1),
        std=(0.1, 0.5, 1),
        dtype="float32",
        layout="NCHW",
    )
    assert ExportSpec().preprocess(256) == Preprocess()


def test_label_of_a_class():
    assert ModelCard(**CARD, preprocess=Preprocess(), labels=("cat", "dog")).label(1) == "dog"
    assert ModelCard(**CARD, preprocess=Preprocess()).label(1) == "class 1"


# --- batch ranges


@given(st.integers(1, 341), st.integers(0, 341), st.integers(0, 341))
def test_batch_range_survives_its_text(least, more, most):
    batch = BatchRange(least, least + more, least + more + most)
    assert BatchRange.parse(str(batch)) == batch


def test_one_number_is_a_fixed_batch():
    assert BatchRange.parse("8") == BatchRange(8, 8, 8)
    assert BatchRange.parse("1:8:64") == BatchRange(1, 8, 64)


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:3:4", "1:b:3", "1.5", "::", "1,8,64"])
def test_text_that_is_no_batch_range(text):
    with pytest.raises(SpecError, match=r"is not min:opt:max") as caught:
        BatchRange.parse(text)
    assert repr(text) in caught.value.message
    assert "1:8:64" in caught.value.hint


@pytest.mark.parametrize("text", ["0", "-1", "8:4:16", "1:8:4"])
def test_batch_range_out_of_order(text):
    with pytest.raises(SpecError, match="is not ordered"):
        BatchRange.parse(text)
