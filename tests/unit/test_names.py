"""Names from users' folders as text."""

import os

from resnet_deploy.names import printable, readable


def test_bytes_that_are_no_text_are_written_as_escapes():
    assert readable("Grüße 模型") == "Grüße 模型"
    assert readable(os.fsdecode(b"a\xff/\xc3\xbc.png")) == r"a\xff/ü.png"


def test_what_steers_a_terminal_is_written_as_escapes():
    assert printable("a\x1b[2J\x1b]0;b\x07\nc\u202e\udcff") == r"a\x1b[2J\x1b]0;b\x07\nc\u202e\udcff"
    wide = "Grüße\N{NO-BREAK SPACE}模型\N{IDEOGRAPHIC SPACE}"
    assert printable(wide) == wide
