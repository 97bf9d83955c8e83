"""The file for ONNX Runtime: the exported graph, stripped of comments, and proof that its integer kernels are used."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path

import onnx
from onnx import ModelProto

from edgewise.config import Precision
from edgewise.deploy.convert.base import Source, named, need, refuse, write_report
from edgewise.deploy.convert.executed import arithmetic, integer_layers, layer_macs, plain
from edgewise.deploy.convert.planned import check_plan
from edgewise.deploy.onnx_graph import strip, to_bytes
from edgewise.deploy.ort_rewrites import pad_input_channels
from edgewise.deploy.weight_only import store_tables, store_weights
from edgewise.errors import ContractError, ModelError

# The integer kernels that ONNX Runtime's optimizer makes of the arithmetic nodes.
INTEGER = frozenset(
    (
        *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention"),
        *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    )
)


def convert(source: Source, precision: Precision, out: Path) -> Path:
    """Write ``<out>.onnx`` and ``<out>.report.json``.

    Raises:
        ModelError: float16 and bfloat16, which bring no speed on a CPU; no exported graph; or ONNX Runtime refuses it.
        ContractError: an int8 graph that ONNX Runtime would run in float, or a plan that it doesn't obey.
    """
    refuse("onnxruntime", precision)
    int8 = precision == "int8"
    graph = need(source.unsigned_onnx if int8 else source.float_onnx, "an ONNX graph " + ("with Q/DQ" if int8 else ""))
    model = onnx.load(graph)
    if precision == "int8_dynamic":
        model = dynamic(model)
    elif precision == "int8_weights":
        store_weights(model)
    if precision in ("int8", "int8_dynamic", "int8_weights"):
        store_tables(model)
    strip(model)  # the graph may come from another exporter, which notes file paths on each node
    macs = layer_macs(model, source.length)
    if int8:
        pad_input_channels(model.graph)
    path = named(out, ".onnx")
    path.write_bytes(to_bytes(model))
    kernels = optimized_ops(path)
    integer = integer_layers(model, ((names, kind in INTEGER) for kind, names in kernels))
    computed = arithmetic(macs, integer)
    if int8:
        check_plan(source.float_layers, {plain(name): name in integer for name in macs}, graph.name)
    if precision in ("int8", "int8_dynamic") and not computed["integer_ops"]:
        raise ContractError(
            f"ONNX Runtime would run all {computed['float_ops']} arithmetic nodes in float",
            where=str(graph),
            hint="fold BatchNorm before quantizing, and quantize activations per tensor"
            if int8
            else "dynamic quantization is for matrix products; this net has none with stored weights",
        )
    write_report(
        out,
        {
            "runtime": "onnxruntime",
            "precision": precision,
            "size_bytes": path.stat().st_size,
            "kernels": dict(sorted(Counter(kind for kind, _ in kernels).items())),
            **computed,
        },
    )
    return path


def dynamic(model: ModelProto) -> ModelProto:
    """Matrix products with int8 weights, one scale a channel, whose activations are quantized anew at every run (uint8,
    one scale a tensor). Convolutions stay in float: ONNX Runtime's ConvInteger is slower than its float Conv."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it recommends a pre-processing that knows nothing of these graphs
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "dynamic.onnx"
            quantize_dynamic(
                model, made, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
            result = onnx.load(made)
    finally:
        log.setLevel(level)
    for node in result.graph.node:
        if node.op_type == "MatMulInteger":
            node.name = node.name.removesuffix("_quant").removesuffix("_MatMul")
    return result


def optimized_ops(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(op, its name and those of its outputs) of each node that ONNX Runtime really runs on this CPU, in order.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
    """
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # it warns that an optimized file is for this machine only: that is the point
        options.optimized_model_filepath = str(optimized)
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise ModelError(f"ONNX Runtime refuses the graph: {error}", where=str(path)) from error
        nodes = onnx.load(optimized, load_external_data=False).graph.node
        return [(node.op_type, (node.name, *node.output)) for node in nodes]
