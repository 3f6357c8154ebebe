"""Command lines that tests share, and what a refused one must look like."""

SHORT = ("--seconds", "0.05", "--rounds", "1", "--batches", "1")
EXPORT = "export --arch resnet18 --image-size 32 --weights none"
BENCH = "bench --seconds 0.05 --rounds 1 --batches 1 --no-html"


def files(folder):
    """Everything below ``folder``, hidden or not, with size and time."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(result, message, hint=""):
    """Exit code 2, one line of error and one of hint, nothing else, and no exception that nobody expected."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    error, tip = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert tip.startswith("hint: ")
    assert hint in tip
    assert "Traceback" not in result.output
