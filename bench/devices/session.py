"""The host's end of ``agent.pyz run``: one connection, many workers, each reply brought to who waits for it."""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

from edgewise.bench.devices.dialog import LONGEST_LINE, failed, full
from edgewise.bench.devices.link import Link, ended, words
from edgewise.bench.replies import FULL, parsed, understood
from edgewise.errors import DeviceError, MeasureError

PROTOCOL = 2
START_S = 120.0
PING_S = 10.0  # the device ends a session that it hears nothing of for a minute
GRACE_S = 30.0  # over a worker's limit, which the device watches itself
END_S = 2.0  # for a request that is just being written
AGAIN = "run the same command again; finished launches are kept"


class Session:
    """A session that stands: ``hello`` is what the agent said of itself."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes], where: str, start_s: float) -> None:
        """Wait for the agent's hello.

        Raises:
            DeviceError: the device is in use, has no room, or the agent doesn't start.
        """
        self.where = where
        self._process, self._errors = process, errors
        self._lock = threading.Lock()
        self._waiting: dict[int | None, queue.Queue[dict[str, Any] | None]] = {None: queue.Queue()}
        self._over = threading.Event()
        self._last = "the connection broke off"
        self._number = 0
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._ping, daemon=True).start()
        self.hello = self.reply(None, start_s, "the agent doesn't start")
        if self.hello.get("type") == "error":
            raise failed(self.hello, where)
        if self.hello.get("type") != "hello" or self.hello.get("protocol") != PROTOCOL:
            raise DeviceError(f"expected an agent of protocol {PROTOCOL}, got {str(self.hello)[:80]}", where=where)

    def open(self, threads: int) -> int:
        """Start a worker; its number.

        Raises:
            DeviceError: no room, or no connection.
            MeasureError: it can't be started.
        """
        with self._lock:
            self._number += 1
            number = self._number
            self._waiting[number] = queue.Queue()
        self.send(do="start", worker=number, threads=threads)
        told = self.reply(number, START_S, "no process is started")
        if told.get("type") != "started":
            if told.get("errno") in FULL:
                raise full(str(told.get("message")), self.where)
            raise MeasureError(f"can't start a worker: {told.get('message')}")
        return number

    def send(self, **request: Any) -> None:
        """One request; a connection that is gone is told by the missing reply."""
        line = json.dumps(request).encode() + b"\n"
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def reply(self, number: int | None, limit_s: float, otherwise: str) -> dict[str, Any]:
        """What was said to worker ``number``'s last request, or to the session's own for None.

        Raises:
            DeviceError: nothing within ``limit_s``, or the connection is gone.
        """
        try:
            found = self._waiting[number].get(timeout=limit_s)
        except queue.Empty:
            raise DeviceError(
                f"{otherwise}: no sign of life within {limit_s:g} s", where=self.where, hint=AGAIN
            ) from None
        if found is None:
            self._waiting[number].put(None)  # for who asks again
            said = words(self._errors)
            raise DeviceError(f"{self._last}{': ' if said else ''}{said}", where=self.where, hint=AGAIN)
        return found

    def kill(self, number: int) -> None:
        """End a worker; who waits for its reply, in whatever thread, hears of it at once."""
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting.put({"type": "died", "worker": number, "status": "it was ended from here"})
        self.send(do="kill", worker=number)

    def forget(self, number: int) -> None:
        """End a worker that is asked nothing any more."""
        self.kill(number)
        with self._lock:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """End the session and everything it started there."""
        self._over.set()
        assert self._process.stdin is not None
        if not self._lock.acquire(timeout=END_S):
            self._process.kill()  # a request that nobody takes: its writing ends with the process
            self._lock.acquire()
        try:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        finally:
            self._lock.release()
        ended(self._process)  # without the lock, which the reader takes at its end

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # closed by close()
            for line in iter(lambda: self._process.stdout.readline(LONGEST_LINE), b""):  # type: ignore[union-attr]
                self._sort(parsed(line) or {})
        self._over.set()
        with self._lock:
            waiting = list(self._waiting.values())
        for one in waiting:
            one.put(None)

    def _sort(self, reply: dict[str, Any]) -> None:
        """Bring a reply to who waits; what nobody waits for, and lines that are no replies, are dropped."""
        kind, number = reply.get("type"), reply.get("worker")
        if kind == "over":
            self._last = str(reply.get("message"))
        elif kind in WORKERS and type(number) is int:
            with self._lock:
                one = self._waiting.get(number)
            if one is not None:
                one.put(reply)
        elif kind in OWN:
            self._waiting[None].put(reply)

    def _ping(self) -> None:
        while not self._over.wait(PING_S):
            self.send(do="ping")


WORKERS = ("started", "reply", "died", "late", "refused")
OWN = ("hello", "error", "sampled", "refused")


class RemoteWorker:
    """A worker of a session, by its number."""

    def __init__(self, session: Session, file: str, threads: int) -> None:
        """Start it."""
        self.file = file
        self._session = session
        try:
            self._number = session.open(threads)
        except MeasureError as error:
            raise MeasureError(error.message, where=file) from error

    def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            MeasureError: the worker refused, died, or took longer than ``limit_s``; it is dead then.
            DeviceError: the device doesn't answer any more, or has no room left.
        """
        self._session.send(do="ask", worker=self._number, limit_s=limit_s, request={"do": do, **request})
        told = self._session.reply(self._number, limit_s + GRACE_S, f"{self.file}: no answer to {do!r}")
        kind, said = told.get("type"), str(told.get("said", ""))
        if kind == "late":
            raise MeasureError(
                f"no answer to {do!r} within {limit_s:g} s{said}",
                where=self.file,
                hint="the runtime hangs on this file, or the device is far too busy",
            )
        if kind == "died":
            raise MeasureError(
                f"the process died during {do!r}, {told.get('status')}{said}",
                where=self.file,
                hint="run the file in its runtime alone; a kill by the system often means too little memory",
            )
        if kind != "reply":
            if told.get("errno") in FULL:
                raise full(str(told.get("message")), self._session.where)
            raise MeasureError(f"{do!r} was refused: {told.get('message')}", where=self.file)
        try:
            return understood(self.file, do, told.get("reply"), told.get("reply"), lambda: said)
        except DeviceError as error:
            raise DeviceError(error.message, where=self._session.where, hint="pip install numpy there") from error
        except OSError as error:
            raise full(str(error), self._session.where) from error
        except MeasureError:
            self.kill()
            raise

    def kill(self) -> None:
        """End the process, whatever it does; an ``ask`` that waits in another thread raises at once."""
        self._session.kill(self._number)

    def close(self) -> None:
        """Kill what still runs."""
        self._session.forget(self._number)


@contextlib.contextmanager
def session(link: Link, agent: Sequence[str], start_s: float = START_S) -> Iterator[Session]:
    """A session of ``agent`` that is gone afterwards.

    Raises:
        DeviceError: the device is in use, has no room, or the agent doesn't start.
    """
    who = f"{_user()}@{platform.node()}"
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile())
        process = link.start([*agent, "run", "--who", who], errors)
        stack.callback(ended, process)
        opened = Session(process, errors, link.where, start_s)
        stack.callback(opened.close)
        yield opened


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no name for this user
        return "somebody"
