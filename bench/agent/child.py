"""What a process that runs a file is given, and what is said of its end. Standard library only, Python >= 3.8."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from typing import IO, Dict, List, Optional

# Every library that brings its own pool reads one of these, before the runtime's own setting is seen.
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
LAST_LINES = 8
LAST_BYTES = 4000
LONGEST_REPLY = 64 << 20


def environment(threads: int, parent: int) -> Dict[str, str]:
    """The variables of a worker with pools of ``threads``, which ends with the process ``parent``."""
    return dict({name: str(threads) for name in POOLS}, PYTHONUNBUFFERED="1", EDGEWISE_PARENT=str(parent))


def last_words(errors: IO[bytes]) -> str:
    """The end of what a process said, as the end of a sentence."""
    errors.seek(0, 2)
    errors.seek(max(0, errors.tell() - LAST_BYTES))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()[-LAST_LINES:]
    return "; it last said:\n    " + "\n    ".join(lines) if lines else "; it said nothing"


def status(code: Optional[int]) -> str:
    """How a process ended."""
    return "by signal %d" % -code if code is not None and code < 0 else "with exit status %s" % code


class Lines:
    """Bytes in, whole lines out. A line longer than ``longest`` is thrown away; ``lost`` counts them."""

    def __init__(self, longest: int) -> None:
        """Nothing was read yet."""
        self._longest = longest
        self._parts = []  # type: List[bytes]
        self._size = 0
        self.lost = 0

    def feed(self, data: bytes) -> List[bytes]:
        """The lines that ``data`` completes."""
        found = []
        *complete, rest = data.split(b"\n")
        for part in complete:
            self._keep(part)
            if self._size <= self._longest:
                found.append(b"".join(self._parts))
            else:
                self.lost += 1
            self._parts, self._size = [], 0
        self._keep(rest)
        return found

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._longest:
            self._parts.append(part)
        else:
            self._parts = []


class Child:
    """A worker's process."""

    def __init__(self, command: List[str], threads: int, folder: str) -> None:
        """Start it, in a group of its own so that what it starts ends with it."""
        # A file, not a pipe: what a library prints must neither block the worker nor wake this process.
        self.errors = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                cwd=folder,
                env=dict(os.environ, **environment(threads, os.getpid())),
                start_new_session=True,
            )
        except OSError:
            self.errors.close()
            raise
        self.lines = Lines(LONGEST_REPLY)
        self.deadline = None  # type: Optional[float]

    def end(self) -> str:
        """Kill it and all it started, and free what it held; its last words."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        said = self.said()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return said

    def said(self) -> str:
        """Its last words."""
        try:
            return last_words(self.errors)
        except OSError:
            return "; it said nothing that can be read"
