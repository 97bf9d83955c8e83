"""The few calls of CUDA's runtime library that running an engine needs, through ctypes. Python >= 3.8, no package.

Written for a device with CUDA; never run where there is none.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any, List, Optional

from edgewise.errors import MeasureError

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost
NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


def load() -> Optional[Any]:
    """CUDA's runtime library, or None where there is none."""
    found: List[str] = [name for name in (ctypes.util.find_library("cudart"),) if name]
    for name in found + list(NAMES):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaGetErrorString.restype = ctypes.c_char_p
        library.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
        library.cudaFree.argtypes = [ctypes.c_void_p]
        library.cudaMemcpyAsync.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_void_p,
        ]
        library.cudaStreamCreate.argtypes = [ctypes.POINTER(ctypes.c_void_p)]
        library.cudaStreamDestroy.argtypes = [ctypes.c_void_p]
        library.cudaStreamSynchronize.argtypes = [ctypes.c_void_p]
        library.cudaGetDeviceCount.argtypes = [ctypes.POINTER(ctypes.c_int)]
        return library
    return None


def devices(library: Any) -> int:
    """How many GPUs there are; 0 where the driver doesn't answer."""
    count = ctypes.c_int(0)
    return count.value if library.cudaGetDeviceCount(ctypes.byref(count)) == 0 else 0


def check(library: Any, status: int, what: str) -> None:
    """Raise what CUDA says unless ``status`` is success.

    Raises:
        MeasureError: with CUDA's words.
    """
    if status != 0:
        raise MeasureError("CUDA: %s failed: %s" % (what, library.cudaGetErrorString(status).decode()))


def allocate(library: Any, size: int) -> int:
    """``size`` bytes on the GPU; its address."""
    pointer = ctypes.c_void_p()
    check(library, library.cudaMalloc(ctypes.byref(pointer), max(size, 1)), "allocating %d bytes" % size)
    return pointer.value or 0


def stream(library: Any) -> int:
    """A new stream; its handle."""
    handle = ctypes.c_void_p()
    check(library, library.cudaStreamCreate(ctypes.byref(handle)), "creating a stream")
    return handle.value or 0
