"""LiteRT, formerly TFLite: ``ai_edge_litert``, or ``tflite_runtime`` on old devices. Python >= 3.8.

Runs on the CPU with XNNPACK, whose float kernels are float32 unless the file itself asks for less:
``Options.precision`` "default" means float32 too. The interpreter has no getter for its threads, so ``settings``
repeats what was asked and says so. ``run`` copies inputs in and outputs out, so arrays stay valid. A stream is another
interpreter of the same file, with its own threads and its own packed weights.

A file of a net that reads texts has one signature a length, ``length_32_padding_0``: LiteRT's shapes are fixed. Its
input's length is open all the same: ``run`` takes the shortest signature that fits, fills up with the padding's id that
the signatures' names tell, and cuts what it answers for each token back to the length that came.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import tempfile
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np

from edgewise.deploy.runtimes.base import Options, Streams, TensorSpec, check_options, read_head, reason
from edgewise.errors import MeasureError, RuntimeMissing

NAME = "litert"
SUFFIX = ".tflite"
LIBRARIES = ("ai_edge_litert", "tflite_runtime")
OF_LENGTH = re.compile(r"length_(\d+)_padding_(\d+)")


def missing() -> Optional[str]:
    """None where LiteRT works here, else how to get it."""
    try:
        _library()
    except ImportError as error:
        return "neither ai_edge_litert nor tflite_runtime can be imported (%s): pip install ai-edge-litert" % error
    return None


class LitertSession:
    """An interpreter with its tensors allocated."""

    def __init__(self, interpreter: Any, options: Options, path: str, streams: Streams) -> None:
        """Note where the tensors lie."""
        self._interpreter = interpreter
        self._opened = (path, options, streams)
        names = _signature_names(interpreter)
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self.inputs = tuple(_spec(detail, names[0]) for detail in inputs)
        self.outputs = tuple(_spec(detail, names[1]) for detail in outputs)
        self._in = [(spec.name, detail["index"]) for spec, detail in zip(self.inputs, inputs)]
        self._out = [(spec.name, detail["index"]) for spec, detail in zip(self.outputs, outputs)]
        self.settings = _settings(interpreter, options)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference."""
        interpreter = self._interpreter
        for name, index in self._in:
            interpreter.set_tensor(index, feeds[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._out}

    def stream(self) -> Opened:
        """One more interpreter of the same file."""
        path, options, streams = self._opened
        streams.take()
        return _open(path, options, streams)

    def close(self) -> None:
        """Give the memory back."""
        self._interpreter = None


class _Length(NamedTuple):
    """One signature: the tokens it takes, the padding's id, and what runs it."""

    length: int
    padding: int
    run: Any


class LitertTexts:
    """An interpreter of a file with a signature for each length."""

    def __init__(self, interpreter: Any, options: Options, path: str, streams: Streams) -> None:
        """Find the signatures, the shortest first, and give each its memory."""
        self._interpreter = interpreter
        self._opened = (path, options, streams)
        self._lengths = _lengths(interpreter)
        runner = self._lengths[-1].run
        ((name, told),) = runner.get_input_details().items()
        kind = np.dtype(told["dtype"])
        self.inputs = (TensorSpec(name, (options.batch, None), str(kind)),)
        found = runner.get_output_details()
        self._tokens = [key for key, detail in found.items() if self._each_token(detail)]
        self.outputs = tuple(self._output(key, detail) for key, detail in found.items())
        for each in self._lengths:  # a batch that the file can't take is told now
            each.run(**{name: np.full((options.batch, each.length), each.padding, kind)})
        self.settings = dict(_settings(interpreter, options), lengths=[each.length for each in self._lengths])

    def run(self, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference."""
        ((name, tokens),) = feeds.items()
        count = tokens.shape[1]
        fits = next((each for each in self._lengths if each.length >= count), None)
        if fits is None:
            raise MeasureError("expected at most %d tokens, got %d" % (self._lengths[-1].length, count), where=name)
        if count < fits.length:
            whole = np.full((len(tokens), fits.length), fits.padding, tokens.dtype)
            whole[:, :count] = tokens
            tokens = whole
        answers: Dict[str, np.ndarray] = fits.run(**{name: tokens})
        answers.update((key, answers[key][:, :count]) for key in self._tokens)
        return answers

    def stream(self) -> LitertTexts:
        """One more interpreter of the same file."""
        path, options, streams = self._opened
        streams.take()
        return LitertTexts(_interpreter(path, options), options, path, streams)

    def close(self) -> None:
        """Give the memory back."""
        self._lengths, self._interpreter = [], None

    def _each_token(self, detail: Dict[str, Any]) -> bool:
        """Whether an output of the longest signature answers for each token: (N, L, K)."""
        return len(detail["shape"]) == 3 and int(detail["shape"][1]) == self._lengths[-1].length

    def _output(self, key: str, detail: Dict[str, Any]) -> TensorSpec:
        shape: List[Optional[int]] = [self.inputs[0].shape[0], *(int(size) for size in detail["shape"][1:])]
        if key in self._tokens:
            shape[1] = None
        return TensorSpec(key, tuple(shape), str(np.dtype(detail["dtype"])))


Opened = Union[LitertSession, LitertTexts]


def open(path: str, options: Options) -> Opened:
    """Open a ``.tflite`` file for ``options.batch`` samples a run.

    Raises:
        RuntimeMissing: no LiteRT is installed.
        MeasureError: the file isn't one LiteRT can run, or an option can't be honoured.
    """
    absent = missing()
    if absent:
        raise RuntimeMissing(absent)
    check_options(options)
    # Without this mark the library may abort the process instead of raising.
    if read_head(path, 8)[4:] != b"TFL3":
        raise MeasureError("expected a .tflite file, found no TFL3 mark in it", where=path)
    return _open(path, options, Streams(options.streams))


def _open(path: str, options: Options, streams: Streams) -> Opened:
    resized = False
    try:
        with _muted():
            interpreter = _interpreter(path, options)
            if _lengths(interpreter):
                resized = options.batch > 1
                return LitertTexts(interpreter, options, path, streams)
            for detail in interpreter.get_input_details():
                resized = _resize(interpreter, detail, options.batch, path) or resized
            interpreter.allocate_tensors()
        return LitertSession(interpreter, options, path, streams)
    except (ValueError, RuntimeError) as error:
        if not resized:
            raise MeasureError("LiteRT can't open it: %s" % reason(error), where=path) from error
        raise MeasureError(
            "LiteRT can't give it a batch of %d: %s" % (options.batch, reason(error)),
            where=path,
            hint="its reshapes hold the batch it was converted with, as a transformer's do: measure it with that one",
        ) from error


def _interpreter(path: str, options: Options) -> Any:
    _, module, _ = _library()
    return module.Interpreter(model_path=path, num_threads=options.threads)


def _lengths(interpreter: Any) -> List[_Length]:
    """The signatures that are one for each length, the shortest first; none where the file has others."""
    found = [(OF_LENGTH.fullmatch(key), key) for key in interpreter.get_signature_list()]
    if not all(told for told, _ in found):
        return []
    return sorted(
        (
            _Length(int(told.group(1)), int(told.group(2)), interpreter.get_signature_runner(key))
            for told, key in found
            if told
        ),
        key=lambda each: each.length,
    )


def _settings(interpreter: Any, options: Options) -> Dict[str, Any]:
    library, _, version = _library()
    settings: Dict[str, Any] = {
        "runtime": NAME,
        "library": library,
        "version": version,
        "threads": options.threads,
        "threads_read_back": False,
        "precision": "float32",
        "batch": options.batch,
        "streams": options.streams,
        "streams_by": "an interpreter each",
    }
    # Which ops a delegate took over is known to a private method only; old versions lack it.
    if hasattr(interpreter, "_get_ops_details"):
        ops = [op["op_name"] for op in interpreter._get_ops_details()]
        settings["delegate_partitions"] = ops.count("DELEGATE")
    return settings


def _library() -> Tuple[str, Any, str]:
    last: Optional[ImportError] = None
    for name in LIBRARIES:
        try:
            module = importlib.import_module(name + ".interpreter")
        except ImportError as error:
            last = last or error
            continue
        version = getattr(importlib.import_module(name), "__version__", "")
        return name, module, version or _installed_version(name)
    raise last or ImportError(LIBRARIES[0])


def _installed_version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name.replace("_", "-"))
    except metadata.PackageNotFoundError:  # a vendor's own build
        return "unknown"


def _resize(interpreter: Any, detail: Dict[str, Any], batch: int, path: str) -> bool:
    """Give the input the batch asked for; whether it had another.

    Converters write the batch of their sample input as if it were fixed; most graphs take another all the same, and the
    rest refuse in allocate_tensors.
    """
    shape = [int(size) for size in detail["shape"]]
    if not shape:
        raise MeasureError("%r is a scalar: expected a batch dimension" % detail["name"], where=path)
    if shape[0] == batch:
        return False
    interpreter.resize_tensor_input(detail["index"], [batch, *shape[1:]])
    return True


def _signature_names(interpreter: Any) -> Tuple[Dict[str, str], Dict[str, str]]:
    """What the file's only signature calls its tensors: {tensor name: name} of inputs and of outputs."""
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return {}, {}
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    names = [
        {detail["name"]: key for key, detail in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    ]
    return names[0], names[1]


def _spec(detail: Dict[str, Any], names: Dict[str, str]) -> TensorSpec:
    shape: List[Optional[int]] = [int(size) for size in detail["shape"]]
    return TensorSpec(names.get(detail["name"], detail["name"]), tuple(shape), str(np.dtype(detail["dtype"])))


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Hold back what the library writes to stderr from C++, and pass on all but its greeting lines."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            lines = held.read().splitlines(True)
            os.write(2, b"".join(line for line in lines if not line.startswith(b"INFO:")))
