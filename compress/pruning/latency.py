"""The shortest beginning of the ordered steps whose candidate is fast enough, in few measurements.

Time falls with MACs, by and large: the next candidate is where a straight line through the two nearest ones meets the
goal. A measurement costs seconds and is noisy, so a candidate near the goal is measured again, and the chosen one three
times; what counts is the median of its ratios to the model before, measured in turns with it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from edgewise.compress.config import Latency
from edgewise.compress.pruning.goals import Timed, Trial
from edgewise.errors import ModelError

NEAR = 0.02
"""A candidate so little below the goal is good enough: chunks and noise are coarser."""
MEASUREMENTS = 24
"""At most; each costs a conversion the first time, and seconds of timing."""
SURE = 3
"""Measurements of the candidate that is taken."""


@dataclass
class LatencySearch:
    """``time(n)`` measures the candidate after ``n`` of ``total`` steps, ``size(n)`` gives what is left of its MACs and
    parameters."""

    goal: Latency
    total: int
    size: Callable[[int], tuple[float, float]]
    time: Callable[[int], Timed]
    tried: dict[int, list[Timed]] = field(default_factory=dict)

    def run(self) -> int:
        """How many steps to take.

        Raises:
            ModelError: the goal is out of reach, or the model is that fast already.
        """
        low, high = 0, self.total
        self._measure(high)
        if self._limit() >= 1:
            raise ModelError(
                f"the model takes {self._reference():.4g} ms before pruning, and the goal is {self.goal.p50_ms:g} ms",
                where="latency",
                hint="leave the prune stage out, or ask for less",
            )
        if not self._within(high):
            raise self._out_of_reach()
        while high - low > 1 and self._left() and self._ratio(high) < self._limit() * (1 - NEAR):
            middle = self._between(low, high)
            low, high = (low, middle) if self._within(middle) else (middle, high)
        while True:
            while len(self.tried[high]) < SURE and self._left():
                self._measure(high)
            if self._ratio(high) <= self._limit() or high == self.total:
                break
            faster = [n for n in self.tried if n > high and self._ratio(n) <= self._limit()]
            high = min(high + max(1, self.total // 32), min(faster, default=self.total))
            self._measure(high)
        if self._ratio(high) > self._limit():
            raise self._out_of_reach()
        return high

    @property
    def measured(self) -> int:
        """How many measurements were made."""
        return sum(map(len, self.tried.values()))

    def trials(self) -> tuple[Trial, ...]:
        """All candidates that were timed, by steps."""
        return tuple(Trial(n, *self.size(n), tuple(timed)) for n, timed in sorted(self.tried.items()))

    def in_words(self, chosen: int) -> str:
        """What came out, for people."""
        ratio, limit = self._ratio(chosen), self._limit()
        return (
            f"latency {ratio:.3f} of the model before ({ratio * self._reference():.4g} ms) in {self.goal.runtime}, "
            f"{1 - ratio / limit:.1%} below the goal; {len(self.tried)} candidates timed"
        )

    def _limit(self) -> float:
        """The goal as a ratio to the model before."""
        return self.goal.ratio if self.goal.ratio is not None else (self.goal.p50_ms or 0.0) / self._reference()

    def _reference(self) -> float:
        return statistics.median(one.reference_ms for timed in self.tried.values() for one in timed)

    def _ratio(self, n: int) -> float:
        return statistics.median(one.ratio for one in self.tried[n]) if n else 1.0

    def _left(self) -> int:
        return MEASUREMENTS - self.measured

    def _measure(self, n: int) -> None:
        self.tried.setdefault(n, []).append(self.time(n))

    def _within(self, n: int) -> bool:
        """Is the candidate fast enough? One whose interval holds the goal is measured again."""
        if n not in self.tried:
            self._measure(n)
        while len(self.tried[n]) < SURE and self._left():
            last = self.tried[n][-1]
            noise = max((last.high - last.low) / 2, 0.01 * last.ratio)
            if abs(self._ratio(n) - self._limit()) > noise:
                break
            self._measure(n)
        return self._ratio(n) <= self._limit()

    def _between(self, low: int, high: int) -> int:
        """Where a straight line in MACs through both ends meets the goal; never nearer to an end than an eighth."""
        (x0, y0), (x1, y1) = ((self.size(n)[0], self._ratio(n)) for n in (low, high))
        aim = self._limit() * (1 - NEAR / 2)
        wanted = x1 + (x0 - x1) * (aim - y1) / (y0 - y1) if y0 > y1 else (x0 + x1) / 2
        edge = max(1, (high - low) // 8)
        inside = range(low + edge, high - edge + 1) or range(low + 1, high)
        return min(inside, key=lambda n: abs(self.size(n)[0] - wanted))

    def _out_of_reach(self) -> ModelError:
        n = min(self.tried, key=self._ratio)
        asked = f"ratio {self.goal.ratio:g}" if self.goal.ratio is not None else f"{self.goal.p50_ms:g} ms"
        reached = f"{self._ratio(n) * self._reference():.4g} ms, {self._ratio(n):.3f} of the model before"
        return ModelError(
            f"latency {asked} is out of reach: the smallest candidate takes {reached} in {self.goal.runtime}, with "
            f"{self.size(n)[0]:.3f} of the MACs",
            where="latency",
            hint="ask for more time, raise max_layer_ratio, or lower round_to; or start from a shallower model",
        )
