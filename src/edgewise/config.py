"""The base of every config: frozen, no unknown keys; and the words that several rooms share. Torch-free, like every
``config.py`` in the rooms."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

RuntimeName = Literal["onnxruntime", "openvino", "litert", "tensorrt"]
Precision = Literal["float32", "float16", "bfloat16", "int8", "int8_dynamic", "int8_weights"]


class Config(BaseModel):
    """A frozen value; an unknown key is an error. Defaults live here and nowhere else."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
