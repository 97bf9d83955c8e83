"""The losses between one student and one teacher, ready to be computed: layers found, adapters built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgewise.compress.layers import Trace, resolve, sizes, trace
from edgewise.compress.lesson import check_labelled
from edgewise.compress.losses import LossConfig
from edgewise.compress.losses.base import Batch, Loss, Outputs, Pair
from edgewise.errors import EdgewiseError, ModelError
from edgewise.models.inputs import is_text
from edgewise.models.tasks.base import IGNORED, UNLABELLED

MASKED = -1e4
"""A logit that no softmax sees; within float16's range."""


class Signals(nn.Module):
    """``student_layers`` and ``teacher_layers`` are what must be tapped (``teacher_shapes``: the teacher's, without N);
    calling it gives the unweighted terms by name.

    What the losses learn (adapters, memories) is held here, so it is trained and checkpointed with the student, and
    left behind when the student goes.

    Raises:
        ModelError: a layer is missing, a pair of layers doesn't fit its loss, or a loss that knows no padding would
            compare tokens of texts.
    """

    def __init__(
        self,
        losses: Sequence[LossConfig],
        student: nn.Module,
        teacher: nn.Module,
        *,
        input_shape: tuple[int, ...],
        samples: int,
    ) -> None:
        super().__init__()
        self.losses = dict(zip(names(losses), losses, strict=True))
        wanted = {name: loss.wanted_layers() for name, loss in self.losses.items()}
        self.pairs: dict[str, tuple[Pair, ...]] = dict.fromkeys(self.losses, ())
        self.learners = nn.ModuleList(nn.Identity() for _ in losses)  # by place: torch refuses some names
        layered = [(place, name) for place, name in enumerate(self.losses) if wanted[name] is not None]
        ours, theirs = (trace(net, input_shape) if layered else None for net in (student, teacher))
        for place, name in layered:
            assert ours is not None
            assert theirs is not None
            self.pairs[name] = _resolved(name, self.losses[name], ours, theirs)
            if is_text(input_shape):
                _check_padding(name, self.losses[name], self.pairs[name], ours, theirs)
            try:
                learner = self.losses[name].learner(sizes(self.pairs[name], ours, theirs, samples))
            except EdgewiseError as error:
                raise _named(name, error) from error
            except ValueError as error:
                raise ModelError(
                    f"{name} can't be built: {error}", where="losses", hint="change its settings or its layers"
                ) from error
            if learner is not None:
                self.learners[place] = learner
        paired = [pair for pairs in self.pairs.values() for pair in pairs]
        self.student_layers = tuple(dict.fromkeys(pair.student for pair in paired))
        self.teacher_layers = tuple(dict.fromkeys(pair.teacher for pair in paired))
        self.teacher_shapes: dict[str, tuple[int, ...]] = {}
        if ours is not None and theirs is not None:
            known = sizes(tuple(paired), ours, theirs, samples)
            self.teacher_shapes = {pair.teacher: shape for pair, shape in zip(paired, known.teacher, strict=True)}

    def in_words(self) -> list[str]:
        """Which layer follows which, a line for each loss that has layers."""
        return [
            f"{name}: " + ", ".join(f"{pair.student} follows {pair.teacher}" for pair in pairs)
            for name, pairs in self.pairs.items()
            if pairs
        ]

    def forward(
        self,
        student: tuple[Tensor, Mapping[str, Tensor]],
        teacher: tuple[Sequence[Tensor], Mapping[str, Tensor]],
        batch: Batch,
        *,
        active: Sequence[str],
        wrong: str = "none",
        mean: str = "probabilities",
        shares: Sequence[float] = (1.0,),
    ) -> dict[str, Tensor]:
        """Unweighted terms of the ``active`` losses.

        Args:
            student: logits (N, K), or (N, L, K) of tokens, and features by layer.
            teacher: the logits of each teacher, and the features of the first.
            batch: labels and time.
            active: names of the losses to compute.
            wrong: what to do where the teacher errs.
            mean: how several teachers' answers are averaged.
            shares: of each teacher, adding up to 1.
        """
        terms = {}
        (flat, *flat_taught), flat_batch = each_answer((student[0], *teacher[0]), batch)
        for (name, loss), learner in zip(self.losses.items(), self.learners, strict=True):
            if name not in active:
                continue
            pairs = self.pairs[name]
            # A loss that reads no layer needs not know that its samples are tokens.
            logits, taught, seen = (student[0], teacher[0], batch) if pairs else (flat, flat_taught, flat_batch)
            temperature = getattr(loss, "temperature", None)
            softened = 1.0 if temperature is None else batch.at(temperature)
            answers = combined(taught, mean if loss.softens else "logits", shares, softened)
            ours = Outputs(logits, tuple(student[1][pair.student] for pair in pairs))
            theirs = Outputs(answers, tuple(teacher[1][pair.teacher] for pair in pairs))
            ours, theirs, kept = corrected(wrong, ours, theirs, seen)
            if len(kept.targets) == 0:  # the teacher knew none of them
                terms[name] = student[0].float().sum() * 0.0
                continue
            if loss.needs_labels:
                check_labelled(kept.targets, name, "losses")
            if loss.needs_labels and kept.partners is not None:
                raise ModelError(
                    f"{name} needs one label a sample, and mixup or cutmix gives two",
                    where="losses",
                    hint="leave the mixing out, or use a loss that reads no labels, such as kd",
                )
            try:
                term = loss(ours, theirs, kept, None if isinstance(learner, nn.Identity) else learner)
                # Dropped samples weigh nothing; they don't make the others weigh more.
                terms[name] = term if wrong != "drop" else term * (len(kept.targets) / len(seen.targets))
            except EdgewiseError as error:
                raise _named(name, error) from error
            except ValueError as error:  # shapes that don't fit, too few classes
                way = "choose other layers, or another loss" if pairs else "choose another loss, or leave it out"
                raise ModelError(f"{name} can't be computed: {error}", where="losses", hint=way) from error
        return terms


def names(losses: Sequence[LossConfig]) -> list[str]:
    """A name for each loss: its kind, numbered where a kind comes again."""
    kinds = [loss.kind for loss in losses]
    return [
        kind if kinds[:i].count(kind) == 0 else f"{kind}-{kinds[:i].count(kind) + 1}" for i, kind in enumerate(kinds)
    ]


def combined(logits: Sequence[Tensor], mean: str, shares: Sequence[float], temperature: float) -> Tensor:
    """Several teachers' logits (N, ..., K) as one: at ``temperature``, their softmax is the mean of the softmaxes."""
    if len(logits) == 1:
        return logits[0]
    weights = torch.tensor(shares, device=logits[0].device).view(-1, *(1,) * logits[0].dim())
    stacked = torch.stack([answer.float() for answer in logits])
    if mean == "logits":
        return (weights * stacked).sum(0)
    logs = (stacked / temperature).log_softmax(dim=-1) + weights.log()
    return temperature * logs.logsumexp(dim=0)


def each_answer(logits: Sequence[Tensor], batch: Batch) -> tuple[list[Tensor], Batch]:
    """One row for each answer. Logits (N, K) and the batch stay as they are; of logits (N, L, K) the M tokens that have
    a label, or where none is known the real ones, become samples: (M, K), and their batch."""
    if logits[0].dim() != 3:
        return list(logits), batch
    if batch.targets.dim() == 2:
        known = batch.targets != IGNORED
        targets = batch.targets[known]
    else:
        known = torch.ones(logits[0].shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
        targets = batch.targets.new_full((int(known.sum()),), UNLABELLED)
    index = batch.index[:, None].expand(known.shape)[known]
    return [answer[known] for answer in logits], replace(
        batch, inputs=batch.inputs[known], targets=targets, index=index, mask=None
    )


def corrected(wrong: str, student: Outputs, teacher: Outputs, batch: Batch) -> tuple[Outputs, Outputs, Batch]:
    """Both nets' outputs and the batch after the policy for samples that the teacher gets wrong.

    drop: without them (the mean is still over all). swap: the teacher's first answer and the right one change places.
    masked: the classes that the teacher puts above the right one are left out of both nets' answers (after arXiv
    2407.00622, which leaves the right one out too).
    """
    if wrong == "none":
        return student, teacher, batch
    if batch.partners is not None:
        raise ModelError(
            "whether the teacher is wrong is not known of mixed samples",
            where="teacher_wrong",
            hint="leave mixup and cutmix out, or set teacher_wrong: none",
        )
    check_labelled(batch.targets, "teacher_wrong", "teacher_wrong")
    if batch.targets.is_floating_point() or teacher.logits.dim() != 2:
        what = "numbers" if batch.targets.is_floating_point() else "a text whose tokens have an answer each"
        raise ModelError(
            f"whether the teacher is wrong is not known of {what}", where="teacher_wrong", hint="set it to none"
        )
    answers, targets = teacher.logits, batch.targets
    right = answers.gather(1, targets[:, None])
    first = answers.argmax(dim=1)
    if wrong == "drop":
        keep = first == targets
        return _rows(student, keep), _rows(teacher, keep), _batch_rows(batch, keep)
    if wrong == "swap":
        swapped = answers.scatter(1, targets[:, None], answers.gather(1, first[:, None])).scatter(
            1, first[:, None], right
        )
        return student, replace(teacher, logits=swapped), batch
    above = answers > right
    return (
        replace(student, logits=student.logits.masked_fill(above, MASKED)),
        replace(teacher, logits=answers.masked_fill(above, MASKED)),
        batch,
    )


def _rows(outputs: Outputs, keep: Tensor) -> Outputs:
    return Outputs(outputs.logits[keep], tuple(feature[keep] for feature in outputs.features))


def _batch_rows(batch: Batch, keep: Tensor) -> Batch:
    mask = None if batch.mask is None else batch.mask[keep]
    return replace(batch, inputs=batch.inputs[keep], targets=batch.targets[keep], index=batch.index[keep], mask=mask)


def _resolved(name: str, loss: Loss, ours: Trace, theirs: Trace) -> tuple[Pair, ...]:
    layers = loss.wanted_layers()
    if layers is None or layers == ():  # a user's loss between logits alone
        return ()
    try:
        return resolve(layers, ours, theirs)
    except ModelError as error:
        if type(loss).edit is not Loss.edit:
            hint = "call its edit(student, teacher, input_shape) first, as the pipeline does"
            error = ModelError(error.message, where=error.where, hint=hint)
        raise _named(name, error) from error


def _check_padding(name: str, loss: Loss, pairs: tuple[Pair, ...], ours: Trace, theirs: Trace) -> None:
    """Nothing, where padding can't change the loss."""
    if loss.reads_mask or not pairs:
        return
    known = sizes(pairs, ours, theirs, 0)
    for pair, shapes in zip(pairs, zip(known.student, known.teacher, strict=True), strict=True):
        for layer, shape in zip((pair.student, pair.teacher), shapes, strict=True):
            if len(shape) > 1:
                raise ModelError(
                    f"{layer!r} gives {shape} for a text, padding among it, and this loss can't tell tokens from "
                    "padding: a longer batch would change it",
                    where=f"losses: {name}",
                    hint="name layers that give one vector a text, such as embedding; between tokens use "
                    "hidden_states, hidden_cosine, attention_matrices or value_relations",
                )


def _named(name: str, error: EdgewiseError) -> ModelError:
    """``error`` with the loss that it is about; a user's file stays named too."""
    inside = "" if error.where.startswith("losses") else error.where
    return ModelError(error.message, where=f"losses: {name}" + (f" ({inside})" if inside else ""), hint=error.hint)
