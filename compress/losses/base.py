"""What every loss sees, and what every loss is: the two nets' outputs, the batch, and a frozen config that is called.

Torch is imported for types only, or inside functions, so that a recipe is validated without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from edgewise.compress.schedule import Value, value_at
from edgewise.config import Config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgewise.compress.saved import Edit


@dataclass(frozen=True)
class Batch:
    """One training step's samples.

    ``inputs`` (N, C, H, W), or token ids (N, L); ``targets`` (N,), or (N, L) where each token has one; ``index`` (N,):
    positions in the training split. Where samples are mixed (mixup, cutmix), ``partners`` (N,) is the other label and
    ``share`` (N,) the part of ``targets``. Where inputs are padded sequences, ``mask`` (N, L) is 1 at real tokens and 0
    at padding; None: all are real. ``epoch`` counts with its fraction, up to ``epochs``; ``view`` numbers the augmented
    view, which the seed can replay.
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor
    partners: Tensor | None = None
    share: Tensor | None = None
    mask: Tensor | None = None
    epoch: float = 0.0
    epochs: float = 1.0
    view: int = 0

    def at(self, value: Value) -> float:
        """A scheduled number, now."""
        return value_at(value, self.epoch, self.epochs)


@dataclass(frozen=True)
class Outputs:
    """``logits`` (N, K) and the ``features`` of the layers that a loss asked for, in its order: of student and
    teacher, the ones at the same place belong together. Nets that answer for each token: a loss without layers gets
    the tokens that have a label as its N samples, one with layers (N, L, K)."""

    logits: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """What a loss may know before the first step, from a dry run: the shapes of the paired features without N, the
    number of classes, the number of training samples; ``heads``: the teacher's attention heads, by layer name."""

    student: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[int, ...], ...]
    classes: int
    samples: int
    heads: Mapping[str, int] = field(default_factory=dict)


class Pair(Config):
    """A layer of the student and the layer of the teacher it learns from, by module name. ``name:input`` is what goes
    into a module instead of what comes out; ``embedding`` is what goes into the classifier."""

    student: str
    teacher: str


class LayerMap(Config):
    """Layers of two nets of different depth: student layer m of M learns from teacher layer g(m) of N."""

    map: Literal["uniform", "last", "first"] = Field(
        "uniform", description="g(m) = m N / M (rounded), the last M, or the first M"
    )
    student: str = Field(description="layer names with * for a number, such as blocks.*")
    teacher: str


def json_type(value: Any) -> str | None:
    """What tells the members of a union of text, list and mapping apart, so that a mistake is told of one of them."""
    if isinstance(value, str):
        return "string"
    if isinstance(value, list | tuple):
        return "array"
    return "object" if isinstance(value, dict | Config) else None


_Named = Annotated[Annotated[str, Tag("string")] | Annotated[Pair, Tag("object")], Discriminator(json_type)]
Layers = Annotated[
    Annotated[Literal["auto", "last", "embedding"], Tag("string")]
    | Annotated[tuple[_Named, ...], Field(min_length=1), Tag("array")]
    | Annotated[LayerMap, Tag("object")],
    Discriminator(json_type),
]
"""``auto``: the last layer of each map size that both nets have; ``last``: only the deepest of those; ``embedding``:
what goes into the classifier; or names: one where both nets use the same, a pair where they don't; or a map."""


class Loss(Config):
    """The base of every loss's config. A loss with layers has a field ``layers``; one that learns has a ``learner``."""

    # Softmax over two classes has one degree of freedom: some methods have nothing left to say.
    least_classes: ClassVar[int] = 2
    # False where the logits are read as they are, and not as probabilities.
    softens: ClassVar[bool] = True
    # False where the logits are no answers about one class: whether the teacher is wrong has no meaning then.
    about_classes: ClassVar[bool] = True
    # True where the loss reads the labels, so that mixed or unlabelled samples are refused.
    needs_labels: ClassVar[bool] = False
    # True where the loss reads the batch's mask, so that padded tokens may be among its features.
    reads_mask: ClassVar[bool] = False

    kind: str
    weight: Value = 1.0

    def allows_masking(self) -> bool:
        """True where classes may be left out by setting their logits to a large negative number."""
        return self.about_classes

    def wanted_layers(self) -> Layers | None:
        """The layers whose outputs the loss compares; None: the logits are enough."""
        layers: Layers | None = getattr(self, "layers", None)
        return layers

    def learner(self, sizes: Sizes) -> nn.Module | None:
        """What the loss learns beside the student (adapters, memories): trained, checkpointed, left out at export."""
        return None

    def edit(self, student: nn.Module, teacher: nn.Module, input_shape: tuple[int, int, int]) -> Edit | None:
        """What the loss changes in the student for good, before training; None: nothing."""
        return None

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The unweighted loss, a scalar in float32."""
        raise TypeError(f"{self.kind} does not say how it is computed")


class LogitLoss(Loss):
    """The base of losses between logits."""

    # True where the logits are only read through a softmax.
    through_softmax: ClassVar[bool] = True

    standardize: bool = Field(
        False,
        description="z-score each row of logits first, the student's and the teacher's (arXiv 2403.01427); "
        "3 classes or more",
    )

    def allows_masking(self) -> bool:
        """Not where a mean over classes is taken."""
        return self.through_softmax and not self.standardize

    def logits(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Both nets' logits in float32, standardized if asked for.

        Raises:
            ValueError: the shapes differ, or there are too few classes.
        """
        ours, theirs = same_shape(student.logits, teacher.logits)
        least = max(self.least_classes, 3 if self.standardize else 2)
        if ours.shape[-1] < least:
            what = f"{self.kind} with standardize" if self.standardize else self.kind
            other = "use kd or logit_mse" if ours.shape[-1] == 2 else "use the loss regression, or multi_label"
            if ours.shape[-1] >= max(self.least_classes, 2):
                other = "leave standardize out"
            raise ValueError(f"{what} needs at least {least} classes, got {ours.shape[-1]}; {other}")
        return (standardized(ours), standardized(theirs)) if self.standardize else (ours, theirs)


class FeatureLoss(Loss):
    """The base of losses between features of the same place, which need the same shape: maps are pooled to the smaller
    of the two, tokens become maps or maps tokens, and where channels differ the student gets a learnt projection."""

    # True where BatchNorm follows the projection.
    norm: ClassVar[bool] = False

    layers: Annotated[Layers, Field(description="which layers teach which: auto, last, embedding, names, or a map")] = (
        "auto"
    )
    project: Literal["where_needed", "always"] = Field(
        "where_needed", description="a learnt projection of the student's channels (1x1 convolution, or linear)"
    )

    def learner(self, sizes: Sizes) -> nn.Module:
        """One alignment for each pair of layers."""
        from torch.nn import ModuleList

        from edgewise.compress.adapters import Align

        always = self.project == "always"
        pairs = zip(sizes.student, sizes.teacher, strict=True)
        return ModuleList(Align(*pair, always=always, norm=self.norm) for pair in pairs)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learner: nn.Module | None) -> Tensor:
        """The mean over the pairs of layers."""
        from torch import stack

        return stack([self.between(*pair) for pair in self.aligned(student, teacher, learner)]).mean()

    def aligned(self, student: Outputs, teacher: Outputs, learner: nn.Module | None) -> list[tuple[Tensor, Tensor]]:
        """The features of each pair of layers in one shape."""
        from torch.nn import ModuleList

        assert isinstance(learner, ModuleList)
        pairs = zip(learner, student.features, teacher.features, strict=True)
        return [align(ours, theirs) for align, ours, theirs in pairs]

    def between(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss between two aligned features of one shape: (N, C, H, W), (N, L, D) or (N, D)."""
        raise TypeError(f"{self.kind} does not say how it is computed")


def same_shape(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, the teacher cut from the graph.

    Raises:
        ValueError: the two shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape")
    return student.float(), teacher.detach().float()


def class_labels(target: Tensor, logits: Tensor) -> Tensor:
    """``target`` (N,) as class numbers for ``logits`` (N, K).

    Raises:
        ValueError: not one whole number a sample, or out of range.
    """
    if target.shape != logits.shape[:1] or target.is_floating_point():
        raise ValueError(
            f"needs one class number a sample, ({len(logits)},) whole numbers, got {tuple(target.shape)} of "
            f"{target.dtype}; without labels use kd or dist"
        )
    # On an accelerator a look at the values would wait for it, and indexing checks them there.
    if target.device.type == "cpu" and bool(((target < 0) | (target >= logits.shape[-1])).any()):
        raise ValueError(
            f"labels must lie in 0..{logits.shape[-1] - 1}, got {int(target.min())}..{int(target.max())}; "
            "without labels use kd or dist"
        )
    return target.long()


def standardized(logits: Tensor) -> Tensor:
    """(N, K) -> each row with mean 0 and (unbiased) standard deviation 1, arXiv 2403.01427, equation 9."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    # The authors add 1e-7: a classifier that starts at zero would then get gradients of that inverse.
    return centred / centred.std(dim=-1, keepdim=True).clamp_min(1e-3)
