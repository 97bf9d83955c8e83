"""The four runtimes behind one protocol; each is imported when asked for. Python >= 3.8: the agent carries this."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from edgewise.deploy.runtimes.base import Options, Runtime, Session, TensorSpec, check_feeds
from edgewise.errors import MeasureError

MODULES = {
    "onnxruntime": "edgewise.deploy.runtimes.ort",
    "openvino": "edgewise.deploy.runtimes.ov",
    "litert": "edgewise.deploy.runtimes.litert",
    "tensorrt": "edgewise.deploy.runtimes.trt",
}


def get(name: str) -> Runtime:
    """The runtime module called ``name``.

    Raises:
        MeasureError: no such runtime.
    """
    if name not in MODULES:
        raise MeasureError("no runtime %r; there are %s" % (name, ", ".join(MODULES)))
    return cast("Runtime", import_module(MODULES[name]))


__all__ = ["MODULES", "Options", "Runtime", "Session", "TensorSpec", "check_feeds", "get"]
