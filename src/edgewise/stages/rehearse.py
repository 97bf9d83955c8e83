"""What can be known before anything is made: whether there is something to validate on, whether every name means a
layer, goals are within reach, and every loss can be computed. Nets are built with random weights and shown noise: no
sample is read."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.compress.config import (
    Assistant,
    BornAgain,
    DropBlocks,
    EmaTeacher,
    Inherit,
    Lessons,
    Mutual,
    Offline,
    Prune,
    PruneVocabulary,
    Quantize,
    SelfDistill,
)
from edgewise.compress.losses import Custom
from edgewise.errors import EdgewiseError, RecipeError
from edgewise.models.config import ModelConfig
from edgewise.models.inputs import Shape, blank, drawn, is_text
from edgewise.models.tasks.base import Task, TextSplit, shape_of
from edgewise.profiles import DEFAULT_ROUND_TO
from edgewise.recipe import Recipe
from edgewise.stages.suits import check_data, company
from edgewise.stages.words import check_answers, check_reads, check_taught, kept_anyway

if TYPE_CHECKING:
    from torch import nn

    from edgewise.compress.signals import Signals


def rehearse(recipe: Recipe, task: Task) -> None:
    """Tell of mistakes that training would only find hours later.

    Raises:
        RecipeError: early stopping without a validation split, or mixed samples for what needs one label.
        EdgewiseError: a model can't be built, a loss's layer is not there, or the user's loss can't be imported.
    """
    check_data(recipe, task)
    import torch

    with torch.random.fork_rng(devices=[]):
        _check_layers(recipe, task)


def _check_layers(recipe: Recipe, task: Task) -> None:
    """Walk through the stages as the plan does. Pruning changes no layer's name, so it is left out, but what is
    inherited hangs on sizes, and so do a goal and floors after another pruning; the layers of a quantized net are not
    known without quantizing. Which blocks are dropped hangs on weights, unless the recipe names them; whether so many
    can be, does not."""
    from edgewise.compress.pruning.blocks import drop_blocks
    from edgewise.compress.pruning.order import check_floors
    from edgewise.compress.pruning.order import named as named_layers
    from edgewise.compress.pruning.prune import check_goal
    from edgewise.compress.quantization.float_layers import resolve_float_layers
    from edgewise.compress.signals import Signals
    from edgewise.compress.strategies.exits import exit_layers
    from edgewise.compress.strategies.inherit import inherit as take_over
    from edgewise.compress.strategies.offline import check_answers_alone
    from edgewise.compress.vocabulary import prune_vocabulary
    from edgewise.models import factory
    from edgewise.models.build import build

    def built(config: ModelConfig, own: Path | None = None) -> nn.Module:
        split = task.splits["train"] if own is None else _texts(task).encoded(own)
        net = build(config, task.input_shape if own is None else shape_of(split), len(task.classes))
        if isinstance(split, TextSplit):
            check_reads(config, net, split.padding, own or getattr(recipe.task, "tokenizer", None))
            check_answers(config, net, task, shape_of(split))
        return net

    samples = len(task.splits["train"].ids)
    own = recipe.teacher.tokenizer
    with _at("teacher"):
        teacher = built(recipe.teacher.model, own)
        check_taught(recipe.teacher, teacher)
    with _at("student" if recipe.student else "teacher"):
        model = built((recipe.student or recipe.teacher).model)
    if is_text(task.input_shape):
        for where, source in company(recipe).items():
            with _at(where):
                check_taught(source, built(source.model, source.tokenizer))
    for place, stage in enumerate(recipe.stages):
        smaller = any(isinstance(before, Prune | DropBlocks) for before in recipe.stages[:place])
        trains = not isinstance(stage, Prune) or stage.fit is not None
        losses: tuple[Any, ...] = stage.losses if isinstance(stage, Lessons) and trains else ()
        with _at(f"stages[{place}] ({stage.kind})"):
            for loss in losses:
                if isinstance(loss, Custom):
                    factory.resolve(loss.loss, error=RecipeError)
            if isinstance(stage, Inherit) and not any(isinstance(before, Prune) for before in recipe.stages[:place]):
                take_over(model, teacher, stage)
            if isinstance(stage, Prune):
                named_layers(model, stage.ignore, "ignore")
                check_floors(model, stage)
                if not smaller:
                    check_goal(model, stage, task.input_shape, stage.round_to or DEFAULT_ROUND_TO)
            if isinstance(stage, DropBlocks):
                pruned = any(isinstance(before, Prune) for before in recipe.stages[:place])
                loser = model if stage.names else copy.deepcopy(model)
                drop_blocks(loser, _known_goal(stage, pruned), task.input_shape, seed=0)
            if isinstance(stage, PruneVocabulary):
                special, unknown = kept_anyway(recipe.task, task, stage)
                few = np.zeros(task.input_shape[1], np.int64)  # which words are used doesn't matter here
                prune_vocabulary(model, few, at_least=1, special=special, unknown=unknown)
            if isinstance(stage, Quantize):
                resolve_float_layers(model, stage.float_layers, task.input_shape)
            if isinstance(stage, SelfDistill):
                exit_layers(model, stage.layers, task.input_shape)
            learns = built(stage.model) if isinstance(stage, Assistant) else model
            itself = isinstance(stage, Quantize) and stage.teacher == "self"
            # Its own teacher is a copy: features of one net can't be both sides of a loss.
            pairs = [(learns, copy.deepcopy(model) if isinstance(stage, BornAgain | EmaTeacher) else teacher)]
            if isinstance(stage, Mutual):
                pairs = list(permutations([model, *map(built, stage.peers)], 2))
            for ours, theirs in pairs if losses and not itself else ():
                for loss in losses if isinstance(stage, Offline) else ():
                    loss.edit(ours, theirs, task.input_shape)
                other = None
                if theirs is teacher and own is not None:
                    check_answers_alone(losses)
                    other = shape_of(_texts(task).encoded(own))
                signals = Signals(losses, ours, theirs, input_shape=task.input_shape, samples=samples)
                _call_once(signals, ours, theirs, task, stage, other)
            if isinstance(stage, Assistant):
                teacher, own = learns, None
    _check_dynamic(recipe, model, task)


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Errors say that they are about this part of the recipe."""
    try:
        yield
    except EdgewiseError as error:
        where += f", {error.where}" if error.where else ""
        raise type(error)(error.message, where=where, hint=error.hint) from error


def _check_dynamic(recipe: Recipe, model: nn.Module, task: Task) -> None:
    """OpenVINO finds no scales as it runs for convolutions, nor for matrix products of one row, as a CNN's last."""
    import torch

    from edgewise.compress.macs import evaluating
    from edgewise.compress.quantization.float_layers import weighted_layers

    asked = [target.runtime == "openvino" and "int8_dynamic" in target.precisions for target in recipe.deploy.targets]
    if not any(asked):
        return
    modules, rows = dict(model.named_modules()), []
    plain = [modules[name] for name in weighted_layers(model, task.input_shape)]
    if not all(isinstance(layer, torch.nn.Linear | torch.nn.modules.conv._ConvNd) for layer in plain):
        return
    for layer in plain:
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].numel() // args[0].shape[-1]))
    with evaluating(model):
        model(torch.from_numpy(blank(task.input_shape, 1)))
    if max(rows, default=1) == 1:
        raise RecipeError(
            "OpenVINO quantizes the inputs of matrix products of more than one row as it runs, and this net has none: "
            "its file would compute in float",
            where=f"deploy.targets[{asked.index(True)}].precisions: int8_dynamic",
            hint="take int8, or int8_weights for size alone",
        )


def _texts(task: Task) -> TextSplit:
    split = task.splits["train"]
    if not isinstance(split, TextSplit):
        raise RecipeError("a tokenizer for a task that has no texts", where="teacher.tokenizer", hint="leave it out")
    return split


def _known_goal(stage: DropBlocks, pruned: bool) -> DropBlocks:
    """What needs no trained weights to be tried: which part of the MACs the blocks hold is another after pruning."""
    if stage.names is not None:
        return stage
    if stage.macs_ratio is not None and not pruned:
        return DropBlocks(kind="drop_blocks", macs_ratio=stage.macs_ratio, criterion="last")
    return DropBlocks(kind="drop_blocks", count=stage.count or 1, criterion="last")


def _call_once(
    signals: Signals, student: nn.Module, teacher: nn.Module, task: Task, stage: Any, other: Shape | None
) -> None:
    """Every loss on a few samples of noise: one that can't be computed is told now. ``other``: what the teacher's
    samples look like, where they are not the student's."""
    import torch

    from edgewise.compress.losses.base import Batch
    from edgewise.compress.strategies.offline import check_classes
    from edgewise.compress.taps import tapped

    index = torch.arange(min(stage.fit.batch_size, len(task.splits["train"].ids), 32))
    inputs = torch.from_numpy(drawn(task.input_shape, len(index), seed=0))
    targets = index % len(task.classes) if task.kind != "regress" else torch.rand(len(index))
    targets = targets[:, None].expand(inputs.shape).contiguous() if task.kind == "tag" else targets
    mask = inputs != _texts(task).padding if is_text(task.input_shape) else None
    with tapped(student, signals.student_layers) as ours, tapped(teacher, signals.teacher_layers) as theirs:
        logits = student.eval()(inputs)
        with torch.no_grad():
            answers = teacher.eval()(inputs if other is None else torch.from_numpy(drawn(other, len(index), seed=0)))
        check_classes(logits, answers)
        batch = Batch(inputs, targets, index, mask=mask)
        terms = signals((logits, ours), ([answers], theirs), batch, active=list(signals.losses))
    for name, term in terms.items():
        loss = signals.losses[name]
        if isinstance(loss, Custom) and not torch.isfinite(term):
            raise RecipeError(
                f"it gives {float(term)} for untrained nets",
                where=loss.loss,
                hint="look for a division or logarithm of 0",
            )
