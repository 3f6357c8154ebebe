"""What every command's options have in common."""

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from resnet_deploy.cli.options import refuse_idle
from resnet_deploy.errors import SpecError


@pytest.mark.parametrize("arguments", [[], ["one"]])
@pytest.mark.parametrize("is_old", [False, True])
def test_arguments_are_idle_where_there_are_some(monkeypatch, arguments, is_old):
    """Click 8.2 takes arguments for given that are not."""

    @click.command()
    @click.argument("engines", nargs=-1)
    def command(engines):
        refuse_idle("--suite FILE", "engines", hint="say it in the file")

    if is_old:
        monkeypatch.setattr(click.Context, "get_parameter_source", lambda *_: ParameterSource.COMMANDLINE)
    error = CliRunner().invoke(command, arguments).exception
    assert isinstance(error, SpecError if arguments else type(None))
