"""A model on disk: ``architecture.json`` says how to build it, ``model.safetensors`` what its tensors hold. No pickle.

The architecture is a model config and the edits made to it since, in order. Loading builds the model anew, repeats the
edits and loads the tensors strictly, so a file that doesn't fit is an error and never a half-loaded model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from edgewise.compress.pruning.identity import BlocksDropped, put_identities
from edgewise.compress.resize import resize
from edgewise.compress.simkd import ReusedClassifier, restore_classifier
from edgewise.compress.vocabulary import VocabularyPruned, restore_vocabulary
from edgewise.config import Config
from edgewise.errors import ArtifactError, ModelError, WeightsError
from edgewise.models.build import build
from edgewise.models.config import HuggingFace, OnnxFile, SavedModel
from edgewise.models.onnx.file import without_file
from edgewise.models.text.huggingface import without_folder

FORMAT = 1
ARCHITECTURE = "architecture.json"
WEIGHTS = "model.safetensors"


class ChannelPlan(Config):
    """Channels were removed: module name -> its counts now."""

    kind: Literal["pruned"] = "pruned"
    plan: dict[str, dict[str, int]]


class FakeQuantized(Config):
    """BatchNorm was folded and NNCF's fake quantizers were put in, where its config says."""

    kind: Literal["quantized"] = "quantized"
    nncf: dict[str, JsonValue]
    float_layers: tuple[str, ...] = Field(
        (), description="layers that stay in float by plan; every converter must obey"
    )


Edit = Annotated[
    ChannelPlan | BlocksDropped | FakeQuantized | ReusedClassifier | VocabularyPruned, Field(discriminator="kind")
]


class Description(Config):
    """Everything needed to build the model again, but its tensors."""

    model: SavedModel
    input_shape: tuple[int, int, int] | tuple[int, int] = Field(description="(C, H, W), or (L, V) of texts")
    classes: int
    edits: tuple[Edit, ...] = ()


def save_model(model: nn.Module, description: Description, folder: Path) -> None:
    """Write both files into ``folder``, made if need be. The same model and description give the same bytes.

    Tensors are stored contiguous and on the CPU, tied ones once for each name. A model that came from an ONNX file or a
    folder in Hugging Face form is described by what was read there: neither is needed again.

    Raises:
        ArtifactError: the folder can't be written.
    """
    if isinstance(description.model, OnnxFile):
        description = description.model_copy(update={"model": without_file(description.model, model)})
    if isinstance(description.model, HuggingFace):
        description = description.model_copy(update={"model": without_folder(description.model, model)})
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    text = json.dumps({"format": FORMAT, **description.model_dump(mode="json")}, indent=1, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ARCHITECTURE).write_text(text + "\n", encoding="utf-8")
        save_file(tensors, folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"the model can't be written: {error}", where=str(folder), hint="check the disk's space and permissions"
        ) from error


def load_model(folder: Path) -> tuple[nn.Module, Description]:
    """The model of ``folder``, on the CPU and in eval mode, and its description. Torch's random state is left alone.

    Raises:
        ArtifactError: ``architecture.json`` is missing, damaged, of another format, or its edits don't fit the model.
        WeightsError: ``model.safetensors`` is missing, damaged, or holds another model's tensors.
        ModelError: the architecture can't be built (a user's factory that is gone, say).
    """
    description = read_description(folder)
    with torch.random.fork_rng(devices=[]):
        model = build(description.model, description.input_shape, description.classes)
        model = _edited(model, description, folder)
    _load(model, folder / WEIGHTS)
    return model.eval(), description


def built(description: Description) -> nn.Module:
    """The same architecture with fresh weights, drawn from torch's global generator.

    Raises:
        ArtifactError: its edits don't fit the model.
        ModelError: the architecture can't be built.
    """
    model = build(description.model, description.input_shape, description.classes)
    return _edited(model, description, Path())


def read_description(folder: Path) -> Description:
    """What ``architecture.json`` in ``folder`` says.

    Raises:
        ArtifactError: it is missing, damaged, or of another format.
    """
    path = folder / ARCHITECTURE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"expected an object with format {FORMAT}")
        return Description.model_validate(data)
    except (OSError, UnicodeDecodeError, ValueError) as error:  # JSON's and pydantic's errors are ValueErrors
        short = _first(error) if isinstance(error, ValidationError) else str(error)
        raise ArtifactError(
            f"the saved architecture can't be read: {short}", where=str(path), hint="run the stage that made it again"
        ) from error


def describe(description: Description) -> str:
    """One line for people: ``cifar_resnet depth=56 width=16, 3x32x32 -> 10, pruned (81 layers), quantized``."""
    settings = description.model.model_dump(exclude={"kind", "program", "settings"})
    head = " ".join([description.model.kind, *(f"{name}={value}" for name, value in settings.items())])
    shape = "x".join(map(str, description.input_shape))
    return ", ".join([head, f"{shape} -> {description.classes}", *map(_in_words, description.edits)])


def planned_floats(description: Description) -> tuple[str, ...]:
    """The layers that a quantized model computes in float by plan; none where there is no plan."""
    return tuple(name for edit in description.edits if isinstance(edit, FakeQuantized) for name in edit.float_layers)


def _in_words(edit: Edit) -> str:
    if isinstance(edit, ChannelPlan):
        return f"pruned ({len(edit.plan)} layers)"
    if isinstance(edit, BlocksDropped):
        return f"without {', '.join(edit.names)}"
    if isinstance(edit, VocabularyPruned):
        return f"{edit.rows} words"
    if isinstance(edit, FakeQuantized) and edit.float_layers:
        return f"quantized ({len(edit.float_layers)} layers in float)"
    return "quantized" if isinstance(edit, FakeQuantized) else f"teacher's classifier ({edit.channels} channels)"


def _edited(model: nn.Module, description: Description, folder: Path) -> nn.Module:
    for edit in description.edits:
        try:
            if isinstance(edit, ChannelPlan):
                resize(model, edit.plan)
            elif isinstance(edit, BlocksDropped):
                put_identities(model, edit.names)
            elif isinstance(edit, VocabularyPruned):
                restore_vocabulary(model, edit)
            elif isinstance(edit, ReusedClassifier):
                restore_classifier(model, edit)
            else:
                from edgewise.compress.quantization.insert import restore_quantizers  # NNCF takes seconds to import

                model = restore_quantizers(model, edit.nncf, description.input_shape)
        except (ArtifactError, ModelError) as error:
            raise ArtifactError(
                f"the saved {edit.kind} edit doesn't fit the model: {error.message}",
                where=str(folder / ARCHITECTURE),
                hint="run the stage that made it again",
            ) from error
    return model


def _load(model: nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"the saved weights can't be read: {error}", where=str(path), hint="run the stage that made them again"
        ) from error
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unexpected" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        raise WeightsError(
            f"the saved weights are another model's: {'; '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}",
            where=str(path),
            hint="run the stage that made them again",
        )
    model.load_state_dict(tensors)


def _first(error: ValidationError) -> str:
    details = error.errors()[0]
    return f"{'.'.join(map(str, details['loc']))}: {details['msg']}"
