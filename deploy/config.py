"""What a recipe can say about targets. Torch-free."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from edgewise.config import Config, Precision, RuntimeName

# What a runtime can't do, and why; what it can is measured, also where it turns out slower than float.
REFUSED: dict[tuple[RuntimeName, Precision], str] = {
    ("onnxruntime", "float16"): "ONNX Runtime's CPU kernels compute float16 as float32: no gain in speed",
    ("onnxruntime", "bfloat16"): "ONNX Runtime has no bfloat16 kernels for the CPU",
    ("litert", "bfloat16"): "LiteRT's CPU kernels compute in float32 or int8; there is no bfloat16 form of a file",
    ("tensorrt", "bfloat16"): "the graphs for TensorRT have float16 between their layers, which it runs as fast",
    ("tensorrt", "int8_dynamic"): "TensorRT has no dynamic quantization: its activations' scales are in the file",
    ("tensorrt", "int8_weights"): "TensorRT computes in INT8 only where both inputs of a layer are quantized; weights "
    "alone would be expanded when the engine is built",
}


class Target(Config):
    """One runtime and the precisions to ship for it. Float32 files of the teacher and the student are always made
    beside them: they are what the others are measured against."""

    runtime: RuntimeName
    precisions: tuple[Precision, ...] = Field(
        ("int8",),
        min_length=1,
        description="int8: weights and activations, by the quantize stage; int8_dynamic: activations' scales are found "
        "at every run; int8_weights: stored as int8, computed in float; the last two need no stage",
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> Target:
        for precision in self.precisions:
            if reason := REFUSED.get((self.runtime, precision)):
                raise ValueError(f"precisions: {precision} is not for {self.runtime}: {reason}")
        return self


class Triton(Config):
    """A model repository for Triton Inference Server, one model a file that it can serve."""

    max_batch: int = Field(8, ge=2, description="most samples in one batch")
    preferred: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="batch sizes to wait for, at most max_batch; left to Triton where empty"
    )
    queue_delay_us: int = Field(100, ge=0, description="how long a request may wait for others to share its batch")
    instances: int = Field(1, ge=1, description="copies of the model that work at once")

    @model_validator(mode="after")
    def _preferred_fit(self) -> Triton:
        if any(size > self.max_batch for size in self.preferred):
            raise ValueError(f"preferred: expected sizes up to max_batch {self.max_batch}, got {max(self.preferred)}")
        return self


class Deploy(Config):
    """The files to make, and how closely they must follow the torch model."""

    targets: tuple[Target, ...] = Field(
        (Target(runtime="onnxruntime"), Target(runtime="openvino"), Target(runtime="litert")), min_length=1
    )
    calibration_samples: int = Field(256, ge=1, description="training samples for LiteRT's activation ranges")
    min_sqnr_db: float = Field(40.0, description="float32 files must follow torch at least this closely")
    timeout_s: float = Field(
        1800.0,
        gt=0,
        description="seconds that a conversion, or comparing layers, may take; what is stopped fails alone",
    )
    triton: Triton | None = Field(
        None, description="also write a Triton model repository; LiteRT can't be served by it"
    )
