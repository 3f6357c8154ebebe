r"""The text in which the graph compiler inside TensorRT writes its programs down, read into a tree of blocks.

Not documented anywhere; read off the plans of TensorRT-RTX 1.7.1::

    header {
      version = 5
      inputs={ "images.1" }
    }
    main {
     label bb1:
      corrltn={ name="conv1" output={"pool.1" } input={"images.1" "weights" } relu=true layers="[ONNX Layer: conv1]" }
    }

That is: keys with ``=`` and a word, a string or a block; blocks without ``=``; and words or strings by themselves.
"""

import re
from dataclasses import dataclass
from typing import Final

from resnet_deploy.errors import BundleError

MAX_CHARACTERS: Final = 8_000_000  # the largest program of a ResNet is a fifteenth of that
_MAX_DEPTH: Final = 16
_WORD: Final = r'[^\s{}="]+'
_ENTRY: Final = re.compile(
    rf"""\s*(?:(?P<end>\}})
    |(?:(?P<block>{_WORD})\s*(?:=\s*)?)?(?P<begin>\{{)
    |(?:(?P<key>{_WORD})\s*=\s*)?(?:"(?P<string>[^"]*)"|(?P<word>{_WORD})))""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """What stands between two braces: pairs of a key and a value, in order; the key is empty where there is none."""

    entries: "tuple[tuple[str, str | Block], ...]"

    def text(self, key: str) -> str:
        """Value of the first ``key``; empty where there is none or it is a block."""
        return next((value for name, value in self.entries if name == key and isinstance(value, str)), "")

    def words(self, key: str) -> tuple[str, ...]:
        """The words in the first block named ``key``; none where there is no such block."""
        block = self.block(key)
        return tuple(value for name, value in block.entries if not name and isinstance(value, str))

    def block(self, key: str) -> "Block":
        """The first block named ``key``; an empty one where there is none."""
        return next((value for name, value in self.entries if name == key and isinstance(value, Block)), EMPTY)

    def blocks(self) -> "tuple[tuple[str, Block], ...]":
        """Every block with its name, in order."""
        return tuple((name, value) for name, value in self.entries if isinstance(value, Block))


EMPTY: Final = Block(())


def parse_program(text: str) -> Block:
    """Read a program.

    Raises:
        BundleError: If it is too long, too deep, or not of this form.
    """
    if len(text) > MAX_CHARACTERS:
        raise BundleError(f"a program of {len(text)} characters, more than the {MAX_CHARACTERS} that are read")
    text = text.rstrip()
    parents: list[str] = []
    entries: list[list[tuple[str, str | Block]]] = [[]]  # of the blocks that are open, the outermost first
    position = 0
    while position < len(text):
        found = _ENTRY.match(text, position)
        if found is None or len(parents) > _MAX_DEPTH or (found["end"] and not parents):
            raise BundleError(f"a program that cannot be read at character {position}")
        position = found.end()
        if found["begin"]:
            parents.append(found["block"] or "")
            entries.append([])
        elif found["end"]:
            block = Block(tuple(entries.pop()))
            entries[-1].append((parents.pop(), block))
        else:
            entries[-1].append((found["key"] or "", found["word"] or found["string"] or ""))
    if parents:
        raise BundleError(f"a program that ends inside {parents[-1] or 'a list'}")
    return Block(tuple(entries[0]))
