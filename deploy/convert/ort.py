"""The file for ONNX Runtime: the exported graph, stripped of comments, and proof that its integer kernels are used."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from edgewise.deploy.config import Precision
from edgewise.deploy.convert.base import Source, arithmetic, named, need, write_report
from edgewise.deploy.onnx_graph import strip, to_bytes
from edgewise.errors import ContractError, ModelError

# What ONNX Runtime's optimizer makes of the arithmetic nodes: integer kernels, and the float ones they replace.
INTEGER = frozenset(
    (
        *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention"),
        *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    )
)
FLOAT = frozenset(("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention", "ConvTranspose"))


def convert(source: Source, precision: Precision, out: Path) -> Path:
    """Write ``<out>.onnx`` and ``<out>.report.json``.

    Raises:
        ModelError: float16, which brings no speed on a CPU; no exported graph; or ONNX Runtime refuses it.
        ContractError: an int8 graph that ONNX Runtime would run in float.
    """
    if precision == "float16":
        raise ModelError(
            "ONNX Runtime's CPU kernels compute float16 as float32: no gain in speed",
            where="precision",
            hint="take float32 or int8 for onnxruntime; float16 files are for openvino, litert and tensorrt",
        )
    int8 = precision == "int8"
    graph = need(source.unsigned_onnx if int8 else source.float_onnx, "an ONNX graph " + ("with Q/DQ" if int8 else ""))
    model = onnx.load(graph)
    strip(model)  # the graph may come from another exporter, which notes file paths on each node
    path = named(out, ".onnx")
    path.write_bytes(to_bytes(model))
    kernels = optimized_ops(path)
    integer = sum(kind in INTEGER for kind, _ in kernels)
    floating = [name for kind, name in kernels if kind in FLOAT]
    if int8 and not integer:
        raise ContractError(
            f"ONNX Runtime would run all {len(floating)} arithmetic nodes in float",
            where=str(graph),
            hint="fold BatchNorm before quantizing, and quantize activations per tensor",
        )
    write_report(
        out,
        {
            "runtime": "onnxruntime",
            "precision": precision,
            "size_bytes": path.stat().st_size,
            "kernels": dict(sorted(Counter(kind for kind, _ in kernels).items())),
            **arithmetic(integer, floating),
        },
    )
    return path


def optimized_ops(path: Path) -> list[tuple[str, str]]:
    """(op, name) of each node in the graph that ONNX Runtime really runs on this CPU, in order.

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
        return [(node.op_type, node.name or node.output[0]) for node in nodes]
