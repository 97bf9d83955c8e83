"""Parts of the samples: each sample has a label in every split, such as its class or the weather.

Kept beside the answers: ``slices/<split>.npy`` with int labels (N,) in the order of the answers, and
``slices/<split>.json`` with the labels' names. ``Results.slices`` leads to the first.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.record import Results, file_stem, save_results
from edgewise.errors import ArtifactError, RecipeError

MAX_BYTES = 200_000_000


@dataclass(frozen=True)
class Labels:
    """One split: ``labels`` int (N,), each a place in ``names``; -1 for a sample that has none."""

    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def where(self) -> dict[str, NDArray[np.bool_]]:
        """By name, which samples (N,) carry it; names without a sample are left out."""
        found = {name: self.labels == place for place, name in enumerate(self.names)}
        return {name: inside for name, inside in found.items() if inside.any()}


def named(values: Sequence[str]) -> Labels:
    """The split of samples labelled by text, names in order."""
    names = tuple(sorted(set(values)))
    place = {name: index for index, name in enumerate(names)}
    return Labels(np.array([place[value] for value in values], np.int64), names)


def keep(results: Results, splits: Mapping[str, Labels]) -> Results:
    """Write ``splits``, whose labels are in the order of the answers, into the results' folder."""
    folder = results.folder / "slices"
    folder.mkdir(exist_ok=True)
    paths = {}
    for split, labels in splits.items():
        path = f"slices/{file_stem(split)}.npy"
        np.save(results.folder / path, labels.labels)
        (results.folder / path).with_suffix(".json").write_text(json.dumps(list(labels.names)), encoding="utf-8")
        paths[split] = path
    results = replace(results, slices={**results.slices, **paths})
    save_results(results)
    return results


def labels_of(results: Results, split: str) -> Labels | None:
    """The labels that were recorded as ``split``; None where there are none.

    Raises:
        ArtifactError: recorded, and not readable now.
    """
    if split not in results.slices:
        return None
    path = results.folder / results.slices[split]
    try:
        labels = np.load(path, allow_pickle=False)
        names = path.with_suffix(".json")
        told = json.loads(names.read_text(encoding="utf-8")) if names.exists() else None
        known = tuple(str(name) for name in (range(int(labels.max()) + 1) if told is None else told))
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or int(labels.max()) >= len(known):
            raise ValueError(f"expected labels (N,) of {len(known)} names, got {labels.dtype} {labels.shape}")
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ArtifactError(
            f"can't read the slices by {split}: {error}", where=str(path), hint="measure again"
        ) from error
    return Labels(labels.astype(np.int64), known)


def read_table(path: Path, by: str, ids: Sequence[str]) -> Labels:
    """The labels in the column ``by`` of a CSV file for the samples ``ids``, found by its column ``id``.

    Raises:
        RecipeError: no such file or column, an id twice, or a sample that isn't in it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"expected at most {MAX_BYTES:,} bytes, got {path.stat().st_size:,}", where=str(path))
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            if "id" not in columns or by not in columns:
                raise RecipeError(f"expected the columns 'id' and {by!r}, got {columns}", where=str(path))
            found: dict[str, str] = {}
            for row in reader:
                if row["id"] in found:
                    raise RecipeError(f"the id {row['id']!r} stands twice", where=f"{path}, line {reader.line_num}")
                found[row["id"]] = row[by] or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"can't read the slices: {error}", where=str(path)) from error
    absent = [name for name in ids if name not in found]
    if absent:
        raise RecipeError(
            f"{len(absent)} of {len(ids)} samples are not in it, the first is {absent[0]!r}",
            where=str(path),
            hint="ids are those in ids.txt beside the measurements",
        )
    return named([found[name] for name in ids])
