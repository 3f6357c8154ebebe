"""`inspect` on engines of TensorRT-RTX as their compiler makes them: kernels, lint, and plans that cannot be read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")
try:
    import tensorrt_rtx  # noqa: F401 - to see whether it loads
except (ImportError, OSError) as reason:  # OSError: installed, but its libraries do not load
    pytest.skip(f"TensorRT-RTX cannot be imported: {reason}", allow_module_level=True)

from resnet_deploy import artifact
from resnet_deploy.bundle import LAYERS, MANIFEST, seal
from resnet_deploy.cli import main
from resnet_deploy.quantize import qdq

KERNELS = 24  # of a ResNet-18 in FP16: 20 convolutions, normalisation, two poolings, the classifier
Invoke = Callable[..., Result]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ResNet-18 for 32 pixels in FP16, in INT8, and in INT8 of the form that is for another target."""
    folder = tmp_path_factory.mktemp("engines")
    model = folder / "resnet18.onnx"
    done = invoke("export", "--arch", "resnet18", "--weights", "none", "--image-size", 32, "-o", model)
    assert done.exit_code == 0, done.output
    built = {"fp16": ("--fp16",), "int8": ("--int8", "--calib", "random"), "bad": ("--int8", "--calib", "random")}
    for name, flags in built.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "bad":
                patch.setitem(qdq.FORMS, "tensorrt-rtx", qdq.FORMS["tensorrt"])
            done = invoke("build", model, *flags, "--backend", "tensorrt-rtx", "-o", folder / name)
        assert done.exit_code == 0, done.output
    return {name: folder / name for name in built}


def change(engine: Path, name: str, data: bytes) -> None:
    """Replace or add a file, under a manifest that agrees."""
    (engine / name).write_bytes(data)
    manifest = json.loads((engine / MANIFEST).read_text())
    manifest["files"][name] = artifact.sha256_file(engine / name)
    (engine / MANIFEST).write_bytes(seal(manifest))


@pytest.fixture
def changed(engines: dict[str, Path], tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Copy the FP16 engine, with one file changed."""

    def copy(name: str, data: bytes) -> Path:
        folder = tmp_path / "changed"
        folder.mkdir()
        for file in engines["fp16"].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        change(folder, name, data)
        return folder

    return copy


def test_kernels_for_a_person(engines):
    result = invoke("inspect", engines["fp16"], "--layers")
    assert result.exit_code == 0, result.output
    assert re.search(rf"^kernels +{KERNELS} by the plan *$", result.output, re.MULTILINE)
    assert "20 float16 x float16 -> float16; 1 float16 x float16 -> float32" in result.output
    assert "MB of activations per image at batch 8; no timing" in result.output
    assert "layer1.0.conv1 " in result.output  # the graph's layers are listed, too
    assert "add, relu" in result.output
    short = invoke("inspect", engines["fp16"]).output
    assert re.search(rf"^kernels +{KERNELS} by the plan *$", short, re.MULTILINE)
    assert "add, relu" not in short


def test_kernels_as_json(engines):
    compiled = json.loads(invoke("inspect", engines["fp16"], "--json").output)["compiled"]
    assert (compiled["kernels"], compiled["source"], compiled["batch"]) == (KERNELS, "the plan", 8)
    assert compiled["targets"] == ["8.6", "8.9", "12.0"]
    assert compiled["weighted_types"] == {"float16 x float16 -> float16": 20, "float16 x float16 -> float32": 1}
    assert compiled["fused"]["add"] == 8
    assert compiled["activation_bytes"] > 8 * 32 * 32 * 3
    last = compiled["layers"][-1]
    assert (last["kind"], last["outputs"][0]["dtype"], last["outputs"][0]["shape"]) == (
        "matrix multiply",
        "float32",
        [-1, 1000],
    )


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_engines_as_we_build_them_are_clean(engines, name):
    result = invoke("inspect", engines[name], "--lint")
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("lint: every kernel is as expected")
    assert json.loads(invoke("inspect", engines[name], "--lint", "--json").output)["findings"] == []
    assert json.loads(invoke("inspect", engines[name], "--json").output)["findings"] is None


def test_another_form_is_found(engines):
    result = invoke("inspect", engines["bad"], "--lint")
    assert result.exit_code == 1, result.output
    findings = [line for line in result.stdout.splitlines() if "; " in line and ": " in line and "->" in line]
    assert any(line.startswith("layer1.0.conv1: results: int8 x int8 -> float32") for line in findings)
    assert "one scale per tensor" in result.stdout
    assert "residual sums: the sum is in no convolution" in result.stdout
    error, hint = result.stderr.splitlines()
    assert "findings: kernels are not as expected" in error
    assert hint.startswith("hint: ")
    found = json.loads(invoke("inspect", engines["bad"], "--lint", "--json").stdout)["findings"]
    assert sum(one["rule"] == "results" for one in found) == 20
    assert sum(one["rule"] == "residual sums" for one in found) == 8


def test_without_lint_nothing_is_judged(engines):
    assert invoke("inspect", engines["bad"], "--layers").exit_code == 0


def test_a_plan_that_cannot_be_read_says_so(changed, engines):
    plan = (engines["fp16"] / "model.plan").read_bytes()
    engine = changed("model.plan", plan.replace(b"version = 5", b"version = 7"))
    result = invoke("inspect", engine, "--layers")
    assert result.exit_code == 0, result.output
    assert "unread: the plan cannot be read: it has no program of a whole network" in result.output
    assert "layer1.0.conv1 " in result.output  # what the graph says is shown all the same
    found = json.loads(invoke("inspect", engine, "--json").output)
    assert (found["compiled"], found["findings"]) == (None, None)
    assert "no program of a whole network" in found["not_compiled"]
    refused = invoke("inspect", engine, "--lint")
    assert refused.exit_code == 2
    assert "there are no kernels to lint: the plan cannot be read" in refused.stderr


def conv(name: str, result: str) -> dict[str, object]:
    """A layer as the documentation of TensorRT 10 has it."""
    half = {"Dimensions": [-1, 8, 4, 4], "Format/Datatype": "Half"}
    tensors = {"Inputs": [{"Name": "images", **half}], "Outputs": [{"Name": name, **half, "Format/Datatype": result}]}
    return {"Name": name, "LayerType": "CaskConvolution", "Weights": {"Type": "Half", "Count": 64}, **tensors}


@pytest.mark.parametrize(("result", "code"), [("Half", 0), ("Float", 1)])
def test_what_the_inspector_said_goes_before_the_plan(changed, result, code):
    said = {"Layers": [conv("stem", result), conv("fc", "Half")], "Bindings": ["images"]}
    engine = changed(LAYERS, json.dumps(said).encode())
    done = invoke("inspect", engine, "--lint")
    assert done.exit_code == code, done.output
    assert re.search(r"^kernels +2 by the inspector of TensorRT 10 *$", done.output, re.MULTILINE)
    assert ("stem: results: float16 x float16 -> float32" in done.output) == bool(code)


def test_names_alone_are_not_enough(changed):
    engine = changed(LAYERS, b'{"Layers": ["conv1 + relu", "fc"], "Bindings": ["images"]}')
    assert "unread: the layers cannot be read: the engine keeps their names alone" in invoke("inspect", engine).output
    assert invoke("inspect", engine, "--lint").exit_code == 2
