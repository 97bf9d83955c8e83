"""A teacher that changes while the student learns: trained alongside it, or the running average of the student.

online:       the teacher learns the labels in the same steps, and the student follows the teacher of the moment
ema_teacher:  theta_t <- m * theta_t + (1 - m) * theta_s after every step       Tarvainen, Valpola, arXiv 1703.01780
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from edgewise.compress.config import EmaTeacher, Lessons, Online
from edgewise.compress.lesson import label_loss
from edgewise.compress.losses.base import Batch
from edgewise.compress.schedule import value_at
from edgewise.compress.signals import Signals
from edgewise.compress.strategies.offline import Answer, Taught
from edgewise.compress.taps import tapped
from edgewise.compress.train import Epoch, Running, fit
from edgewise.errors import ModelError
from edgewise.models.tasks.base import Split, shape_of

TEACHER = "teacher: cross_entropy"


class Alongside(Taught):
    """Student and teacher, both learning; no gradient goes from one to the other."""

    config: Online

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        signals: Signals,
        config: Online,
        *,
        label_smoothing: float,
        features: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    ) -> None:
        super().__init__(
            student, (teacher,), signals, config, label_smoothing=label_smoothing, features=features, caches=(None,)
        )
        self.teacher = teacher  # as a part of the lesson it is trained and checkpointed
        self._answer: Tensor | None = None

    def weights(self, epoch: float, epochs: float) -> dict[str, float]:
        """The student's, and the teacher's labels."""
        return {**super().weights(epoch, epochs), TEACHER: value_at(self.config.teacher_cross_entropy, epoch, epochs)}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The student's terms, and the teacher's own."""
        self._answer = self.teacher(batch.inputs)
        return {**super().terms(batch), TEACHER: label_loss(self._answer, batch, self.label_smoothing)}

    def _ask(self, place: int, batch: Batch) -> Answer:
        assert self._answer is not None
        features = {name: self.features[1][name].detach() for name in self.signals.teacher_layers}
        return self._answer.detach(), features


class Trailing(Taught):
    """A student and the running average of its weights, which teaches it."""

    config: EmaTeacher

    def __init__(
        self,
        student: nn.Module,
        average: nn.Module,
        signals: Signals,
        config: EmaTeacher,
        *,
        label_smoothing: float,
        features: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    ) -> None:
        super().__init__(
            student, (average,), signals, config, label_smoothing=label_smoothing, features=features, caches=(None,)
        )
        self.average = average
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor

    def train(self, mode: bool = True) -> Trailing:
        """The average stays in evaluation mode."""
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def after_step(self) -> None:
        """The average follows; early on it follows faster, so that random weights are soon forgotten."""
        self.steps += 1
        step = int(self.steps)
        decay = min(self.config.decay, step / (step + 9))
        for theirs, ours in zip(self.average.parameters(), self.model.parameters(), strict=True):
            theirs.lerp_(ours, 1 - decay)
        for kept, now in zip(self.average.buffers(), self.model.buffers(), strict=True):
            if self.config.buffers == "average" and now.is_floating_point():
                kept.lerp_(now, 1 - decay)
            else:
                kept.copy_(now)


def learn_online(
    student: nn.Module,
    teacher: nn.Module,
    split: Split,
    config: Online,
    **running: Unpack[Running],
) -> list[Epoch]:
    """Train ``student`` and ``teacher`` in place, in the same steps.

    Raises:
        ModelError: both are the same module, or a loss can't be computed.
    """
    if student is teacher:
        raise ModelError("the student is the teacher itself", hint="pass a copy")
    teacher.requires_grad_(True)
    return _learn(Alongside, student, teacher, split, config, **running)


def learn_from_average(
    student: nn.Module,
    split: Split,
    config: EmaTeacher,
    **running: Unpack[Running],
) -> list[Epoch]:
    """Train ``student`` in place, taught by the running average of itself.

    Raises:
        ModelError: a loss can't be computed.
    """
    average = copy.deepcopy(student).eval().requires_grad_(False)
    return _learn(Trailing, student, average, split, config, **running)


def _learn(
    kind: type[Alongside] | type[Trailing],
    student: nn.Module,
    teacher: nn.Module,
    split: Split,
    config: Lessons,
    **running: Unpack[Running],
) -> list[Epoch]:
    assert isinstance(config, Online | EmaTeacher)
    torch.manual_seed(running["seed"])  # adapters start at random
    shape = shape_of(split)
    signals = Signals(config.losses, student, teacher, input_shape=shape, samples=len(split.ids))
    with ExitStack() as stack:
        ours = stack.enter_context(tapped(student, signals.student_layers))
        theirs = stack.enter_context(tapped(teacher, signals.teacher_layers))
        lesson = kind(
            student,
            teacher,
            signals,
            config,  # type: ignore[arg-type]  # each kind of lesson comes with its own config
            label_smoothing=config.fit.label_smoothing,
            features=(ours, theirs),
        )
        return fit(lesson, split, config.fit, **running)
