"""A model repository for Triton Inference Server: a folder a model, with its configuration and version 1 of its file.

The configuration is the text form of Triton's ``ModelConfig`` message (its ``model_config.proto``). What Triton checks
when it loads a model is checked here first. It was never loaded by a real server.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgewise.config import RuntimeName
from edgewise.deploy.config import Triton
from edgewise.errors import ModelError
from edgewise.models.inputs import Shape, dtype_of, is_text

LABELS = "labels.txt"
TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
BACKENDS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt"}
FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml", "tensorrt": "model.plan"}


class Word(str):
    """An enum's value: written without quotes."""


@dataclass(frozen=True)
class Served:
    """One model: its name in the repository and the file that was made for its runtime (TensorRT: the manifest)."""

    name: str
    runtime: RuntimeName
    file: Path


def write_repository(
    served: Sequence[Served],
    config: Triton,
    out: Path,
    *,
    input_shape: Shape,
    classes: Sequence[str],
    tags: bool = False,
) -> list[str]:
    """Write ``<out>/<name>/config.pbtxt`` and ``<out>/<name>/1/…`` for each model.

    Args:
        served: at least one.
        config: batching and instances, the same for all.
        out: the repository, an existing folder.
        input_shape: (C, H, W), or (L, V) of token ids: Triton then takes texts of any length, all of a batch alike.
        classes: the labels, in order; Triton gives them out with a classification.
        tags: each token is answered, not each text.

    Returns:
        Lines on what the user still has to do.

    Raises:
        ModelError: LiteRT, which Triton has no backend of its own for; a name that is no folder's; a missing file; or
            a TensorRT bundle without a graph.
    """
    told: list[str] = []
    for model in served:
        if model.runtime not in BACKENDS:
            raise ModelError(
                f"Triton has no backend of its own for {model.runtime}",
                where=model.name,
                hint=f"serve a file for {', '.join(BACKENDS)}",
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model.name):
            raise ModelError(f"expected a folder's name, got {model.name!r}", where="triton")
        folder = out / model.name
        (folder / "1").mkdir(parents=True)
        if model.runtime == "tensorrt":
            told += _write_engine(model, config, folder, input_shape)
        else:
            _copy(model, folder / "1")
        batches = _takes_batches(model)
        if not batches:
            told.append(f"{model.name}: its graph takes one batch size only, so requests are not batched")
        ends = ([-1] if is_text(input_shape) else list(input_shape)), [*([-1] if tags else []), len(classes)]
        about = model_config(model.name, model.runtime, config, *ends, dtype_of(input_shape), batches=batches)
        check(about)
        (folder / "config.pbtxt").write_text(to_text(about), encoding="utf-8")
        (folder / LABELS).write_text("".join(f"{_one_line(label)}\n" for label in classes), encoding="utf-8")
    return told


def model_config(
    name: str,
    runtime: RuntimeName,
    config: Triton,
    given: Sequence[int],
    answered: Sequence[int],
    dtype: str,
    *,
    batches: bool,
) -> dict[str, Any]:
    """The fields of ``ModelConfig``. ``given`` and ``answered`` are the sizes of one sample's input, of type ``dtype``,
    and of its answer, -1 for an open one. With ``batches`` the first dimension is Triton's and isn't named in
    ``dims``."""
    one = [] if batches else [1]
    about: dict[str, Any] = {
        "name": name,
        "backend": BACKENDS[runtime],
        "default_model_filename": FILES[runtime],
        "max_batch_size": config.max_batch if batches else 0,
        "input": [{"name": "input", "data_type": Word(TYPES[dtype]), "dims": [*one, *given]}],
        "output": [
            {"name": "logits", "data_type": Word("TYPE_FP32"), "dims": [*one, *answered], "label_filename": LABELS}
        ],
        # The files are made for CPUs but for TensorRT's, which runs on nothing but a GPU.
        "instance_group": [
            {"kind": Word("KIND_GPU" if runtime == "tensorrt" else "KIND_CPU"), "count": config.instances}
        ],
    }
    if batches:
        batching: dict[str, Any] = {"max_queue_delay_microseconds": config.queue_delay_us}
        if config.preferred:
            batching["preferred_batch_size"] = sorted(set(config.preferred))
        about["dynamic_batching"] = batching
    return about


def check(about: Mapping[str, Any]) -> None:
    """What Triton checks of a configuration before it loads the model.

    Raises:
        ModelError: the first rule it breaks.
    """
    batch, batching = about["max_batch_size"], about.get("dynamic_batching")
    ends = [*about["input"], *about["output"]]
    preferred = (batching or {}).get("preferred_batch_size", [])
    rules = {
        "max_batch_size must not be below 0": batch >= 0,
        "dynamic_batching needs a max_batch_size above 0": batching is None or batch > 0,
        "preferred_batch_size must lie between 1 and max_batch_size": all(1 <= size <= batch for size in preferred),
        "there must be an input and an output": bool(about["input"]) and bool(about["output"]),
        "inputs and outputs must have names": all(end["name"] for end in ends),
        "names of inputs and outputs must differ": len({end["name"] for end in ends}) == len(ends),
        "dims must not be empty, and each at least 1, or -1": all(
            end["dims"] and all(size >= 1 or size == -1 for size in end["dims"]) for end in ends
        ),
        "an instance group needs a count of at least 1": all(group["count"] >= 1 for group in about["instance_group"]),
        "TensorRT runs on a GPU": about["backend"] != "tensorrt"
        or all(group["kind"] == "KIND_GPU" for group in about["instance_group"]),
    }
    for rule, holds in rules.items():
        if not holds:
            raise ModelError(f"Triton would refuse the configuration: {rule}", where=str(about["name"]))


def to_text(message: Mapping[str, Any], indent: str = "") -> str:
    """A protobuf message in its text form: text quoted and escaped, a :class:`Word` as it is, a list field by field."""
    lines = []
    for name, value in message.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Mapping):
                lines.append(f"{indent}{name} {{\n{to_text(one, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(one)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word | int):
        return str(value)
    if isinstance(value, str):
        return f'"{_escaped(value)}"'
    raise TypeError(f"no text form for {value!r}")


def _escaped(text: str) -> str:
    """Text between protobuf's double quotes: bytes outside printable ASCII as three octal digits."""
    signs = {0x22: '\\"', 0x5C: "\\\\", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
    return "".join(
        signs.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}") for byte in text.encode("utf-8")
    )


def _one_line(label: str) -> str:
    return " ".join(label.split())


def _copy(model: Served, version: Path) -> None:
    for path in [model.file, *([model.file.with_suffix(".bin")] if model.runtime == "openvino" else [])]:
        if not path.is_file():
            raise ModelError("no such file", where=str(path), hint="convert it first")
        shutil.copyfile(path, version / f"model{path.suffix}")


def _takes_batches(model: Served) -> bool:
    """Whether the graph leaves the number of samples open. OpenVINO's files come from such a graph and keep it."""
    graph = model.file
    if model.runtime == "openvino":
        shape = re.search(r'<layer[^>]*type="Parameter"[^>]*>\s*<data shape="([^",]*)', graph.read_text("utf-8"))
        return shape is not None and not shape[1].strip().isdigit()
    if model.runtime == "tensorrt":
        graph = graph.parent / str(_manifest(model)["main"])
    first = onnx.load(graph, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0]
    return not first.dim_value


def _manifest(model: Served) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(model.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"expected a bundle's manifest: {error}", where=str(model.file)) from error
    if not (model.file.parent / str(manifest.get("main"))).is_file():
        raise ModelError("the bundle has no graph", where=str(model.file))
    return manifest


def _write_engine(model: Served, config: Triton, folder: Path, input_shape: Shape) -> list[str]:
    """TensorRT: the graph and a script that builds the engine for all batch sizes up to the largest, on the server. An
    engine that was built beside the bundle takes one batch size only, so it doesn't serve."""
    build = folder / "build"  # Triton passes over folders whose names are no numbers
    build.mkdir()
    shutil.copyfile(model.file.parent / str(_manifest(model)["main"]), build / "model.onnx")
    script = build / "build.sh"
    best = max(config.preferred) if config.preferred else config.max_batch
    shape = str(input_shape[0]) if is_text(input_shape) else "x".join(map(str, input_shape))
    least = "1" if is_text(input_shape) else shape
    words = {"MAX": config.max_batch, "BEST": best, "SHAPE": shape, "LEAST": least}
    text = BUILD_SH
    for word, value in words.items():
        text = text.replace(f"@{word}@", str(value))
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    return [
        f"{model.name}: no engine is inside, for it runs only where it was built; run {model.name}/build/build.sh on "
        "the server before Triton starts"
    ]


BUILD_SH = r"""#!/bin/sh
# Builds ../1/model.plan for batches of 1 to @MAX@, with the TensorRT of the server that will run it: inside Triton's
# container, on its GPU. TRTEXEC=/path/to/trtexec ./build.sh for another trtexec.
set -eu
cd "$(dirname "$0")"
if [ -z "${TRTEXEC:-}" ]; then
    TRTEXEC="$(command -v trtexec || true)"
    [ -n "$TRTEXEC" ] || TRTEXEC=/usr/src/tensorrt/bin/trtexec
fi
if [ ! -x "$TRTEXEC" ]; then
    echo "trtexec not found: it comes with TensorRT; or set TRTEXEC" >&2
    exit 2
fi
"$TRTEXEC" --onnx=model.onnx --saveEngine=../1/model.plan.part --stronglyTyped --noTF32 --skipInference \
    --minShapes=input:1x@LEAST@ --optShapes=input:@BEST@x@SHAPE@ --maxShapes=input:@MAX@x@SHAPE@
mv ../1/model.plan.part ../1/model.plan
"""

__all__ = ["Served", "Word", "check", "model_config", "to_text", "write_repository"]
