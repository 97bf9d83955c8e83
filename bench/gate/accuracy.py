"""Checks on answers: accuracy, its drop from a baseline, and how many answers flipped.

Scores that are 0 or 1 are judged by Wilson's and, in pairs, by Tango's score interval; others by a paired bootstrap.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.gate.found import Finding, TooFew, Unusable, more, reference, scores
from edgewise.bench.gate.verdict import CONFIDENCE
from edgewise.bench.numbers import discordant, flippable
from edgewise.bench.record import FileUnderTest, Results

Scores = NDArray[np.float32]


def accuracy(results: Results, file: FileUnderTest) -> Finding:
    """The mean score."""
    return of_accuracy(scores(results, file))


def drop(results: Results, file: FileUnderTest) -> Finding:
    """How many percentage points the mean score lies under the reference's."""
    theirs, mine = pair(results, file)
    return of_drop(theirs, mine, reference(results, file).name)


def flips(results: Results, file: FileUnderTest) -> Finding:
    """The share of samples that one of the two has right and the other wrong."""
    if not flippable(results, file.name):
        raise Unusable("answers that are one number have nothing to flip; check max_accuracy_drop_pp")
    theirs, mine = pair(results, file)
    return of_flips(theirs, mine, reference(results, file).name)


def pair(results: Results, file: FileUnderTest) -> tuple[Scores, Scores]:
    """The reference's and the file's scores of the same samples."""
    mine, theirs = scores(results, file), scores(results, reference(results, file))
    if len(mine) != len(theirs):
        raise Unusable(f"expected the reference's {len(theirs)} samples, got {len(mine)}")
    return theirs, mine


def of_accuracy(values: Scores) -> Finding:
    """The mean of ``values`` (N,)."""
    plain = np.asarray(values, dtype=np.float64)
    found, n = stats.mean_interval(plain, confidence=CONFIDENCE), len(plain)
    if stats.is_binary(plain):
        return Finding(found, n, "samples", partial(stats.paired_sample_size, float(np.var(plain))))
    return Finding(found, n, "samples", partial(more, found, n))


def of_drop(theirs: Scores, mine: Scores, baseline: str) -> Finding:
    """Mean of ``theirs`` (N,) less that of ``mine`` (N,), in percentage points, with a paired interval."""
    n = len(mine)
    if not stats.is_binary(np.concatenate([theirs, mine])):
        if n < 2:
            raise TooFew(n, 2, "samples")
        one, other = (np.asarray(values, dtype=np.float64) for values in (theirs, mine))
        found = _in_pp(stats.paired_mean_drop(one, other, confidence=CONFIDENCE))
        return Finding(found, n, "samples", partial(more, found, n), baseline=baseline)
    lost, won = discordant(theirs, mine)
    found = _in_pp(stats.tango(lost, won, n, confidence=CONFIDENCE))
    differ = (lost + won) / n
    return Finding(found, n, "samples", lambda gap: stats.paired_sample_size(differ, gap / 100), baseline=baseline)


def of_flips(theirs: Scores, mine: Scores, baseline: str) -> Finding:
    """The share of samples whose scores differ (arXiv 2407.09141)."""
    found = stats.wilson(sum(discordant(theirs, mine)), len(mine), confidence=CONFIDENCE)
    spread = found.value * (1 - found.value)
    return Finding(found, len(mine), "samples", partial(stats.paired_sample_size, spread), baseline=baseline)


def _in_pp(found: stats.Interval) -> stats.Interval:
    return stats.Interval(100 * found.value, 100 * found.low, 100 * found.high)
