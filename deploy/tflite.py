"""What a .tflite file says of itself: its ops, their tensors and multiply-accumulates. Reads the file, runs nothing."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import ModelError, RuntimeMissing

PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV")
# The versions that know per-channel int8 weights beside float data; those before read one scale for all of them.
PER_CHANNEL = {"FULLY_CONNECTED": 12, "EMBEDDING_LOOKUP": 4}
# Where a layer's data and weights are among its inputs.
OPERANDS = {"TRANSPOSE_CONV": (2, 1)}
SMALLEST = 8  # bytes before which a file can't say what it is


@dataclass(frozen=True)
class Tensor:
    """One tensor. ``shape`` as the file says it, -1 for a free size; ``scales`` is empty without quantization."""

    name: str
    kind: str
    shape: tuple[int, ...]
    scales: NDArray[np.float32] = field(repr=False)
    zero_points: NDArray[np.int64] = field(repr=False)
    axis: int
    stored: bytes | None = field(repr=False)

    def values(self) -> NDArray[Any] | None:
        """What the file stores for it; None for a tensor that is computed, or of a type numpy lacks."""
        if self.stored is None or self.kind not in ("INT8", "UINT8", "INT16", "INT32", "FLOAT32", "FLOAT16"):
            return None
        return np.frombuffer(self.stored, self.kind.lower()).reshape(self.shape)


@dataclass(frozen=True)
class Op:
    """One op: its kind (``CONV_2D``), the version it asks for, and its tensors; an input left out is None."""

    kind: str
    version: int
    inputs: tuple[Tensor | None, ...] = field(repr=False)
    outputs: tuple[Tensor, ...] = field(repr=False)
    transposed: bool = False

    @property
    def name(self) -> str:
        """The name of its first output."""
        return self.outputs[0].name if self.outputs else self.kind

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """Data and weights of a convolution or matrix product."""
        data, weight = (self.inputs[place] for place in OPERANDS.get(self.kind, (0, 1)))
        assert data is not None
        assert weight is not None
        return data, weight

    @property
    def integer(self) -> bool:
        """Whether a product is computed in integers: from stored integers, or from two tensors of them. Float data
        beside stored integers are quantized as they come (dynamic range)."""
        data, weight = self.operands
        return weight.kind in ("INT8", "INT4") and (weight.stored is not None or data.kind == "INT8")

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample; 0 for what is no convolution or matrix product."""
        if self.kind not in PRODUCTS:
            return 0
        data, weight = self.operands
        out = prod(abs(size) for size in self.outputs[0].shape)
        if self.kind == "CONV_2D":  # (O, H, W, I)
            return out * prod(weight.shape[1:])
        if self.kind == "DEPTHWISE_CONV_2D":  # (1, H, W, O)
            return out * prod(weight.shape[1:3])
        if self.kind == "FULLY_CONNECTED":  # (O, I)
            return out * weight.shape[-1]
        if self.kind == "TRANSPOSE_CONV":
            return prod(abs(size) for size in data.shape) * prod(weight.shape[:3])
        return out * abs(data.shape[-2] if self.transposed else data.shape[-1])


def load(content: bytes) -> Any:
    """The file as objects of LiteRT's schema.

    Raises:
        RuntimeMissing: LiteRT isn't installed.
        ModelError: it isn't a .tflite file.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise RuntimeMissing(
            "reading .tflite files needs ai-edge-litert", where="litert", hint="pip install 'edgewise[litert]'"
        ) from error
    if len(content) < SMALLEST or content[4:8] != b"TFL3":
        raise ModelError("expected a .tflite file, got something else", where="litert")
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        for buffer in model.buffers:  # the quantizer puts larger ones behind the table, and writes where
            if buffer.data is None and buffer.size:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        return model
    except Exception as error:  # whatever a broken table leads to
        raise ModelError(f"not a whole .tflite file: {error}", where="litert") from error


def read(content: bytes, graph: int | None = None) -> list[Op]:
    """Every op of the file, in order; or those of one graph: a file for texts has one for each length, and the first is
    for the longest.

    Raises:
        RuntimeMissing, ModelError: see ``load``.
    """
    model = load(content)
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found = []
    for part in model.subgraphs if graph is None else model.subgraphs[graph : graph + 1]:
        tensors = [_tensor(content, model, item) for item in part.tensors]
        for op in part.operators:
            code = model.operatorCodes[op.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if name == "CUSTOM":
                name = f"CUSTOM:{(code.customCode or b'').decode(errors='replace')}"
            inputs = () if op.inputs is None else op.inputs
            outputs = () if op.outputs is None else op.outputs
            found.append(
                Op(
                    name,
                    code.version,
                    tuple(tensors[place] if place >= 0 else None for place in inputs),
                    tuple(tensors[place] for place in outputs),
                    bool(getattr(op.builtinOptions, "adjX", False)),
                )
            )
    return found


def kind(item: Any) -> str:
    """The type of a tensor of ``load``'s: ``INT8``, ``FLOAT32`` …"""
    from ai_edge_litert import schema_py_generated as schema

    names: dict[int, str] = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    return names[item.type]


def _tensor(content: bytes, model: Any, item: Any) -> Tensor:
    told = item.quantization
    scales = np.zeros(0, np.float32) if told is None or told.scale is None else np.asarray(told.scale, np.float32)
    points = np.zeros(0, np.int64) if told is None or told.zeroPoint is None else np.asarray(told.zeroPoint, np.int64)
    buffer = model.buffers[item.buffer]
    data = buffer.data
    if (data is None or not len(data)) and buffer.offset > 1:  # a large file keeps its weights behind its tables
        data = content[buffer.offset : buffer.offset + buffer.size]
    # A batch left open is -1 in the signature and 1 in the shape.
    shape = () if item.shape is None else tuple(int(size) for size in item.shape)
    return Tensor(
        item.name.decode() if item.name else "",
        kind(item),
        shape,
        scales.reshape(-1),
        points.reshape(-1),
        0 if told is None else int(told.quantizedDimension),
        bytes(data) if data is not None and len(data) else None,
    )


def torch_module(name: str) -> str:
    """The torch module of a tensor that our converter named: ``layer1/0/conv1:2`` is ``layer1.0.conv1``."""
    plain = re.sub(r"(_(de)?quantized|_requant\w*|:\d+|@\d+|/any_batch)+$", "", name)
    return plain.replace("/", ".")


def layer_name(op: Op) -> str:
    """The torch module that an op computes: its weights' name says it where the output is the model's."""
    stored = [tensor.name for tensor in op.inputs[:2] if tensor is not None and tensor.stored is not None]
    own = [name for name in stored if name and not name.startswith(("arith.", "tfl."))]
    return torch_module(own[0] if op.kind in PRODUCTS and own else op.name)


def layers(ops: list[Op]) -> dict[str, Op]:
    """{name: op} of each convolution and matrix product, in order; a name's second op is ``name~2``."""
    seen: Counter[str] = Counter()
    found = {}
    for op in ops:
        if op.kind not in PRODUCTS:
            continue
        name = layer_name(op) or op.kind.lower()
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name}~{seen[name]}"] = op
    return found
