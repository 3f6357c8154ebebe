"""Every error that this package raises on purpose.

::

    ResnetDeployError            exit code 1
    ├── UserError                exit code 2: the request or its inputs are at fault
    │   ├── SpecError            an option is out of range, or two options conflict
    │   ├── FileError            a path is missing, unreadable, not writable, or the disk is full
    │   ├── WeightsError         a checkpoint cannot be had, read, or is of another architecture
    │   ├── ModelError           a file is not ONNX, is damaged, or was not written by ``export``
    │   ├── DataError            images or labels are missing, corrupt, or do not fit the model
    │   ├── FeedError            an array handed to a runner has the wrong shape or dtype
    │   ├── BackendError         a backend is unknown, not installed, or cannot do what was asked
    │   └── BundleError          an engine bundle is damaged, altered, or not for this machine
    ├── BuildError               a backend's compiler failed
    ├── DeviceError              the GPU, its driver or the library that runs on it refused a call
    ├── BusyError                too much is waiting for an engine already
    ├── DeadlineError            an engine did not come to a request in the time that it was given
    ├── AccuracyError            a measured difference is beyond its tolerance
    ├── LintError                an engine is not what its precision is meant to become
    ├── SpeedError               a measured speed-up is below what was asked for
    ├── RegressionError          a run is slower than an earlier one, or answers worse
    ├── LoadgenError             a test by LoadGen did not come to its end
    ├── ScoringError             some images were left without a row
    └── RulesError               a test by LoadGen is not what MLPerf's rules ask for

Each carries a ``hint``: what to do next. The command line prints both, one line each, without a traceback; anything
else that reaches the user is a bug and keeps its traceback.
"""

from typing import Final

from resnet_deploy.names import printable

_LONGEST: Final = 1000  # characters of a message; a path alone may have four times as many


class ResnetDeployError(Exception):
    """Base of all errors raised on purpose.

    What they quote, such as names in a file of unknown origin, may hold anything: line feeds and what else would not
    show, such as a terminal's control sequences, are written as escapes, and the middle of what is very long is left
    out.

    Args:
        message: One line: what was wrong, naming the file, option or field.
        hint: One line: what to do about it; empty where there is nothing useful to say.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = _one_line(message)
        self.hint = _one_line(hint)
        super().__init__(self.message)


def _one_line(text: str) -> str:
    text = printable(text)
    if len(text) > _LONGEST:  # escaped already, which makes ten characters of one
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return text


class UserError(ResnetDeployError):
    """The request or its inputs are at fault."""

    exit_code = 2


class SpecError(UserError):
    """An option is out of range, or two options conflict."""


class FileError(UserError):
    """A path is missing, unreadable, not writable, or its disk is full."""


class WeightsError(UserError):
    """A checkpoint cannot be had, cannot be read, or is of another architecture."""


class ModelError(UserError):
    """A file is not ONNX, is damaged, or lacks what ``export`` writes into it."""


class DataError(UserError):
    """Images or labels are missing, corrupt, or do not fit the model."""


class FeedError(UserError):
    """An array handed to a runner has the wrong shape or dtype."""


class BackendError(UserError):
    """A backend is unknown, not installed, or cannot do what was asked."""


class BundleError(UserError):
    """An engine bundle is damaged, was altered, or does not fit this machine."""


class BuildError(ResnetDeployError):
    """A backend's compiler failed on a request that looked sound."""


class DeviceError(ResnetDeployError):
    """The GPU, its driver or the library that runs on it refused a call."""


class BusyError(ResnetDeployError):
    """Too much is waiting for an engine already; what was not accepted can be given again later."""


class DeadlineError(ResnetDeployError):
    """An engine did not come to a request in the time that it was given; it was not run."""


class AccuracyError(ResnetDeployError):
    """A measured difference is beyond its tolerance."""


class LintError(ResnetDeployError):
    """An engine is not what its precision is meant to become."""


class SpeedError(ResnetDeployError):
    """A measured speed-up is below what was asked for."""


class RegressionError(ResnetDeployError):
    """A run is slower than an earlier one, answers worse, lacks an engine, or, where that was asked, cannot tell."""


class LoadgenError(ResnetDeployError):
    """A test by LoadGen did not come to its end, or found nothing."""


class ScoringError(ResnetDeployError):
    """Some images were left without a row: what had them died, again and again."""


class RulesError(ResnetDeployError):
    """A test by LoadGen is not what MLPerf's rules ask for."""
