"""What ONNX Runtime needs to run a Q/DQ graph in its integer kernels (QLinearConv, QLinearAdd, MatMulIntegerToFloat).

Measured with 1.31 on x86: a BatchNorm left after a Conv keeps every Conv in float; int8 activations run at half the
speed of uint8 ones; per-channel activations are slower than float.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from edgewise.deploy.contracts import base
from edgewise.deploy.contracts.base import Finding


def unsigned_activations(known: base.Facts) -> list[Finding]:
    """Activations are uint8."""
    found = []
    for node in known.pairs():
        zero = known.value(node.input[2]) if len(node.input) > 2 else None
        if known.constant(node.input[0]) or zero is None or zero.dtype == np.uint8:
            continue
        mend = "add 128 to values and zero-points: it changes no result"
        found.append(Finding("uint8-activation", node.name, f"expected uint8 activations, got {zero.dtype}", mend))
    return found


def check(model: ModelProto) -> list[Finding]:
    """Every place where ONNX Runtime would refuse ``model`` or run it in float; empty for a float graph."""
    known = base.facts(model)
    if not base.quantizes_anything(known):
        return []
    return [
        *base.scales(known),
        *unsigned_activations(known),
        *base.weights(known),
        *base.unfolded(known),
        *base.islands(known),
    ]
