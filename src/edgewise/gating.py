"""``edgewise gate``: a run or a bench folder judged by a budget, against the release before where one is given."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.bench.gate import Verdict, gate, judged_files
from edgewise.bench.gate.against import SIDE_BY_SIDE, Release
from edgewise.bench.gate.config import ON_INVALID, Budget
from edgewise.bench.gate.found import AGAIN, NOT_SHOWN
from edgewise.bench.gate.power import Prospect, known_of, prospects, to_json
from edgewise.bench.record import Results
from edgewise.errors import MeasureError, RecipeError
from edgewise.measured import Measured, check_there, open_measured
from edgewise.pipeline import unjudged
from edgewise.progress import Tick, silent

if TYPE_CHECKING:
    from edgewise.bench.config import Bench

NO_RELEASE = "none"
"""What ``--against`` says of a first release."""


@dataclass(frozen=True)
class Judged:
    """A verdict, of what, and where the lines of its budget stand: ``lines`` by key, of the file ``budget``."""

    name: str
    verdict: Verdict
    budget: Path | None
    lines: dict[str, int]


def gate_run(
    folder: Path,
    budget: Path | None = None,
    *,
    against: str | None = None,
    on_inconclusive: str | None = None,
    on_invalid: str | None = None,
    tick: Tick = silent,
) -> Judged:
    """Judge what was measured into ``folder`` by a budget file, or by the budget in its recipe.

    Args:
        folder: of a finished run, or one that ``edgewise bench --out`` wrote.
        budget: a YAML file.
        against: the folder of the release before, or ``none`` for a first release.
        on_inconclusive: ``fail``, ``warn`` or ``pass``, in place of the budget's.
        on_invalid: ``fail`` or ``retry:N``, in place of the budget's.
        tick: told of the progress, where something is measured again.

    Raises:
        ArtifactError: nothing was measured there, or a file to measure again is gone.
        RecipeError: no budget, one with mistakes, or one about a release where none was given.
        MeasureError: the folders come from different devices.
        DeviceError: the device can't be used.
    """
    measured = open_measured(folder)
    limits, lines = _limits(measured, budget, on_inconclusive, on_invalid)
    theirs = _release(limits, against)
    failed = unjudged(limits, measured.record) if measured.record else None
    verdict = None
    for turn in range(1 + limits.retries):
        if verdict is not None:
            if not _may_get_better(verdict):
                break
            measured = _again(measured, turn, tick)
        release = _compared(measured, theirs, limits, tick) if theirs else None
        power = to_json(prospects_of(measured, limits))
        verdict = gate(limits, measured.results, failed, release=release, power=power)
    assert verdict is not None  # the first turn is always taken
    return Judged(measured.name, verdict, budget, lines)


def write(judged: Judged, *, junit: Path | None, verdict: Path | None, github: bool, stdout_is_free: bool) -> None:
    """Write what was asked for beside the table: JUnit XML, JSON; in GitHub Actions annotations and the summary.

    Annotations go to stdout, or to stderr where stdout is JSON: the runner reads both.

    Raises:
        OSError: a file can't be written.
    """
    from edgewise.bench.gate.github import append_summary, commands, markdown
    from edgewise.bench.gate.junit import junit as as_junit

    if verdict is not None:
        verdict.write_text(json.dumps(judged.verdict.to_json(), indent=1) + "\n", encoding="utf-8")
    if junit is not None:
        junit.write_text(as_junit(judged.verdict, judged.name), encoding="utf-8")
    if not github and os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for line in commands(judged.verdict, _from_root(judged.budget), judged.lines):
        print(line, file=sys.stdout if stdout_is_free else sys.stderr)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        append_summary(Path(summary), markdown(judged.verdict, judged.name))


def _from_root(budget: Path | None) -> Path | None:
    """The budget's path as GitHub knows it, from the repository's root."""
    if budget is None:
        return None
    root = Path(os.environ.get("GITHUB_WORKSPACE") or ".").resolve()
    path = budget.resolve()
    return path.relative_to(root) if path.is_relative_to(root) else Path(path.name)


def plan_gate(folder: Path, budget: Path | None = None) -> list[Prospect]:
    """What a budget's limits could be told from as many samples as were measured into ``folder``.

    Raises:
        ArtifactError: nothing was measured there.
        RecipeError: no budget, or one with mistakes.
    """
    measured = open_measured(folder)
    limits, _ = _limits(measured, budget, None, None)
    return prospects_of(measured, limits)


def prospects_of(measured: Measured, limits: Budget) -> list[Prospect]:
    """The outlook of each limit on answers and tails."""
    from edgewise.bench.gate.slices import parts

    known = known_of(measured.results)
    slices = [{part.name: part.n for part in parts(one, measured.results)} for one in limits.sliced]
    names = [file.name for file in judged_files(limits, measured.results)] if _any(limits, measured.results) else []
    return prospects(limits, names, _config(measured.results), replace(known, slices=slices))


def _any(limits: Budget, results: Results) -> bool:
    """Whether there is a file to judge; one that could not be made is told of by the gate."""
    known = {file.name for file in results.files}
    if limits.files is not None:
        return set(limits.files) <= known
    return any(file.role == "candidate" for file in results.files)


def _config(results: Results) -> Bench:
    from edgewise.bench.config import Bench

    return Bench.model_validate(results.config)


def _limits(
    measured: Measured, budget: Path | None, on_inconclusive: str | None, on_invalid: str | None
) -> tuple[Budget, dict[str, int]]:
    from edgewise.recipe_file import budget_lines, load_budget

    found = load_budget(budget) if budget is not None else measured.recipe.budget if measured.recipe else None
    if found is None:
        what = "the recipe has no budget" if measured.recipe else "a bench folder has no budget of its own"
        raise RecipeError(what, where=str(measured.folder), hint="give one with --budget FILE")
    if on_inconclusive not in (None, "fail", "warn", "pass"):
        raise RecipeError(f"expected fail, warn or pass, got {on_inconclusive!r}", where="--on-inconclusive")
    if on_invalid is not None and not re.fullmatch(ON_INVALID, on_invalid):
        raise RecipeError(f"expected fail or retry:N, N from 1 to 9, got {on_invalid!r}", where="--on-invalid")
    said = {"on_inconclusive": on_inconclusive, "on_invalid": on_invalid}
    plain = {key: value for key, value in said.items() if value is not None}
    return found.model_copy(update=plain), budget_lines(budget) if budget is not None else {}


def _release(limits: Budget, against: str | None) -> Measured | None:
    about = limits.release is not None or any(one.max_release_drop_pp is not None for one in limits.sliced)
    if against is None and about:
        raise RecipeError(
            "the budget sets limits against the release before, and none was given",
            where="budget.release",
            hint=f"--against FOLDER, a run or a bench folder; --against {NO_RELEASE} where this is the first release",
        )
    if against is None or against == NO_RELEASE:
        return None
    if not about:
        raise RecipeError(
            "--against names a release, and the budget sets no limit against one",
            where="budget.release",
            hint="for instance release: {max_latency_ratio: 1.05, max_accuracy_drop_pp: 0.5}",
        )
    return open_measured(Path(against))


def _compared(ours: Measured, theirs: Measured, limits: Budget, tick: Tick) -> Release:
    """The release before, measured again beside this one where a limit is on what devices do."""
    from edgewise.bench.provenance import check_same_device

    try:
        check_same_device(ours.results.provenance, theirs.results.provenance)
    except MeasureError as error:
        raise MeasureError(
            error.message,
            where=str(theirs.folder),
            hint=f"measure it here first: edgewise bench {theirs.folder} --out DIR, and name DIR",
        ) from None
    stored = Release(theirs.name, theirs.results)
    wanted = [key for key in SIDE_BY_SIDE if limits.release and getattr(limits.release, key) is not None]
    both = {file.name for file in theirs.results.files}
    names = [file.name for file in judged_files(limits, ours.results) if file.name in both] if wanted else []
    if not names:
        return stored
    from edgewise.side_by_side import compare

    def decided(release: Release) -> bool:
        checks = gate(limits, ours.results, release=release).checks
        keys = {f"release.{key}" for key in wanted}
        # On a busy device a limit that isn't shown to hold is INVALID, and one that more launches show to hold stands.
        left = [one for one in checks if one.status == "INCONCLUSIVE" or one.note.startswith(NOT_SHOWN)]
        return not any(check.check in keys for check in left)

    return compare(ours, theirs, names, decided, tick)


def _may_get_better(verdict: Verdict) -> bool:
    """Whether it is INVALID for what the device did meanwhile."""
    return verdict.status == "INVALID" and any(
        check.status == "INVALID" and AGAIN in check.note for check in verdict.checks if not check.held
    )


def _again(measured: Measured, turn: int, tick: Tick) -> Measured:
    """With all times, scenarios and joules taken anew: ratios need both files in the same launches."""
    from edgewise.bench.devices.base import open_device
    from edgewise.side_by_side import again, same_device

    launches = {name: len(found.launches) for name, found in measured.results.measurements.items()}
    files = [file for file in measured.results.files if launches.get(file.name)]
    for file in files:
        check_there(measured, file)
    config, most = _config(measured.results), max(launches.values())
    with open_device(config.device) as device, tempfile.TemporaryDirectory(prefix="edgewise-") as out:
        same_device(measured, device)
        found = again(files, measured, config, most, 100 * turn, Path(out), device, tick, scenarios=True)
    return replace(measured, results=_with_times(measured.results, found, [file.name for file in files]))


def _with_times(results: Results, found: Results, names: Sequence[str]) -> Results:
    """``results`` with what ``found`` holds, whole: flags of now say nothing of scenarios or joules of then."""
    return replace(results, measurements={**results.measurements, **{name: found.measurements[name] for name in names}})


__all__ = ["Judged", "gate_run", "plan_gate", "to_json", "write"]
