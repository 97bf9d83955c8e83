"""Offline distillation: a frozen teacher (or several), a student, labels, and any of the losses on the same view.

    L = w_ce * CE(z_s, y) + sum over losses of weight * loss(student, teacher)

Hinton, Vinyals, Dean, arXiv 1503.02531. Several teachers: their answers are averaged, features come from the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from edgewise.compress.config import Fit, Lessons, Offline
from edgewise.compress.lesson import Lesson, label_loss
from edgewise.compress.losses import LossConfig
from edgewise.compress.losses.base import Batch
from edgewise.compress.macs import evaluating, placement
from edgewise.compress.schedule import value_at
from edgewise.compress.signals import Signals, combined, each_answer
from edgewise.compress.taps import tapped
from edgewise.compress.train import Epoch, Running, fit, placed
from edgewise.errors import ModelError
from edgewise.models.inputs import Shape, blank, trimmed
from edgewise.models.tasks.base import Split, TextSplit, shape_of
from edgewise.models.tasks.config import Augment

if TYPE_CHECKING:
    from edgewise.compress.cache import TeacherCache

Answer = tuple[Tensor, Mapping[str, Tensor]]
"""Logits (N, K) and the tapped features by layer."""

OpenCache = Callable[[int, Mapping[str, tuple[int, ...]]], "TeacherCache | None"]
"""``(place of the teacher, shapes of its tapped layers) -> its cache``, or None to ask it live."""

NO_GRADIENT = 1e-6
"""A gradient so much shorter than cross-entropy's is none: it is float32's rounding."""

KEPT = "teacher_right"
"""Not a term to learn from: the part of the samples that the teachers together get right, logged beside them."""


class Taught(Lesson):
    """A student with its labels and its teachers' signals."""

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        signals: Signals,
        config: Lessons,
        *,
        label_smoothing: float,
        features: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        caches: Sequence[TeacherCache | None],
        reads: Sequence[TextSplit | None] = (),
    ) -> None:
        super().__init__(student)
        self.signals = signals
        self.config = config
        self.label_smoothing = label_smoothing
        self.teachers, self.features, self.caches = tuple(teachers), features, tuple(caches)
        self.reads = tuple(reads) or (None,) * len(self.teachers)
        self.mean, self.shares = _mean(config, len(teachers))
        # What "balance" measured at the first batch; NaN until then. A buffer, so that a resumed run keeps it.
        self.register_buffer("scales", torch.full((len(signals.losses),), math.nan))
        self.scales: Tensor

    def weights(self, epoch: float, epochs: float) -> dict[str, float]:
        """The recipe's, with the labels alone at first where it says so."""
        alone = epoch < self.config.label_only_epochs
        found = {
            name: 0.0 if alone else value_at(loss.weight, epoch, epochs) for name, loss in self.signals.losses.items()
        }
        labels = 1.0 if alone else value_at(self.config.cross_entropy, epoch, epochs)
        if self.config.balance == "gradient":
            scales = zip(found, self.scales.tolist(), strict=True)
            found |= {name: found[name] * scale for name, scale in scales if math.isfinite(scale)}
        return {**found, "cross_entropy": labels, KEPT: 0.0}

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """One term a loss with a weight at this time, and the labels'."""
        weights = self.weights(batch.epoch, batch.epochs)
        active = [name for name in self.signals.losses if weights[name] > 0]
        # Teachers first: behind the student's activations, their memory would go back to the system at every step.
        answers = [self._ask(place, batch) for place in range(len(self.teachers))] if active else []
        logits = self.model(batch.inputs)
        terms: dict[str, Tensor] = {}
        if active:
            for answer, _ in answers:
                check_classes(logits, answer)
            taught = [answer for answer, _ in answers]
            terms = self.signals(
                (logits, self.features[0]),
                (taught, answers[0][1]),
                batch,
                active=active,
                wrong=self.config.teacher_wrong,
                mean=self.mean,
                shares=self.shares,
            )
            if self.config.teacher_wrong != "none":
                flat, known = each_answer(taught, batch)
                together = combined(flat, self.mean, self.shares, 1.0)
                terms[KEPT] = (together.argmax(dim=1) == known.targets).float().mean()
        if weights["cross_entropy"] > 0:
            terms["cross_entropy"] = label_loss(logits, batch, self.label_smoothing)
        elif not terms:  # nothing has a weight at this time
            terms["cross_entropy"] = logits.float().sum() * 0.0
        if self.config.balance == "gradient" and self.training:
            self._measure(terms)
        return terms

    def _ask(self, place: int, batch: Batch) -> Answer:
        """A teacher's answers to the batch, read from its cache where they are there."""
        teacher, cache = self.teachers[place], self.caches[place]
        layers = self.signals.teacher_layers if place == 0 else ()
        rows = batch.index.cpu().numpy() if cache is not None else np.empty(0, np.int64)
        length = None if batch.mask is None else batch.mask.shape[1]
        if cache is not None and (held := cache.get(batch.view, rows, length)) is not None:
            return _placed(held, layers, batch.inputs.device)
        if next(teacher.parameters(), batch.inputs).device != batch.inputs.device:
            teacher.to(batch.inputs.device)
        with torch.no_grad():
            logits = teacher(self._shown(place, batch))
        features = {name: self.features[1][name] for name in layers}
        if cache is not None:
            kept = cache.put(batch.view, rows, logits.float(), tuple(feature.float() for feature in features.values()))
            return _placed(kept, layers, logits.device)
        return logits, features

    def _shown(self, place: int, batch: Batch) -> Tensor:
        """What a teacher sees of the batch: the same, or the same texts as its own tokenizer reads them."""
        own = self.reads[place]
        if own is None:
            return batch.inputs
        return placed(trimmed(own.read(batch.index.cpu().numpy()), own.padding), batch.inputs.device)

    def _measure(self, terms: Mapping[str, Tensor]) -> None:
        """The scale of each loss that came for the first time: its gradient in the student against cross-entropy's."""
        for place, name in enumerate(self.signals.losses):
            if name in terms and torch.isnan(self.scales[place]):
                ours, labels = (self._gradient_norm(terms[n]) for n in (name, "cross_entropy"))
                # A batch that the teacher knew nothing of has only rounding errors to measure: the next has more.
                if ours > NO_GRADIENT * labels:
                    self.scales[place] = labels / ours

    def _gradient_norm(self, term: Tensor) -> float:
        """The same in every process."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Scaled, so that half precision has something to hold on to; the ratio of two norms stays.
        found = torch.autograd.grad(term * 1024, parameters, retain_graph=True, allow_unused=True)
        squares = [gradient.float().pow(2).sum() for gradient in found if gradient is not None]
        square = torch.stack(squares).sum() if squares else term.detach().float() * 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(square)
        return math.sqrt(float(square))


def distill(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    split: Split,
    config: Lessons,
    *,
    run: Fit | None = None,
    open_cache: OpenCache | None = None,
    tell: Callable[[str], None] | None = None,
    reads: Sequence[TextSplit | None] = (),
    **running: Unpack[Running],
) -> list[Epoch]:
    """Train ``student`` in place. Teachers are put in evaluation mode and get no gradient. ``tell`` is told what was
    found out on the way: which layers were paired, what "balance" measured.

    ``run`` is the training run where ``config`` has none of its own called ``fit``. ``reads``: for each teacher the
    samples of ``split`` as its own tokenizer reads them, None where it reads what the student reads.

    Raises:
        ModelError: a tapped layer is missing, a loss can't be computed, student and teacher answer with different
            shapes, or a teacher with another tokenizer can't be held against the student.
    """
    teachers = (teacher,) if isinstance(teacher, nn.Module) else tuple(teacher)
    run = run or getattr(config, "fit", None) or Fit()
    if any(one is student for one in teachers):
        raise ModelError("the student is the teacher itself: evaluation mode would freeze it", hint="pass a copy")
    freeze(teachers, student)
    torch.manual_seed(running["seed"])  # adapters start at random
    shape = shape_of(split)
    if any(own is not None for own in reads):
        check_answers_alone(config.losses if reads[0] is not None else ())
        _check_texts_alone(student, shape, running.get("augment"))
    signals = Signals(config.losses, student, teachers[0], input_shape=shape, samples=len(split.ids))
    wanted = [signals.teacher_shapes, *({} for _ in teachers[1:])]
    caches = [open_cache(place, shapes) if open_cache else None for place, shapes in enumerate(wanted)]
    with ExitStack() as stack:
        ours = stack.enter_context(tapped(student, signals.student_layers))
        theirs = stack.enter_context(tapped(teachers[0], signals.teacher_layers))
        lesson = Taught(
            student,
            teachers,
            signals,
            config,
            label_smoothing=run.label_smoothing,
            features=(ours, theirs),
            caches=caches,
            reads=reads,
        )
        history = fit(lesson, split, run, **running)
    if tell is not None:
        for line in signals.in_words():
            tell(line)
        if config.balance == "gradient":
            scales = zip(signals.losses, lesson.scales.tolist(), strict=True)
            tell("balanced: " + ", ".join(f"{name} times {scale:.3g}" for name, scale in scales))
    return history


def freeze(teachers: Sequence[nn.Module], student: nn.Module) -> None:
    """Evaluation mode and no gradients, beside the student."""
    device = next(student.parameters()).device
    for teacher in teachers:
        teacher.eval().requires_grad_(False)
        teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_answers_alone(losses: Sequence[LossConfig]) -> None:
    """A teacher with another tokenizer can be asked what it thinks of a text, not of a token.

    Raises:
        ModelError: a loss reads its layers.
    """
    reading = [loss.kind for loss in losses if loss.wanted_layers() is not None]
    if reading:
        raise _other_tokens(f"its tokens are others, so its layers can't be followed by {', '.join(reading)}")


def _check_texts_alone(student: nn.Module, shape: Shape, augment: Augment | None) -> None:
    """The same of the answers themselves, and of ids that were changed."""
    if augment is not None and augment.draws:
        raise _other_tokens("the task's augmentation changes token ids, which that tokenizer doesn't know")
    with evaluating(student):
        answer = student(torch.from_numpy(blank(shape, 1)).to(placement(student)["device"]))
    if answer.dim() == 3:
        raise _other_tokens("its tokens are others, so its answers to each can't be followed")


def _other_tokens(reason: str) -> ModelError:
    return ModelError(
        f"the teacher reads texts with another tokenizer: {reason}",
        where="teacher.tokenizer",
        hint="learn from answers to whole texts (kd, logit_mse), or take a teacher with the task's tokenizer",
    )


def check_classes(student: Tensor, teacher: Tensor) -> None:
    """Both nets must answer alike.

    Raises:
        ModelError: the logits' shapes differ.
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f"the student answers {tuple(student.shape)}, the teacher {tuple(teacher.shape)}",
            hint="both must know the same classes",
        )


def _placed(held: tuple[Tensor, tuple[Tensor, ...]], layers: Sequence[str], device: torch.device) -> Answer:
    """A cache's answer as the teacher gives it."""
    logits, features = held
    return logits.to(device), {name: feature.to(device) for name, feature in zip(layers, features, strict=True)}


def _mean(config: Lessons, teachers: int) -> tuple[str, tuple[float, ...]]:
    """How answers are averaged, and the share of each teacher."""
    ensemble = config.ensemble if isinstance(config, Offline) else None
    weights = ensemble.weights if ensemble and ensemble.weights else (1.0,) * teachers
    if len(weights) != teachers:
        raise ModelError(f"{len(weights)} weights for {teachers} teachers", where="ensemble.weights")
    return (ensemble.mean if ensemble else "probabilities"), tuple(weight / sum(weights) for weight in weights)
