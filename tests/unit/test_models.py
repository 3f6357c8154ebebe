"""The networks, against a second implementation written here in plain functions, and against torchvision's."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from resnet_deploy import checkpoints, models
from resnet_deploy.artifact import sha256_file
from resnet_deploy.checkpoints import Published, state_dict_digest, write_state_dict
from resnet_deploy.errors import FileError, SpecError, WeightsError
from resnet_deploy.models import ARCHITECTURES, DESIGNS, ResNet, create_model, load_model, resnet18

# Published by torchvision; those of the twins lack just the projections.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
PROJECTIONS = sum(width * width // 2 + 2 * width for width in (128, 256, 512))  # a 1x1 from width / 2, and BatchNorm
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def small() -> ResNet:
    return lively(create_model("resnet18", 5, seed=3))


@pytest.fixture(scope="module")
def checkpoint(small: ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_state_dict(path, small.state_dict(), {})
    return path


def meta_model(architecture: str, num_classes: int = 1000) -> ResNet:
    """Names and shapes alone, at no cost."""
    with torch.device("meta"):
        return ResNet(DESIGNS[architecture], num_classes)


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


def some_images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))


def reference_logits(state: dict[str, Tensor], images: Tensor, *, early_stride: bool = False) -> Tensor:
    """Compute a ResNet from its weights alone; ``early_stride`` is the wrong, "v1" placement in bottlenecks."""

    def conv_bn(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=(weight.shape[-1] - 1) // 2)
        return functional.batch_norm(
            x, *(state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        )

    x = functional.max_pool2d(conv_bn(images, "conv1", "bn1", 2).relu(), 3, 2, 1)
    residual = "layer2.0.downsample.0.weight" in state
    for number in (1, 2, 3, 4):
        for index in range(len({name.split(".")[1] for name in state if name.startswith(f"layer{number}.")})):
            block = f"layer{number}.{index}"
            stride = 2 if number > 1 and index == 0 else 1
            convs = 3 if f"{block}.conv3.weight" in state else 2
            strided = 1 if convs == 2 or early_stride else 2
            y = x
            for step in range(1, convs + 1):
                y = conv_bn(y, f"{block}.conv{step}", f"{block}.bn{step}", stride if step == strided else 1)
                y = y.relu() if step < convs else y
            if f"{block}.downsample.0.weight" in state:
                x = conv_bn(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = (x + y if residual else y).relu()
    return functional.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def assert_same_logits(left: Tensor, right: Tensor) -> None:
    # The same convolutions in the same order; only the pooling sums in another order.
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


# --- what the networks are


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_published_parameter_counts(architecture: str) -> None:
    assert sum(parameter.numel() for parameter in meta_model(architecture).parameters()) == PARAMETERS[architecture]


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_twins_lack_the_shortcuts_and_nothing_else(depth: int) -> None:
    plain, residual = meta_model(f"plain{depth}"), meta_model(f"resnet{depth}")
    shapes = {name: tensor.shape for name, tensor in residual.state_dict().items() if ".downsample." not in name}
    assert {name: tensor.shape for name, tensor in plain.state_dict().items()} == shapes
    convolutions = [sum(isinstance(part, nn.Conv2d) for part in net.modules()) for net in (plain, residual)]
    assert convolutions == [depth - 1, depth - 1 + 3]
    assert sum(p.numel() for p in plain.parameters()) == PARAMETERS[f"resnet{depth}"] - PROJECTIONS


def torchvision_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Spell out torchvision's state dict of a bottleneck ResNet."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        shapes[f"{conv}.weight"] = shape
        shapes.update({f"{norm}.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{norm}.num_batches_tracked"] = ()

    add("conv1", "bn1", 64, 3, 7, 7)
    channels = 64
    for number, blocks in enumerate(DEPTHS[depth], start=1):
        width = 64 * 2 ** (number - 1)
        for index in range(blocks):
            block = f"layer{number}.{index}"
            add(f"{block}.conv1", f"{block}.bn1", width, channels, 1, 1)
            add(f"{block}.conv2", f"{block}.bn2", width, width, 3, 3)
            add(f"{block}.conv3", f"{block}.bn3", width * 4, width, 1, 1)
            if index == 0:
                add(f"{block}.downsample.0", f"{block}.downsample.1", width * 4, channels, 1, 1)
            channels = width * 4
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_names_shapes_and_order_are_torchvisions(depth: int) -> None:
    found = [(name, tuple(tensor.shape)) for name, tensor in meta_model(f"resnet{depth}").state_dict().items()]
    assert found == list(torchvision_shapes(depth).items())
    assert len(found) == {50: 320, 101: 626, 152: 932}[depth]


def test_the_stride_is_in_the_3x3() -> None:
    strides = {
        name: part.stride for name, part in meta_model("resnet50").named_modules() if isinstance(part, nn.Conv2d)
    }
    strided = {name for name, stride in strides.items() if stride == (2, 2)}
    halving = ("layer2.0", "layer3.0", "layer4.0")
    assert strided == {"conv1"} | {f"{block}.{part}" for block in halving for part in ("conv2", "downsample.0")}


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "plain18"])
def test_logits_match_a_second_implementation(architecture: str) -> None:
    module = lively(create_model(architecture, 7))
    with torch.inference_mode():
        logits = module(some_images())
        assert logits.shape == (2, 7)
        assert logits.std() > 0.01
        assert_same_logits(logits, reference_logits(module.state_dict(), some_images()))


def test_the_second_implementation_notices_a_misplaced_stride() -> None:
    module = lively(create_model("resnet50", 7))
    with torch.inference_mode(), pytest.raises(AssertionError):
        assert_same_logits(
            module(some_images()), reference_logits(module.state_dict(), some_images(), early_stride=True)
        )


def break_shortcut(module: ResNet) -> None:
    module.layer2[1].shortcuts = False


def break_projection(module: ResNet) -> None:
    module.layer3[0].downsample[1].weight.data[0] *= 1.5


def break_relu(module: ResNet) -> None:
    module.layer1[1].relu = nn.Identity()


def break_statistics(module: ResNet) -> None:
    module.bn1.running_mean[0] += 0.1


@pytest.mark.parametrize("fault", [break_shortcut, break_projection, break_relu, break_statistics])
def test_the_second_implementation_notices_a_broken_network(fault: Callable[[ResNet], None]) -> None:
    module = lively(create_model("resnet18", 7))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fault(module)
    with torch.inference_mode(), pytest.raises(AssertionError):
        assert_same_logits(module(some_images()), reference_logits(state, some_images()))


def torchvision_model(architecture: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision.models import get_model
    except (ImportError, RuntimeError) as error:  # its wheels for CUDA do not import beside a CPU build of torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    return get_model(architecture)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_torchvision_computes_the_same(architecture: str) -> None:
    theirs = torchvision_model(architecture)
    ours = lively(create_model(architecture))
    theirs.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        assert_same_logits(ours(some_images()), theirs.eval()(some_images()))
        theirs = lively(torchvision_model(architecture))
        with pytest.raises(AssertionError):  # other weights, other logits
            assert_same_logits(ours(some_images()), theirs(some_images()))
        ours.load_state_dict(theirs.state_dict())
        assert_same_logits(ours(some_images()), theirs(some_images()))


# --- making them


def test_the_seed_decides_the_weights_and_nothing_else_is_touched() -> None:
    before = torch.get_rng_state()
    digests = [state_dict_digest(create_model("plain18", 3, seed=seed).state_dict()) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert digests[0] == digests[1] != digests[2]


def test_initialisation_is_kaiming_over_the_fan_out() -> None:
    module = create_model("resnet18")
    assert module.training
    weight = module.layer3[0].conv1.weight
    assert weight.shape == (256, 128, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)  # 295k samples: 0.2 % expected
    assert torch.equal(module.bn1.weight, torch.ones(64))
    assert torch.equal(module.bn1.bias, torch.zeros(64))


def test_unknown_architecture_and_no_classes() -> None:
    with pytest.raises(SpecError, match="'resnet51'") as caught:
        load_model("resnet51", None)
    assert all(name in caught.value.hint for name in ARCHITECTURES)
    with pytest.raises(SpecError, match="0 classes"):
        load_model("resnet18", None, num_classes=0)


# --- loading them


@pytest.mark.parametrize("weights", [None, "none"])
def test_without_weights(weights: str | None) -> None:
    loaded = load_model("resnet18", weights, num_classes=4)
    assert (loaded.weights, loaded.num_classes, loaded.resize) == ("none", 4, 256)
    assert (loaded.labels, loaded.folders) == ((), ())
    assert not loaded.module.training
    assert loaded.weights_sha256 == state_dict_digest(create_model("resnet18", 4).state_dict())


def test_a_checkpoint_comes_back_exactly(small: ResNet, checkpoint: Path) -> None:
    before = torch.get_rng_state()
    loaded = load_model("resnet18", checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    assert (loaded.weights, loaded.num_classes, loaded.architecture) == ("small.safetensors", 5, "resnet18")
    assert loaded.weights_sha256 == state_dict_digest(small.state_dict())
    assert not any(part.training for part in loaded.module.modules())
    assert all(parameter.requires_grad for parameter in loaded.module.parameters())
    with torch.inference_mode():
        assert torch.equal(loaded.module(some_images()), small(some_images()))
        loaded.module.fc.bias[0] += 1e-3
        assert not torch.equal(loaded.module(some_images()), small(some_images()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_function_makes_its_network(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "create_model", meta_model)
    monkeypatch.setattr(models, "state_dict_digest", lambda _: "")
    module = getattr(models, architecture)(num_classes=3)
    assert isinstance(module, ResNet)
    assert not module.training
    assert module.fc.out_features == 3
    assert models._recognise(module.state_dict()) == architecture


@pytest.mark.parametrize("left_out", ["num_batches", "nothing"])
def test_an_old_half_precision_checkpoint(small: ResNet, tmp_path: Path, left_out: str) -> None:
    state = {name: tensor.half() for name, tensor in small.state_dict().items() if left_out not in name}
    torch.save(state, tmp_path / "old.pth")
    module = resnet18(tmp_path / "old.pth")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert module.bn1.num_batches_tracked == 0
    assert torch.equal(module.fc.weight, small.fc.weight.half().float())


def test_another_number_of_classes(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match="has 5 classes, not 1000"):
        load_model("resnet18", checkpoint, num_classes=1000)
    assert load_model("resnet18", checkpoint, num_classes=5).num_classes == 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recognises_each_architecture(architecture: str) -> None:
    assert models._recognise(meta_model(architecture, 3).state_dict()) == architecture


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "resnet18"])
def test_a_checkpoint_of_another_architecture_says_which(architecture: str, checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match="looks like resnet18") as caught:
        load_model(architecture, checkpoint)
    assert caught.value.hint == "use --arch resnet18"


def test_a_wider_network_with_the_same_names(tmp_path: Path, small: ResNet) -> None:
    state = dict(small.state_dict()) | {"layer1.0.conv2.weight": torch.zeros(128, 64, 3, 3)}
    assert models._recognise(state) is None
    write_state_dict(tmp_path / "wide.safetensors", state, {})
    with pytest.raises(WeightsError, match=r"does not fit resnet18: layer1.0.conv2.weight has shape \(128, 64, 3, 3\)"):
        load_model("resnet18", tmp_path / "wide.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer2.1.bn1.bias": None}, "layer2.1.bn1.bias is missing$"),
        ({"fc.weight": None, "fc.bias": None}, "fc.weight is missing, the first of 2 faults$"),
        ({"layer1.0.se.fc1.weight": torch.ones(1)}, "layer1.0.se.fc1.weight does not belong$"),
        ({"layer1.0.bn2.running_var": torch.full((64,), torch.nan)}, "layer1.0.bn2.running_var in .* not finite"),
        ({"fc.weight": torch.tensor(1.0)}, r"fc.weight has shape \(\), not \(1000, 512\), the first of 2 faults$"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, small: ResNet, change: dict[str, Tensor | None], message) -> None:
    state = {name: tensor for name, tensor in (small.state_dict() | change).items() if tensor is not None}
    write_state_dict(tmp_path / "odd.safetensors", state, {})
    with pytest.raises(WeightsError, match=message):
        load_model("resnet18", tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("count", "message", "hint"),
    [(0, "odd.pth has 0 classes", "1 to 100000"), (10**9, "fc.weight in .* has more values than are stored", "")],
)
def test_a_checkpoint_of_no_classes_or_a_billion(tmp_path: Path, small: ResNet, count: int, message, hint) -> None:
    """A view may claim any size: its file holds one row."""
    head = {"fc.weight": torch.zeros(1, 512).expand(count, 512), "fc.bias": torch.zeros(1).expand(count)}
    torch.save(dict(small.state_dict()) | head, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        load_model("resnet18", tmp_path / "odd.pth")
    assert hint in caught.value.hint


def test_a_missing_checkpoint() -> None:
    with pytest.raises(FileError, match="absent"):
        resnet18("absent.pth")


@pytest.mark.parametrize(("weights", "resize"), [("imagenet", 232), ("imagenet-v1", 256)])
def test_imagenet_weights_bring_their_classes(weights: str, resize: int, monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "resnet18-00000000.pth"
    torch.save(create_model("resnet18").state_dict(), path)
    monkeypatch.setattr(models, "download_imagenet", lambda *_: path)
    monkeypatch.setitem(checkpoints.PUBLISHED, ("resnet18", "imagenet"), Published(path.name, resize=232))
    loaded = load_model("resnet18", weights)
    assert (loaded.weights, loaded.resize, loaded.num_classes) == (weights, resize, 1000)
    assert (loaded.folders[1], loaded.labels[1], len(loaded.labels)) == ("n01443537", "goldfish", 1000)


def test_published_checkpoint_is_known_by_its_hash_under_any_name(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "mine.pth"
    torch.save(create_model("resnet18").state_dict(), path)
    strange = load_model("resnet18", path)
    assert (strange.resize, strange.labels, strange.folders) == (256, (), ())
    published = Published(f"resnet18-{sha256_file(path)[:8]}.pth", resize=232)
    monkeypatch.setitem(checkpoints.PUBLISHED, ("resnet18", "imagenet"), published)
    known = load_model("resnet18", path)
    assert (known.weights, known.resize) == ("mine.pth", 232)
    assert (known.folders[1], known.labels[1]) == ("n01443537", "goldfish")
    assert known.weights_sha256 == strange.weights_sha256


def test_imagenet_weights_have_1000_classes() -> None:
    with pytest.raises(SpecError, match="1000 classes, not 10"):
        load_model("resnet18", "imagenet", num_classes=10)


def test_plain_networks_have_no_imagenet_weights() -> None:
    with pytest.raises(WeightsError, match="plain34"):
        load_model("plain34", "imagenet")
