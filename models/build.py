"""Config in, torch module out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models import config as configs
from edgewise.models import factory
from edgewise.models.cifar_resnet import CifarResNet
from edgewise.models.config import SavedModel
from edgewise.models.inputs import Shape, blank, is_text
from edgewise.models.mobilenet_v2 import MobileNetV2
from edgewise.models.onnx.file import build_file, build_graph
from edgewise.models.text.build import bert, bilstm
from edgewise.models.text.encoder import build_encoder
from edgewise.models.text.huggingface import build_folder
from edgewise.models.vit import ViT


def build(config: SavedModel, input_shape: Shape, classes: int) -> nn.Module:
    """A model with fresh weights, drawn from torch's global generator: inputs (N, C, H, W) or token ids (N, L) ->
    logits (N, classes), or of every token (N, L, classes). A model that is a file has the file's weights.

    Args:
        config: the family and its size.
        input_shape: (C, H, W), or (L, V) of texts: at most L tokens, each one of V.
        classes: at least 2; 1 of texts is a number.

    Raises:
        ModelError: the family can't take this shape or number of classes, or the user's factory fails.
    """
    if len(input_shape) not in (2, 3) or any(not isinstance(n, int) or n < 1 for n in input_shape):
        raise ModelError(
            f"the input shape must be (C, H, W), or (L, V) of texts, all at least 1, got {tuple(input_shape)}"
        )
    if classes < (1 if is_text(input_shape) else 2):
        raise ModelError(f"a classifier needs at least 2 classes, got {classes}", hint="look at the task's labels")
    _check_reads(config, input_shape)
    return BUILDERS[type(config)](config, input_shape, classes)


def cifar_resnet(config: configs.CifarResNet, input_shape: Shape, classes: int) -> nn.Module:
    """Maps are halved twice, so H and W are at least 4."""
    _check_size(f"ResNet-{config.depth}", input_shape, 4)
    return CifarResNet(config.depth, config.width, input_shape[0], classes)


def mobilenet_v2(config: configs.MobileNetV2, input_shape: Shape, classes: int) -> nn.Module:
    """Maps are halved three times with the CIFAR stem, five times with the ImageNet stem."""
    cifar = config.stem == "cifar"
    hint = "" if cifar else "stem: cifar takes images from 8x8 on"
    _check_size(f"MobileNetV2 with the {config.stem} stem", input_shape, 8 if cifar else 32, hint)
    return MobileNetV2(config.width_multiplier, cifar, input_shape[0], classes)


def vit(config: configs.ViT, input_shape: Shape, classes: int) -> nn.Module:
    """The patch must divide H and W, the heads the width."""
    channels, height, width = input_shape
    if height % config.patch or width % config.patch:
        fitting = [n for n in range(1, min(height, width) + 1) if height % n == 0 and width % n == 0]
        raise ModelError(
            f"patch {config.patch} does not divide the image of {height}x{width}",
            where="vit.patch",
            hint=f"patches that do: {', '.join(map(str, fitting))}",
        )
    if config.dim % config.heads:
        raise ModelError(
            f"heads {config.heads} does not divide dim {config.dim}", where="vit.heads", hint="change one of the two"
        )
    return ViT(
        (channels, height, width),
        classes,
        patch=config.patch,
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        hidden=max(1, round(config.dim * config.mlp_ratio)),
    )


def from_factory(config: configs.ModelFactory, input_shape: Shape, classes: int) -> nn.Module:
    """The user's factory, and one forward pass to see that its logits are (N, classes)."""
    model = factory.call(config.factory, input_shape, classes, error=ModelError, arguments=dict(config.arguments))
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}", where=config.factory)
    _check_forward(model, input_shape, classes, config.factory)
    return model


BUILDERS: dict[type, Callable[[Any, Shape, int], nn.Module]] = {
    configs.CifarResNet: cifar_resnet,
    configs.MobileNetV2: mobilenet_v2,
    configs.ViT: vit,
    configs.Bert: bert,
    configs.BiLstm: bilstm,
    configs.HuggingFace: build_folder,
    configs.Encoder: build_encoder,
    configs.ModelFactory: from_factory,
    configs.OnnxFile: build_file,
    configs.OnnxGraph: build_graph,
}


TEXT = (configs.Bert, configs.HuggingFace, configs.Encoder, configs.BiLstm)
EITHER = (configs.ModelFactory,)


def _check_reads(config: SavedModel, input_shape: Shape) -> None:
    """A net for texts is given texts, one for images images."""
    if isinstance(config, EITHER) or isinstance(config, TEXT) == is_text(input_shape):
        return
    if is_text(input_shape):
        raise ModelError(
            f"{config.kind} reads images, and the task gives texts of up to {input_shape[0]} tokens",
            where="kind",
            hint="kinds that read texts: bert, huggingface, bilstm, factory",
        )
    raise ModelError(
        f"{config.kind} reads texts, and the task gives images {tuple(input_shape)}",
        where="kind",
        hint="kinds that read images: cifar_resnet, mobilenet_v2, vit, onnx, factory",
    )


def _check_size(name: str, input_shape: Shape, least: int, hint: str = "") -> None:
    if min(input_shape[1:]) < least:
        height, width = input_shape[1:]
        raise ModelError(f"{name} needs images of at least {least}x{least}, got {height}x{width}", hint=hint)


def _check_forward(model: nn.Module, input_shape: Shape, classes: int, where: str) -> None:
    """Two blank samples through the net in evaluation mode, which leaves its state alone."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            out: object = model(torch.from_numpy(blank(input_shape, 2)))
    except Exception as cause:  # it is the user's code: anything may come
        raise ModelError(
            f"the forward pass on (2, {', '.join(map(str, input_shape))}) failed: {type(cause).__name__}: {cause}",
            where=where,
        ) from cause
    finally:
        model.train(training)
    fitting = {(2, classes), (2, input_shape[0], classes)} if is_text(input_shape) else {(2, classes)}
    if not isinstance(out, Tensor) or tuple(out.shape) not in fitting:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(f"expected logits (2, {classes}) for a batch of two, got {got}", where=where)
