"""``edgewise inspect``: two forms of one model, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import format as say
from edgewise.bench.stats import wilson
from edgewise.bench_files import RUNTIMES, read_inputs
from edgewise.deploy.inspect.base import Probe
from edgewise.deploy.inspect.compare import FLOOR_DB, STRANGERS, compare_layers
from edgewise.deploy.inspect.open import open_probe
from edgewise.errors import DataError
from edgewise.output import print_table
from edgewise.progress import Tick

RANDOM = (
    "random numbers went in: no net has learnt anything about these, so its layers saturate elsewhere and answers flip "
    "more than on real samples; give some with --inputs X.npy"
)
UNJUDGED = (
    "random numbers leave the ranges that INT8 was calibrated for, so a layer that looks bad here may be fine on real "
    "samples; give some with --inputs X.npy"
)


def inspect_files(
    one: Path, other: Path, inputs: Path | None, samples: int, tick: Tick
) -> tuple[dict[str, Any], list[str]]:
    """Compare two forms of one model; the comparison as JSON, with the interval of flipped answers, and warnings.
    ``no_verdict`` says why no layer is judged, where none is.

    Args:
        one: what is right: a saved model's folder, ``.onnx``, ``.xml``, ``.tflite`` or a TensorRT bundle.
        other: what is judged, one of the same.
        inputs: ``.npy`` float32 (N, C, H, W) or int64 (N, L); by default those of the run that one of the two lies
            in, else random numbers.
        samples: how many of them, from the first on.
        tick: told of the progress.

    Raises:
        MeasureError: no such file, of an unknown kind, or one that can't run.
        RuntimeMissing: a file's runtime isn't installed.
        DataError: the inputs don't fit, or the two take different ones.
    """
    if inputs is None:
        inputs = run_inputs(one) or run_inputs(other)
    given = None if inputs is None else read_inputs(inputs)[:samples]
    probes: list[Probe] = []
    try:
        for path in (one, other):
            probes.append(open_probe(path, ()))
        array = _random(probes, samples) if given is None else given
    except BaseException:
        for probe in probes:
            probe.close()
        raise
    found = compare_layers(probes[0], probes[1], array, tick=tick)
    interval = wilson(found.flips, found.n) if found.flips is not None else None
    table = {**found.to_json(), "inputs": str(inputs) if inputs else "random", "flip_rate": interval and vars(interval)}
    table["no_verdict"] = found.note if found.note == STRANGERS else ""
    if inputs is None and found.floor_db <= FLOOR_DB["int8"]:
        table |= {"first_bad": None, "why": "", "no_verdict": table["no_verdict"] or UNJUDGED}
    warnings = [RANDOM] if inputs is None else []
    return table, warnings + ([found.note] if found.note else [])


def run_inputs(path: Path) -> Path | None:
    """The test inputs of the finished run that ``path`` lies in; None where it lies in none."""
    for folder in path.resolve().parents:
        if folder.name == "stages" and (folder.parent / "run.json").is_file():
            try:
                steps = json.loads((folder.parent / "run.json").read_text(encoding="utf-8"))["steps"]
                found = [folder.parent / step["folder"] / "inputs.npy" for step in steps if step["name"] == "samples"]
            except (OSError, ValueError, KeyError, TypeError):
                return None
            return next((inputs for inputs in found if inputs.is_file()), None)
    return None


def show(table: dict[str, Any]) -> None:
    """Print the comparison for a person."""
    print_table(
        ("layer", "kind", "SQNR", "fall", "largest gap", "shape", ""),
        [
            (
                row["name"],
                row["kind"],
                _decibel(row),
                say.decibel(row["fall_db"]) if row["fall_db"] is not None else "",
                _gap(row["max_abs"]),
                "x".join(map(str, row["shape"])),
                "first bad" if row["name"] == table["first_bad"] else "",
            )
            for row in [*table["rows"], table["output"]]
        ],
    )
    for side, names in zip((table["one"], table["other"]), table["unmatched"], strict=True):
        if names:
            print(f"only in {side}: {_some(names)}")
    if table["flips"] is not None:
        ends = say.span(table["flip_rate"], "fraction")
        print(f"answers flipped: {table['flips']} of {table['n']} ({ends})")
    if table["no_verdict"]:
        print(f"no verdict: {table['no_verdict']}")
    elif table["first_bad"]:
        print(f"first bad layer: {table['first_bad']}: {table['why']}")
    else:
        print(f"no bad layer: none of {len(table['rows'])} is under {table['floor_db']:.0f} dB")


def page(table: dict[str, Any], warnings: list[str], other: Path) -> str:
    """The comparison as one HTML file with its picture."""
    from edgewise.bench.report.write import render_inspection

    return render_inspection(table, warnings, RUNTIMES.get(other.suffix, "tensorrt" if other.is_dir() else ""))


def _random(probes: list[Probe], samples: int) -> NDArray[np.float32]:
    """(samples, C, H, W) normal numbers of the shape that both take."""
    if any(probe.token_ids for probe in probes):
        raise DataError(
            "it takes token ids, and which there are isn't in the file",
            where=next(probe.label for probe in probes if probe.token_ids),
            hint="give inputs, int64 (N, L), with --inputs X.npy",
        )
    shapes = [probe.input_shape for probe in probes]
    if len(shapes[0]) != len(shapes[1]):
        raise DataError(_differ(probes))
    sizes = []
    for left, right in zip(*shapes, strict=True):
        if left is not None and right is not None and left != right:
            raise DataError(_differ(probes), hint="compare two forms of one model")
        sizes.append(right if left is None else left)
    if any(size is None for size in sizes):
        raise DataError(
            "the shape of their inputs is open", where=probes[0].label, hint="give inputs with --inputs X.npy"
        )
    known = tuple(size for size in sizes if size is not None)
    return np.random.default_rng(0).standard_normal((samples, *known), dtype=np.float32)


def _differ(probes: list[Probe]) -> str:
    told = [f"{probe.label} takes {probe.input_shape}" for probe in probes]
    return f"expected two forms of one model, with the same inputs: {'; '.join(told)}"


def _decibel(row: dict[str, Any]) -> str:
    return say.decibel(row["sqnr_db"], row["exact"]) if row["finite"] else "not finite"


def _gap(value: float | None) -> str:
    return say.NONE if value is None else f"{value:.3g}"


def _some(names: list[str], count: int = 12) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
