"""What the report is told of a run: from artifacts made up here, against what was written into them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewise.artifact import Artifact
from edgewise.compress.config import Latency
from edgewise.told import beside

Make = Callable[..., Artifact]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """``made("name", {"plan.json": {...}}, config={}, metrics={})``."""

    def make(name: str, files: dict[str, Any], config: Any = None, metrics: dict[str, Any] | None = None) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content))
        listed = {file: {"sha256": "", "size_bytes": 1} for file in files}
        return Artifact(folder, name, "key", "", {}, config, listed, metrics or {}, {}, 1.0)

    return make


def _row(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "macs": 100,
        "only_sqnr_db": 20.0,
        "only_flips": 1,
        "without_sqnr_db": 30.0,
        "without_flips": 2,
        "n": 50,
        **changed,
    }


def test_a_plan_is_a_row_a_layer(made: Make) -> None:
    plan = {
        "budget": {"max_accuracy_drop_pp": 0.5},
        "float_layers": ["b"],
        "for_speed": [],
        "float_share": 0.25,
        "drop": {"pp": 0.25, "low_pp": -0.5, "high_pp": 1.0},
        "drop_all_int8": {"pp": 3.0, "low_pp": 2.0, "high_pp": 4.0},
        "sample_ids": ["0", "1"],
        "sensitivities": [_row("a"), _row("b", only_sqnr_db=None, only_flips=0)],
    }
    told = beside({"2-quantize": made("2-quantize", {"plan.json": plan})})
    assert [(row.layer, row.precision, row.only_sqnr_db) for row in told["plan"]] == [
        ("a", "int8", 20.0),
        ("b", "float32", None),
    ]
    for words in ("25.0 % of the MACs", "budget: a drop of 0.5 pp", "0.25 pp (-0.50 to 1.00)", "3.00 pp"):
        assert words in told["plan_note"]
    for words in ("too slow", " ms"):
        assert words not in told["plan_note"]


@pytest.mark.parametrize(("goal", "words"), [({"p50_ms": 1.5}, "1.5 ms"), ({"ratio": 0.9}, "0.9 of float's time")])
def test_a_plan_for_speed_says_what_it_took(goal: dict[str, float], words: str, made: Make) -> None:
    latency = Latency(runtime="openvino", precision="int8", threads=2, **goal)  # type: ignore[arg-type]
    plan = {
        "budget": {"latency": latency.model_dump(mode="json")},
        "float_layers": ["a", "b"],
        "for_speed": ["a"],
        "float_share": 0.25,
        "drop": {"pp": 0.25, "low_pp": -0.5, "high_pp": 1.0},
        "drop_all_int8": {"pp": 3.0, "low_pp": 2.0, "high_pp": 4.0},
        "timed": {"p50_ms": 1.2345, "ratio": 0.8765},
        "sample_ids": ["0", "1"],
        "sensitivities": [_row("a"), _row("b")],
    }
    note = beside({"2-quantize": made("2-quantize", {"plan.json": plan})})["plan_note"]
    assert "2 layers stay in float, 1 of them because INT8 alone is too slow, 25.0 %" in note
    assert f"budget: {words} in openvino, threads: 2; the plan's file took 1.234 ms, 0.876 of float's time" in note


def _pruned(macs: float, *ratios: float) -> dict[str, Any]:
    timed = [{"p50_ms": 10 * ratio, "ratio": ratio} for ratio in ratios]
    trials = [{"macs_ratio": macs, "timed": timed}, {"macs_ratio": 0.9, "timed": [{"p50_ms": 99.0, "ratio": 0.99}]}]
    return {
        "macs_before": 1000,
        "macs_after": 1000 * macs,
        "params_before": 10,
        "params_after": 4,
        "trials": trials if ratios else [],
    }


LATENCY = {"runtime": "openvino", "precision": "int8", "threads": 1, "p50_ms": None, "ratio": 0.5}


@pytest.mark.parametrize(
    ("config", "pruned", "found", "reached"),
    [
        ({"macs_ratio": 0.5}, _pruned(0.48), "48.0 %", True),
        ({"macs_ratio": 0.5}, _pruned(0.7), "70.0 %", False),
        ({"params_ratio": 0.5}, _pruned(0.7), "40.0 %", True),
        ({"latency": LATENCY}, _pruned(0.4, 0.52, 0.5, 0.6), "0.520", True),  # within a tenth
        ({"latency": LATENCY}, _pruned(0.4, 0.61, 0.6, 0.62), "0.610", False),
        ({"latency": {**LATENCY, "p50_ms": 5.0, "ratio": None}}, _pruned(0.4, 0.5), "5 ms", True),
        ({"latency": LATENCY}, _pruned(0.4), "nothing was timed", None),
    ],
)
def test_goals_of_pruning(made: Make, config: dict[str, Any], pruned: dict[str, Any], found: str, reached: Any) -> None:
    (row,) = beside({"1-prune": made("1-prune", {"pruned.json": pruned}, config)})["goals"]
    assert row.stage == "1-prune"
    assert row.found.startswith(found)
    assert row.reached is reached


def test_the_share_of_macs_is_that_of_int8_files(made: Make) -> None:
    report = {"precision": "int8", "integer_macs_share": 0.75, "float_layers": ["conv1"]}
    main = {"main": "model.onnx"}
    done = {
        "ort-int8": made("ort-int8", {"model.report.json": report}, metrics=main),
        "ort-float32": made("ort-float32", {"model.report.json": {**report, "precision": "float32"}}, metrics=main),
        "student": made("student", {}),
    }
    told = beside(done)
    assert told["integer_macs_share"] == {"ort-int8": 0.75}
    assert told["float_layers"] == {"ort-int8": ("conv1",)}
    assert told["layers"] == {}
    assert told["plan"] == ()


@pytest.mark.parametrize("conformance", [{"integer_macs_share": 0.875, "float_layers": ["head"]}, None])
def test_tensorrts_share_is_read_from_its_manifest(made: Make, conformance: dict[str, Any] | None) -> None:
    manifest = {"precision": "int8", "conformance": conformance}
    main = {"main": "model.trt/manifest.json"}
    step = made("tensorrt-int8", {}, metrics=main)
    (step.folder / "model.trt").mkdir()
    step.file(main["main"]).write_text(json.dumps(manifest))
    told = beside({"tensorrt-int8": step})
    assert told["integer_macs_share"] == ({"tensorrt-int8": 0.875} if conformance else {})
    assert told["float_layers"] == {"tensorrt-int8": ("head",) if conformance else ()}
