"""The manifest of an engine bundle: what it keeps, and what each kind of damage is called."""

import json
import os
from dataclasses import dataclass, field

import msgspec
import pytest

from resnet_deploy import artifact
from resnet_deploy.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    HashChain,
    Manifest,
    Measured,
    Requirements,
    find_bundles,
    open_bundle,
    seal,
    write_manifest,
)
from resnet_deploy.driver import Gpu, GpuProbe
from resnet_deploy.environment import Cpu, Environment, Library
from resnet_deploy.errors import BundleError, FileError
from resnet_deploy.specs import BatchRange, BuildSpec, CalibrationSpec, ModelCard, Preprocess

FILES = {"model.onnx": b"an engine", "golden.npz": b"inputs and answers", "build.log": b"", "calibration.json": b"{}"}
HERE = Environment(
    os="Synthetic Linux 1",
    kernel="0.0.0-synthetic",
    python="3.12.0",
    machine="x86_64",
    cpu=Cpu("Synthetic CPU 9000", 8, ("avx2", "avx512_vnni")),
    memory_bytes=32 * 2**30,
    gpu=GpuProbe((Gpu("Synthetic GPU", "8.9", 24 * 2**30, "0"),), driver="13.0"),
    libraries=(Library("onnxruntime", "0.0.2"),),
)


def make_manifest(**changes):
    """Make a manifest in which no field has its default."""
    manifest = Manifest(
        name="net-int8",
        card=ModelCard(
            architecture="resnet18",
            num_classes=2,
            weights="mine.pth",
            weights_sha256="a" * 64,
            labels=("cat", "Hund 🐕"),
            folders=("n01", "n02"),
            preprocess=Preprocess(image_size=32, resize=40, interpolation="bicubic", mean=(0.1, 0.2, 0.3)),
        ),
        spec=BuildSpec(
            backend="onnxruntime",
            precision="int8",
            batch=BatchRange(2, 4, 16),
            calibration=CalibrationSpec(method="entropy", percentile=99.0, max_images=7),
        ),
        engine="model.onnx",
        files={name: artifact.sha256_bytes(data) for name, data in FILES.items()},
        chain=HashChain(weights="a" * 64, onnx="b" * 64, calibration="c" * 64, lowered="d" * 64, engine="e" * 64),
        cache_key="f" * 64,
        requires=Requirements(
            library="onnxruntime", version="0.0.2", compute_capabilities=("8.9",), int8_dot_product=True
        ),
        toolchain={"onnx": "0.0.1"},
        environment=HERE,
        measured=Measured(
            by="engine",
            inputs="images",
            images=8,
            agreement=0.875,
            sqnr_db=30.5,
            max_difference=0.25,
            latency_s=0.001,
        ),
        notes=("a note",),
    )
    return msgspec.structs.replace(manifest, **changes)


@pytest.fixture
def bundle_folder(tmp_path):
    """Write a whole bundle; return its folder."""
    folder = tmp_path / "net-int8"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    write_manifest(folder, make_manifest())
    return folder


def edit(folder, change):
    """Change the manifest as the dictionary that its JSON is, as a program that knows of its digest would."""
    path = folder / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_bytes(seal(data))


def test_manifest_comes_back_as_it_was_written(bundle_folder):
    bundle = open_bundle(bundle_folder)
    assert bundle.manifest == make_manifest()
    assert bundle.manifest.schema_version == SCHEMA_VERSION
    assert bundle.engine_path.read_bytes() == b"an engine"
    assert bundle.golden_path.read_bytes() == b"inputs and answers"
    bundle.verify_files()


def test_manifest_is_readable_by_people_and_by_any_json_reader(bundle_folder):
    text = (bundle_folder / MANIFEST).read_text()
    assert json.loads(text)["card"]["labels"] == ["cat", "Hund 🐕"]
    assert text.count("\n") > 50


@pytest.mark.parametrize("name", FILES)
def test_changed_byte_is_found(bundle_folder, name):
    (bundle_folder / name).write_bytes(FILES[name] + b"!")
    with pytest.raises(BundleError, match=rf"net-int8: {name} was altered: .* files\.{name} in the manifest") as caught:
        open_bundle(bundle_folder).verify_files()
    assert "resnet-deploy build" in caught.value.hint


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_found(bundle_folder, name):
    (bundle_folder / name).unlink()
    with pytest.raises(BundleError, match=rf"net-int8: {name} is missing") as caught:
        open_bundle(bundle_folder).verify_files()
    assert "resnet-deploy build" in caught.value.hint


def test_folder_in_the_place_of_a_file(bundle_folder):
    (bundle_folder / "model.onnx").unlink()
    (bundle_folder / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        open_bundle(bundle_folder).verify_files()


def test_a_manifest_that_none_can_be_is_not_read(bundle_folder):
    os.truncate(bundle_folder / MANIFEST, 1 << 40)
    with pytest.raises(FileError, match=r"manifest\.json is larger than 32 MiB"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        # A model with a graph with an initializer with an entry of external data, whose key is `location`.
        (b"\x3a\x10\x2a\x0e\x6a\x0c\x0a\x08location\x12\x00", "keeps its weights in other files"),
        (b"\x3a\x7f\x2a\x0e\x6a\x0c\x0a\x08location\x12\x00", "is a damaged ONNX file: it was cut short"),
    ],
)
def test_weights_that_no_digest_covers_are_refused(bundle_folder, engine, words):
    (bundle_folder / "model.onnx").write_bytes(engine)
    edit(bundle_folder, lambda data: data["files"].update({"model.onnx": artifact.sha256_bytes(engine)}))
    with pytest.raises(BundleError, match=rf"net-int8: model\.onnx {words}"):
        open_bundle(bundle_folder).verify_files()


def test_file_that_nobody_listed_is_no_damage(bundle_folder):
    (bundle_folder / "README").write_text("notes")
    open_bundle(bundle_folder).verify_files()


@dataclass(frozen=True)
class Damage:
    """A change to one field of the manifest, by its path, and what the message must say."""

    path: str
    value: object
    message: str
    name: str = field(default="")

    @property
    def id(self):
        return self.name or f"{self.path}={self.value!r}"

    def __call__(self, data):
        *parents, last = self.path.split("/")
        for key in parents:
            data = data[key]
        if self.value is None:
            del data[last]
        else:
            data[last] = self.value


DAMAGES = (
    Damage("name", 7, r"`str`, got `int` - at `\$\.name`"),
    Damage("name", None, "missing required field `name`"),
    Damage("files", [], r"`object`, got `array` - at `\$\.files`"),
    Damage("files/build.log", 1.5, r"at `\$\.files\[\.\.\.\]`"),
    Damage("chain/engine", None, r"missing required field `engine` - at `\$\.chain`"),
    Damage("card/preprocess/dtype", "int4", r"Invalid enum value 'int4' - at `\$\.card\.preprocess\.dtype`"),
    Damage("card/labels", ["cat"], "1 labels for a model of 2 classes"),
    Damage("card/preprocess/std", [0, 1, 1], "std .* is not positive"),
    Damage("spec/precision", "int2", r"at `\$\.spec\.precision`"),
    Damage("spec/batch/min", 0, "batch range 0:4:16 is not ordered"),
    Damage("spec/calibration", None, "INT8 needs calibration data"),
    Damage("requires/int8_dot_product", "yes", r"`bool`, got `str` - at `\$\.requires\.int8_dot_product`"),
    Damage("measured/agreement", "all", r"`float`, got `str` - at `\$\.measured\.agreement`"),
    Damage("schema_version", "1", r"`int`, got `str` - at `\$\.schema_version`"),
    Damage("schema_version", None, "missing required field `schema_version`"),
    Damage("engine", "model.plan", r"has no digest for model\.plan"),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.id)
def test_damaged_field_is_named(bundle_folder, damage):
    edit(bundle_folder, damage)
    with pytest.raises(BundleError, match=damage.message) as caught:
        open_bundle(bundle_folder)
    assert caught.value.message.startswith(str(bundle_folder))
    assert MANIFEST in caught.value.message
    assert "resnet-deploy build" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"not JSON", b'{"schema_version": 1', b'\xff{"schema_version": 1}'],
    ids=repr,
)
def test_broken_manifest(bundle_folder, text):
    (bundle_folder / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=r"net-int8: manifest\.json is damaged: "):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("where", [b'"name":', b'"unknown":'])
def test_manifest_nested_beyond_what_python_recurses_into(bundle_folder, where):
    nested = b'{"schema_version": 1, ' + where + b"[" * 5000 + b"]" * 5000 + b"}"
    (bundle_folder / MANIFEST).write_bytes(nested)
    with pytest.raises(BundleError, match=r"net-int8: manifest\.json is damaged: "):
        open_bundle(bundle_folder)


def test_no_flipped_bit_changes_what_a_manifest_says(bundle_folder):
    """Only white space may differ, and an unknown name for the digest's own field is no digest."""
    whole = (bundle_folder / MANIFEST).read_bytes()
    refused = 0
    for position in range(len(whole)):
        for bit in (0x01, 0x80):
            broken = bytearray(whole)
            broken[position] ^= bit
            (bundle_folder / MANIFEST).write_bytes(broken)
            try:
                assert open_bundle(bundle_folder).manifest == make_manifest()
                assert whole[position : position + 1].isspace()
            except BundleError:
                refused += 1
    assert refused > 1.5 * len(whole)


@dataclass(frozen=True)
class Alteration:
    """Another value for a field that any value would fit."""

    path: str
    value: object


ALTERATIONS = (
    Alteration("card/preprocess/resize", 41),
    Alteration("card/preprocess/mean", [0.1, 0.2, 0.4]),
    Alteration("card/labels", ["Hund 🐕", "cat"]),
    Alteration("chain/weights", "0" * 64),
    Alteration("measured/agreement", 1.0),
    Alteration("notes", []),
    Alteration("said_by_nobody", 1),
    Alteration("sha256", "0" * 64),
    Alteration("sha256", None),
)


@pytest.mark.parametrize("alteration", ALTERATIONS, ids=lambda one: f"{one.path}={one.value}")
def test_altered_manifest_is_refused(bundle_folder, alteration):
    fields = json.loads((bundle_folder / MANIFEST).read_text())
    *parents, last = alteration.path.split("/")
    place = fields
    for key in parents:
        place = place[key]
    place[last] = alteration.value
    (bundle_folder / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(BundleError, match=r"manifest\.json was altered: its SHA-256 differs from its field sha256"):
        open_bundle(bundle_folder)


def test_manifest_may_be_laid_out_anew(bundle_folder):
    fields = json.loads((bundle_folder / MANIFEST).read_text())
    (bundle_folder / MANIFEST).write_text(json.dumps(dict(reversed(fields.items())), indent=4))
    assert open_bundle(bundle_folder).manifest == make_manifest()


def test_later_schema_is_refused_before_its_fields_are_read(bundle_folder):
    (bundle_folder / MANIFEST).write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1, "all": "new"}))
    with pytest.raises(BundleError, match=r"schema_version is 2, this version reads up to 1") as caught:
        open_bundle(bundle_folder)
    assert "upgrade" in caught.value.hint


OUTSIDE = ("", ".", "..", "../x", "/etc/passwd", "a/b", "./model.onnx", "model.onnx/", "..//model.onnx", "a\0b")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("place", ["files", "engine"])
def test_name_that_leaves_the_bundle_is_refused(bundle_folder, name, place):
    def change(data):
        data["files"][name] = "0" * 64
        if place == "engine":
            data["engine"] = name

    edit(bundle_folder, change)
    with pytest.raises(BundleError, match=r"manifest\.json names .* which is not a file of the bundle"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("place", ["", "chain", "requires", "measured", "environment", "environment/cpu"])
def test_unknown_field_is_tolerated_where_it_only_informs(bundle_folder, place):
    """A later release may say more within the same schema."""

    def change(data):
        for key in filter(None, place.split("/")):
            data = data[key]
        data["said_by_a_later_release"] = 1

    edit(bundle_folder, change)
    assert open_bundle(bundle_folder).manifest == make_manifest()


@pytest.mark.parametrize("place", ["card", "card/preprocess", "spec", "spec/batch", "spec/calibration"])
def test_unknown_field_is_refused_where_it_would_change_the_meaning(bundle_folder, place):
    """An input contract of which a part is not understood must not be followed."""

    def change(data):
        for key in place.split("/"):
            data = data[key]
        data["said_by_a_later_release"] = 1

    edit(bundle_folder, change)
    where = r"\$\." + place.replace("/", r"\.")
    with pytest.raises(BundleError, match=f"unknown field `said_by_a_later_release` - at `{where}`"):
        open_bundle(bundle_folder)


def test_what_is_no_bundle(tmp_path):
    (tmp_path / "file").write_text("")
    for name, reason in (("gone", "does not exist"), ("file", "is not an engine bundle")):
        with pytest.raises(FileError, match=f"{name} {reason}") as caught:
            open_bundle(tmp_path / name)
        assert caught.value.hint
    with pytest.raises(FileError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)


def test_bundles_are_found_by_name_and_unfinished_ones_are_not(tmp_path):
    for name in ("b", "a", ".a.x7.tmp", "other"):
        (tmp_path / name).mkdir()
        if name != "other":
            write_manifest(tmp_path / name, make_manifest())
    (tmp_path / "file").write_text("")
    assert [path.name for path in find_bundles(tmp_path)] == ["a", "b"]
    assert list(find_bundles(tmp_path / "gone")) == []
