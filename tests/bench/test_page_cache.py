"""Real files, dropped from the page cache on purpose."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from edgewise.bench.agent.cache import page_cache

SIZE = 4 << 20


def _file(path: Path) -> int:
    path.write_bytes(os.urandom(SIZE))
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    return descriptor


def _drop(descriptor: int, path: Path, until: str, length: int = 0) -> None:
    """A busy system holds on to a page now and then: asked again."""
    os.posix_fadvise(descriptor, 0, length, os.POSIX_FADV_RANDOM)
    for _ in range(100):
        os.posix_fadvise(descriptor, 0, length, os.POSIX_FADV_DONTNEED)
        if page_cache(str(path)) == until:
            return
        time.sleep(0.02)
    raise AssertionError(f"expected {until}, got {page_cache(str(path))}")


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped as Linux does")
def test_a_file_is_warm_after_writing_and_cold_after_it_was_dropped(tmp_path: Path) -> None:
    path = tmp_path / "net.xml"
    descriptor = _file(path)
    if page_cache(str(path)) == "unknown":
        pytest.skip("this file system does not tell what is in memory")
    assert page_cache(str(path)) == "warm"
    _drop(descriptor, path, "partly", SIZE // 2)
    _drop(descriptor, path, "cold")
    for _ in range(10):  # asking has not read it, nor set the system to read it
        time.sleep(0.01)
        assert page_cache(str(path)) == "cold"
    os.pread(descriptor, SIZE, 0)
    assert page_cache(str(path)) == "warm"
    weights = _file(tmp_path / "net.bin")
    _drop(weights, path, "partly")
    for one in (descriptor, weights):
        os.close(one)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a file's owner only")
def test_a_file_of_another_owner_is_unknown() -> None:
    child = os.fork()  # the suite may run as root, who is told everything
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        os._exit(page_cache("/etc/passwd") != "unknown")
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_empty_or_not_there_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert page_cache(str(tmp_path / "empty")) == "unknown"
    assert page_cache(str(tmp_path / "none")) == "unknown"
