"""Before hours of training: which limits of the budget can't be shown to hold with the samples there are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgewise.bench.gate.config import Budget
from edgewise.bench.gate.power import Known, Prospect, known_of, prospects, warnings
from edgewise.bench.record import MEASUREMENTS, load_results
from edgewise.bench.slices import read_table
from edgewise.errors import EdgewiseError, RecipeError

if TYPE_CHECKING:
    from edgewise.console import Console
    from edgewise.recipe import Recipe


def check_power(recipe: Recipe, samples: Path, stages: Path, console: Console) -> None:
    """Warn of each limit that can't pass, or hardly, with so few samples; earlier results of the run tell how many
    answers flip.

    Args:
        recipe: its budget and how it measures.
        samples: folder of the test samples.
        stages: folder of the run's stages.
        console: told of the warnings.

    Raises:
        RecipeError: a limit is underpowered, and the budget refuses that.
    """
    if recipe.budget is None:
        return
    told = warnings(outlook(recipe, samples, stages))
    if told and recipe.budget.refuse_underpowered:
        raise RecipeError(
            "\n  ".join(["the budget can't be shown to be held:", *told]),
            where="budget.refuse_underpowered",
            hint="more test samples, a wider margin, or refuse_underpowered: false",
        )
    for text in told:
        console.warn(f"power: {text}")


def outlook(recipe: Recipe, samples: Path, stages: Path) -> list[Prospect]:
    """What each limit of the recipe's budget could be told from the test samples in ``samples``."""
    from edgewise.plan import judged_names

    assert recipe.budget is not None  # whoever asks has a budget
    about = json.loads((samples / "samples.json").read_text())
    count = min(len(about["ids"]), recipe.bench.accuracy_samples or len(about["ids"]))
    known = replace(_before(stages, count), slices=_slices(recipe.budget, samples, about, count))
    return prospects(recipe.budget, judged_names(recipe), recipe.bench, known)


def _before(stages: Path, count: int) -> Known:
    """What the run measured last, under whatever recipe."""
    found = sorted(stages.glob(f"measure-*/{MEASUREMENTS}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        try:
            return known_of(load_results(path.parent), samples=count)
        except EdgewiseError:
            continue  # of another version, or damaged: as if there were none
    return Known(count)


def _slices(budget: Budget, samples: Path, about: Mapping[str, Sequence[str]], count: int) -> list[dict[str, int]]:
    """How many samples each slice of each limit will have: its share of those that are answered."""
    words: dict[str, Sequence[str]] = dict(about.get("slices", {}))  # type: ignore[arg-type]
    words["class"] = [about["classes"][label] for label in np.load(samples / "targets.npy")]
    found = []
    for limits in budget.sliced:
        values: Sequence[str] | None = words.get(limits.by)
        if limits.file is not None:
            labels = read_table(limits.file, limits.by, about["ids"])
            values = [labels.names[label] for label in labels.labels]
        if values is None:
            raise RecipeError(
                f"the samples are not split by {limits.by!r}, but by: {', '.join(words)}",
                where="budget.slices.by",
                hint="give a CSV with the columns id and that name as file",
            )
        shares = Counter(values)
        found.append({f"{limits.by}={name}": n * count // len(values) for name, n in sorted(shares.items())})
    return found
