"""What GitHub shows of a verdict: a Markdown table in the step's summary, and annotations on the budget's lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from edgewise.bench.gate.verdict import Check, Verdict
from edgewise.bench.gate.words import found, headline, limit, notes, over, sentence, status, title

SUMMARY_BYTES = 1024 * 1024  # more, and GitHub drops the whole summary
CUT = "\n\n_Cut: a step's summary holds 1 MiB. The JSON and the JUnit file have all of it._\n"
ICONS = {"PASS": "✅", "FAIL": "❌", "INVALID": "⚠️", "INCONCLUSIVE": "❔"}
ESCAPED = str.maketrans({sign: f"&#{ord(sign)};" for sign in "&<>\\`*_[]|!~#@"})
ORDER = ("FAIL", "INVALID", "INCONCLUSIVE", "PASS")


def markdown(verdict: Verdict, name: str) -> str:
    """The verdict as Markdown: the status, every check in a row, warnings and waivers."""
    confidence = round(100 * verdict.confidence)
    lines = [
        f"## {ICONS[verdict.status]} {_cell(name)}: {verdict.status}",
        "",
        headline(verdict),
        "",
        f"| file | check | status | value ({confidence} % interval) | limit | over | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for check in sorted(verdict.checks, key=lambda one: (one.held, ORDER.index(one.status))):
        cells = [check.file, title(check), f"{ICONS[check.status]} {status(check)}"]
        cells += [found(check), limit(check), over(check), notes(check)]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    if verdict.warnings:
        lines += ["", *(f"- ⚠️ {_cell(text)}" for text in verdict.warnings)]
    return "\n".join(lines) + "\n"


def append_summary(path: Path, text: str) -> None:
    """Append ``text`` to the step's summary, cut to what GitHub takes.

    Raises:
        OSError: it can't be written.
    """
    there = path.stat().st_size if path.exists() else 0
    room = SUMMARY_BYTES - there
    whole = ("\n" if there else "") + text
    if len(whole.encode()) > room:
        kept = whole.encode()[: max(0, room - len(CUT.encode()))].decode(errors="ignore")
        # Whole lines alone: half a row of a table is no row.
        whole = kept.rpartition("\n")[0] + CUT if room > len(CUT.encode()) else ""
    with path.open("a", encoding="utf-8") as file:
        file.write(whole)


def commands(verdict: Verdict, budget: Path | None = None, lines: Mapping[str, int] | None = None) -> Iterator[str]:
    """An annotation, as a workflow command, for each check that isn't held, worst first, then for each warning.

    Args:
        verdict: what to tell.
        budget: the budget's file, as GitHub knows it: relative to the repository.
        lines: its line by the budget's key, as ``max_p99_ms`` or ``release.max_latency_ratio``; see ``line_of``.
    """
    on_inconclusive = verdict.budget.get("on_inconclusive", "fail")
    left = [check for check in verdict.checks if not check.held]
    for check in sorted(left, key=lambda one: ORDER.index(one.status)):
        lenient = check.status == "INCONCLUSIVE" and on_inconclusive != "fail"
        if lenient and on_inconclusive == "pass":
            continue
        where = _where(budget, line_of(check, lines or {}))
        heading = f"{check.file}: {title(check)}"
        yield _command("warning" if lenient else "error", {**where, "title": heading}, sentence(check))
    for check in verdict.checks:
        if check.waived:
            where = _where(budget, line_of(check, lines or {}))
            yield _command("notice", {**where, "title": f"{check.file}: waived"}, sentence(check))
    for text in verdict.warnings:
        yield _command("warning", _where(budget, None), text)


def line_of(check: Check, lines: Mapping[str, int]) -> int | None:
    """The line of the budget's key that a check comes from, or of the key it stands under."""
    place, _, key = check.check.rpartition(".")
    tries = [f"scenarios.{check.check}", f"scenarios.{place}"] if place and place != "release" else []
    if check.slice:
        own = "max_release_drop_pp" if place == "release" else key
        tries = [f"slices.{own}", *(f"slices.{number}.{own}" for number in range(20)), "slices"]
    elif place in ("", "release"):
        tries = [check.check, place or key]
    return next((lines[one] for one in tries if one in lines), None)


def _where(budget: Path | None, line: int | None) -> dict[str, str]:
    if budget is None:
        return {}
    return {"file": budget.as_posix(), **({"line": str(line)} if line else {})}


def _command(kind: str, properties: Mapping[str, str], message: str) -> str:
    told = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{kind} {told}::{_data(message)}" if told else f"::{kind}::{_data(message)}"


def _data(text: str) -> str:
    """Escaped as the runner undoes it: what follows a line break would be a command of its own."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Text that stays text in a cell of a table, and calls nobody by @name."""
    return " ".join(text.translate(ESCAPED).split())
