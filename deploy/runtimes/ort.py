"""ONNX Runtime on the CPU. Python >= 3.8.

One float arithmetic: ``Options.precision`` "default" means float32 too. The outputs of ``run`` are new arrays each
time; inputs that are C-contiguous are read in place. Streams of one thread each are calls into one session, whose
``run`` lets go of the interpreter's lock; streams of more threads are sessions of their own, for one session's calls
would share its pool of threads.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

import numpy as np

from edgewise.deploy.runtimes.base import Options, Streams, TensorSpec, batched, check_options, read_head, reason
from edgewise.errors import MeasureError, RuntimeMissing

NAME = "onnxruntime"
SUFFIX = ".onnx"
PROVIDERS = ["CPUExecutionProvider"]
# What may change speed or arithmetic, set rather than left to a version's default, and read back.
CONFIG = {"session.intra_op.allow_spinning": "0", "mlas.enable_gemm_fastmath_arm64_bfloat16": "0"}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def missing() -> Optional[str]:
    """None where ONNX Runtime works here, else how to get it."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return "onnxruntime can't be imported (%s): pip install onnxruntime" % error
    return None


class OrtSession:
    """An opened ``.onnx`` file."""

    def __init__(self, session: Any, asked: Options, path: str, streams: Optional[Streams] = None) -> None:
        """Read back what the session does."""
        import onnxruntime

        batch = asked.batch
        self._opened = (path, asked, streams or Streams(asked.streams))

        options = session.get_session_options()
        self._session = session
        inputs = tuple(_spec(arg, path) for arg in session.get_inputs())
        self.inputs = tuple(spec._replace(shape=batched(spec.shape, batch, path)) for spec in inputs)
        self.outputs = tuple(_with_batch(_spec(arg, path), batch) for arg in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self.settings: Dict[str, Any] = {
            "runtime": NAME,
            "version": onnxruntime.__version__,
            "threads": options.intra_op_num_threads,
            "inter_op_threads": options.inter_op_num_threads,
            "execution_mode": options.execution_mode.name,
            "graph_optimization": options.graph_optimization_level.name,
            "providers": session.get_providers(),
            "precision": "float32",
            "batch": batch,
            "static_batch": all(isinstance(arg.shape[0], int) for arg in session.get_inputs()),
            "streams": asked.streams,
            "streams_by": "calls into one session" if asked.threads == 1 else "a session each",
        }
        self.settings.update((key, options.get_session_config_entry(key)) for key in CONFIG)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference."""
        return dict(zip(self._names, self._session.run(self._names, feeds)))

    def stream(self) -> OrtSession:
        """One more: the same session where a stream has one thread, else another with its own pool."""
        path, asked, streams = self._opened
        streams.take()
        return OrtSession(self._session if asked.threads == 1 else _load(path, asked), asked, path, streams)

    def close(self) -> None:
        """Give the memory back."""
        self._session = None


def open(path: str, options: Options) -> OrtSession:
    """Open a ``.onnx`` file for ``options.batch`` samples a run.

    Raises:
        RuntimeMissing: ONNX Runtime isn't installed.
        MeasureError: the file isn't one ONNX Runtime can run, or an option can't be honoured.
    """
    absent = missing()
    if absent:
        raise RuntimeMissing(absent)
    check_options(options)
    read_head(path, 1)
    opened = OrtSession(_load(path, options), options, path)
    asked = dict(CONFIG, threads=options.threads, inter_op_threads=1, providers=PROVIDERS)
    for key, value in asked.items():
        if opened.settings[key] != value:
            raise MeasureError("asked for %s %r, it runs with %r" % (key, value, opened.settings[key]), where=path)
    return opened


def _load(path: str, options: Options) -> Any:
    import onnxruntime

    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = options.threads
    wanted.inter_op_num_threads = 1
    wanted.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    wanted.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    wanted.log_severity_level = 3
    for key, value in CONFIG.items():
        wanted.add_session_config_entry(key, value)
    # The batch stays open where the file leaves it open: fixed, the optimizer makes Gemm of MatMul and Add, which runs
    # slower (a small vision transformer: 0.39 against 0.35 ms in float, 0.41 against 0.37 in INT8; CNNs are the same).
    try:
        return onnxruntime.InferenceSession(path, wanted, providers=PROVIDERS)
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise MeasureError("ONNX Runtime can't open it: %s" % reason(error), where=path) from error


def _spec(arg: Any, path: str) -> TensorSpec:
    if arg.type not in DTYPES:
        raise MeasureError("%r is of type %s: expected a plain tensor" % (arg.name, arg.type), where=path)
    shape = tuple(size if isinstance(size, int) else None for size in arg.shape)
    return TensorSpec(arg.name, shape, DTYPES[arg.type])


def _with_batch(spec: TensorSpec, batch: int) -> TensorSpec:
    """An output whose batch is open has as many rows as the inputs."""
    return spec._replace(shape=(batch, *spec.shape[1:])) if spec.shape[:1] == (None,) else spec
