"""One measurement at a time on a device: a folder that ``mkdir`` makes, with its owner in it. Standard library only.

The owner touches the folder while it works. The lease of an owner that is dead, or that nobody can ask and that hasn't
touched it for ``LASTS_S``, is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import signal
import time
from typing import Any, Dict, Iterator, Optional

LASTS_S = 120.0
TAKING_S = 10.0  # between making the folder and writing the owner into it
NAME = "lease"
OWNER = "owner.json"


class Held(Exception):
    """The lease is somebody else's: ``str()`` says whose and since when."""


class Lease:
    """The lease of this process, from ``take`` to ``drop``."""

    def __init__(self, path: str) -> None:
        """Own ``path``, which was just made."""
        self.path = path
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Say that the owner still works; no room on the disk is needed for that."""
        now = time.monotonic()
        if now - self._renewed > LASTS_S / 8:
            self._renewed = now
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def drop(self) -> None:
        """Let the next one have it, unless it was taken over already."""
        owner = read(self.path)
        if owner is not None and owner.get("pid") == os.getpid() and owner.get("boot") == boot():
            _remove(self.path)


def take(home: str, who: str) -> Lease:
    """Take the lease of the device whose agent lives in ``home``; ``who`` is shown to those who come later.

    Raises:
        Held: it is taken; says by whom and since when.
        OSError: it can't be written, such as on a full disk; nothing is left of it then.
    """
    path = os.path.join(home, NAME)
    with _one_at_a_time(home):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            _free(path)
            os.mkdir(path, 0o700)
        try:
            pid = os.getpid()
            owner = {"who": who, "pid": pid, "born": born(pid), "boot": boot(), "host": platform.node()}
            with open(os.path.join(path, OWNER), "w", encoding="utf-8") as file:
                json.dump(dict(owner, since=time.time()), file)
        except BaseException:
            _remove(path)
            raise
    return Lease(path)


def read(path: str) -> Optional[Dict[str, Any]]:
    """The owner of the lease at ``path``; None where there is none, or half of one."""
    try:
        with open(os.path.join(path, OWNER), encoding="utf-8") as file:
            owner = json.load(file)
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else None


def since(home: str) -> float:
    """When the lease that is held now was taken, in seconds since 1970; now, if none is."""
    owner = read(os.path.join(home, NAME)) or {}
    found = owner.get("since")
    return float(found) if isinstance(found, (int, float)) else time.time()


def alive(owner: Dict[str, Any]) -> Optional[bool]:
    """Whether the owner still runs; None where that can't be told, such as in another container."""
    if owner.get("host") != platform.node():
        return None
    if owner.get("boot") != boot():
        return False
    return owner.get("born") is not None and born(owner["pid"]) == owner["born"]


def boot() -> str:
    """What changes when the device starts anew."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def born(pid: int) -> Optional[str]:
    """When the process started, as the system counts; None if it doesn't run."""
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
        return _signalled(pid)
    return None if fields[0] in "ZX" else fields[19]


def _signalled(pid: int) -> Optional[str]:
    """The same where there is no /proc: a process of this number runs, or not."""
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "runs"


def _free(path: str) -> None:
    """Remove a lease that nobody holds any more.

    Raises:
        Held: somebody does.
    """
    try:
        quiet = time.time() - os.stat(path).st_mtime
    except OSError:
        return
    owner = read(path)
    lives = alive(owner) if owner is not None else None
    # An owner that lives and hasn't said so for long hangs. A clock that was set back makes `quiet` negative.
    if lives is not False and abs(quiet) < (TAKING_S if owner is None else LASTS_S):
        raise Held(_words(owner))
    if owner is not None and lives:
        with contextlib.suppress(OSError):
            os.kill(owner["pid"], signal.SIGKILL)
    _remove(path)


def _words(owner: Optional[Dict[str, Any]]) -> str:
    if owner is None:
        return "it is just being taken by somebody else"
    try:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        when = "an unknown time"
    return "it is in use by %s (process %d there) since %s" % (owner.get("who"), owner["pid"], when)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(path, OWNER))
    with contextlib.suppress(OSError):
        os.rmdir(path)


@contextlib.contextmanager
def _one_at_a_time(home: str) -> Iterator[None]:
    """Between looking at a stale lease and removing it, nobody else may have taken it."""
    with open(os.path.join(home, NAME + ".guard"), "a", encoding="ascii") as guard:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(guard, fcntl.LOCK_EX)
        yield
