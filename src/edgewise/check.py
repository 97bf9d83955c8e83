"""``edgewise check``: a file held against what its runtimes demand, node by node. Nothing is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from edgewise.errors import ModelError, RecipeError
from edgewise.output import print_table

if TYPE_CHECKING:
    from onnx import ModelProto

    from edgewise.deploy.contracts.base import Finding

CONTRACTS = {
    "onnxruntime": "edgewise.deploy.contracts.ort",
    "openvino": "edgewise.deploy.contracts.ov",
    "tensorrt": "edgewise.deploy.contracts.trt",
    "litert": "edgewise.deploy.contracts.litert",
}
ELSEWHERE = {
    ".xml": "check the .onnx that it was made from, with --runtime openvino; what OpenVINO computes in integers stands "
    "in the .report.json beside an .xml of ours",
    ".json": "of a TensorRT bundle, check the .onnx in it",
}
MEANT = frozenset(("float-island", "stored-weight", "one-sided", "needless-conversion"))
"""What a plan with float layers brings about at these layers themselves."""
SUFFIXES = {".onnx": ("onnxruntime", "openvino", "tensorrt"), ".tflite": ("litert",)}


@dataclass(frozen=True)
class Checked:
    """``found``: the findings of each runtime that was asked."""

    path: Path
    found: dict[str, list[Finding]]

    @property
    def clean(self) -> bool:
        """Whether no runtime has anything against the file."""
        return not any(self.found.values())

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        findings = {runtime: [asdict(finding) for finding in found] for runtime, found in self.found.items()}
        return {"file": str(self.path), "clean": self.clean, "runtimes": findings}


def check_file(path: Path, runtimes: Sequence[str] = (), float_layers: Sequence[str] = ()) -> Checked:
    """Check a file against the contracts of ``runtimes``.

    Args:
        path: ``.onnx`` or ``.tflite``.
        runtimes: by default those that the file is made for: a graph with int8 activations is TensorRT's, one with
            uint8 ones ONNX Runtime's and OpenVINO's, a float graph everybody's.
        float_layers: layers, or globs of their names, that are meant to be in float.

    Raises:
        ModelError: no such file, or not a whole one.
        RecipeError: a runtime that doesn't read such files.
        RuntimeMissing: ``.tflite`` without LiteRT.
    """
    able = SUFFIXES.get(path.suffix)
    if able is None:
        hint = ELSEWHERE.get(".json" if path.is_dir() else path.suffix, "")
        raise ModelError(f"expected a file of {', '.join(SUFFIXES)}, got {path.name!r}", where=str(path), hint=hint)
    wrong = [name for name in runtimes if name not in able]
    if wrong:
        raise RecipeError(
            f"{wrong[0]!r} doesn't read {path.suffix} files: expected {', '.join(able)}", where="--runtime"
        )
    if not path.is_file():
        raise ModelError("no such file", where=str(path))
    if path.suffix == ".tflite":
        from edgewise.deploy.contracts import litert

        return Checked(path, {"litert": litert.check(path.read_bytes(), float_layers)})
    graph = _load(path)
    asked = list(runtimes or _meant_for(graph))
    return Checked(path, {name: import_module(CONTRACTS[name]).check(graph, float_layers) for name in asked})


def _load(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)  # where the weights lie is one of the questions
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(f"not an ONNX file: {error}", where=str(path)) from error
    if not model.graph.node:
        raise ModelError("expected a graph with nodes, got none", where=str(path))
    return model


def _meant_for(model: ModelProto) -> tuple[str, ...]:
    """The runtimes that the graph's activations are made for."""
    from onnx import TensorProto

    from edgewise.deploy.contracts import base

    known = base.facts(model)
    kinds = set()
    for node in known.pairs():
        zero = known.constants.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type == base.QUANTIZE and not known.constant(node.input[0]):
            kinds.add(zero.data_type if zero is not None else TensorProto.UINT8)
    if not kinds:
        return SUFFIXES[".onnx"]
    return ("tensorrt",) if kinds == {TensorProto.INT8} else ("onnxruntime", "openvino")


def show(checked: Checked) -> None:
    """Print the findings as a table, each with its mend."""
    for runtime, found in checked.found.items():
        print(f"{checked.path.name} for {runtime}: {len(found) or 'no'} finding{'s' if len(found) != 1 else ''}")
        if not found:
            continue
        rows = [(item.rule, item.node, item.module, item.message) for item in found]
        print_table(("rule", "node", "module", "expected, and what came"), rows)
        for rule, mend in {item.rule: item.mend for item in found}.items():
            print(f"  {rule}: {mend}")
        meant = dict.fromkeys(item.module or item.node for item in found if item.rule in MEANT)
        if meant:
            options = " ".join(f"--float-layer {quote(name)}" for name in meant)
            print(f"  where a plan leaves these layers in float on purpose, say so: {options}")
