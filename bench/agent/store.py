"""The agent's own folder: files by their content, sessions, old agents. Nothing is written outside it. Stdlib only.

<home>/files/<key>/file.onnx     what was pushed: its key is a hash of the content; appears whole or not at all
<home>/agents/<sha256>.pyz       agents of this and earlier versions
<home>/sessions/<name>/          what workers write while a session lasts
<home>/lease/                    who measures now
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from typing import IO, Any, Callable, Dict, List, Optional, Tuple

PIECE = 1 << 20
QUOTA = 2 << 30  # bytes of pushed files that may stay for the next session
KEY = re.compile(r"[0-9a-f]{64}")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,12}")
PART = ".part-"
CLOCKS_S = 1.0  # the file system's clock may be a little behind


class Refused(Exception):
    """A request that this folder doesn't serve."""


def home() -> str:
    """The agent's folder, made where it isn't there yet: ``$EDGEWISE_AGENT_HOME`` or ``~/.cache/edgewise-agent``."""
    asked = os.environ.get("EDGEWISE_AGENT_HOME")
    path = asked or os.path.join(os.path.expanduser("~"), ".cache", "edgewise-agent")
    os.makedirs(path, 0o700, exist_ok=True)
    return os.path.realpath(path)


def inside(path: str, folder: str) -> bool:
    """Whether ``path`` lies below ``folder``, links followed."""
    real = os.path.realpath(path)
    return os.path.isabs(path) and real.startswith(os.path.realpath(folder) + os.sep)


def key_of(files: List[Dict[str, Any]]) -> str:
    """The name of a folder with these files: (suffix, sha256) of each, in order.

    Raises:
        Refused: no files, or not the description of some.
    """
    try:
        pairs = [(str(file["suffix"]), str(file["sha256"])) for file in files]
        sizes = [file["size"] for file in files]
    except (KeyError, TypeError):
        pairs, sizes = [], []
    sound = all(SUFFIX.fullmatch(suffix) and KEY.fullmatch(digest) for suffix, digest in pairs)
    if not pairs or not sound or len(set(pairs)) < len(pairs) or not all(type(n) is int and n >= 0 for n in sizes):
        raise Refused("expected files with suffix, size and sha256, got %r" % (files,))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def have(root: str, files: List[Dict[str, Any]]) -> Optional[str]:
    """The path of the first of ``files`` if all are here and have the content that they should; else None."""
    folder = os.path.join(root, "files", key_of(files))
    paths = [os.path.join(folder, "file" + file["suffix"]) for file in files]
    try:
        sound = all(sha256(path) == file["sha256"] for path, file in zip(paths, files))
        os.utime(folder)
    except OSError:
        sound = False
    if not sound:
        shutil.rmtree(folder, ignore_errors=True)  # what is broken is sent again
        return None
    return paths[0]


def put(root: str, files: List[Dict[str, Any]], source: IO[bytes], used_since: float) -> str:
    """Read the bytes of ``files``, one after the other, from ``source``; the path of the first.

    Raises:
        Refused: fewer bytes, or others, than were announced.
        OSError: with ENOSPC where there is no room, also after everything unused since ``used_since`` is gone.
    """
    key = key_of(files)
    top = os.path.join(root, "files")
    os.makedirs(top, 0o700, exist_ok=True)
    needed = sum(file["size"] for file in files)
    free = shutil.disk_usage(top).free
    if free < needed:
        clean(root, 0, used_since)
    part = tempfile.mkdtemp(prefix=PART, dir=top)
    try:
        for file in files:
            _receive(os.path.join(part, "file" + file["suffix"]), file, source)
        _settle(part, os.path.join(top, key))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return os.path.join(top, key, "file" + files[0]["suffix"])


def _receive(path: str, file: Dict[str, Any], source: IO[bytes]) -> None:
    digest, left = hashlib.sha256(), file["size"]
    with open(path, "wb") as to:
        while left:
            piece = source.read(min(PIECE, left))
            if not piece:
                raise Refused("the link ended %d bytes before the end of the file" % left)
            to.write(piece)
            digest.update(piece)
            left -= len(piece)
        to.flush()
        os.fsync(to.fileno())
    if digest.hexdigest() != file["sha256"]:
        raise Refused("what arrived is not what was sent: sha256 %s" % digest.hexdigest())


def _settle(part: str, folder: str) -> None:
    """Give a complete folder its name; another session may just have done the same."""
    try:
        os.rename(part, folder)
    except OSError:
        if not os.path.isdir(folder):
            raise
        shutil.rmtree(part, ignore_errors=True)


def give(root: str, path: str, header: Callable[[Dict[str, Any]], None], to: IO[bytes]) -> None:
    """Tell ``header`` the size and sha256 of what a worker wrote at ``path``, copy it to ``to``, and drop it.

    Raises:
        Refused: the path leads outside the sessions.
        OSError: it can't be read.
    """
    if not inside(path, os.path.join(root, "sessions")):
        raise Refused("%s is not a file of a session" % path)
    header({"type": "file", "size": os.path.getsize(path), "sha256": sha256(path)})
    with open(path, "rb") as file:
        shutil.copyfileobj(file, to, PIECE)
    to.flush()
    os.unlink(path)


def session(root: str) -> str:
    """A new folder for what the workers of a session write. Those that a killed session left go.

    Only for who holds the lease.
    """
    top = os.path.join(root, "sessions")
    shutil.rmtree(top, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(os.path.join(root, "files")):
            if name.startswith(PART):
                shutil.rmtree(os.path.join(root, "files", name), ignore_errors=True)
    os.makedirs(top, 0o700, exist_ok=True)
    return tempfile.mkdtemp(dir=top)


def clean(root: str, quota: int, used_since: float) -> Dict[str, int]:
    """Remove what was unused longest until at most ``quota`` bytes stay; nothing that was used since ``used_since``.

    Returns:
        ``removed_bytes`` and ``kept_bytes``.
    """
    entries = sorted(_entries(root))
    kept, removed = sum(size for _, _, size in entries), 0
    for used, path, size in entries:
        if kept <= quota:
            break
        if used < used_since - CLOCKS_S:
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            if not os.path.exists(path):
                kept, removed = kept - size, removed + size
    return {"removed_bytes": removed, "kept_bytes": kept}


def _entries(root: str) -> List[Tuple[float, str, int]]:
    """(last use, path, bytes) of each pushed folder and agent."""
    found = []
    for folder in ("files", "agents"):
        top = os.path.join(root, folder)
        for name in os.listdir(top) if os.path.isdir(top) else ():
            path = os.path.join(top, name)
            if KEY.match(name):
                with contextlib.suppress(OSError):
                    parts = [os.path.join(path, part) for part in os.listdir(path)] if os.path.isdir(path) else [path]
                    found.append((os.path.getmtime(path), path, sum(os.path.getsize(part) for part in parts)))
    return found


def sha256(path: str) -> str:
    """The sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(PIECE), b""):
            digest.update(piece)
    return digest.hexdigest()
