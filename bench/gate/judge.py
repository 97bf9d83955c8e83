"""From a budget and results to a verdict.

A limit is held when the whole interval holds it, and broken when none of the interval does; in between, the data can't
tell, and the check says how many samples could. Every check errs with at most 5 % chance, one-sided, so intervals are
90 % ones. Accuracy against a reference is Tango's score test of non-inferiority on paired answers.

Sizes are known exactly. Load time (the median of the launches) and peak memory (the largest of them) are few values,
one a launch: they are compared as they are, and make no claim about chance.

A machine that was busy, or whose speed moved, spoils absolute times more than ratios: see ``_of_flags``.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timezone
from functools import partial
from typing import Any

from edgewise.bench.gate import against, slices
from edgewise.bench.gate.asked import CHECKS, RELEASE, Asked, demands
from edgewise.bench.gate.config import Budget
from edgewise.bench.gate.floats import slower_than_float
from edgewise.bench.gate.found import AGAIN, NOT_SHOWN, SPOILERS, Finding, TooFew, Unusable, sound
from edgewise.bench.gate.verdict import Check, Verdict, exit_code, worst
from edgewise.bench.gate.waivers import waive
from edgewise.bench.record import FileUnderTest, Results
from edgewise.bench.validity import ONLY_SLOWER, hard
from edgewise.errors import RecipeError


def gate(
    budget: Budget,
    results: Results,
    failed: Mapping[str, str] | None = None,
    *,
    release: against.Release | None = None,
    today: date | None = None,
    power: Sequence[Mapping[str, Any]] | None = None,
) -> Verdict:
    """Judge the files of ``budget`` (by default the INT8 candidates) by every limit it sets.

    Args:
        budget: the limits.
        results: what was measured.
        failed: files that should be there and could not be made, and why; each of their checks is INVALID, where the
            budget is about them.
        release: the release before. Without it the limits of ``budget.release`` are not judged, and a warning says so.
        today: the day by which waivers expire, by default that of UTC.
        power: rows of ``edgewise.bench.gate.power``, to be kept in the verdict.

    Where not one check decides (no release to compare with, every slice too small), the verdict is INCONCLUSIVE.

    Raises:
        RecipeError: the budget sets no limit, names an unknown file or slice, or there is nothing to judge.
    """
    if budget.empty:
        raise RecipeError(
            "the budget sets no limit, so everything would pass",
            where="budget",
            hint=f"set at least one of {', '.join(CHECKS)}",
        )
    asked = list(demands(budget, results, release))
    missing = {name: why for name, why in (failed or {}).items() if budget.files is None or name in budget.files}
    named = None if budget.files is None else tuple(name for name in budget.files if name not in missing)
    there = [] if missing and _none_left(named, results) else judged_files(_about(budget, named), results)
    checks = [_judge(file, one, results, release) for file in there for one in asked]
    for name, why in missing.items():
        checks += [_check(name, one, status="INVALID", note=f"it was not made: {why}") for one in asked]
    checks, told = waive(checks, budget.waivers, today or datetime.now(timezone.utc).date())
    # What nobody looked at was not held: no check that decides is no pass.
    status = worst(checks) if any(check.gating for check in checks) else "INCONCLUSIVE"
    return Verdict(
        status=status,
        exit_code=exit_code(status, budget.on_inconclusive),
        checks=tuple(checks),
        warnings=(*_warnings(budget, results, release, there, checks), *told),
        budget=budget.model_dump(mode="json"),
        power=None if power is None else tuple(dict(row) for row in power),
    )


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


def _about(budget: Budget, named: tuple[str, ...] | None) -> Budget:
    return budget if named == budget.files else budget.model_copy(update={"files": named})


def _none_left(named: tuple[str, ...] | None, results: Results) -> bool:
    """Whether nothing of what the budget is about was made."""
    return not named if named is not None else not any(file.role == "candidate" for file in results.files)


def _check(file: str, asked: Asked, **found: Any) -> Check:
    made = Check(file, asked.check, limit=asked.limit, unit=asked.unit, slice=asked.slice, margin=asked.margin, **found)
    if asked.gating:
        return made
    why = "under min_n: told, and decides nothing"
    return replace(made, gating=False, note=f"{why}; {made.note}" if made.note else why)


def _judge(file: FileUnderTest, asked: Asked, results: Results, release: against.Release | None) -> Check:
    check = partial(_check, file.name, asked)
    try:
        sound(results, file)
        finding = asked.measured(results, file)
    except Unusable as error:
        return check(status="INVALID", note=str(error))
    except TooFew as error:
        return check(status="INCONCLUSIVE", n=error.n, needed_n=error.needed, counted=error.counted, note=str(error))
    if finding.limit is not None:
        asked = replace(asked, limit=finding.limit)
        check = partial(_check, file.name, asked)
    found = finding.interval
    check = partial(check, n=finding.n, counted=finding.counted, baseline=finding.baseline)
    if not all(math.isfinite(value) for value in (found.value, found.low, found.high)):
        return check(status="INVALID", note=f"expected finite numbers, got {found}")
    check = partial(check, value=found.value, low=found.low, high=found.high)
    limit = asked.sign * asked.limit
    # Turned so that less is better.
    best, worst_end = (found.low, found.high) if asked.sign > 0 else (-found.high, -found.low)
    status = "PASS" if worst_end <= limit else "INCONCLUSIVE" if best <= limit else "FAIL"
    flags = _flags(file, finding, results, release if asked.check.startswith(RELEASE) else None)
    spoilt = _of_flags(flags, finding, status)
    if spoilt:
        return check(status="INVALID", note=spoilt)
    if "single_launch" in flags and finding.kind in ("absolute", "energy"):
        return check(status="INCONCLUSIVE", n=1, counted="launches", needed_n=2, note="one process says too little")
    if status == "INCONCLUSIVE":
        return check(status=status, **_needed(finding, asked, flags))
    return check(status=status, note=finding.note)


def _needed(finding: Finding, asked: Asked, flags: Sequence[str]) -> dict[str, Any]:
    """How many it takes, and why it can't be told from so few."""
    needed = finding.gap_n(abs(asked.limit - finding.interval.value))
    timed = finding.kind != "fixed" and "precision_not_reached" in flags
    spans = "the interval spans the limit"
    spans += ", and measuring ended before bench.precision was reached" if timed else ""
    note = "; ".join(text for text in (spans, finding.note) if text)
    # It didn't do with n, so it takes more, whatever a rule of thumb says.
    return {"needed_n": needed and max(needed, finding.n + 1), "note": note}


def _flags(file: FileUnderTest, finding: Finding, results: Results, release: against.Release | None) -> tuple[str, ...]:
    """What is doubtful about the measurements that a finding stands on."""
    if finding.kind == "fixed":
        return ()
    if release is not None and release.side is not None:
        pair = (file.name, against.release_name(file.name))
        found = [release.side.measurements[name] for name in pair if name in release.side.measurements]
    else:
        names = [file.name, *([file.reference] if finding.kind == "ratio" and file.reference else [])]
        found = [results.measurements[name] for name in names if name in results.measurements]
    return tuple(dict.fromkeys(flag for one in found for flag in one.flags))


def _of_flags(flags: Sequence[str], finding: Finding, status: str) -> str:
    """Why a finding can't be believed, or nothing.

    Which flags spoil what stands in ``SPOILERS``.
    """
    always, unless_held = SPOILERS[finding.kind]
    spoilers = always if status == "PASS" else always | unless_held
    spoiling = {flag: why for flag, why in hard(flags).items() if flag in spoilers}
    if not spoiling:
        return ""
    slower = all(flag in ONLY_SLOWER for flag in spoiling)
    seen = {"FAIL": "over the limit, but ", "INCONCLUSIVE": NOT_SHOWN}.get(status, "") if slower else ""
    return f"{seen}{'; '.join(spoiling.values())}: {AGAIN}"


def _warnings(
    budget: Budget,
    results: Results,
    release: against.Release | None,
    files: Iterable[FileUnderTest],
    checks: Sequence[Check],
) -> Iterator[str]:
    yield from slower_than_float(results)
    for limits in budget.sliced:
        if limits.max_accuracy_drop_pp is not None:
            for file in files:
                yield from slices.regressed(limits, results, file)
        if release is None and limits.max_release_drop_pp is not None and budget.release is None:
            yield "budget.slices.max_release_drop_pp is not judged: no release was given"
    if release is None and budget.release is not None:
        yield "budget.release is not judged: no release was given"
    if not any(check.gating for check in checks):
        why = "every slice is under min_n" if checks else "it sets nothing but limits against a release"
        yield f"not one limit of the budget could be judged, so nothing is said to hold: {why}"
    open_checks = [check for check in checks if check.status == "INCONCLUSIVE" and not check.held]
    if open_checks and budget.on_inconclusive == "warn":
        yield f"{len(open_checks)} checks could not be told from so few samples, and count as held: on_inconclusive"


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
