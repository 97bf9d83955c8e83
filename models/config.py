"""What a recipe can say about models: one frozen config per family. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from edgewise.config import Config

# A dotted module and a name in it, never an expression: the only way a recipe reaches a user's code.
IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


class CifarResNet(Config):
    """ResNet for small images with parameter-free (option A) shortcuts, arXiv 1512.03385 §4.2."""

    kind: Literal["cifar_resnet"] = "cifar_resnet"
    depth: Literal[8, 14, 20, 32, 44, 56, 110] = 20
    width: int = Field(
        16, ge=1, description="channels of the first stage; the others have twice and four times as many"
    )


class MobileNetV2(Config):
    """MobileNetV2, arXiv 1801.04381: inverted residuals with linear bottlenecks."""

    kind: Literal["mobilenet_v2"] = "mobilenet_v2"
    width_multiplier: float = Field(1.0, gt=0, le=4)
    stem: Literal["cifar", "imagenet"] = "imagenet"


class ViT(Config):
    """A small vision transformer, arXiv 2010.11929, with a class token and learned positions."""

    kind: Literal["vit"] = "vit"
    patch: int = Field(4, ge=1)
    dim: int = Field(64, ge=8)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(2.0, gt=0)


class ModelFactory(Config):
    """A user's own model: ``package.module:factory(input_shape, classes, **arguments) -> nn.Module``."""

    kind: Literal["factory"]
    factory: str = Field(pattern=IMPORT_PATH)
    arguments: dict[str, JsonValue] = {}


class OnnxFile(Config):
    """A model that is there as an ONNX file alone, its weights inside: what needs no training works, pruning too."""

    kind: Literal["onnx"]
    path: Path = Field(description="float32, one input, one output (N, classes); a file that is quantized is refused")


class OnnxGraph(Config):
    """What a saved model has instead of an ONNX file's path: the program that was made of the file, without weights. No
    recipe says it."""

    kind: Literal["onnx_graph"] = "onnx_graph"
    program: dict[str, JsonValue]


ModelConfig = Annotated[CifarResNet | MobileNetV2 | ViT | ModelFactory | OnnxFile, Field(discriminator="kind")]
SavedModel = Annotated[
    CifarResNet | MobileNetV2 | ViT | ModelFactory | OnnxFile | OnnxGraph, Field(discriminator="kind")
]
