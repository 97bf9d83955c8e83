"""Checks on slices of the samples, and which slices a file answers worse.

"Every slice holds its limit" releases wrongly only if some slice that breaks its limit passes, which happens with at
most 5 %, however many there are (an intersection-union test; Berger 1982, Technometrics 24:295): no correction. "This
slice got worse" is said of any of many, so those p values are Holm's (1979, Scand J Stat 6:65).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.gate import accuracy
from edgewise.bench.gate.config import SliceLimit
from edgewise.bench.gate.found import Finding, Measured, Unusable, reference, scores
from edgewise.bench.numbers import discordant
from edgewise.bench.record import FileUnderTest, Results
from edgewise.bench.slices import Labels, labels_of, read_table
from edgewise.errors import RecipeError

ALPHA = 0.05


@dataclass(frozen=True)
class Part:
    """One slice: ``name`` such as ``class=7``, ``inside`` (N,) of the samples answered."""

    name: str
    inside: NDArray[np.bool_]

    @property
    def n(self) -> int:
        """How many samples it has."""
        return int(self.inside.sum())


def parts(limit: SliceLimit, results: Results) -> list[Part]:
    """The slices that ``limit`` is about.

    Raises:
        RecipeError: no such split, or no slice of a name in ``only``.
    """
    labels = _labels(limit, results)
    known = labels.where()
    wrong = [name for name in limit.only or () if name not in known]
    if wrong:
        raise RecipeError(
            f"no sample has {limit.by} {', '.join(wrong)}",
            where="budget.slices.only",
            hint=f"there are {', '.join(list(known)[:20])}",
        )
    return [
        Part(f"{limit.by}={name}", inside) for name, inside in known.items() if not limit.only or name in limit.only
    ]


def _labels(limit: SliceLimit, results: Results) -> Labels:
    if limit.file is not None:
        ids = (results.folder / results.ids).read_text(encoding="utf-8").splitlines()
        return read_table(limit.file, limit.by, ids)
    found = labels_of(results, limit.by)
    if found is None:
        raise RecipeError(
            f"the samples are not split by {limit.by!r}, but by: {', '.join(results.slices) or 'nothing'}",
            where="budget.slices.by",
            hint="give a CSV with the columns id and that name as file",
        )
    return found


def measure(key: str, part: Part) -> Measured:
    """What finds the budget's ``key`` within ``part``."""
    return partial(MEASURES[key], part)


def _accuracy(part: Part, results: Results, file: FileUnderTest) -> Finding:
    return accuracy.of_accuracy(_within(scores(results, file), part))


def _drop(part: Part, results: Results, file: FileUnderTest) -> Finding:
    theirs, mine = accuracy.pair(results, file)
    return accuracy.of_drop(_within(theirs, part), _within(mine, part), reference(results, file).name)


def _within(values: NDArray[np.float32], part: Part) -> NDArray[np.float32]:
    if len(values) != len(part.inside):
        raise Unusable(f"expected scores of {len(part.inside)} samples, got {len(values)}")
    return values[part.inside]


MEASURES = {"min_accuracy": _accuracy, "max_accuracy_drop_pp": _drop}


def regressed(limit: SliceLimit, results: Results, file: FileUnderTest) -> Iterator[str]:
    """A sentence for each slice that ``file`` answers worse than its reference, all said together with 5 % chance of
    a wrong one."""
    try:
        theirs, mine = accuracy.pair(results, file)
        against = reference(results, file).name
    except Unusable:
        return
    found = [part for part in parts(limit, results) if len(part.inside) == len(mine)]
    p_values = holm([worse_p(theirs[part.inside], mine[part.inside]) for part in found])
    for part, p in zip(found, p_values, strict=True):
        if p <= ALPHA:
            lost = 100 * float(np.mean(theirs[part.inside] - mine[part.inside]))
            told = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
            yield (
                f"{file.name} answers {part.name} worse than {against}: {lost:.2f} pp of {part.n} samples "
                f"({told}, Holm's over {len(found)} slices)"
            )


def worse_p(theirs: NDArray[np.float32], mine: NDArray[np.float32]) -> float:
    """One-sided p value of "not worse": McNemar's exact test for scores of 0 and 1, else a paired t as a normal."""
    if stats.is_binary(np.concatenate([theirs, mine])):
        from scipy.stats import binom

        lost, won = discordant(theirs, mine)
        return float(binom.sf(lost - 1, lost + won, 0.5)) if lost else 1.0
    gaps = np.asarray(theirs, np.float64) - mine
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    if spread == 0:
        return 1.0 if gaps.mean() <= 0 or len(gaps) < 2 else 0.0
    return 1 - NormalDist().cdf(float(gaps.mean()) / spread * len(gaps) ** 0.5)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = so_far
    return adjusted
