"""The file to take: of those that keep the budget and aren't slower than their float parent, the fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgewise.bench import format as say
from edgewise.bench.gate import Verdict
from edgewise.bench.numbers import Clock, clock_of, cpu_times_of, samples_of, speedup
from edgewise.bench.record import FileUnderTest, Results
from edgewise.bench.stats import Interval

NAMED = 3  # checks of a file that stand in its way; slices may be many


@dataclass(frozen=True)
class Pick:
    """``name`` of the file, None where none will do, and ``why``. ``slower``: files that are slower than the float file
    of the same model, and how much; ``unusable``: files that could not be measured, and why."""

    name: str | None
    why: str
    slower: Mapping[str, str] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)


def pick(results: Results, verdict: Verdict | None) -> Pick:
    """Choose among the candidates: those of which every check of ``verdict`` passed, where there is one.

    A file that measured slower than its float parent is never chosen, however sure that is, nor one whose latency is
    not known.
    """
    candidates = [file for file in results.files if file.role == "candidate"]
    unusable = {file.name: told for file in candidates if (told := _unusable(results, file))}
    ratios = {file.name: _speedup(results, file) for file in candidates if file.name not in unusable}
    behind = {name: ratio for name, ratio in ratios.items() if ratio is not None and ratio.value < 1}
    slower = {name: _how_much(results, name, ratio) for name, ratio in behind.items() if ratio.high < 1}
    if not candidates:
        return Pick(None, "no file to ship was measured here")
    left = [file for file in candidates if file.name in ratios and file.name not in behind]
    judged = {check.file for check in verdict.checks} if verdict else set()
    failed = {check.file for check in verdict.checks if not check.held} if verdict else set()
    held = [file for file in left if file.name not in failed and (not judged or file.name in judged)]
    if not held:
        reasons = {file.name: _not_held(verdict, file.name) for file in left}
        reasons |= {name: _how_much(results, name, ratio) for name, ratio in behind.items()}
        reasons |= {name: why.splitlines()[0] for name, why in unusable.items()}
        told = "; ".join(f"{file.name}: {reasons[file.name]}" for file in candidates)
        return Pick(None, f"none of {len(candidates)}: {told}", slower, unusable)
    timed = {file.name: _p50_ms(results, file) for file in held}
    name = min(timed, key=lambda one: (timed[one], one))
    rule = "within the budget and not slower than float" if verdict else "not slower than float"
    which = "the only one" if len(timed) == 1 else f"the fastest of {len(timed)}"
    p50 = f"p50 {say.duration(timed[name])}{' of CPU time' if _clock(results) == 'cpu' else ''}"
    return Pick(name, f"{p50}, {which} {rule}, of {len(candidates)} in all", slower, unusable)


def _not_held(verdict: Verdict | None, name: str) -> str:
    """Which checks of a file stand in its way."""
    stopped = [check for check in (verdict.checks if verdict else ()) if check.file == name and not check.held]
    told = [f"{check.check}{f' of {check.slice}' if check.slice else ''} {check.status}" for check in stopped]
    rest = [f"{len(told) - NAMED} more"] if len(told) > NAMED else []
    return ", ".join([*told[:NAMED], *rest]) or "the budget doesn't judge it"


def _speedup(results: Results, file: FileUnderTest) -> Interval | None:
    """Latency of the float file of the very same model / that of ``file``; None where there is no such file."""
    if file.parent is None or file.parent == file.name:
        return None
    return speedup(results, file.parent, file.name, clock=clock_of(results, file.parent, file.name) or "wall")


def _how_much(results: Results, name: str, ratio: Interval) -> str:
    parent = results.file(name).parent
    return f"{1 / ratio.value:.2f} times the latency of {parent} (95 %: {1 / ratio.high:.2f} to {1 / ratio.low:.2f})"


def _unusable(results: Results, file: FileUnderTest) -> str:
    measurement, answers = results.measurements.get(file.name), results.answers.get(file.name)
    if measurement is None or not measurement.launches:
        return (measurement.error if measurement else None) or "it was not measured"
    if measurement.error:
        return measurement.error
    if answers is not None and answers.error:
        return answers.error
    if answers is not None and not answers.finite:
        return "it answered NaN or infinity"
    if clock_of(results, file.name) is None:
        return "the machine was busy, so its latency is not known: measure again"
    return ""


def _clock(results: Results) -> Clock | None:
    """One clock for all: a file's CPU time can't be held against another's wall time."""
    return clock_of(results, *(one.name for one in results.files))


def _p50_ms(results: Results, file: FileUnderTest) -> float:
    """The median latency; of CPU time where the machine was busy and one thread computes."""
    measurement = results.measurements[file.name]
    blocks = (samples_of if _clock(results) != "cpu" else cpu_times_of)(measurement)
    return float(np.median(np.concatenate([block for launch in blocks for block in launch]))) / 1e6


__all__ = ["Pick", "pick"]
