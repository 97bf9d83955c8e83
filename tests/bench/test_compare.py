"""Two releases side by side: what is paired, what is only told, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.bench import stats
from edgewise.bench.record import Context, Results
from edgewise.bench.report.compare import Side, compare
from edgewise.bench.report.file import interval_of
from edgewise.bench.stats import tango
from edgewise.errors import MeasureError

IDS = [f"sample-{i}" for i in range(2000)]


def _side(results: Results, name: str, ids: list[str] = IDS, **context: Any) -> Side:
    """A release, with its answers in a folder of its own."""
    folder = results.folder / name
    shutil.copytree(results.folder / "answers", folder / "answers")
    (folder / "ids.txt").write_text("".join(f"{one}\n" for one in ids))
    return Side(replace(results, folder=folder), None, Context(name, "now", **context))


def test_answers_are_paired_by_sample_and_not_by_place(
    made_up: Callable[..., Results], scores: Callable[..., Any]
) -> None:
    before = _side(made_up({"small": {"scores": scores(30)}}), "before")
    # The release after has its samples in another order, and 500 of them are others.
    order = np.random.default_rng(0).permutation(2000)
    right = {name: i >= 20 and i % 100 != 99 for i, name in enumerate(IDS)}
    ids = [IDS[i] if i < 1500 else f"new-{i}" for i in order]
    answers = np.array([right.get(name, True) for name in ids], np.float32)
    after = _side(made_up({"small": {"scores": answers}}), "after", ids)
    (small,) = (file for file in compare(before, after)["files"] if file["name"] == "small")

    both = range(1500)
    was = {i: i >= 30 for i in both}
    lost = sum(was[i] and not right[IDS[i]] for i in both)
    won = sum(not was[i] and right[IDS[i]] for i in both)
    assert (small["paired_n"], small["lost"], small["won"]) == (1500, lost, won) == (1500, 15, 10)
    want = tango(lost, won, 1500)
    assert small["drop_pp"] == pytest.approx(
        {"value": 100 * want.value, "low": 100 * want.low, "high": 100 * want.high}
    )
    assert small["paired_accuracy"]["a"] == pytest.approx(1470 / 1500)


def test_what_differs_is_named_and_what_does_not_is_not(made_up: Callable[..., Results]) -> None:
    one = made_up({"small": {"size": 100_000}, "gone": {}})
    before = _side(one, "before")
    two = made_up({"small": {"size": 150_000, "peak": 60_000_000}, "new": {}})
    files = tuple(replace(file, sha256="1" * 64) if file.name == "small" else file for file in two.files)
    config = {**two.config, "launches": 9, "later": True}
    versions = {**two.provenance, "versions": {**two.provenance["versions"], "numpy": "0.1"}}
    after = _side(replace(two, files=files, config=config, provenance=versions), "after")
    found = compare(before, after)
    assert [file["name"] for file in found["files"]] == ["teacher", "student", "small"]
    assert (found["only_a"], found["only_b"]) == (["gone"], ["new"])
    small = found["files"][-1]
    assert [file["same_bytes"] for file in found["files"]] == [True, True, False]
    assert small["size_bytes"] == {"a": 100_000, "b": 150_000}
    assert small["size_ratio"] == 1.5
    assert small["peak_memory_bytes"] == {"a": 50_000_000, "b": 60_000_000}
    assert found["settings"] == [
        {"key": "launches", "a": one.config["launches"], "b": 9},
        {"key": "later", "a": None, "b": True},
    ]
    assert found["provenance"] == [{"part": "versions", "key": "numpy", "a": np.__version__, "b": "0.1"}]
    assert found["runtime_settings"] == []


def test_nothing_is_claimed_of_times(made_up: Callable[..., Results]) -> None:
    before, after = _side(made_up({"small": {"ms": 2.0}}), "before"), _side(made_up({"small": {"ms": 1.0}}), "after")
    small = compare(before, after)["files"][-1]
    assert small["p50_ms"]["a"]["value"] == pytest.approx(2, rel=0.02)
    assert small["p50_ms"]["b"]["value"] == pytest.approx(1, rel=0.02)
    assert not [key for key in small if "speed" in key or "faster" in key]


@pytest.mark.parametrize("metric", [None, "f1"])
def test_scores_of_two_kinds_are_not_paired(made_up: Callable[..., Results], metric: str | None) -> None:
    before, after = _side(made_up({"small": {}}), "before"), _side(made_up({"small": {}}), "after", metric=metric)
    found = compare(before, after)
    assert found["metric"] is None
    assert all(file["drop_pp"] is None and file["why_unpaired"] for file in found["files"])


def test_a_file_that_did_not_answer_is_told(made_up: Callable[..., Results]) -> None:
    before = _side(made_up({"small": {}}), "before")
    after = _side(made_up({"small": {"error": "small: it died"}}), "after")
    small = compare(before, after)["files"][-1]
    assert small["drop_pp"] is None
    assert small["why_unpaired"]
    assert small["error"] == {"a": None, "b": "small: it died"}


def test_other_devices_are_refused_unless_asked_for(made_up: Callable[..., Results]) -> None:
    results = made_up({"small": {}})
    before = _side(results, "before")
    device = {**results.provenance, "device": {**results.provenance["device"], "cpu": "another one"}}
    after = _side(replace(results, provenance=device), "after")
    with pytest.raises(MeasureError, match="another one"):
        compare(before, after)
    found = compare(before, after, anyway=True)
    assert ["another one" in line for line in found["device_differs"]] == [True]


def test_releases_without_a_file_in_common_are_compared_all_the_same(
    made_up: Callable[..., Results], tmp_path: Path
) -> None:
    results = made_up({"small": {}})
    before = _side(replace(results, files=results.files[:1]), "before")
    after = _side(replace(results, files=results.files[1:]), "after")
    found = compare(before, after)
    assert found["files"] == []
    assert (found["only_a"], found["only_b"]) == (["teacher"], ["student", "small"])


def test_an_interval_without_ends_is_not_in_the_json() -> None:
    assert interval_of(stats.paired_mean_drop([0.7], [0.5]), 100) is None
    assert interval_of(stats.Interval(1.0, 0.5, 2.0), 100) == {"value": 100.0, "low": 50.0, "high": 200.0}
