"""Serve an engine by the Open Inference Protocol, KServe's v2, over HTTP and gRPC.

The server, its endpoints and its two transports are the kserve library's; what is written here is the model: names,
types and shapes from the bundle's manifest, arrays from requests, and the engine's errors as the client's.
"""

import argparse
import asyncio
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.constants.constants import MAX_GRPC_MESSAGE_LENGTH
from kserve.errors import InvalidInput
from kserve.protocol.dataplane import DataPlane
from numpy.typing import NDArray

import resnet_deploy
from resnet_deploy.bundle import Manifest
from resnet_deploy.errors import ResnetDeployError, UserError
from resnet_deploy.images import decode
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, ModelCard

if TYPE_CHECKING:
    from PIL.Image import Image
    from starlette.types import ASGIApp, Receive, Scope, Send

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}  # the protocol's names of the contract's types
FILES_OVER_HTTP = "image files (BYTES) are taken over gRPC alone: KServe makes text of them over HTTP"


class EngineModel(Model):  # type: ignore[misc]  # kserve is shipped without types
    """An engine as kserve's servers see it.

    Each request is a batch of its own and runs as it came, so that an answer does not depend on what else is under way:
    it is that of ``engine(images)``, to the bit.

    Args:
        name: What clients call it.
        engine: The caller's, who closes it after the server has stopped.
    """

    def __init__(self, name: str, engine: resnet_deploy.Engine) -> None:
        super().__init__(name)
        self._engine = engine
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        """Describe the input for ``GET /v2/models/NAME``; -1 stands for any number of images."""
        contract = self._engine.manifest.card.preprocess
        return [{"name": INPUT_NAME, "datatype": DATATYPES[contract.dtype], "shape": [-1, *contract.shape]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Describe the output likewise."""
        return [{"name": OUTPUT_NAME, "datatype": "FP32", "shape": [-1, self._engine.manifest.card.num_classes]}]

    async def predict(self, payload: object, headers: Mapping[str, str] | None = None) -> InferResponse:
        """Answer one request with logits, or the best classes; the event loop stays free meanwhile."""
        try:
            output = await asyncio.to_thread(self._output, payload)
        except UserError as error:
            raise InvalidInput(error.message) from error
        request: Any = payload
        binary, asked = request.use_binary_outputs, request.request_outputs
        return InferResponse(request.id or "", self.name, [output], use_binary_outputs=binary, requested_outputs=asked)

    def _output(self, payload: object) -> InferOutput:
        card = self._engine.manifest.card
        images, count = images_from_request(payload, card), classes_from_request(payload)
        answer: NDArray[Any] = self._engine(images)
        if count:
            answer = best_classes(answer, count, card.labels)
        output = InferOutput(OUTPUT_NAME, list(answer.shape), "BYTES" if count else "FP32")
        output.set_data_from_numpy(answer)  # kserve makes JSON of it where that was asked for
        return output


def images_from_request(payload: object, card: ModelCard) -> "NDArray[np.generic] | list[Image]":
    """Take the images out of a request: one prepared array, or files of type BYTES, decoded.

    Raises:
        InvalidInput: If the request is not of this protocol, or not for a model of one input and one output.
        DataError: If a file is not an image.
    """
    if not isinstance(payload, InferRequest):
        raise InvalidInput("this model speaks version 2 of the protocol: POST /v2/models/NAME/infer")
    if [given.name for given in payload.inputs] != [INPUT_NAME]:
        raise InvalidInput(f"inputs {[given.name for given in payload.inputs]}, the model takes ['{INPUT_NAME}']")
    asked = [output.name for output in payload.request_outputs or []]
    if asked not in ([], [OUTPUT_NAME]):
        raise InvalidInput(f"outputs {asked} are asked for, the model has ['{OUTPUT_NAME}']")
    given, expected = payload.inputs[0], DATATYPES[card.preprocess.dtype]
    if given.datatype not in (expected, "BYTES"):
        raise InvalidInput(f"input {INPUT_NAME} has datatype {given.datatype}, the model takes {expected} or BYTES")
    if given.datatype == "BYTES" and not payload.from_grpc:
        raise InvalidInput(FILES_OVER_HTTP)
    array = array_from_input(given)
    if not array.size:
        raise InvalidInput(f"input {INPUT_NAME} has shape {tuple(array.shape)}: there is no image in it")
    if given.datatype == "BYTES":
        return [decode(Path(f"image {index}"), data) for index, data in enumerate(array.flat)]
    return array


def array_from_input(given: InferInput) -> NDArray[Any]:
    """Read a tensor whose data, type and shape may not belong together."""
    sizes: list[Any] = given.shape
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise InvalidInput(f"input {given.name} has shape {sizes}: sizes are whole numbers, and not negative")
    try:
        array: NDArray[Any] = given.as_numpy()
    except (ValueError, OverflowError, TypeError, struct.error) as error:
        raise InvalidInput(f"input {given.name}: {error}") from error
    # numpy cuts off what JSON has behind the point.
    if array.dtype.kind == "u" and given.data and not np.array_equal(np.ravel(given.data), array.ravel()):
        raise InvalidInput(f"input {given.name} has data that are no {given.datatype}")
    return array


def classes_from_request(payload: Any) -> int:
    """Say how many classes are to be named, as Triton's classification extension asks; 0 for logits."""
    asked = payload.request_outputs or []
    count = (asked[0].parameters or {}).get("classification", 0) if asked else 0
    if type(count) is not int or count < 0:  # a bool is an int to isinstance
        raise InvalidInput(f"output {OUTPUT_NAME}: classification {count!r} is no number of classes")
    return count


def best_classes(logits: NDArray[Any], count: int, labels: tuple[str, ...]) -> NDArray[np.object_]:
    """Name the best classes, best first, as Triton does: value:index:label, or value:index without labels.

    Returns:
        (N, K) bytes, where K is ``count``, or the number of classes if there are fewer.
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    named = np.empty(best.shape, np.object_)
    for place, index in np.ndenumerate(best):
        label = f":{labels[index]}" if labels else ""
        named[place] = f"{logits[place[0], index]:f}:{index}{label}".encode()
    return named


class OneLineRefusals(DataPlane):  # type: ignore[misc]  # kserve is shipped without types
    """KServe's way from a request's bytes to tensors, whose errors are the client's, as one line."""

    def decode_inference_request(self, body: object, headers: dict[str, str], model_name: str) -> InferRequest:
        """Read a request that came over HTTP."""
        try:
            return super().decode_inference_request(body, headers, model_name)
        except InvalidInput:
            raise
        except Exception as error:  # KeyError, TypeError, ... where a field is missing or mistaken
            is_file = isinstance(error.__context__, UnicodeDecodeError)
            reason = FILES_OVER_HTTP if is_file else f"the request is not of this protocol: {type(error).__name__}"
            raise InvalidInput(reason) from error


async def refuse_malformed(_: Request, error: RequestValidationError) -> JSONResponse:
    """Name the first thing that is wrong with a request's JSON, and none of its data."""
    first = error.errors()[0]
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, status_code=400)


class JsonByDefault:
    """Call a request JSON that says nothing of its content and brings no binary tensors.

    The protocol asks for no content type, and Triton's client for Python sends none; without one, FastAPI takes no
    body for JSON since 0.132.

    Args:
        app: The ASGI application behind it.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Hand the request on, its content named."""
        headers = scope.get("headers", [])
        if not {name for name, _ in headers} & {b"content-type", b"inference-header-content-length"}:
            scope = {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
        await self._app(scope, receive, send)


def message_limit(manifest: Manifest) -> int:
    """Return how long a message over gRPC may be, in bytes: 8 MiB as KServe has it, or the engine's largest batch."""
    contract = manifest.card.preprocess
    batch = manifest.spec.batch.max * math.prod(contract.shape) * np.dtype(contract.dtype).itemsize
    limit: int = max(MAX_GRPC_MESSAGE_LENGTH, batch + 2**20)  # a MiB for names and shapes
    return limit


def main() -> None:
    """Serve until SIGTERM or Ctrl-C: requests under way are answered, and the engine is closed after them."""
    parser = argparse.ArgumentParser(description=main.__doc__, parents=[model_server.parser])
    parser.add_argument("--engine", type=Path, required=True, help="an engine bundle")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the engine; 0 for every core")
    parser.set_defaults(model_name=None, enable_latency_logging=False, grpc_max_receive_message_length=None)
    arguments = parser.parse_args()
    try:
        with resnet_deploy.load(arguments.engine, threads=arguments.threads) as engine:
            name = arguments.model_name or engine.manifest.name
            model_server.app.add_middleware(JsonByDefault)
            model_server.app.add_exception_handler(RequestValidationError, refuse_malformed)
            if arguments.grpc_max_receive_message_length is None:  # the server reads KServe's own arguments
                model_server.args.grpc_max_receive_message_length = message_limit(engine.manifest)
            server = ModelServer(enable_latency_logging=arguments.enable_latency_logging)
            server.dataplane = OneLineRefusals(model_registry=server.registered_models)
            server.start([EngineModel(name, engine)])
    except ResnetDeployError as error:
        parser.exit(error.exit_code, f"{error.message}\n{error.hint}\n")


if __name__ == "__main__":
    main()
