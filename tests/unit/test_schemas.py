"""Artifacts of earlier schema versions are read as what they were; those of later ones are refused by their number.

The files in ``schemas/`` are real: written by the versions of this package that had these schemas.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from resnet_deploy import specs
from resnet_deploy.bundle import CALIBRATION, MANIFEST, Bundle, open_bundle
from resnet_deploy.contract import Preprocess
from resnet_deploy.errors import BundleError
from resnet_deploy.fleet import INDEX, read_fleet
from resnet_deploy.pipeline.kept_calibration import read_calibration
from resnet_deploy.schemas import UPGRADE, later_version
from resnet_deploy.trt_options import TrtOptions

KEPT = Path(__file__).with_name("schemas")


@pytest.fixture
def first(tmp_path) -> Bundle:
    """The manifest and the calibration of an INT8 engine, as they were first written."""
    for name, kept in ((MANIFEST, "manifest-1.json"), (CALIBRATION, "calibration-1.json")):
        shutil.copy(KEPT / kept, tmp_path / name)
    return open_bundle(tmp_path)


def test_the_first_manifest_says_what_it_said(first):
    manifest = first.manifest
    assert (manifest.schema_version, manifest.name, manifest.engine) == (1, "r-int8-onnxruntime", "model.onnx")
    assert manifest.card.preprocess.digest == "deb0f567a3c216488341cb8aacb524c4f2db962a9db50f30079534ada14b1c1f"
    assert (manifest.spec.backend, manifest.spec.precision, str(manifest.spec.batch)) == (
        "onnxruntime",
        "int8",
        "1:8:64",
    )
    assert (manifest.requires.library, manifest.requires.int8_dot_product) == ("onnxruntime", True)
    assert (manifest.measured.images, manifest.measured.agreement) == (8, 1.0)
    assert manifest.measured.sqnr_db == 30.994757396473588  # as the file has it: nothing is computed


def test_what_it_did_not_have_yet_is_said_to_be_absent(first):
    manifest = first.manifest
    assert (manifest.spec.profiles, manifest.spec.max_drop, manifest.spec.trt) == ((), None, TrtOptions())
    assert (manifest.measured.speedup, manifest.requires.later_versions) == (None, False)


def test_an_altered_one_is_refused_as_a_new_one_is(first):
    text = first.manifest_path.read_text()
    first.manifest_path.write_text(text.replace('"resize": 32', '"resize": 40'))
    with pytest.raises(BundleError, match="was altered"):
        open_bundle(first.path)


def test_the_first_calibration_has_one_method_for_all_tensors(first):
    calibration = read_calibration(first)
    fields = json.loads((first.path / CALIBRATION).read_text())
    assert fields["schema_version"] == 1
    assert len(calibration.tensors) == len(fields["tensors"]) == 30
    for name, tensor in fields["tensors"].items():
        assert calibration.method_of(name) == "percentile"
        assert list(calibration.range_of(name)) == tensor["ranges"]["percentile"]
    assert calibration.range_of("conv1.relu") == (0.0, 1.5693359375)


def test_the_second_has_one_for_each(first):
    fields = json.loads((first.path / CALIBRATION).read_text()) | {"schema_version": 2}
    fields["tensors"]["conv1.relu"]["method"] = "entropy"
    (first.path / CALIBRATION).write_text(json.dumps(fields))
    calibration = read_calibration(first)
    assert calibration.range_of("conv1.relu") == (0.0, 1.4453125)


@dataclass(frozen=True)
class Later:
    """An artifact that may have come from a later version, and the error of reading it."""

    name: str
    kept: str  # where in a folder it lies
    read: object


LATER = (
    Later("manifest", MANIFEST, lambda bundle: open_bundle(bundle.path)),
    Later("calibration", CALIBRATION, read_calibration),
    Later("fleet", INDEX, lambda bundle: read_fleet(bundle.path)),
)


@pytest.mark.parametrize("later", LATER, ids=lambda later: later.name)
def test_later_schemas_are_refused_by_their_number_whatever_their_form(first, later):
    (first.path / later.kept).write_text(json.dumps({"schema_version": 99, "tensors": "of another form"}))
    with pytest.raises(BundleError, match=r"schema_version (of \S+ )?(is )?99") as refused:
        later.read(first)
    assert UPGRADE in refused.value.hint
    (first.path / later.kept).write_text(json.dumps({"schema_version": 1, "tensors": "of another form"}))
    with pytest.raises(BundleError, match="is damaged"):
        later.read(first)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff", '{"schema_version": "2"}', "[" * 100_000], ids=range(6))
def test_what_does_not_tell_its_version_is_left_to_its_reader(text):
    assert later_version(text.encode("latin-1"), 1) is None
    assert later_version('{"schema_version": 2}', 1) == 2


# What forbids unknown fields in a bundle's manifest or in a model card: a reader of this schema refuses one more.
STRICT = {
    Preprocess: "image_size resize interpolation mean std color dtype layout",
    specs.ModelCard: ("architecture num_classes weights weights_sha256 initializers_sha256 labels folders preprocess"),
    specs.BatchRange: "min opt max",
    specs.CalibrationSpec: "method percentile max_images equalize correct_biases",
    specs.BuildSpec: "backend precision batch profiles trt calibration max_drop",
}


@pytest.mark.parametrize("kind", STRICT, ids=lambda kind: kind.__name__)
def test_a_field_more_is_a_schema_more(kind):
    """With a field more, raise ``bundle.SCHEMA_VERSION`` and the C++ runtime's, and keep a manifest of this schema."""
    assert kind.__struct_config__.forbid_unknown_fields
    assert kind.__struct_fields__ == tuple(STRICT[kind].split())
