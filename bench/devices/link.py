"""One connection by the system's own ``ssh``: opened once, shared by all commands, gone with this process.

Keys, known hosts, jump hosts and aliases are the user's ssh configuration's business; nothing is asked for (BatchMode).
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from edgewise.bench.devices.address import Address
from edgewise.errors import DeviceError

CONNECT_S = 15
END_S = 2.0  # for a process to end by itself
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT_S),
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",
    "ForwardX11": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "EscapeChar": "none",
    "LogLevel": "ERROR",
}
READY = "edgewise-ready"
# A process that holds the connection open, and ends when we do: its stdin is our pipe.
HOLD = f"echo {READY}; exec cat >/dev/null"
LONGEST_SOCKET = 80  # the system's limit for a socket's path is about 104; ssh adds 18 while it makes one
# What ssh says, and what to do about it.
HINTS = {
    "Permission denied": "log in with a key: ssh-copy-id puts yours there, ssh-add unlocks it",
    "Host key verification failed": "connect once by hand with ssh, and compare the key it shows",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "another machine than last time, or set up anew: see ssh-keygen -R",
    "Could not resolve hostname": "look at the name, and at the aliases in ~/.ssh/config",
    "Connection refused": "start sshd there, or name its port: ssh://host:port",
    "timed out": "is the device on, and in this network?",
    "No route to host": "is the device on, and in this network?",
}


class Link:
    """An open connection. ``command`` starts things on the other side."""

    def __init__(self, to: Address, where: str, folder: Path) -> None:
        """Use the connection whose socket lies in ``folder``."""
        self.where, self._to, self._folder = where, to, folder

    def arguments(self, *, master: bool) -> list[str]:
        """The command line of ssh, up to the command for the other side."""
        options = {**OPTIONS, "ControlPath": str(self._folder / "c"), "ControlMaster": "yes" if master else "no"}
        options |= {"ControlPersist": "no"} if master else {}
        line = ["ssh", "-T", *(f"-o{key}={value}" for key, value in options.items())]
        line += ["-p", str(self._to.port)] if self._to.port is not None else []
        line += ["-l", self._to.user] if self._to.user is not None else []
        return [*line, "--", self._to.host]

    def start(self, command: Sequence[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start ``command`` there, every argument quoted for its shell.

        Raises:
            DeviceError: ssh can't be started here.
        """
        return self.shell(shlex.join(command), errors)

    def shell(self, line: str, errors: IO[bytes], *, master: bool = False) -> subprocess.Popen[bytes]:
        """Start a line of shell there."""
        try:
            return subprocess.Popen(
                [*self.arguments(master=master), line],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # Ctrl-C is for us: we tell the other side in order.
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"can't start ssh: {error}", where=self.where, hint="install OpenSSH's client") from error


@contextlib.contextmanager
def linked(to: Address, where: str) -> Iterator[Link]:
    """A connection to ``to`` that is gone afterwards; ``where`` is what errors call it.

    Raises:
        DeviceError: it can't be had; says what ssh says.
    """
    base = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="edgewise-", dir=base if len(base) < LONGEST_SOCKET - 20 else "/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        errors = stack.enter_context(tempfile.TemporaryFile())
        link = Link(to, where, folder)
        process = link.shell(HOLD, errors, master=True)
        stack.callback(ended, process)
        timer = threading.Timer(4 * CONNECT_S, process.kill)
        timer.start()
        try:
            _wait(process)
        except EOFError:
            raise refused(where, errors) from None
        finally:
            timer.cancel()
        yield link


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Until the other side is ready; what its shell prints before is its own business."""
    assert process.stdout is not None
    while True:
        line = process.stdout.readline(1 << 16)
        if not line:
            raise EOFError
        if line.strip() == READY.encode():
            return


def ended(process: subprocess.Popen[bytes]) -> None:
    """End an ssh process: by the end of its stdin, then by force; its stdout is closed when it is gone."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        # Closing waits for a thread that reads, and that for whoever else has the pipe's other end.
        closing = threading.Thread(target=_close, args=(process.stdout,), daemon=True)
        closing.start()
        closing.join(END_S)


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        pipe.close()


def refused(where: str, errors: IO[bytes]) -> DeviceError:
    """The error for a connection that could not be made."""
    said = words(errors)
    hint = next((hint for text, hint in HINTS.items() if text in said), f"try it by hand: {where}")
    return DeviceError(f"can't connect: {said or 'ssh said nothing'}", where=where, hint=hint)


def words(errors: IO[bytes]) -> str:
    """What was said on stderr, its last lines as one."""
    errors.seek(0)
    lines = errors.read()[-4000:].decode(errors="replace").strip().splitlines()
    return "; ".join(line.strip() for line in lines[-3:] if line.strip())
