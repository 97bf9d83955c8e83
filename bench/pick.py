"""The file to take: of those that keep the budget and aren't slower than their float parent, the fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgewise.bench.gate import Verdict
from edgewise.bench.numbers import clock_of, cpu_times_of, samples_of, speedup
from edgewise.bench.record import FileUnderTest, Results
from edgewise.bench.stats import Interval


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
    failed = {check.file for check in verdict.checks if check.status != "PASS"} if verdict else set()
    held = [file for file in left if file.name not in failed and (not judged or file.name in judged)]
    if not held:
        counts = {
            "not faster than float": len(behind),
            "not usable": len(unusable),
            "not shown to keep the budget": len(left),
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return Pick(None, f"{len(candidates)} measured: {told}", slower, unusable)
    timed = {file.name: _p50_ms(results, file) for file in held}
    name = min(timed, key=lambda one: (timed[one], one))
    rule = "within the budget and not slower than float" if verdict else "not slower than float"
    which = "the only one" if len(timed) == 1 else f"the fastest of {len(timed)}"
    return Pick(name, f"p50 {timed[name]:.3g} ms, {which} {rule}, of {len(candidates)} in all", slower, unusable)


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


def _p50_ms(results: Results, file: FileUnderTest) -> float:
    """The median latency; of CPU time where the machine was busy and one thread computes."""
    measurement = results.measurements[file.name]
    clock = clock_of(results, *(one.name for one in results.files))
    blocks = (samples_of if clock != "cpu" else cpu_times_of)(measurement)
    return float(np.median(np.concatenate([block for launch in blocks for block in launch]))) / 1e6


__all__ = ["Pick", "pick"]
