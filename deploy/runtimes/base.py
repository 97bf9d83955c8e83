"""The protocol of a runtime: four modules implement it, one file each. Python >= 3.8, numpy only.

A runtime module has ``NAME``, ``SUFFIX``, ``missing()`` and ``open()``. Timing is outside; nothing is installed or
downgraded in silence: a setting that can't be honoured is a MeasureError.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional, Protocol, Tuple

import numpy as np

from edgewise.errors import MeasureError


class TensorSpec(NamedTuple):
    """A model's input or output; ``None`` in the shape is a dynamic dimension."""

    name: str
    shape: Tuple[Optional[int], ...]
    dtype: str


class Options(NamedTuple):
    """How to open a file. ``precision`` is what arithmetic may be used for float ops: ``float32`` is exact float
    everywhere, ``bfloat16`` is refused where it can't be had, ``default`` leaves it to the runtime (OpenVINO then takes
    bf16 where the CPU has it). ``threads`` are those of one stream; ``streams`` is how many inferences may run at once,
    each in a session of ``Session.stream()``."""

    threads: int = 1
    precision: str = "float32"
    batch: int = 1
    streams: int = 1


class Session(Protocol):
    """An opened file."""

    @property
    def inputs(self) -> Tuple[TensorSpec, ...]:
        """The model's inputs, in order."""

    @property
    def outputs(self) -> Tuple[TensorSpec, ...]:
        """The model's outputs, in order."""

    @property
    def settings(self) -> Dict[str, Any]:
        """What the runtime says it does, read back after loading: threads, precision, providers, version, ``streams``
        (how many inferences may run at once) and ``streams_by`` (how)."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference; feeds are numpy arrays of the inputs' dtypes."""

    def stream(self) -> Session:
        """One more session of the same open file, to run in another thread at the same time; closed by its own.

        Raises:
            MeasureError: there are ``Options.streams`` already, this one among them.
        """

    def close(self) -> None:
        """Give the memory back."""


class Runtime(Protocol):
    """A runtime module."""

    NAME: str
    SUFFIX: str

    def missing(self) -> Optional[str]:
        """None where the runtime works here, else the sentence that says what to install."""

    def open(self, path: str, options: Options) -> Session:
        """Open a file.

        Raises:
            RuntimeMissing: the runtime isn't installed.
            MeasureError: the file can't be opened, or an option can't be honoured.
        """


def check_feeds(inputs: Tuple[TensorSpec, ...], feeds: Mapping[str, np.ndarray]) -> None:
    """Check names, dtypes and shapes once, before timing.

    Raises:
        MeasureError: naming the input, what was expected and what came.
    """
    known = {spec.name: spec for spec in inputs}
    for name in set(feeds) - set(known):
        raise MeasureError("the model has no input %r; it has %s" % (name, sorted(known)), where="feeds")
    for name, spec in known.items():
        if name not in feeds:
            raise MeasureError("input %r is missing" % name, where="feeds")
        array = feeds[name]
        fits = array.ndim == len(spec.shape) and all(
            want is None or want == have for want, have in zip(spec.shape, array.shape)
        )
        if not fits or str(array.dtype) != spec.dtype:
            raise MeasureError(
                "expected %s %s, got %s %s" % (spec.dtype, spec.shape, array.dtype, array.shape), where=name
            )


PRECISIONS = ("float32", "default")


def check_options(options: Options, precisions: Tuple[str, ...] = PRECISIONS) -> None:
    """Check what every runtime can be asked for; ``precisions`` are those that this one has.

    Raises:
        MeasureError: threads, batch or streams under 1, or a precision that doesn't exist.
    """
    for name in ("threads", "batch", "streams"):
        value = getattr(options, name)
        if not isinstance(value, int) or value < 1:
            raise MeasureError("%s: expected a whole number from 1, got %r" % (name, value), where="options")
    if options.precision not in precisions:
        raise MeasureError("precision: expected %s, got %r" % (" or ".join(precisions), options.precision))


class Streams:
    """How many sessions of one open file there are; all of them share it."""

    def __init__(self, allowed: int) -> None:
        """The first session is there already."""
        self.allowed = allowed
        self.taken = 1

    def take(self) -> None:
        """Count one more.

        Raises:
            MeasureError: it was opened for fewer.
        """
        if self.taken >= self.allowed:
            raise MeasureError(
                "opened for %d streams, asked for one more" % self.allowed,
                where="streams",
                hint="open it with Options(streams=%d)" % (self.allowed + 1),
            )
        self.taken += 1


def read_head(path: str, size: int) -> bytes:
    """The first ``size`` bytes of a file.

    Raises:
        MeasureError: it isn't there, is a folder, can't be read, or is empty.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(size)
    except OSError as error:
        raise MeasureError("can't be read: %s" % (error.strerror or error), where=path) from error
    if not head:
        raise MeasureError("the file is empty", where=path)
    return head


def batched(shape: Tuple[Optional[int], ...], batch: int, where: str) -> Tuple[Optional[int], ...]:
    """``shape`` with ``batch`` as its first dimension.

    Raises:
        MeasureError: the file has another fixed batch.
    """
    if not shape:
        raise MeasureError("expected an input with a batch dimension, got a scalar", where=where)
    if shape[0] is not None and shape[0] != batch:
        raise MeasureError(
            "the file has a fixed batch of %d, asked for %d" % (shape[0], batch),
            where=where,
            hint="measure with batch %d, or convert with a dynamic batch" % shape[0],
        )
    return (batch, *shape[1:])


def reason(error: BaseException) -> str:
    """What a runtime's error says, without stack frames and source paths: its last line that isn't empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
