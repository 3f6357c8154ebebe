"""The kinds of requests that a soak makes, every answer held against that of the image alone."""

import asyncio
import contextlib
import importlib.util
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from soak_records import Load, Opening

from resnet_deploy.engine import Engine, load
from resnet_deploy.errors import BusyError, DataError, DeadlineError, FeedError, FileError
from resnet_deploy.microbatching import Batching
from resnet_deploy.pipeline.synthetic import synthetic_images
from resnet_deploy.runners import shares_requests

IMAGES = 32  # different ones
CANDIDATES = 256  # that they are chosen from
FILES = 8
MOST_AT_ONCE = 96  # of a call: more than one batch of the default engine
FLOOD = 160  # images asked for at once, of which some have to be refused
BATCHING = Batching(max_waiting=64)
ANSWER_WITHIN_S = 60.0  # a request that takes longer is taken for lost
EXAMPLE = Path(__file__).parents[1] / "examples" / "ctypes" / "classify_raw.py"

Floats = NDArray[np.float32]
Picks = NDArray[np.intp]


class WrongError(Exception):
    """An answer that is not as it has to be."""


@dataclass
class Golden:
    """Images, and the answer to each alone.

    Attributes:
        images: (N, *input.shape), as the engine takes them.
        logits: (N, classes).
        files: Images as PNG files; their answers are ``of_files``.
        of_files: (len(files), classes).
        opening: What differences are allowed.
        worst: Largest difference so far; read and set to 0 when a window ends.
    """

    images: NDArray[Any]
    logits: Floats
    files: list[Path]
    of_files: Floats
    opening: Opening
    worst: float = 0.0

    def check(self, answers: Any, picks: Picks) -> None:
        """Hold the answers to ``picks`` of the images against those that they have alone."""
        self.compare(np.asarray(answers), self.logits[picks])

    def compare(self, answers: NDArray[Any], expected: Floats) -> None:
        """Hold answers against those expected.

        Raises:
            WrongError: If there are more or fewer, or one is further off than allowed, or not a number.
        """
        if answers.shape != expected.shape:
            raise WrongError(f"answers of shape {answers.shape}, not {expected.shape}")
        off = float(np.abs(answers - expected).max(initial=0.0))
        if not off <= self.opening.tolerance:
            row = int(np.abs(answers - expected).max(axis=-1).argmax()) if answers.ndim > 1 else 0
            raise WrongError(f"a logit is off by {off:.3g}, row {row} of {len(answers)}")
        self.worst = max(self.worst, off)


def make_golden(engine: Engine, folder: Path, seed: int) -> Golden:
    """Choose images whose answers are far apart, and keep the answer to each alone.

    The first chosen is the first candidate, the next always the one that is furthest from all before. A logit may be
    off by a quarter of the smallest distance between two answers: kernels may round otherwise at another batch size,
    which moves logits by far less, while the answer to another image, or memory that nobody wrote to, is beyond it.
    """
    candidates = synthetic_images(engine.manifest.card.preprocess, CANDIDATES, seed=seed)
    answers = one_by_one(engine, candidates)
    chosen, distances = [0], np.abs(answers - answers[0]).max(axis=1)
    while len(chosen) < IMAGES:
        chosen.append(int(distances.argmax()))
        apart = float(distances.max())
        distances = np.minimum(distances, np.abs(answers - answers[chosen[-1]]).max(axis=1))
    files = [folder / f"{number}.png" for number in range(FILES)]
    draw = np.random.default_rng(seed)
    for path in files:
        pixels = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC).save(path)
    largest = float(np.abs(answers[chosen]).max())
    opening = Opening(images=IMAGES, largest=largest, apart=apart, tolerance=apart / 4)
    prepared = engine.prepare(files)
    return Golden(candidates[chosen], answers[chosen], files, one_by_one(engine, prepared), opening)


def one_by_one(engine: Engine, images: NDArray[Any]) -> Floats:
    """Run each image in a call of its own."""
    return np.concatenate([engine(images[row : row + 1]) for row in range(len(images))])


@dataclass
class Subject:
    """What requests are made to.

    Attributes:
        engine: The one under load.
        golden: What it has to answer.
        load: What was asked for.
        c_engine: The same bundle opened by the C library; None for none.
        outcomes: How often requests ended as they asked for, otherwise than by an answer.
    """

    engine: Engine
    golden: Golden
    load: Load
    c_engine: Any = None
    outcomes: Counter[str] = field(default_factory=Counter)

    def draw(self, rng: np.random.Generator, most: int) -> Picks:
        """Pick 1 to ``most`` images, small numbers more often."""
        count = int(np.exp(rng.uniform(0, np.log(most + 1))))
        return rng.integers(0, len(self.golden.images), count)

    def answer(self, future: "Future[Any]") -> Any:
        """Wait for an answer, but not for ever."""
        return future.result(timeout=ANSWER_WITHIN_S)


Request = Callable[[Subject, np.random.Generator], int]  # makes a request, or a few; says how many images it asked for


def call(subject: Subject, rng: np.random.Generator) -> int:
    """Call the engine with any number of images."""
    picks = subject.draw(rng, MOST_AT_ONCE)
    subject.golden.check(subject.engine(subject.golden.images[picks]), picks)
    return len(picks)


def call_into(subject: Subject, rng: np.random.Generator) -> int:
    """Call with ``out`` inside larger memory, of which nothing else may be written to."""
    picks, classes = subject.draw(rng, MOST_AT_ONCE), subject.golden.logits.shape[1]
    memory = np.full((len(picks) + 2, classes), np.nan, np.float32)
    out = memory[1:-1]
    if subject.engine(subject.golden.images[picks], out=out) is not out:
        raise WrongError("not the array that was given")
    subject.golden.check(out, picks)
    if not np.isnan(memory[[0, -1]]).all():
        raise WrongError("memory beside the array that was given was written to")
    return len(picks)


def call_torch(subject: Subject, rng: np.random.Generator) -> int:
    """Call with a tensor of PyTorch, every other image of which is asked for, and a tensor for the logits."""
    picks = subject.draw(rng, MOST_AT_ONCE)
    images = torch.from_numpy(subject.golden.images[np.repeat(picks, 2)])[::2]
    out = torch.full((len(picks), subject.golden.logits.shape[1]), torch.nan)
    subject.engine(images, out=out)
    subject.golden.check(out.numpy(), picks)
    return len(picks)


def call_files(subject: Subject, rng: np.random.Generator) -> int:
    """Call with files and Pillow images."""
    picks = rng.integers(0, FILES, int(rng.integers(1, 5)))
    pictures: list[Any] = [subject.golden.files[pick] for pick in picks]
    with Image.open(pictures[0]) as image:
        pictures[0] = image.convert("RGB")
    subject.golden.compare(subject.engine(pictures), subject.golden.of_files[picks])
    return len(picks)


def submit(subject: Subject, rng: np.random.Generator) -> int:
    """Submit one image or a few, and wait."""
    picks = subject.draw(rng, 8)
    images = subject.golden.images
    if len(picks) == 1:
        answer = subject.answer(subject.engine.submit(images[picks[0]]))[np.newaxis]
    else:
        answer = subject.answer(subject.engine.submit(torch.from_numpy(images[picks])))
    subject.golden.check(answer, picks)
    return len(picks)


def cancel(subject: Subject, rng: np.random.Generator) -> int:
    """Submit images one by one and cancel each second, which is run nevertheless if it was begun."""
    picks = subject.draw(rng, 16)
    futures = [subject.engine.submit(subject.golden.images[pick]) for pick in picks]
    for future in futures[::2]:
        future.cancel()
    return _settle(subject, futures, picks, (CancelledError,))


def deadline(subject: Subject, rng: np.random.Generator) -> int:
    """Submit with a deadline that may pass before the engine is free, or before there is room."""
    picks = subject.draw(rng, 16)
    timeout_s = float(rng.choice([1e-6, 1e-3, 1e-2]))
    futures: list[Future[Any]] = []
    try:
        futures.extend(subject.engine.submit(subject.golden.images[pick], timeout_s=timeout_s) for pick in picks)
    except DeadlineError:
        subject.outcomes["deadline: DeadlineError of submit"] += 1
    return _settle(subject, futures, picks[: len(futures)], (DeadlineError,))


def flood(subject: Subject, rng: np.random.Generator) -> int:
    """Submit more than may wait, as an event loop does; what is refused has to be told by BusyError."""
    picks = rng.integers(0, IMAGES, FLOOD)
    futures: list[Future[Any]] = []
    try:
        futures.extend(subject.engine.submit(subject.golden.images[pick], block=False) for pick in picks)
    except BusyError:
        subject.outcomes["flood: BusyError"] += 1
    return _settle(subject, futures, picks[: len(futures)], ())


def refused(subject: Subject, rng: np.random.Generator) -> int:
    """Ask for what has to be refused."""
    images, engine = subject.golden.images[:2], subject.engine
    asked: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: engine(images.astype(np.float64)), FeedError),
        (lambda: engine(images[:, 1:]), FeedError),
        (lambda: engine(images, out=np.empty((3, 1), np.float32)), FeedError),
        (lambda: engine(torch.from_numpy(images).float().requires_grad_()), FeedError),
        (lambda: engine(object()), FeedError),
        (lambda: engine([subject.golden.files[0].with_name("missing.png")]), FileError),
        (lambda: engine([subject.golden.files[0].with_name("text.png")]), DataError),
        (lambda: engine.submit(images[:0]), FeedError),
        (lambda: engine.submit(images[0, 1:]), FeedError),
        (lambda: engine.submit(np.repeat(images, 200, axis=0)), FeedError),
    ]
    subject.golden.files[0].with_name("text.png").write_text("no picture")
    ask, error = asked[rng.integers(len(asked))]
    try:
        ask()
    except error:
        subject.outcomes[f"refused: {error.__name__}"] += 1
        return 0
    raise WrongError(f"not refused with {error.__name__}")


def event_loop(subject: Subject, rng: np.random.Generator) -> int:
    """Await answers in an event loop of its own, some no longer than a moment."""
    picks = subject.draw(rng, 16)

    async def one(pick: int, *, moment: bool) -> object:
        future = asyncio.wrap_future(subject.engine.submit(subject.golden.images[pick], block=False))
        return await asyncio.wait_for(future, 1e-3 if moment else ANSWER_WITHIN_S)

    async def every() -> list[Any]:
        asked = (one(int(pick), moment=bool(row % 4 == 3)) for row, pick in enumerate(picks))
        return await asyncio.gather(*asked, return_exceptions=True)

    for row, (answer, pick) in enumerate(zip(asyncio.run(every()), picks, strict=True)):
        if isinstance(answer, BusyError) or (row % 4 == 3 and isinstance(answer, TimeoutError | asyncio.TimeoutError)):
            subject.outcomes[f"event_loop: {type(answer).__name__}"] += 1
        elif isinstance(answer, BaseException):
            raise answer
        else:
            subject.golden.compare(answer, subject.golden.logits[pick])
    return len(picks)


def other_engine(subject: Subject, rng: np.random.Generator) -> int:
    """Load the bundle once more, call it, and close it with requests under way, answered or not."""
    spec = subject.engine.manifest.spec
    count = 2 if shares_requests(spec.backend) and rng.random() < 0.5 else 1
    other, drain = load(subject.engine.bundle.path, threads=1, requests=count), bool(rng.random() < 0.5)
    with contextlib.closing(other):
        picks = rng.integers(0, IMAGES, MOST_AT_ONCE)
        subject.golden.check(other(subject.golden.images[picks]), picks)
        futures = [other.submit(subject.golden.images[pick]) for pick in picks]
        other.close(drain=drain)
    if not all(future.done() for future in futures):
        raise WrongError("closed with a request that has no answer")
    return len(picks) + _settle(subject, futures, picks, () if drain else (CancelledError,))


def c_call(subject: Subject, rng: np.random.Generator) -> int:
    """Call the C library with images in memory."""
    picks = subject.draw(rng, MOST_AT_ONCE)
    subject.golden.check(c_infer(subject.c_engine, subject.golden.images[picks]), picks)
    return len(picks)


def c_infer(engine: Any, images: NDArray[Any]) -> Floats:
    """Run contiguous images by the C library."""
    answers = engine.infer(images.ctypes.data, images.nbytes, len(images))
    return np.array(answers, np.float32).reshape(len(images), -1)


def _settle(
    subject: Subject, futures: "list[Future[Any]]", picks: Picks, allowed: tuple[type[BaseException], ...]
) -> int:
    """Wait for one answer to each request; it may fail as ``allowed``."""
    for future, pick in zip(futures, picks, strict=True):
        with contextlib.suppress(*allowed):
            subject.golden.compare(subject.answer(future), subject.golden.logits[pick])
            continue
        subject.outcomes[f"{allowed[0].__name__} of a request"] += 1
    return len(futures)


# What threads choose from, and how often.
KINDS: dict[str, tuple[Request, float]] = {
    "call": (call, 6),
    "call into": (call_into, 3),
    "call torch": (call_torch, 3),
    "call files": (call_files, 3),
    "submit": (submit, 8),
    "cancel": (cancel, 3),
    "deadline": (deadline, 3),
    "flood": (flood, 1),
    "refused": (refused, 3),
    "event loop": (event_loop, 3),
    "other engine": (other_engine, 0.2),
}
C_KINDS: dict[str, tuple[Request, float]] = {"C library": (c_call, 3)}


def open_c_engine(library: Path, bundle: Path) -> Any:
    """Open a bundle by the C library, as the example does."""
    spec = importlib.util.spec_from_file_location("classify_raw", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example.Engine(example.Library(library), bundle)
