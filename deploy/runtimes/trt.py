"""TensorRT 10.3 to 11: opens an engine that was built on this very device. Python >= 3.8.

Written against the documented Python API and CUDA's runtime library; it has **not been run** on a GPU yet. TensorRT
has no CPU threads to set, and a strongly typed engine fixes its precisions when it is built: ``Options.threads`` other
than 1 and ``Options.precision`` other than "default" are refused. ``run`` includes both transfers and waits for the
GPU; its outputs are new arrays. A stream is another execution context with its own buffers and CUDA stream. Of an
engine for texts the length stays open, up to its profile's longest: buffers are for that, and ``run`` tells the context
the length that comes.
"""

from __future__ import annotations

import builtins
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from edgewise.deploy.runtimes import cudart
from edgewise.deploy.runtimes.base import (
    Options,
    Streams,
    TensorSpec,
    batched,
    check_feeds,
    check_options,
    read_head,
)
from edgewise.errors import MeasureError, RuntimeMissing

NAME = "tensorrt"
SUFFIX = ".engine"


def missing() -> Optional[str]:
    """None where TensorRT and a GPU are here, else how to get them."""
    try:
        import tensorrt  # noqa: F401
    except ImportError as error:
        return (
            "tensorrt can't be imported (%s): on a Jetson it comes with JetPack (apt install nvidia-jetpack); "
            "elsewhere pip install tensorrt-cu12 with NVIDIA's package index" % error
        )
    library = cudart.load()
    if library is None:
        return "CUDA's runtime library (libcudart) was not found: install the CUDA toolkit, or set LD_LIBRARY_PATH"
    if not cudart.devices(library):
        return "no NVIDIA GPU answers here: run on the device the engine was built on"
    return None


class TrtSession:
    """An execution context with its buffers on the GPU."""

    def __init__(self, engine: Any, options: Options, path: str, streams: Streams) -> None:
        """Allocate buffers for one batch."""
        import tensorrt

        self._opened = (options, path, streams)
        self._cuda: Any = cudart.load()
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise MeasureError("TensorRT made no execution context: too little GPU memory?", where=path)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT for name in names}
        for name in names:
            if is_input[name]:
                shape = batched(_shape(engine.get_tensor_shape(name)), options.batch, path)
                longest = _shape(engine.get_tensor_profile_shape(name, 0)[2])
                most = tuple(limit if size is None else size for size, limit in zip(shape, longest))
                if not self._context.set_input_shape(name, most):
                    raise MeasureError("the engine doesn't take %r as %s" % (name, most), where=path)
        specs = {
            name: TensorSpec(
                name,
                _shape(self._context.get_tensor_shape(name)),
                str(np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name)))),
            )
            for name in names
        }
        self._stream = cudart.stream(self._cuda)
        self._buffers: Dict[str, int] = {}
        for name, spec in specs.items():
            if None in spec.shape:
                raise MeasureError("the size of %r depends on the data: not supported" % name, where=path)
            self._buffers[name] = cudart.allocate(self._cuda, _bytes(spec))
            self._context.set_tensor_address(name, self._buffers[name])
        # What a length decides is open; all else is as the batch was set.
        opened = {name: specs[name]._replace(shape=_opened(engine, name, specs[name].shape)) for name in names}
        self.inputs = tuple(opened[name] for name in names if is_input[name])
        self.outputs = tuple(opened[name] for name in names if not is_input[name])
        self.settings: Dict[str, Any] = {
            "runtime": NAME,
            "version": tensorrt.__version__,
            "precision": "default",
            "batch": options.batch,
            "cuda_graph": False,
            "spin_wait": False,
            "includes_transfers": True,
            "streams": options.streams,
            "streams_by": "an execution context and a CUDA stream each",
        }

    def run(self, feeds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """One inference, transfers included."""
        cuda, stream = self._cuda, self._stream
        held: List[np.ndarray] = []  # alive until the stream has read them
        for spec in self.inputs:
            array = np.ascontiguousarray(feeds[spec.name])
            check_feeds((spec,), {spec.name: array})
            if None in spec.shape and not self._context.set_input_shape(spec.name, array.shape):
                raise MeasureError("the engine doesn't take %s" % (array.shape,), where=spec.name)
            held.append(array)
            self._copy(self._buffers[spec.name], array.ctypes.data, array.nbytes, cudart.TO_DEVICE)
        if not self._context.execute_async_v3(stream):
            raise MeasureError("TensorRT could not run the engine")
        shapes = {spec.name: tuple(self._context.get_tensor_shape(spec.name)) for spec in self.outputs}
        outputs = {spec.name: np.empty(shapes[spec.name], spec.dtype) for spec in self.outputs}
        for name, array in outputs.items():
            self._copy(array.ctypes.data, self._buffers[name], array.nbytes, cudart.TO_HOST)
        cudart.check(cuda, cuda.cudaStreamSynchronize(stream), "waiting for the GPU")
        return outputs

    def stream(self) -> TrtSession:
        """One more execution context of the same engine."""
        options, path, streams = self._opened
        streams.take()
        return TrtSession(self._engine, options, path, streams)

    def close(self) -> None:
        """Give the memory back."""
        for pointer in self._buffers.values():
            self._cuda.cudaFree(pointer)
        if self._buffers:
            self._cuda.cudaStreamDestroy(self._stream)
        self._buffers = {}
        self._context = self._engine = None

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        cudart.check(self._cuda, self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream), "a copy")


def open(path: str, options: Options) -> TrtSession:
    """Open an engine built on this device, for ``options.batch`` samples a run.

    Raises:
        RuntimeMissing: TensorRT, CUDA or a GPU isn't here.
        MeasureError: the file isn't an engine of this version and GPU, or an option can't be honoured.
    """
    check_options(options)
    if options.threads != 1:
        raise MeasureError("threads: TensorRT runs on the GPU and takes 1, got %d" % options.threads, where="options")
    if options.precision != "default":
        raise MeasureError(
            "precision: an engine's is fixed when it is built, expected 'default', got %r" % options.precision,
            where="options",
        )
    head = read_head(path, 4)
    if head[:1] == b"\x08" or path.endswith(".onnx"):
        raise MeasureError("an ONNX graph, not an engine", where=path, hint="build it on the device: ./build.sh")
    absent = missing()
    if absent:
        raise RuntimeMissing(absent)
    import tensorrt

    with builtins.open(path, "rb") as file:
        blob = file.read()
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR)).deserialize_cuda_engine(blob)
    if engine is None:
        raise MeasureError(
            "TensorRT %s can't read it as an engine" % tensorrt.__version__,
            where=path,
            hint="an engine runs only with the TensorRT version and the GPU it was built for: run build.sh here",
        )
    return TrtSession(engine, options, path, Streams(options.streams))


def _shape(dims: Any) -> Tuple[Optional[int], ...]:
    return tuple(None if size < 0 else int(size) for size in dims)


def _opened(engine: Any, name: str, shape: Tuple[Optional[int], ...]) -> Tuple[Optional[int], ...]:
    """``shape`` with the sizes behind the batch open that are open in the engine."""
    built = _shape(engine.get_tensor_shape(name))
    return tuple(None if place and size is None else shape[place] for place, size in enumerate(built))


def _bytes(spec: TensorSpec) -> int:
    count = 1
    for size in spec.shape:
        count *= size or 0
    return count * np.dtype(spec.dtype).itemsize
