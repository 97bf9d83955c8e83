"""What a user sees when something goes wrong: one clear message, an exit code, and no traceback without ``--debug``."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from edgewise.errors import EdgewiseError

INTERNAL = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room on the disk, in the quota, under the size limit
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


@contextmanager
def guard(debug: bool, *, kept: str = "") -> Iterator[None]:
    """Turn errors into a message on stderr and an exit code; ``kept`` says what an interruption leaves behind.

    Raises:
        typer.Exit: with the error's exit code.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as error:
        fail(f"interrupted{': ' if kept else ''}{kept}", INTERRUPTED, error, debug, label="")
    except Exception as error:  # the last line of defence: everything else would be a traceback
        message, code = explain(error)
        fail(message, code, error, debug)


def explain(error: BaseException) -> tuple[str, int]:
    """(message, exit code) of an error."""
    if isinstance(error, EdgewiseError):
        return str(error), error.exit_code
    if _is_full_disk(error):
        where = _file(error)
        return f"the disk is full{where}\n  next: free some space and run again; finished stages are kept", 2
    if isinstance(error, OSError) and error.errno in _DENIED:
        reason = "the file system is read-only" if error.errno == errno.EROFS else "permission denied"
        return f"{reason}{_file(error)}\n  next: choose a folder you may write to, such as with --out", 2
    if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename is not None:
        return f"{(error.strerror or str(error)).lower()}{_file(error)}", 2
    if isinstance(error, MemoryError):
        return "not enough memory\n  next: a smaller batch_size, or a machine with more memory", 2
    name = type(error).__name__
    return f"internal error: {name}: {error}\n  next: run again with --debug for the traceback, and report it", INTERNAL


def fail(message: str, code: int, error: BaseException, debug: bool, *, label: str = "error: ") -> None:
    """Say it and leave.

    Raises:
        typer.Exit: always.
    """
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    typer.secho(label, fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


def _is_full_disk(error: BaseException | None) -> bool:
    """True for a full disk, also where a library wrapped it in an error of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _file(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f": {name}" if name else ""
