"""What the report is told beside the measurements: layers, agreement, the plan, goals, integer shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgewise.artifact import Artifact
from edgewise.stages.layers import layer_rows

if TYPE_CHECKING:
    from edgewise.bench.record import GoalRow, OthersRow, PlanRow

SLACK = 1.1
"""A latency is reached when it lands within a tenth of what was asked for: so closely it can be measured again."""


def beside(done: Mapping[str, Artifact]) -> dict[str, Any]:
    """Fields of ``bench.record.Context``, from the artifacts of a run by step."""
    layers, agreement = layer_rows(done["layers"]) if "layers" in done else ({}, ())
    reports = {name: report for name, made in done.items() if (report := _report(made))}
    plan, note = plan_rows(done)
    return {
        "layers": layers,
        "agreement": agreement,
        "integer_macs_share": {
            name: float(report["integer_macs_share"])
            for name, report in reports.items()
            if report.get("integer_macs_share") is not None and "int8" in report.get("precision", "")
        },
        "float_layers": {
            name: tuple(report.get("float_layers", ()))
            for name, report in reports.items()
            if "int8" in report.get("precision", "")
        },
        "plan": plan,
        "plan_note": note,
        "goals": goal_rows(done),
        "others": others_rows(done),
    }


def others_rows(done: Mapping[str, Artifact]) -> tuple[OthersRow, ...]:
    """Metrics that are no mean over samples: of each stage's model, then of each file."""
    from edgewise.bench.record import OthersRow

    found = {name: made.metrics["others"] for name, made in done.items() if made.metrics.get("others")}
    measured = done.get("measure")
    if measured is not None and "others.json" in measured.files:
        found |= json.loads(measured.file("others.json").read_text())
    return tuple(OthersRow(name, metrics) for name, metrics in found.items())


def plan_rows(done: Mapping[str, Artifact]) -> tuple[tuple[PlanRow, ...], str]:
    """The mixed-precision plan, a row a layer, and what it was made under; empty where there was no search."""
    from edgewise.bench.record import PlanRow

    for made in done.values():
        if "plan.json" not in made.files:
            continue
        plan = json.loads(made.file("plan.json").read_text())
        floats = set(plan["float_layers"])
        rows = tuple(
            PlanRow(
                layer=row["name"],
                precision="float32" if row["name"] in floats else "int8",
                macs=row["macs"],
                only_sqnr_db=row["only_sqnr_db"],
                only_flips=row["only_flips"],
                without_sqnr_db=row["without_sqnr_db"],
                without_flips=row["without_flips"],
                n=row["n"],
            )
            for row in plan["sensitivities"]
        )
        return rows, _plan_note(plan)
    return (), ""


def _plan_note(plan: dict[str, Any]) -> str:
    drop, whole = plan["drop"], plan["drop_all_int8"]
    n, faster = len(plan["float_layers"]), len(plan.get("for_speed", ()))
    speed = f", {faster} of them because INT8 alone is too slow" if faster else ""
    return (
        f"{n} {'layer stays' if n == 1 else 'layers stay'} in float{speed}, {100 * plan['float_share']:.1f} % of the "
        f"MACs (budget: {_budget(plan)}). On {len(plan['sample_ids'])} training samples the score drops by "
        f"{_drop(drop)} with this plan, by {_drop(whole)} without it."
    )


def _budget(plan: dict[str, Any]) -> str:
    latency = plan["budget"].get("latency")
    if latency is None:
        return f"a drop of {plan['budget']['max_accuracy_drop_pp']:g} pp"
    goal = f"{latency['p50_ms']:g} ms" if latency["p50_ms"] is not None else f"{latency['ratio']:g} of float's time"
    return f"{goal} in {latency['runtime']}, threads: {latency['threads']}; the plan's file took {_timed(plan)}"


def _timed(plan: dict[str, Any]) -> str:
    return f"{plan['timed']['p50_ms']:.3f} ms, {plan['timed']['ratio']:.3f} of float's time"


def _drop(drop: Mapping[str, float]) -> str:
    return f"{drop['pp']:.2f} pp ({drop['low_pp']:.2f} to {drop['high_pp']:.2f})"


def goal_rows(done: Mapping[str, Artifact]) -> tuple[GoalRow, ...]:
    """What each pruning was to reach, and what it did."""
    rows = []
    for name, made in done.items():
        if "pruned.json" in made.files:
            rows += _pruning(name, made.config, json.loads(made.file("pruned.json").read_text()))
    return tuple(rows)


def _pruning(name: str, config: Any, pruned: dict[str, Any]) -> list[GoalRow]:
    from edgewise.bench.record import GoalRow

    left = {what: pruned[f"{what}_after"] / pruned[f"{what}_before"] for what in ("macs", "params")}
    words = {"macs": "multiply-accumulates", "params": "parameters"}
    for what, share in left.items():
        asked = config.get(f"{what}_ratio")
        if asked is not None:
            told = f"at most {100 * asked:.1f} % of the {words[what]}"
            # Channels are cut in steps: the last one may leave a little more, or less.
            return [GoalRow(name, told, f"{100 * share:.1f} %", share <= asked * SLACK)]
    goal = config.get("latency")
    if goal is None:
        return []
    where = f"{goal['runtime']} {goal['precision']}, {goal['threads']} thread{'s' if goal['threads'] != 1 else ''}"
    asked = goal.get("p50_ms") or goal.get("ratio")
    told = f"p50 of {asked:g} ms" if goal.get("p50_ms") else f"{asked:g} of the p50 before pruning"
    trials = pruned["trials"]
    if not trials:
        return [GoalRow(name, f"{told} in {where}", "nothing was timed", None)]
    taken = min(trials, key=lambda trial: abs(trial["macs_ratio"] - left["macs"]))["timed"]
    key = "p50_ms" if goal.get("p50_ms") else "ratio"
    value = sorted(one[key] for one in taken)[len(taken) // 2]
    found = f"{value:.3g} ms" if key == "p50_ms" else f"{value:.3f}"
    return [GoalRow(name, f"{told} in {where}", f"{found}, untrained, when it was pruned", value <= asked * SLACK)]


def _report(made: Artifact) -> dict[str, Any] | None:
    """A conversion's report; of a TensorRT bundle, what its manifest holds of TensorRT-RTX's."""
    main = made.metrics.get("main")
    name = next((name for name in made.files if name.endswith(".report.json")), None)
    if not main or (name is None and not main.endswith(".json")):
        return None
    told: dict[str, Any] = json.loads(made.file(name or main).read_text())
    return {**told, **(told.get("conformance") or {})}
