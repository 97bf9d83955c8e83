"""What a recipe can say about targets. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgewise.config import Config

RuntimeName = Literal["onnxruntime", "openvino", "litert", "tensorrt"]
Precision = Literal["float32", "float16", "int8"]


class Target(Config):
    """One runtime and the precisions to ship for it. Float32 files of the teacher and the student are always made
    beside them: they are what the others are measured against."""

    runtime: RuntimeName
    precisions: tuple[Precision, ...] = Field(("int8",), min_length=1)


class Deploy(Config):
    """The files to make, and how closely they must follow the torch model."""

    targets: tuple[Target, ...] = Field(
        (Target(runtime="onnxruntime"), Target(runtime="openvino"), Target(runtime="litert")), min_length=1
    )
    calibration_samples: int = Field(256, ge=1, description="training samples for LiteRT's activation ranges")
    min_sqnr_db: float = Field(40.0, description="float32 files must follow torch at least this closely")
