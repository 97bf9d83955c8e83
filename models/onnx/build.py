"""From the nodes of an ONNX file to a program: what every operator's translation may ask and say."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from edgewise.errors import ModelError
from edgewise.models.onnx.names import BARE, Names, place
from edgewise.models.onnx.program import BATCH, Constant, Input, Program, Step, size
from edgewise.models.onnx.read import BATCHES, NEXT, OnnxFileGraph

SMALL = 4096  # constants of up to so many numbers stand in the program, larger ones among the weights
Array = NDArray[Any]
Dims = list[int | str]


class Builder:
    """Collects layers, constants and steps while the nodes are gone through."""

    def __init__(self, graph: OnnxFileGraph) -> None:
        self.graph = graph
        self.opset = graph.opset
        self.readers = Counter(name for node in graph.nodes for name in node.input if name)
        self.readers[graph.output] += 1
        self._tensors = {graph.input, *(name for node in graph.nodes for name in node.output)}
        self.reading = {name: node for node in graph.nodes for name in node.input if name}
        wanted = [self.place(node) for node in graph.nodes]
        self._names = Names([*wanted, "constants.x"])
        self.layers: dict[str, dict[str, Any]] = {}
        self.constants: dict[str, Constant] = {}
        self.steps: list[Step] = []
        self.weights: dict[str, Array] = {}
        self.skipped: set[str] = set()  # outputs of nodes that an earlier one has taken along
        self._kept: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    # What a node says.

    def fail(self, node: NodeProto, what: str) -> ModelError:
        """An error that names the node; raise it."""
        name = node.name or node.output[0]
        return ModelError(
            f"{node.op_type} node {name}: {what}", where=self.graph.where, hint=f"rewrite this part, or {NEXT}"
        )

    def attribute(self, node: NodeProto, name: str, default: Any = None) -> Any:
        """An attribute's value, text as ``str``."""
        for item in node.attribute:
            if item.name == name:
                got = helper.get_attribute_value(item)
                return got.decode() if isinstance(got, bytes) else got
        return default

    def constant(self, node: NodeProto, index: int) -> Array | None:
        """The value of an input that is constant; None where it isn't, or isn't given."""
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            return None
        if name in self.graph.constants:
            return self.graph.constants[name]
        if name in self.graph.settled:
            first, second = (self.graph.runs[batch][name] for batch in BATCHES)
            if first.shape == second.shape and np.array_equal(first, second):
                return first
        return None

    def numbers(self, node: NodeProto, index: int, attribute: str) -> list[int] | None:
        """Whole numbers that older opsets have as an attribute and newer ones as an input; None where left out."""
        given = self.attribute(node, attribute)
        if given is not None:
            return [int(value) for value in (given if isinstance(given, list) else [given])]
        if index >= len(node.input) or not node.input[index]:
            return None
        value = self.constant(node, index)
        if value is None:
            raise self.fail(node, f"its {attribute} hang on the input's values")
        return [int(one) for one in value.reshape(-1)]

    def scalar(self, node: NodeProto, index: int, attribute: str, default: float | None) -> float | None:
        """One number, an attribute in older opsets and an input in newer ones."""
        given = self.attribute(node, attribute)
        if given is not None:
            return float(given)
        if index >= len(node.input) or not node.input[index]:
            return default
        value = self.constant(node, index)
        if value is None or value.size != 1:
            raise self.fail(node, f"its {attribute} is no constant number")
        return float(value.reshape(()))

    def dims(self, name: str) -> Dims:
        """A tensor's shape; what grows with the number of samples as "N", "3N"."""
        if name in self.graph.constants:
            return list(self.graph.constants[name].shape)
        first, second = (self.graph.runs[batch][name].shape for batch in BATCHES)
        if len(first) != len(second):
            raise ModelError(f"{name}: its rank hangs on the number of samples", where=self.graph.where)
        return [_grown(a, b, name, self.graph.where) for a, b in zip(first, second, strict=True)]

    def rank(self, name: str) -> int:
        """A tensor's rank."""
        return len(self.dims(name))

    def fixed(self, node: NodeProto, name: str, axis: int) -> int:
        """The size of one axis, which must not hang on the number of samples."""
        found = self.dims(name)[axis]
        if isinstance(found, str):
            raise self.fail(node, f"axis {axis} of {name} hangs on the number of samples")
        return found

    def single(self, node: NodeProto) -> NodeProto | None:
        """The one node that alone reads this node's output."""
        return self.reading.get(node.output[0]) if self.readers[node.output[0]] == 1 else None

    # What the program gets.

    def place(self, node: NodeProto) -> str:
        """The name that a node's layer should have."""
        names = [name for name in node.input[1:] if name in self.graph.constants]
        following = self.readers[node.output[0]] == 1 and self.reading.get(node.output[0])
        if node.op_type == "MatMul" and following and following.op_type == "Add":
            names += [name for name in following.input if name in self.graph.constants]
        return place(node, [name for name in names if self.readers[name] == 1])

    def layer(
        self, node: NodeProto, kind: str, given: Input, weights: dict[str, Array] | None = None, **about: Any
    ) -> None:
        """A module, called with ``given``; ``weights`` by its parameters' names."""
        name = self._names.give(self.place(node))
        self.layers[name] = {"kind": kind, **about}
        for part, value in (weights or {}).items():
            self.weights[f"{name}.{part}"] = np.asarray(value, np.float32)
        self.steps.append(Step(name, "layer", (given,), (node.output[0],), {}))

    def call(self, node: NodeProto, op: str, *given: Input, **settings: Any) -> None:
        """A function; as many outputs as the node has."""
        outputs = tuple(node.output) if op == "split" else (node.output[0],)
        self.steps.append(Step(self.place(node), op, given, outputs, settings))

    def rename_last(self, output: str) -> None:
        """The last step gives ``output`` instead: it does the work of the node after it, too."""
        self.steps[-1] = replace(self.steps[-1], outputs=(output,))

    def between(self, node: NodeProto, op: str, *given: Input, **settings: Any) -> str:
        """A function whose result only this node's next step reads: the name of the result."""
        name = f"{node.output[0]}/{len(self.steps)}"
        self.steps.append(Step(self.place(node), op, given, (name,), settings))
        return name

    def input(self, node: NodeProto, index: int, *, tensor: bool = False) -> Input:
        """An input as a step takes it: a tensor's name, or a number where it is one; ``tensor``: never a number."""
        name = str(node.input[index])
        if name not in self.graph.settled:
            return name
        value = self.graph.constants.get(name)
        if value is None:
            return self._settled(node, name)
        if value.size == 1 and value.ndim <= 1 and not tensor:
            number: Input = value.reshape(()).item()
            return number
        return self.hold(name, value)

    def _settled(self, node: NodeProto, name: str) -> str:
        """A tensor that the number of samples decides: its rows are all alike, or it is the same for all numbers."""
        first, second = (self.graph.runs[batch][name] for batch in BATCHES)
        if first.shape == second.shape and np.array_equal(first, second):
            return self.hold(name, first)
        dims = self.dims(name)
        row = second[:1]
        if (
            dims[0] == BATCH
            and all(isinstance(one, int) for one in dims[1:])
            and np.array_equal(np.broadcast_to(row, second.shape), second)
            and np.array_equal(row, first[:1])
        ):
            held = self.hold(name, row)
            return self.between(node, "expand", held, shape=dims)
        raise self.fail(node, f"{name} hangs on the number of samples in a way that can't be followed")

    def hold(self, name: str, value: Array) -> str:
        """Keep a constant; the name to read it by."""
        value = np.ascontiguousarray(value)
        dtype = {"f": "float32", "b": "bool", "i": "int64", "u": "int64"}.get(value.dtype.kind)
        if dtype is None or value.dtype == np.float16:
            raise ModelError(f"{name}: a constant of {value.dtype}", where=self.graph.where, hint=NEXT)
        value = value.astype(dtype)
        key = (dtype, value.shape, value.tobytes())
        if key not in self._kept:
            base = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "c"
            base = f"c_{base}" if base[0].isdigit() or hasattr(BARE, base) else base
            unique, number = base, 1
            while unique in self.constants or unique in self._tensors:
                number += 1
                unique = f"{base}_{number}"
            small = size(value.shape) <= SMALL or dtype != "float32"
            numbers = tuple(one if np.isfinite(one) else str(one) for one in value.reshape(-1).tolist())
            self.constants[unique] = Constant(dtype, value.shape, numbers if small else None)
            self.weights[f"constants.{unique}"] = value
            self._kept[key] = unique
        return self._kept[key]

    def program(self) -> Program:
        """What was collected."""
        known = self.graph.runs[BATCHES[0]]
        return Program(
            self.graph.input,
            self.graph.output,
            known[self.graph.input].shape[1:],
            known[self.graph.output].shape[1:],
            self.layers,
            self.constants,
            tuple(self.steps),
        )


def _grown(a: int, b: int, name: str, where: str) -> int | str:
    if a == b:
        return a
    first, second = BATCHES
    if a * second == b * first and a % first == 0:
        times = a // first
        return BATCH if times == 1 else f"{times}{BATCH}"
    raise ModelError(f"{name}: a size of {a} with {first} samples, and of {b} with {second}", where=where, hint=NEXT)


def type_name(code: int) -> str | None:
    """``float32`` for ONNX's code of it; None for a type that programs don't know."""
    names = {int(TensorProto.FLOAT): "float32", int(TensorProto.INT64): "int64"}
    names |= {int(TensorProto.INT32): "int32", int(TensorProto.BOOL): "bool"}
    return names.get(code)


__all__ = ["Builder", "Dims", "type_name"]
