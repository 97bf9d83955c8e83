"""Budgets to verdicts: PASS, FAIL, INCONCLUSIVE, INVALID, each with value, interval, limit and n."""

from __future__ import annotations

from edgewise.bench.gate.against import Release
from edgewise.bench.gate.asked import CHECKS
from edgewise.bench.gate.floats import HASTENED, slower_than_float
from edgewise.bench.gate.judge import gate, judged_files
from edgewise.bench.gate.verdict import CONFIDENCE, EXIT_CODES, Check, Status, Verdict, Waived

__all__ = [
    "CHECKS",
    "CONFIDENCE",
    "EXIT_CODES",
    "HASTENED",
    "Check",
    "Release",
    "Status",
    "Verdict",
    "Waived",
    "gate",
    "judged_files",
    "slower_than_float",
]
