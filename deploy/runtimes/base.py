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
    everywhere, ``default`` leaves it to the runtime (OpenVINO then takes bf16 where the CPU has it)."""

    threads: int = 1
    precision: str = "float32"
    batch: int = 1


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
        """What the runtime says it does, read back after loading: threads, precision, providers, version."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference; feeds are numpy arrays of the inputs' dtypes."""

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
