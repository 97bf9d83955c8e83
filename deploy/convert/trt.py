"""The bundle for TensorRT 10.3 to 11: a folder with the graphs, what is known about them, and how to build the engine.

An engine runs only on the GPU and with the TensorRT version that built it, so it is built on the device, by
``build.sh``. One path serves all versions: strongly typed, explicit INT8 Q/DQ, float16 written into the graph, opset 19
or 20. Where TensorRT and a GPU are present the engine is built here too; that part shares its calls with TensorRT-RTX,
but has **not been run** with TensorRT itself yet. Where TensorRT-RTX is installed, its parser and builder, which need
no GPU, are asked what they make of the graph; that says nothing about speed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import onnx

from edgewise import errors
from edgewise.config import Precision
from edgewise.deploy.convert.base import Source, named, need, refuse
from edgewise.deploy.convert.planned import check_graph
from edgewise.deploy.convert.rtx import conformance
from edgewise.deploy.convert.trt_build import build
from edgewise.deploy.convert.trt_device import DEVICE_INIT, build_script, page
from edgewise.deploy.onnx_graph import strip, to_bytes
from edgewise.deploy.runtimes import trt
from edgewise.errors import ContractError, ModelError
from edgewise.models.inputs import blank, dtype_of, is_text

FORMAT = 1
OPSETS = range(9, 21)
HALF_OPSETS = range(19, 21)  # float16 scales of Q/DQ came with opset 19
NAMES = {"float32": "model.fp32", "float16": "model.fp16", "int8": "model.int8"}
RUNNER = ("__init__.py", "base.py", "cudart.py", "trt.py")


def convert(source: Source, precision: Precision, out: Path) -> Path:
    """Write the folder ``<out>.trt``; its ``manifest.json`` is returned.

    For int8 the float16 graph lies beside it, where the source has one: the reference to measure against.

    Raises:
        ModelError: no exported graph for this precision, or an opset TensorRT doesn't read.
        ContractError: a quantized graph with uint8 in it, one that doesn't obey the plan, or one that TensorRT-RTX
            refuses to parse.
    """
    refuse("tensorrt", precision)
    graphs = {precision: _graph(source, precision)}
    if precision == "int8" and source.half_onnx is not None:
        graphs["float16"] = _graph(source, "float16")
    folder = named(out, ".trt")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    files: dict[str, Any] = {}
    for kind, graph in sorted(graphs.items()):
        path = folder / f"{NAMES[kind]}.onnx"
        model = onnx.load(graph)
        strip(model)  # the graph may come from another exporter, which notes file paths on each node
        if kind == "int8":
            check_graph(model, source.float_layers, path.name)
        path.write_bytes(to_bytes(model))
        files[path.name] = _describe(path, kind)
    main = f"{NAMES[precision]}.onnx"
    engine, reason = _build_here(folder / main, source)
    model = onnx.load(folder / main)
    manifest = {
        "format": FORMAT,
        "kind": "tensorrt-bundle",
        "precision": precision,
        "main": main,
        "input": {"name": "input", "dtype": dtype_of(source.input_shape), "shape": _shape(model.graph.input[0])},
        "output": {"name": "logits", "dtype": "float32", "shape": _shape(model.graph.output[0])},
        "longest": source.input_shape[0] if is_text(source.input_shape) else None,
        "padding": source.padding,
        "files": files,
        "float_layers": list(source.float_layers),
        "contract": json.loads(source.contract.read_text(encoding="utf-8")) if source.contract else None,
        "conformance": conformance(folder / main, blank(source.input_shape, 1).shape),
        "runner": "runner/run.py",
        "built": engine is not None,
        "engine": engine,
        "reason": reason,
    }
    script = folder / "build.sh"
    models = " ".join(NAMES[kind] for kind in sorted(graphs))
    script.write_text(build_script(models, source.input_shape), encoding="utf-8")
    script.chmod(0o755)
    (folder / "README.md").write_text(page(NAMES[precision], source.input_shape), encoding="utf-8")
    _write_runner(folder / "runner")
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def _shape(item: onnx.ValueInfoProto) -> list[int | None]:
    """An end's sizes; None where one is open."""
    return [dim.dim_value or None for dim in item.type.tensor_type.shape.dim]


def _write_runner(folder: Path) -> None:
    """What a device needs to run an engine, as plain files: it has Python and numpy, and no edgewise."""
    package = folder / "edgewise"
    runtimes = package / "deploy" / "runtimes"
    runtimes.mkdir(parents=True)
    for light in (package, package / "deploy"):
        (light / "__init__.py").write_text(DEVICE_INIT, encoding="utf-8")
    shutil.copyfile(errors.__file__, package / "errors.py")
    here = Path(trt.__file__).parent
    for name in RUNNER:
        shutil.copyfile(here / name, runtimes / name)
    shutil.copyfile(here / "trt_run.py", folder / "run.py")


def _graph(source: Source, precision: Precision) -> Path:
    if precision == "float32":
        return need(source.float_onnx, "a float ONNX graph")
    if precision == "float16":
        return need(source.half_onnx, "a float16 ONNX graph")
    return need(source.half_signed_onnx or source.signed_onnx, "an ONNX graph with int8 Q/DQ (signed activations)")


def _describe(path: Path, precision: str) -> dict[str, Any]:
    model = onnx.load(path)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    allowed = HALF_OPSETS if half and precision == "int8" else OPSETS
    if opset not in allowed:
        raise ModelError(
            f"TensorRT 10.3 to 11 reads opsets {allowed[0]} to {allowed[-1]} here, this graph has {opset}",
            where=str(path.name),
            hint="export with opset 20",
        )
    if precision == "int8":
        unsigned = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8]
        if unsigned:
            raise ContractError(
                f"TensorRT has no uint8: {len(unsigned)} zero-points or weights are, the first is {unsigned[0]!r}",
                where=path.name,
                hint="export the signed Q/DQ graph for TensorRT",
            )
    content = path.read_bytes()
    return {
        "precision": precision,
        "opset": opset,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _build_here(graph: Path, source: Source) -> tuple[str | None, str]:
    """(engine's file name, "") or (None, why there is none)."""
    absent = trt.missing()
    if absent is not None:
        return None, f"{absent}. Run build.sh on the device."
    engine = graph.with_suffix(".engine")
    engine.write_bytes(build_engine(graph, blank(source.input_shape, 1).shape))
    return engine.name, ""


def build_engine(graph: Path, shape: tuple[int, ...]) -> bytes:
    """Build an engine for this GPU, strongly typed, for one static input shape (N, C, H, W), or texts up to (N, L).

    Raises:
        ModelError: TensorRT can't parse the graph, or can't build it.
    """
    api = importlib.import_module("tensorrt")
    return build(api, graph, shape, api.Logger(api.Logger.ERROR))
