"""What is refused in a pickle before PyTorch reads it; each case is one that PyTorch's unpickler would take."""

import io
import pickle
from collections import Counter, OrderedDict

import pytest

from resnet_deploy import pickles
from resnet_deploy.pickles import OddPickleError, require_plain, scan_pickle

START = b"\x80\x02"


def scan(body):
    return scan_pickle(io.BytesIO(START + body + b"."))


def call(name, arguments):
    module, _, function = name.partition(" ")
    return f"c{module}\n{function}\n".encode() + arguments + b"R"


def doubled(times, inner=b")"):
    """A tuple that holds itself twice over, so many times: ``t = (t, t)``."""
    return inner + b"q\x00h\x00\x86" * times


NEW = call("collections OrderedDict", b")")
LONG = b"X\0\0\x10\0" + b"a" * (1 << 20) + b"q\1"
ORDINARY = {"state_dict": OrderedDict(a=1.5, b=(2, 3)), "epoch": 3, "steps": Counter({30: 1}), "seen": {1, "x"}}


def test_an_ordinary_pickle_is_followed_to_its_end():
    file = io.BytesIO(pickle.dumps(ORDINARY, protocol=2) + b"rest")
    made = scan_pickle(file)
    assert made[::2] == ["state_dict", "epoch", "steps", "seen"]
    assert file.read() == b"rest"
    assert made[1][2:] == ["a", None, "b", [None, None]]  # after the call that made the OrderedDict
    assert require_plain(made) == 27


@pytest.mark.parametrize(
    ("body", "reason"),
    {
        "a tuple as a key": (b"}K\x01\x85Ns", "a key that is neither"),
        "tuples in tuples as a key": (b"}(" + b")" + b"\x85" * 100_000 + b"Nu", "a key that is neither"),
        "a doubled tuple as a key": (b"}" + doubled(60) + b"Ns", "a key that is neither"),
        "the result of a call as a key": (b"}" + call("torch Size", b")\x85") + b"Ns", "a key that is neither"),
        "a deep argument": (call("builtins set", b")" + b"\x85" * 100_000), "nests values"),
        "a doubled argument": (call("builtins set", doubled(60) + b"\x85"), "makes too much"),
        "a deep state": (NEW + b"}X\1\0\0\0a)" + b"\x85" * 99 + b"sb", "nests values"),
        "a deep storage": (b")" + b"\x85" * 99 + b"Q", "nests values"),
        "a list of itself as an argument": (call("builtins set", b"]q\1h\1a\x85"), "nests values"),
        "memory": (call("builtins bytearray", b"J\0\0\0\x7f\x85"), "calls bytearray"),
        "memory, by an older name": (call("__builtin__ bytearray", b"J\0\0\0\x7f\x85"), "calls bytearray"),
        "an encoding": (call("_codecs encode", b"X\1\0\0\0aX\x08\0\0\0punycode\x86"), "calls encode"),
        "many numbers as keys": (b"}(" + b"K\1N" * 17_000 + b"u", "more than 16384 keys"),
        "a long text again and again": (LONG + call("x y", b"(" + b"h\1" * 9 + b"t"), "makes too much"),
        "many bytes": (b"N" * (2 << 20), "more bytes"),
    }.values(),
)  # fmt: skip
def test_what_no_checkpoint_has_is_refused(body, reason):
    with pytest.raises(OddPickleError, match=reason):
        scan(body)


def test_calls_are_counted_together():
    once = b"c__builtin__\nset\nh\1\x85R"
    thousand = b"]q\1(" + b"K\1" * 1000 + b"e("
    scan(thousand + once * 1000 + b"t")
    with pytest.raises(OddPickleError, match="makes too much"):
        scan(thousand + once * 1100 + b"t")


def test_a_list_that_grows_after_it_was_handed_out():
    body = b"]q\1\x85q\2" + b"](h\1(" + b"K\1" * 70_000 + b"e" + b"t"
    scan(body)  # alone it is sound
    with pytest.raises(OddPickleError, match="makes too much"):
        scan(body + b"cbuiltins\nset\nh\2R")


@pytest.mark.parametrize(
    "body",
    [b"", b"a", b"\x85", b"t", b"h\1", b"Na", b"K\1(Nu", pickle.dumps(ORDINARY, protocol=4)[2:-1], b"c\xff\n\xff\n"],
    ids=lambda body: str(len(body)),  # its repr would depend on the process: two workers must name tests alike
)
def test_what_is_damaged_is_no_oddity(body):
    with pytest.raises((ValueError, LookupError)) as caught:
        scan(body)
    assert not isinstance(caught.value, OddPickleError)


def test_every_opcode_that_pytorch_takes_is_followed():
    unpickler = pytest.importorskip("torch._weights_only_unpickler")
    import pickletools

    names = {one.name for one in pickletools.opcodes if one.code in known_to(unpickler)}
    assert len(names) > 30
    assert set(pickles._STEPS) == names


def known_to(unpickler):
    """Codes of the opcodes that the module imports."""
    return {
        value.decode("latin-1") for name, value in vars(unpickler).items() if name.isupper() and type(value) is bytes
    }
