"""What a text task is judged by: one value a sample, and metrics of a whole split from scikit-learn, SciPy and
seqeval. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import RuntimeMissing
from edgewise.models.tasks.base import IGNORED, Float, Int

Metric = Callable[[Float, NDArray[Any]], float]


@dataclass(frozen=True)
class Summed:
    """A metric that hangs on sums over samples alone, so that a bootstrap counts each sample once: ``counts`` of
    answers and targets (N, ...) -> (N, S), ``value`` of their sums (S,)."""

    counts: Callable[[Float, NDArray[Any]], Int]
    value: Callable[[Int], float]

    def __call__(self, outputs: Float, targets: NDArray[Any]) -> float:
        """Of all samples."""
        return self.value(self.counts(outputs, targets).sum(axis=0))


def closeness(low: float, high: float) -> Callable[[Float, NDArray[Any]], Float]:
    """A grade for regression: 1 - |error| / (high - low), not below 0; answers (N, 1), targets (N,) -> (N,)."""

    def score(outputs: Float, targets: NDArray[Any]) -> Float:
        graded: Float = 1 - np.abs(outputs[:, 0] - targets) / (high - low)
        return np.clip(graded, 0, 1).astype(np.float32)

    return score


def words_right(outputs: Float, targets: Int) -> Float:
    """The share of each sentence's words that are tagged right: answers (N, L, K), targets (N, L) -> (N,)."""
    asked = targets != IGNORED
    right = (outputs.argmax(axis=2) == targets) & asked
    share: Float = (right.sum(axis=1) / np.maximum(asked.sum(axis=1), 1)).astype(np.float32)
    return share


def for_classes(count: int) -> Mapping[str, Metric]:
    """F1 (of the second class where there are two, else the mean over classes) and Matthews' correlation."""

    def f1(outputs: Float, targets: NDArray[Any]) -> float:
        from sklearn.metrics import f1_score

        how = {"average": "binary"} if count == 2 else {"average": "macro", "labels": range(count)}
        return float(f1_score(targets, outputs.argmax(axis=1), zero_division=0.0, **how))

    def matthews(outputs: Float, targets: NDArray[Any]) -> float:
        from sklearn.metrics import matthews_corrcoef

        answers = outputs.argmax(axis=1)
        if (answers == targets[0]).all() and (targets == targets[0]).all():
            return 0.0  # of a single class there is no correlation; scikit-learn would warn
        return float(matthews_corrcoef(targets, answers))

    return {"f1" if count == 2 else "f1_macro": f1, "matthews": matthews}


def for_numbers() -> Mapping[str, Metric]:
    """Pearson's and Spearman's correlation; 0 where all answers are one number, so that nothing goes with anything."""

    def correlation(name: str) -> Metric:
        def of(outputs: Float, targets: NDArray[Any]) -> float:
            from scipy import stats

            if np.ptp(outputs) == 0 or np.ptp(targets) == 0:
                return 0.0
            return float(getattr(stats, name)(outputs[:, 0], targets).statistic)

        return of

    return {"pearson": correlation("pearsonr"), "spearman": correlation("spearmanr")}


def for_tags(classes: Sequence[str]) -> Mapping[str, Metric]:
    """F1 of whole spans as CoNLL counts them, where classes are B-, I- and O; else the mean over classes of words'."""
    spans = any(name.startswith(("B-", "I-")) for name in classes)

    def span_counts(outputs: Float, targets: NDArray[Any]) -> Int:
        try:
            from seqeval.metrics.sequence_labeling import get_entities
        except ImportError:
            raise RuntimeMissing("F1 of spans needs the package seqeval", hint="pip install 'edgewise[text]'") from None
        names = np.asarray(classes)
        counts = np.zeros((len(targets), 3), np.int64)
        for count, row, answer in zip(counts, targets, outputs.argmax(axis=2), strict=True):
            told = row != IGNORED
            true, given = (set(get_entities(names[side[told]].tolist())) for side in (row, answer))
            count[:] = len(true & given), len(true), len(given)
        return counts

    def span_f1(totals: Int) -> float:
        hit, true, given = totals.tolist()
        return 2 * hit / (true + given) if hit else 0.0

    def f1_macro(outputs: Float, targets: NDArray[Any]) -> float:
        from sklearn.metrics import f1_score

        asked = targets != IGNORED
        answered = outputs.argmax(axis=2)[asked]
        return float(f1_score(targets[asked], answered, average="macro", labels=range(len(classes)), zero_division=0.0))

    return {"span_f1": Summed(span_counts, span_f1)} if spans else {"f1_macro": f1_macro}
