"""A teacher's answers on disk, so that its forward pass is paid once for each view of each sample.

A cache is a folder: ``cache.json`` says whose answers these are, ``logits.npy`` (views, samples, K) and
``feature-<i>.npy`` (views, samples, ...) hold them, ``filled.npy`` (views, samples) says which rows are there. A row is
written once and never changes. Its mark is written after its values, so a killed process leaves no half row behind that
counts. (What a power cut loses is not noticed: delete the cache after one.)

Reads are memory-mapped, writes are not: on a full disk a write is an error that can be told, a page fault kills the
process. The files are sparse: a row takes room when it is filled. Processes of one machine may share a cache and fill
different rows of it at the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.errors import ArtifactError, ModelError
from edgewise.models.tasks.base import Int, Split

FORMAT = 1
RECORD, LOCK, MAKING = "cache.json", ".lock", ".making"
LOGITS, FILLED = "logits.npy", "filled.npy"
DIFFERENT = "give another folder, or delete this one"


@dataclass(frozen=True)
class Identity:
    """Whose answers, to what, in which form. Two runs share a cache where all of it is equal.

    Args:
        teacher: hash of the teacher, such as :func:`teacher_digest`.
        data: hash of the samples in their order, such as :func:`data_fingerprint`.
        view: JSON; whatever else decides what the teacher sees and how it computes: the augmentation and the seed of
            its draws where there is one, the precision.
        logits: numbers in a sample's row of logits: K classes, or T * K of T teachers side by side; (L, K) of tokens.
        samples: of the training split.
        views: how many views of each sample come again and again; 1 without augmentation.
        features: shapes without N by layer name, in the order in which they are put and got.
        dtype: float16 takes half the room and rounds to 11 bits; float32 keeps every bit.
        length: L of texts, so that tokens (L, D) and attention (heads, L, L) of shorter batches can be put and got;
            None where inputs are no texts.
    """

    teacher: str
    data: str
    view: Mapping[str, Any]
    logits: int | tuple[int, ...]
    samples: int
    views: int = 1
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dtype: Literal["float16", "float32"] = "float16"
    length: int | None = None

    def record(self) -> dict[str, Any]:
        """As ``cache.json`` holds it."""
        layers = list(self.features.items())  # their order counts, and keys of JSON have none
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self), "features": layers}))
        return plain

    def files(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each file of values."""
        logits = (self.logits,) if isinstance(self.logits, int) else self.logits
        rows = {LOGITS: logits} | {f"feature-{i}.npy": tuple(s) for i, s in enumerate(self.features.values())}
        return {name: ((self.views, self.samples, *row), self.dtype) for name, row in rows.items()}


def teacher_digest(*teachers: nn.Module) -> str:
    """Hash of what each teacher is made of (its layers as printed) and of its tensors. The code of a ``forward`` is not
    in it: a user's own teacher whose code changed needs a new folder."""
    digest = hashlib.sha256()
    for teacher in teachers:
        digest.update(repr(teacher).encode())
        for name, value in teacher.state_dict().items():
            digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
            # As bytes: numpy has no bfloat16.
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_fingerprint(split: Split, chunk: int = 500) -> str:
    """Hash of every input of ``split``, in order, before augmentation: one pass over the data."""
    digest = hashlib.sha256()
    for start in range(0, len(split.ids), chunk):
        inputs = split.read(np.arange(start, min(start + chunk, len(split.ids))))
        digest.update(f"{inputs.dtype} {inputs.shape}\n".encode())
        digest.update(np.ascontiguousarray(inputs).data)
    return digest.hexdigest()


def cache_folder(root: Path, identity: Identity) -> Path:
    """Where under ``root`` the cache of ``identity`` is or will be."""
    text = json.dumps(identity.record(), sort_keys=True, separators=(",", ":"))
    return root / f"teacher-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def needed_bytes(identity: Identity) -> int:
    """Room that the cache takes when every row is filled."""
    values = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in identity.files().values())
    return values + identity.views * identity.samples


def no_room(folder: Path, identity: Identity, max_bytes: int) -> str | None:
    """Why a full cache can't be kept in ``folder``; None where it can. Asked before :func:`open_cache` by a caller that
    would rather run the teacher live."""
    needed = needed_bytes(identity)
    if needed > max_bytes:
        return f"the teacher's answers take {_size(needed)}, the bound is {_size(max_bytes)}"
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    missing = needed - _allocated(folder)
    if missing > free:
        return f"the teacher's answers take another {_size(missing)}, the disk of {place} has {_size(free)} left"
    return None


def open_cache(folder: Path, identity: Identity, *, max_bytes: int) -> TeacherCache:
    """The cache in ``folder``, made where there is none. Close it, or use it in a ``with`` block.

    Args:
        folder: of this cache alone, such as :func:`cache_folder`.
        identity: whose answers.
        max_bytes: bound of the whole cache, all rows filled.

    Raises:
        ArtifactError: ``folder`` holds the answers of another teacher, to other data or other views, or is damaged; the
            answers don't fit the bound or the disk; it can't be written.
    """
    try:
        reason = no_room(folder, identity, max_bytes)
        if reason is not None:
            raise ArtifactError(
                reason, where=str(folder), hint="raise the bound, tap fewer or smaller layers, or run without the cache"
            )
        lock = _enter(folder, identity)
        try:
            _compare(folder, identity)
            os.utime(folder / RECORD)  # the time of its last use, for prune_cache
            return TeacherCache(folder, identity, lock)
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise ArtifactError(
            f"the cache of teacher outputs can't be opened ({error.strerror})",
            where=str(folder),
            hint="check the disk and its permissions, or run without the cache",
        ) from error


class TeacherCache:
    """An open cache. While it is open :func:`prune_cache` leaves it alone."""

    def __init__(self, folder: Path, identity: Identity, lock: int) -> None:
        self.folder, self.identity, self._lock = folder, identity, lock
        self._values = [_Rows(folder / name, *form) for name, form in identity.files().items()]
        self._marks = _Rows(folder / FILLED, (identity.views, identity.samples), "uint8")

    @property
    def filled(self) -> int:
        """Rows that are there, of ``views * samples``."""
        return int(np.count_nonzero(self._marks.array))

    def get(self, view: int, index: Int, length: int | None = None) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """Logits (N, K) and features (N, ...) of the samples ``index`` (N,) in ``view``, float32 on the CPU, maps in
        channels-last; None where any of them is not there yet. Of texts, tokens after ``length`` are left out."""
        self._check(view, index)
        if not self._marks.array[view, index].all():
            return None
        logits, *features = (_float(self._cut(rows.array[view], index, length)) for rows in self._values)
        return logits, tuple(features)

    def _cut(self, rows: NDArray[Any], index: Int, length: int | None) -> NDArray[Any]:
        """Rows (N, ...) of ``index``, no longer than ``length`` where a row has one place a token."""
        places = _of_tokens(rows.shape[1:], self.identity.length)
        part = [slice(length if place in places else None) for place in range(rows.ndim - 1)]
        found: NDArray[Any] = rows[index] if length is None else rows[(index, *part)]
        return found

    def put(
        self, view: int, index: Int, logits: Tensor, features: Sequence[Tensor] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Keep the rows that are not there yet; returns all of them as ``get`` will: rounded, float32, on the CPU. Of
        texts, tokens that the batch did without are kept as zeros, and are padding to every other batch.

        Use what is returned: then the epoch that fills the cache learns from the very numbers that later ones do. A row
        that was there stays as it was, even where the teacher now answers a bit differently (in a batch of another
        size, say).

        Raises:
            ModelError: an answer is not finite, or not of the shape the cache was made for.
            ArtifactError: a value is too large for float16; the disk is full.
        """
        self._check(view, index)
        names, forms = ("logits", *self.identity.features), self.identity.files().values()
        if len(features) != len(self.identity.features):
            raise ModelError(
                f"expected features of {len(self.identity.features)} layers ({', '.join(self.identity.features)}), "
                f"got {len(features)}",
                where=str(self.folder),
            )
        length = _shown(self.identity.length, (logits, *features), [shape[2:] for shape, _ in forms])
        given = [
            _rounded(name, _lengthened(value, shape[2:], self.identity.length), (len(index), *shape[2:]), dtype)
            for name, value, (shape, dtype) in zip(names, (logits, *features), forms, strict=True)
        ]
        absent = np.flatnonzero(self._marks.array[view, index] == 0)
        try:
            for rows, values in zip(self._values, given, strict=True):
                rows.write(view, index[absent], values[absent])
            self._marks.write(view, index[absent], np.ones(len(absent), np.uint8))  # last: now the rows count
        except OSError as error:
            raise ArtifactError(
                f"the teacher's answers can't be kept ({error.strerror})",
                where=str(self.folder),
                hint="make room on the disk and start again, which goes on from here; or run without the cache",
            ) from error
        kept = self.get(view, index, length)
        assert kept is not None
        return kept

    def close(self) -> None:
        """Let go of the files."""
        for rows in (*self._values, self._marks):
            rows.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> TeacherCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, view: int, index: Int) -> None:
        inside = 0 <= view < self.identity.views and (
            len(index) == 0 or (index.min() >= 0 and index.max() < self.identity.samples)
        )
        if not inside:
            raise ModelError(
                f"view {view} of samples {index.min()}..{index.max()} is outside the cache's "
                f"{self.identity.views} views of {self.identity.samples} samples",
                where=str(self.folder),
            )


def prune_cache(root: Path, max_bytes: int) -> list[Path]:
    """Remove caches under ``root`` until they take no more than ``max_bytes`` of disk, the least recently used first;
    one that is open stays. Returns the removed folders.

    Raises:
        ArtifactError: one can't be removed.
    """
    found = {folder: _allocated(folder) for folder in root.glob("*") if (folder / LOCK).is_file()}
    total, removed = sum(found.values()), []
    for folder in sorted(found, key=_last_used):
        if total <= max_bytes:
            break
        try:
            if _remove(folder):
                total -= found[folder]
                removed.append(folder)
        except OSError as error:
            raise ArtifactError(
                f"this cache can't be removed ({error.strerror})", where=str(folder), hint="delete it by hand"
            ) from error
    return removed


class _Rows:
    """One file of rows (views, samples, ...): mapped for reading, open for writing."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        try:
            mapped = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, FileNotFoundError) as error:
            raise ArtifactError(
                f"this file of the cache is missing or cut short ({error})", where=str(path), hint=DIFFERENT
            ) from error
        if mapped.shape != shape or mapped.dtype != dtype or not mapped.flags.c_contiguous:
            raise ArtifactError(
                f"expected {shape} of {dtype}, got {mapped.shape} of {mapped.dtype}", where=str(path), hint=DIFFERENT
            )
        self.array: NDArray[Any] = np.asarray(mapped)
        self._start: int = mapped.offset
        self._row = math.prod(shape[2:]) * mapped.itemsize
        self._samples = shape[1]
        self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, view: int, index: Int, values: NDArray[Any]) -> None:
        """``values`` (N, ...) to the rows ``index`` (N,)."""
        rows = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        for place, sample in enumerate(index.tolist()):
            at = self._start + (view * self._samples + sample) * self._row
            left = rows[place * self._row : (place + 1) * self._row]
            while left:  # a disk about to be full takes a part, and refuses the next
                done = os.pwrite(self._file, left, at)
                left, at = left[done:], at + done

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def _of_tokens(shape: tuple[int, ...], length: int | None) -> tuple[int, ...]:
    """Which places of a row's ``shape`` count a text's tokens: the first of (L, D), both of (heads, L, L)."""
    if length is None or len(shape) < 2:
        return ()
    places = (0,) if len(shape) == 2 else tuple(range(1, len(shape)))
    return places if all(shape[place] == length for place in places) else ()


def _shown(length: int | None, values: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> int | None:
    """How many tokens a batch of texts had, by its answers; None where they don't tell."""
    for value, shape in zip(values, shapes, strict=True):
        for place in _of_tokens(shape, length):
            if value.dim() == len(shape) + 1:
                return value.shape[place + 1]
    return None


def _lengthened(value: Tensor, shape: tuple[int, ...], length: int | None) -> Tensor:
    """``value`` (N, ...) with zeros for the tokens that its batch did without."""
    if value.dim() != len(shape) + 1:
        return value  # told as an error by its name
    missing = [shape[place] - value.shape[place + 1] for place in _of_tokens(shape, length)]
    if not any(missing) or min(missing) < 0:
        return value
    places = dict(zip(_of_tokens(shape, length), missing, strict=True))
    pads = [amount for place in reversed(range(len(shape))) for amount in (0, places.get(place, 0))]
    return torch.nn.functional.pad(value, pads)


def _rounded(name: str, value: Tensor, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """``value`` as an array of ``dtype``, every number finite."""
    if tuple(value.shape) != shape:
        raise ModelError(f"the teacher's {name}: expected {shape}, got {tuple(value.shape)}", where="cache")
    exact = value.detach().float()
    kept = exact.to(getattr(torch, dtype))
    if not kept.isfinite().all():
        if not exact.isfinite().all():
            raise ModelError(
                f"the teacher's {name} hold NaN or infinity: there is nothing to learn from them",
                where="cache",
                hint="check the teacher's weights, and its precision",
            )
        raise ArtifactError(
            f"the teacher's {name} reach {float(exact.abs().max()):.4g}, and float16 ends at 65504",
            where="cache",
            hint="keep them with dtype float32, or run without the cache",
        )
    array: NDArray[Any] = kept.cpu().contiguous().numpy()
    return array


def _float(rows: NDArray[Any]) -> Tensor:
    """``rows`` (N, ...) in float32; maps in the layout in which training's nets give them, since another layout is
    summed in another order: in float32, a cached run then equals a live one to the last bit."""
    values = torch.from_numpy(rows)
    layout = torch.channels_last if values.dim() == 4 else torch.contiguous_format
    return values.to(torch.float32, memory_format=layout)


def _enter(folder: Path, identity: Identity) -> int:
    """A shared lock on ``folder``, which then holds a whole cache, of this identity or another."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # prune_cache removed the folder just now
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _same_file(lock, folder / LOCK):  # otherwise prune_cache removed it while we waited
                _make(folder, identity)
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _same_file(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except FileNotFoundError:
        return False


def _make(folder: Path, identity: Identity) -> None:
    """The files, all rows empty, where there are none; one process makes them, others wait."""
    with (folder / MAKING).open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        if (folder / RECORD).exists():
            return
        marks = {FILLED: ((identity.views, identity.samples), "uint8")}
        for name, (shape, dtype) in (identity.files() | marks).items():
            with (folder / name).open("wb") as file:
                header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + math.prod(shape) * np.dtype(dtype).itemsize)
        beside = folder / f"{RECORD}.tmp"
        beside.write_text(json.dumps(identity.record(), indent=1))
        beside.replace(folder / RECORD)  # last: without it there is no cache


def _compare(folder: Path, identity: Identity) -> None:
    """Raise ArtifactError where the cache in ``folder`` is another one's."""
    try:
        theirs = _flat(json.loads((folder / RECORD).read_text()))
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"not readable ({error})", where=str(folder / RECORD), hint=DIFFERENT) from error
    ours = _flat(identity.record())
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise ArtifactError(
                f"these are a teacher's answers with {name} {theirs.get(name)!r}, this run has {ours.get(name)!r}",
                where=str(folder),
                hint=DIFFERENT,
            )


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as ``view.seed``."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _remove(folder: Path) -> bool:
    """Delete a cache's files, unless it is open somewhere."""
    with (folder / LOCK).open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # The record first: what is left of a removal that was killed is no cache. The lock last: it is found again.
        files = [folder / RECORD, *folder.glob("*.npy"), folder / f"{RECORD}.tmp", folder / MAKING, folder / LOCK]
        for file in files:
            file.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's file is in it, or somebody makes a cache there again
        folder.rmdir()
    return True


def _last_used(folder: Path) -> float:
    try:
        return (folder / RECORD).stat().st_mtime
    except FileNotFoundError:  # what a killed process left
        return 0.0


def _allocated(folder: Path) -> int:
    """Bytes of disk that the files in ``folder`` take, holes left out."""
    return sum(file.stat().st_blocks * 512 for file in folder.glob("*.npy"))


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
