"""What a recipe can say about models: one frozen config per family. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

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


Answers = Literal["sequence", "token", "vocabulary"]
_ANSWERS = (
    "sequence: logits (N, K), or one number a text; token: logits of every token (N, L, K), for tags; vocabulary: "
    "of every token, which word stands there (N, L, V), for masked words"
)
_SEPARATOR = (
    "the id of the separator, where the two texts of a pair are told apart: tokens after the first have type 1; null: "
    "all are of type 0, as in a single text"
)


class Bert(Config):
    """An encoder of the BERT family, arXiv 1810.04805, of any size: post-norm blocks, learned positions."""

    kind: Literal["bert"] = "bert"
    layers: int = Field(3, ge=1)
    width: int = Field(384, ge=1)
    heads: int = Field(12, ge=1, description="must divide the width")
    ffn: int | None = Field(None, ge=1, description="width of the hidden layer in a block; null: four times the width")
    embedding: int | None = Field(
        None, ge=1, description="width of the word table, projected to the width behind it (ALBERT, arXiv 1909.11942)"
    )
    projects: Literal["words", "sum"] = Field(
        "words",
        description="with embedding, what is projected: words alone, so that a wider teacher's table can be factorised "
        "into it, or words, positions and types together behind their norm, as ELECTRA does",
    )
    answers: Answers = Field("sequence", description=_ANSWERS)
    pooling: Literal["cls", "mean"] = Field("cls", description="what a sequence is told by: its first token, or all")
    pooler: Literal["tanh", "relu", "gelu", "none"] = Field(
        "tanh", description="a dense layer with this activation between the pooled token and the head"
    )
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    positions: int | None = Field(
        None, ge=1, description="rows of the position table; null: as many as the task's longest text has tokens"
    )
    types: int = Field(2, ge=0, le=2, description="token types: 2 tell the texts of a pair apart")
    padding: int = Field(0, ge=0, description="the padding token's id: what has it is not there")
    separator: int | None = Field(None, ge=0, description=_SEPARATOR)
    dropout: float = Field(0.1, ge=0, lt=1, description="of embeddings, of both halves of a block, before the head")
    norm_eps: float = Field(1e-12, gt=0)


class HuggingFace(Config):
    """An encoder in Hugging Face form, with its weights: ``path`` or ``hub`` says where it is."""

    kind: Literal["huggingface"] = "huggingface"
    path: Path | None = Field(None, description="a folder with config.json and model.safetensors")
    hub: str | None = Field(
        None,
        pattern=r"^[\w.-]+(/[\w.-]+)?$",
        description="a name on the Hugging Face hub; fetched once, into the hub's own cache",
    )
    revision: str | None = Field(None, description="with hub: a branch, a tag or, to be sure of it, a commit")
    layers: int | None = Field(None, ge=1, description="take the first so many; null: all")
    answers: Answers = Field("sequence", description=_ANSWERS)
    pooling: Literal["auto", "pooler", "cls", "mean"] = Field(
        "auto",
        description="what a sequence is told by. auto: by the pooler where the checkpoint has a trained one, by all "
        "tokens where the folder says that it was trained so, else by the first token",
    )
    separator: int | None = Field(None, ge=0, description=_SEPARATOR)
    dropout: float | None = Field(None, ge=0, lt=1, description="null: as the checkpoint's config says")

    @model_validator(mode="after")
    def _one_place(self) -> HuggingFace:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path, a folder, and hub, a name on the hub")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision: only what is on the hub has one")
        return self


class BiLstm(Config):
    """A bidirectional LSTM over words, the student of arXiv 1903.12136: both last states, or of tags each token's."""

    kind: Literal["bilstm"] = "bilstm"
    embedding: int = Field(300, ge=1, description="width of the word table")
    hidden: int = Field(150, ge=1, description="of each direction")
    layers: int = Field(1, ge=1)
    dense: int = Field(200, ge=0, description="width of the layer between the states and the head; 0: none")
    answers: Literal["sequence", "token"] = Field("sequence", description=_ANSWERS.rpartition(";")[0])
    padding: int = Field(0, ge=0, description="the padding token's id: what has it is not there")
    dropout: float = Field(0.1, ge=0, lt=1, description="of embeddings and before the head")


class Encoder(Config):
    """What a saved model has instead of a folder in Hugging Face form whose architecture is none of edgewise's: the
    checkpoint's own config. No recipe says it."""

    kind: Literal["encoder"] = "encoder"
    settings: dict[str, JsonValue]
    answers: Literal["sequence", "token"]
    pooling: Literal["cls", "mean"]
    padding: int
    separator: int | None
    dropout: float


ModelConfig = Annotated[
    CifarResNet | MobileNetV2 | ViT | Bert | HuggingFace | BiLstm | ModelFactory | OnnxFile,
    Field(discriminator="kind"),
]
SavedModel = Annotated[
    CifarResNet | MobileNetV2 | ViT | Bert | HuggingFace | Encoder | BiLstm | ModelFactory | OnnxFile | OnnxGraph,
    Field(discriminator="kind"),
]
