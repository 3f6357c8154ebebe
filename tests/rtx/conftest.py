"""What a build that failed leaves behind goes before the next begins."""

import gc

import pytest


@pytest.fixture(autouse=True)
def nothing_of_the_compiler_is_left():
    """Free what is in a cycle with an error: a builder freed while another compiles may wait for that one's lock."""
    yield
    gc.collect()
