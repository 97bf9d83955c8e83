"""A student that answers with its teacher's classifier: a projector before its pool gives it the teacher's features.

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", arXiv 2203.14001. The projector and the
classifier stay when the model is exported, and are counted, pruned and quantized like any other layers.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgewise.compress.layers import trace
from edgewise.compress.macs import evaluating, placement
from edgewise.compress.taps import INPUT, near, tapped
from edgewise.config import Config
from edgewise.errors import ModelError
from edgewise.models.inputs import is_text


class ReusedClassifier(Config):
    """A projector stands before the pool, and the classifier is the teacher's: what is needed to build both again."""

    kind: Literal["reused_classifier"] = "reused_classifier"
    pool: str = Field(description="the student's pool, now after the projector")
    classifier: str = Field(description="the student's classifier, now the teacher's")
    channels_in: int = Field(ge=1, description="of the student's last map")
    inner: int = Field(ge=1, description="inside the projector")
    channels: int = Field(ge=1, description="of the teacher's last map")
    classes: int = Field(ge=1)
    bias: bool = Field(description="whether the classifier has one")
    relu: bool = Field(description="whether the projector ends in a ReLU, because the teacher's map is never negative")


def reuse_classifier(
    student: nn.Module,
    teacher: nn.Module,
    input_shape: tuple[int, ...],
    *,
    factor: int = 2,
    pool: str = "pool",
    classifier: str | None = None,
    teacher_pool: str = "pool",
    teacher_classifier: str | None = None,
) -> ReusedClassifier:
    """Give ``student``, in place, a projector before its pool and a frozen copy of the teacher's classifier.

    Both nets must average their last map and hand that, and nothing else, to one linear layer.

    Args:
        student: (N, *input_shape) -> logits.
        teacher: the same, with as many classes. It stays as it is.
        input_shape: (C, H, W).
        factor: the projector has the teacher's channels divided by this inside.
        pool: name of the student's pool.
        classifier: name of the student's classifier; None: the linear layer that gives the logits.
        teacher_pool: name of the teacher's pool.
        teacher_classifier: name of the teacher's classifier; None: likewise.

    Returns:
        The edit, to be saved with the student's description.

    Raises:
        ModelError: a layer is missing, or a net ends in another way.
    """
    ours = _ending(student, input_shape, pool, classifier, "student")
    theirs = _ending(teacher, input_shape, teacher_pool, teacher_classifier, "teacher")
    if ours.linear.out_features != theirs.linear.out_features:
        raise ModelError(
            f"the student has {ours.linear.out_features} classes and the teacher {theirs.linear.out_features}",
            hint="a classifier can only be reused for the same classes",
        )
    edit = ReusedClassifier(
        pool=pool,
        classifier=ours.name,
        channels_in=ours.map.shape[1],
        inner=max(1, theirs.map.shape[1] // factor),
        channels=theirs.map.shape[1],
        classes=theirs.linear.out_features,
        bias=theirs.linear.bias is not None,
        # SiLU, GELU and their like do go below zero, and a ReLU could not follow.
        relu=bool((theirs.map >= 0).all()),
    )
    restore_classifier(student, edit)
    reused = student.get_submodule(edit.classifier)
    reused.load_state_dict(copy.deepcopy(theirs.linear.state_dict()))
    return edit


def restore_classifier(model: nn.Module, edit: ReusedClassifier) -> None:
    """Make the edit's changes, in place; the weights of the new layers are still to be loaded, the classifier frozen.

    Raises:
        ModelError: the model has no such layers.
    """
    old_pool, old_classifier = (_named(model, name, "model") for name in (edit.pool, edit.classifier))
    place = placement(model)
    new = projector(edit.channels_in, edit.inner, edit.channels, relu=edit.relu)
    classifier = nn.Linear(edit.channels, edit.classes, bias=edit.bias)
    for name, old, made in (
        (edit.pool, old_pool, nn.Sequential(new, old_pool)),
        (edit.classifier, old_classifier, classifier.requires_grad_(False)),
    ):
        made.train(old.training)
        model.set_submodule(name, made.to(**place))


def projector(channels_in: int, inner: int, channels: int, *, relu: bool) -> nn.Sequential:
    """(N, channels_in, H, W) -> (N, channels, H, W) by convolutions of 1x1, 3x3 and 1x1 with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for wide, out, kernel in ((channels_in, inner, 1), (inner, inner, 3), (inner, channels, 1)):
        layers += [nn.Conv2d(wide, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*(layers if relu else layers[:-1]))


class _Ending:
    """How a net ends: its last ``map`` (N, C, H, W), and the ``linear`` layer called ``name``."""

    def __init__(self, last: Tensor, name: str, linear: nn.Linear) -> None:
        self.map, self.name, self.linear = last, name, linear


def _ending(model: nn.Module, input_shape: tuple[int, ...], pool: str, classifier: str | None, who: str) -> _Ending:
    if is_text(input_shape):
        raise ModelError(
            "simkd puts a convolution before the pool of a map, and the task gives texts",
            hint="use hidden_states or hidden_cosine",
        )
    _named(model, pool, who)
    name = classifier or trace(model, input_shape).classifier
    if name is None:
        raise ModelError(f"no linear layer gives the {who}'s logits", hint="name it: classifier, teacher_classifier")
    linear = _named(model, name, who)
    if type(linear) is not nn.Linear:
        raise ModelError(
            f"the {who}'s classifier {name!r} is a {type(linear).__name__}", hint="simkd reuses an nn.Linear"
        )
    place = placement(model)
    example = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0)).to(**place)
    with evaluating(model), tapped(model, (pool + INPUT, name + INPUT)) as taps:
        model(example)
    last, given = taps.get(pool + INPUT), taps.get(name + INPUT)
    if last is None or given is None or last.dim() != 4 or given.dim() != 2 or not _mean_of(last, given):
        raise ModelError(
            f"the {who}'s classifier {name!r} isn't given the average of what goes into {pool!r}",
            hint="simkd needs nets that end in an average pool and one linear layer; name both",
        )
    return _Ending(last, name, linear)


def _mean_of(last: Tensor, given: Tensor) -> bool:
    mean = last.float().mean(dim=(2, 3))
    return mean.shape == given.shape and torch.allclose(
        mean, given.float(), rtol=1e-3, atol=1e-3 * float(mean.abs().max())
    )


def _named(model: nn.Module, name: str, who: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in modules:
        raise ModelError(f"the {who} has no layer {name!r}", hint=near(name, modules))
    return modules[name]
