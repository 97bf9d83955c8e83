"""Small reads from /proc and /sys below a root that tests can plant: what isn't there, or isn't a number, is None."""

from __future__ import annotations

import os
from typing import List, Optional


def read(root: str, path: str) -> Optional[str]:
    """The stripped text of ``root`` + ``path``, None where it can't be read."""
    try:
        with open(os.path.join(root, path), "rb") as file:
            return file.read().decode("utf-8", "replace").strip("\0\n\r\t ")
    except (OSError, ValueError):  # a name with a zero byte is a ValueError
        return None


def integer(root: str, path: str) -> Optional[int]:
    """The whole number in a file, None where there is none."""
    return whole(read(root, path))


def whole(text: Optional[str]) -> Optional[int]:
    """The whole number that ``text`` is, None where it is something else or too long for a counter of 64 bits."""
    # Plain digits only: int() also takes "1_000" and other scripts' digits.
    bare = (text or "").lstrip("-")
    if not (bare.isascii() and bare.isdigit()) or len(bare) > 20 or len(text or "") > len(bare) + 1:
        return None
    return int(text or "")


def names(root: str, path: str) -> List[str]:
    """What lies in a folder, sorted as people count (cpu2 before cpu10); nothing where there is no such folder."""
    try:
        found = os.listdir(os.path.join(root, path))
    except (OSError, ValueError):
        return []
    return sorted(found, key=lambda name: ["%20s" % part for part in _parts(name)])


def exists(root: str, path: str) -> bool:
    """Whether there is such a file or folder."""
    return os.path.exists(os.path.join(root, path))


def numbered(root: str, path: str, prefix: str) -> List[int]:
    """The numbers of the entries ``prefix`` + number in a folder, ascending."""
    found = [whole(name[len(prefix) :]) for name in names(root, path) if name.startswith(prefix)]
    return sorted(number for number in found if number is not None and number >= 0)


def cpu_list(text: Optional[str]) -> List[int]:
    """The CPUs of a kernel's list such as ``0-3,6``; nothing where it isn't one."""
    cpus = []  # type: List[int]
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        low, high = whole(first), whole(last or first)
        if low is None or high is None or not 0 <= low <= high < 65536:
            return []
        cpus.extend(range(low, high + 1))
    return cpus


def _parts(name: str) -> List[str]:
    """``cpu10`` as ``cpu``, ``10``."""
    parts = [""]
    for char in name:
        if parts[-1] and parts[-1][-1].isdigit() != char.isdigit():
            parts.append("")
        parts[-1] += char
    return parts
