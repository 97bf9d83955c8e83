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
from edgewise.errors import DataError
from edgewise.models.tasks.base import Float, Split, Task
from edgewise.profiles import DEFAULT_ROUND_TO
from edgewise.progress import Tick
from edgewise.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from edgewise.bench.record import FileUnderTest
    from edgewise.compress.config import Fit
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
    with (work.payload / "inputs.npy").open("wb") as file:
        # Written, not mapped: on a full disk a write is an error that can be told, a page fault kills the process.
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *task.input_shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, 500):
            index = np.arange(start, min(start + 500, count))
            file.write(np.ascontiguousarray(test.read(index), "<f4").tobytes())
            work.tick(int(index[-1]) + 1, count, "test samples")
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
    return {
        "accuracy": float(scores.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "samples": len(scores),
    }


def _loaded(work: Work, role: str = "model") -> tuple[nn.Module, Description]:
    """A parent's model, in a torch that uses as many threads as the recipe says."""
    import torch

    from edgewise.compress.saved import load_model

    torch.set_num_threads(work.recipe.threads)
    return load_model(work.parents[role].folder)


def _history(work: Work, history: list[Any]) -> None:
    (work.payload / "history.json").write_text(json.dumps([asdict(epoch) for epoch in history], indent=1))


def _learn_labels(work: Work, model: nn.Module, config: Fit) -> None:
    from edgewise.compress.train import fit, labels_only

    task = work.task()
    history = fit(
        model,
        task.splits["train"],
        labels_only(config.label_smoothing),
        config,
        seed=work.recipe.seed,
        augment=task.augment,
        checkpoint=work.checkpoint,
        tick=work.tick,
    )
    _history(work, history)


def source(work: Work) -> dict[str, Any]:
    """The teacher, or the student before any lesson: built, its weights loaded, trained where the recipe says so."""
    import torch

    from edgewise.compress.saved import Description
    from edgewise.models.build import build
    from edgewise.models.weights import load_weights

    task, config = work.task(), work.config
    torch.set_num_threads(work.recipe.threads)
    torch.manual_seed(work.recipe.seed)
    model = build(config.model, task.input_shape, len(task.classes))
    if config.weights is not None:
        load_weights(model, config.weights)
    lessons = getattr(config, "train", None)
    if lessons is not None:
        _learn_labels(work, model, lessons)
    return _save(work, model, Description(model=config.model, input_shape=task.input_shape, classes=len(task.classes)))


def train(work: Work) -> dict[str, Any]:
    """Train the model on labels."""
    model, description = _loaded(work)
    _learn_labels(work, model, work.config.fit)
    return _save(work, model, description)


def prune(work: Work) -> dict[str, Any]:
    """Remove channels."""
    from edgewise.compress.prune import prune as prune_channels
    from edgewise.compress.saved import ChannelPlan, Description

    model, description = _loaded(work)
    pruned = prune_channels(
        model,
        work.config,
        work.task().input_shape,
        round_to=work.config.round_to or DEFAULT_ROUND_TO,
        seed=work.recipe.seed,
    )
    smaller = Description(**{**dict(description), "edits": (*description.edits, ChannelPlan(plan=pruned.plan))})
    (work.payload / "pruned.json").write_text(json.dumps(asdict(pruned), indent=1, sort_keys=True))
    return _save(work, model, smaller, skipped=dict(pruned.skipped))


def distill(work: Work) -> dict[str, Any]:
    """Train the model on the teacher's signals."""
    from edgewise.compress.distill import distill as distil_into

    model, description = _loaded(work)
    master, _ = _loaded(work, "teacher")
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
    from edgewise.compress.saved import Description, FakeQuantized

    task = work.task()
    model, description = _loaded(work)
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
    """The ONNX graphs of one model: float32 (and float16), or the Q/DQ flavours of a quantized one."""
    import onnx

    from edgewise.deploy.contracts import trt
    from edgewise.deploy.export import export_float, export_qdq

    shape, half = work.task().input_shape, work.config["half"]
    model, _ = _loaded(work)
    if work.config["form"] != "quantized":
        export_float(model, shape, work.payload / "float.onnx")
        if half:
            export_float(model, shape, work.payload / "half.onnx", half=True)
        return {}
    export_qdq(model, shape, work.payload / "unsigned.onnx", signed=False)
    if half:
        signed = work.payload / "signed.half.onnx"
        export_qdq(model, shape, signed, signed=True, half=True)
        findings = [asdict(finding) for finding in trt.check(onnx.load(signed))]
        (work.payload / "contract.json").write_text(json.dumps({"runtime": "tensorrt", "findings": findings}))
    return {}


def _source(work: Work) -> Source:
    """Where a converter finds the model in each form; absent forms are None."""
    from edgewise.deploy.convert.base import Source

    def exported(form: str, name: str) -> Path | None:
        path = work.parents[form].file(name) if form in work.parents else None
        return path if path is not None and path.exists() else None

    floating = "teacher" if "teacher" in work.parents else "student"
    return Source(
        float_onnx=exported(floating, "float.onnx"),
        half_onnx=exported(floating, "half.onnx"),
        unsigned_onnx=exported("quantized", "unsigned.onnx"),
        half_signed_onnx=exported("quantized", "signed.half.onnx"),
        contract=exported("quantized", "contract.json"),
        model_folder=work.parents["model"].folder,
        calibration=work.parents["samples"].file("calibration.npy"),
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
    made = {"main": main.relative_to(work.payload).as_posix()}
    report = job.out.with_name(job.out.name + ".report.json")
    if work.config["precision"] == "int8" and report.exists():
        told = json.loads(report.read_text())
        whole = told["integer_ops"] + told["float_ops"]
        left = f"; float: {', '.join(told['float_layers'])}" if told.get("float_layers") else ""
        made["integer"] = f"{told['integer_ops']} of {whole}{left}"
    return made


def measure(work: Work) -> dict[str, Any]:
    """Measure every file in its runtime: speed, memory, size, answers; and hold it against the torch model."""
    from edgewise.bench.measure import measure as measure_files

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
    index = np.load(work.payload / "index.npy")
    parity: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        torch_answers = np.load(work.parents[entry["against"]].file("answers.npy"))[index]
        rows = [_parity(f"torch, {entry['against']}", torch_answers, results.outputs(entry["name"]))]
        if entry["precision"] != "float32":
            rows.append(_parity(entry["parent"], results.outputs(entry["parent"]), results.outputs(entry["name"])))
        parity[entry["name"]] = rows
    (work.payload / "parity.json").write_text(json.dumps(parity, indent=1, sort_keys=True))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"files": len(files), "measured_at": now, "metric": about["metric"]}


def _parity(against: str, reference: Float | None, answers: Float | None) -> dict[str, Any]:
    """One row of parity; empty where a file did not answer, or not with finite numbers."""
    from edgewise.deploy.parity import compare

    pair = [array for array in (reference, answers) if array is not None and np.isfinite(array).all()]
    if len(pair) < 2:
        return {"against": against, "n": 0, "sqnr_db": None, "flips": None, "max_abs": None}
    return {"against": against, **asdict(compare(*pair))}


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
                sha256=made.files[made.metrics["main"]]["sha256"],
                reference=entry["reference"],
                parent=entry["parent"],
            )
        )
    return files
