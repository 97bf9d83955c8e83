"""Whether the system already had a file in memory: loading it then costs no disk. Python >= 3.8, no libraries."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import List

RESIDENT = 1  # mincore(2): a page's lowest bit


def page_cache(path: str) -> str:
    """``warm``: all of it was in memory; ``cold``: nothing; ``partly``; ``unknown``: the system doesn't tell.

    OpenVINO's weights beside it count too. Asks mincore(2), which reads nothing: a read with RWF_NOWAIT fetches the
    page it says was missing (Linux 6). Of a file that one could neither own nor write, Linux says that all of it is
    there: ``unknown``.
    """
    weights = os.path.splitext(path)[0] + ".bin"
    paths = [path, weights] if path.endswith(".xml") and os.path.exists(weights) else [path]
    try:
        counts = [_pages(one) for one in paths]
    except (OSError, ValueError, AttributeError, TypeError):  # not there, empty, no room to map it, no mincore
        return "unknown"
    there, pages = (sum(column) for column in zip(*counts))
    return "warm" if there == pages else "partly" if there else "cold"


def _pages(path: str) -> List[int]:
    """How many of a file's pages are in memory, and how many it has."""
    if os.stat(path).st_uid != os.geteuid() and not os.access(path, os.W_OK):
        raise PermissionError(path)
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    with open(path, "rb") as file:
        # A private copy, never written: ctypes gives the address of writable memory only.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pages = -(-len(mapped) // mmap.PAGESIZE)
    told = (ctypes.c_ubyte * pages)()
    start = ctypes.c_char.from_buffer(mapped)
    try:
        if mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), told):
            raise OSError(ctypes.get_errno(), "mincore", path)
    finally:
        del start  # or the mapping can't be closed
        mapped.close()
    return [sum(page & RESIDENT for page in told), pages]
