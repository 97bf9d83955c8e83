"""What a probe can see of a net: the tensors between its layers, called the same in every runtime's file.

Converters rename, fuse and drop layers. What survives in all of them is the names of the layers with weights (they come
from torch, see ``edgewise.deploy.onnx_graph.rename``) and how the rest hangs on these. So a runtime's graph is read as
*points*: a layer or operation that computes something, and the points it reads, past everything that only moves values
(transposes, reshapes, slices) or changes their type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

LAYERS = frozenset(("conv", "linear"))
CLIPPED = LAYERS | {"add", "sub", "mul", "norm"}  # what a ReLU may follow, and a quantizer take over
MOVE, SHAPED, TURNED, QUANTIZE = "move", "reshape", "transpose", "quantize"
"""Ops that make no new values: a mover may take some or add zeros, the others keep all of them."""


@dataclass(frozen=True)
class Op:
    """One node of a runtime's graph, in the words that all runtimes share.

    Args:
        kind: ``conv``, ``linear``, ``add``, ``relu`` …, or ``move``, ``reshape``, ``transpose``, ``quantize``.
        name: of the layer it belongs to, as in torch; "" where the file has none.
        reads: the tensors it reads, constants left out.
        writes: its tensors; the first is what it computes.
        fused: the activation that the same node applies afterwards.
        clips: a quantizer whose lowest level is zero, which does a ReLU's work.
        bare: a product whose bias is a node of its own.
        gain: it reads a constant with more than one number.
        unscaled: a product of integers, whose scale is a node of its own.
    """

    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    fused: str = ""
    clips: bool = False
    bare: bool = False
    gain: bool = False
    unscaled: bool = False


@dataclass(frozen=True)
class Point:
    """A value in the net. ``inputs``: the points it is computed from; ``tensor``: where its value is found, None where
    the runtime never has it (it fused the layer with the next). ``quantized``: the value is what a quantizer left of
    it. ``clips``: the point whose activation a quantizer took over, if this is that activation. ``gain``: numbers
    of the net go into it, not inputs alone."""

    name: str
    kind: str
    inputs: tuple[int, ...]
    tensor: str | None
    quantized: bool = False
    clips: int | None = None
    gain: bool = False


def base(name: str) -> str:
    """The layer's name without what tells several nodes of one layer apart: ``fc1~2`` and ``fc1:2`` are ``fc1``."""
    return re.sub(r"(~\d+|:\d+)+$", "", name)


class _Reader:
    """Turns ops into points, in order."""

    def __init__(self, graph_input: str, readers: Counter[str]) -> None:
        self.readers = readers
        self.points: list[Point] = [Point("input", "input", (), None)]
        self.of: dict[str, tuple[int, ...]] = {graph_input: (0,)}
        self.whole = {graph_input}  # tensors that hold all values of their point, and no others
        # Of these, those without which nothing behind would know the values, and how they lie: a layout that was both
        # turned and reshaped can't be told from its shape.
        self.only = {graph_input: ""}
        self.bare: set[int] = set()
        self.unscaled: set[int] = set()

    def read(self, op: Op) -> None:
        sources = tuple(dict.fromkeys(index for name in op.reads for index in self.of.get(name, ())))
        if not sources:
            return  # made of constants and shapes alone
        if op.kind in (MOVE, SHAPED, TURNED, QUANTIZE):
            self.of.update((name, sources) for name in op.writes)
            kept = op.kind != MOVE and len(sources) == 1 and op.reads[0] in self.whole
            alone = kept and op.reads[0] in self.only and self.readers[op.reads[0]] == 1
            if kept:
                self.whole.update(op.writes)
            laid = self.only.get(op.reads[0], "")
            turns = {laid, op.kind} == {SHAPED, TURNED}
            if alone and not turns:
                self.only.update((name, laid if op.kind == QUANTIZE else op.kind) for name in op.writes)
            if alone and op.kind == QUANTIZE:
                self._quantize(sources[0], op)
            return
        merged = self._merge(op, sources)
        index = merged if merged is not None else self._add(op, sources)
        if op.fused:
            name = f"{self.points[index].name}+{op.fused}"
            self.points[index] = replace(self.points[index], tensor=None)
            self.points.append(Point(name, op.fused, (index,), op.writes[0]))
            index = len(self.points) - 1
        self.of.update((name, (index,)) for name in op.writes)
        self.whole.add(op.writes[0])
        self.only[op.writes[0]] = ""

    def _add(self, op: Op, sources: tuple[int, ...]) -> int:
        self.points.append(Point(op.name or self._told(op, sources), op.kind, sources, op.writes[0], gain=op.gain))
        if op.bare:
            self.bare.add(len(self.points) - 1)
        if op.unscaled:
            self.unscaled.add(len(self.points) - 1)
        return len(self.points) - 1

    def _told(self, op: Op, sources: tuple[int, ...]) -> str:
        """A name for an operation without one: the layer with the plainest name that it reads, and what is done."""
        plainest = min(reversed(sources), key=lambda index: self.points[index].name.count("+"))
        return f"{self.points[plainest].name}+{op.kind}"

    def _merge(self, op: Op, sources: tuple[int, ...]) -> int | None:
        """The point that this op finishes: a bias after its product, gain and bias after a normalisation."""
        last = self.points[sources[-1]] if len(sources) == 1 and op.reads[0] in self.whole else None
        if last is None or last.quantized:
            return None
        same = op.name and base(op.name) == base(last.name)
        bias = op.kind == "add" and last.kind in LAYERS and (same or sources[0] in self.bare)
        affine = {"mul": "mvn", "add": "mvn"}.get(op.kind) == last.kind
        scaled = op.kind == "mul" and sources[0] in self.unscaled
        if not bias and not affine and not scaled:
            return None
        kind, name = last.kind, last.name
        if affine:
            kind, name = ("norm" if op.kind == "add" else "mvn"), op.name or last.name
        self.unscaled.discard(sources[0])
        if bias:
            self.bare.discard(sources[0])
        self.points[sources[0]] = replace(last, kind=kind, name=name, tensor=op.writes[0])
        return sources[0]

    def _quantize(self, index: int, op: Op) -> None:
        """What the layer gives is from here on what its first quantizer leaves of it: nobody reads anything else."""
        point = self.points[index]
        if point.quantized:
            return
        self.points[index] = replace(point, tensor=op.writes[0], quantized=True)
        if op.clips and point.kind in CLIPPED:
            clipped = Point(f"{point.name}+relu", "relu", (index,), op.writes[0], quantized=True, clips=index)
            self.points.append(clipped)
            self.of.update((name, (len(self.points) - 1,)) for name in op.writes)


def points_of(ops: Iterable[Op], graph_input: str) -> tuple[Point, ...]:
    """The points of a graph, in order of execution. Point 0 is the input.

    Args:
        ops: the graph's nodes, makers before readers.
        graph_input: the tensor (N, C, H, W) that the graph is given.
    """
    ops = list(ops)
    reader = _Reader(graph_input, Counter(name for op in ops for name in dict.fromkeys(op.reads)))
    for op in ops:
        reader.read(op)
    return attention(_numbered(reader.points))


def attention(points: Sequence[Point]) -> tuple[Point, ...]:
    """Products of softmax(query · key) with values are of the kind ``attention`` and read all three: some runtimes have
    one op for it, the others five."""
    found = list(points)
    for index, point in enumerate(points):
        if point.kind != "matmul":
            continue
        soft = next((i for i in point.inputs if points[i].kind == "softmax"), None)
        scores = points[soft].inputs[:1] if soft is not None else ()
        while scores and points[scores[0]].kind in ("mul", "div", "add"):
            scores = points[scores[0]].inputs[:1]
        if scores and points[scores[0]].kind == "matmul":
            inner = points[scores[0]].inputs
            rest = tuple(i for i in point.inputs if i != soft)
            found[index] = replace(point, kind="attention", inputs=tuple(dict.fromkeys((*inner, *rest))))
    return tuple(found)


def _numbered(points: Sequence[Point]) -> list[Point]:
    """No two points of one name."""
    seen: dict[str, int] = {}
    found = []
    for point in points:
        seen[point.name] = seen.get(point.name, 0) + 1
        count = seen[point.name]
        found.append(point if count == 1 else replace(point, name=f"{point.name}~{count}"))
    return found
