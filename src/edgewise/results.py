"""What a run and a verdict look like on stdout, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgewise.output import print_table

if TYPE_CHECKING:
    from edgewise.pipeline import RunResult


def show_run(result: RunResult) -> None:
    """Where everything is, and the verdict if the recipe has a budget."""
    reused = sum(ran.reused for ran in result.stages)
    made = len(result.stages) - reused
    print(f"{made} stages made, {reused} reused: {result.folder}")
    if result.verdict is not None:
        print()
        show_verdict(result.verdict)
    if result.report is not None:
        print(f"\nreport: {result.report}")


def show_verdict(verdict: dict[str, Any]) -> None:
    """Every check with its interval and limit, then the warnings, then the status."""
    confidence = round(100 * verdict["confidence"])
    print_table(
        ("file", "check", "status", "value", f"{confidence} % interval", "limit", "n", "note"),
        [_row(check) for check in verdict["checks"]],
    )
    for text in verdict["warnings"]:
        print(f"\nwarning: {text}")
    print(f"\nverdict: {verdict['status']}")


def _row(check: dict[str, Any]) -> tuple[object, ...]:
    unit = check["unit"]
    value = None if check["value"] is None else f"{_number(check['value'])} {unit}".strip()
    known = check["low"] is not None and check["high"] is not None
    interval = f"{_number(check['low'])} to {_number(check['high'])}" if known else None
    needed = f"needs about {check['needed_n']:,} {check['counted']}" if check["needed_n"] else ""
    note = "; ".join(text for text in (check["note"], needed) if text)
    return check["file"], check["check"], check["status"], value, interval, _number(check["limit"]), check["n"], note


def _number(value: float) -> str:
    """Four digits that count, but no digit of a whole number is lost: 1234567, 0.1235, 12.35."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
