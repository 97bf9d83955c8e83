"""The stages: each loads its parents, calls one room, saves what came out. The rooms know nothing of artifacts.

Imports are inside the functions: a run with nothing left to do must answer without loading torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.artifact import Artifact
from edgewise.errors import ContractError
from edgewise.models.tasks.base import Split, Task
from edgewise.progress import Tick
from edgewise.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from edgewise.bench.record import FileUnderTest
    from edgewise.compress.saved import Description
    from edgewise.deploy.convert.base import Source


@dataclass(frozen=True)
class Work:
    """What a stage is given: its config, its parents by role, an empty payload folder, scratch for checkpoints."""

    recipe: Recipe
    config: Any
    task: Callable[[], Task]
    parents: Mapping[str, Artifact]
    payload: Path
    scratch: Path
    tick: Tick

    @property
    def checkpoint(self) -> Path:
        """Where training keeps its last state between two tries."""
        return self.scratch / "checkpoint.safetensors"


Stage = Callable[[Work], dict[str, Any]]
"""A stage fills ``work.payload`` and returns its metrics (JSON)."""


def spread(samples: int, count: int) -> NDArray[np.int64]:
    """``count`` places spread evenly over ``samples``: (min(count, samples),)."""
    return np.unique(np.linspace(0, samples - 1, min(count, samples)).round().astype(np.int64))


def samples(work: Work) -> dict[str, Any]:
    """What the device needs of the task: test inputs, targets, ids, and calibration inputs."""
    task = work.task()
    test, train = task.splits["test"], task.splits["train"]
    count = len(test.ids)
    shape = (count, *task.input_shape)
    inputs = np.lib.format.open_memmap(work.payload / "inputs.npy", mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, count, 500):
        index = np.arange(start, min(start + 500, count))
        inputs[index] = test.read(index)
        work.tick(int(index[-1]) + 1, count, "test samples")
    inputs.flush()
    np.save(work.payload / "targets.npy", test.targets)
    np.save(work.payload / "calibration.npy", train.read(spread(len(train.ids), work.config["calibration_samples"])))
    about = {"ids": list(test.ids), "classes": list(task.classes), "metric": task.metric}
    (work.payload / "samples.json").write_text(json.dumps(about))
    return {"test_samples": count}


def _save(work: Work, model: nn.Module, description: Description, **metrics: Any) -> dict[str, Any]:
    """Save the model, its answers on the test split, and what it costs."""
    from edgewise.compress.macs import count
    from edgewise.compress.saved import save_model
    from edgewise.compress.train import evaluate

    test: Split = work.task().splits["test"]
    answers = evaluate(model, test, tick=work.tick)
    score = work.task().score(answers, test.targets)
    if "macs" not in metrics:
        cost = count(model, work.task().input_shape)
        metrics |= {"macs": cost.macs, "params": cost.params}
    save_model(model, description, work.payload)
    np.save(work.payload / "answers.npy", answers)
    return {**metrics, "accuracy": float(score.mean()), "correct": float(score.sum()), "samples": len(score)}


def _history(work: Work, history: list[Any]) -> None:
    (work.payload / "history.json").write_text(json.dumps([asdict(epoch) for epoch in history], indent=1))


def teacher(work: Work) -> dict[str, Any]:
    """The teacher: built, its weights loaded, trained or fine-tuned where the recipe says so."""
    import torch

    from edgewise.compress.saved import Description
    from edgewise.compress.train import fit, labels_only
    from edgewise.models.build import build
    from edgewise.models.weights import load_weights

    task, source = work.task(), work.config
    torch.manual_seed(work.recipe.seed)
    model = build(source.model, task.input_shape, len(task.classes))
    if source.weights is not None:
        load_weights(model, source.weights)
    if getattr(source, "train", None) is not None:
        objective = labels_only(source.train.label_smoothing)
        history = fit(
            model,
            task.splits["train"],
            objective,
            source.train,
            seed=work.recipe.seed,
            augment=task.augment,
            checkpoint=work.checkpoint,
            tick=work.tick,
        )
        _history(work, history)
    return _save(work, model, Description(model=source.model, input_shape=task.input_shape, classes=len(task.classes)))


def train(work: Work) -> dict[str, Any]:
    """Train the model on labels."""
    from edgewise.compress.saved import load_model
    from edgewise.compress.train import fit, labels_only

    model, description = load_model(work.parents["model"].folder)
    history = fit(
        model,
        work.task().splits["train"],
        labels_only(work.config.fit.label_smoothing),
        work.config.fit,
        seed=work.recipe.seed,
        augment=work.task().augment,
        checkpoint=work.checkpoint,
        tick=work.tick,
    )
    _history(work, history)
    return _save(work, model, description)


def prune(work: Work) -> dict[str, Any]:
    """Remove channels."""
    from edgewise.compress.prune import prune as prune_channels
    from edgewise.compress.saved import ChannelPlan, Description, load_model

    model, description = load_model(work.parents["model"].folder)
    pruned = prune_channels(
        model,
        work.config,
        work.task().input_shape,
        round_to=work.config.round_to or 8,
        seed=work.recipe.seed,
    )
    smaller = Description(**{**dict(description), "edits": (*description.edits, ChannelPlan(plan=pruned.plan))})
    (work.payload / "pruned.json").write_text(json.dumps(asdict(pruned), indent=1, sort_keys=True))
    return _save(work, model, smaller, skipped=dict(pruned.skipped))


def distill(work: Work) -> dict[str, Any]:
    """Train the model on the teacher's signals."""
    from edgewise.compress.distill import distill as distil_into
    from edgewise.compress.saved import load_model

    model, description = load_model(work.parents["model"].folder)
    master, _ = load_model(work.parents["teacher"].folder)
    history = distil_into(
        model,
        master,
        work.task().splits["train"],
        work.config,
        seed=work.recipe.seed,
        augment=work.task().augment,
        checkpoint=work.checkpoint,
        tick=work.tick,
    )
    _history(work, history)
    return _save(work, model, description)


def quantize(work: Work) -> dict[str, Any]:
    """Fake-quantize, and train on the float model's signals where the recipe says so."""
    from edgewise.compress.qad import quantize as fake_quantize
    from edgewise.compress.quantize import quantizer_config
    from edgewise.compress.saved import Description, FakeQuantized, load_model

    task = work.task()
    model, description = load_model(work.parents["model"].folder)
    split = task.splits["train"]
    quantized, history = fake_quantize(
        model,
        split,
        work.config,
        calibration=split.read(spread(len(split.ids), work.config.calibration_samples)),
        seed=work.recipe.seed,
        augment=task.augment,
        checkpoint=work.checkpoint,
        tick=work.tick,
    )
    _history(work, history)
    edit = FakeQuantized(nncf=quantizer_config(quantized))
    smaller = Description(**{**dict(description), "edits": (*description.edits, edit)})
    cost = {name: work.parents["model"].metrics[name] for name in ("macs", "params")}
    return _save(work, quantized, smaller, **cost)


def export(work: Work) -> dict[str, Any]:
    """One ONNX file for each float model, and the Q/DQ flavours of the quantized one."""
    import onnx

    from edgewise.compress.saved import load_model
    from edgewise.deploy.contracts import trt
    from edgewise.deploy.export import export_float, export_qdq

    shape, wants_half = work.task().input_shape, work.config["half"]
    for role in ("teacher", "student"):
        if role in work.parents:
            model, _ = load_model(work.parents[role].folder)
            export_float(model, shape, work.payload / f"{role}.onnx")
            if wants_half and role == ("student" if "student" in work.parents else "teacher"):
                export_float(model, shape, work.payload / "half.onnx", half=True)
    if "quantized" in work.parents:
        model, _ = load_model(work.parents["quantized"].folder)
        export_qdq(model, shape, work.payload / "unsigned.onnx", signed=False)
        if wants_half:
            signed = work.payload / "signed.half.onnx"
            export_qdq(model, shape, signed, signed=True, half=True)
            findings = [asdict(finding) for finding in trt.check(onnx.load(signed))]
            (work.payload / "contract.json").write_text(json.dumps({"runtime": "tensorrt", "findings": findings}))
    return {}


def _source(work: Work) -> Source:
    """Where a converter finds the model in each form; absent forms are None."""
    from edgewise.deploy.convert.base import Source

    def exported(name: str) -> Path | None:
        path = work.parents["export"].file(name)
        return path if path.exists() else None

    # Where no stage made a smaller float model, the teacher is the student.
    float_form = "student.onnx" if exported("student.onnx") else "teacher.onnx"
    return Source(
        float_onnx=exported("teacher.onnx" if work.config["role"] == "reference" else float_form),
        unsigned_onnx=exported("unsigned.onnx"),
        half_onnx=exported("half.onnx"),
        half_signed_onnx=exported("signed.half.onnx"),
        model_folder=work.parents["model"].folder,
        calibration=work.parents["samples"].file("calibration.npy"),
        contract=exported("contract.json") if work.config["precision"] == "int8" else None,
        input_shape=work.task().input_shape,
        classes=len(work.task().classes),
    )


def convert(work: Work) -> dict[str, Any]:
    """One file for one runtime, made in a process of its own."""
    from edgewise.deploy.convert.base import Job
    from edgewise.deploy.convert.run import convert_in_process

    job = Job(
        runtime=work.config["runtime"],
        precision=work.config["precision"],
        source=_source(work),
        out=work.payload / "model",
    )
    work.tick(0, 1, "convert")
    main = convert_in_process(job)
    work.tick(1, 1, "convert")
    return {"main": main.relative_to(work.payload).as_posix()}


def measure(work: Work) -> dict[str, Any]:
    """Measure every file in its runtime: speed, memory, size, answers; and hold it against the torch model."""
    from edgewise.bench.measure import measure as measure_files
    from edgewise.deploy.parity import compare

    held = work.parents["samples"]
    about = json.loads(held.file("samples.json").read_text())
    entries = work.config["files"]
    files = under_test(entries, work.parents)
    results = measure_files(
        files,
        held.file("inputs.npy"),
        np.load(held.file("targets.npy")),
        about["ids"],
        work.recipe.bench,
        work.payload,
        score=work.task().score,
        tick=work.tick,
    )
    parity = {}
    for entry in entries:
        name, against = entry["name"], entry["against"]
        answers = results.outputs(name)
        if answers is None:
            continue
        torch_answers = np.load(work.parents[against].file("answers.npy"))[np.load(work.payload / "index.npy")]
        row = {"against": f"torch, {against}", **asdict(compare(torch_answers, answers))}
        parity[name] = row
        if entry["precision"] == "float32" and row["sqnr_db"] < work.recipe.deploy.min_sqnr_db:
            raise ContractError(
                f"expected at least {work.recipe.deploy.min_sqnr_db} dB against torch, got {row['sqnr_db']:.1f} dB: "
                f"the conversion changed the model ({row['flips']} of {row['n']} answers)",
                where=name,
                hint="leave this runtime out, or lower deploy.min_sqnr_db if the change is acceptable",
            )
    (work.payload / "parity.json").write_text(json.dumps(parity, indent=1, sort_keys=True))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"files": len(files), "measured_at": now, "metric": about["metric"]}


def under_test(entries: list[dict[str, Any]], parents: Mapping[str, Artifact]) -> list[FileUnderTest]:
    """The converted files as the bench wants them. A file's size is that of all its parts."""
    from edgewise.bench.record import FileUnderTest

    files = []
    for entry in entries:
        made = parents[entry["name"]]
        parts = [part for name, part in made.files.items() if not name.endswith(".report.json")]
        files.append(
            FileUnderTest(
                name=entry["name"],
                runtime=entry["runtime"],
                precision=entry["precision"],
                role=entry["role"],
                path=str(made.file(made.metrics["main"])),
                size_bytes=sum(part["size_bytes"] for part in parts),
                sha256=made.digest,
                reference=entry["reference"],
                parent=entry["parent"],
            )
        )
    return files
