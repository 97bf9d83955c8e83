"""Names for the layers of an ONNX file: those of the torch modules it came from, where the file still has them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from onnx import NodeProto
from torch import nn

PARTS = ("weight", "bias", "running_mean", "running_var", "in_proj_weight")
# Calls that are the whole of their module: the module's name says enough.
WHOLE = re.compile(
    r"(conv\d?d?|conv_transpose\d?d?|linear|layer_norm|relu6?|gelu|hardtanh|hardswish|hardsigmoid|batch_norm|_native_batch_norm_legit_no_training|prelu"
    r"|leaky_relu|silu|sigmoid|tanh|softmax|max_pool\d?d?|avg_pool\d?d?|adaptive_avg_pool\d?d?|mean|dropout)(_\d+)?"
)
BARE = nn.Module()


def place(node: NodeProto, parameters: Sequence[str] = ()) -> str:
    """Where a node comes from: ``layer1.0.conv1``.

    The names of its weights say it, ``parameters``, which no other node may read: exporters merge equal ones. Else the
    exporter's notes, else the node's own name, its slashes as dots.
    """
    for name in parameters:
        head, _, tail = name.rpartition(".")
        if head and tail in PARTS:
            return _clean(head.split("."))
    return _noted(node) or _clean(_steps(node.name)) or node.op_type.lower()


def _noted(node: NodeProto) -> str:
    """What torch's exporter noted on the node."""
    notes = {item.key: item.value for item in node.metadata_props}
    try:
        scopes = json.loads(notes["pkg.torch.onnx.name_scopes"].replace("'", '"'))
    except (KeyError, ValueError):
        return ""
    module, call = (["", *scopes])[-2:]
    if module and WHOLE.fullmatch(call):
        return _clean(module.split("."))
    return _clean([*module.split("."), call])


def _steps(name: str) -> list[str]:
    """``/layer1/layer1.0/conv1/Conv``, as torch's older exporter writes it: layer1, 0, conv1."""
    parts = [part for part in name.split("/") if part]
    if len(parts) > 1 and re.fullmatch(r"[A-Z][A-Za-z0-9]*(_\d+)?", parts[-1]):
        del parts[-1]  # the operator
    before = ""
    steps: list[str] = []
    for part in parts:
        steps += part.removeprefix(f"{before}.").split(".") if before else re.split(r"[.:]", part)
        before = part
    return [step for step in steps if step]


def _clean(steps: Iterable[str]) -> str:
    """Steps as the names of modules: no sign that torch refuses, none that a module has for something else."""
    found = []
    for step in steps:
        step = re.sub(r"[^A-Za-z0-9_~-]", "_", step)
        if step:
            found.append(f"{step}_" if hasattr(BARE, step) else step)
    return ".".join(found)


class Names:
    """Gives names out: each once, and none that is a part of another's way, as ``a`` and ``a.b`` would be."""

    def __init__(self, wanted: Iterable[str]) -> None:
        """``wanted``: all names that will be asked for."""
        self._ways = {way for name in wanted for way in _ways(name)}
        self._given: set[str] = set()

    def give(self, name: str) -> str:
        """``name``, or ``name_2`` and so on."""
        unique, number = name, 1
        while unique in self._given or unique in self._ways:
            number += 1
            unique = f"{name}_{number}"
        self._given.add(unique)
        return unique


def _ways(name: str) -> list[str]:
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(1, len(steps))]


__all__ = ["Names", "place"]
