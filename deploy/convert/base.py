"""What a converter gets, and what one job is. Torch-free, like everything in this file's reach."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from edgewise.config import Precision, RuntimeName
from edgewise.deploy.config import REFUSED
from edgewise.errors import ModelError
from edgewise.models.inputs import Shape, is_text


@dataclass(frozen=True)
class Source:
    """One net in the forms the converters start from; each takes what it needs and refuses where that is missing.

    Args:
        input_shape: (C, H, W), or (L, V) of token ids.
        classes: K, the width of the logits.
        float_onnx: "input" (N, C, H, W) float32, or (N, L) int64, -> "logits" float32.
        unsigned_onnx: the same with Q/DQ, uint8 activations: ONNX Runtime and OpenVINO.
        signed_onnx: the same with int8 activations.
        half_onnx: float16 inside.
        half_signed_onnx: Q/DQ with int8 activations, float16 between: TensorRT.
        model_folder: a saved torch model (``edgewise.compress.saved``): LiteRT starts from torch.
        calibration: ``.npy``, float32 (N, C, H, W) or int64 (N, L): LiteRT's activation ranges.
        contract: JSON, what the offline check of the Q/DQ graph found; kept in TensorRT's manifest.
        float_layers: the layers that an int8 file computes in float by plan; every converter obeys or refuses.
        padding: the id that short texts are filled up with; LiteRT's runtime must know it.
    """

    input_shape: Shape
    classes: int
    float_onnx: Path | None = None
    unsigned_onnx: Path | None = None
    signed_onnx: Path | None = None
    half_onnx: Path | None = None
    half_signed_onnx: Path | None = None
    model_folder: Path | None = None
    calibration: Path | None = None
    contract: Path | None = None
    float_layers: tuple[str, ...] = ()
    padding: int | None = None

    @property
    def length(self) -> int:
        """The longest text; 1 of images."""
        return self.input_shape[0] if is_text(self.input_shape) else 1


@dataclass(frozen=True)
class Job:
    """One file to make. ``out`` is its name without suffix."""

    runtime: RuntimeName
    precision: Precision
    source: Source
    out: Path
    timeout_s: float = 1800.0


def refuse(runtime: RuntimeName, precision: Precision) -> None:
    """Say no to what ``runtime`` can't do.

    Raises:
        ModelError: with the reason.
    """
    if reason := REFUSED.get((runtime, precision)):
        able = [name for name in get_args(Precision) if (runtime, name) not in REFUSED]
        raise ModelError(reason, where="precision", hint=f"take {', '.join(able)} for {runtime}")


def need(path: Path | None, what: str) -> Path:
    """``path``, which must be there.

    Raises:
        ModelError: it isn't.
    """
    if path is None:
        raise ModelError(f"this conversion starts from {what}, and there is none", hint="export it first")
    if not path.exists():
        raise ModelError(f"this conversion starts from {what}: no such file", where=str(path))
    return path


def named(out: Path, suffix: str) -> Path:
    """``out`` with ``suffix`` added; ``with_suffix`` would cut a name such as ``resnet.int8``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(out.name + suffix)


def write_report(out: Path, report: dict[str, Any]) -> Path:
    """Write what the converter saw in the finished file to ``<out>.report.json``."""
    path = named(out, ".report.json")
    path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def dump_job(job: Job) -> str:
    """The job as JSON."""
    return json.dumps(asdict(job), default=str, indent=2, sort_keys=True)


def parse_job(text: str) -> Job:
    """The job that ``dump_job`` wrote.

    Raises:
        ModelError: it isn't one.
    """
    try:
        raw = json.loads(text)
        source: dict[str, Any] = dict(raw["source"])
        source.update((key, Path(value)) for key, value in source.items() if isinstance(value, str))
        source["input_shape"] = tuple(source["input_shape"])
        source["float_layers"] = tuple(source.get("float_layers", ()))
        job = {**raw, "source": Source(**source), "out": Path(raw["out"])}
        return Job(**job)
    except (ValueError, KeyError, TypeError) as error:
        known = ", ".join(field.name for field in fields(Job))
        raise ModelError(f"not a conversion job ({error!r}): expected JSON with {known}") from error
