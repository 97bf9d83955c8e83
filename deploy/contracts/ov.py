"""What OpenVINO needs to run a Q/DQ graph in integers. It takes int8 and uint8 alike and folds BatchNorm itself."""

from __future__ import annotations

from onnx import ModelProto

from edgewise.deploy.contracts import base
from edgewise.deploy.contracts.base import Finding


def check(model: ModelProto) -> list[Finding]:
    """Every place where OpenVINO would refuse ``model`` or run it in float; empty for a float graph."""
    known = base.facts(model)
    if not base.quantizes_anything(known):
        return []
    return [*base.scales(known), *base.weights(known), *base.islands(known)]
