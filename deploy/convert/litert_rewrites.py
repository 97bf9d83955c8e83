"""Rewrites of an int8 LiteRT file that keep its meaning and let it run in integers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgewise.deploy.tflite import PER_CHANNEL

INT8_VERSION = 2  # of LEAKY_RELU; the first knows float only


def rewrite_int8(content: bytes) -> bytes:
    """The same file, its leaky ReLUs in integers.

    Args:
        content: an int8 file.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    kinds = [names[code] for code in codes]
    changed = 0
    for graph in model.subgraphs:
        leaky = integer_leaky_relu(graph, kinds, schema.TensorType.INT8)
        changed += leaky
        for code, kind in zip(model.operatorCodes, kinds, strict=True):
            if leaky and kind == "LEAKY_RELU":
                code.version = max(code.version, INT8_VERSION)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)) if changed else content


def say_per_channel(content: bytes) -> bytes:
    """The same file with the versions of FULLY_CONNECTED and EMBEDDING_LOOKUP that it needs, where per-channel int8
    weights meet float data. The quantizer leaves the float version standing, and old runtimes then answer wrongly
    instead of refusing the file.

    Args:
        content: a file with float data beside int8 weights.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    versions = {getattr(schema.BuiltinOperator, kind): version for kind, version in PER_CHANNEL.items()}
    for graph in model.subgraphs:
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            needed = versions.get(max(code.builtinCode, code.deprecatedBuiltinCode))
            if needed is None:
                continue
            weight, made = graph.tensors[op.inputs[1]], graph.tensors[op.outputs[0]]
            scales = None if weight.quantization is None else weight.quantization.scale
            types = (made.type, weight.type) == (schema.TensorType.FLOAT32, schema.TensorType.INT8)
            if types and scales is not None and len(scales) > 1:
                code.version = max(code.version, needed)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def integer_leaky_relu(graph: Any, kinds: list[str], int8: int) -> int:
    """DEQUANTIZE -> LEAKY_RELU -> QUANTIZE becomes one LEAKY_RELU on int8 tensors; how many. LiteRT computes it from
    the scales of both sides, so answers stay the same to within a rounding. The quantizer (0.10) doesn't know the op.

    Args:
        graph: changed in place.
        kinds: the name of each operator code.
        int8: the schema's number for the type.
    """
    made = {int(place): op for op in graph.operators for place in op.outputs}
    readers = _readers(graph)
    quantize = {int(op.inputs[0]): op for op in graph.operators if kinds[op.opcodeIndex] == "QUANTIZE"}
    gone: list[Any] = []
    changed = 0
    for op in graph.operators:
        if kinds[op.opcodeIndex] != "LEAKY_RELU":
            continue
        source, result = int(op.inputs[0]), int(op.outputs[0])
        before, after = made.get(source), quantize.get(result)
        if before is None or kinds[before.opcodeIndex] != "DEQUANTIZE" or after is None or readers[result] != 1:
            continue
        ends = int(before.inputs[0]), int(after.outputs[0])
        if any(graph.tensors[end].type != int8 for end in ends):
            continue
        op.inputs[0], op.outputs[0] = ends
        gone.append(after)
        readers[source] -= 1
        if not readers[source]:
            gone.append(before)
        changed += 1
    graph.operators = [op for op in graph.operators if not any(op is other for other in gone)]
    return changed


def _readers(graph: Any) -> Counter[int]:
    found: Counter[int] = Counter(int(place) for op in graph.operators for place in op.inputs)
    found.update(int(place) for place in graph.outputs)
    return found


__all__ = ["integer_leaky_relu", "rewrite_int8", "say_per_channel"]
