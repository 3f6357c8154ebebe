"""What a plan of TensorRT-RTX says of itself: its program, found in the bytes, as kernels.

The file is a container whose other parts are not read: weights, the CUDA sources of pointwise kernels. Programs in it
begin with ``NLYM``, four bytes that are always the same, their length as a 64-bit integer, and text. Version 5 is the
whole network, one for all GPU generations that it was compiled for. Those of version 4 are what single kernels
(``runtime_fusion``) fall back to where they cannot be compiled at run time: not read, for they would count twice.

Not documented; read off plans of 1.7.1. Another version may be unreadable, which is one error that says so.
"""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from resnet_deploy.compiled.layers import BATCH, CompiledGraph, Kind, LayerInfo, Tensor
from resnet_deploy.compiled.program import MAX_CHARACTERS, Block, parse_program
from resnet_deploy.compiled.steps import fused_by, kind_of, nodes_of, steps_of
from resnet_deploy.errors import BundleError

_MARK: Final = b"NLYM"
_HEADER_BYTES: Final = 16  # mark, four bytes, length
_WHOLE_NETWORK: Final = re.compile(rb"header\s*\{\s*version\s*=\s*5\s")
_KINDS: Final[dict[str, Kind]] = {
    "corrltn": "convolution",
    "fully_connected": "matrix multiply",
    "maxpool": "pooling",
    "avgpool": "pooling",
    **dict.fromkeys(("shape_call", "signal", "wait"), "no-op"),  # between streams and with the host
}
_DTYPES: Final = {"float": "float32", "half": "float16", "bf16": "bfloat16", "fp8_e4m3": "float8_e4m3fn"}
_DIGITS: Final = re.compile(r"\d{1,9}")
_FUSIBLE: Final = {"bias": "bias", "accu": "add", "relu": "relu", "quantize": "quantize"}
_REBUILD: Final = "build the engine again with the version of TensorRT-RTX that this can read: 1.7"


def read_plan(data: bytes) -> CompiledGraph:
    """Read the kernels of a plan.

    Raises:
        BundleError: If there is no program in it, or one that is not of the form that is known.
    """
    programs = list(islice(_programs(data), 2))
    if len(programs) != 1:
        found = "no program" if not programs else "more than one program, as for several profiles,"
        hint = _REBUILD if not programs else "build with one --batch to read its kernels"
        raise BundleError(f"the plan cannot be read: it has {found} of a whole network", hint=hint)
    program = programs[0]
    tensors = _tensors(program)
    layers = tuple(_layer(name, block, tensors) for name, block in program.block("main").blocks())
    if not layers:
        raise BundleError("the plan cannot be read: its program launches nothing", hint=_REBUILD)
    constants = (_number(block.text("const_payload_size")) for _, block in program.block("descriptors").blocks())
    targets = tuple(map(_capability, program.block("header").words("accelerators")))
    return CompiledGraph("the plan", layers, targets, sum(constants))


def _programs(data: bytes) -> Iterator[Block]:
    position = data.find(_MARK)
    while position >= 0:
        begin = position + _HEADER_BYTES
        size = int.from_bytes(data[begin - 8 : begin], "little")
        if _WHOLE_NETWORK.match(data, begin) is None or size > MAX_CHARACTERS:
            position = data.find(_MARK, position + 1)  # another program, or weights that look like a mark
            continue
        text = data[begin : begin + size]
        if len(text) < size:
            raise BundleError("the plan cannot be read: it ends in the middle of a program", hint=_REBUILD)
        try:
            yield parse_program(text.decode().rstrip("\0"))
        except (UnicodeDecodeError, BundleError) as error:
            raise BundleError(f"the plan cannot be read: {error}", hint=_REBUILD) from error
        position = data.find(_MARK, begin + size)


def _tensors(program: Block) -> dict[str, Tensor]:
    """Everything that is on the device, by name; what is on the host are sizes and conditions.

    A view has a name and a shape of its own; here it bears the name of what it views, so that what a kernel writes and
    another reads can be told to be one.
    """
    regions = [block for name, block in program.block("header").blocks() if name == "region"]
    on_host = {region.text("name") for region in regions if region.text("place") == "host"}
    constant = {region.text("name") for region in regions if region.text("constant") == "true"}
    tensors: dict[str, Tensor] = {}
    symbols: set[str] = set()
    for _, block in program.block("descriptors").blocks():
        name, region, dtype = block.text("name"), block.text("region"), block.text("type")
        base = tensors.get(block.text("base"))  # of a view
        is_constant = bool(block.text("const_payload_size")) or region in constant or bool(base and base.constant)
        if (region in on_host and not is_constant) or block.text("is_scratchspace") in ("1", "true"):
            continue
        shape = block.words("dims")
        symbols |= {word for word in shape if not _DIGITS.fullmatch(word)}
        numbers = tuple(_number(word) if _DIGITS.fullmatch(word) else BATCH for word in shape)
        order = " ".join(block.words("stride_order"))
        tensors[name] = Tensor(
            base.name if base else name, _DTYPES.get(dtype, dtype), numbers, f"strides {order}", is_constant
        )
    if len(symbols) > 1:  # only a program with the batch size as its one unknown has a size at a batch
        raise BundleError("the plan cannot be read: more of its shapes than the batch size are open", hint=_REBUILD)
    return tensors


def _layer(operation: str, block: Block, tensors: dict[str, Tensor]) -> LayerInfo:
    inputs, outputs = (
        tuple(tensors[name] for name in (*block.words(key), *block.words(f"{key}_args")) if name in tensors)
        for key in ("input", "output")
    )
    name = block.text("name")
    steps = steps_of(name) if operation in ("function", "runtime_fusion") else ()
    nodes = nodes_of(block.text("layers"))
    kind = kind_of(steps, inputs, outputs) if steps else _KINDS.get(operation, "other")
    fused = tuple(what for flag, what in _FUSIBLE.items() if block.text(flag) == "true")
    fused = fused_by(steps, inputs, kind) if steps else fused
    return LayerInfo(name, kind, inputs, outputs, fused, nodes, block.text("fqn"))


def _number(text: str) -> int:
    return int(text) if _DIGITS.fullmatch(text) else 0


def _capability(word: str) -> str:
    """``sm89`` is compute capability 8.9."""
    return f"{word[2:-1]}.{word[-1]}" if re.fullmatch(r"sm\d{2,3}", word) else word
