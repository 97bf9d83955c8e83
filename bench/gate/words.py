"""A check in words: for logs, annotations, test cases and Markdown."""

from __future__ import annotations

from edgewise.bench import format as say
from edgewise.bench.gate.verdict import Check, Verdict


def title(check: Check) -> str:
    """What was checked: ``accuracy drop, class=7``."""
    words = say.check_words(check.check)
    return f"{words}, {check.slice}" if check.slice else words


def found(check: Check) -> str:
    """The value and its interval: ``0.42 pp (0.10 to 0.80)``."""
    value = say.quantity(check.value, check.unit)
    ends = say.span({"low": check.low, "high": check.high}, check.unit) if check.low != check.high else ""
    return f"{value} ({ends})" if ends else value


def over(check: Check) -> str:
    """What it was counted over: ``10,000 samples``."""
    return f"{check.n:,} {check.counted}" if check.n else say.NONE


def limit(check: Check) -> str:
    """The limit with its direction."""
    return say.limit_words(check.check, check.limit, check.unit)


def notes(check: Check) -> str:
    """What else must be known: how many it takes, who waived it, why it is as it is."""
    told = []
    if check.waived:
        told.append(f"waived until {check.waived.expires} by {check.waived.owner}: {check.waived.reason}")
    if check.note:
        told.append(check.note)
    if check.needed_n:
        told.append(f"needs about {check.needed_n:,} {check.counted}")
    return "; ".join(told)


def sentence(check: Check) -> str:
    """A check in one line."""
    status = f"{check.status}, waived" if check.waived else check.status
    against = f" against {check.baseline}" if check.baseline else ""
    text = f"{status}: {title(check)} {found(check)}{against}, limit {limit(check)}, over {over(check)}"
    more = notes(check)
    return f"{text}; {more}" if more else text


def headline(verdict: Verdict) -> str:
    """The verdict and what it stands on."""
    gating = [check for check in verdict.checks if check.gating]
    if not gating:
        return "Not one check decides, so nothing was judged."
    judged = ["PASS" if check.held else check.status for check in gating if check.waived is None]
    waived = len(gating) - len(judged)
    told = [say.headline(judged)] if judged else []
    return " ".join([*told, f"{waived} {'more ' if judged else ''}waived."] if waived else told)


def status(check: Check) -> str:
    """The status as a cell of a table."""
    if check.waived:
        return f"{check.status} (waived)"
    return check.status if check.gating else f"{check.status} (told only)"
