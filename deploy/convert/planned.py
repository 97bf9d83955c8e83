"""A mixed-precision plan is obeyed or refused: the layers that it leaves in float, held against the finished file."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import ModelProto

from edgewise.deploy.contracts.base import PRODUCTS, facts
from edgewise.deploy.convert.executed import plain
from edgewise.errors import ContractError

TOLD = 5


def check_plan(float_layers: Collection[str], layers: Mapping[str, bool], where: str) -> None:
    """Check that the plan's layers are in the file, and none of them computes in integers.

    Args:
        float_layers: torch modules that the plan leaves in float.
        layers: {torch module: whether it computes in integers} of every layer of the file, as read back from it.
        where: the file, for the error.

    Raises:
        ContractError: naming the layers.
    """
    for named, what in (
        ([name for name in float_layers if name not in layers], "has no such layer, or under another name"),
        ([name for name in float_layers if layers.get(name)], "computes it in INT8"),
    ):
        if named:
            more = f" and {len(named) - TOLD} more" if len(named) > TOLD else ""
            raise ContractError(
                f"the plan leaves {', '.join(named[:TOLD])}{more} in float, and the file {what}",
                where=where,
                hint="leave this target out, or make a plan without it",
            )


def check_graph(model: ModelProto, float_layers: Collection[str], where: str) -> None:
    """Check that the weights of the plan's layers are float in a Q/DQ graph of ours.

    Raises:
        ContractError: naming the layers.
    """
    known = facts(model)
    layers = {
        plain(node.name): known.weight(node.input[1]) is not None
        for node in model.graph.node
        if node.op_type in PRODUCTS
    }
    check_plan(float_layers, layers, where)


__all__ = ["check_graph", "check_plan"]
