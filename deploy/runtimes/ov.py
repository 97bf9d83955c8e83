"""OpenVINO on the CPU. Python >= 3.8.

``Options.precision`` "float32" asks for exact float32, "bfloat16" for that and nothing else; "default" lets OpenVINO
choose (bf16 where the CPU has it) and the choice is read back. ``run`` copies inputs into the request's own tensors and
outputs out of them, so arrays stay valid. A stream is another infer request of the same compiled model, which has
``Options.streams`` streams of ``Options.threads`` threads. An input whose length is open, a text's, stays so: the
request's tensor takes the length that comes, at a few per cent of the time of a file with that length alone.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np

from edgewise.deploy.runtimes.base import (
    PRECISIONS,
    Options,
    Streams,
    TensorSpec,
    batched,
    check_feeds,
    check_options,
    read_head,
    reason,
)
from edgewise.errors import MeasureError, RuntimeMissing

NAME = "openvino"
SUFFIX = ".xml"
READ_BACK = (
    "INFERENCE_NUM_THREADS",
    "NUM_STREAMS",
    "INFERENCE_PRECISION_HINT",
    "ENABLE_CPU_PINNING",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
)
FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def missing() -> Optional[str]:
    """None where OpenVINO works here, else how to get it."""
    try:
        load_openvino()
    except ImportError as error:
        return "openvino can't be imported (%s): pip install openvino" % error
    return None


def load_openvino() -> Any:
    """Import openvino without its telemetry, which sends usage home at the import, unasked, from its own thread."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


class _Input:
    """An input's memory in a request."""

    def __init__(self, spec: TensorSpec, tensor: Any) -> None:
        self.spec = spec
        self._tensor = tensor
        self._view = tensor.data

    def fill(self, array: np.ndarray) -> None:
        """Copy ``array`` in.

        Raises:
            MeasureError: of another shape or type.
        """
        if array.shape != self._view.shape or array.dtype != self._view.dtype:  # copyto would broadcast and cast
            check_feeds((self.spec,), {self.spec.name: array})
            self._tensor.shape = array.shape
            self._view = self._tensor.data  # it may lie elsewhere now
        self._view[...] = array


class OvSession:
    """A compiled model with one infer request."""

    def __init__(self, compiled: Any, names: Sequence[str], batch: int, streams: Streams) -> None:
        """Make the request, and read back what it does. ``names`` are the outputs': compiling adds those of the layers
        that it fuses into them."""
        request = compiled.create_infer_request()
        self._compiled = compiled
        self._streams = streams
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port)._replace(name=name) for port, name in zip(compiled.outputs, names))
        # Views on memory that the request owns: filling them is cheaper than handing over a new tensor each time.
        self._in = [_Input(spec, request.get_input_tensor(i)) for i, spec in enumerate(self.inputs)]
        # An output whose size is known only after a run has no fixed memory to look at.
        self._out = [
            (spec.name, request.get_output_tensor(i).data if None not in spec.shape else None, i)
            for i, spec in enumerate(self.outputs)
        ]
        self._request = request
        properties = {name: compiled.get_property(name) for name in READ_BACK}
        self.settings: Dict[str, Any] = {
            "runtime": NAME,
            "version": load_openvino().__version__,
            "threads": properties["INFERENCE_NUM_THREADS"] // max(1, properties["NUM_STREAMS"]),
            "threads_in_all": properties["INFERENCE_NUM_THREADS"],
            "streams": properties["NUM_STREAMS"],
            "streams_by": "an infer request each",
            "precision": FLOATS.get(properties["INFERENCE_PRECISION_HINT"].get_type_name(), "dynamic"),
            "cpu_pinning": properties["ENABLE_CPU_PINNING"],
            # How many inputs share a scale where a matrix product has int8 weights: 0 leaves the inputs in float.
            "dynamic_quantization_group": properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"],
            "devices": list(compiled.get_property("EXECUTION_DEVICES")),
            "batch": batch,
        }

    def run(self, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference."""
        for place in self._in:
            place.fill(feeds[place.spec.name])
        request = self._request
        request.infer()
        return {
            name: (request.get_output_tensor(i).data if view is None else view).copy() for name, view, i in self._out
        }

    def stream(self) -> OvSession:
        """One more infer request of the same compiled model."""
        self._streams.take()
        names = [spec.name for spec in self.outputs]
        return OvSession(self._compiled, names, self.settings["batch"], self._streams)

    def close(self) -> None:
        """Give the memory back."""
        self._in, self._out, self._request, self._compiled = [], [], None, None


def open(path: str, options: Options) -> OvSession:
    """Open an ``.xml`` (with its ``.bin``), or an ``.onnx`` or ``.tflite`` file, for ``options.batch`` samples a run.

    Raises:
        RuntimeMissing: OpenVINO isn't installed.
        MeasureError: the file isn't one OpenVINO can run, or an option can't be honoured.
    """
    absent = missing()
    if absent:
        raise RuntimeMissing(absent)
    check_options(options, (*PRECISIONS, "bfloat16"))
    _check_file(path)
    openvino = load_openvino()
    asked: Dict[str, Any] = {
        "INFERENCE_NUM_THREADS": options.threads * options.streams,
        "NUM_STREAMS": options.streams,
        "ENABLE_CPU_PINNING": False,
    }
    if options.precision != "default":
        wanted = openvino.Type.f32 if options.precision == "float32" else openvino.Type.bf16
        asked["INFERENCE_PRECISION_HINT"] = wanted
    try:
        core = openvino.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if options.precision == "bfloat16" and "BF16" not in able:
            raise MeasureError("precision: this CPU has no bfloat16, only %s" % ", ".join(sorted(able)), where=path)
        model = core.read_model(path)
        shapes = {port: batched(_shape(port), options.batch, path) for port in model.inputs}
        model.reshape({port: [-1 if size is None else size for size in shape] for port, shape in shapes.items()})
        compiled = core.compile_model(model, "CPU", asked)
        names = [port.any_name for port in model.outputs]
        opened = OvSession(compiled, names, options.batch, Streams(options.streams))
    except MeasureError:
        raise
    except Exception as error:  # its frontends' errors share no base with its other ones
        raise MeasureError("OpenVINO can't open it: %s" % reason(error), where=path) from error
    for name, value in asked.items():
        real = compiled.get_property(name)
        if real != value:
            raise MeasureError("asked for %s %s, it runs with %s" % (name, value, real), where=path)
    return opened


def _check_file(path: str) -> None:
    """OpenVINO tries every frontend on a file it can't read and says little: say what is wrong first."""
    head = read_head(path, 4096)
    if not path.endswith(".xml"):
        return
    if b"<net" not in head:
        raise MeasureError("expected OpenVINO IR, found no <net> in it", where=path)
    weights = os.path.splitext(path)[0] + ".bin"
    if not os.path.isfile(weights):
        raise MeasureError("its weights are missing: expected %s" % weights, where=path)
    with builtins.open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        if not file.read().rstrip().endswith(b"</net>"):
            raise MeasureError("truncated: it doesn't end with </net>", where=path)


def _shape(port: Any) -> Any:
    if port.partial_shape.rank.is_dynamic:
        raise MeasureError("%r has no fixed number of dimensions" % port.any_name)
    return tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)


def _spec(port: Any) -> TensorSpec:
    return TensorSpec(port.any_name, _shape(port), str(np.dtype(port.element_type.to_dtype())))
