"""The published schemas describe what is written, all of it; and the report is made of many kinds of results."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgewise.bench.gate import Verdict
from edgewise.bench.record import Context, Results
from edgewise.bench.report.compare import Side, compare
from edgewise.bench.report.write import write_report


def _schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("edgewise.bench.report") / f"{name}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(found)
    return found


def _closed(schema: Any) -> Any:
    """The schema, with no key allowed that it doesn't tell of."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(one) for key, one in schema.items()}
    return {**found, "additionalProperties": False} if "properties" in found else found


def _mistakes(schema: dict[str, Any], value: Any) -> list[str]:
    found = Draft202012Validator(_closed(schema)).iter_errors(value)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def _written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def test_everything_that_a_report_holds_is_described(rich: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    write_report(*rich, tmp_path / "out")
    page = _written(tmp_path / "out")
    assert _mistakes(_schema("report"), page) == []
    # Nothing is left out for want of data: every list and object of the schema has something in it.
    empty = [key for key, value in page.items() if value in ([], {}, None, "")]
    assert empty == []
    assert {check["status"] for check in page["verdict"]["checks"]} >= {"PASS", "FAIL", "INVALID"}
    assert [check["check"] for check in page["verdict"]["checks"] if check["waived"]] == ["max_p50_ms"]


@pytest.mark.parametrize("scored", [True, False])
def test_results_without_a_budget_or_scores_are_described(
    made_up: Callable[..., Results], tmp_path: Path, scored: bool
) -> None:
    context = Context("plain", "now", metric="accuracy" if scored else None)
    write_report(made_up({"small": {}}), None, context, tmp_path)
    page = _written(tmp_path)
    assert _mistakes(_schema("report"), page) == []
    assert (page["files"][2]["accuracy"] is not None) == scored
    for name in ("report.html", "report.md"):
        assert ("Answers" in (tmp_path / name).read_text(encoding="utf-8")) == scored


def test_a_comparison_is_described(
    rich: tuple[Results, Verdict, Context], made_up: Callable[..., Results], tmp_path: Path
) -> None:
    results, verdict, context = rich
    other = replace(results, config={**results.config, "threads": 2})
    for found in (
        compare(Side(*rich), Side(other, None, context)),
        compare(Side(*rich), Side(results, verdict, replace(context, metric=None))),
    ):
        assert _mistakes(_schema("comparison"), json.loads(json.dumps(found))) == []


def test_the_schema_finds_a_wrong_page(rich: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    write_report(*rich, tmp_path / "out")
    page = _written(tmp_path / "out")
    for break_it in (
        lambda p: p.update(format=3),
        lambda p: p["files"][0].update(size_bytes="400 kB"),
        lambda p: p["files"][2]["timeline"][0].pop("p50_ms"),
        lambda p: p["verdict"]["checks"][0].update(status="MAYBE"),
        lambda p: p["files"][0].update(new_key=1),
    ):
        broken = copy.deepcopy(page)
        break_it(broken)
        assert _mistakes(_schema("report"), broken) != []
