"""What a gate says: checks with a status, a value, its interval and its limit; and one status for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

FORMAT = 2
CONFIDENCE = 0.90  # of intervals: either end errs with 5 %
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INVALID": 3, "INCONCLUSIVE": 4}

Status = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]
SEVERITY: tuple[Status, ...] = ("FAIL", "INVALID", "INCONCLUSIVE", "PASS")


@dataclass(frozen=True)
class Waived:
    """Why a limit that is not held counts as held, until the end of the day ``expires`` (ISO 8601)."""

    reason: str
    owner: str
    expires: str


@dataclass(frozen=True)
class Check:
    """One limit on one file. ``value``, ``low``, ``high`` and ``limit`` share ``unit``; ``n`` counts ``counted``.

    ``check``: the budget's key; those of ``release`` and of a scenario have its name and a dot before it.
    ``slice``: such as ``class=7``. ``baseline``: what it is compared with, by its file's name, and ``margin`` by how
    much it may be worse. ``needed_n``: how many it would have taken to tell, where the check is inconclusive and a
    number would do. ``gating`` False: told, and decides nothing, for the slice is too small.
    """

    file: str
    check: str
    status: Status
    limit: float
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    counted: str = ""
    needed_n: int | None = None
    note: str = ""
    slice: str | None = None
    margin: float | None = None
    baseline: str | None = None
    waived: Waived | None = None
    gating: bool = True

    @property
    def held(self) -> bool:
        """Whether it stands in nobody's way: passed, waived, or decides nothing."""
        return self.status == "PASS" or self.waived is not None or not self.gating


@dataclass(frozen=True)
class Verdict:
    """All checks of one budget. The status is the worst one that isn't waived: FAIL, then INVALID, INCONCLUSIVE, PASS.

    ``power``: what so few samples could have told, by check, see ``edgewise.bench.gate.power``; None where nobody
    asked.
    """

    status: Status
    exit_code: int
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    budget: dict[str, Any]
    power: tuple[dict[str, Any], ...] | None = None
    confidence: float = CONFIDENCE
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check_from_json(plain: dict[str, Any]) -> Check:
    """The check that ``Verdict.to_json`` made plain."""
    waived = plain.get("waived")
    return Check(**{**plain, "waived": None if waived is None else Waived(**waived)})


def worst(checks: Iterable[Check]) -> Status:
    """The status of all ``checks`` together."""
    found = {"PASS" if check.held else check.status for check in checks}
    return next((status for status in SEVERITY if status in found), "PASS")


def exit_code(status: Status, on_inconclusive: str = "fail") -> int:
    """0 pass, 1 fail, 3 invalid, 4 inconclusive, unless that is only warned of or counts as a pass."""
    return 0 if status == "INCONCLUSIVE" and on_inconclusive != "fail" else EXIT_CODES[status]
