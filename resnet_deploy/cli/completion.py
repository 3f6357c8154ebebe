"""What the shell is offered where a word is one of a few; nothing here loads a heavy library."""

from collections.abc import Callable, Iterable
from typing import Final

import click
from click.shell_completion import CompletionItem

from resnet_deploy.backends import BACKENDS

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

# Those of `models.ARCHITECTURES`, which is not asked: it comes with PyTorch, a second on every press of the key.
ARCHITECTURES: Final = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "plain18", "plain34")


def one_of(words: Iterable[str]) -> Completer:
    """Offer the words that begin as typed."""
    known = tuple(words)

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        return [CompletionItem(word) for word in known if word.startswith(incomplete)]

    return complete


def several_of(words: Iterable[str]) -> Completer:
    """Offer the words that go on a list with commas, without those that are in it already."""
    known = tuple(words)

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        head, comma, last = incomplete.rpartition(",")
        there = head.split(",")
        return [CompletionItem(head + comma + word) for word in known if word.startswith(last) and word not in there]

    return complete


def builders() -> tuple[str, ...]:
    """Name the backends that engines are built for."""
    return tuple(backend.name for backend in BACKENDS if backend.builder)
