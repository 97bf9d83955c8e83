"""About how long each job takes, from what one thread did once; only the plan is made of this. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments import DATA, EXPERIMENTS, NETS
from jobs import Run

# (depth, width) -> images a second that one thread trains on and answers, bf16-mixed, channels_last, batch 128, 32x32,
# on a virtual Xeon with AMX.
SPEEDS: dict[tuple[int, int], tuple[float, float]] = {
    (8, 8): (3015, 14910),
    (8, 16): (1661, 9364),
    (14, 16): (1079, 4957),
    (20, 16): (779, 3548),
    (56, 16): (292, 1276),
}
PRUNED = (1250.0, 5000.0)
TRAIN_IMAGES = {"cifar10": 45000, "cifar10-20k": 20000, "fashion": 55000, "fashion-20k": 20000}
SMALLER_IMAGES = {"fashion": (28 / 32) ** 2, "fashion-20k": (28 / 32) ** 2}
LOSSES = 1.2
"""What losses, optimizer and reading cost beside the nets."""
JUDGE_S = 3.0
"""The test split, in float32."""


def speed(name: str) -> tuple[float, float]:
    """Of a net."""
    net = NETS[name]
    return PRUNED if net.parent else _speed(net.model)


def of_net(name: str) -> float:
    """Seconds to make a net."""
    net = NETS[name]
    if net.parent:
        return 10.0
    teacher = 1 / speed(net.teacher)[1] if net.teacher else 0.0
    epoch = TRAIN_IMAGES[net.data] * SMALLER_IMAGES.get(net.data, 1.0)
    return float(net.fit["epochs"]) * epoch * (1 / _speed(net.model)[0] + teacher) + JUDGE_S


def of_answers(data: str, name: str) -> float:
    """Seconds to keep a teacher's answers."""
    return (DATA[data].views or 1) * TRAIN_IMAGES[data] * SMALLER_IMAGES.get(data, 1.0) / speed(name)[1]


def of_run(run: Run, *, live: bool) -> float:
    """Seconds of one run."""
    experiment, arm = EXPERIMENTS[run.experiment], run.settings
    ours = speed(arm.start.format(seed=run.seed))[0] if arm.start else _speed(experiment.student)[0]
    theirs = sum(1 / speed(name.format(seed=run.seed))[1] for name in arm.teachers) if live else 0.0
    images = float(run.fit["epochs"]) * TRAIN_IMAGES[experiment.data] * SMALLER_IMAGES.get(experiment.data, 1.0)
    return LOSSES * images * (1 / ours + theirs) + JUDGE_S


def _speed(model: Mapping[str, Any]) -> tuple[float, float]:
    return SPEEDS[model["depth"], model["width"]]
