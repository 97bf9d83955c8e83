"""What distillation without data is worth: one teacher, one student, real images against made ones.

    python benchmarks/data_free.py --data fashion_mnist.npz

Each arm ends with the same student (same first weights, epochs, losses: the teacher's answers alone) on the same test
images: real images of the teacher's own training set, as many as are made; images by inversion, with and without the
BatchNorm statistics; images by a generator; and noise, what a student learns from random pixels. Prints one JSON line
an arm. One seed is a smoke test, not a ranking: give more for that.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgewise.compress.config import Distill, Fit, Sgd
from edgewise.compress.losses import KD
from edgewise.compress.strategies.data_free import Synthetic, bounds_of, synthesize
from edgewise.compress.strategies.data_free_config import Generator, Inversion
from edgewise.compress.strategies.offline import distill
from edgewise.compress.train import evaluate, fit, labels_only
from edgewise.models.build import build
from edgewise.models.config import CifarResNet
from edgewise.models.tasks.arrays import spread
from edgewise.models.tasks.base import Split, Task
from edgewise.models.tasks.config import Arrays, Augment
from edgewise.models.tasks.load import load_task

ARMS = ("real", "noise", "inversion", "inversion without statistics", "generator", "generator with statistics")


def main() -> None:
    """Train the teacher, make the images, train a student on each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--samples", type=int, default=1000, help="images to make")
    parser.add_argument("--steps", type=int, default=300, help="of the inversion, a batch")
    parser.add_argument("--teacher-samples", type=int, default=20000)
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--student-steps", type=int, default=600, help="optimizer steps of 64 images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = load_task(Arrays(kind="npz", path=options.data))
    for seed in options.seeds:
        _one_seed(task, options, seed)


def _one_seed(task: Task, options: argparse.Namespace, seed: int) -> None:
    classes, train = len(task.classes), task.splits["train"]
    teacher = _fresh(task, 8, seed)
    started = time.perf_counter()
    few = _part(train, options.teacher_samples)
    fit(
        labels_only(teacher),
        few,
        Fit(epochs=options.teacher_epochs, batch_size=64, optimizer=Sgd(lr=0.1)),
        seed=seed,
        augment=Augment(crop=2),
    )
    _say("teacher", seed, _accuracy(teacher, task), time.perf_counter() - started, 0.0)

    bounds = bounds_of(train)
    inversion = Inversion(samples=options.samples, steps=options.steps)
    generator = Generator(samples=options.samples, batch_size=min(100, options.samples), width=32)
    ways: dict[str, Inversion | Generator] = {
        "inversion": inversion,
        "inversion without statistics": inversion.model_copy(update={"statistics": 0.0}),
        "generator": generator,
        "generator with statistics": generator.model_copy(update={"statistics": 1.0}),
    }
    random = np.random.default_rng(seed).normal(size=(options.samples, *task.input_shape)).astype(np.float32)
    names = tuple(f"noise-{place}" for place in range(options.samples))
    for arm in options.arms:
        started = time.perf_counter()
        if arm == "real":
            split = _part(few, options.samples)
        elif arm == "noise":
            split = Synthetic(names, np.zeros(options.samples, np.int64), random)
        else:
            split = synthesize(teacher, ways[arm], task.input_shape, classes, seed=seed, bounds=bounds)
        _arm(arm, teacher, split, task, options, seed, time.perf_counter() - started)


def _arm(
    name: str, teacher: nn.Module, split: Split, task: Task, options: argparse.Namespace, seed: int, making: float
) -> None:
    student = _fresh(task, 4, seed + 1)
    epochs = max(1, options.student_steps // max(1, len(split.ids) // 64))
    config = Distill(
        kind="distill",
        fit=Fit(epochs=epochs, batch_size=64, optimizer=Sgd(lr=0.1)),
        cross_entropy=0.0,
        losses=(KD(weight=1.0, temperature=4.0),),
    )
    started = time.perf_counter()
    distill(student, teacher, split, config, seed=seed, augment=Augment(crop=2))
    _say(name, seed, _accuracy(student, task), time.perf_counter() - started, making)


def _fresh(task: Task, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(CifarResNet(depth=8, width=width), task.input_shape, len(task.classes))


def _part(split: Split, samples: int) -> Synthetic:
    index = spread(split.targets, min(samples, len(split.ids)))
    return Synthetic(tuple(split.ids[place] for place in index), split.targets[index], split.read(index))


def _accuracy(model: nn.Module, task: Task) -> float:
    test = task.splits["test"]
    return float(task.score(evaluate(model, test), test.targets).mean())


def _say(name: str, seed: int, accuracy: float, training: float, making: float) -> None:
    line = {
        "arm": name,
        "seed": seed,
        "accuracy": round(accuracy, 4),
        "training_s": round(training, 1),
        "making_s": round(making, 1),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
