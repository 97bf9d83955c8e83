"""Budgets to verdicts: PASS, FAIL, INCONCLUSIVE, INVALID, each with value, interval, limit and n.

A limit is held when the whole interval holds it, and broken when none of the interval does; in between, the data can't
tell, and the check says how many samples could. Every check errs with at most 5 % chance, one-sided, so intervals are
90 % ones. Accuracy against a reference is Tango's score test of non-inferiority on paired answers.

Sizes are known exactly. Load time (the median of the launches) and peak memory (the largest of them) are few values,
one a launch: they are compared as they are, and make no claim about chance.

A machine that was busy, or whose speed moved, spoils absolute times more than ratios. See ``_judge`` and
``numbers.clock_of``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.config import Budget
from edgewise.bench.numbers import (
    accuracy_drop,
    clock_of,
    discordant,
    load_ms,
    peak_memory,
    qps,
    samples_of,
    speedup,
)
from edgewise.bench.record import FileUnderTest, Results
from edgewise.errors import RecipeError

FORMAT = 1
CONFIDENCE = 0.90
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INVALID": 3, "INCONCLUSIVE": 4}
ON_CPU_TIME = "on CPU time: the machine was busy"
BUSY = "the machine was busy, and with more than one thread CPU time can't stand in: measure again"
SEVERITY = ("FAIL", "INVALID", "INCONCLUSIVE", "PASS")

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]


@dataclass(frozen=True)
class Check:
    """One limit on one file. ``value``, ``low``, ``high`` and ``limit`` share ``unit``; ``n`` counts ``counted``.

    ``needed_n``: how many it would have taken to tell, where the check is inconclusive and a number would do.
    """

    file: str
    check: str
    status: Status
    limit: float
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    counted: str = ""
    needed_n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks of one budget. The status is the worst one: FAIL, then INVALID, INCONCLUSIVE, PASS."""

    status: Status
    exit_code: int
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    budget: dict[str, Any]
    confidence: float = CONFIDENCE
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Finding:
    """What a check measured.

    ``gap_n``: how many it takes to tell a limit so far from the value; ``absolute``: a time as such, not a ratio of
    two that were taken side by side; ``note``: what the reader must know, whatever the verdict.
    """

    interval: stats.Interval
    n: int
    counted: str
    gap_n: Callable[[float], int | None] = lambda gap: None
    absolute: bool = False
    note: str = ""


class _Unusable(Exception):
    """Why a check can't be made: INVALID."""


class _TooFew(Exception):
    """Too few samples for a check: INCONCLUSIVE. Holds how many there are, and how many it takes."""

    def __init__(self, n: int, needed: int) -> None:
        super().__init__(f"{n} samples, needs >= {needed}")
        self.n, self.needed = n, needed


def gate(budget: Budget, results: Results, failed: Mapping[str, str] | None = None) -> Verdict:
    """Judge the files of ``budget`` (by default the INT8 candidates) by every limit it sets.

    ``failed``: files that should be there and could not be made, and why; each of their checks is INVALID, where the
    budget is about them.

    Raises:
        RecipeError: the budget sets no limit, names an unknown file, or there is nothing to judge.
    """
    limits = {key: value for key, value in budget.model_dump().items() if key != "files" and value is not None}
    if not limits:
        raise RecipeError(
            "the budget sets no limit, so everything would pass",
            where="budget",
            hint=f"set at least one of {', '.join(CHECKS)}",
        )
    missing = {name: why for name, why in (failed or {}).items() if budget.files is None or name in budget.files}
    named = None if budget.files is None else tuple(name for name in budget.files if name not in missing)
    there = [] if missing and _none_left(named, results) else judged_files(_about(budget, named), results)
    checks = [_judge(file, key, float(limit), results) for file in there for key, limit in limits.items()]
    for name, why in missing.items():
        for key, limit in limits.items():
            checks.append(Check(name, key, "INVALID", float(limit), CHECKS[key][1], note=f"it was not made: {why}"))
    status = next(status for status in SEVERITY if any(check.status == status for check in checks))
    return Verdict(
        status=status,  # type: ignore[arg-type]
        exit_code=EXIT_CODES[status],
        checks=tuple(checks),
        warnings=tuple(slower_than_float(results)),
        budget=budget.model_dump(mode="json"),
    )


def _about(budget: Budget, named: tuple[str, ...] | None) -> Budget:
    return budget if named == budget.files else budget.model_copy(update={"files": named})


def _none_left(named: tuple[str, ...] | None, results: Results) -> bool:
    """Whether nothing of what the budget is about was made."""
    return not named if named is not None else not any(file.role == "candidate" for file in results.files)


def judged_files(budget: Budget, results: Results) -> list[FileUnderTest]:
    """The files that ``budget`` is about: those it names, else INT8 candidates, else all candidates.

    Raises:
        RecipeError: a name that isn't among the results, or no candidate at all.
    """
    known = [file.name for file in results.files]
    if budget.files is not None:
        wrong = [name for name in budget.files if name not in known]
        if wrong or not budget.files:
            raise RecipeError(
                "; ".join(f"no file {name!r} was measured{_did_you_mean(name, known)}" for name in wrong)
                or "expected names of files, got none",
                where="budget.files",
                hint=f"measured were {', '.join(known)}",
            )
        return [results.file(name) for name in budget.files]
    candidates = [file for file in results.files if file.role == "candidate"]
    if not candidates:
        raise RecipeError(
            "there is no candidate to judge, only float files to compare with",
            where="budget",
            hint=f"name files under budget.files: {', '.join(known)}",
        )
    return [file for file in candidates if file.precision.startswith("int8")] or candidates


HASTENED = ("int8", "int8_dynamic", "int8_weights", "bfloat16")
"""Precisions that are chosen for speed, or at least must not cost any (int8_weights)."""


def slower_than_float(results: Results) -> list[str]:
    """A sentence for each INT8 or bfloat16 file that isn't faster than the float file of the very same model."""
    found = []
    for file in results.files:
        if file.precision not in HASTENED or file.parent is None:
            continue
        clock = clock_of(results, file.parent, file.name)
        if clock is None:
            found.append(f"{file.name} is NOT shown to be faster than its own float model {file.parent}: {BUSY}")
            continue
        ratio = speedup(results, file.parent, file.name, clock=clock)
        if ratio is None or ratio.low > 1:
            continue
        times = f"{ratio.value:.2f}x its speed, interval {ratio.low:.2f} to {ratio.high:.2f}"
        times += f", {ON_CPU_TIME}" if clock == "cpu" else ""
        if ratio.high < 1:
            found.append(f"{file.name} is SLOWER than its own float model {file.parent}: {times}")
        elif file.precision != "int8_weights":  # made for its size
            found.append(f"{file.name} is NOT shown to be faster than its own float model {file.parent}: {times}")
    return found


def _judge(file: FileUnderTest, key: str, limit: float, results: Results) -> Check:
    measured, unit, sign = CHECKS[key]
    check = partial(Check, file=file.name, check=key, limit=limit, unit=unit)
    try:
        _sound(results, file)
        finding = measured(results, file)
    except _Unusable as error:
        return check(status="INVALID", note=str(error))
    except _TooFew as error:
        return check(status="INCONCLUSIVE", n=error.n, needed_n=error.needed, counted="runs", note=str(error))
    found = finding.interval
    check = partial(check, n=finding.n, counted=finding.counted, note=finding.note)
    if not all(math.isfinite(value) for value in (found.value, found.low, found.high)):
        return check(status="INVALID", note=f"expected finite numbers, got {found}")
    check = partial(check, value=found.value, low=found.low, high=found.high)
    flags = results.measurements[file.name].flags if finding.absolute else ()
    if "drift" in flags:
        return check(status="INVALID", note="times moved in one direction while measuring: measure again")
    if "single_launch" in flags:
        return check(status="INCONCLUSIVE", n=1, counted="launches", needed_n=2, note="one process says too little")
    # Turned so that less is better.
    best, worst = (found.low, found.high) if sign > 0 else (-found.high, -found.low)
    if worst <= sign * limit:
        return check(status="PASS")
    if best <= sign * limit:
        needed = finding.gap_n(abs(limit - found.value))
        note = "; ".join(text for text in ("the interval spans the limit", finding.note) if text)
        # It didn't do with n, so it takes more, whatever a rule of thumb says.
        return check(status="INCONCLUSIVE", needed_n=needed and max(needed, finding.n + 1), note=note)
    if "contended" in flags:
        # Other work on the machine only ever makes a file slower: a limit held is held, a limit broken may not be.
        return check(status="INVALID", note="over the limit, but the machine was busy with other work: measure again")
    return check(status="FAIL")


def _sound(results: Results, file: FileUnderTest) -> None:
    """Refuse a file that broke anywhere: a small file that doesn't run is not a small file."""
    measurement, answers = results.measurements.get(file.name), results.answers.get(file.name)
    for part in (measurement, answers):
        if part is not None and part.error:
            raise _Unusable(part.error.splitlines()[0])
    if answers is not None and not answers.finite:
        raise _Unusable("it answered NaN or infinity")


def _accuracy(results: Results, file: FileUnderTest) -> _Finding:
    scores = np.asarray(_scores(results, file), dtype=np.float64)
    found = stats.mean_interval(scores, confidence=CONFIDENCE)
    n = len(scores)
    if stats.is_binary(scores):
        return _Finding(found, n, "samples", gap_n=partial(stats.paired_sample_size, float(np.var(scores))))
    return _Finding(found, n, "samples", gap_n=partial(_more, found, n))


def _drop(results: Results, file: FileUnderTest) -> _Finding:
    theirs, mine = _pair(results, file)
    found = accuracy_drop(results, file.reference, file.name, confidence=CONFIDENCE)
    assert found is not None  # _pair would have refused
    in_pp = stats.Interval(100 * found.value, 100 * found.low, 100 * found.high)
    if not stats.is_binary(np.concatenate([theirs, mine])):
        return _Finding(in_pp, len(mine), "samples", gap_n=partial(_more, in_pp, len(mine)))
    differ = float(np.mean(theirs != mine))
    return _Finding(in_pp, len(mine), "samples", gap_n=lambda gap: stats.paired_sample_size(differ, gap / 100))


def _flips(results: Results, file: FileUnderTest) -> _Finding:
    theirs, mine = _pair(results, file)
    found = stats.wilson(sum(discordant(theirs, mine)), len(mine), confidence=CONFIDENCE)
    spread = found.value * (1 - found.value)
    return _Finding(found, len(mine), "samples", gap_n=partial(stats.paired_sample_size, spread))


def _speedup(results: Results, file: FileUnderTest) -> _Finding:
    _reference(results, file)
    _runs(results, file)
    clock = clock_of(results, file.reference, file.name)
    if clock is None:
        raise _Unusable(BUSY)
    found = speedup(results, file.reference, file.name, clock=clock, confidence=CONFIDENCE)
    if found is None:
        raise _Unusable(f"the reference {file.reference} was not measured in the same launches")
    pairs = sum(len(launch.blocks) for launch in results.measurements[file.name].launches)
    note = ON_CPU_TIME if clock == "cpu" else ""
    return _Finding(found, pairs, "block pairs", gap_n=partial(_more, found, pairs), note=note)


def _latency(q: float, results: Results, file: FileUnderTest) -> _Finding:
    launches = _runs(results, file)
    pooled = np.concatenate([block for launch in launches for block in launch])
    (found,) = stats.bootstrap_percentiles(launches, [q], confidence=CONFIDENCE)
    if found is None:
        raise _TooFew(len(pooled), stats.sample_floor(q))
    # A tail is rarely seen: its upper end is at least what so few samples can vouch for.
    upper = stats.percentile_upper(pooled, q) if q > 0.5 else None
    high = max(found.high, upper) if upper is not None else found.high
    in_ms = stats.Interval(found.value / 1e6, found.low / 1e6, high / 1e6)
    return _Finding(in_ms, len(pooled), "runs", gap_n=partial(_more, in_ms, len(pooled)), absolute=True)


def _qps(results: Results, file: FileUnderTest) -> _Finding:
    _runs(results, file)
    found, n = qps(results.measurements[file.name], confidence=CONFIDENCE)
    return _Finding(found, n, "blocks", gap_n=partial(_more, found, n), absolute=True)


def _memory(results: Results, file: FileUnderTest) -> _Finding:
    _runs(results, file)
    measurement = results.measurements[file.name]
    peak = peak_memory(measurement)
    if peak is None:
        raise _Unusable("this system does not tell a process's peak memory")
    return _Finding(_exactly(peak), len(measurement.launches), "launches")


def _load(results: Results, file: FileUnderTest) -> _Finding:
    _runs(results, file)
    times = load_ms(results.measurements[file.name])
    return _Finding(_exactly(float(np.median(times))), len(times), "launches", absolute=True)


def _size(results: Results, file: FileUnderTest) -> _Finding:
    return _Finding(_exactly(file.size_bytes), 1, "file")


def _size_ratio(results: Results, file: FileUnderTest) -> _Finding:
    reference = _reference(results, file)
    return _Finding(_exactly(reference.size_bytes / file.size_bytes if file.size_bytes else math.inf), 1, "file")


# What each limit of a budget measures, its unit, and +1 where less is better, -1 where more is.
CHECKS: dict[str, tuple[Callable[[Results, FileUnderTest], _Finding], str, Literal[1, -1]]] = {
    "min_accuracy": (_accuracy, "fraction", -1),
    "max_accuracy_drop_pp": (_drop, "pp", 1),
    "min_speedup": (_speedup, "x", -1),
    "min_size_ratio": (_size_ratio, "x", -1),
    "max_p50_ms": (partial(_latency, 0.5), "ms", 1),
    "max_p99_ms": (partial(_latency, 0.99), "ms", 1),
    "max_size_bytes": (_size, "bytes", 1),
    "max_peak_memory_bytes": (_memory, "bytes", 1),
    "max_load_ms": (_load, "ms", 1),
    "min_qps": (_qps, "per s", -1),
    "max_flip_rate": (_flips, "fraction", 1),
}


def _runs(results: Results, file: FileUnderTest) -> list[list[NDArray[np.float64]]]:
    measurement = results.measurements.get(file.name)
    if measurement is None or not measurement.launches:
        raise _Unusable("it was not measured")
    return samples_of(measurement)


def _scores(results: Results, file: FileUnderTest) -> NDArray[np.float32]:
    scores = results.scores(file.name)
    if scores is None:
        raise _Unusable(f"{file.name} has not answered the samples")
    return scores


def _reference(results: Results, file: FileUnderTest) -> FileUnderTest:
    known = {one.name: one for one in results.files}
    if file.reference is None or file.reference not in known:
        raise _Unusable("no float reference was measured in the same runtime")
    _sound(results, known[file.reference])
    return known[file.reference]


def _pair(results: Results, file: FileUnderTest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mine, theirs = _scores(results, file), _scores(results, _reference(results, file))
    if len(mine) != len(theirs):
        raise _Unusable(f"expected the reference's {len(theirs)} samples, got {len(mine)}")
    return theirs, mine


def _exactly(value: float) -> stats.Interval:
    return stats.Interval(value, value, value)


def _more(found: stats.Interval, n: int, gap: float) -> int | None:
    """So many times ``n`` that the interval, which shrinks with its root, no longer reaches a limit ``gap`` away."""
    half = max(found.high - found.value, found.value - found.low)
    return max(n + 1, math.ceil(n * (half / gap) ** 2)) if gap > 0 else None


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
