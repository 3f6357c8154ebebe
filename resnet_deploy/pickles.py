"""Whether a pickle is built as those of checkpoints are, told from its opcodes, none of which is executed.

PyTorch's restricted unpickler runs nothing that is unsafe, but takes what it is given: keys that are tuples in tuples
overflow its stack, and ones that hold themselves twice over keep it busy for ever, as do calls whose arguments are
lists that are handed out again and again. Here values are followed as what they hold: a text, ``None`` for a number
or any other single thing, and a list of these for whatever holds others.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Final, TypeAlias

_MOST_BYTES: Final = 2 << 20  # of a pickle; a ResNet-152's with the state of Adam has 0.23 MB
_MOST_IN_A_CALL: Final = 1 << 16  # values; the names and tensors of a state dict that Python 2 wrote are one call
_MOST_IN_CALLS: Final = 1 << 20  # values; a tensor takes some twenty
# An optimizer has such keys for its parameters. They can be made to collide, which costs the square of their number.
_MOST_NUMBERED: Final = 1 << 14
_DEEPEST: Final = 64
_UNIT: Final = 64  # characters of a text that count as a value
# The one fills as much memory as it is told to, the other takes the square of a text's length with some encodings.
_REFUSED: Final = frozenset({"builtins bytearray", "__builtin__ bytearray", "_codecs encode"})

Value: TypeAlias = "str | list[Value] | None"


class OddPickleError(ValueError):
    """A pickle is built as no checkpoint is; in words that can follow its name."""


def scan_pickle(file: IO[bytes]) -> Value:
    """Follow one pickle to its end, where ``file`` is left.

    Returns:
        What it makes: texts, ``None`` for single things, and lists for what holds others, keys and values in turn.

    Raises:
        OddPickleError: If it is built as no checkpoint is.
        ValueError, LookupError: If it is damaged.
    """
    machine = _Machine()
    for opcode, argument, position in pickletools.genops(file):
        if (position or 0) > _MOST_BYTES:
            raise OddPickleError("describes its tensors in more bytes than thousands need")
        if opcode.name not in _STEPS:
            raise ValueError(f"PyTorch knows no opcode {opcode.name}")
        _STEPS[opcode.name](machine, argument)
    return machine.stack.pop()


def require_plain(value: Value, most: int = _MOST_IN_A_CALL) -> int:
    """Count the values in ``value``, those that it holds several times as often as it does.

    Raises:
        OddPickleError: If there are too many, or they are nested too deep.
    """
    count, waiting = 0, [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        count += 1 + (len(one) // _UNIT if isinstance(one, str) else 0)
        if depth > _DEEPEST:
            raise OddPickleError(f"nests values more than {_DEEPEST} deep")
        if count > most:
            raise OddPickleError("makes too much of what it holds")
        if isinstance(one, list):
            waiting.extend((inner, depth + 1) for inner in one)
    return count


@dataclass
class _Machine:
    """What an unpickler has in hand, with an effect of each opcode as a method."""

    stack: list[Value] = field(default_factory=list)
    below: list[list[Value]] = field(default_factory=list)  # the stacks under each mark
    memo: dict[int, Value] = field(default_factory=dict)
    numbered: int = 0
    called: int = 0

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Value]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def take(self, count: int) -> list[Value]:
        if count > len(self.stack):
            raise IndexError
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def extend(self, items: list[Value]) -> None:
        """Put items into the list at the top."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("an item for what holds none")  # noqa: TRY004 (damage, not a caller's mistake)
        target.extend(items)

    def set_items(self, items: list[Value]) -> None:
        """Put keys and values into the dictionary at the top."""
        for key in items[::2]:
            if isinstance(key, list):
                raise OddPickleError("has a key that is neither a name nor a number")
            self.numbered += key is None
        if self.numbered > _MOST_NUMBERED:
            raise OddPickleError(f"has more than {_MOST_NUMBERED} keys that are numbers")
        self.extend(items)

    def call(self) -> None:
        """Call the function under the arguments, or hand them as state to the object there."""
        arguments = self.stack.pop()
        self.called += require_plain(arguments)
        if self.called > _MOST_IN_CALLS:
            raise OddPickleError("makes too much of what it holds")
        called = self.stack.pop()
        self.stack.append([called, arguments])

    def set_state(self) -> None:
        """Hand state to the object at the top, which stays the same one."""
        state = self.stack.pop()
        self.called += require_plain(state)
        self.extend([state])

    def find(self, name: str) -> None:
        if name in _REFUSED:
            raise OddPickleError(f"calls {name.rpartition(' ')[2]}")
        self.stack.append(name)

    def find_storage(self) -> None:
        require_plain(self.stack.pop())
        self.stack.append(None)


def _nothing(_machine: _Machine, _argument: object) -> None:
    pass


def _put(machine: _Machine, argument: object) -> None:
    assert isinstance(argument, int)
    machine.memo[argument] = machine.stack[-1]


def _get(machine: _Machine, argument: object) -> None:
    assert isinstance(argument, int)
    machine.push(machine.memo[argument])


# Those that PyTorch takes.
_STEPS: Final[dict[str, Callable[[_Machine, object], None]]] = {
    **dict.fromkeys(("PROTO", "STOP"), _nothing),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), lambda machine, argument: machine.push(str(argument))),
    **dict.fromkeys(
        ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"),
        lambda machine, _: machine.push(None),
    ),
    **dict.fromkeys(("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), lambda machine, _: machine.push([])),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.push(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.take(3)),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": lambda machine, argument: machine.find(str(argument)),
    "BINPERSID": lambda machine, _: machine.find_storage(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.set_state(),
}
