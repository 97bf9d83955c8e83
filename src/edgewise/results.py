"""What a run and a verdict look like on stdout, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgewise.bench import format as say
from edgewise.output import print_table

if TYPE_CHECKING:
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
    confidence = round(100 * verdict["confidence"])
    print_table(
        ("file", "check", "status", "value", f"{confidence} % interval", "limit", "over"),
        [_row(check) for check in verdict["checks"]],
    )
    for check in verdict["checks"]:
        needed = f"needs about {check['needed_n']:,} {check['counted']}" if check["needed_n"] else ""
        notes = "; ".join(text for text in (check["note"], needed) if text)
        if notes:
            print(f"note: {check['file']}, {say.check_words(check['check'])}: {notes}")
    for text in verdict["warnings"]:
        print(f"\nwarning: {text}")
    print(f"\nverdict: {verdict['status']}")


def _row(check: dict[str, Any]) -> tuple[object, ...]:
    unit = check["unit"]
    exact = check["low"] == check["high"]  # a size has no interval
    return (
        check["file"],
        say.check_words(check["check"]),
        check["status"],
        say.quantity(check["value"], unit),
        say.NONE if exact else say.span(check, unit) or say.NONE,
        say.limit_words(check["check"], check["limit"], unit),
        f"{check['n']:,} {check['counted']}" if check["n"] else say.NONE,
    )
