"""Weights between disk, network and memory: published ImageNet checkpoints, and files of one's own.

Nothing here knows what a ResNet is; ``models`` does. A checkpoint is never executed: pickles are read with PyTorch's
restricted unpickler, and whatever it refuses is refused here.
"""

import functools
import hashlib
import io
import json
import re
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from resnet_deploy.artifact import atomic_file, exists, read_bytes, sha256_file, translate_os_errors, write_bytes
from resnet_deploy.errors import WeightsError
from resnet_deploy.pickles import OddPickleError, require_plain, scan_pickle
from resnet_deploy.protocols import Progress

BASE_URL = "https://download.pytorch.org/models/"
TIMEOUT_S: Final = 30.0
CHUNK_BYTES: Final = 1 << 20

PICKLE_SUFFIXES: Final = (".pth", ".pt", ".bin", ".tar")
CONTAINER_KEYS: Final = ("state_dict", "model_state_dict", "model")
WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile, Lightning


@dataclass(frozen=True)
class Published:
    """A checkpoint that torchvision publishes; ``resize`` is the shorter side its accuracy was measured at."""

    file: str
    resize: int = 256


PUBLISHED: Final[Mapping[tuple[str, str], Published]] = {
    ("resnet18", "imagenet"): Published("resnet18-f37072fd.pth"),
    ("resnet34", "imagenet"): Published("resnet34-b627a593.pth"),
    ("resnet50", "imagenet"): Published("resnet50-11ad3fa6.pth", resize=232),
    ("resnet101", "imagenet"): Published("resnet101-cd907fc2.pth", resize=232),
    ("resnet152", "imagenet"): Published("resnet152-f82ba261.pth", resize=232),
    ("resnet18", "imagenet-v1"): Published("resnet18-f37072fd.pth"),
    ("resnet34", "imagenet-v1"): Published("resnet34-b627a593.pth"),
    ("resnet50", "imagenet-v1"): Published("resnet50-0676ba61.pth"),
    ("resnet101", "imagenet-v1"): Published("resnet101-63fe2227.pth"),
    ("resnet152", "imagenet-v1"): Published("resnet152-394f9c45.pth"),
}


def find_published(architecture: str, weights: str) -> Published:
    """Look up the checkpoint that ``imagenet`` (the best) or ``imagenet-v1`` (the first) means for an architecture.

    Raises:
        WeightsError: If none is published.
    """
    try:
        return PUBLISHED[architecture, weights]
    except KeyError:
        raise WeightsError(
            f"no {weights} weights are published for {architecture}",
            hint="train it and pass --weights PATH, or use --weights none",
        ) from None


def recognise_published(architecture: str, path: Path) -> Published | None:
    """Tell whether a file is a checkpoint that torchvision publishes for an architecture, by its hash.

    Raises:
        FileError: If it cannot be read.
    """
    digest = sha256_file(path)
    known = (one for (name, _), one in PUBLISHED.items() if name == architecture)
    return next((one for one in known if digest.startswith(_promised_digest(one.file))), None)


def _promised_digest(file: str) -> str:
    """First digits of the SHA-256, which a published checkpoint has in its name."""
    return Path(file).stem.rpartition("-")[2]


def download_imagenet(architecture: str, weights: str, progress: Progress) -> Path:
    """Return the local copy of a published checkpoint, downloading it the first time.

    It is kept where ``torch.hub`` keeps its files, under the same name, so that what torchvision or another project
    already downloaded is used. Its SHA-256 must begin with the eight digits in its name.

    Raises:
        WeightsError: If none is published, it cannot be had, or the hash is another.
        FileError: If the cache folder cannot be written.
    """
    file = find_published(architecture, weights).file
    promised = _promised_digest(file)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if exists(path):
        if not sha256_file(path).startswith(promised):
            raise WeightsError(f"{path} is damaged: its hash is not the one in its name", hint="delete it and retry")
        return path
    digest = hashlib.sha256()
    with atomic_file(path) as temporary:
        with translate_os_errors(path), temporary.open("wb") as stream:
            for chunk in _fetch(BASE_URL + file, progress):
                stream.write(chunk)
                digest.update(chunk)
        if not digest.hexdigest().startswith(promised):
            raise WeightsError(
                f"the download of {file} is damaged: its hash is not the one in its name",
                hint="retry; if that does not help, fetch the file in another way and use --weights PATH",
            )
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU, without executing anything in it.

    Training checkpoints are unwrapped (``state_dict``, ``model_state_dict``, ``model``), and so are the names that
    DistributedDataParallel, ``torch.compile`` and Lightning leave. Two sets of weights are one too many. Names may
    share values, as tied weights do, but a tensor that repeats its values, as ``Tensor.expand`` makes one, is refused.

    Raises:
        FileError: If the file is missing or cannot be read.
        WeightsError: If it is damaged, is of an unknown kind, or holds anything but ordinary tensors.
    """
    if path.suffix not in (*PICKLE_SUFFIXES, ".safetensors"):
        raise WeightsError(
            f"{str(path)!r} is not a kind of weights known here",
            hint="give imagenet, imagenet-v1, none, or a file that ends in .safetensors, " + ", ".join(PICKLE_SUFFIXES),
        )
    data = read_bytes(path)
    content = _parse_safetensors(data, path) if path.suffix == ".safetensors" else _parse_pickle(data, path)
    return _unwrap(content, path)


def fit_state_dict(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, target: str
) -> dict[str, Tensor]:
    """Return ``state`` with the dtypes of ``expected``, if it has exactly its names and shapes.

    Raises:
        WeightsError: If a tensor is missing, surplus or of another shape, or a value is not a finite number.
    """
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} does not belong" for name in state if name not in expected]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        count = f", the first of {len(faults)} faults" if len(faults) > 1 else ""
        raise WeightsError(
            f"{source} does not fit {target}: {faults[0]}{count}",
            hint=f"give a checkpoint of {target} with torchvision's or timm's names",
        )
    fitted = {}
    for name, tensor in expected.items():
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise WeightsError(f"{name} in {source} holds {state[name].dtype}", hint="give weights in floating point")
        fitted[name] = state[name].to(tensor.dtype)
        if not fitted[name].isfinite().all():
            raise WeightsError(
                f"{name} in {source} holds values that are not finite", hint="give an earlier, undamaged checkpoint"
            )
    return fitted


def write_state_dict(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        FileError: If the file cannot be written.
    """
    write_bytes(path, state_dict_bytes(state, metadata))


def state_dict_bytes(state: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialize tensors as safetensors; equal tensors and metadata give equal bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    data = safetensors.torch.save(tensors, metadata)
    # The library writes metadata in another order each time. A file: 8 bytes, the header's length, header, tensors.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[end:]))


def state_dict_digest(state: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and bytes with SHA-256, whatever the order or the file format they came in.

    BatchNorm's ``num_batches_tracked`` is left out: it has no part in inference, and exporters drop it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Through uint8, because numpy has no bfloat16; flattened first, because a scalar cannot change its dtype.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fetch(url: str, progress: Progress) -> Iterator[bytes]:
    """Yield the body of an HTTP answer in chunks, one step of the progress each."""
    description = f"downloading {url.rpartition('/')[2]} (MiB)"
    request = urllib.request.Request(url, headers={"User-Agent": "resnet-deploy"})  # noqa: S310 (BASE_URL is https)
    try:
        response: HTTPResponse
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            total = None if response.length is None else -(-response.length // CHUNK_BYTES)
            chunks = iter(functools.partial(response.read, CHUNK_BYTES), b"")
            yield from progress.track(chunks, description, total)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        reason = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
        raise WeightsError(
            f"cannot download {url}: {reason}",
            hint="offline? use --weights PATH for this file or a checkpoint of your own, or --weights none, untrained",
        ) from error


def _parse_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except MemoryError:  # which no file is to blame for
        raise
    except Exception as error:  # also PyTorch's own, on a type that it lacks or a shape that it cannot count
        raise _damaged(path) from error


def _parse_pickle(data: bytes, path: Path) -> object:
    _require_usual(data, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what is an error below, or of no consequence
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        asked = re.search(r"tried to allocate (\d+) bytes", str(error))  # PyTorch says it in a RuntimeError
        if asked and int(asked[1]) <= len(data):  # a tensor of more is one that the file does not hold
            raise MemoryError(asked[0]) from error
        # The restricted unpickler tells refusal from damage only by its wording.
        if re.search(r"GLOBAL|via `add_safe_globals|call reduce|TorchScript|\.tar format", str(error)):
            raise WeightsError(
                f"{path} holds more than tensors, and running what it holds would be unsafe",
                hint="where you trust its origin, load it and re-save: torch.save(model.state_dict(), 'weights.pth')",
            ) from error
        raise _damaged(path) from error


def _require_usual(data: bytes, path: Path) -> None:
    """Refuse what would fill the memory, keep PyTorch's unpickler busy or overflow its stack."""
    try:
        if data.startswith(b"PK\3\4"):
            _scan_archive(data, path)
        else:
            _scan_legacy(data)
    except OddPickleError as error:
        raise WeightsError(
            f"{path} is built as no checkpoint is: it {error}",
            hint="where you trust its origin, load it and save its tensors as safetensors: "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors')",
        ) from error
    except (RuntimeError, ValueError, LookupError, zipfile.BadZipFile) as error:  # RuntimeError: PyTorch's reader
        raise _damaged(path) from error


def _scan_archive(data: bytes, path: Path) -> None:
    # By PyTorch's own reader: two readers of one archive may be led to find different files in it.
    archive = torch._C.PyTorchFileReader(io.BytesIO(data))  # noqa: SLF001 (in its stubs)
    if _unpacked_bytes(archive, data) > len(data):  # PyTorch would unpack it, and ``torch.save`` packs none
        hint = "where you trust its origin, load it and re-save: torch.save(model.state_dict(), 'weights.pth')"
        raise WeightsError(f"{path} is a compressed archive", hint=hint)
    scan_pickle(io.BytesIO(archive.get_record("data.pkl")))


def _unpacked_bytes(archive: Any, data: bytes) -> int:
    """Sum up what the files of an archive take, unpacked."""
    if hasattr(archive, "get_record_size"):
        return sum(map(archive.get_record_size, archive.get_all_records()))
    with zipfile.ZipFile(io.BytesIO(data)) as other:  # PyTorch 2.10 cannot tell
        return sum(file.file_size for file in other.infolist())


def _scan_legacy(data: bytes) -> None:
    """Scan the five pickles of the format before archives; values follow them."""
    stream = io.BytesIO(data)
    for part in ("magic number", "version", "machine", "content", "keys of values"):
        value = scan_pickle(stream)
        if part != "content":
            require_plain(value)


def _damaged(path: Path) -> WeightsError:
    return WeightsError(f"{path} is not a checkpoint, or is damaged", hint="copy or download it again")


def _unusual(tensor: Tensor) -> str:
    """Say what keeps a tensor from being read as an array of numbers; empty for most."""
    if tensor.is_meta:
        return "has a shape and no values"
    if tensor.is_quantized:
        return "is quantized already"
    if tensor.is_nested:
        return "is a nested tensor"
    if tensor.layout != torch.strided:
        return f"is stored as {tensor.layout}"
    # A view may repeat a few bytes into any size, which whoever copies it pays for. What names share is not summed up:
    # tied weights do, and only names of the network's are copied.
    is_whole = tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    return "" if is_whole else "has more values than are stored"


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict inside a training checkpoint, with the names as the bare network has them."""
    state = content
    while isinstance(state, Mapping) and (key := next((key for key in CONTAINER_KEYS if key in state), None)):
        if f"{key}_ema" in state:
            raise WeightsError(
                f"{path} holds two sets of weights: {key} and {key}_ema",
                hint=f"save the one you mean: torch.save(torch.load({path.name!r})['{key}_ema'], 'ema.pth')",
            )
        state = state[key]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path} holds no state dict", hint="save one with torch.save(model.state_dict(), PATH)")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            what = repr(name) if isinstance(name, str | int) else f"a key of type {type(name).__name__}"
            raise WeightsError(
                f"{path} holds {what}, which is no tensor", hint="save model.state_dict() and nothing else"
            )
        if fault := _unusual(value):
            raise WeightsError(
                f"{name} in {path} {fault}", hint="save the state dict of an ordinary model that is in memory"
            )
    while prefix := next((prefix for prefix in WRAPPER_PREFIXES if all(name.startswith(prefix) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)
