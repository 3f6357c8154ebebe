"""Serve an engine by the Open Inference Protocol, KServe's v2, over HTTP and gRPC.

The server, its endpoints and its two transports are the kserve library's; what is written here is the model: names,
types and shapes from the bundle's manifest, arrays from requests, and the engine's errors as the client's.
"""

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput
from numpy.typing import NDArray

import resnet_deploy
from resnet_deploy.errors import ResnetDeployError, UserError
from resnet_deploy.images import decode
from resnet_deploy.specs import INPUT_NAME, OUTPUT_NAME, ModelCard

if TYPE_CHECKING:
    from PIL.Image import Image
    from starlette.types import ASGIApp, Receive, Scope, Send

DATATYPES = {"uint8": "UINT8", "float32": "FP32"}  # the protocol's names of the contract's types


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
        """Answer one request with logits; the event loop stays free meanwhile."""
        try:
            logits = await asyncio.to_thread(self._logits, payload)
        except UserError as error:
            raise InvalidInput(error.message) from error
        request: Any = payload
        output = InferOutput(OUTPUT_NAME, list(logits.shape), "FP32")
        output.set_data_from_numpy(logits)  # kserve makes JSON of it where that was asked for
        binary, asked = request.use_binary_outputs, request.request_outputs
        return InferResponse(request.id or "", self.name, [output], use_binary_outputs=binary, requested_outputs=asked)

    def _logits(self, payload: object) -> NDArray[np.generic]:
        return self._engine(images_from_request(payload, self._engine.manifest.card))


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
    array = array_from_input(given)
    if not array.size:
        raise InvalidInput(f"input {INPUT_NAME} has shape {tuple(array.shape)}: there is no image in it")
    if given.datatype == "BYTES":
        return [decode(Path(f"image {index}"), data) for index, data in enumerate(array.flat)]
    return array


def array_from_input(given: InferInput) -> NDArray[Any]:
    """Read a tensor whose data and shape may not belong together."""
    try:
        array: NDArray[Any] = given.as_numpy()
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidInput(f"input {given.name}: {error}") from error
    return array


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


def main() -> None:
    """Serve until SIGTERM or Ctrl-C: requests under way are answered, and the engine is closed after them."""
    parser = argparse.ArgumentParser(description=main.__doc__, parents=[model_server.parser])
    parser.add_argument("--engine", type=Path, required=True, help="an engine bundle")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the engine; 0 for every core")
    parser.set_defaults(model_name=None, enable_latency_logging=False)
    arguments = parser.parse_args()
    try:
        with resnet_deploy.load(arguments.engine, threads=arguments.threads) as engine:
            name = arguments.model_name or engine.manifest.name
            model_server.app.add_middleware(JsonByDefault)
            server = ModelServer(enable_latency_logging=arguments.enable_latency_logging)
            server.start([EngineModel(name, engine)])
    except ResnetDeployError as error:
        parser.exit(error.exit_code, f"{error.message}\n{error.hint}\n")


if __name__ == "__main__":
    main()
