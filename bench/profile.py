"""Where an ONNX file's time goes: every node that ONNX Runtime executes, and what the machine could do at best.

The roofline model (Williams et al., CACM 52(4), 2009): a node of ``macs`` multiply-accumulates that moves ``bytes``
takes at least the longer of ``macs / macs_per_s`` and ``bytes / bytes_per_s``. The roofs are measured in the same
runtime with the same threads, that of memory twice: what fits into the cache moves faster. A node far above all of them
pays the fixed price of being called.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.deploy.runtimes.ort import PROVIDERS
from edgewise.errors import MeasureError

Bound = Literal["compute", "memory", "overhead"]
IN_CACHE = 1 << 20  # bytes that the inner caches of a CPU core hold, about
OVERHEAD = 4.0  # so many times its roofline: what is left is neither arithmetic nor memory
KERNEL = re.compile(r"(_nchwc)?_kernel_time$")


@dataclass(frozen=True)
class NodeTime:
    """One executed node. ``ms`` is the mean of the middle half of the runs; ``bytes`` what it reads and writes, and
    ``weight_bytes`` the constants among that."""

    name: str
    op: str
    ms: float
    bytes: int
    weight_bytes: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Roof:
    """What this machine reaches at best, in float32, in ONNX Runtime."""

    macs_per_s: float
    cache_bytes_per_s: float
    memory_bytes_per_s: float

    def bound(self, ms: float, macs: int, moved: int) -> Bound:
        """What a node of this cost waits for."""
        per_s = self.cache_bytes_per_s if moved <= IN_CACHE else self.memory_bytes_per_s
        compute, memory = macs / self.macs_per_s, moved / per_s
        if ms / 1e3 > OVERHEAD * max(compute, memory):
            return "overhead"
        return "compute" if compute >= memory else "memory"


def profile(path: Path, inputs: NDArray[np.float32], *, threads: int = 1, runs: int = 40) -> tuple[NodeTime, ...]:
    """Time of every node of a ``.onnx`` file at batch 1, in order of execution, by ONNX Runtime's own profiler.

    Args:
        path: the file, with one input.
        inputs: (N, ...), taken one after the other.
        threads: that a node may use.
        runs: that count; a quarter as many before them don't.

    Raises:
        MeasureError: ONNX Runtime can't run it.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
            name = session.get_inputs()[0].name
            for run in range(runs + runs // 4):
                session.run(None, {name: inputs[run % len(inputs)][None]})
            log = Path(session.end_profiling())
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise MeasureError(f"ONNX Runtime can't profile it: {error}", where=str(path)) from error
        events = [event for event in json.loads(log.read_text()) if event.get("cat") == "Node"]
    return _nodes(events, runs)


def _nodes(events: list[dict[str, Any]], runs: int) -> tuple[NodeTime, ...]:
    """One row a node, the first ``runs // 4`` of its times left out."""
    times: dict[str, list[int]] = defaultdict(list)
    about: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"])
            about[event["name"]] = event["args"]
    found = []
    for name, values in times.items():
        args = about[name]
        middle = np.sort(values[runs // 4 :])
        quarter = len(middle) // 4
        shapes = [tuple(next(iter(shape.values()))) for shape in args.get("output_type_shape", ())]
        moved = sum(int(args.get(key, 0)) for key in ("parameter_size", "activation_size", "output_size"))
        found.append(
            NodeTime(
                name=KERNEL.sub("", name),
                op=args["op_name"],
                ms=float(middle[quarter : len(middle) - quarter].mean()) / 1e3,
                bytes=moved,
                weight_bytes=int(args.get("parameter_size", 0)),
                output_shape=shapes[0] if shapes else (),
            )
        )
    return tuple(found)


def roof(threads: int = 1) -> Roof:
    """Measure the roofs: a product of two 512 x 512 matrices, and sums of arrays that the cache holds, or doesn't."""
    side, short, long = 512, IN_CACHE // 16, 16 * IN_CACHE
    seconds = {length: _best_s("Add", (length,), threads) for length in (short, long)}
    return Roof(
        macs_per_s=side**3 / _best_s("MatMul", (side, side), threads),
        cache_bytes_per_s=3 * 4 * short / seconds[short],
        memory_bytes_per_s=3 * 4 * long / seconds[long],
    )


def _best_s(op: str, shape: tuple[int, ...], threads: int) -> float:
    """The shortest of thirty runs of one node on two inputs of ``shape``, in seconds, by the profiler."""
    import onnxruntime
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc"]
    graph = helper.make_graph([helper.make_node(op, ["a", "b"], ["c"], name=op)], "roof", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    feeds = {name: np.ones(shape, np.float32) for name in "ab"}
    with tempfile.TemporaryDirectory() as folder:
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "roof")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
        for _ in range(30):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    return float(min(event["dur"] for event in events if event["name"] == f"{op}_kernel_time")) / 1e6


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options
