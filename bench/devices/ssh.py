"""A device behind SSH: the agent is brought there once, and one session of it holds all workers."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgewise.bench.agent import boot
from edgewise.bench.agent.store import sha256
from edgewise.bench.devices.address import address
from edgewise.bench.devices.dialog import PIECE, dialog
from edgewise.bench.devices.link import Link, linked
from edgewise.bench.devices.local import telemetry
from edgewise.bench.devices.session import RemoteWorker, Session, session
from edgewise.bench.devices.zipapp import agent_bytes, agent_sha256
from edgewise.errors import DeviceError, MeasureError

COMMAND_S = 120.0
RUNTIMES_S = 600.0
SLOWEST = 100_000  # bytes a second: what a link may be as slow as before it is given up


class SSHDevice:
    """A device behind an open link, with a session when the first worker is started."""

    def __init__(self, name: str, link: Link, agent: Sequence[str], stack: contextlib.ExitStack) -> None:
        """``agent``: the command that starts it there; ``stack`` ends what is opened later."""
        self.name = name
        self._link, self._agent, self._stack = link, list(agent), stack
        self._lock = threading.Lock()
        self._open: Session | None = None
        self._there: dict[str, str] = {}
        self._written = 0

    def worker(self, file: str, threads: int) -> RemoteWorker:
        """A process there for the file called ``file``."""
        return RemoteWorker(self._session(), file, threads)

    def put(self, path: Path, *, beside: Sequence[Path] = ()) -> str:
        """Bring files there; what is there already is not sent again."""
        self._session()  # the lease comes first: what is pushed must not be cleaned away by somebody else
        parts = [path, *beside]
        try:
            sizes = [part.stat().st_size for part in parts]
            files = [
                {"suffix": part.suffix or ".bin", "size": size, "sha256": sha256(str(part))}
                for part, size in zip(parts, sizes, strict=True)
            ]
        except OSError as error:
            raise MeasureError(f"can't be read: {error.strerror or error}", where=str(path)) from error
        head = json.dumps({"files": files}).encode() + b"\n"
        key = head.decode()
        if key not in self._there:
            limit_s = COMMAND_S + sum(sizes) / SLOWEST
            told = self._ask(["put"], "put", limit_s=limit_s, head=head, send=_pieces(parts, sizes))
            self._there[key] = str(told.get("path"))
        return self._there[key]

    def out(self, local: Path) -> str:
        """A new name in the session's folder."""
        opened = self._session()
        with self._lock:
            self._written += 1
            return f"{opened.hello.get('session')}/{self._written}.npy"

    def get(self, remote: str, local: Path) -> None:
        """Bring a file that a worker wrote; it is dropped there."""
        self._ask(["get", remote], "file", limit_s=RUNTIMES_S, into=local)

    def probe(self) -> dict[str, Any]:
        """What the agent says of the device."""
        told = self._ask(["probe"], "probe", limit_s=COMMAND_S)
        return {key: value for key, value in told.items() if key != "type"}

    def runtimes(self, names: Collection[str]) -> dict[str, str | None]:
        """Each of these runtimes there: None where it works, else what is missing."""
        found = self._ask(["runtimes", *names], "runtimes", limit_s=RUNTIMES_S).get("runtimes")
        if not isinstance(found, dict):
            raise DeviceError(f"expected runtimes, got {str(found)[:80]}", where=self.name)
        return {str(name): None if why is None else str(why) for name, why in found.items()}

    @contextlib.contextmanager
    def sample(self, hz: float) -> Iterator[list[dict[str, Any]]]:
        """Telemetry from a process there; the rows come when the context ends."""
        opened = self._session()
        rows: list[dict[str, Any]] = []
        opened.send(do="sample", hz=hz)
        try:
            yield rows
        except MeasureError:
            self._sampled(opened)  # a file's own trouble: the next one may be sampled, too
            raise
        told = self._sampled(opened)
        if told.get("type") != "sampled":
            raise DeviceError(f"no telemetry: {told.get('message')}", where=self.name)
        with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
            path = Path(folder, "telemetry.jsonl")
            self.get(str(told.get("path")), path)
            with path.open("rb") as lines:
                rows += telemetry(lines)

    def _sampled(self, opened: Session) -> dict[str, Any]:
        opened.send(do="sampled")
        return opened.reply(None, COMMAND_S, "no telemetry")

    def cpus(self) -> int:
        """CPUs that a process may use there."""
        found = self._session().hello.get("cpus")
        return found if type(found) is int and found > 0 else 1

    def _session(self) -> Session:
        with self._lock:
            if self._open is None:
                self._open = self._stack.enter_context(session(self._link, self._agent))
            return self._open

    def _ask(self, command: list[str], wanted: str, **other: Any) -> dict[str, Any]:
        return dialog(self._link, [*self._agent, *command], wanted, **other)


@contextlib.contextmanager
def open_ssh(text: str) -> Iterator[SSHDevice]:
    """The device at ``ssh://[user@]host[:port][?python=/path]``, with this version's agent on it.

    Raises:
        DeviceError: it can't be reached, or has no Python for the agent, or no room.
    """
    to = address(text)
    where = text.partition("?")[0]
    data = agent_bytes()
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(linked(to, where))
        start = [to.python, "-c", Path(boot.__file__).read_text(encoding="utf-8"), agent_sha256(), str(len(data))]
        told = dialog(link, start, "boot", limit_s=COMMAND_S + len(data) / SLOWEST, send=[data])
        yield SSHDevice(text, link, [to.python, str(told.get("path"))], stack)


def _pieces(paths: Sequence[Path], sizes: Sequence[int]) -> Iterator[bytes]:
    """The bytes of the files, one after the other.

    Raises:
        MeasureError: one can't be read any more, or has less than its size: the other side would wait for the rest.
    """
    for path, size in zip(paths, sizes, strict=True):
        left = size
        try:
            with path.open("rb") as file:
                while left and (piece := file.read(min(PIECE, left))):
                    left -= len(piece)
                    yield piece
        except OSError as error:
            raise MeasureError(f"can't be read: {error.strerror or error}", where=str(path)) from error
        if left:
            raise MeasureError(
                f"expected {size} bytes, it ended after {size - left}: it changed while it was sent",
                where=str(path),
                hint="run again when nothing writes to it",
            )
