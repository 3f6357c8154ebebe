"""The error tree is what its drawing says."""

import inspect
import re

import pytest

from resnet_deploy import errors

CLASSES = {
    name: one for name, one in vars(errors).items() if inspect.isclass(one) and one.__module__ == errors.__name__
}


def drawn_tree():
    """Parent, depth and text of each class in the docstring of the module."""
    found, ancestors = {}, []
    for line in errors.__doc__.splitlines():
        drawn = re.fullmatch(r"    ([│├└─ ]*)(\w+Error) +(\S.*)", line)
        if drawn:
            depth = len(drawn[1]) // 4
            ancestors[depth:] = [drawn[2]]
            found[drawn[2]] = (ancestors[-2] if depth else "Exception", drawn[3])
    return found


def test_every_class_is_drawn_below_its_parent():
    tree = drawn_tree()
    assert len(tree) > 10
    assert {name: parent for name, (parent, _) in tree.items()} == {
        name: one.__base__.__name__ for name, one in CLASSES.items()
    }


def test_exit_codes_are_those_in_the_drawing():
    stated = {
        name: int(code[1]) for name, (_, text) in drawn_tree().items() if (code := re.match(r"exit code (\d)", text))
    }
    assert stated == {"ResnetDeployError": 1, "UserError": 2}
    for name, one in CLASSES.items():
        assert one.exit_code == (2 if issubclass(one, errors.UserError) else 1), name


def test_what_is_escaped_is_cut_afterwards():
    assert len(errors.UserError("\U000e0001" * 10_000).message) == len(errors.UserError("a" * 10_000).message) == 1005
    assert errors.UserError("a\U000e0001").message == r"a\U000e0001"


def test_spaces_of_any_width_are_left_and_ends_of_lines_are_not():
    assert errors.UserError("Bild\u00a01\u202f.png").message == "Bild\u00a01\u202f.png"
    assert errors.UserError("a\u2028b\u2029c").message == r"a\u2028b\u2029c"


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES.keys())
def test_message_and_hint(kind):
    error = kind("what was wrong", hint="what to do")
    assert (str(error), error.message, error.hint) == ("what was wrong", "what was wrong", "what to do")
    assert kind("only this").hint == ""
    assert isinstance(error, errors.ResnetDeployError)
