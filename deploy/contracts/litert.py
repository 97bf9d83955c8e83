"""What LiteRT needs of a .tflite file to run it in integers, and what an old runtime on a device runs wrong.

It is checked over the finished file, because that is where LiteRT's graph first exists. Sources: LiteRT's specification
of 8-bit quantization (int8 weights of -127 to 127 with zero-point 0, int32 biases with the scale data * weight, one
scale per output channel on axis 0, on axis 3 for depthwise) and measurements with 2.3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import pairwise

import numpy as np

from edgewise.deploy import tflite
from edgewise.deploy.contracts.base import Finding, planned
from edgewise.deploy.tflite import Op, Tensor

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
CHANNEL_AXIS = {"DEPTHWISE_CONV_2D": 3}  # 0 elsewhere
CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
# They give the values they get: one scale before and behind.
SAME_SCALE = frozenset(
    """RESHAPE TRANSPOSE SLICE STRIDED_SLICE PAD MAX_POOL_2D AVERAGE_POOL_2D SQUEEZE EXPAND_DIMS GATHER SPLIT
    CONCATENATION PACK UNPACK RESIZE_NEAREST_NEIGHBOR""".split()  # noqa: SIM905 - it reads as what it is
)
# Where they stand, everything but the weighted layers is meant to be in float.
TRANSFORMER_MARKS = frozenset(("SOFTMAX", "GELU", "BATCH_MATMUL"))
# Ops that have no fast integer kernel, or leave their data's type as it is.
INDIFFERENT = frozenset(
    ("SHAPE", "CAST", "GATHER", "EMBEDDING_LOOKUP", "PACK", "RANGE", "FILL", "BROADCAST_TO", *CONVERSIONS)
)
EQUAL = 1e-5  # relative: scales are stored in float32
BIAS_EQUAL = 1e-2


def check(content: bytes, float_layers: Collection[str] = ()) -> list[Finding]:
    """Every place where LiteRT would refuse a file, run it in float, or an old runtime would run it wrong.

    A float file is checked for its operators, names and shapes only.

    Args:
        content: the .tflite file.
        float_layers: torch modules, or globs of their names, that a plan leaves in float.

    Raises:
        RuntimeMissing: ai-edge-litert isn't installed.
        ModelError: not a .tflite file.
    """
    ops = tflite.read(content)
    made = {tensor.name: op for op in ops for tensor in op.outputs}
    found = [*_operators(ops), *_ends(content), *_names(ops)]
    weighted = [op for op in ops if op.kind in WEIGHTED]
    for op in ops:
        found += _tensors(op)
        found += _versions(op)
    for op in weighted:
        found += [*_weights(op), *_bias(op)]
    # Dynamic-range and weight-only files have float data everywhere.
    if any("INT8" in (tensor.kind for tensor in op.outputs) for op in weighted):
        found += [*_islands(ops), *_scales(ops), *_conversions(ops, made)]
    return [
        finding
        for finding in dict.fromkeys(found)
        if not (finding.rule in ("float-island", "needless-conversion") and planned(finding.module, float_layers))
    ]


def _finding(rule: str, op: Op, message: str, mend: str) -> Finding:
    module = tflite.layer_name(op)
    return Finding(rule, op.name, message, mend, "" if module.startswith("serving_default") else module)


def _operators(ops: list[Op]) -> list[Finding]:
    """Built-in operators only: what isn't one needs a library of its own on the device."""
    mend = "write the layer with operators that LiteRT has"
    return [
        _finding("unsupported-op", op, f"expected a built-in operator, got {op.kind.removeprefix('CUSTOM:')}", mend)
        for op in ops
        if op.kind.startswith(("CUSTOM:", "PLACEHOLDER"))
    ]


def _ends(content: bytes) -> list[Finding]:
    """Float inputs and outputs, of known size except for the batch."""
    model = tflite.load(content)
    found = []
    for graph in model.subgraphs:
        for item in [graph.tensors[place] for places in (graph.inputs, graph.outputs) for place in places]:
            name, kind = item.name.decode(), tflite.kind(item)
            if kind in ("INT8", "UINT8", "INT16"):
                message = f"expected float32 outside, got {kind.lower()}"
                found.append(Finding("float-ends", name, message, "leave the model's input and output in float"))
            free = [] if item.shapeSignature is None else [int(size) for size in item.shapeSignature]
            if any(size < 0 for size in free[1:]):
                message = f"expected fixed sizes behind the batch, got {free}"
                found.append(Finding("static-shape", name, message, "convert with the device's input size"))
    return found


def _names(ops: list[Op]) -> list[Finding]:
    """Every computed tensor has a name of its own: reports and plans speak of layers by it."""
    counted = Counter(tensor.name for op in ops for tensor in op.outputs)
    return [
        Finding("unique-name", name, f"expected a name of its own, got {number} tensors", "number tensors of one name")
        for name, number in counted.items()
        if number > 1
    ]


def _tensors(op: Op) -> list[Finding]:
    """8 bits; scales finite and above zero; activations with one scale and a zero-point that int8 can hold."""
    found = []
    for tensor in (*op.inputs, *op.outputs):
        if tensor is None or not tensor.scales.size:
            continue
        if tensor.kind not in ("INT8", "INT32"):
            got = tensor.kind.lower()
            found.append(_finding("eight-bits", op, f"expected 8-bit integers, got {got}", "quantize to int8"))
        if not (np.isfinite(tensor.scales) & (tensor.scales > 0)).all():
            message = f"expected scales above zero, got {float(tensor.scales.min()):g}"
            found.append(_finding("positive-scale", op, message, "calibrate with data that reaches this tensor"))
        if tensor.stored is None and tensor.scales.size > 1:
            message = f"expected one scale for an activation, got {tensor.scales.size}"
            found.append(_finding("per-tensor-activation", op, message, "quantize activations per tensor"))
        if tensor.kind == "INT8" and tensor.zero_points.size and np.abs(tensor.zero_points + 0.5).max() > 128:
            message = f"expected a zero-point of -128 to 127, got {int(tensor.zero_points[0])}"
            found.append(_finding("zero-point", op, message, "calibrate the tensor again"))
    return found


def _weights(op: Op) -> list[Finding]:
    """int8, symmetric, -127 to 127, one scale per output channel on the axis of the channels."""
    _, weight = op.operands
    if not weight.scales.size:
        return []
    found = []
    axis = CHANNEL_AXIS.get(op.kind, 0)
    channels = weight.shape[axis] if len(weight.shape) > axis else 1
    if weight.zero_points.any():
        message = f"expected weights with zero-point 0, got {int(weight.zero_points[weight.zero_points != 0][0])}"
        found.append(_finding("int8-weight", op, message, "quantize weights symmetrically"))
    values = weight.values()
    if values is not None and values.dtype == np.int8 and values.size and values.min() < -127:
        message = f"expected weights of -127 to 127, got {int(values.min())}"
        found.append(_finding("narrow-weight", op, message, "leave out the lowest level of int8"))
    if weight.scales.size > 1 and weight.axis != axis:
        message = f"expected scales on axis {axis} of {op.kind}, got axis {weight.axis}"
        found.append(_finding("weight-axis", op, message, "one scale per output channel"))
    elif weight.scales.size not in (1, channels):
        message = f"expected {channels} scales, one per output channel, got {weight.scales.size}"
        found.append(_finding("scale-count", op, message, "one scale per output channel"))
    elif weight.scales.size == 1 and channels > 1 and op.kind != "FULLY_CONNECTED":
        # Fully-connected layers may have one: the only form that old runtimes run right beside float data.
        message = f"expected {channels} scales, one per output channel, got 1"
        found.append(_finding("per-channel-weight", op, message, "quantize weights per channel"))
    return found


def _bias(op: Op) -> list[Finding]:
    """int32 with the scale data * weight and zero-point 0: it is added to the products as it is."""
    if len(op.inputs) < 3 or op.kind == "TRANSPOSE_CONV":
        return []
    bias, (data, weight) = op.inputs[2], op.operands
    if bias is None or data.kind != "INT8" or weight.kind != "INT8":
        return []
    if bias.kind != "INT32":
        message = f"expected an int32 bias, got {bias.kind.lower()}"
        return [_finding("int32-bias", op, message, "quantize the bias with the scale data * weight")]
    wanted = data.scales[:1] * weight.scales
    fits = bias.scales.size == wanted.size and np.allclose(bias.scales, wanted, rtol=BIAS_EQUAL, atol=0)
    if bias.zero_points.any() or not fits:
        got = "another zero-point" if bias.zero_points.any() else "another scale"
        message = f"expected a bias with the scale data * weight and zero-point 0, got {got}"
        return [_finding("int32-bias", op, message, "quantize the bias with the scale data * weight")]
    return []


def _versions(op: Op) -> list[Finding]:
    """Per-channel weights beside float data: runtimes from before a version of the op read one scale for all of them.
    tflite-runtime 2.14 answers wrongly without a word."""
    needed = tflite.PER_CHANNEL.get(op.kind, 0)
    if op.version >= needed:
        return []
    _, weight = op.operands
    if op.outputs[0].kind != "FLOAT32" or weight.kind != "INT8" or weight.scales.size < 2:
        return []
    message = f"expected version {needed} for per-channel weights beside float data, got {op.version}"
    return [_finding("op-version", op, message, f"say version {needed}, or quantize per tensor for old runtimes")]


def _islands(ops: list[Op]) -> list[Finding]:
    """No weighted layer in float in a static int8 file; without a transformer's marks, nothing else either."""
    found = []
    transformer = any(op.kind in TRANSFORMER_MARKS for op in ops)
    for op in ops:
        outputs = {tensor.kind for tensor in op.outputs}
        if op.kind in WEIGHTED:
            if not op.integer or "FLOAT32" in outputs:
                message = f"expected {op.kind} in int8, got float"
                mend = "quantize the layer, or say why it stays in float"
                found.append(_finding("float-island", op, message, mend))
        elif not transformer and "FLOAT32" in outputs and op.kind not in INDIFFERENT:
            if any(tensor is not None and tensor.name.startswith("serving_default") for tensor in op.inputs):
                continue  # what happens to the image before it is quantized
            message = f"expected {op.kind} in int8, got float between quantized layers"
            found.append(_finding("float-island", op, message, "quantize the op: it has an int8 kernel"))
    return found


def _scales(ops: list[Op]) -> list[Finding]:
    """Ops that only move or join values have one scale and zero-point before and behind."""
    found = []
    for op in ops:
        if op.kind not in SAME_SCALE:
            continue
        computed = [item for item in (*op.inputs, *op.outputs) if item is not None and item.kind == "INT8"]
        if any(not _alike(left, right) for left, right in pairwise(computed)):
            joined = op.kind == "CONCATENATION"
            message = f"expected one scale before and behind {op.kind}, got several"
            mend = "share one scale, or quantize again behind"
            found.append(_finding("concat-scale" if joined else "same-scale", op, message, mend))
    return found


def _alike(left: Tensor, right: Tensor) -> bool:
    if left.scales.size != 1 or right.scales.size != 1:
        return True  # said by another rule
    return bool(
        np.isclose(left.scales[0], right.scales[0], rtol=EQUAL, atol=0)
        and left.zero_points.tolist() == right.zero_points.tolist()
    )


def _conversions(ops: list[Op], made: Mapping[str, Op]) -> list[Finding]:
    """No DEQUANTIZE that is quantized again at once with the same scale: two passes over the data for nothing."""
    found = []
    for op in ops:
        source = op.inputs[0] if op.inputs else None
        before = made.get(source.name) if source is not None else None
        if (
            op.kind == "QUANTIZE"
            and before is not None
            and before.kind == "DEQUANTIZE"
            and before.inputs[0] is not None
        ):
            message = f"expected int8 passed on, got it dequantized by {before.name!r} and quantized again"
            found.append(_finding("needless-conversion", op, message, "remove the pair"))
    return found
