"""How the operators of ONNX that have weights, or a module of their own in torch, become layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto

from edgewise.models.onnx.build import Array, Builder
from edgewise.models.onnx.program import Input

HALF_SIXTH = (1 / 6, 0.5)  # alpha and beta of the one hard sigmoid that torch has as a module


Sizes = list[int]  # one an axis


def _windows(b: Builder, node: NodeProto, spatial: int, kernel: Sizes) -> tuple[Sizes, Sizes, Sizes, Sizes]:
    """(strides, dilations, padding before, padding after) of a convolution or a pool."""
    strides = b.attribute(node, "strides") or [1] * spatial
    dilations = b.attribute(node, "dilations") or [1] * spatial
    pads = b.attribute(node, "pads") or [0] * (2 * spatial)
    automatic = b.attribute(node, "auto_pad", "NOTSET")
    before, after = list(pads[:spatial]), list(pads[spatial:])
    if automatic == "VALID":
        before, after = [0] * spatial, [0] * spatial
    elif automatic in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(spatial):
            length = b.fixed(node, node.input[0], 2 + axis)
            out = -(-length // strides[axis])
            whole = max((out - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - length, 0)
            less, more = whole // 2, whole - whole // 2
            before[axis], after[axis] = (less, more) if automatic == "SAME_UPPER" else (more, less)
    return list(strides), list(dilations), before, after


def _padded(b: Builder, node: NodeProto, given: Input, before: list[int], after: list[int], value: float) -> Input:
    """``given`` with padding that torch's layer can't say."""
    flat = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return b.between(node, "pad", given, pads=flat, mode="constant", value=value)


def _weights(b: Builder, node: NodeProto, *parts: str) -> dict[str, Array]:
    """The constants from the second input on; absent ones are left out."""
    found = {}
    for index, part in enumerate(parts, start=1):
        if index < len(node.input) and node.input[index]:
            value = b.graph.constants.get(node.input[index])
            if value is None:
                raise b.fail(node, f"its {part} is computed from the input; torch's layers hold theirs")
            found[part] = value
    return found


def conv(b: Builder, node: NodeProto) -> None:
    """Conv."""
    held = _weights(b, node, "weight", "bias")
    weight = held["weight"]
    spatial = weight.ndim - 2
    if spatial not in (1, 2, 3):
        raise b.fail(node, f"a weight of shape {weight.shape}")
    strides, dilations, before, after = _windows(b, node, spatial, list(weight.shape[2:]))
    given = b.input(node, 0)
    if before != after:
        given, before = _padded(b, node, given, before, after, 0.0), [0] * spatial
    groups = int(b.attribute(node, "group", 1))
    b.layer(
        node,
        f"Conv{spatial}d",
        given,
        held,
        in_channels=weight.shape[1] * groups,
        out_channels=weight.shape[0],
        kernel_size=list(weight.shape[2:]),
        stride=strides,
        padding=before,
        dilation=dilations,
        groups=groups,
        bias="bias" in held,
    )


def conv_transpose(b: Builder, node: NodeProto) -> None:
    """ConvTranspose."""
    held = _weights(b, node, "weight", "bias")
    weight = held["weight"]
    spatial = weight.ndim - 2
    strides, dilations, before, after = _windows(b, node, spatial, list(weight.shape[2:]))
    automatic = b.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if spatial not in (1, 2) or before != after or automatic or b.attribute(node, "output_shape"):
        raise b.fail(node, "only 1d and 2d with the same padding on both sides, said as pads")
    groups = int(b.attribute(node, "group", 1))
    b.layer(
        node,
        f"ConvTranspose{spatial}d",
        b.input(node, 0),
        held,
        in_channels=weight.shape[0],
        out_channels=weight.shape[1] * groups,
        kernel_size=list(weight.shape[2:]),
        stride=strides,
        padding=before,
        output_padding=b.attribute(node, "output_padding") or [0] * spatial,
        dilation=dilations,
        groups=groups,
        bias="bias" in held,
    )


def _linear(b: Builder, node: NodeProto, given: Input, weight: Array, bias: Array | None) -> None:
    held = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    about = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias is not None}
    b.layer(node, "Linear", given, held, **about)


def gemm(b: Builder, node: NodeProto) -> None:
    """Gemm with a constant weight, as a linear layer; else as a product and a sum."""
    alpha, beta = (float(b.attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    first = b.input(node, 0, tensor=True)
    if b.attribute(node, "transA", 0):
        first = b.between(node, "transpose", first, dims=[1, 0])
    weight = b.graph.constants.get(node.input[1])
    bias = b.constant(node, 2)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if weight is not None and (not has_bias or bias is not None):
        out = weight if b.attribute(node, "transB", 0) else np.ascontiguousarray(weight.T)
        if bias is not None:
            bias = np.broadcast_to(beta * bias.reshape(-1), out.shape[:1]).astype(np.float32)
        _linear(b, node, first, (alpha * out).astype(np.float32), bias)
        return
    second = b.input(node, 1, tensor=True)
    if b.attribute(node, "transB", 0):
        second = b.between(node, "transpose", second, dims=[1, 0])
    if not has_bias:
        b.call(node, "mul", b.between(node, "matmul", first, second), alpha)
        return
    product = b.between(node, "mul", b.between(node, "matmul", first, second), alpha)
    b.call(node, "add", product, b.between(node, "mul", b.input(node, 2, tensor=True), beta))


def matmul(b: Builder, node: NodeProto) -> None:
    """MatMul by a constant matrix is a linear layer, and the sum with a constant that follows it is its bias."""
    weight = b.graph.constants.get(node.input[1])
    if weight is None or weight.ndim != 2:
        b.call(node, "matmul", b.input(node, 0, tensor=True), b.input(node, 1, tensor=True))
        return
    bias, following = None, b.single(node)
    if following is not None and following.op_type == "Add":
        other = following.input[1] if following.input[0] == node.output[0] else following.input[0]
        found = b.graph.constants.get(other)
        if found is not None and found.shape == (weight.shape[1],):
            bias = found
            b.skipped.add(following.output[0])
    _linear(b, node, b.input(node, 0), np.ascontiguousarray(weight.T), bias)
    if bias is not None and following is not None:
        b.rename_last(following.output[0])


def batch_norm(b: Builder, node: NodeProto) -> None:
    """BatchNormalization in inference."""
    if b.attribute(node, "training_mode", 0):
        raise b.fail(node, "it is in training mode, and its statistics would be those of the batch")
    held = _weights(b, node, "weight", "bias", "running_mean", "running_var")
    rank = b.rank(node.input[0])
    kind = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}.get(rank)
    if kind is None:
        raise b.fail(node, f"an input of rank {rank}")
    eps = float(b.attribute(node, "epsilon", 1e-5))
    b.layer(node, kind, b.input(node, 0), held, num_features=held["weight"].size, eps=eps)


def instance_norm(b: Builder, node: NodeProto) -> None:
    """InstanceNormalization."""
    held = _weights(b, node, "weight", "bias")
    kind = {3: "InstanceNorm1d", 4: "InstanceNorm2d"}.get(b.rank(node.input[0]))
    if kind is None:
        raise b.fail(node, f"an input of rank {b.rank(node.input[0])}")
    about = {"num_features": held["weight"].size, "eps": float(b.attribute(node, "epsilon", 1e-5)), "affine": True}
    b.layer(node, kind, b.input(node, 0), held, **about)


def layer_norm(b: Builder, node: NodeProto) -> None:
    """LayerNormalization."""
    rank = b.rank(node.input[0])
    axis = int(b.attribute(node, "axis", -1)) % rank
    shape = [b.fixed(node, node.input[0], at) for at in range(axis, rank)]
    held = {part: np.broadcast_to(value, shape) for part, value in _weights(b, node, "weight", "bias").items()}
    eps = float(b.attribute(node, "epsilon", 1e-5))
    b.layer(node, "LayerNorm", b.input(node, 0), held, normalized_shape=shape, eps=eps, bias="bias" in held)


def prelu(b: Builder, node: NodeProto) -> None:
    """PRelu with one slope, or one a channel."""
    slope = _weights(b, node, "weight")["weight"]
    channels = b.dims(node.input[0])[1]
    if slope.size not in (1, channels) or (slope.size > 1 and slope.shape[0] != channels and slope.shape[0] != 1):
        raise b.fail(node, f"slopes of shape {slope.shape}")
    b.layer(node, "PReLU", b.input(node, 0), {"weight": slope.reshape(-1)}, num_parameters=slope.size)


def clip(b: Builder, node: NodeProto) -> None:
    """Clip between constants."""
    low, high = b.scalar(node, 1, "min", None), b.scalar(node, 2, "max", None)
    if (low, high) == (0.0, 6.0):
        b.layer(node, "ReLU6", b.input(node, 0))
    elif low == 0.0 and (high is None or high > 3e38):
        b.layer(node, "ReLU", b.input(node, 0))
    else:
        b.call(node, "clamp", b.input(node, 0), **{k: v for k, v in (("min", low), ("max", high)) if v is not None})


def hard_sigmoid(b: Builder, node: NodeProto) -> None:
    """HardSigmoid; torch has the one with a slope of a sixth as a module."""
    alpha, beta = float(b.attribute(node, "alpha", 0.2)), float(b.attribute(node, "beta", 0.5))
    if np.allclose((alpha, beta), HALF_SIXTH, atol=1e-7):
        b.layer(node, "Hardsigmoid", b.input(node, 0))
    else:
        b.call(node, "hard_sigmoid", b.input(node, 0), alpha=alpha, beta=beta)


def softmax(b: Builder, node: NodeProto) -> None:
    """Softmax and LogSoftmax; before opset 13 they took all axes from theirs on as one."""
    rank = b.rank(node.input[0])
    old = b.opset < 13
    axis = int(b.attribute(node, "axis", 1 if old else -1)) % rank
    if old and axis != rank - 1:
        raise b.fail(node, f"over all axes from {axis} on, as opsets before 13 mean it; only the last one is supported")
    b.layer(node, "Softmax" if node.op_type == "Softmax" else "LogSoftmax", b.input(node, 0), dim=axis - rank)


def gelu(b: Builder, node: NodeProto) -> None:
    """Gelu."""
    b.layer(node, "GELU", b.input(node, 0), approximate=b.attribute(node, "approximate", "none"))


def pool(b: Builder, node: NodeProto) -> None:
    """MaxPool and AveragePool."""
    if len(node.output) > 1 and node.output[1]:
        raise b.fail(node, "its second output, the places of the largest")
    largest = node.op_type == "MaxPool"
    kernel = list(b.attribute(node, "kernel_shape"))
    spatial = len(kernel)
    if spatial not in (1, 2):
        raise b.fail(node, f"a window of {spatial} axes")
    strides, dilations, before, after = _windows(b, node, spatial, kernel)
    ceil, given = bool(b.attribute(node, "ceil_mode", 0)), b.input(node, 0)
    counted = bool(b.attribute(node, "count_include_pad", 0))
    uneven = before != after or any(2 * pad > width for pad, width in zip(before, kernel, strict=True))
    if uneven and not largest and not counted:
        raise b.fail(node, "padding that differs between the sides and isn't counted in the mean")
    if uneven:
        given = _padded(b, node, given, before, after, float(np.finfo(np.float32).min) if largest else 0.0)
        before = [0] * spatial
    about: dict[str, Any] = {"kernel_size": kernel, "stride": strides, "padding": before, "ceil_mode": ceil}
    if largest:
        about["dilation"] = dilations
    else:
        about["count_include_pad"] = counted
        if any(step != 1 for step in dilations):
            raise b.fail(node, "a dilated mean")
    b.layer(node, f"{'Max' if largest else 'Avg'}Pool{spatial}d", given, **about)


def global_pool(b: Builder, node: NodeProto) -> None:
    """GlobalAveragePool and GlobalMaxPool."""
    spatial = b.rank(node.input[0]) - 2
    kind = {("GlobalAveragePool", 1): "AdaptiveAvgPool1d", ("GlobalAveragePool", 2): "AdaptiveAvgPool2d"}
    kind[("GlobalMaxPool", 2)] = "AdaptiveMaxPool2d"
    if (node.op_type, spatial) not in kind:
        raise b.fail(node, f"over {spatial} axes")
    b.layer(node, kind[node.op_type, spatial], b.input(node, 0), output_size=1)


def activation(kind: str, **attributes: tuple[str, float]) -> Any:
    """A translator for an activation without weights; ``attributes``: torch's name -> (ONNX's name, default)."""

    def translate(b: Builder, node: NodeProto) -> None:
        about: dict[str, Any] = {
            ours: float(b.attribute(node, theirs, default)) for ours, (theirs, default) in attributes.items()
        }
        b.layer(node, kind, b.input(node, 0), **about)

    return translate


LAYER_OPS = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "Relu": activation("ReLU"),
    "LeakyRelu": activation("LeakyReLU", negative_slope=("alpha", 0.01)),
    "Elu": activation("ELU", alpha=("alpha", 1.0)),
    "Sigmoid": activation("Sigmoid"),
    "Tanh": activation("Tanh"),
    "HardSwish": activation("Hardswish"),
    "HardSigmoid": hard_sigmoid,
    "PRelu": prelu,
    "Clip": clip,
    "Gelu": gelu,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "MaxPool": pool,
    "AveragePool": pool,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
}
