"""Which file is taken, on results whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from edgewise.bench.gate import gate
from edgewise.bench.gate.config import Budget
from edgewise.bench.pick import pick
from edgewise.bench.record import Results

MadeUp = Callable[..., Results]


def test_the_fastest_is_taken(made_up: MadeUp) -> None:
    found = pick(made_up({"a": {"ms": 3.0}, "b": {"ms": 2.0}, "c": {"ms": 2.5}}), None)
    assert found.name == "b"
    assert "p50 2.00 ms, the fastest of 3 not slower than float" in found.why
    assert not found.slower


def test_a_latency_on_cpu_time_says_so(made_up: MadeUp) -> None:
    """On a busy machine it is another number than the report's p50, which is of the wall clock."""
    results = made_up({"a": {"ms": 2.0, "flags": ("contended",)}})
    assert " of CPU time, the only one" in pick(results, None).why
    assert "CPU time" not in pick(made_up({"a": {"ms": 2.0}}), None).why


def test_a_file_slower_than_its_float_parent_is_never_taken(made_up: MadeUp) -> None:
    """The parent takes 4 ms. In a fast runtime INT8 may be slower than float and still faster than anything else."""
    results = made_up({"fast-runtime": {"ms": 0.5, "runtime": "openvino"}, "slow": {"ms": 3.0}})
    quick = replace(results.file("student"), name="quick", runtime="openvino")
    measured = replace(made_up({"quick": {"ms": 0.4}}).measurements["quick"])
    files = tuple(replace(f, parent="quick") if f.name == "fast-runtime" else f for f in results.files)
    results = replace(results, files=(*files, quick), measurements={**results.measurements, "quick": measured})
    found = pick(results, None)
    assert found.name == "slow"
    assert set(found.slower) == {"fast-runtime"}
    assert found.slower["fast-runtime"].startswith("1.25 times the latency of quick (95 %: 1.2")


def test_slower_by_a_hair_is_not_taken_either(made_up: MadeUp) -> None:
    results = made_up({"a": {"ms": 4.001, "launches": 1}})
    found = pick(results, None)
    assert found.name is None
    assert found.why.startswith("none of 1: a: 1.00 times the latency of student (95 %: ")


def test_a_budget_that_is_not_kept_rules_a_file_out(made_up: MadeUp) -> None:
    results = made_up({"a": {"ms": 2.0, "size": 9_000}, "b": {"ms": 3.0, "size": 5_000}})
    budget = Budget(max_size_bytes=6_000)
    found = pick(results, gate(budget, results))
    assert found.name == "b"
    assert "the only one within the budget and not slower than float, of 2 in all" in found.why
    none = pick(results, gate(Budget(max_size_bytes=10), results))
    assert (none.name, none.why) == (None, "none of 2: a: max_size_bytes FAIL; b: max_size_bytes FAIL")


def test_where_nothing_is_taken_each_file_says_why(made_up: MadeUp) -> None:
    rows = {
        "large": {"ms": 2.0, "size": 9_000},
        "slow": {"ms": 5.0, "size": 10},
        "broken": {"error": "it crashed\nat length"},
        "half": {"ms": 1.0, "precision": "float16"},
    }
    results = made_up(rows)
    found = pick(results, gate(Budget(max_size_bytes=100, files=("large", "slow", "broken")), results))
    assert found.name is None
    assert found.why.startswith("none of 4: large: max_size_bytes FAIL; slow: 1.25 times the latency of student (")
    assert found.why.endswith("; broken: it crashed; half: the budget doesn't judge it")


def test_what_was_not_judged_is_not_taken(made_up: MadeUp) -> None:
    results = made_up({"a": {"ms": 2.0}, "half": {"ms": 1.0, "precision": "float16"}})
    assert pick(results, gate(Budget(min_speedup=2), results)).name == "a"  # a budget is about INT8 files
    assert pick(results, None).name == "half"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"error": "it crashed"}, "it crashed"),
        ({"finite": False}, "NaN or infinity"),
        ({"flags": ("contended",), "threads": 2}, "the machine was busy"),
    ],
)
def test_a_file_that_does_not_work_is_not_taken(made_up: MadeUp, row: dict[str, object], told: str) -> None:
    found = pick(made_up({"broken": {"ms": 1.0, **row}, "b": {"ms": 3.0}}), None)
    assert found.name == "b"
    assert told in found.unusable["broken"]


def test_without_candidates_there_is_nothing_to_take(made_up: MadeUp) -> None:
    assert pick(made_up({}), None).name is None


def test_a_file_that_was_not_made_is_invalid_in_the_verdict(made_up: MadeUp) -> None:
    results = made_up({"a": {}})
    whole = gate(Budget(max_size_bytes=10**9), results, {"gone": "the converter crashed"})
    assert {check.file: check.status for check in whole.checks} == {"a": "PASS", "gone": "INVALID"}
    assert (whole.status, whole.exit_code) == ("INVALID", 3)
    assert "the converter crashed" in whole.checks[-1].note
    # A budget about named files doesn't mind others.
    named = gate(Budget(max_size_bytes=10**9, files=("a",)), results, {"gone": "crashed"})
    assert named.status == "PASS"
    only = gate(Budget(max_size_bytes=10**9, files=("gone",)), results, {"gone": "crashed"})
    assert [check.status for check in only.checks] == ["INVALID"]
    nothing = gate(Budget(max_size_bytes=10**9), made_up({}), {"gone": "crashed"})
    assert nothing.status == "INVALID"
