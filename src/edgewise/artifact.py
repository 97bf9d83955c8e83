"""Artifacts: content-addressed stage folders, written beside and renamed.

A stage's key is the hash of everything that decides its result: its config, its parents' keys, the input files, the
package and library versions. The folder ``stages/<name>-<key>`` holds the payload and ``artifact.json``; it appears
whole or not at all. While a stage works it owns ``stages/<name>-<key>.partial``, which keeps training checkpoints
between two tries.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import edgewise
from edgewise.errors import ArtifactError

FORMAT = 1
RECORD = "artifact.json"
AGAIN = "run the recipe again: what is damaged is made again"


@dataclass(frozen=True)
class Artifact:
    """A finished stage. ``digest`` covers the payload alone: same digest, same bytes."""

    folder: Path
    name: str
    key: str
    digest: str
    parents: Mapping[str, str]
    config: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float

    def file(self, name: str) -> Path:
        """The path of a payload file."""
        return self.folder / name


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of edgewise and ``packages``; "absent" where one isn't installed."""
    found = {"edgewise": edgewise.__version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def stage_key(name: str, config: Any, parents: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """The key of a stage, computable before any stage has run."""
    return sha256_json([FORMAT, name, config, dict(parents), dict(versions)])


def stage_folder(root: Path, name: str, key: str) -> Path:
    """Where a stage's artifact is or will be."""
    return root / f"{name}-{key[:12]}"


def load(folder: Path, key: str | None = None) -> Artifact:
    """Read and verify an artifact: every payload file and the record itself are hashed, ``key`` is compared.

    Raises:
        ArtifactError: it is missing, unreadable, its bytes changed, or it is another artifact.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        if record["format"] != FORMAT:
            raise ArtifactError(f"format {record['format']}, this version reads {FORMAT}", where=str(folder))
        seal = record.pop("seal")
        if seal != sha256_json(record) or key not in (None, record["key"]):
            raise ArtifactError(f"{RECORD} changed since it was written", where=str(folder), hint=AGAIN)
        for name, entry in record["files"].items():
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise ArtifactError(f"the file {name!r} lies outside the artifact", where=str(folder))
            if sha256_file(path) != entry["sha256"]:
                raise ArtifactError(
                    f"the bytes of {name!r} changed since it was written", where=str(folder), hint=AGAIN
                )
        fields = {key: value for key, value in record.items() if key != "format"}
        return Artifact(folder=folder, **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"not a readable artifact ({error})", where=str(folder), hint=AGAIN) from error


@contextmanager
def workplace(root: Path, name: str, key: str) -> Iterator[tuple[Path, Path]]:
    """(payload, scratch) folders of a stage at work. The payload starts empty; scratch survives a killed process."""
    partial = stage_folder(root, name, key).with_suffix(".partial")
    # Each try has a payload folder of its own: a child that outlived a killed run can't write into this one.
    payload, scratch = partial / f"payload-{os.getpid()}", partial / "scratch"
    for left in partial.glob("payload-*"):
        shutil.rmtree(left, ignore_errors=True)
    payload.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    yield payload, scratch


def commit(root: Path, artifact: Artifact) -> Artifact:
    """Seal the payload in ``artifact.folder``: hash, record, rename to its final place, forget the scratch."""
    payload = artifact.folder
    files = {
        path.relative_to(payload).as_posix(): {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
        for path in sorted(payload.rglob("*"))
        if path.is_file()
    }
    digest = sha256_json({name: entry["sha256"] for name, entry in files.items()})
    final = stage_folder(root, artifact.name, artifact.key)
    sealed = Artifact(**{**vars(artifact), "folder": final, "files": files, "digest": digest})
    # Through JSON, as load() will see it: tuples become lists, keys become text.
    plain = {key: value for key, value in asdict(sealed).items() if key != "folder"}
    record = json.loads(json.dumps({"format": FORMAT, **plain}))
    with (payload / RECORD).open("w") as file:
        json.dump({**record, "seal": sha256_json(record)}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():  # a damaged predecessor
        shutil.rmtree(final)
    payload.rename(final)
    shutil.rmtree(payload.parent, ignore_errors=True)
    return sealed


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Own a run folder: two runs in one folder would write over each other.

    Raises:
        ArtifactError: another process owns it, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ArtifactError(
            f"the run folder can't be written ({error.strerror})", where=str(folder), hint="choose another with --out"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(
                "another run is at work in this folder", where=str(folder), hint="wait for it, or choose another --out"
            ) from error
        yield
