"""JUnit XML, Markdown and annotations: whatever the names are, they stay text, and the numbers are the verdict's."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgewise.bench.gate import Check, Verdict, Waived
from edgewise.bench.gate.github import SUMMARY_BYTES, append_summary, commands, line_of, markdown
from edgewise.bench.gate.junit import junit
from edgewise.bench.gate.verdict import check_from_json
from edgewise.bench.gate.words import headline

EVIL = "a,b:c\n::set-output name=x::y%|<script>alert(1)</script> @team *[x](http://y)*"
WAIVED = Waived("new board", "jane", "2027-01-31")
CHECKS = (
    Check("small", "max_size_bytes", "PASS", 10.0, "bytes", 5.0, 5.0, 5.0, 1, "file"),
    Check(
        "small", "max_accuracy_drop_pp", "FAIL", 1.0, "pp", 2.0, 1.5, 2.5, 900, "samples", slice="class=7", margin=1.0
    ),
    Check("small", "max_p99_ms", "INVALID", 3.0, "ms", 5.0, 4.0, 6.0, 700, "runs", note="busy: measure again"),
    Check("small", "release.max_latency_ratio", "INCONCLUSIVE", 1.05, "x", 1.04, 1.0, 1.08, 24, "block pairs", 90),
    Check("small", "max_p50_ms", "FAIL", 3.0, "ms", 5.0, 4.0, 6.0, 700, "runs", waived=WAIVED),
    Check(
        "small", "min_accuracy", "FAIL", 0.9, "fraction", 0.5, 0.4, 0.6, 10, "samples", slice="class=8", gating=False
    ),
    Check(EVIL, "max_load_ms", "FAIL", 3.0, "ms", 5.0, 5.0, 5.0, 3, "launches", note=EVIL),
)


def _verdict(policy: str = "fail", checks: tuple[Check, ...] = CHECKS) -> Verdict:
    return Verdict("FAIL", 1, checks, (f"look: {EVIL}",), {"on_inconclusive": policy})


def test_the_headline_counts_what_is_waived_apart() -> None:
    """A waived failure is over the limit all the same."""
    told = headline(_verdict())
    assert (
        told
        == "Of 5 checks: 2 over the limit, 1 could not be made, 1 too close to tell, "
        + "1 within the limit. 1 more waived."
    )
    assert headline(_verdict(checks=CHECKS[4:5])) == "1 waived."
    assert headline(_verdict(checks=CHECKS[5:6])) == "Not one check decides, so nothing was judged."


# The structure of Jenkins' junit-10.xsd, which most CI systems follow: children, and attributes that must or may be.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "disabled", "errors"}),
    "testsuite": (
        {"testsuite", "testcase", "properties", "system-out", "system-err"},
        {"name", "tests", "failures", "errors"},
        {"skipped", "time", "group", "timestamp", "hostname", "id", "package", "file", "log", "url", "version"},
    ),
    "testcase": (
        {"skipped", "error", "failure", "properties", "system-out", "system-err"},
        {"name"},
        {"classname", "time", "group"},
    ),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, set()),
    "failure": (set(), set(), {"type", "message"}),
    "error": (set(), set(), {"type", "message"}),
    "skipped": (set(), set(), {"type", "message"}),
}


@pytest.mark.parametrize("policy", ["fail", "warn", "pass"])
def test_junit_follows_the_schema_and_counts_right(policy: str) -> None:
    root = ElementTree.fromstring(junit(_verdict(policy), EVIL))
    assert root.tag == "testsuites"
    for element in root.iter():
        children, must, may = SCHEMA[element.tag]
        assert {child.tag for child in element} <= children
        assert must <= set(element.attrib) <= must | may
    (suite,) = root
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == len(list(suite.iter(tag)))
    assert int(suite.attrib["tests"]) == len(suite.findall("testcase")) == len(CHECKS)
    assert len({(case.get("classname"), case.get("name")) for case in suite}) == len(CHECKS)


@pytest.mark.parametrize(("policy", "inconclusive"), [("fail", "failure"), ("warn", "skipped"), ("pass", "skipped")])
def test_junit_says_each_outcome(policy: str, inconclusive: str) -> None:
    (suite,) = ElementTree.fromstring(junit(_verdict(policy), "n"))
    outcomes = [next((child.tag for child in case if child.tag != "properties"), None) for case in suite]
    assert outcomes == [None, "failure", "error", inconclusive, "skipped", "skipped", "failure"]
    cases = list(suite)
    assert cases[1].get("name") == "max_accuracy_drop_pp[class=7]"
    told = {p.get("name"): p.get("value") for p in cases[3].iter("property")}
    assert (told["value"], told["limit"], told["n"], told["needed_n"]) == ("1.04", "1.05", "24", "90")
    assert "until 2027-01-31, jane: new board" in {p.get("value") for p in cases[4].iter("property")}


def _undone(line: str) -> tuple[str, dict[str, str], str]:
    """What GitHub's runner makes of a line: the rules of its ActionCommand."""
    match = re.fullmatch(r"::([a-z]+)(?: (.*?))?::(.*)", line)
    assert match is not None, line
    properties = dict(pair.split("=", 1) for pair in (match[2] or "").split(",") if pair)
    for sign, code in ((":", "%3A"), (",", "%2C"), ("\n", "%0A"), ("\r", "%0D"), ("%", "%25")):
        properties = {key: value.replace(code, sign) for key, value in properties.items()}
    message = match[3].replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
    return match[1], properties, message


def test_annotations_stand_at_the_budgets_lines_and_smuggle_in_no_command() -> None:
    lines = {"max_p99_ms": 4, "max_load_ms": 5, "slices": 7, "slices.max_accuracy_drop_pp": 9, "max_p50_ms": 3}
    told = list(commands(_verdict(), Path("gates/b,udget.yaml"), lines))
    assert all(line.startswith("::") and "\n" not in line and "\r" not in line for line in told)
    found = [_undone(line) for line in told]
    assert [(kind, at.get("line")) for kind, at, _ in found] == [
        ("error", "9"),  # FAIL first
        ("error", "5"),
        ("error", "4"),
        ("error", None),
        ("notice", "3"),
        ("warning", None),
    ]
    assert all(at["file"] == "gates/b,udget.yaml" for _, at, _ in found)
    assert found[1][1]["title"] == f"{EVIL}: load time"
    assert found[1][2].endswith(EVIL)
    assert found[-1][2] == f"look: {EVIL}"
    assert "needs about 90 block pairs" in found[3][2]


@pytest.mark.parametrize(("policy", "kinds"), [("warn", ["warning"]), ("pass", [])])
def test_what_is_too_close_to_tell_is_annotated_by_policy(policy: str, kinds: list[str]) -> None:
    quiet = Verdict("INCONCLUSIVE", 0, CHECKS[3:4], (), {"on_inconclusive": policy})
    assert [_undone(line)[0] for line in commands(quiet)] == kinds


@pytest.mark.parametrize(
    ("check", "slice_name", "line"),
    [
        ("max_p99_ms", None, 1),
        ("release.max_latency_ratio", None, 2),
        ("release.max_load_ratio", None, 3),  # its own key is not there: the one around it
        ("server.min_qps", None, 4),
        ("max_accuracy_drop_pp", "class=1", 6),
        ("release.max_accuracy_drop_pp", "class=1", 7),
        ("min_accuracy", "class=1", 5),
        ("max_size_bytes", None, None),
    ],
)
def test_the_line_of_a_check(check: str, slice_name: str | None, line: int | None) -> None:
    lines = {
        "max_p99_ms": 1,
        "release.max_latency_ratio": 2,
        "release": 3,
        "scenarios.server.min_qps": 4,
        "slices": 5,
        "slices.1.max_accuracy_drop_pp": 6,
        "slices.0.max_release_drop_pp": 7,
    }
    assert line_of(Check("f", check, "FAIL", 1.0, "x", slice=slice_name), lines) == line


def test_markdown_has_a_row_a_check_and_keeps_names_as_text() -> None:
    text = markdown(_verdict(), EVIL)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(CHECKS)
    assert {row.count("|") for row in rows} == {8}  # no name has opened a cell
    assert "<script" not in text
    assert "@team" not in text
    assert "::set-output" not in "\n".join(line for line in text.splitlines() if line.startswith("::"))
    assert "FAIL (waived)" in text
    assert "waived until 2027&#45;01" in text or "waived until 2027-01-31 by jane: new board" in text


@pytest.mark.parametrize("name", ["a_b|c", "#1 &#95; *[x]*", "<b>&amp;</b> `~!` @me \\"])
def test_a_name_in_a_cell_is_what_it_was(name: str) -> None:
    text = markdown(_verdict(checks=(Check(name, "max_size_bytes", "PASS", 10.0, "bytes", 5.0, 5.0, 5.0),)), "x")
    (row,) = (line for line in text.splitlines() if "✅" in line and line.startswith("| "))
    assert html.unescape(row.split(" | ")[0].removeprefix("| ")) == name
    assert not set(row.split(" | ")[0].removeprefix("| ")) & set("<>`*_[]|!~@")


def test_the_summary_is_appended_and_cut_at_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    append_summary(path, "one\n")
    append_summary(path, "two\n")
    assert path.read_text() == "one\n\ntwo\n"
    append_summary(path, "é | 123456789\n" * 100_000)
    assert path.stat().st_size <= SUMMARY_BYTES
    whole = path.read_text(encoding="utf-8")
    assert whole.startswith("one\n\ntwo\n")
    assert "_Cut: " in whole
    assert {line for line in whole.splitlines() if line.startswith("é")} == {"é | 123456789"}
    before = path.stat().st_size
    append_summary(path, "x" * 10_000)
    assert path.stat().st_size - before <= SUMMARY_BYTES - before


def test_a_check_comes_back_from_json() -> None:
    for check in CHECKS:
        plain: dict[str, Any] = json.loads(json.dumps(_verdict(checks=(check,)).to_json()))
        assert check_from_json(plain["checks"][0]) == check


def test_junit_of_nothing(made_up: Callable[..., Any]) -> None:
    (suite,) = ElementTree.fromstring(junit(None, "n"))
    assert (suite.get("tests"), len(suite)) == ("0", 0)
