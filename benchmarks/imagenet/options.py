"""What is tried: nets, and for post-training quantization the rows of the table, as a recipe's ``quantize`` stage says
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE = (3, 224, 224)
FILE = "imagenet1k_samples_jpeg.npz"
CALIBRATION = 128


@dataclass(frozen=True)
class Net:
    """A factory in ``nets.py`` and what it wants; without ``weights`` they are random."""

    factory: str
    weights: str = ""
    normalisation: str = ""
    input_shape: tuple[int, int, int] = IMAGE
    classes: int = 1000
    model: Mapping[str, Any] = field(default_factory=dict)  # instead of a factory: one of the product's own


NETS = {
    "mobilenet_v1": Net("mobilenet_v1", "mobilenet_v1_0.25_imagenet.pth", "torchvision"),
    "squeezenet": Net("squeezenet", "squeezenet1_1_imagenet.pth", "caffe"),
    "mobilenet_v2": Net("mobilenet_v2", "mobilenet_v2_1.0_imagenet_dequant.pth", "tensorflow"),
    "resnet18": Net("resnet18"),
    "encoder": Net("encoder", input_shape=(1, 128, 384), classes=2),
    "tiny_vit": Net("", input_shape=(1, 8, 8), classes=10, model={"kind": "vit", "patch": 2, "dim": 64, "depth": 4}),
}

# The layers of MobileNetV1 that work on 112x112 with 8 and 16 channels: too few to fill a register with bytes.
NARROW = ["stage1.0.*", "stage1.1.*"]

OPTIONS: dict[str, dict[str, Any]] = {
    "mse": {"ranges": "mse"},  # the default
    "mean_min_max": {"ranges": "mean_min_max"},
    "min_max": {"ranges": "min_max"},
    "percentile": {"ranges": "percentile"},
    "percentile_99.9": {"ranges": "percentile", "percentile": 99.9},
    "entropy": {"ranges": "entropy"},
    "weight_mse": {"ranges": "mse", "weight_ranges": "mse"},
    "equalize": {"ranges": "mse", "equalize": True},
    "adaround": {"ranges": "mse", "rounding": "adaround"},
    "equalize_adaround": {"ranges": "mse", "equalize": True, "rounding": "adaround"},
}
# Of one net only.
OWN_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "mobilenet_v1": {
        "narrow_in_float": {"ranges": "mse", "float_layers": NARROW},
        "adaround_narrow_in_float": {"ranges": "mse", "rounding": "adaround", "float_layers": NARROW},
        "stage1_in_float": {"ranges": "mse", "float_layers": ["stage1.*"]},
    },
    "mobilenet_v2": {"stem_in_float": {"ranges": "mse", "float_layers": ["stem.*"]}},
}


def options(net: str) -> dict[str, dict[str, Any]]:
    """Row -> settings of the ``quantize`` stage."""
    return {**OPTIONS, **OWN_OPTIONS.get(net, {})}
