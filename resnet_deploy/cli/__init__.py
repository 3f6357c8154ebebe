"""The command line: parse, make a spec, call the pipeline, print.

The only place that prints, exits or reads the environment. Each command is a file of its own, imported when it is used,
and none imports a heavy library at the top.
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from resnet_deploy.cli import output, signals
from resnet_deploy.errors import FileError, ResnetDeployError, SpecError, UserError
from resnet_deploy.version import __version__

_SECTIONS: Final = {
    "Make engines": ("export", "build", "calibrate", "merge", "prebuild", "run"),
    "Measure them": ("bench", "compare", "evaluate", "loadgen", "verify", "report"),
    "Use them": ("predict", "package"),
    "Look": ("inspect", "doctor"),
}
COMMANDS: Final = tuple(name for names in _SECTIONS.values() for name in names)


# What PyTorch's RuntimeError says then, and that of its exporter, which quotes it.
_PYTORCH_LACKS_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"


class _ReportedError(click.ClickException):
    """An error raised on purpose, as two lines on stderr."""

    def __init__(self, error: ResnetDeployError) -> None:
        super().__init__(error.message)
        self.exit_code = error.exit_code  # type: ignore[misc]  # click sets it on instances too
        self.hint = error.hint

    def show(self, file: Any = None) -> None:
        """Print what was wrong and what to do."""
        # click drops colours where there is no terminal, and does not know of https://no-color.org.
        color = False if os.environ.get("NO_COLOR") else None
        click.secho(f"error: {self.message}", err=True, file=file, fg="red", color=color)
        if self.hint:
            click.echo(f"hint: {self.hint}", err=True, file=file)


class _LazyGroup(click.Group):
    """Imports a command when it is needed, and turns our errors into messages."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        output.replace_what_cannot_be_shown()
        try:
            with signals.orderly_end():
                return super().main(*args, **kwargs)  # ends quietly where nobody reads on
        except OSError as error:
            if not output.is_to_blame(error):
                raise
            output.give_up()
            lost = FileError(
                f"standard output: {error.strerror}", hint="send it elsewhere; what was written to files is whole"
            )
            _ReportedError(lost).show()
            sys.exit(lost.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"resnet_deploy.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            alike = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean `{ctx.command_path} {alike[0]}`?" if alike else f"see `{ctx.command_path} --help`"
            raise SpecError(f"no such command {name!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        for title, names in _SECTIONS.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, one.get_short_help_str(limit)) for name, one in found if one is not None])

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _reported_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _reported_errors():
            return super().invoke(ctx)


@contextmanager
def _reported_errors() -> Iterator[None]:
    """Turn what a user can cause into two lines, and Ctrl-C into the exit status that shells give it."""
    try:
        yield
    except ResnetDeployError as error:
        raise _ReportedError(error) from error
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "resnet-deploy"
        message = " ".join(error.format_message().split()).rstrip(".")
        message = message[:1].lower() + message[1:]  # as ours are written
        raise _ReportedError(SpecError(message, hint=f"see `{path} --help`")) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _PYTORCH_LACKS_MEMORY not in str(error):
            raise
        lacking = UserError("this takes more memory than there is", hint="ask for smaller files, batches or images")
        raise _ReportedError(lacking) from error
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(128 + signal.SIGINT)


def _show_cmake_dir(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print where CMake finds the C++ runtime, for ``-Dresnet-deploy_DIR=``, and exit."""
    if asked:
        click.echo(Path(__file__).resolve().parents[1] / "cpp" / "cmake")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="resnet-deploy")
@click.option(
    "--cmake-dir",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_cmake_dir,
    help="Show the folder of the CMake package and exit.",
)
def main() -> None:
    """Take a PyTorch ResNet to production.

    \b
      resnet-deploy export          ResNet-50 with ImageNet weights, as ONNX
      resnet-deploy build --fp16    an engine from it
      resnet-deploy bench           PyTorch and every engine, side by side
    """
