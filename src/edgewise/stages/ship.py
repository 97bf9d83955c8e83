"""From files for a device to measurements: what the device needs, graphs, conversions, numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.artifact import Artifact
from edgewise.models.inputs import blank
from edgewise.models.tasks.base import IGNORED, Float, Task, TextSplit
from edgewise.stages.work import Work, loaded, others, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgewise.bench.record import FileUnderTest
    from edgewise.bench.slices import Labels
    from edgewise.deploy.convert.base import Source


def samples(work: Work) -> dict[str, Any]:
    """What the device needs of the task: test inputs, targets, ids, calibration inputs, and what inputs are prepared
    with, such as a tokenizer."""
    task = work.task()
    test, train = task.splits["test"], task.splits["train"]
    count, like = len(test.ids), blank(task.input_shape, 1)
    kind = like.dtype.newbyteorder("<")
    with (work.payload / "inputs.npy").open("wb") as file:
        # Written, not mapped: on a full disk a write is an error that can be told, a page fault kills the process.
        header = {"descr": kind.str, "fortran_order": False, "shape": (count, *like.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, 500):
            index = np.arange(start, min(start + 500, count))
            file.write(np.ascontiguousarray(test.read(index), kind).tobytes())
            work.tick(int(index[-1]) + 1, count, "test samples")
    np.save(work.payload / "targets.npy", test.targets)
    np.save(work.payload / "calibration.npy", train.read(spread(len(train.ids), work.config["calibration_samples"])))
    slices = {name: [str(word) for word in words] for name, words in task.slices.items()}
    about = {
        "ids": list(test.ids),
        "classes": list(task.classes),
        "metric": task.metric,
        "slices": slices,
        "kind": task.kind,
        "padding": padding(task),
    }
    for name, path in task.carried.items():
        shutil.copyfile(path, work.payload / name)
    (work.payload / "samples.json").write_text(json.dumps(about))
    return {"test_samples": count, "told": list(task.notes)}


def padding(task: Task) -> int | None:
    """The id that the task's texts are filled up with; None of images."""
    test = task.splits["test"]
    return int(test.padding) if isinstance(test, TextSplit) else None


def export(work: Work) -> dict[str, Any]:
    """One ONNX graph of one model: float32, float16, or one Q/DQ flavour of a quantized one."""
    import onnx

    from edgewise.compress.saved import planned_floats
    from edgewise.deploy.contracts import trt
    from edgewise.deploy.export import export_float, export_qdq

    shape, form = work.task().input_shape, work.config["form"]
    model, description = loaded(work)
    floats = planned_floats(description)
    if form == "quantized":
        export_qdq(model, shape, work.payload / "unsigned.onnx", signed=False, float_layers=floats)
    elif form == "signed":
        signed = work.payload / "signed.half.onnx"
        export_qdq(model, shape, signed, signed=True, half=True, float_layers=floats)
        findings = [asdict(finding) for finding in trt.check(onnx.load(signed), floats)]
        (work.payload / "contract.json").write_text(json.dumps({"runtime": "tensorrt", "findings": findings}))
    elif form == "half":
        export_float(model, shape, work.payload / "half.onnx", half=True)
    else:
        export_float(model, shape, work.payload / "float.onnx")
    return {}


def _source(work: Work) -> Source:
    """Where a converter finds the model in each form; absent forms are None."""
    from edgewise.compress.saved import planned_floats, read_description
    from edgewise.deploy.convert.base import Source

    def exported(form: str, name: str) -> Path | None:
        path = work.parents[form].file(name) if form in work.parents else None
        return path if path is not None and path.exists() else None

    floating = "teacher" if "teacher" in work.parents else "student"
    return Source(
        float_onnx=exported(floating, "float.onnx"),
        half_onnx=exported("half", "half.onnx"),
        unsigned_onnx=exported("quantized", "unsigned.onnx"),
        half_signed_onnx=exported("signed", "signed.half.onnx"),
        contract=exported("signed", "contract.json"),
        float_layers=planned_floats(read_description(work.parents["model"].folder)),
        model_folder=work.parents["model"].folder,
        calibration=work.parents["samples"].file("calibration.npy"),
        input_shape=work.task().input_shape,
        classes=len(work.task().classes),
        padding=padding(work.task()),
    )


def card(task: Task) -> dict[str, Any]:
    """What a program on the device must know to ask a file: ends, what the numbers mean, what prepares inputs."""
    like = blank(task.input_shape, 1)
    return {
        "input": {"name": "input", "dtype": str(like.dtype), "shape": list(like.shape)},  # of texts the longest
        "output": {"name": "logits", "task": task.kind},
        "classes": list(task.classes),
        "padding": padding(task),
        "prepared_with": sorted(task.carried),
    }


def convert(work: Work) -> dict[str, Any]:
    """One file for one runtime, made in a process of its own, and beside it all that a device needs to use it."""
    from edgewise.deploy.convert.base import Job
    from edgewise.deploy.convert.run import convert_in_process

    job = Job(
        runtime=work.config["runtime"],
        precision=work.config["precision"],
        source=_source(work),
        out=work.payload / "model",
        timeout_s=work.recipe.deploy.timeout_s,
    )
    work.tick(0, 1, "convert")
    main = convert_in_process(job)
    work.tick(1, 1, "convert")
    for name, path in work.task().carried.items():
        shutil.copyfile(path, work.payload / name)
    (work.payload / "card.json").write_text(json.dumps(card(work.task()), indent=1))
    made: dict[str, Any] = {"main": main.relative_to(work.payload).as_posix()}
    if work.config["precision"] in ("int8", "int8_dynamic"):
        made |= _executed(main, job.out.with_name(job.out.name + ".report.json"))
    return made


def _executed(main: Path, report: Path) -> dict[str, Any]:
    """What the conversion read back of the graph that the runtime executes, in words and as the share of
    multiply-accumulates in integers; for TensorRT, what TensorRT-RTX says, where it is installed."""
    told = json.loads(report.read_text()) if report.exists() else None
    if told is None and main.suffix == ".json":
        told = json.loads(main.read_text()).get("conformance")
    if not told or "integer_macs_share" not in told:
        return {}
    whole = told["integer_ops"] + told["float_ops"]
    left = f"; float: {', '.join(told['float_layers'])}" if told["float_layers"] else ""
    return {
        "integer": f"{told['integer_ops']} of {whole}{left}",
        "integer_macs_share": told["integer_macs_share"],
        "macs": told["macs"],
        "float_layers": told["float_layers"],
    }


def triton(work: Work) -> dict[str, Any]:
    """A model repository for Triton Inference Server."""
    from edgewise.deploy.triton import Served, write_repository

    config, task, asked = work.config, work.task(), work.recipe.deploy.triton
    assert asked is not None  # the plan has this step where the recipe asks for it
    served = [
        Served(
            name=f"{config['recipe']}-{file['name']}",
            runtime=file["runtime"],
            file=work.parents[file["name"]].file(work.parents[file["name"]].metrics["main"]),
        )
        for file in config["files"]
    ]
    told = write_repository(
        served,
        asked,
        work.payload,
        input_shape=task.input_shape,
        classes=task.classes,
        tags=task.kind == "tag",
    )
    told += [f"{name}: left out, Triton has no backend of its own for LiteRT" for name in config["left"]]
    told += [
        f"{served_name}: Triton computes it in OpenVINO's default precision, not in bfloat16 by this configuration"
        for served_name in (file["name"] for file in config["files"])
        if served_name.endswith("-bfloat16")
    ]
    for line in told:
        work.note(f"{work.name}: {line}")
    return {"told": told}


def measure(work: Work) -> dict[str, Any]:
    """Measure every file in its runtime: speed, memory, size, answers; and hold it against the torch model."""
    from edgewise.bench.devices.base import open_device, require_runtimes
    from edgewise.bench.measure import measure as measure_files
    from edgewise.bench.slices import keep

    held = work.parents["samples"]
    about = json.loads(held.file("samples.json").read_text())
    entries = work.config["files"]
    files = under_test(entries, work.parents)
    config = work.recipe.bench
    # What is finished survives a broken link or a killed process there; the payload would start empty.
    there = work.scratch / "measured"
    with open_device(config.device) as device:
        require_runtimes(device, [file.runtime for file in files], all_of=True)
        results = measure_files(
            files,
            held.file("inputs.npy"),
            np.load(held.file("targets.npy")),
            about["ids"],
            config,
            there,
            score=work.task().score,
            padding=about.get("padding"),
            tick=work.tick,
            device=device,
        )
    for made in there.iterdir():
        made.rename(work.payload / made.name)
    results = replace(results, folder=work.payload)
    index = np.load(work.payload / "index.npy")
    keep(results, sliced(held.folder, index))
    words = judged(work.task().kind, np.load(held.file("targets.npy"))[index])
    parity: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        torch_answers = np.load(work.parents[entry["against"]].file("answers.npy"))[index]
        rows = [_parity(f"torch, {entry['against']}", torch_answers, results.outputs(entry["name"]), words)]
        if entry["precision"] != "float32" and entry["parent"] is not None:
            parent = results.outputs(entry["parent"])
            rows.append(_parity(entry["parent"], parent, results.outputs(entry["name"]), words))
        parity[entry["name"]] = rows
    (work.payload / "parity.json").write_text(json.dumps(parity, indent=1, sort_keys=True))
    targets = np.load(held.file("targets.npy"))[index]
    answered = {file.name: results.outputs(file.name) for file in files}
    sound = {name: outputs for name, outputs in answered.items() if outputs is not None and np.isfinite(outputs).all()}
    more = {name: others(work.task(), outputs, targets) for name, outputs in sound.items()}
    if any(more.values()):
        (work.payload / "others.json").write_text(json.dumps(more, indent=1))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"files": len(files), "measured_at": now, "metric": about["metric"]}


def sliced(samples: Path, index: NDArray[np.int64]) -> dict[str, Labels]:
    """What kinds the samples at ``index`` are of: their class, and what the task says of them."""
    from edgewise.bench.slices import Labels, named

    about, targets = json.loads((samples / "samples.json").read_text()), np.load(samples / "targets.npy")
    kinds = {name: named([words[place] for place in index]) for name, words in about["slices"].items()}
    if about.get("kind", "classify") != "classify":
        return kinds  # a sentence of tags, or a number, is of no class
    return {"class": Labels(targets[index].astype(np.int64), tuple(about["classes"])), **kinds}


def judged(kind: str, targets: NDArray[Any]) -> NDArray[np.bool_] | None:
    """(n, L): the tokens whose answers count, of a task that tags; None of others."""
    return targets != IGNORED if kind == "tag" else None


def _parity(
    against: str, reference: Float | None, answers: Float | None, words: NDArray[np.bool_] | None
) -> dict[str, Any]:
    """One row of parity; empty where a file did not answer, or not with finite numbers."""
    from edgewise.deploy.parity import compare

    pair = [array for array in (reference, answers) if array is not None and np.isfinite(array).all()]
    if len(pair) < 2:
        return {"against": against, "n": 0, "sqnr_db": None, "flips": None, "max_abs": None}
    return {"against": against, **asdict(compare(pair[0], pair[1], words))}


def under_test(entries: list[dict[str, Any]], parents: Mapping[str, Artifact]) -> list[FileUnderTest]:
    """The converted files as the bench wants them. A file's size is that of all its parts."""
    from edgewise.bench.record import FileUnderTest

    files = []
    for entry in entries:
        made = parents[entry["name"]]
        parts = [part for name, part in made.files.items() if not name.endswith(".report.json")]
        weights = made.files.get(Path(made.metrics["main"]).with_suffix(".bin").as_posix(), {})
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
                weights_sha256=weights.get("sha256"),
            )
        )
    return files
