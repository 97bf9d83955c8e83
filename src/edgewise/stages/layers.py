"""The files beside their float model, layer by layer, and beside each other: where a conversion hurts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgewise.artifact import Artifact
from edgewise.stages.work import Work, spread

if TYPE_CHECKING:
    from edgewise.bench.record import AgreementRow, LayersRow

SAMPLES = 16
AGREE = 0.99
"""Two INT8 files of one model that answer fewer samples alike are compared with each other, layer by layer."""


def layers(work: Work) -> dict[str, Any]:
    """Write ``layers.json``: each file that isn't float32 beside the float torch model, and how INT8 files agree.

    The runtimes are opened in a process of their own. A file that can't be compared is noted and stops nothing: what
    was measured stands without.
    """
    from edgewise.deploy.inspect.run import Pair, compare_in_process

    inputs = np.load(work.parents["samples"].file("inputs.npy"), mmap_mode="r")
    entries = [entry for entry in work.config["files"] if _main(work.parents, entry["name"]) is not None]

    def pair(one: Path, other: Path, index: NDArray[np.int64], *, bfloat16: bool = False) -> Pair:
        some = work.scratch / f"inputs-{len(pairs)}.npy"
        some.parent.mkdir(parents=True, exist_ok=True)
        np.save(some, np.ascontiguousarray(inputs[index]))
        return Pair(str(one), str(other), str(some), bfloat16)

    pairs: dict[str, Pair] = {}
    for entry in entries:
        model, less = work.parents[entry["float"]].folder, entry["precision"] == "bfloat16"
        pairs[entry["name"]] = pair(model, _file(work, entry), spread(len(inputs), SAMPLES), bfloat16=less)
    agreement = {f"{a['name']} and {b['name']}": (a, b, *_agreement(work, a, b)) for a, b in _pairs(work, entries)}
    for name, (one, other, _, differ) in agreement.items():
        if differ is not None:
            pairs[name] = pair(_file(work, one), _file(work, other), differ)
    limit = work.recipe.deploy.timeout_s
    found = compare_in_process(pairs, threads=work.recipe.threads, timeout_s=limit, tick=work.tick)
    files = {entry["name"]: {"against": f"torch, {entry['float']}", **found[entry["name"]]} for entry in entries}
    rows = [{**row, "layers": found.get(name)} for name, (_, _, row, _) in agreement.items()]
    text = json.dumps({"files": files, "agreement": rows}, indent=1, allow_nan=False)
    (work.payload / "layers.json").write_text(text)
    work.tick(1, 1, "layers")
    return {"files": len(files)}


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


def _agreement(
    work: Work, one: dict[str, Any], other: dict[str, Any]
) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
    """How many samples they answer alike, and, where that is too few, those that must be explained."""
    from edgewise.bench.record import load_results

    measured = work.parents["measure"].folder
    results = load_results(measured)
    left, right = (results.outputs(entry["name"]) for entry in (one, other))
    row: dict[str, Any] = {"one": one["name"], "other": other["name"], "n": 0, "same": 0}
    if left is None or right is None or left.ndim != 2 or left.shape != right.shape:
        return row, None
    same = left.argmax(1) == right.argmax(1)
    row |= {"n": len(same), "same": int(same.sum())}
    if row["same"] >= AGREE * row["n"]:
        return row, None
    return row, np.sort(np.load(measured / "index.npy")[np.flatnonzero(~same)[:SAMPLES]])
