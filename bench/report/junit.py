"""A verdict as JUnit XML: one test case a check, so that any CI shows it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from edgewise.bench import format as say
from edgewise.bench.gate import Check, Verdict

# What XML 1.0 can't hold, not even escaped.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
ELEMENTS = {"FAIL": "failure", "INVALID": "error", "INCONCLUSIVE": "skipped"}


def junit(verdict: Verdict | None, name: str) -> str:
    """The XML; without a verdict, a suite without cases."""
    checks = verdict.checks if verdict else ()
    totals = {word: str(sum(check.status == status for check in checks)) for status, word in TOTALS.items()}
    suite = ElementTree.Element("testsuite", {"name": _clean(name), "tests": str(len(checks)), **totals})
    for check in checks:
        suite.append(_case(check))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


TOTALS = {"FAIL": "failures", "INVALID": "errors", "INCONCLUSIVE": "skipped"}


def _case(check: Check) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": _clean(check.file), "name": check.check})
    properties = ElementTree.SubElement(case, "properties")
    for key in ("status", "value", "low", "high", "limit", "unit", "n", "counted", "needed_n"):
        value = getattr(check, key)
        if value is not None:
            ElementTree.SubElement(properties, "property", {"name": key, "value": str(value)})
    if check.status in ELEMENTS:
        ElementTree.SubElement(case, ELEMENTS[check.status], {"message": _clean(sentence(check))})
    return case


def sentence(check: Check) -> str:
    """A check in one line, for logs and annotations."""
    found = say.quantity(check.value, check.unit)
    ends = say.span({"low": check.low, "high": check.high}, check.unit)
    limit = say.limit_words(check.check, check.limit, check.unit)
    text = f"{check.status}: {say.check_words(check.check)} {found}{f' ({ends})' if ends else ''}, limit {limit}"
    if check.needed_n:
        text += f"; would need about {check.needed_n:,} {check.counted}, had {check.n:,}"
    return f"{text}; {check.note}" if check.note else text


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
