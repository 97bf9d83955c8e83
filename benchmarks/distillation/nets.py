"""Nets and data on disk and in memory: what an arm starts from, learns from, and is shown."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import DATA, NETS, NOISE_SEED, Net
from pydantic import TypeAdapter
from torch import nn

from edgewise.compress.cache import Identity, TeacherCache, cache_folder, data_fingerprint, open_cache, teacher_digest
from edgewise.compress.config import Distill, Fit, Prune
from edgewise.compress.layers import resolve, sizes, trace
from edgewise.compress.losses.base import Loss
from edgewise.compress.pruning.prune import prune
from edgewise.compress.saved import ChannelPlan, Description, load_model, save_model
from edgewise.compress.strategies.offline import distill
from edgewise.compress.taps import tapped
from edgewise.compress.train import Epoch, evaluate, fit, labels_only
from edgewise.models.build import build
from edgewise.models.config import ModelConfig
from edgewise.models.tasks.augment import view
from edgewise.models.tasks.base import Split, Task
from edgewise.models.tasks.load import load_task
from edgewise.models.weights import load_weights
from edgewise.progress import Tick, silent

PRECISION = "bf16-mixed"  # every arm trains in it, so teachers answer in it, too


@dataclass(frozen=True)
class Place:
    """Where the data is and where everything that is made goes."""

    data: Path
    out: Path

    def net(self, name: str) -> Path:
        """The folder of a net."""
        return self.out / "nets" / name

    def checkpoint(self, name: str) -> Path:
        """The last state of a training run that goes on."""
        return self.out / "checkpoints" / f"{name}.safetensors"


@dataclass(frozen=True)
class Noisy:
    """A split of which a part of the labels is wrong: always the same samples, any other class with equal chance."""

    clean: Split
    part: float
    classes: int

    @property
    def ids(self) -> tuple[str, ...]:
        """As they were."""
        return self.clean.ids

    @cached_property
    def targets(self) -> np.ndarray:
        """(N,), ``part`` of them wrong."""
        random = np.random.default_rng(NOISE_SEED)
        targets = self.clean.targets.copy()
        wrong = random.permutation(len(targets))[: round(self.part * len(targets))]
        targets[wrong] = (targets[wrong] + random.integers(1, self.classes, len(wrong))) % self.classes
        return targets

    def read(self, index: np.ndarray) -> np.ndarray:
        """As it was."""
        return self.clean.read(index)


@lru_cache(maxsize=2)
def task(place: Place, data: str) -> Task:
    """The task of one entry of ``DATA``, decoded once."""
    return load_task(DATA[data].config(place.data))


@lru_cache(maxsize=2)
def _samples(place: Place, data: str) -> str:
    return data_fingerprint(task(place, data).splits["train"])


def fresh(config: Mapping[str, Any], of: Task, seed: int) -> tuple[nn.Module, Description]:
    """A model with the first weights of ``seed``."""
    model: ModelConfig = TypeAdapter(ModelConfig).validate_python(dict(config))
    torch.manual_seed(seed)
    description = Description(model=model, input_shape=of.input_shape, classes=len(of.classes))
    return build(model, of.input_shape, len(of.classes)), description


def draw_again(model: nn.Module, seed: int) -> None:
    """Forget what ``model`` has learnt: first weights as a ResNet of this library gets them, its architecture kept."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            module.reset_parameters()


def learn(
    model: nn.Module,
    split: Split,
    of: Task,
    run: Mapping[str, Any],
    *,
    seed: int,
    teachers: tuple[nn.Module, ...] = (),
    lesson: Mapping[str, Any] | None = None,
    caches: tuple[TeacherCache | None, ...] = (),
    checkpoint: Path | None = None,
    tick: Tick = silent,
) -> list[Epoch]:
    """Train ``model`` in place, on labels alone or with ``teachers``."""
    if not teachers:
        config = Fit.model_validate(dict(run))
        labels = labels_only(model, config.label_smoothing)
        return fit(labels, split, config, seed=seed, augment=of.augment, checkpoint=checkpoint, tick=tick)
    return distill(
        model,
        teachers,
        split,
        lessons(lesson or {}, run),
        seed=seed,
        augment=of.augment,
        open_cache=(lambda place, _: caches[place]) if caches else None,
        checkpoint=checkpoint,
        tick=tick,
    )


def lessons(lesson: Mapping[str, Any], run: Mapping[str, Any]) -> Distill:
    """The config of an arm with teachers.

    Raises:
        ValueError: a loss or a field is not known.
    """
    return Distill.model_validate({"kind": "distill", **lesson, "fit": dict(run)})


def make_net(place: Place, name: str, tick: Tick = silent) -> None:
    """Make the net ``name`` and write it to its folder, whole or not at all, with ``about.json`` beside it."""
    net = NETS[name]
    of = task(place, net.data)
    start = time.perf_counter()
    if net.parent is not None:
        model, description, about = _pruned(place, net, of)
    else:
        model, description = fresh(net.model, of, net.seed)
        if net.weights is not None:
            load_weights(model, place.data / net.weights)
        history = learn(
            model,
            of.splits["train"],
            of,
            net.fit,
            seed=net.seed,
            teachers=(load_model(place.net(net.teacher))[0],) if net.teacher else (),
            lesson=net.lesson,
            checkpoint=place.checkpoint(name),
            tick=tick,
        )
        about = {"loss": history[-1].loss}
    about |= {
        "name": name,
        "settings": asdict(net),
        "seconds": time.perf_counter() - start,
        "test": accuracy(model, of),
    }
    folder = place.net(name)
    beside = folder.with_name(f".{name}.{os.getpid()}")
    save_model(model, description, beside)
    (beside / "about.json").write_text(json.dumps(about, indent=1))
    beside.rename(folder)
    place.checkpoint(name).unlink(missing_ok=True)


def _pruned(place: Place, net: Net, of: Task) -> tuple[nn.Module, Description, dict[str, Any]]:
    assert net.parent is not None
    model, description = load_model(place.net(net.parent))
    config = Prune.model_validate({"kind": "prune", **net.prune})
    pruned = prune(
        model, config, of.input_shape, round_to=config.round_to or 8, seed=net.seed, samples=of.splits["train"]
    )
    smaller = description.model_copy(update={"edits": (*description.edits, ChannelPlan(plan=pruned.plan))})
    costs = {"macs_before": pruned.macs_before, "macs": pruned.macs_after, "params": pruned.params_after}
    return model, smaller, costs


def accuracy(model: nn.Module, of: Task) -> float:
    """The metric on the test split."""
    test = of.splits["test"]
    return float(of.score(evaluate(model, test), test.targets).mean())


def kept_layers(losses: Sequence[Loss]) -> str | None:
    """Which of a teacher's answers the losses ask for, where they are few enough to keep: ``logits``, or with them what
    goes into its classifier, ``embedding``. None: the teacher answers live."""
    wanted = {loss.wanted_layers() for loss in losses} - {None}
    return "logits" if not wanted else "embedding" if wanted == {"embedding"} else None


def answers(place: Place, data: str, teacher: nn.Module, seed: int, layers: str) -> TeacherCache:
    """The cache of a teacher's answers to the views that an arm of ``seed`` shows; close it."""
    of = task(place, data)
    identity = Identity(
        teacher=teacher_digest(teacher),
        data=_samples(place, data),
        view={"augment": of.augment.model_dump(mode="json"), "seed": seed, "precision": PRECISION},
        logits=len(of.classes),
        samples=len(of.splits["train"].ids),
        views=of.augment.views or 1,
        features=_tapped(teacher, of.input_shape, layers),
    )
    return open_cache(cache_folder(place.out / "answers", identity), identity, max_bytes=2**30)


def keep_answers(place: Place, data: str, name: str, seed: int, layers: str, tick: Tick = silent) -> None:
    """Ask the net ``name`` once for every view of every training sample."""
    of, teacher = task(place, data), load_model(place.net(name))[0]
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    split, taps = of.splits["train"], tuple(_tapped(teacher, of.input_shape, layers))
    samples, views = len(split.ids), of.augment.views or 1
    with answers(place, data, teacher, seed, layers) as cache, tapped(teacher, taps) as features:
        for number in range(views):
            for first in range(0, samples, 128):
                index = np.arange(first, min(first + 128, samples))
                if cache.get(number, index) is None:
                    inputs = torch.from_numpy(view(split, index, of.augment, seed, number).inputs)
                    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                        logits = teacher(inputs.to(memory_format=torch.channels_last))
                    cache.put(number, index, logits.float(), tuple(features[tap].float() for tap in taps))
                tick(number * samples + int(index[-1]) + 1, views * samples, f"view {number + 1}/{views}")


def _tapped(teacher: nn.Module, input_shape: tuple[int, ...], layers: str) -> dict[str, tuple[int, ...]]:
    """Layer -> shape without N."""
    if layers == "logits":
        return {}
    seen = trace(teacher, input_shape)
    pairs = resolve("embedding", seen, seen)
    return {pair.teacher: shape for pair, shape in zip(pairs, sizes(pairs, seen, seen, 1).teacher, strict=True)}
