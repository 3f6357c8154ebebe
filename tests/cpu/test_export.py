"""Exported models against PyTorch, and what they promise to every backend."""

import copy
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from resnet_deploy.checkpoints import state_dict_digest
from resnet_deploy.errors import AccuracyError, WeightsError
from resnet_deploy.export import check_export, example_images, export_onnx, fold_batch_norms, reference_logits
from resnet_deploy.models import ResNet, create_model
from resnet_deploy.onnx_files import bytes_from_onnx, onnx_from_bytes
from resnet_deploy.ort_session import open_session
from resnet_deploy.specs import ModelCard, Preprocess

CLASSES = 10
SMALL = Preprocess(image_size=32, resize=32)
NORMALISED = Preprocess(image_size=32, resize=32, dtype="float32", layout="NCHW")


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


def lively(module: ResNet) -> ResNet:
    """Give BatchNorm statistics and scales that are not the trivial ones, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            nn.init.uniform_(part.weight, 0.5, 1.0, generator=generator)
            nn.init.uniform_(part.bias, -0.2, 0.2, generator=generator)
    return module.eval()


def card_of(architecture: str, network: ResNet, preprocess: Preprocess = SMALL) -> ModelCard:
    return ModelCard(
        architecture=architecture,
        num_classes=CLASSES,
        weights="none",
        weights_sha256=state_dict_digest(network.state_dict()),
        labels=tuple(f"Klasse {index} \N{GREEK SMALL LETTER ALPHA}" for index in range(CLASSES)),
        preprocess=preprocess,
    )


@dataclass(frozen=True)
class Exported:
    network: ResNet
    card: ModelCard
    model: ir.Model
    data: bytes


def export(architecture: str, preprocess: Preprocess = SMALL) -> Exported:
    network = lively(create_model(architecture, CLASSES))
    card = card_of(architecture, network, preprocess)
    model = export_onnx(network, card)
    return Exported(network, card, model, bytes_from_onnx(model))


@pytest.fixture(scope="module")
def resnet18() -> Exported:
    return export("resnet18")


@pytest.fixture(scope="module")
def normalised18() -> Exported:
    return export("resnet18", NORMALISED)


@pytest.fixture(scope="module", params=["resnet18", "plain18", "resnet50", "normalised18"])
def exported(request, resnet18, normalised18) -> Exported:
    made = {"resnet18": resnet18, "normalised18": normalised18}
    return made.get(request.param) or export(request.param)


def run(data: bytes, images: torch.Tensor) -> np.ndarray:
    (logits,) = open_session(data).run(["logits"], {"images": images.numpy()})
    return logits


# --- the file


@dataclass(frozen=True)
class Contents:
    """How many nodes of each kind an architecture has."""

    convolutions: int
    relus: int
    adds: int


CONTENTS = {"resnet18": Contents(20, 17, 8), "plain18": Contents(17, 17, 0), "resnet50": Contents(53, 49, 16)}


def test_nodes_are_the_ones_every_backend_fuses(exported):
    expected = CONTENTS[exported.card.architecture]
    kinds = Counter(node.op_type for node in onnx.load_from_string(exported.data).graph.node)
    body = {"Conv": expected.convolutions, "Relu": expected.relus, "Add": expected.adds, "MaxPool": 1}
    head = {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    contract = dict.fromkeys(("Cast", "Transpose", "Sub", "Mul"), 1) if exported.card.preprocess == SMALL else {}
    assert kinds == Counter(body) + Counter(head | contract)  # and no BatchNormalization


def test_inputs_and_outputs(exported):
    model = onnx.load_from_string(exported.data)
    (images,), (logits,) = model.graph.input, model.graph.output
    types = {"uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}
    shape = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, images.type.tensor_type.elem_type) == ("images", types[exported.card.preprocess.dtype])
    assert shape == ["batch", *exported.card.preprocess.shape]
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["batch", CLASSES]


def test_the_file_is_self_contained_and_of_an_opset_all_backends_read(exported):
    model = onnx.load_from_string(exported.data)
    onnx.checker.check_model(exported.data, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] <= 21
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert {tensor.data_location for tensor in model.graph.initializer} == {onnx.TensorProto.DEFAULT}
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]
    assert not any(part.metadata_props or part.doc_string for part in [*model.graph.node, *values])


def test_constants_are_the_folded_weights(exported):
    folded = fold_batch_norms(exported.network).state_dict()
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(exported.data).graph.initializer
    }
    if exported.card.preprocess == SMALL:
        mean, reciprocal = constants.pop("mean"), constants.pop("reciprocal_std")
        assert np.allclose(mean.ravel(), np.array(SMALL.mean) * 255, rtol=1e-6)
        assert np.allclose(reciprocal.ravel(), 1 / (np.array(SMALL.std) * 255), rtol=1e-6)
    assert set(constants) == {name for name, tensor in folded.items() if tensor.ndim}
    assert all(np.array_equal(constants[name], folded[name].numpy()) for name in constants)
    assert len(constants) == 2 * (CONTENTS[exported.card.architecture].convolutions + 1)


def test_names_come_from_the_modules_and_are_unique(exported):
    graph = onnx.load_from_string(exported.data).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert [node.output[0] for node in graph.node] == [*names[:-1], "logits"]
    modules = dict(exported.network.named_modules())
    assert {node.name for node in graph.node if node.op_type in ("Conv", "Gemm")} == {
        name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert {node.name for node in graph.node if node.op_type == "Add"} == (
        {f"{name}.add" for name, module in modules.items() if getattr(module, "shortcuts", False)}
    )


def test_names_of_a_resnet18(resnet18):
    names = [node.name for node in onnx.load_from_string(resnet18.data).graph.node]
    assert names[:12] == [
        "images.cast",
        "images.transposed",
        "images.centred",
        "images.normalized",
        "conv1",
        "conv1.relu",
        "maxpool",
        "layer1.0.conv1",
        "layer1.0.conv1.relu",
        "layer1.0.conv2",
        "layer1.0.add",
        "layer1.0.relu",
    ]
    assert {"layer2.0.downsample.0", "layer4.1.relu"} <= set(names)
    assert names[-3:] == ["avgpool", "flatten", "fc"]


def test_an_equal_network_gives_the_same_bytes(resnet18):
    network = lively(create_model("resnet18", CLASSES))
    assert bytes_from_onnx(export_onnx(network, resnet18.card)) == resnet18.data


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_the_network_is_left_as_it_was(resnet18, training):
    network = copy.deepcopy(resnet18.network).train(training)
    kinds = [type(module) for module in network.modules()]
    model = export_onnx(network, resnet18.card)
    check_export(model, network, resnet18.card)
    assert state_dict_digest(network.state_dict()) == resnet18.card.weights_sha256
    assert [type(module) for module in network.modules()] == kinds
    assert kinds.count(nn.BatchNorm2d) == 20
    assert all(module.training is training for module in network.modules())
    assert bytes_from_onnx(model) == resnet18.data  # and the graph is of the network in eval mode either way


# --- against PyTorch


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_logits_are_pytorchs_at_any_batch(exported, batch):
    images = example_images(exported.card.preprocess, batch=batch, seed=100 + batch)
    expected = reference_logits(exported.network, exported.card.preprocess, images)
    logits = run(exported.data, images)
    assert logits.shape == (batch, CLASSES)
    assert logits.dtype == np.float32
    # FP32 sums in another order; measured 1e-6 of the largest logit.
    assert np.abs(logits - expected).max() < 2e-5 * np.abs(expected).max()


def test_the_check_passes_and_says_how_close(exported):
    check = check_export(exported.model, exported.network, exported.card)
    assert 0 < check.relative < 2e-5
    assert check.relative == check.max_difference / check.peak


def changed(case: Exported, change: Callable[[ResNet], object]) -> Exported:
    """The same graph beside a network that it is no longer an export of."""
    network = copy.deepcopy(case.network)
    with torch.no_grad():
        change(network)
    return replace(case, network=network)


def contract(case: Exported, **changes: object) -> Exported:
    """The same graph and network under another input contract."""
    return replace(case, card=msgspec.structs.replace(case.card, preprocess=msgspec.structs.replace(SMALL, **changes)))


def without_shortcuts(case: Exported) -> Exported:
    plain = create_model("plain18", CLASSES).eval()
    plain.load_state_dict({name: case.network.state_dict()[name] for name in plain.state_dict()})
    return replace(case, network=plain)


def not_a_number(case: Exported) -> Exported:
    """A graph that computes NaN for one class, beside a sound network."""
    model = onnx_from_bytes(case.data, name="copy")
    weights = model.graph.initializers["fc.weight"].const_value.numpy().copy()
    weights[3, 0] = np.nan
    model.graph.initializers["fc.weight"].const_value = ir.tensor(weights)
    return replace(case, model=model)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(
            lambda case: changed(case, lambda network: network.layer3[0].conv1.weight[0].mul_(1.05)),
            id="one of 256 channels off by 5 %",
        ),
        pytest.param(
            lambda case: changed(case, lambda network: network.layer4[1].bn2.running_mean.add_(0.01)),
            id="running means off by 0.01",
        ),
        pytest.param(
            lambda case: changed(case, lambda network: network.conv1.weight.copy_(network.conv1.weight.flip(1))),
            id="red and blue swapped",
        ),
        pytest.param(without_shortcuts, id="no shortcuts"),
        pytest.param(lambda case: contract(case, mean=SMALL.std, std=SMALL.mean), id="mean and std swapped"),
        pytest.param(lambda case: contract(case, mean=SMALL.mean[::-1]), id="means of blue, green, red"),
        pytest.param(lambda case: contract(case, std=(0.229, 0.224, 0.226)), id="a std off by 0.001"),
        pytest.param(not_a_number, id="not a number"),
    ],
)
def test_a_broken_export_is_refused(resnet18, broken):
    case = broken(resnet18)
    with pytest.raises(AccuracyError, match="differs from PyTorch") as caught:
        check_export(case.model, case.network, case.card)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_the_weights_fault(resnet18, value):
    case = changed(resnet18, lambda network: network.layer1[0].conv1.weight[0].fill_(value))
    with pytest.raises(WeightsError, match="not finite"):
        check_export(case.model, case.network, case.card)


def test_the_normalised_input_is_what_the_uint8_graph_computes(resnet18, normalised18):
    images = example_images(SMALL, batch=2)
    pixels = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SMALL.mean, SMALL.std))
    left, right = run(resnet18.data, images), run(normalised18.data, (pixels - mean) / std)
    assert np.abs(left - right).max() < 2e-5 * np.abs(left).max()
    unscaled = run(normalised18.data, pixels - mean)  # the twin
    assert np.abs(left - unscaled).max() > 1e-3 * np.abs(left).max()


# Nothing of PyTorch's that traces has been imported here: it makes its folder then.
WITHOUT_TEMPORARIES = """
import sys, tempfile
from resnet_deploy.cli import main

tempfile.tempdir = sys.argv[1]
main("export --arch resnet18 --weights none --num-classes 10 --image-size 32 --resize 32 -o".split() + sys.argv[2:])
"""


def test_a_read_only_folder_for_temporary_files_is_told(mount_tmpfs, tmp_path):
    # PyTorch writes into the environment of this process where it has its folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TEMPORARIES, mount_tmpfs("ro,size=1m"), tmp_path / "out" / "net.onnx"],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "error: PyTorch cannot make a folder for its cache: Read-only file system"
    assert "TMPDIR" in hint
    assert not (tmp_path / "out").exists()
