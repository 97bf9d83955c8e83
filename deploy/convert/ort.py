"""The file for ONNX Runtime: the exported graph, stripped of comments, and proof that its integer kernels are used."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from edgewise.deploy.config import Precision
from edgewise.deploy.convert.base import Source, named, need, write_report
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
    strip(model)
    path = named(out, ".onnx")
    path.write_bytes(model.SerializeToString(deterministic=True))
    kernels = optimized_ops(path)
    integer = sum(count for name, count in kernels.items() if name in INTEGER)
    floating = sum(count for name, count in kernels.items() if name in FLOAT)
    if int8 and not integer:
        raise ContractError(
            f"ONNX Runtime would run all {floating} arithmetic nodes in float",
            where=str(graph),
            hint="fold BatchNorm before quantizing, and quantize activations per tensor",
        )
    write_report(
        out,
        {
            "runtime": "onnxruntime",
            "precision": precision,
            "size_bytes": path.stat().st_size,
            "kernels": kernels,
            "integer_ops": integer,
            "float_ops": floating,
            "integer_share": integer / (integer + floating) if integer + floating else 0.0,
        },
    )
    return path


def strip(model: onnx.ModelProto) -> None:
    """Remove what does not compute: doc strings, the exporter's notes on each node (file paths among them)."""
    model.producer_name, model.producer_version, model.doc_string = "edgewise", "", ""
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    for item in (*model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def optimized_ops(path: Path) -> dict[str, int]:
    """How often each op stands in the graph that ONNX Runtime really runs on this CPU.

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
        counts = Counter(node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node)
    return dict(sorted(counts.items()))
