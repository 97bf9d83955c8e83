"""Accuracy by slices of the samples: a mean hides the class that was lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.record import FileUnderTest, Results
from edgewise.bench.report.file import interval_of
from edgewise.bench.slices import labels_of

SHOWN = 200  # rows of one split; more labels than that are no slices but samples
FEWEST = 10  # samples of a slice: of fewer the interval holds nearly everything


def slice_rows(results: Results, names: list[str]) -> list[dict[str, Any]]:
    """A row a slice, such as ``class=7``: ``slice``, ``n``, and for each of ``names`` its accuracy, its drop from its
    reference in percentage points, and how many answers were lost and won.

    Raises:
        ArtifactError: labels that were recorded can't be read any more.
    """
    files = [file for file in results.files if file.name in names]
    rows = []
    for split in results.slices:
        telling = {label: inside for label, inside in _slices(results, split).items() if inside.sum() >= FEWEST}
        for label, inside in list(telling.items())[:SHOWN]:
            found = [row for file in files if (row := _row(results, file, inside)) is not None]
            if found:
                rows.append({"slice": f"{split}={label}", "n": int(inside.sum()), "files": found})
    return rows


def slices_left_out(results: Results) -> list[str]:
    """A sentence for each split that has more slices than :func:`slice_rows` gives rows."""
    lines = []
    for split in results.slices:
        sizes = [inside.sum() for inside in _slices(results, split).values()]
        small = sum(size < FEWEST for size in sizes)
        over = max(0, len(sizes) - small - SHOWN)
        reasons = [f"{small} have fewer than {FEWEST} samples"] if small else []
        reasons += [f"{over} are beyond the first {SHOWN}"] if over else []
        if reasons:
            lines.append(f"slices by {split} without a row here: {', '.join(reasons)}")
    return lines


def _slices(results: Results, split: str) -> dict[str, NDArray[np.bool_]]:
    labels = labels_of(results, split)
    return labels.where() if labels else {}


def _row(results: Results, file: FileUnderTest, inside: NDArray[np.bool_]) -> dict[str, Any] | None:
    mine = _scores(results, file.name, inside)
    if mine is None:
        return None
    row: dict[str, Any] = {
        "file": file.name,
        "accuracy": interval_of(stats.mean_interval(mine)),
        **dict.fromkeys(("drop_pp", "lost", "won")),
    }
    theirs = _scores(results, file.reference, inside) if file.reference and file.role != "reference" else None
    if theirs is None:
        return row
    if not stats.is_binary(np.concatenate([theirs, mine])):
        return {**row, "drop_pp": interval_of(stats.paired_mean_drop(theirs, mine), 100)}
    lost, won = int((theirs > mine).sum()), int((theirs < mine).sum())
    return {**row, "drop_pp": interval_of(stats.tango(lost, won, len(mine)), 100), "lost": lost, "won": won}


def _scores(results: Results, name: str, inside: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    scores = results.scores(name) if name in results.answers else None
    return None if scores is None or len(scores) != len(inside) else np.asarray(scores, np.float64)[inside]
