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
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from edgewise.bench.agent import child
from edgewise.bench.replies import parsed, understood
from edgewise.errors import MeasureError

# The empty entry is the current directory: a user's own onnxruntime.py there must not be what is measured. Python 3.10
# knows no PYTHONSAFEPATH.
START = """import sys
sys.path[:] = filter(None, sys.path)
from edgewise.bench.agent import worker
sys.exit(worker.main())"""
LOCAL = (sys.executable, "-c", START)
PROTOCOL = 2


class WorkerProcess:
    """One process that holds one file. Ask it one thing at a time: between two questions it sleeps."""

    def __init__(self, file: str, threads: int, command: Sequence[str] = LOCAL) -> None:
        """Start the process for the file called ``file`` by ``command``."""
        self.file = file
        # A file, not a pipe: a library that prints a lot must never be able to block the worker.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, **child.environment(threads, os.getpid())}
        try:
            if command == LOCAL:
                environment |= here()
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
            OSError: it had no room to write.
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
                f"the process died during {do!r}, {child.status(self._process.returncode)}{self._said()}",
                where=self.file,
                hint="run the file in its runtime alone; a kill by the system often means too little memory",
            )
        try:
            return understood(self.file, do, parsed(line), line, self._said)
        except BaseException:
            self.kill()
            raise

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
        return child.last_words(self._errors)


def here() -> dict[str, str]:
    """Let a worker find what this process finds, libraries before the current directory."""
    current = str(Path.cwd())
    path = sorted((entry for entry in sys.path if entry), key=lambda entry: entry == current)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}


def _read(pipe: IO[bytes], replies: queue.Queue[bytes | None]) -> None:
    with pipe:
        for line in pipe:
            replies.put(line)
    replies.put(None)
