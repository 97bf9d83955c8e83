"""The one training loop, on Lightning Fabric: mixed precision, clipping, warm-up, cosine, checkpoints, and data
parallelism when started by torchrun. What is learnt is the objective's business.

Everything random (order of samples, augmentation) is a function of (seed, epoch, sample): a resumed run equals an
uninterrupted one, and W processes with B/W samples each see the samples that one process with B sees. BatchNorm, where
a net has it, takes its statistics over each process's own share.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgewise.compress import checkpoint as checkpoints
from edgewise.compress.config import Fit, Sgd
from edgewise.compress.losses.base import Batch
from edgewise.errors import DataError, ModelError
from edgewise.models.tasks.augment import augment as augmented
from edgewise.models.tasks.base import Split
from edgewise.models.tasks.config import Augment
from edgewise.progress import Tick, silent

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""``objective(model, batch)`` gives named scalar terms, weighted; the loop minimises their sum."""


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch."""

    epoch: int
    loss: float
    terms: dict[str, float]
    lr: float


def labels_only(label_smoothing: float) -> Objective:
    """Cross-entropy with the labels."""

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(model(batch.inputs), batch.targets, label_smoothing=label_smoothing)}

    return objective


def lr_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Part of the peak learning rate at ``step`` of ``total``: linear warm-up, then constant or half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def order(samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which ``epoch`` visits the samples: (samples,)."""
    return np.random.default_rng([seed, epoch, 1]).permutation(samples)


def _fabric(precision: str) -> Fabric:
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every setting
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    strategy = "ddp" if world > 1 else "auto"
    fabric = Fabric(devices=local, num_nodes=max(1, world // local), strategy=strategy, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def _optimizer(model: nn.Module, config: Fit) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    o = config.optimizer
    if isinstance(o, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=o.lr,
            momentum=o.momentum,
            nesterov=o.nesterov and o.momentum > 0,
            weight_decay=o.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=o.lr, weight_decay=o.weight_decay)


def _mean_over_processes(fabric: Fabric, values: dict[str, float]) -> dict[str, float]:
    if fabric.world_size == 1:
        return values
    reduced = fabric.all_reduce(torch.tensor(list(values.values()), dtype=torch.float64), reduce_op="mean")
    assert isinstance(reduced, Tensor)
    return dict(zip(values, reduced.tolist(), strict=True))


def fit(
    model: nn.Module,
    split: Split,
    objective: Objective,
    config: Fit,
    *,
    seed: int,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    tick: Tick = silent,
) -> list[Epoch]:
    """Train ``model`` in place on ``split``; continues from ``checkpoint`` where that file is.

    The last incomplete batch of an epoch is left out, so that every step weighs the same.

    Raises:
        DataError: fewer samples than one batch.
        ModelError: the batch can't be shared by the processes, or the loss is no longer finite.
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
    share = config.batch_size // world
    torch.manual_seed(seed + fabric.global_rank)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(model, config)
    peaks = [group["lr"] for group in optimizer.param_groups]
    wrapped, prepared = fabric.setup(model, optimizer)
    assert isinstance(prepared, torch.optim.Optimizer)

    history: list[Epoch] = []
    done, sums = 0, {}  # steps done in all; sums of the terms of the current epoch
    if checkpoint is not None and checkpoint.exists():
        progress = checkpoints.load(checkpoint, model, optimizer)
        done, sums = progress["done"], progress["sums"]
        fabric.strategy.precision.load_state_dict(progress["precision"])
        history = [Epoch(**epoch) for epoch in progress["history"]]

    total, warmup = steps * config.epochs, round(config.warmup_epochs * steps)
    while done < total:
        epoch, start = divmod(done, steps)
        visit = order(samples, seed, epoch)
        model.train()
        for step in range(start, steps):
            factor = lr_factor(done, total, warmup, config.schedule)
            for group, peak in zip(prepared.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            first = step * config.batch_size + fabric.global_rank * share
            batch = _batch(split, visit[first : first + share], augment, seed, epoch, fabric.device)
            with fabric.autocast():
                terms = _terms(objective, wrapped, batch)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            prepared.zero_grad()
            fabric.backward(loss)
            if config.clip_norm is not None:
                fabric.clip_gradients(wrapped, prepared, max_norm=config.clip_norm)
            prepared.step()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach())
            if not math.isfinite(sum(sums.values())):
                raise ModelError(
                    f"the loss is no longer finite at step {done + 1} of {total} ({sums})",
                    hint="lower optimizer.lr, add warmup_epochs, or set clip_norm",
                )
            done += 1
            if done % steps == 0:
                means = _mean_over_processes(fabric, {name: value / steps for name, value in sums.items()})
                history.append(Epoch(epoch + 1, sum(means.values()), means, peaks[0] * factor))
                sums = {}
            last = history[-1].loss if history else math.nan
            tick(
                done,
                total,
                f"epoch {epoch + 1}/{config.epochs} loss {sum(sums.values()) / (step + 1) if sums else last:.3f}",
            )
            if checkpoint is not None and done < total and (done % config.checkpoint_every == 0 or done % steps == 0):
                if fabric.is_global_zero:
                    scaler = fabric.strategy.precision.state_dict()  # what 16-bit training has learnt of its scale
                    state = {"done": done, "sums": sums, "history": [asdict(e) for e in history], "precision": scaler}
                    checkpoints.save(checkpoint, model, optimizer, state)
                fabric.barrier()
    model.eval()
    return history


def _terms(objective: Objective, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    try:
        return objective(model, batch)
    except ValueError as error:  # such as BatchNorm's, over one value a channel
        raise ModelError(
            f"the model can't learn from a batch of {len(batch.inputs)} ({error})", hint="set a larger batch_size"
        ) from error


def _batch(
    split: Split, index: NDArray[np.int64], augment: Augment | None, seed: int, epoch: int, device: torch.device
) -> Batch:
    inputs = split.read(index)
    if augment is not None:
        inputs = augmented(inputs, index, len(split.ids), augment, seed, epoch)
    return Batch(
        torch.from_numpy(inputs).to(device, memory_format=torch.channels_last),
        torch.from_numpy(split.targets[index].astype(np.int64)).to(device),
        torch.from_numpy(index).to(device),
    )


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, batch_size: int = 500, tick: Tick = silent) -> NDArray[np.float32]:
    """Logits (N, K) of the whole split, in float32 and evaluation mode."""
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    samples, outputs = len(split.ids), []
    for start in range(0, samples, batch_size):
        index = np.arange(start, min(start + batch_size, samples))
        inputs = torch.from_numpy(split.read(index)).to(device, memory_format=torch.channels_last)
        outputs.append(model(inputs).float().cpu().numpy())
        tick(int(index[-1]) + 1, samples, "evaluate")
    return np.concatenate(outputs)
