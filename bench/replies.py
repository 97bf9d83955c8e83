"""What a worker's reply may look like: the host's end believes no line before it has looked at it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable
from typing import Any

from edgewise.errors import DeviceError, MeasureError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the quota, under the size limit
DEEPEST = 100
# What a worker raised knowingly; of anything else the last lines that it said are shown, too.
KNOWN = ("MeasureError", "RuntimeMissing")


def understood(file: str, do: str, reply: Any, raw: object, said: Callable[[], str]) -> dict[str, Any]:
    """``reply``, if it is one to ``do``; ``raw`` is what is shown if it isn't, ``said`` gives the worker's last words.

    Raises:
        MeasureError: it isn't a reply to that, has impossible numbers in it, or is the worker's own error.
        DeviceError: nothing can work there, such as without numpy.
        OSError: with ENOSPC or its like, where the worker had no room to write.
    """
    if not isinstance(reply, dict) or reply.get("type") not in (do, "error"):
        raise MeasureError(f"expected a reply to {do!r}, got {str(raw)[:80]}{said()}", where=file)
    if reply["type"] == "error":
        kind, message, number = reply.get("kind"), str(reply.get("message")), reply.get("errno")
        if kind == "DeviceError":
            raise DeviceError(message)
        if number in FULL:
            raise OSError(number, message)
        raise MeasureError(message if kind in KNOWN else f"{do}: {message}{said()}", where=file)
    wrong = impossible(reply)
    if wrong:
        raise MeasureError(f"a reply to {do!r} with an impossible {wrong}", where=file)
    return reply


def parsed(line: bytes | str) -> dict[str, Any] | None:
    """The JSON object in ``line``; None for anything else, such as half a line, NaN, or a number alone."""
    try:
        found = json.loads(line, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def impossible(value: Any, key: str = "", depth: int = 0) -> str | None:
    """The first thing in a reply that can't be: a time or a size that isn't a whole number from 0. None if all can.

    A key tells its unit by its end, ``_ns`` or ``_bytes``; sizes may be unknown, which is null.
    """
    if depth > DEEPEST:
        return "depth"
    if not key.endswith(("_ns", "_bytes")):
        found = (impossible(inner, name, depth + 1) for name, inner in _within(value))
        return next((text for text in found if text), None)
    if isinstance(value, list):
        bad = [entry for entry in value if type(entry) is not int or entry < 0]
        return f"{key}: {str(bad[0])[:40]}" if bad else None
    if (type(value) is int and value >= 0) or (value is None and key.endswith("_bytes")):
        return None
    return f"{key}: {str(value)[:40]}"


def _within(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return ((str(name), inner) for name, inner in value.items())
    return (("", inner) for inner in value) if isinstance(value, list) else ()


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number")
