"""What a run and a verdict look like on stdout, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgewise.bench import format as say
from edgewise.bench.gate import Check, words
from edgewise.bench.gate.verdict import check_from_json
from edgewise.output import one_line, print_table

if TYPE_CHECKING:
    from edgewise.bench.gate.power import Prospect
    from edgewise.pipeline import RunResult


def show_run(result: RunResult) -> None:
    """The files that were made, the verdict if the recipe has a budget, the warnings, and where the report is."""
    reused = sum(ran.reused for ran in result.stages)
    made = len(result.stages) - reused
    print(f"{made} stages made, {reused} reused: {result.folder}")
    if result.files:
        print()
        print_table(("file", "where"), list(result.files.items()))
    for name, why in result.left_out.items():
        print(f"\nleft out: {name}: {why.splitlines()[0]}")
    print(f"\npicked: {result.picked or 'nothing'}: {result.picked_why}")
    if result.verdict is not None:
        print()
        show_verdict(result.verdict)
    else:
        for text in result.warnings:
            print(f"\nwarning: {text}")
    if result.report is not None:
        print(f"\nreport: {result.report}")


def show_verdict(verdict: dict[str, Any]) -> None:
    """Every check with its interval and limit, then the warnings, then the status."""
    checks = [check_from_json(check) for check in verdict["checks"]]
    confidence = round(100 * verdict["confidence"])
    print_table(
        ("file", "check", "status", "value", f"{confidence} % interval", "limit", "over"),
        [row for group in _groups(checks) for row in _rows(group)],
    )
    for check in checks:
        told = words.notes(check)
        if told and (check.slice is None or not check.held or check.waived):
            print(one_line(f"note: {check.file}, {words.title(check)}: {told}"))
    for text in verdict["warnings"]:
        print(f"\nwarning: {one_line(text)}")
    print(f"\nverdict: {verdict['status']}")


def show_prospects(rows: Sequence[Prospect]) -> None:
    """What each limit could be told from so few samples."""
    print_table(
        ("file", "check", "outlook", "chance to pass", "has", "needs", "assumed"),
        [
            (
                row.file,
                say.check_words(row.check) + (f", {row.slice}" if row.slice else ""),
                row.outlook,
                say.NONE if row.power is None else f"{100 * row.power:.0f} %",
                say.NONE if row.n is None else f"{row.n:,} {row.counted}",
                say.NONE if row.needed_n is None else f"{row.needed_n:,}",
                row.assumed,
            )
            for row in rows
        ],
    )


def _groups(checks: Sequence[Check]) -> list[list[Check]]:
    """Checks one by one, and those of one limit on slices together."""
    found: dict[tuple[str, ...], list[Check]] = {}
    for place, check in enumerate(checks):
        by = (check.slice.partition("=")[0],) if check.slice else (str(place),)
        found.setdefault((check.file, check.check, *by), []).append(check)
    return list(found.values())


def _rows(group: Sequence[Check]) -> list[tuple[object, ...]]:
    """A row a check; slices that hold are one row, with the worst of them."""
    if group[0].slice is None:
        return [_row(check) for check in group]
    quiet = [check for check in group if check.status == "PASS" or not check.gating]
    rows = [_row(check) for check in group if check not in quiet]
    gating = [check for check in quiet if check.gating]
    if gating:
        worse = min if gating[0].check.rpartition(".")[2].startswith("min_") else max
        worst = worse(gating, key=lambda check: check.value or 0.0)
        title = f"{say.check_words(worst.check)}, {len(gating)} slices, worst {worst.slice}"
        rows.append((worst.file, title, *_row(worst)[2:]))
    if len(gating) < len(quiet):
        by = group[0].slice.partition("=")[0]
        few = len(quiet) - len(gating)
        title = f"{say.check_words(group[0].check)}, {few} slices by {by} under min_n"
        rows.append((group[0].file, title, "told only", *4 * (say.NONE,)))
    return rows


def _row(check: Check) -> tuple[object, ...]:
    exact = check.low == check.high  # a size has no interval
    ends = {"low": check.low, "high": check.high}
    return (
        check.file,
        words.title(check),
        words.status(check),
        say.quantity(check.value, check.unit),
        say.NONE if exact else say.span(ends, check.unit) or say.NONE,
        words.limit(check),
        words.over(check),
    )
