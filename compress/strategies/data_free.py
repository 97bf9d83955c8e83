"""Distillation without data: training images made from the teacher alone, then learnt from like any others.

The images are all that is new: ``inversion.py`` (arXiv 1912.08795) or ``generator.py`` (arXiv 1904.01186) makes them,
and offline distillation teaches the student on them, with the teacher's answers as the only truth (cross-entropy 0).
The task's own training images are never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewise.compress.config import Fit, Lessons
from edgewise.compress.strategies.data_free_config import Generator, Inversion
from edgewise.compress.strategies.generator import generate
from edgewise.compress.strategies.inversion import Bounds, invert, pixel_bounds, targets_of
from edgewise.compress.strategies.offline import distill
from edgewise.compress.strategies.statistics import frozen
from edgewise.compress.train import Epoch, Validate
from edgewise.errors import ModelError
from edgewise.models.tasks.base import Split
from edgewise.models.tasks.config import Augment
from edgewise.progress import Tick, silent


@dataclass(frozen=True)
class Synthetic:
    """A split of made images (N, C, H, W), normalised; ``targets`` are what each is meant to show."""

    ids: tuple[str, ...]
    targets: NDArray[np.int64]
    images: NDArray[np.float32]

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(index), C, H, W)."""
        return self.images[index]


def bounds_of(split: Split) -> Bounds | None:
    """What black and white become in a split that says how it normalises (``mean``, ``std``); None for others. No image
    is read."""
    mean, std = getattr(split, "mean", None), getattr(split, "std", None)
    return None if mean is None or std is None else pixel_bounds(tuple(mean), tuple(std))


def synthesize(
    teacher: nn.Module,
    config: Inversion | Generator,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    seed: int,
    bounds: Bounds | None = None,
    student: nn.Module | None = None,
    checkpoint: Path | None = None,
    tick: Tick = silent,
) -> Synthetic:
    """The split that ``config`` makes, on the accelerator where there is one; arguments and errors are those of
    :func:`invert` and :func:`generate`. A generator's images are meant to show what the teacher sees in them."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    for model in (teacher, student):
        if model is not None and device is not None:
            model.to(device)
    if isinstance(config, Inversion):
        targets = targets_of(config, classes, seed=seed)
        images = invert(
            teacher,
            config,
            input_shape,
            classes,
            seed=seed,
            bounds=bounds,
            student=student,
            checkpoint=checkpoint,
            tick=tick,
        )
    else:
        images = generate(
            teacher, config, input_shape, classes, seed=seed, bounds=bounds, checkpoint=checkpoint, tick=tick
        )
        targets = _answers(teacher, images)
    return Synthetic(tuple(f"{config.kind}-{place:06d}" for place in range(len(images))), targets, images)


def distill_data_free(
    student: nn.Module,
    teacher: nn.Module,
    make: Inversion | Generator,
    config: Lessons,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    seed: int,
    run: Fit | None = None,
    augment: Augment | None = None,
    bounds: Bounds | None = None,
    scratch: Path | None = None,
    validate: Validate | None = None,
    tick: Tick = silent,
) -> tuple[Synthetic, list[Epoch]]:
    """Make the images, train ``student`` on them in place; returns both.

    With ``compete``, in two rounds: the first half of the images is made without competition and taught; the second
    half must puzzle the student that came of it, which then learns from all of them.

    Args:
        student: trained in place.
        teacher: put in evaluation mode and frozen.
        make: how to make the images.
        config: losses and their weights, for :func:`edgewise.compress.strategies.offline.distill`.
        input_shape: (C, H, W).
        classes: what both nets know.
        seed: of everything random.
        run: the training run where ``config`` has none of its own called ``fit``.
        augment: shown to student and teacher alike.
        bounds: (low, high) of a normalised pixel, for each channel.
        scratch: a folder for checkpoints: a killed run goes on from there.
        validate: for early stopping, on real samples.
        tick: counts steps, from 0 again in each phase.

    Raises:
        ModelError: a task of texts; else see :func:`invert`, :func:`generate` and ``distill``.
        ArtifactError: a checkpoint in ``scratch`` belongs to another run.
    """
    if len(input_shape) != 3:
        raise ModelError("data_free makes images, and the task gives texts", hint="distil on texts without labels")
    images: tuple[int, int, int] = (input_shape[0], input_shape[1], input_shape[2])

    def taught(split: Split, name: str) -> list[Epoch]:
        checkpoint = None if scratch is None else scratch / f"{name}.safetensors"
        return distill(
            student,
            teacher,
            split,
            config,
            seed=seed,
            run=run,
            augment=augment,
            checkpoint=checkpoint,
            validate=validate,
            tick=tick,
        )

    def made(how: Inversion | Generator, name: str, seed: int, against: nn.Module | None = None) -> Synthetic:
        checkpoint = None if scratch is None else scratch / f"{name}.safetensors"
        return synthesize(
            teacher,
            how,
            images,
            classes,
            seed=seed,
            bounds=bounds,
            student=against,
            checkpoint=checkpoint,
            tick=tick,
        )

    if not (isinstance(make, Inversion) and make.compete):
        split = made(make, "images", seed)
        return split, taught(split, "student")
    half = max(1, make.samples // 2)
    plain = made(make.model_copy(update={"samples": half, "compete": 0.0}), "images", seed)
    taught(plain, "student-half")
    # Another seed, or the second half would start from the noise of the first.
    hard = made(make.model_copy(update={"samples": max(1, make.samples - half)}), "images-compete", seed + 1, student)
    split = Synthetic(
        (*plain.ids, *(f"compete-{name}" for name in hard.ids)),
        np.concatenate([plain.targets, hard.targets]),
        np.concatenate([plain.images, hard.images]),
    )
    return split, taught(split, "student")


@torch.no_grad()
def _answers(teacher: nn.Module, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) the teacher's classes."""
    device = next(teacher.parameters()).device
    with frozen(teacher):
        parts = [
            teacher(batch.to(device)).argmax(dim=1).cpu().numpy()
            for batch in torch.split(torch.from_numpy(images), 500)
        ]
    return np.concatenate(parts)
