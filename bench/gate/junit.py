"""A verdict as JUnit XML: one test case a check, so that any CI shows it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from edgewise.bench.gate.verdict import Check, Verdict
from edgewise.bench.gate.words import sentence

# What XML 1.0 can't hold, not even escaped.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
PROPERTIES = (
    "status",
    "value",
    "low",
    "high",
    "limit",
    "margin",
    "unit",
    "n",
    "counted",
    "needed_n",
    "baseline",
    "slice",
)


def junit(verdict: Verdict | None, name: str) -> str:
    """The XML; without a verdict, a suite without cases.

    A FAIL is a ``failure``, an INVALID an ``error``; an INCONCLUSIVE is a ``failure`` where the budget fails on it,
    else ``skipped``, and so is what is waived or decides nothing.
    """
    checks = verdict.checks if verdict else ()
    on_inconclusive = verdict.budget.get("on_inconclusive", "fail") if verdict else "fail"
    outcomes = [_outcome(check, on_inconclusive) for check in checks]
    totals = {word: str(outcomes.count(one)) for one, word in TOTALS.items()}
    suite = ElementTree.Element("testsuite", {"name": _clean(name), "tests": str(len(checks)), **totals})
    for check, outcome in zip(checks, outcomes, strict=True):
        suite.append(_case(check, outcome))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


TOTALS = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def _outcome(check: Check, on_inconclusive: str) -> str | None:
    if check.status == "PASS":
        return None
    if check.held:
        return "skipped"
    if check.status == "INCONCLUSIVE":
        return "failure" if on_inconclusive == "fail" else "skipped"
    return "error" if check.status == "INVALID" else "failure"


def _case(check: Check, outcome: str | None) -> ElementTree.Element:
    name = f"{check.check}[{check.slice}]" if check.slice else check.check
    case = ElementTree.Element("testcase", {"classname": _clean(check.file), "name": _clean(name)})
    properties = ElementTree.SubElement(case, "properties")
    for key in PROPERTIES:
        value = getattr(check, key)
        if value is not None and value != "":
            ElementTree.SubElement(properties, "property", {"name": key, "value": _clean(str(value))})
    if check.waived:
        told = f"until {check.waived.expires}, {check.waived.owner}: {check.waived.reason}"
        ElementTree.SubElement(properties, "property", {"name": "waived", "value": _clean(told)})
    if outcome is not None:
        kind = {} if outcome == "skipped" else {"type": check.status}
        ElementTree.SubElement(case, outcome, {"message": _clean(sentence(check)), **kind})
    return case


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
