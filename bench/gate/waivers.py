"""Waivers: who accepts which broken limit, why, and until when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date

from edgewise.bench.gate.config import Waiver
from edgewise.bench.gate.verdict import Check, Waived

WAIVABLE = ("FAIL", "INCONCLUSIVE")  # what could not be measured can't be accepted


def waive(checks: Sequence[Check], waivers: Iterable[Waiver], today: date) -> tuple[list[Check], list[str]]:
    """The checks with what is waived, and a sentence for each waiver that does nothing."""
    found, told = list(checks), []
    for waiver in waivers:
        name = f"waiver of {waiver.file}, {waiver.check}{f', {waiver.slice}' if waiver.slice else ''}"
        places = [place for place, check in enumerate(found) if _is_about(waiver, check)]
        broken = [place for place in places if found[place].status in WAIVABLE]
        lacking = [what for what in ("reason", "owner") if not getattr(waiver, what).strip()]
        if waiver.expires < today:
            still = "; the limit is broken still" if broken else ""
            told.append(f"{name}: expired on {waiver.expires.isoformat()}, and waives nothing{still}")
        elif lacking:
            told.append(f"{name}: has no {' and no '.join(lacking)}, and waives nothing")
        elif not places:
            told.append(f"{name}: no such check was made")
        elif not broken:
            status = found[places[0]].status
            why = "the limit is held, remove it" if status == "PASS" else "what could not be measured can't be waived"
            told.append(f"{name}: not used: {why}")
        else:
            waived = Waived(waiver.reason.strip(), waiver.owner.strip(), waiver.expires.isoformat())
            for place in broken:
                found[place] = replace(found[place], waived=waived)
    return found, told


def _is_about(waiver: Waiver, check: Check) -> bool:
    return (waiver.file, waiver.check, waiver.slice) == (check.file, check.check, check.slice)
