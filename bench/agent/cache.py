"""Whether the system already had a file in memory: loading it then costs no disk. Python >= 3.8, no libraries."""

from __future__ import annotations

import os
from typing import List

PROBES = 64  # bytes to look at, spread over the file


def page_cache(path: str) -> str:
    """``warm``: all of it was in memory; ``cold``: nothing; ``partly``; ``unknown``: the system doesn't tell.

    OpenVINO's weights beside it count too. Asks for single bytes with RWF_NOWAIT (Linux 4.14), which fails rather than
    wait for a disk.
    """
    nowait = getattr(os, "RWF_NOWAIT", None)
    weights = os.path.splitext(path)[0] + ".bin"
    paths = [path, weights] if path.endswith(".xml") and os.path.exists(weights) else [path]
    if nowait is None or not hasattr(os, "preadv"):
        return "unknown"
    found = []  # type: List[bool]
    try:
        for one in paths:
            found += _probe(one, nowait)
    except OSError:  # no such file, or a file system that can't be asked
        return "unknown"
    if not found:
        return "unknown"
    return "warm" if all(found) else "partly" if any(found) else "cold"


def _probe(path: str, nowait: int) -> List[bool]:
    found = []  # type: List[bool]
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        # From the end: what is asked for may be read ahead, and must not count as there.
        for offset in sorted({size * i // PROBES for i in range(PROBES)}, reverse=True) if size else []:
            try:
                found.append(os.preadv(file.fileno(), [bytearray(1)], offset, nowait) == 1)
            except BlockingIOError:
                found.append(False)
    return found
