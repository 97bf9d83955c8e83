"""The calls that build an engine, the same for TensorRT and TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.errors import ModelError

WORKSPACE_BYTES = 1 << 30


def build(api: Any, graph: Path, shape: tuple[int, ...], logger: Any, capability: Any = None) -> bytes:
    """A serialized engine, strongly typed, for one static input shape; of texts, for any length up to it.

    Args:
        api: the module ``tensorrt`` or TensorRT-RTX's.
        graph: the .onnx file.
        shape: of its one input, (N, C, H, W) or (N, L).
        logger: an ``ILogger``.
        capability: of a GPU that isn't here; only TensorRT-RTX builds for such.

    Raises:
        ModelError: TensorRT can't parse the graph, or can't build it.
    """
    builder = api.Builder(logger)
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelError(f"TensorRT's parser refuses the graph: {errors}", where=str(graph))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    config.clear_flag(api.BuilderFlag.TF32)  # float32 means float32
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, (shape[0], 1) if len(shape) == 2 else shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError("TensorRT can't build an engine of the graph", where=str(graph))
    return bytes(plan)
