"""What a stage is given, and what all stages that make a model share.

Imports are inside the functions: a run with nothing left to do must answer without loading torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.artifact import Artifact
from edgewise.errors import DataError
from edgewise.models.tasks.base import Float, Split, Task
from edgewise.progress import Tick
from edgewise.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from edgewise.compress.saved import Description, Edit
    from edgewise.compress.train import Running


@dataclass(frozen=True)
class Work:
    """What a stage is given: its name, its config, its parents by role, an empty payload folder, scratch for
    checkpoints, the run's cache of teachers' answers; ``note`` tells the user a line."""

    name: str
    recipe: Recipe
    config: Any
    task: Callable[[], Task]
    parents: Mapping[str, Artifact]
    payload: Path
    scratch: Path
    cache: Path
    tick: Tick
    note: Callable[[str], None]

    @property
    def checkpoint(self) -> Path:
        """Where training keeps its last state between two tries."""
        return self.scratch / "checkpoint.safetensors"


def seed_for(seed: int, role: str) -> int:
    """Another seed for each ``role`` of a run: neighbouring recipe seeds share none."""
    return int(sha256(f"{seed} {role}".encode()).hexdigest()[:8], 16)


Stage = Callable[[Work], dict[str, Any]]
"""A stage fills ``work.payload`` and returns its metrics (JSON)."""


def spread(samples: int, count: int) -> NDArray[np.int64]:
    """``count`` places spread evenly over ``samples``: (min(count, samples),)."""
    return np.unique(np.linspace(0, samples - 1, min(count, samples)).round().astype(np.int64))


def save(work: Work, model: nn.Module, description: Description, **metrics: Any) -> dict[str, Any]:
    """Save the model, its answers on the test split, and what it costs."""
    from edgewise.compress.macs import count
    from edgewise.compress.saved import save_model
    from edgewise.compress.train import evaluate

    test: Split = work.task().splits["test"]
    answers = evaluate(model, test, tick=work.tick)
    if "macs" not in metrics:
        cost = count(model, work.task().input_shape)
        metrics |= {"macs": cost.macs, "params": cost.params}
    save_model(model, description, work.payload)
    np.save(work.payload / "answers.npy", answers)
    return {**metrics, **_accuracy(work.task(), answers)}


def _accuracy(task: Task, answers: Float) -> dict[str, Any]:
    """The metric with its 95 % interval: Wilson's where a score is right or wrong, Student's where it is a grade."""
    from edgewise.bench.stats import is_binary, mean_interval, wilson

    scores = np.asarray(task.score(answers, task.splits["test"].targets), dtype=np.float64)
    if scores.shape != (len(answers),) or not ((scores >= 0) & (scores <= 1)).all():
        raise DataError(
            f"expected one score in 0..1 for each of {len(answers)} samples, got shape {scores.shape}, "
            f"from {scores.min():.3g} to {scores.max():.3g}",
            where=f"the task's score ({task.metric})",
            hint="return one number a sample, 1 for a perfect answer",
        )
    interval = wilson(float(scores.sum()), len(scores)) if is_binary(scores) else mean_interval(scores)
    told = {
        "accuracy": float(scores.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "samples": len(scores),
    }
    more = others(task, answers, task.splits["test"].targets)
    return {**told, "others": more} if more else told


def others(task: Task, answers: Float, targets: NDArray[Any]) -> dict[str, dict[str, float]]:
    """The task's other metrics of these answers, by name, each a value and both ends of its 95 % interval."""
    from edgewise.bench.stats import bootstrap_metric
    from edgewise.models.tasks.text.metrics import Summed

    def drawn(metric: Callable[[Float, NDArray[Any]], float]) -> Callable[[NDArray[np.int64]], float]:
        if isinstance(metric, Summed):
            counts, value = metric.counts(answers, targets), metric.value
            return lambda index: value(counts[index].sum(axis=0))
        return lambda index: metric(answers[index], targets[index])

    found = {}
    for name, metric in task.others.items():
        interval = bootstrap_metric(drawn(metric), len(targets))
        found[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def edited(description: Description, *edits: Edit) -> Description:
    """``description`` after some more edits."""
    from edgewise.compress.saved import Description

    return Description(**{**dict(description), "edits": (*description.edits, *edits)})


def loaded(work: Work, role: str = "model") -> tuple[nn.Module, Description]:
    """A parent's model, in a torch that uses as many threads as the recipe says."""
    import torch

    from edgewise.compress.saved import load_model

    torch.set_num_threads(work.recipe.threads)
    return load_model(work.parents[role].folder)


def write_history(work: Work, history: list[Any]) -> None:
    """Keep what training told of its epochs."""
    (work.payload / "history.json").write_text(json.dumps([asdict(epoch) for epoch in history], indent=1))


def validation(work: Work) -> Callable[[nn.Module], float] | None:
    """The task's metric on its validation split; None where it has no such split."""
    task = work.task()
    split = task.splits.get("val")
    if split is None:
        return None

    def validate(model: nn.Module) -> float:
        from edgewise.compress.train import evaluate

        return float(np.mean(task.score(evaluate(model, split), split.targets)))

    return validate


def running(work: Work) -> Running:
    """What every training run is told beside its lesson."""
    return {
        "seed": work.recipe.seed,
        "augment": work.task().augment,
        "checkpoint": work.checkpoint,
        "validate": validation(work),
        "tick": work.tick,
    }
