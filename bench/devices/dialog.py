"""One command of the agent from start to end: send what it takes, keep what it gives, say what went wrong."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from edgewise.bench.devices.link import Link, ended, words
from edgewise.bench.replies import FULL, parsed
from edgewise.errors import DeviceError

LONGEST_LINE = 64 << 20
PIECE = 1 << 20
NO_COMMAND = 127  # what a shell ends with that finds no such program
PYTHON = "Python 3.8 or later is needed there, with numpy and the runtime; name it: ?python=/path/to/python3"


def dialog(
    link: Link,
    command: Sequence[str],
    wanted: str,
    *,
    limit_s: float,
    head: bytes = b"",
    send: Iterable[bytes] = (),
    into: Path | None = None,
) -> dict[str, Any]:
    """Start ``command`` and hear it out: its reply of the type ``wanted``.

    Args:
        link: an open connection.
        command: program and arguments.
        wanted: the type of the reply.
        limit_s: the whole may take so long.
        head: what it is told at once.
        send: what it is told when it asks for it (``send``).
        into: where the bytes go that it gives (``file``).

    Raises:
        DeviceError: it isn't there, is too old, has no room, took too long, or the link broke.
        MeasureError: whatever ``send`` raises of what it reads here; the connection is closed then.
    """
    with tempfile.TemporaryFile() as errors:
        process = link.start(command, errors)
        late = threading.Event()
        timer = threading.Timer(limit_s, _give_up, (process, late))
        timer.start()
        try:
            return _heard(process, wanted, head, send, into, link.where)
        except EOFError:
            ended(process)
            raise _no_reply(process.returncode, words(errors), late.is_set(), limit_s, command, link.where) from None
        finally:
            ended(process)
            timer.cancel()


def failed(reply: dict[str, Any], where: str) -> DeviceError:
    """The error that an agent's ``error`` reply tells."""
    message, number = str(reply.get("message")), reply.get("errno")
    if number in FULL:
        return full(message, where)
    if reply.get("kind") == "Held":
        return DeviceError(message, where=where, hint="wait until it is free; one measurement at a time")
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return DeviceError(message, where=where, hint="set EDGEWISE_AGENT_HOME there to a folder of yours")
    return DeviceError(message, where=where)


def full(message: str, where: str) -> DeviceError:
    """The error for a device without room."""
    return DeviceError(f"the disk there is full: {message}", where=where, hint="free some space there and run again")


def _heard(
    process: subprocess.Popen[bytes],
    wanted: str,
    head: bytes,
    send: Iterable[bytes],
    into: Path | None,
    where: str,
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # what ended already says so below
        process.stdin.write(head)
        process.stdin.flush()
    while True:
        line = process.stdout.readline(LONGEST_LINE)
        if not line:
            raise EOFError
        # What a login shell prints is not for us.
        reply = parsed(line) or {}
        kind = reply.get("type")
        if kind == "send":
            # What can't be read here is an error of ours, and ends the connection: `send` stands outside.
            for piece in send:
                try:
                    process.stdin.write(piece)
                    process.stdin.flush()
                except OSError:
                    break
        elif kind == "file" and into is not None:
            _keep(process.stdout, reply, into, where)
        elif kind == "error":
            raise failed(reply, where)
        elif kind == "old":
            raise DeviceError(f"{reply.get('executable')} is Python {reply.get('python')}", where=where, hint=PYTHON)
        if kind == wanted:
            return reply


def _keep(source: IO[bytes], header: dict[str, Any], into: Path, where: str) -> None:
    """Write the announced bytes to ``into``, which appears whole or not at all."""
    left = header.get("size")
    if type(left) is not int or left < 0:
        raise DeviceError(f"expected a file's size, got {str(left)[:40]}", where=where)
    digest, part = hashlib.sha256(), into.with_name(into.name + ".part")
    try:
        with part.open("wb") as to:
            while left:
                piece = source.read(min(PIECE, left))
                if not piece:
                    raise EOFError
                to.write(piece)
                digest.update(piece)
                left -= len(piece)
        if digest.hexdigest() != header.get("sha256"):
            raise DeviceError(f"{into.name} arrived other than it was sent", where=where)
        part.replace(into)
    finally:
        part.unlink(missing_ok=True)


def _give_up(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _no_reply(code: int, said: str, late: bool, limit_s: float, command: Sequence[str], where: str) -> DeviceError:
    if late:
        return DeviceError(f"no answer within {limit_s:g} s", where=where, hint="is the device or the link very slow?")
    if code == NO_COMMAND:
        return DeviceError(f"there is no {command[0]}: {said}", where=where, hint=PYTHON)
    return DeviceError(f"the connection broke off: {said or f'exit status {code}'}", where=where, hint="run again")
