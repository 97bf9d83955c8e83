"""What a budget asks of every file: its limits one by one, each with what measures it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from edgewise.bench.gate import accuracy, against, device, scenarios, slices
from edgewise.bench.gate.config import Budget
from edgewise.bench.gate.found import Measured
from edgewise.bench.record import Results

# What each limit of a budget measures, its unit, and +1 where less is better, -1 where more is.
CHECKS: dict[str, tuple[Measured, str, Literal[1, -1]]] = {
    "min_accuracy": (accuracy.accuracy, "fraction", -1),
    "max_accuracy_drop_pp": (accuracy.drop, "pp", 1),
    "min_speedup": (device.speedup, "x", -1),
    "min_size_ratio": (device.size_ratio, "x", -1),
    "max_p50_ms": (partial(device.latency, 0.5), "ms", 1),
    "max_p90_ms": (partial(device.latency, 0.9), "ms", 1),
    "max_p99_ms": (partial(device.latency, 0.99), "ms", 1),
    "max_size_bytes": (device.size, "bytes", 1),
    "max_peak_memory_bytes": (device.memory, "bytes", 1),
    "max_load_ms": (device.load, "ms", 1),
    "min_qps": (device.throughput, "per s", -1),
    "max_joules_per_inference": (device.joules, "J", 1),
    "max_flip_rate": (accuracy.flips, "fraction", 1),
}
RELEASE = "release."


@dataclass(frozen=True)
class Asked:
    """One limit for every file: where it stands in the budget, what measures it, which way is better."""

    check: str
    limit: float
    measured: Measured
    unit: str
    sign: int
    slice: str | None = None
    margin: float | None = None
    gating: bool = True


def demands(budget: Budget, results: Results, release: against.Release | None) -> Iterator[Asked]:
    """Every limit that the budget sets, in its order.

    Raises:
        RecipeError: a limit on slices that nobody knows.
    """
    for key, limit in budget.limits.items():
        measured, unit, sign = CHECKS[key]
        margin = limit if key in ("max_accuracy_drop_pp", "max_flip_rate") else None
        yield Asked(key, limit, measured, unit, sign, margin=margin)
    for name, load in budget.scenarios.items():
        for key, limit in load.model_dump(exclude_none=True).items():
            _, unit, sign = CHECKS[key]
            yield Asked(f"{name}.{key}", float(limit), partial(scenarios.measured, name, key, limit), unit, sign)
    for limits in budget.sliced:
        for part in slices.parts(limits, results):
            gating = part.n >= limits.min_n
            for key in slices.MEASURES:
                limit = getattr(limits, key)
                if limit is not None:
                    _, unit, sign = CHECKS[key]
                    margin = limit if sign > 0 else None
                    yield Asked(key, limit, slices.measure(key, part), unit, sign, part.name, margin, gating)
            if release is not None and limits.max_release_drop_pp is not None:
                key, limit = "max_accuracy_drop_pp", limits.max_release_drop_pp
                measured = against.answers(key, release, part)
                yield Asked(RELEASE + key, limit, measured, "pp", 1, part.name, limit, gating)
    if release is None or budget.release is None:
        return
    for key, limit in budget.release.model_dump(exclude={"memory_slack_bytes"}, exclude_none=True).items():
        unit = CHECKS[key][1] if key in CHECKS else "x"
        margin = limit if key in CHECKS else limit - 1
        measured = against.measure(key, release, budget.release)
        yield Asked(RELEASE + key, float(limit), measured, unit, 1, margin=margin)
