"""This machine as a device: workers are its own processes, files stay where they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.bench.process import LOCAL, WorkerProcess, here
from edgewise.bench.provenance import provenance, usable_cpus
from edgewise.bench.replies import parsed
from edgewise.deploy import runtimes

SAMPLER = """import sys
sys.path[:] = filter(None, sys.path)
from edgewise.bench.agent import sample
sys.exit(sample.main(["--hz", sys.argv[1]]))"""
SAMPLER_ENDS_S = 5.0


class LocalDevice:
    """This machine. ``command``: how a worker is started."""

    name = "local"

    def __init__(self, command: Sequence[str] = LOCAL) -> None:
        """Nothing is started yet."""
        self._command = command

    def worker(self, file: str, threads: int) -> WorkerProcess:
        """A process for the file called ``file``."""
        return WorkerProcess(file, threads, self._command)

    def put(self, path: Path, *, beside: Sequence[Path] = ()) -> str:
        """Where it is: nothing is copied."""
        return str(path.absolute())

    def out(self, local: Path) -> str:
        """The very place."""
        return str(local.absolute())

    def get(self, remote: str, local: Path) -> None:
        """It is there already."""

    def probe(self) -> dict[str, Any]:
        """The provenance of this machine."""
        return provenance()

    def runtimes(self, names: Collection[str]) -> dict[str, str | None]:
        """What each runtime says of this machine."""
        return {name: runtimes.get(name).missing() for name in names}

    @contextmanager
    def sample(self, hz: float) -> Iterator[list[dict[str, Any]]]:
        """Telemetry of this machine, from a process of its own."""
        rows: list[dict[str, Any]] = []
        command = [sys.executable, "-c", SAMPLER, repr(hz)]
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=told,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **here()},
                start_new_session=True,
            )
            try:
                yield rows
            finally:
                end_sampler(process)
                told.seek(0)
                rows += telemetry(told)

    def cpus(self) -> int:
        """CPUs that this process may use."""
        return usable_cpus()


def end_sampler(process: subprocess.Popen[bytes]) -> None:
    """Let it end by the end of its stdin; a little later by force."""
    try:
        process.communicate(timeout=SAMPLER_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def telemetry(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows among ``lines``: those with a time. Half lines and what else was printed are left out."""
    parsed_lines = (parsed(line) for line in lines)
    return [row for row in parsed_lines if row is not None and type(row.get("t_ns")) is int and row["t_ns"] >= 0]


LOCAL_DEVICE = LocalDevice()
