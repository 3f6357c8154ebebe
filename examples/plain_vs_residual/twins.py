"""The arms of the experiment: networks with shortcuts and their plain twins, which begin with the same weights."""

from torch import nn

from resnet_deploy.models import ARCHITECTURES, ResNet, create_model

PLAIN, RESIDUAL = "plain", "resnet"
DEPTHS = tuple(
    int(name.removeprefix(PLAIN))
    for name in ARCHITECTURES
    if name.startswith(PLAIN) and name.replace(PLAIN, RESIDUAL) in ARCHITECTURES
)
CLASSES = 10


def arms_of(depths: tuple[int, ...]) -> tuple[str, ...]:
    """Name the architectures of an experiment: for each depth the plain one, then the one with shortcuts."""
    return tuple(f"{kind}{depth}" for depth in depths for kind in (PLAIN, RESIDUAL))


def is_plain(architecture: str) -> bool:
    """Tell whether an architecture has no shortcuts."""
    return architecture.startswith(PLAIN)


def make_arm(architecture: str, seed: int) -> ResNet:
    """Make an untrained network; twins of the same seed have the same weights wherever both have any.

    The seed decides the weights of the network with shortcuts. Its twin takes them over: seeded alike it would draw
    other ones, since the projections of the shortcuts draw from the same generator.

    Args:
        architecture: ``plain18``, ``resnet18``, ...
        seed: Of the generator of the initial weights.

    Returns:
        The network, in training mode. He's initialisation: every convolution normal, of variance 2 / fan-out.
    """
    residual = create_model(architecture.replace(PLAIN, RESIDUAL), CLASSES, seed=seed)
    if not is_plain(architecture):
        return residual
    plain = create_model(architecture, CLASSES, seed=seed)
    state = residual.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain


def chain_of(network: ResNet) -> dict[str, nn.Conv2d]:
    """List by name the convolutions that every image passes one after another, from the image to the classifier.

    The projections of shortcuts are not among them, so that twins have the same layers.
    """
    convolutions = {name: part for name, part in network.named_modules() if isinstance(part, nn.Conv2d)}
    return {name: part for name, part in convolutions.items() if "downsample" not in name}
