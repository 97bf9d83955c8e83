"""Float and INT8 files of one net for three runtimes, made with the product's functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from options import CALIBRATION, FILE, NETS, Net

from edgewise.artifact import sha256_file
from edgewise.bench.record import FileUnderTest
from edgewise.compress.config import Quantize
from edgewise.compress.quantization.float_layers import resolve_float_layers
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config
from edgewise.compress.saved import Description, FakeQuantized, built, save_model
from edgewise.config import Precision, RuntimeName
from edgewise.deploy.convert.base import Job, Source
from edgewise.deploy.convert.run import convert_in_process
from edgewise.deploy.export import export_float, export_qdq
from edgewise.errors import EdgewiseError
from edgewise.models.config import ModelFactory, ViT
from edgewise.models.tasks import Task
from edgewise.models.tasks.config import TaskFactory
from edgewise.models.tasks.load import load_task
from edgewise.models.weights import load_weights

HERE = "benchmarks.imagenet"
RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino", "litert")
SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml", "litert": ".tflite"}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where data comes from, and where files go."""

    data: Path
    out: Path

    def files(self, net: str, row: str) -> Path:
        """The folder of one row's files; those of the float net are the row ``float``."""
        return self.out / net / row


def task_of(place: Place, name: str) -> Task:
    """The task of a net: labelled images where its weights mean something, noise where they don't."""
    net = NETS[name]
    if net.weights:
        arguments = {"path": str(place.data / FILE), "normalisation": net.normalisation, "calibration": CALIBRATION}
        config = {"kind": "factory", "factory": f"{HERE}.samples:imagenet", "arguments": arguments}
    else:
        arguments = {"shape": list(net.input_shape), "classes": net.classes, "samples": max(64, net.classes)}
        config = {"kind": "factory", "factory": f"{HERE}.samples:noise", "arguments": arguments}
    return load_task(TaskFactory.model_validate_json(json.dumps(config)))


def float_model(place: Place, name: str) -> tuple[torch.nn.Module, Description]:
    """The float net with its weights, and how to build it again."""
    net = NETS[name]
    model = ViT.model_validate(net.model) if net.model else ModelFactory(kind="factory", factory=_path(net))
    description = Description(model=model, input_shape=net.input_shape, classes=net.classes)
    torch.manual_seed(0)
    made = built(description).eval()
    if net.weights:
        load_weights(made, place.data / net.weights)
    return made, description


def _path(net: Net) -> str:
    return f"{HERE}.nets:{net.factory}"


def make(place: Place, name: str, row: str, settings: dict[str, Any] | None, say: Say = print) -> list[FileUnderTest]:
    """The files of one row, those that could be made; what is there already stays.

    Args:
        place: data and results.
        name: of the net.
        row: the row's name.
        settings: of the ``quantize`` stage; None for the float files.
        say: told of a conversion that failed.
    """
    folder = place.files(name, row)
    precision: Precision = "float32" if settings is None else "int8"
    missing = [runtime for runtime in RUNTIMES if not (folder / f"{runtime}{SUFFIX[runtime]}").exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        source = _prepare(place, name, folder, settings)
        for runtime in missing:
            try:
                convert_in_process(Job(runtime, precision, source, folder / runtime))
            except EdgewiseError as error:
                say(f"{name} {row} {runtime}: {error}")
    found = [(runtime, folder / f"{runtime}{SUFFIX[runtime]}") for runtime in RUNTIMES]
    return [under_test(row, runtime, precision, path) for runtime, path in found if path.exists()]


def _prepare(place: Place, name: str, folder: Path, settings: dict[str, Any] | None) -> Source:
    """Graphs and a saved model to convert."""
    torch.set_num_threads(1)  # of two, sums end in other bits, and corrected biases elsewhere
    model, description = float_model(place, name)
    shape = description.input_shape
    common: dict[str, Any] = {"input_shape": shape, "classes": description.classes, "model_folder": folder / "model"}
    if settings is None:
        save_model(model, description, folder / "model")
        export_float(model, shape, folder / "graph.onnx")
        return Source(**common, float_onnx=folder / "graph.onnx")
    train = task_of(place, name).splits["train"]
    calibration = train.read(np.arange(min(CALIBRATION, len(train.ids))))
    np.save(place.out / name / "calibration.npy", calibration)
    config = Quantize.model_validate_json(json.dumps({"kind": "quantize", **settings}))
    quantized = insert_quantizers(model, calibration, config)
    floats = resolve_float_layers(model, config.float_layers, shape)
    edit = FakeQuantized(nncf=quantizer_config(quantized), float_layers=floats)
    save_model(quantized, description.model_copy(update={"edits": (edit,)}), folder / "model")
    export_qdq(quantized, shape, folder / "graph.onnx", signed=False, float_layers=floats)
    calibrated = place.out / name / "calibration.npy"
    return Source(**common, unsigned_onnx=folder / "graph.onnx", calibration=calibrated, float_layers=floats)


def under_test(row: str, runtime: str, precision: str, path: Path) -> FileUnderTest:
    """A file beside the float one of the same runtime."""
    parts = [path, path.with_suffix(".bin")] if runtime == "openvino" else [path]
    return FileUnderTest(
        name=f"{runtime}-{row}",
        runtime=runtime,
        precision=precision,
        role="candidate" if precision == "int8" else "reference",
        path=str(path.resolve()),
        size_bytes=sum(part.stat().st_size for part in parts),
        sha256=sha256_file(path),
        reference=f"{runtime}-float",
        parent=f"{runtime}-float",
    )
