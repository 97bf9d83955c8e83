"""Waivers: what they change, and what is said of those that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from edgewise.bench.gate import Verdict, Waived, gate
from edgewise.bench.gate.config import Budget
from edgewise.bench.record import Results

MadeUp = Callable[..., Results]
TODAY = date(2026, 11, 21)


def _judged(results: Results, limits: dict[str, Any], **waiver: Any) -> Verdict:
    whole = {"file": "small", "check": "max_size_bytes", "reason": "r", "owner": "o", "expires": date(2026, 11, 21)}
    budget = Budget.model_validate({**limits, "waivers": [{**whole, **waiver}]})
    return gate(budget, results, today=TODAY)


def test_a_waived_fail_counts_as_passed_and_is_shown(made_up: MadeUp) -> None:
    verdict = _judged(made_up({"small": {}}), {"max_size_bytes": 1, "max_p50_ms": 9}, reason=" new board ")
    latency, size = verdict.checks
    assert (size.status, size.held, size.waived) == ("FAIL", True, Waived("new board", "o", "2026-11-21"))
    assert (latency.waived, verdict.status, verdict.exit_code, verdict.warnings) == (None, "PASS", 0, ())
    assert verdict.to_json()["checks"][1]["waived"] == {"reason": "new board", "owner": "o", "expires": "2026-11-21"}


@pytest.mark.parametrize(
    ("waiver", "told"),
    [
        ({"expires": date(2026, 11, 20)}, "expired on 2026-11-20, and waives nothing; the limit is broken still"),
        ({"reason": "  "}, "has no reason, and waives nothing"),
        ({"reason": "", "owner": ""}, "has no reason and no owner, and waives nothing"),
        ({"file": "smal"}, "no such check was made"),
        ({"check": "max_p99_ms"}, "no such check was made"),
        ({"slice": "class=7"}, "no such check was made"),
    ],
)
def test_a_waiver_that_waives_nothing_says_so_and_fail_stays_fail(
    waiver: dict[str, Any], told: str, made_up: MadeUp
) -> None:
    verdict = _judged(made_up({"small": {}}), {"max_size_bytes": 1}, **waiver)
    assert (verdict.status, verdict.exit_code, verdict.checks[0].waived) == ("FAIL", 1, None)
    (warning,) = verdict.warnings
    assert warning.endswith(told)


def test_an_unused_waiver_says_so(made_up: MadeUp) -> None:
    verdict = _judged(made_up({"small": {}}), {"max_size_bytes": 10**9})
    assert verdict.status == "PASS"
    assert verdict.warnings == ("waiver of small, max_size_bytes: not used: the limit is held, remove it",)


def test_what_was_not_measured_cannot_be_waived(made_up: MadeUp) -> None:
    verdict = _judged(made_up({"small": {"error": "it died"}}), {"max_size_bytes": 1})
    assert verdict.status == "INVALID"
    assert "can't be waived" in verdict.warnings[-1]


def test_what_is_too_close_to_tell_can_be_waived(made_up: MadeUp, scores: Callable[..., Any]) -> None:
    results = made_up({"small": {"scores": scores(20)}})
    verdict = _judged(results, {"max_accuracy_drop_pp": 1.1}, check="max_accuracy_drop_pp")
    assert (verdict.checks[0].status, verdict.status, verdict.exit_code) == ("INCONCLUSIVE", "PASS", 0)
