"""A lock in the order of asking: first come, first served, whatever strikes who waits."""

import os
import threading
import time

import pytest

from resnet_deploy import fair_lock
from resnet_deploy.errors import FeedError
from resnet_deploy.fair_lock import FairLock, Signal, require_process

LONG_S = 20.0


def await_line(line, count):
    end = time.monotonic() + LONG_S
    while len(line._line) < count:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch):
    """Whoever is not woken sleeps for longer than any test."""
    monkeypatch.setattr(fair_lock, "LOOK_AGAIN_S", 100 * LONG_S)


def test_turns_come_in_the_order_of_asking():
    line, order = FairLock(), []

    def ask(number):
        for again in range(3):  # and again at once, as a long call does
            with line.held():
                order.append((again, number))
                if not again:
                    await_line(line, 4 - number)  # nobody is through before all are in line

    with line.held():
        assert not line.is_wanted
        threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(4)]
        for count, thread in enumerate(threads, 2):
            thread.start()
            await_line(line, count)
        assert line.is_wanted
    for thread in threads:
        thread.join(LONG_S)
        assert not thread.is_alive()
    assert [number for again, number in order if not again] == [0, 1, 2, 3]
    last_first = max(place for place, (again, _) in enumerate(order) if not again)
    assert len(order) == 12
    assert last_first < 8  # while three others were in line, nobody had three turns
    assert not line._line


def test_who_is_interrupted_leaves_the_line(monkeypatch):
    line = FairLock()

    def strike(self, seconds):
        raise KeyboardInterrupt

    with line.held():
        with monkeypatch.context() as patch:
            patch.setattr(Signal, "wait", strike)
            with pytest.raises(KeyboardInterrupt):
                line.held().__enter__()
        assert not line.is_wanted
    with line.held():
        pass


def test_a_turn_that_was_had_and_not_begun_is_given_up():
    """As an interrupt between the generator and the body of the ``with`` leaves it."""
    line = FairLock()
    turn = line.held()
    turn.__enter__()
    assert len(line._line) == 1
    del turn
    assert not line._line


def test_another_process_is_refused():
    require_process(os.getpid())
    with pytest.raises(FeedError, match="opened in another process") as caught:
        require_process(os.getppid())
    assert "after the fork" in caught.value.hint
