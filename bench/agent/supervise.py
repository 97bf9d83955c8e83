"""``run``: one session of measuring. Starts workers, hands requests and replies to and fro, ends everything at its end.

JSON Lines in, JSON Lines out, one object a line. Requests: start, ask, kill, sample, sampled, ping. It ends, and all it
started with it, when stdin ends, when nothing was heard for ``QUIET_S`` (a broken link need not be an end of stdin) or
after the session's own limit. Each worker's time limit is watched here, on the device, too. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any, Callable, Dict, List, Optional

from edgewise.bench.agent import child, store
from edgewise.bench.agent.child import Child, Lines
from edgewise.bench.agent.lease import Lease
from edgewise.bench.agent.probe import usable_cpus

PROTOCOL = 2
QUIET_S = 60.0
LONGEST_REQUEST = 16 << 20
SAMPLER_ENDS_S = 5.0


class Gone(Exception):
    """The session is over: the other side is silent, or the system wants this process to end."""


class Supervisor:
    """The workers of one session, and the loop that listens to them and to the host."""

    def __init__(self, command: List[str], folder: str, source: int, to: IO[bytes], lease: Optional[Lease]) -> None:
        """Start workers by ``command``, let them write below ``folder``; hear requests on the descriptor ``source``."""
        self._command, self._folder, self._source, self._to, self._lease = command, folder, source, to, lease
        self._children = {}  # type: Dict[int, Child]
        self._sampler = None  # type: Optional[subprocess.Popen[bytes]]
        self._rows = ""
        self._ready = selectors.DefaultSelector()
        self._requests = Lines(LONGEST_REQUEST)

    def serve(self, until: float) -> None:
        """Serve until stdin ends or the monotonic clock shows ``until``.

        Raises:
            BrokenPipeError: nobody reads the replies any more.
        """
        self._ready.register(self._source, selectors.EVENT_READ, None)
        while True:
            limits = [one.deadline for one in self._children.values() if one.deadline is not None]
            wait = max(0.0, min([until, *limits]) - time.monotonic())
            for key, _ in self._ready.select(wait):
                if key.data is not None:
                    self._hear(key.data)
                elif not self._listen():
                    return
            now = time.monotonic()
            for name, one in list(self._children.items()):
                if one.deadline is not None and now > one.deadline:
                    self.say({"type": "late", "worker": name, "said": self._end(name)})
            if now > until:
                self.say({"type": "over", "message": "the session's own time limit is over"})
                return

    def say(self, reply: Dict[str, Any]) -> None:
        """One line to the host."""
        self._to.write(json.dumps(reply, default=str).encode() + b"\n")
        self._to.flush()

    def end(self) -> None:
        """End everything that was started."""
        for name in list(self._children):
            self._end(name)
        if self._sampler is not None:
            self._sampler.kill()
            self._sampler.wait()
        self._ready.close()

    def _listen(self) -> bool:
        """Take what the host says; False at its end."""
        data = os.read(self._source, 1 << 16)
        if not data:
            return False
        signal.alarm(int(QUIET_S))
        if self._lease is not None:
            self._lease.renew()
        lost = self._requests.lost
        for line in self._requests.feed(data):
            self._serve(line)
        if self._requests.lost > lost:
            self.say({"type": "refused", "message": "a request of more than %d bytes" % LONGEST_REQUEST})
        return True

    def _serve(self, line: bytes) -> None:
        try:
            request = json.loads(line)
            serve = SERVED[request["do"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.say({"type": "refused", "message": "no request that is known here: %r" % line[:80]})
            return
        try:
            serve(self, request)
        except BrokenPipeError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, OSError, store.Refused) as error:
            full = getattr(error, "errno", None)
            message = str(error) if isinstance(error, (OSError, store.Refused)) else repr(error)
            self.say({"type": "refused", "worker": request.get("worker"), "message": message, "errno": full})

    def _do_ping(self, request: Dict[str, Any]) -> None:
        """Being heard is all."""

    def _do_start(self, request: Dict[str, Any]) -> None:
        name, threads = int(request["worker"]), int(request["threads"])
        if name in self._children or threads < 1:
            raise store.Refused("worker %d can't be started with %d threads, or is there already" % (name, threads))
        one = Child([*self._command, "worker"], threads, self._folder)
        self._children[name] = one
        self._ready.register(_pipe(one), selectors.EVENT_READ, name)
        self.say({"type": "started", "worker": name, "pid": one.process.pid})

    def _do_ask(self, request: Dict[str, Any]) -> None:
        name, limit, asked = int(request["worker"]), float(request["limit_s"]), request["request"]
        one = self._children.get(name)
        if one is None:
            raise store.Refused("there is no worker %d" % name)
        if one.deadline is not None:
            raise store.Refused("worker %d still works on what it was asked before" % name)
        if not isinstance(asked, dict) or not math.isfinite(limit):
            raise store.Refused("expected a request and its limit in seconds")
        if "out" in asked and not store.inside(str(asked["out"]), self._folder):
            raise store.Refused("%s is outside of the session's folder" % asked["out"])
        one.deadline = time.monotonic() + limit
        # What died is told by the end of its stdout.
        with contextlib.suppress(BrokenPipeError):
            assert one.process.stdin is not None
            one.process.stdin.write(json.dumps(asked).encode() + b"\n")
            one.process.stdin.flush()

    def _do_kill(self, request: Dict[str, Any]) -> None:
        if int(request["worker"]) in self._children:
            self._end(int(request["worker"]))

    def _do_sample(self, request: Dict[str, Any]) -> None:
        if self._sampler is not None:
            raise store.Refused("telemetry is being taken already")
        hz = float(request["hz"])
        handle, path = tempfile.mkstemp(suffix=".jsonl", dir=self._folder)
        with os.fdopen(handle, "wb") as rows:
            self._sampler = subprocess.Popen(
                [*self._command, "sample", "--hz", repr(hz)],
                stdin=subprocess.PIPE,
                stdout=rows,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._rows = path

    def _do_sampled(self, request: Dict[str, Any]) -> None:
        if self._sampler is None:
            raise store.Refused("no telemetry is being taken")
        try:
            self._sampler.communicate(timeout=SAMPLER_ENDS_S)  # ends its stdin
        except subprocess.TimeoutExpired:
            self._sampler.kill()
            self._sampler.wait()
        self._sampler = None
        self.say({"type": "sampled", "path": self._rows})

    def _hear(self, name: int) -> None:
        """Hand on what a worker says; tell its end."""
        one = self._children.get(name)
        if one is None:  # it was ended a moment ago
            return
        data = os.read(_pipe(one).fileno(), 1 << 16)
        for line in one.lines.feed(data):
            # Nobody asked for the line that says goodbye, nor for anything else between two requests.
            if one.deadline is not None:
                one.deadline = None
                self._reply(name, line)
        if not data:
            waiting = one.deadline is not None
            with contextlib.suppress(subprocess.TimeoutExpired):  # its stdout may end a moment before it
                one.process.wait(1.0)
            status = child.status(one.process.poll())
            said = self._end(name)
            if waiting:
                self.say({"type": "died", "worker": name, "status": status, "said": said})

    def _reply(self, name: int, line: bytes) -> None:
        try:
            reply = json.loads(line, parse_constant=_refuse)
        except (ValueError, RecursionError):
            reply = repr(line[:80])
        told = {"type": "reply", "worker": name, "reply": reply}
        if not isinstance(reply, dict) or reply.get("type") == "error":
            told["said"] = self._children[name].said()
        self.say(told)

    def _end(self, name: int) -> str:
        one = self._children.pop(name)
        with contextlib.suppress(KeyError, ValueError):
            self._ready.unregister(_pipe(one))
        return one.end()


SERVED: Dict[str, Callable[[Supervisor, Dict[str, Any]], None]] = {
    "start": Supervisor._do_start,
    "ask": Supervisor._do_ask,
    "kill": Supervisor._do_kill,
    "sample": Supervisor._do_sample,
    "sampled": Supervisor._do_sampled,
    "ping": Supervisor._do_ping,
}


def run(command: List[str], who: str, limit_s: float, root: str, to: IO[bytes], lease: Lease) -> int:
    """Serve one session on stdin, with the lease held; the exit status."""
    folder, supervisor = "", None  # type: str, Optional[Supervisor]
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _gone)
    try:
        signal.alarm(int(QUIET_S))
        folder = store.session(root)
        os.utime(command[-1])  # the agent itself is in use from now on
        store.clean(root, store.QUOTA, time.time())
        supervisor = Supervisor(command, folder, sys.stdin.fileno(), to, lease)
        supervisor.say(
            {
                "type": "hello",
                "protocol": PROTOCOL,
                "python": platform.python_version(),
                "home": root,
                "session": folder,
                "pid": os.getpid(),
                "cpus": usable_cpus(),
            }
        )
        supervisor.serve(time.monotonic() + limit_s)
        return 0
    except (Gone, BrokenPipeError):
        sys.stderr.write("the session of %s ended: nothing was heard, or it was told to end\n" % who)
        return 1
    finally:
        signal.alarm(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if supervisor is not None:
            supervisor.end()
        shutil.rmtree(folder, ignore_errors=True)
        lease.drop()


def _refuse(name: str) -> Any:
    raise ValueError("%s is no number" % name)


def _gone(number: int, frame: object) -> None:
    raise Gone


def _pipe(one: Child) -> IO[bytes]:
    assert one.process.stdout is not None
    return one.process.stdout
