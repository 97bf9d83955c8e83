"""The files beside their float model, layer by layer, and beside each other: where a conversion hurts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.artifact import Artifact
from edgewise.models.tasks.base import Float
from edgewise.progress import silent
from edgewise.stages.work import Work, spread

if TYPE_CHECKING:
    from edgewise.bench.record import AgreementRow, LayersRow

SAMPLES = 16
AGREE = 0.99
"""Two INT8 files of one model that answer fewer samples alike are compared with each other, layer by layer."""


def layers(work: Work) -> dict[str, Any]:
    """Write ``layers.json``: each file that isn't float32 beside the float torch model, and how INT8 files agree.

    A file that can't be compared is noted and stops nothing: what was measured stands without.
    """
    held = work.parents["samples"]
    inputs = np.load(held.file("inputs.npy"), mmap_mode="r")
    some = np.ascontiguousarray(inputs[spread(len(inputs), SAMPLES)])
    entries = [entry for entry in work.config["files"] if _main(work.parents, entry["name"]) is not None]
    found = {}
    for done, entry in enumerate(entries):
        work.tick(done, len(entries), entry["name"])
        model = work.parents[entry["float"]].folder
        compared = _compared(model, _file(work, entry), some, entry)
        found[entry["name"]] = {"against": f"torch, {entry['float']}", **compared}
    agreement = [_agreement(work, one, other, inputs) for one, other in _pairs(work, entries)]
    text = json.dumps({"files": found, "agreement": agreement}, indent=1, allow_nan=False)
    (work.payload / "layers.json").write_text(text)
    work.tick(1, 1, "layers")
    return {"files": len(found)}


def layer_rows(made: Artifact) -> tuple[dict[str, LayersRow], tuple[AgreementRow, ...]]:
    """What ``layers`` wrote, for the report."""
    from edgewise.bench.record import AgreementRow

    told = json.loads(made.file("layers.json").read_text())
    files = {name: _row(found["against"], found) for name, found in told["files"].items()}
    agreement = tuple(
        AgreementRow(
            one=row["one"],
            other=row["other"],
            n=row["n"],
            same=row["same"],
            layers=_row(row["one"], row["layers"]) if row["layers"] else None,
        )
        for row in told["agreement"]
    )
    return files, agreement


def _row(against: str, found: dict[str, Any]) -> LayersRow:
    from edgewise.bench.record import LayerRow, LayersRow

    return LayersRow(
        against=against,
        n=found["n"],
        rows=tuple(
            LayerRow(row["name"], row["sqnr_db"], row["max_abs"], tuple(row["shape"]), row["exact"])
            for row in found["rows"]
        ),
        flips=found["flips"],
        first_bad=found["first_bad"],
        why=found["why"],
        unmatched=sum(map(len, found["unmatched"])),
        floor_db=found["floor_db"],
        note=found["note"],
    )


def _compared(one: Path, other: Path, inputs: Float, entry: dict[str, Any] | None = None) -> dict[str, Any]:
    from edgewise.deploy.inspect.compare import compare_layers

    try:
        if entry is not None and entry["precision"] == "bfloat16":  # the file is one of float32: it is run in less
            from edgewise.deploy.inspect.ov_probe import OvProbe

            return compare_layers(one, OvProbe(other, bfloat16=True), inputs, tick=silent).to_json()
        return compare_layers(one, other, inputs, tick=silent).to_json()
    except Exception as error:  # what was measured stands, whatever a runtime raises here
        nothing = dict.fromkeys(("first_bad", "flips", "floor_db"))
        note = f"its layers can't be compared: {_first_line(error)}"
        return {**nothing, "n": 0, "rows": [], "why": "", "unmatched": [[], []], "note": note}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _main(parents: Mapping[str, Artifact], name: str) -> str | None:
    """The file of a conversion; None where it failed."""
    made = parents.get(name)
    return made.metrics.get("main") if made is not None else None


def _file(work: Work, entry: dict[str, Any]) -> Path:
    made = work.parents[entry["name"]]
    return made.file(made.metrics["main"])


def _pairs(work: Work, entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """INT8 files of one model that both answered."""
    static = [entry for entry in entries if entry["precision"] == "int8" and entry["runtime"] != "tensorrt"]
    return [(a, b) for a, b in combinations(static, 2) if a["against"] == b["against"]]


def _agreement(work: Work, one: dict[str, Any], other: dict[str, Any], inputs: Float) -> dict[str, Any]:
    from edgewise.bench.record import load_results

    measured = work.parents["measure"].folder
    results = load_results(measured)
    outputs = [results.outputs(entry["name"]) for entry in (one, other)]
    row: dict[str, Any] = {"one": one["name"], "other": other["name"], "n": 0, "same": 0, "layers": None}
    left, right = outputs
    if left is None or right is None or left.ndim != 2 or left.shape != right.shape:
        return row
    same = left.argmax(1) == right.argmax(1)
    row |= {"n": len(same), "same": int(same.sum())}
    if row["same"] < AGREE * row["n"]:
        # On the samples that they answer differently: it is these that must be explained.
        differ = np.load(measured / "index.npy")[np.flatnonzero(~same)[:SAMPLES]]
        row["layers"] = _compared(_file(work, one), _file(work, other), np.ascontiguousarray(inputs[np.sort(differ)]))
    return row
