"""`export --preprocess` as its user types it, and the contract's name wherever an artifact is described."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import EXPORT, assert_refused

pytest.importorskip("onnxruntime", reason="the engines are ONNX Runtime's")

from resnet_deploy.cli import main
from resnet_deploy.images import batch_from_images
from resnet_deploy.ort_session import open_session
from resnet_deploy.pipeline.source import read_source


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same untrained network behind MLPerf's contract, by dtype of its input."""
    folder = tmp_path_factory.mktemp("models")
    paths = {dtype: folder / f"{dtype}.onnx" for dtype in ("uint8", "float32")}
    for dtype, path in paths.items():
        line = f"{EXPORT} --num-classes 10 --preprocess mlperf --input {dtype} -o {path}"
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 0, result.output
    return paths


def test_mlperfs_contract_is_set_as_one_and_named(invoke, models):
    contract = json.loads(invoke("inspect", models["uint8"], "--json").output)["card"]["preprocess"]
    assert (contract["interpolation"], contract["image_size"], contract["resize"]) == ("area", 32, 36)
    assert [value * 255 for value in contract["mean"]] == pytest.approx([123.68, 116.78, 103.94], rel=1e-15)
    assert "MLPerf's: shorter side to 36 (area), centre crop 32" in invoke("inspect", models["uint8"]).output


def test_pixels_and_normalised_tensors_give_the_same_logits(models, draw_image, tmp_path):
    draw_image(tmp_path / "a.png", 3)
    logits = {}
    for dtype, path in models.items():
        images = batch_from_images([tmp_path / "a.png"], read_source(path).card.preprocess)
        assert images.dtype == dtype
        (logits[dtype],) = open_session(path).run(None, {"images": images})
    # The graph's subtraction is the same in single precision, and it divides by 1; only fusions may round otherwise.
    np.testing.assert_allclose(logits["uint8"], logits["float32"], rtol=1e-5, atol=1e-6)
    assert np.abs(logits["uint8"]).max() > 1e-3


@pytest.fixture
def contract_of(invoke, monkeypatch):
    """The contract that a command line asks for, without exporting: (options) -> Preprocess."""

    class Asked(Exception):  # noqa: N818
        pass

    def stop(spec, *_):
        raise Asked(spec.preprocess(232))

    monkeypatch.setattr("resnet_deploy.pipeline.exporting.export", stop)

    def run(options=""):
        error = invoke(*f"{EXPORT} {options}".split()).exception
        assert isinstance(error, Asked)
        return error.args[0]

    return run


def test_torchvisions_is_the_default_and_can_be_asked_for(contract_of):
    assert contract_of() == contract_of("--preprocess torchvision")
    assert (contract_of().name, contract_of().resize) == ("torchvision", 33)
    assert contract_of("--preprocess mlperf").name == "mlperf"
    assert contract_of("--interpolation bicubic").name == "custom"


@pytest.mark.parametrize("option", ["--resize 40", "--interpolation bicubic", "--mean 0,0,0", "--std 1,1,1"])
@pytest.mark.parametrize("contract", ["mlperf", "torchvision"])
def test_refuses_a_part_beside_the_whole(invoke, contract, option):
    result = invoke(*f"{EXPORT} --preprocess {contract} {option}".split())
    assert_refused(result, f"{option.split()[0]} has no effect with --preprocess {contract}", "leave --preprocess out")
