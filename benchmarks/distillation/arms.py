"""One run: an arm with one seed, trained, judged and written down."""

from __future__ import annotations

import time
from typing import Any

import torch
from experiments import NETS, Arm
from jobs import Run, history, surroundings, write
from nets import PRECISION, Noisy, Place, accuracies, answers, draw_again, fresh, learn, lessons, task
from torch import nn

from edgewise.compress.macs import count
from edgewise.compress.saved import load_model
from edgewise.models.tasks.base import Split, Task
from edgewise.progress import Tick


def lesson(place: Place, run: Run) -> dict[str, Any]:
    """The arm's fields of ``Distill``; those of an ensemble name its other teachers."""
    fields = dict(run.settings.lesson)
    if "ensemble" in fields:
        others = [
            {"model": dict(NETS[name].model), "weights": str(place.net(name) / "model.safetensors")}
            for name in run.settings.nets(run.seed)[1:]
        ]
        fields["ensemble"] = {**fields["ensemble"], "teachers": others}
    return fields


def kept(place: Place, run: Run) -> bool:
    """Whether the arm's teachers are read from disk: where no loss looks inside them."""
    if not run.settings.teachers:
        return False
    try:
        losses = lessons(lesson(place, run), run.fit).losses
    except ValueError:
        return False  # the run itself says what is wrong
    return all(loss.wanted_layers() is None for loss in losses)


def train(place: Place, run: Run, tick: Tick) -> None:
    """Train the arm and write its result."""
    torch.set_num_threads(1)
    arm, of = run.settings, task(place, run.of.data)
    split: Split = of.splits["train"]
    if arm.noise:
        split = Noisy(split, arm.noise, len(of.classes))
    model = _start(place, run, of)
    teachers = tuple(load_model(place.net(name.format(seed=run.seed)))[0] for name in arm.teachers)
    caches = [answers(place, run.of.data, teacher, run.seed) for teacher in teachers] if kept(place, run) else []
    checkpoint = place.checkpoint(run.name)
    resumed = checkpoint.exists()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        epochs = learn(
            model,
            split,
            of,
            run.fit,
            seed=run.seed,
            teachers=teachers,
            lesson=lesson(place, run),
            caches=tuple(caches),
            checkpoint=checkpoint,
            tick=tick,
        )
    finally:
        for cache in caches:
            cache.close()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    size = count(model, of.input_shape)
    write(
        run.result(place.out),
        {
            "experiment": run.experiment,
            "arm": run.arm,
            "seed": run.seed,
            **accuracies(model, of),
            "train_images": len(split.ids),
            "wall_s": wall,
            "cpu_s": cpu,
            "resumed": resumed,
            "answers": ("kept" if caches else "live") if teachers else None,
            "teachers": list(arm.nets(run.seed)[: len(teachers)]),
            "params": size.params,
            "macs": size.macs,
            "config": _config(place, run, arm),
            "augment": of.augment.model_dump(mode="json"),
            "epochs": history(epochs),
            "made_with": surroundings(),
        },
    )
    checkpoint.unlink(missing_ok=True)


def _start(place: Place, run: Run, of: Task) -> nn.Module:
    """The student before its first step; the same for every arm of a seed that starts from the same."""
    arm = run.settings
    if arm.start is None:
        return fresh(run.of.student, of, run.seed)[0]
    model, _ = load_model(place.net(arm.start.format(seed=run.seed)))
    if arm.fresh:
        draw_again(model, run.seed)
    # Adapters are drawn after this.
    torch.manual_seed(run.seed)
    return model


def _config(place: Place, run: Run, arm: Arm) -> dict[str, Any]:
    """Every setting, defaults written out."""
    if arm.teachers:
        config: dict[str, Any] = lessons(lesson(place, run), run.fit).model_dump(mode="json")
        config.pop("ensemble", None)  # it holds paths of this machine; "teachers" names them
        return {**config, "teacher_precision": PRECISION, "noise": arm.noise, "start": arm.start}
    return {"fit": dict(run.fit), "noise": arm.noise, "start": arm.start}
