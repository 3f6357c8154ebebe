"""Networks made once, and what tests do with the small deployment that the whole run shares."""

import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from resnet_deploy import artifact
from resnet_deploy.bundle import MANIFEST, seal
from resnet_deploy.cli import main
from resnet_deploy.protocols import Silent
from resnet_deploy.specs import BatchRange, BuildSpec, ExportSpec


@pytest.fixture(scope="module")
def paths(deployment):
    """The files of the deployment's data."""
    return sorted(deployment.data.rglob("*.png"))


@pytest.fixture(scope="module")
def images(deployment, paths):
    """The same, prepared."""
    from resnet_deploy.images import batch_from_images

    return batch_from_images(paths, deployment.card.preprocess)


@pytest.fixture(scope="session")
def resnet18():
    """A ResNet-18 of ten classes, calibrated and quantized in every form."""
    from int8_subjects import UINT8, make

    return make("resnet18", UINT8)


@pytest.fixture(scope="session")
def digits(once):
    """A slim ResNet-18 trained on handwritten digits, and those that were held out."""
    pytest.importorskip("torch", reason="it trains the network")
    pytest.importorskip("sklearn", reason="the digits are in scikit-learn")
    from digits import train_digits

    return once("digits", train_digits)


@pytest.fixture
def copy_engine(deployment, tmp_path, rewrite):
    """Copy one of the engines, its files as links to the same content, with changes to its manifest."""

    def copy(precision="int8", *, to=None, change=None):
        target = to or tmp_path / "engines" / deployment.engines[precision].name
        shutil.copytree(deployment.engines[precision], target, copy_function=os.link)
        if change is not None:
            manifest = json.loads((target / MANIFEST).read_text())
            change(manifest)
            rewrite(target / MANIFEST, seal(manifest))
        return target

    return copy


@pytest.fixture(scope="session")
def rewrite():
    """Give a file that may be a link to the session's a content of its own: (path, bytes)."""

    def run(path, data):
        path.unlink()
        path.write_bytes(data)

    return run


@pytest.fixture(scope="session")
def flip_bit(rewrite):
    """Flip one bit in the middle of a file: (path)."""

    def run(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        rewrite(path, bytes(data))

    return run


@pytest.fixture(scope="session")
def reseal(rewrite):
    """Put the digest of a file that was changed into the manifest of its bundle: (path, name)."""

    def run(path, name):
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"][name] = artifact.sha256_file(path / name)
        rewrite(path / MANIFEST, seal(manifest))

    return run


@pytest.fixture
def users_memory():
    """Return an environment in which memory is allocated as users have it, and not as the Makefile has it for speed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}


@pytest.fixture
def invoke():
    """Run a command in this process."""

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def float_engines(once):
    """Engines of the float32 contract by batch: any, and a fixed one."""
    pytest.importorskip("torch", reason="it exports the model")
    pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")
    return once("float-engines", make_float_engines)


def make_float_engines(folder):
    """Export an untrained ResNet-18 and build it; return the engines by batch."""
    from resnet_deploy.pipeline.building import BuildInputs, build
    from resnet_deploy.pipeline.exporting import export

    labels = tuple(f"class {number}" for number in range(5))
    spec = ExportSpec(
        architecture="resnet18", weights="none", num_classes=5, image_size=32, resize=32, labels=labels, dtype="float32"
    )
    model = export(spec, folder / "resnet18.onnx", Silent()).path
    engines = {}
    for batch in ("1:8:16", "4"):
        wanted = BuildSpec(backend="onnxruntime", precision="fp32", batch=BatchRange.parse(batch))
        output = folder / f"batch-{batch.replace(':', '-')}"
        engines[batch] = build(BuildInputs(model, output=output), wanted, Silent()).bundle.path
    return engines


@pytest.fixture
def package(invoke, tmp_path):
    """Package an engine into ``tmp_path/models`` under the name `net`: (engine, options) -> repository."""

    def run(engine, *options):
        done = invoke("package", engine, "--triton", tmp_path / "models", "--name", "net", *options)
        assert done.exit_code == 0, done.output
        return tmp_path / "models"

    return run


@pytest.fixture(scope="session")
def uncorrected(deployment, slim_model, once):
    """A slim INT8 engine whose biases are not corrected, which takes as long again as the rest of a build."""

    def make(folder):
        from resnet_deploy.pipeline.building import BuildInputs, build

        calibration = msgspec.structs.replace(deployment.int8_spec.calibration, correct_biases=False)
        spec = msgspec.structs.replace(deployment.int8_spec, calibration=calibration)
        inputs = BuildInputs(slim_model, folder / "net", str(deployment.calibration))
        return build(inputs, spec, Silent()).bundle.path

    return once("uncorrected", make)


@pytest.fixture
def case(deployment, slim_model, uncorrected, tmp_path, monkeypatch):
    """A build whose inputs may be changed: a `Case` of the slim engine without corrections."""
    from build_case import Case

    return Case((slim_model, deployment.calibration), uncorrected, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def misfits(deployment, tmp_path_factory):
    """The model under cards of another input contract, as files of the session."""
    import onnx

    folder, model = tmp_path_factory.mktemp("misfits"), onnx.load(deployment.model)
    contracts = {"smaller.onnx": {"image_size": 24}, "normalised.onnx": {"dtype": "float32", "layout": "NCHW"}}
    for name, contract in contracts.items():
        card = json.loads(model.metadata_props[0].value)
        card["preprocess"] |= contract
        misfit = onnx.ModelProto()
        misfit.CopyFrom(model)
        misfit.metadata_props[0].value = json.dumps(card)
        onnx.save(misfit, folder / name)
    return folder


@pytest.fixture
def workplace(deployment, misfits, copy_engine, draw_image, tmp_path, monkeypatch):
    """A current folder with a model, its weights and an INT8 engine in engines/, images, and things that are broken."""
    place = tmp_path / "work"
    monkeypatch.chdir(tmp_path)
    (place / "engines").mkdir(parents=True)
    os.link(deployment.model, place / "engines" / "resnet18.onnx")
    os.link(deployment.reference, place / "engines" / "resnet18.safetensors")
    copy_engine("int8", to=place / "engines" / "resnet18-int8-onnxruntime")
    for path in misfits.iterdir():
        os.link(path, place / path.name)
    for name in ("data", "calibration"):
        shutil.copytree(deployment.folder / name, place / name, copy_function=os.link)
    monkeypatch.chdir(place)
    draw_image(Path("image.png"), 1)
    Path("empty").mkdir()
    Path("truncated.onnx").write_bytes(deployment.model.read_bytes()[:100_000])
    Path("damaged.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    Path("notes.txt").write_text("not a model")
    for number, name in enumerate(("cat", "dog", "cow")):
        draw_image(Path("unknown", name, "0.png"), number)
    for folder in ("corrupt/one", "corrupt-calibration"):
        draw_image(Path(folder, "0.png"), 2)
        Path(folder, "1.png").write_bytes(Path(folder, "0.png").read_bytes()[:70])
    Path("few-labels.txt").write_text("cat\ndog\n")
    Path("blank-label.txt").write_text("cat\n\ndog\n")
    Path("no-labels.txt").write_text("")
    Path("binary-labels.txt").write_bytes(b"\xff\xfe\x00")
    return place


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A few small images that differ, to be scored."""
    from scoring_images import draw_pictures

    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def fill(pictures, tmp_path):
    """Lay out images to be scored: (count) -> folder."""
    from scoring_images import lay_out

    return lambda count, name="photos": lay_out(pictures, tmp_path / name, count)


@pytest.fixture
def line(deployment, tmp_path):
    """A command line that scores a folder: (images, options) -> arguments."""

    def make(source, *options):
        engine = deployment.engines["fp32"]
        return ["predict", str(source), "--out", str(tmp_path / "out"), "--engine", str(engine), *map(str, options)]

    return make
