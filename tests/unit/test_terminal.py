"""Progress on a terminal: what moves, and what must not move beside a timed turn."""

import io
import threading

import pytest
from rich.console import Console

from resnet_deploy.cli import terminal
from resnet_deploy.cli.terminal import TerminalProgress


@pytest.fixture
def screen(monkeypatch):
    """What is drawn on a pretended terminal."""
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, force_interactive=True, width=100)
    monkeypatch.setattr(terminal, "Console", lambda **_: console)
    return drawn


@pytest.mark.parametrize("still", [True, False])
def test_nothing_runs_beside_the_items_where_they_are_timed(screen, still):
    before = set(threading.enumerate())
    beside = [set(threading.enumerate()) - before for _ in TerminalProgress().track("abc", "timing", 3, still=still)]
    assert [bool(one) for one in beside] == [not still] * 3


def test_what_is_still_is_drawn_between_items(screen):
    seen = []
    for number in TerminalProgress().track(range(3), "timing", 3, still=True):
        seen.append(f"{number}/3" in screen.getvalue())
        assert f"{number + 1}/3" not in screen.getvalue()
    assert seen == [True] * 3
    assert "3/3" in screen.getvalue()
