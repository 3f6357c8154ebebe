"""An engine behind HTTP on Ray Serve: an image file in, its best classes out as JSON.

Batches are made by the engine's ``submit``, not by ``@serve.batch``. Files are then decoded and prepared side by side,
in the threads of their requests, and only prepared images wait for company; a corrupt file fails alone; a request
whose client has gone, or whose time is up, before its batch begins is never run; and the same code serves where there
is no Ray.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from ray import serve

import resnet_deploy
from resnet_deploy import BusyError, DeadlineError, ResnetDeployError, UserError
from resnet_deploy.images import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from ray.serve import Application

DEADLINE_S: Final = 10.0  # after which a client is better off being told to come again

api = FastAPI(title="resnet-deploy")


class Settings(BaseModel):
    """What ``serve run classifier:application NAME=VALUE ...`` takes.

    Attributes:
        engine: The bundle, at a path that every node has.
        threads: CPU threads of each replica, which Ray reserves for it.
        replicas: Engines side by side.
        max_delay_ms: How long a request may wait for company while the engine is free.
    """

    model_config = ConfigDict(extra="forbid")

    engine: Path
    threads: int = 1
    replicas: int = 1
    max_delay_ms: float = 2.0


class Class(BaseModel):
    """One class that an image may belong to."""

    index: int
    label: str
    probability: float


@api.exception_handler(ResnetDeployError)
async def explain(_: Request, error: ResnetDeployError) -> JSONResponse:
    """Answer with the one line that says what was wrong, and whose fault it was."""
    statuses = ((BusyError, 503), (DeadlineError, 504), (UserError, 400))
    status = next((status for kind, status in statuses if isinstance(error, kind)), 500)
    return JSONResponse({"error": error.message}, status_code=status)


@api.exception_handler(RequestValidationError)
async def explain_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
    """Answer likewise where a parameter of the address is none."""
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]} {first['input']!r}: {first['msg']}"}, status_code=400)


@serve.ingress(api)
class Classifier:
    """One engine, in a process of its own.

    Args:
        settings: As given on the command line.
    """

    def __init__(self, settings: Settings) -> None:
        batching = resnet_deploy.Batching(max_delay_s=settings.max_delay_ms / 1000)
        self._engine = resnet_deploy.load(settings.engine, threads=settings.threads, batching=batching)
        contract = self._engine.manifest.card.preprocess
        self._blank = np.zeros(contract.shape, contract.dtype)

    @api.post("/classify")
    async def classify(self, request: Request, top: int = 5) -> list[Class]:
        """Name the best classes of the image file that the body is, best first."""
        data = await request.body()
        # Cancelled with the request here, it is not submitted; cancelled below, it is never run.
        image = await asyncio.to_thread(self._prepared, data)
        answer = self._engine.submit(image, timeout_s=DEADLINE_S, block=False)
        logits = await asyncio.wrap_future(answer)
        (best,) = self._engine.rank(logits[np.newaxis], top)
        return [Class(index=one.index, label=one.label, probability=one.probability) for one in best]

    def _prepared(self, data: bytes) -> "NDArray[np.generic]":
        image: NDArray[np.generic] = self._engine.prepare([decode(Path("image"), data)])[0]
        return image

    async def check_health(self) -> None:
        """Run a blank image: Ray replaces a replica that raises, or does not answer, three times in a row."""
        logits = await asyncio.wrap_future(self._engine.submit(self._blank, timeout_s=DEADLINE_S))
        if not np.isfinite(logits).all():
            raise RuntimeError(f"the engine answers a blank image with {logits}")

    def __del__(self) -> None:
        """Close the engine: Ray calls this once the replica has answered what it had."""
        if hasattr(self, "_engine"):  # it has none if loading failed
            self._engine.close()


def application(settings: Settings) -> "Application":
    """Build the application that ``serve run`` starts."""
    deployment = serve.deployment(
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.threads},
        max_ongoing_requests=128,  # of a replica: two of the largest batches, one at work and one that gathers
        max_queued_requests=1024,  # that wait for a replica; Ray answers 503 to more
        health_check_period_s=10,
        graceful_shutdown_timeout_s=20,
    )
    bound: Application = deployment(Classifier).bind(settings)
    return bound
