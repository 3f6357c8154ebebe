"""How engines are to be timed: a frozen, validated value."""

import math
from collections.abc import Sequence
from typing import Final, Literal, get_args

import msgspec

from resnet_deploy.errors import SpecError
from resnet_deploy.specs import MAX_BATCH, MAX_THREADS, require_at_most, require_choice

Scope = Literal["host", "device", "h2d", "d2h", "end_to_end"]

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
# Whole calls; the other scopes are a part of one.
WHOLE_CALLS: Final[tuple[Scope, ...]] = ("host", "end_to_end")
# A turn of fewer paced calls says little of how an engine keeps up.
LEAST_PACED_CALLS: Final = 5
# Calls per second. Beyond this the harness itself, some microseconds a call, is what one measures.
MAX_RATE: Final = 100_000


class BenchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How engines are timed: in every combination of batch size, scope, callers, graphs and pace that makes sense.

    Attributes:
        batches: Batch sizes, each measured where an engine takes it; none above ``MAX_BATCH``.
        seconds: Time spent on one engine in one way of calling it, over all rounds.
        rounds: Turns that each engine gets. `compare` tells slowdowns of 5 % from noise with some 20 of them.
        seed: Of the order of the turns.
        scopes: What lies inside the timer, as ``records.Samples`` has it.
        concurrency: How many callers at once, each with an engine of its own and its share of the threads. Parts of a
            call are timed with one caller only: beside others, a part waits for their other parts.
        graphs: With and without CUDA graphs, where the backend has them.
        rates: Calls per second, at even distances, that whole calls are measured at beside the closed loop; of each at
            least ``LEAST_PACED_CALLS`` fall into a turn.

    Raises:
        SpecError: If a value is out of range or named twice, there is no round or no time to measure in, or a choice
            has no effect on the others.
    """

    batches: tuple[int, ...] = (1, 8, 32)
    seconds: float = 3.0
    rounds: int = 20
    seed: int = 0
    scopes: tuple[Scope, ...] = ("host",)
    concurrency: tuple[int, ...] = (1,)
    graphs: tuple[bool, ...] = (True,)
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise SpecError(f"batch sizes {list(self.batches)}", hint="give distinct positive sizes, such as 1,8,32")
        require_at_most("batch size", max(self.batches), MAX_BATCH)
        if self.rounds < 1 or not 0 < self.seconds < math.inf:
            raise SpecError(
                f"{self.rounds} rounds in {self.seconds} seconds",
                hint="measure for a positive time in at least one round",
            )
        for scope in self.scopes:
            require_choice("scope", scope, SCOPES)
        if not self.scopes or len(set(self.scopes)) < len(self.scopes):
            raise SpecError(f"scopes {list(self.scopes)}", hint="name each once, such as host,device")
        if not self.graphs or len(set(self.graphs)) < len(self.graphs):
            raise SpecError(f"graphs {list(self.graphs)}", hint="measure with them, without, or both")
        _require_callers(self.concurrency)
        _require_rates(self.rates)
        if (self.rates or max(self.concurrency) > 1) and not set(self.scopes) & set(WHOLE_CALLS):
            raise SpecError(
                f"{', '.join(self.scopes)} is a part of a call: it is timed with one caller, in a closed loop",
                hint=f"add {' or '.join(WHOLE_CALLS)} to the scopes, or drop concurrency and rate",
            )
        if self.rates:
            _require_paced_calls(min(self.rates), self.seconds, self.rounds)


def _require_callers(concurrency: Sequence[int]) -> None:
    if not concurrency or min(concurrency) < 1 or len(set(concurrency)) < len(concurrency):
        raise SpecError(f"callers {list(concurrency)}", hint="give distinct positive numbers, such as 1,2,4")
    require_at_most("number of callers", max(concurrency), MAX_THREADS)


def _require_rates(rates: Sequence[float]) -> None:
    if len(set(rates)) < len(rates) or not all(0 < rate <= MAX_RATE for rate in rates):
        raise SpecError(
            f"rates {list(rates)}", hint=f"give distinct numbers of calls per second, at most {MAX_RATE:,}, such as 50"
        )


def _require_paced_calls(rate: float, seconds: float, rounds: int) -> None:
    """Refuse a rate so low that a turn would hardly be paced."""
    least = LEAST_PACED_CALLS * rounds / rate
    if seconds >= least or math.isclose(seconds, least):  # what is hinted must do, however it was rounded
        return
    fewer = int(rate * seconds / LEAST_PACED_CALLS)
    raise SpecError(
        f"at {rate:g} calls/s, {rate * seconds / rounds:.3g} fall into a turn of {seconds / rounds:g} s,"
        f" and pacing takes {LEAST_PACED_CALLS}",
        hint=f"give --seconds {math.ceil(least * 10) / 10:g}" + (f", or at most --rounds {fewer}" if fewer else ""),
    )
