"""One run: an arm with one seed, trained, judged and written down."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments import DATA, NETS
from jobs import Run, history, surroundings, write
from nets import PRECISION, Noisy, Place, accuracy, answers, draw_again, fresh, kept_layers, learn, lessons, task
from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.macs import count
from edgewise.compress.quantization.qad import quantize
from edgewise.compress.saved import load_model
from edgewise.compress.train import evaluate
from edgewise.deploy.export import export_qdq
from edgewise.deploy.runtimes import Options, get
from edgewise.models.tasks.base import Split, Task
from edgewise.progress import Tick
from edgewise.stages.work import spread


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


def kept(place: Place, run: Run) -> str | None:
    """Which of its teachers' answers the arm reads from disk; None where they answer live, or there are none."""
    if not run.settings.teachers:
        return None
    try:
        return kept_layers(lessons(lesson(place, run), run.fit).losses)
    except ValueError:
        return None  # the run itself says what is wrong


def asked(place: Place, run: Run) -> dict[str, Any]:
    """What ``experiments.py`` says of the run, as JSON; defaults of configs are not in it."""
    arm = run.settings
    fields = {name: value for name, value in arm.lesson.items() if name != "ensemble"}
    config = {**fields, **(arm.quantize or {}), "fit": run.fit, "noise": arm.noise, "start": arm.start}
    augment = DATA[run.of.data].config(place.data).augment.model_dump(mode="json")
    teachers = arm.nets(run.seed)[: len(arm.teachers)]
    plain: dict[str, Any] = json.loads(json.dumps({"config": config, "augment": augment, "teachers": teachers}))
    return plain


def quantized(run: Run) -> Quantize | None:
    """The config of an arm that quantizes; None for the others.

    Raises:
        ValueError: a field is not known.
    """
    if run.settings.quantize is None:
        return None
    steps = run.fit if run.fit["epochs"] else None
    return Quantize.model_validate({"kind": "quantize", **run.settings.quantize, "fit": steps})


def settings(place: Place, run: Run) -> dict[str, Any]:
    """What was asked for with every default written out.

    Raises:
        ValueError: a loss or a field is not known.
    """
    arm, found = run.settings, asked(place, run)
    if (config := quantized(run)) is not None:
        found["config"] = {**found["config"], **config.model_dump(mode="json", exclude={"fit"})}
    if arm.teachers:
        config = lessons(lesson(place, run), run.fit).model_dump(mode="json")
        config.pop("ensemble")  # it holds paths of this machine; "teachers" names them
        mean = arm.lesson.get("ensemble", {}).get("mean")
        found["config"] = {**found["config"], **config, "ensemble_mean": mean, "teacher_precision": PRECISION}
    return found


def stale(place: Place, runs: Sequence[Run]) -> list[Path]:
    """Results of other settings than the runs ask for now."""
    found = []
    for run in runs:
        path = run.result(place.out)
        if path.exists() and not _within(asked(place, run), json.loads(path.read_text())):
            found.append(path)
    return found


def _within(asked: Any, record: Any) -> bool:
    """Whether ``record`` says all that ``asked`` says."""
    if isinstance(asked, dict):
        return isinstance(record, dict) and all(n in record and _within(v, record[n]) for n, v in asked.items())
    if isinstance(asked, list):
        same = isinstance(record, list) and len(record) == len(asked)
        return same and all(_within(one, other) for one, other in zip(asked, record, strict=True))
    return bool(asked == record)


def train(place: Place, run: Run, tick: Tick) -> None:
    """Train the arm and write its result."""
    torch.set_num_threads(1)
    arm, of = run.settings, task(place, run.of.data)
    split: Split = of.splits["train"]
    if arm.noise:
        split = Noisy(split, arm.noise, len(of.classes))
    model = _start(place, run, of)
    teachers = tuple(load_model(place.net(name.format(seed=run.seed)))[0] for name in arm.teachers)
    layers = kept(place, run)
    caches = [answers(place, run.of.data, teacher, run.seed, layers) for teacher in teachers] if layers else []
    digest = hashlib.sha256(json.dumps(asked(place, run), sort_keys=True).encode()).hexdigest()
    checkpoint = place.checkpoint(f"{run.name}.{digest[:8]}")
    resumed = checkpoint.exists()
    wall, cpu = time.perf_counter(), time.process_time()
    size, config, judged = count(model, of.input_shape), quantized(run), {}
    try:
        if config is not None:
            smaller, epochs = quantize(
                model,
                split,
                config,
                calibration=split.read(spread(len(split.ids), config.calibration_samples)),
                teacher=teachers[0] if teachers else None,
                seed=run.seed,
                augment=of.augment,
                checkpoint=checkpoint,
                tick=tick,
            )
            judged = judge(smaller, model, of)
        else:
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
            judged = {"test": accuracy(model, of)}
    finally:
        for cache in caches:
            cache.close()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    write(
        run.result(place.out),
        {
            "experiment": run.experiment,
            "arm": run.arm,
            "seed": run.seed,
            **judged,
            "train_images": len(split.ids),
            "wall_s": wall,
            "cpu_s": cpu,
            "resumed": resumed,
            "answers": ("kept" if caches else "live") if teachers else None,
            "params": size.params,
            "macs": size.macs,
            **settings(place, run),
            "epochs": history(epochs),
            "made_with": surroundings(),
        },
    )
    checkpoint.unlink(missing_ok=True)


def judge(smaller: nn.Module, whole: nn.Module, of: Task) -> dict[str, float]:
    """A quantized net's file in ONNX Runtime's integer kernels, against the float net in torch.

    ``test``: the metric; ``torch``: that of the fake-quantized net; ``flips``: answers that differ from the float
    net's; ``kl``: KL(float || file), mean over samples, in nats.
    """
    test = of.splits["test"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        export_qdq(smaller, of.input_shape, path, signed=False)
        session = get("onnxruntime").open(str(path), Options(batch=100))
        batches = [np.arange(first, first + 100) for first in range(0, len(test.ids) // 100 * 100, 100)]
        answers = np.concatenate([session.run({"input": test.read(batch)})["logits"] for batch in batches])
        session.close()
    targets = test.targets[: len(answers)]
    theirs = torch.from_numpy(evaluate(whole, test)[: len(answers)]).log_softmax(1)
    ours = torch.from_numpy(answers).log_softmax(1)
    return {
        "test": float(of.score(answers, targets).mean()),
        "torch": accuracy(smaller, of),
        "flips": float((ours.argmax(1) != theirs.argmax(1)).float().mean()),
        "kl": float((theirs.exp() * (theirs - ours)).sum(1).mean()),
    }


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
