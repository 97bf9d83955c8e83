"""The one training loop, on Lightning Fabric: mixed precision, clipping, warm-up, cosine, weight averaging, early
stopping, checkpoints, and data parallelism when started by torchrun. What is learnt is the lesson's business.

Everything random (order of samples, augmentation) is a function of (seed, epoch, sample): a resumed run equals an
uninterrupted one, and W processes with B/W samples each see the samples that one process with B sees. BatchNorm, where
a net has it, takes its statistics over each process's own share.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Required, TypedDict

from edgewise.compress import checkpoint as checkpoints
from edgewise.compress.config import Fit, Sgd
from edgewise.compress.lesson import Labels, Lesson, as_learnt
from edgewise.compress.losses.base import Batch
from edgewise.errors import DataError, ModelError
from edgewise.models.inputs import restored, trimmed
from edgewise.models.tasks.augment import view, view_number
from edgewise.models.tasks.base import Int, Split, TextSplit
from edgewise.models.tasks.config import Augment
from edgewise.progress import Tick, silent

Validate = Callable[[nn.Module], float]
"""The metric of a model on the validation split; higher is better."""


class Running(TypedDict, total=False):
    """What every training run is told beside its lesson, its data and its config; see :func:`fit`."""

    seed: Required[int]
    augment: Augment | None
    checkpoint: Path | None
    validate: Validate | None
    tick: Tick


EXPLODED = 1e6
"""A weighted term beyond this has lost its way: cross-entropy over a million classes starts at 14."""

WINDOW = 50
"""Batches of texts that are sorted by length together: enough to waste little on padding, few enough to stay random."""


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch: ``terms`` weighted, as minimised; ``unweighted``, as their papers define them."""

    epoch: int
    loss: float
    terms: dict[str, float]
    lr: float
    unweighted: dict[str, float] = field(default_factory=dict)
    validation: float | None = None


def labels_only(model: nn.Module, label_smoothing: float = 0.0) -> Lesson:
    """Cross-entropy with the labels."""
    return Labels(model, label_smoothing)


def lr_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Part of the peak learning rate at ``step`` of ``total``: linear warm-up, then constant, a line down to zero, or
    half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def order(samples: int, seed: int, epoch: int, batch: int = 1, lengths: Int | None = None) -> Int:
    """The order in which ``epoch`` visits the samples: (samples,), or where texts have ``lengths`` the whole batches of
    it. Texts of like length then share a batch of ``batch``: windows of the shuffled samples are sorted by length, and
    their batches shuffled."""
    generator = np.random.default_rng([seed, epoch, 1])
    shuffled = generator.permutation(samples)
    if lengths is None:
        return shuffled
    shuffled = shuffled[: samples // batch * batch]  # any may be left out, not always the longest
    windows = [shuffled[start : start + WINDOW * batch] for start in range(0, len(shuffled), WINDOW * batch)]
    batches = [part for one in windows for part in one[np.argsort(lengths[one], kind="stable")].reshape(-1, batch)]
    return np.concatenate([batches[place] for place in generator.permutation(len(batches))])


def _fabric(precision: str) -> Fabric:
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every setting
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Lessons may leave parameters out of a step: a hint trains the layers below it, a peer waits for its turn.
    strategy = DDPStrategy(find_unused_parameters=True) if world > 1 else "auto"
    fabric = Fabric(devices=local, num_nodes=max(1, world // local), strategy=strategy, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def _optimizer(lesson: Lesson, config: Fit) -> torch.optim.Optimizer:
    parameters = [p for p in lesson.parameters() if p.requires_grad]
    o = config.optimizer
    if isinstance(o, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=o.lr,
            momentum=o.momentum,
            nesterov=o.nesterov and o.momentum > 0,
            weight_decay=o.weight_decay,
        )
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if o.decay == "matrices":
        matrices, vectors = ([p for p in parameters if (p.dim() > 1) is wide] for wide in (True, False))
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    # One pass over the memory instead of a dozen, each with a copy: with a table of words that is more than half of a
    # step's time. Half precision scales gradients, which must be undone before they are clipped: not inside the step.
    fused = config.precision != "16-mixed"
    return torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=fused)


def _mean_over_processes(fabric: Fabric, values: dict[str, float]) -> dict[str, float]:
    if fabric.world_size == 1:
        return values
    reduced = fabric.all_reduce(torch.tensor(list(values.values()), dtype=torch.float64), reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(values, reduced.tolist(), strict=True))


@dataclass
class _Kept:
    """Weights beside those being trained: their running average, and the best seen on the validation split."""

    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_value: float = -math.inf

    def follow(self, model: nn.Module, decay: float, step: int) -> None:
        """Move the average towards ``model``; early on it moves faster, so that the start is soon forgotten."""
        now = _floats(model)
        if not self.average:
            self.average = {name: value.clone() for name, value in now.items()}
        decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.average[name] for name in now], list(now.values()), 1 - decay)


def _floats(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items() if value.is_floating_point()}


@contextmanager
def _wearing(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """``model`` with other weights (none: its own) while the block lasts."""
    own = {name: value.clone() for name, value in _floats(model).items()} if weights else {}
    if weights:
        model.load_state_dict(weights, strict=False)
    try:
        yield
    finally:
        if own:
            model.load_state_dict(own, strict=False)


def fit(
    lesson: Lesson,
    split: Split,
    config: Fit,
    *,
    seed: int,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    validate: Validate | None = None,
    tick: Tick = silent,
) -> list[Epoch]:
    """Train ``lesson`` in place on ``split``; continues from ``checkpoint`` where that file is.

    The last incomplete batch of an epoch is left out, so that every step weighs the same. ``validate`` is asked after
    each epoch where ``config.early_stop`` is set; the best epoch's weights are then the ones kept.

    Raises:
        DataError: fewer samples than one batch.
        ModelError: the batch can't be shared by the processes, there is nothing to validate on, or a term, a weight or
            the validation metric is no longer finite; the last checkpoint is then from before.
    """
    fabric = _fabric(config.precision)
    samples, world = len(split.ids), fabric.world_size
    steps = samples // config.batch_size
    if steps == 0:
        raise DataError(
            f"expected at least one batch of {config.batch_size} training samples, got {samples}",
            where="fit.batch_size",
            hint=f"set batch_size to {samples} or less",
        )
    if config.batch_size % world:
        raise ModelError(f"batch_size {config.batch_size} can't be shared by {world} processes", where="fit.batch_size")
    if config.early_stop is not None and validate is None:
        raise ModelError(
            "early stopping needs a validation split, and there is none: the test split is not for choosing",
            where="fit.early_stop",
            hint="set the task's val_size, or leave early_stop out",
        )
    share = config.batch_size // world
    lesson.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(lesson, config)
    peaks = [group["lr"] for group in optimizer.param_groups]
    wrapped, prepared = fabric.setup(lesson, optimizer)
    assert isinstance(prepared, torch.optim.Optimizer)

    history: list[Epoch] = []
    kept = _Kept()
    done, sums = 0, _Sums()
    if checkpoint is not None and checkpoint.exists():
        progress, others = checkpoints.load(checkpoint, lesson, optimizer)
        done, sums = progress["done"], _Sums(**progress["sums"])
        fabric.strategy.precision.load_state_dict(progress["precision"])
        history = [Epoch(**epoch) for epoch in progress["history"]]
        best_value = progress["best_value"]
        average, best = ({n: t.to(fabric.device) for n, t in others[group].items()} for group in ("average", "best"))
        kept = _Kept(average, best, progress["best_epoch"], -math.inf if best_value is None else best_value)

    pending: checkpoints.Captured | None = None
    padding, lengths = (split.padding, split.lengths) if isinstance(split, TextSplit) else (None, None)
    total, warmup = steps * config.epochs, round(config.warmup_epochs * steps)
    augment = augment or Augment()
    while done < total and not _stopped(config, kept, len(history)):
        epoch, start = divmod(done, steps)
        visit = order(samples, seed, epoch, config.batch_size, lengths)
        lesson.train()
        for step in range(start, steps):
            factor = lr_factor(done, total, warmup, config.schedule)
            for group, peak in zip(prepared.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            first = step * config.batch_size + fabric.global_rank * share
            number = view_number(augment, epoch)
            batch = _batch(split, visit[first : first + share], padding, augment, seed, epoch, fabric.device)
            when = (done / steps, float(config.epochs), number)
            # What a step draws (masks, negatives, dropout) hangs on its number alone, so a resumed run draws the same.
            torch.manual_seed(int(np.random.SeedSequence([seed, fabric.global_rank, done]).generate_state(1)[0]))
            for turn in range(lesson.turns):
                lesson.turn = turn
                terms = _terms(fabric, lesson, wrapped, batch, when, sums, f"step {done + 1} of {total}")
                if pending is not None and checkpoint is not None:
                    # Only now: weights that a bad step left behind show in the next loss, and must not be kept.
                    if fabric.is_global_zero:
                        checkpoints.write(checkpoint, pending)
                    fabric.barrier()
                    pending = None
                _descend(fabric, lesson, wrapped, prepared, terms, config)
            if config.ema is not None:
                kept.follow(lesson.model, config.ema, done)
            done += 1
            if done % steps == 0:
                history.append(_closed(fabric, sums, steps, epoch, peaks[0] * factor))
                sums = _Sums()
                if config.early_stop is not None and validate is not None:
                    history[-1] = _validated(fabric, lesson, history[-1], validate, kept, config)
            last = history[-1].loss if history else math.nan
            note = f"loss {sums.loss() / (step + 1):.3f}" if sums.terms else f"loss {last:.3f}"
            tick(done, total, f"epoch {epoch + 1}/{config.epochs} {note}")
            if checkpoint is not None and done < total and (done % config.checkpoint_every == 0 or done % steps == 0):
                state = {
                    "done": done,
                    "sums": asdict(sums),
                    "history": [asdict(e) for e in history],
                    "precision": fabric.strategy.precision.state_dict(),  # what 16-bit training learnt of its scale
                    "best_epoch": kept.best_epoch,
                    "best_value": kept.best_value if math.isfinite(kept.best_value) else None,
                }
                others = {"average": kept.average, "best": kept.best}
                pending = checkpoints.capture(lesson, optimizer, state, others)
    chosen = kept.best if config.early_stop is not None else kept.average
    if chosen:
        lesson.model.load_state_dict(chosen, strict=False)
    broken = [name for name, value in _floats(lesson.model).items() if not torch.isfinite(value).all()]
    if broken:  # the last step has no next loss to show it
        raise ModelError(
            f"{broken[0]} is not finite after the last step",
            where="the model",
            hint="lower optimizer.lr, or set clip_norm",
        )
    lesson.eval()
    return history


@dataclass
class _Sums:
    """Sums of the terms over the epoch so far."""

    terms: dict[str, float] = field(default_factory=dict)
    unweighted: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def loss(self) -> float:
        """The sum of the weighted terms."""
        return sum(self.terms.values())

    def add(self, name: str, value: float, weight: float) -> None:
        """One step's value of one term."""
        self.terms[name] = self.terms.get(name, 0.0) + value * weight
        self.unweighted[name] = self.unweighted.get(name, 0.0) + value
        self.steps[name] = self.steps.get(name, 0) + 1


def _terms(
    fabric: Fabric,
    lesson: Lesson,
    wrapped: nn.Module,
    batch: Batch,
    when: tuple[float, float, int],
    sums: _Sums,
    place: str,
) -> list[Tensor]:
    """The weighted terms of one step, all of them finite."""
    with fabric.autocast():
        try:
            terms = wrapped(batch.inputs, batch.targets, batch.index, batch.partners, batch.share, batch.mask, when)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):  # BatchNorm's words
                raise
            raise ModelError(
                f"the model can't learn from a batch of {len(batch.inputs)} ({error})", hint="set a larger batch_size"
            ) from error
    weights = lesson.weights(when[0], when[1])
    values = torch.stack([term.detach().float() for term in terms.values()]).tolist()  # one wait for a GPU, not many
    for name, value in zip(terms, values, strict=True):
        weight = weights.get(name, 1.0)
        if not math.isfinite(value) or abs(value * weight) > EXPLODED:
            what = "exploded" if math.isfinite(value) else "is no longer finite"
            raise ModelError(
                f"{name} {what} at {place}: {value:.6g}, with weight {weight:g}; the last good checkpoint is kept",
                where="the loss",
                hint="lower optimizer.lr or the term's weight, add warmup_epochs, or set clip_norm",
            )
        sums.add(name, value, weight)
    return [weights.get(name, 1.0) * term.float() for name, term in terms.items()]


def _descend(
    fabric: Fabric,
    lesson: Lesson,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    terms: list[Tensor],
    config: Fit,
) -> None:
    """One step of the optimizer."""
    optimizer.zero_grad()
    fabric.backward(torch.stack(terms).sum())
    if config.clip_norm is not None:
        fabric.clip_gradients(wrapped, optimizer, max_norm=config.clip_norm)
    optimizer.step()
    lesson.after_step()


def _closed(fabric: Fabric, sums: _Sums, steps: int, epoch: int, lr: float) -> Epoch:
    terms = _mean_over_processes(fabric, {name: value / steps for name, value in sums.terms.items()})
    # A term that came late is averaged over the steps in which it came.
    each = {name: value / sums.steps[name] for name, value in sums.unweighted.items()}
    unweighted = _mean_over_processes(fabric, each)
    return Epoch(epoch + 1, sum(terms.values()), terms, lr, unweighted)


def _validated(fabric: Fabric, lesson: Lesson, epoch: Epoch, validate: Validate, kept: _Kept, config: Fit) -> Epoch:
    """``epoch`` with its validation metric; the weights are kept where it is the best so far."""
    assert config.early_stop is not None
    with _wearing(lesson.model, kept.average):
        value = float(fabric.broadcast(validate(lesson.model)))
        if not math.isfinite(value):
            raise ModelError(
                f"the metric on the validation split is {value} after epoch {epoch.epoch}",
                where="fit.early_stop",
                hint="lower optimizer.lr, or check the task's score",
            )
        if value > kept.best_value + config.early_stop.min_gain:
            kept.best = {name: tensor.detach().clone() for name, tensor in lesson.model.state_dict().items()}
            kept.best_epoch, kept.best_value = epoch.epoch, value
    lesson.train()
    return Epoch(**{**asdict(epoch), "validation": value})


def _stopped(config: Fit, kept: _Kept, epochs: int) -> bool:
    return (
        config.early_stop is not None
        and kept.best_epoch >= 0
        and epochs - kept.best_epoch >= config.early_stop.patience
    )


def _batch(
    split: Split, index: Int, padding: int | None, augment: Augment, seed: int, epoch: int, device: torch.device
) -> Batch:
    """The samples ``index`` as ``epoch`` shows them; of texts ``padding`` is the id that says nothing."""
    targets = split.targets
    seen = view(split, index, augment, seed, epoch)
    partners = None if seen.partners is None else torch.from_numpy(as_learnt(targets[seen.partners])).to(device)
    own = as_learnt(targets[index] if seen.targets is None else seen.targets)
    inputs = seen.inputs if padding is None else trimmed(seen.inputs, padding)
    if own.ndim == 2:  # of each token
        own = np.ascontiguousarray(own[:, : inputs.shape[1]])
    return Batch(
        placed(inputs, device),
        torch.from_numpy(own).to(device),
        torch.from_numpy(index).to(device),
        partners,
        None if seen.share is None else torch.from_numpy(seen.share).to(device),
        None if padding is None else torch.from_numpy(inputs != padding).to(device),
    )


def placed(inputs: NDArray[Any], device: torch.device) -> Tensor:
    """A batch on ``device``: images (N, C, H, W) in channels-last, token ids (N, L) as they are."""
    layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
    return torch.from_numpy(inputs).to(device, memory_format=layout)


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch_size: int | None = None, tick: Tick = silent) -> NDArray[np.float32]:
    """Answers (N, K) of the whole split, or (N, L, K) of each token, in float32 and evaluation mode.

    ``batch_size``: 500 images or 64 texts where left out. Texts are read sorted by length and without the padding that
    a batch doesn't need; of tokens that were left out so the answers are 0.
    """
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    samples, outputs = len(split.ids), []
    padding, lengths = (split.padding, split.lengths) if isinstance(split, TextSplit) else (None, None)
    visit = np.arange(samples) if lengths is None else np.argsort(lengths, kind="stable")
    batch_size = batch_size or (500 if padding is None else 64)
    for start in range(0, samples, batch_size):
        index = visit[start : start + batch_size]
        inputs = split.read(index)
        length = inputs.shape[1]
        inputs = inputs if padding is None else trimmed(inputs, padding)
        answers = model(placed(inputs, device)).float().cpu().numpy()
        outputs.append(answers if padding is None else restored(answers, length))
        tick(start + len(index), samples, "evaluate")
    found = np.concatenate(outputs)
    if padding is None:
        return found
    back = np.empty_like(found)
    back[visit] = found
    return back
