"""The host's end of a worker: start it, ask, and say clearly how it died."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from edgewise.errors import MeasureError

# The empty entry is the current directory: a user's own onnxruntime.py there must not be what is measured. Python 3.10
# knows no PYTHONSAFEPATH.
START = """import sys
sys.path[:] = filter(None, sys.path)
from edgewise.bench.agent import worker
sys.exit(worker.main())"""
LOCAL = (sys.executable, "-c", START)
PROTOCOL = 1
LAST_LINES = 8
# Every library that brings its own pool reads one of these, before the runtime's own setting is seen.
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Worker:
    """One process that holds one file. Ask it one thing at a time: between two questions it sleeps."""

    def __init__(self, file: str, threads: int, command: Sequence[str] = LOCAL) -> None:
        """Start the process for the file called ``file``; ``command`` may lead to another machine."""
        self.file = file
        # A file, not a pipe: a library that prints a lot must never be able to block the worker.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, **{name: str(threads) for name in POOLS}, "PYTHONUNBUFFERED": "1"}
        try:
            if command == LOCAL:
                environment |= _here()
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
            )
        except OSError as error:
            self._errors.close()
            raise MeasureError(f"can't start a worker: {error}", where=file) from error
        self._replies: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._replies), daemon=True).start()

    def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            MeasureError: the worker refused, died, or took longer than ``limit_s``; it is dead then.
        """
        if self._process.stdin is None:
            raise MeasureError("the worker has no input", where=self.file)
        # A worker that died is told apart below, by its missing reply.
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
        try:
            line = self._replies.get(timeout=limit_s)
        except queue.Empty:
            self.kill()
            raise MeasureError(
                f"no answer to {do!r} within {limit_s:g} s{self._said()}",
                where=self.file,
                hint="the runtime hangs on this file, or the machine is far too busy",
            ) from None
        if line is None:
            self.kill()
            raise MeasureError(
                f"the process died during {do!r}, {_status(self._process.returncode)}{self._said()}",
                where=self.file,
                hint="run the file in its runtime alone; a kill by the system often means too little memory",
            )
        return self._understood(do, line)

    def _understood(self, do: str, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or reply.get("type") not in (do, "error"):
            self.kill()
            raise MeasureError(f"expected a reply to {do!r}, got {line[:80]!r}{self._said()}", where=self.file)
        if reply["type"] == "error":
            self.kill()
            kind, message = reply.get("kind"), reply.get("message")
            known = kind in ("MeasureError", "RuntimeMissing")
            raise MeasureError(str(message) if known else f"{do}: {message}{self._said()}", where=self.file)
        return reply

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill what still runs and free what it held."""
        self.kill()
        for pipe in (self._process.stdin, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _said(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        return "; it last said:\n    " + "\n    ".join(lines) if lines else "; it said nothing"


@contextlib.contextmanager
def started(file: str, threads: int, command: Sequence[str] = LOCAL) -> Iterator[Worker]:
    """A worker that is gone afterwards."""
    worker = Worker(file, threads, command)
    try:
        yield worker
    finally:
        worker.close()


def _here() -> dict[str, str]:
    """Let a worker find what this process finds, libraries before the current directory, and end with this process."""
    here = str(Path.cwd())
    path = sorted((entry for entry in sys.path if entry), key=lambda entry: entry == here)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path), "EDGEWISE_PARENT": str(os.getpid())}


def _read(pipe: IO[bytes], replies: queue.Queue[bytes | None]) -> None:
    with pipe:
        for line in pipe:
            replies.put(line)
    replies.put(None)


def _status(code: int | None) -> str:
    return f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"


def worker_path(path: Path) -> str:
    """How a path is told to a worker: absolute, for it may run elsewhere."""
    return str(path.absolute())
