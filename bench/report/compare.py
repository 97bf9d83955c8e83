"""Two releases side by side, from what each of them has stored.

Answers are paired by sample, so a drop has an interval. Times were taken on two days: they are told, and nothing is
claimed of their difference. Who wants to know measures both again, interleaved: ``edgewise gate --against``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.bench import stats
from edgewise.bench.gate import Release, Verdict
from edgewise.bench.gate.against import common
from edgewise.bench.gate.found import Unusable
from edgewise.bench.numbers import discordant
from edgewise.bench.provenance import check_same_device
from edgewise.bench.record import Context, FileUnderTest, Results
from edgewise.bench.report.file import interval_of
from edgewise.bench.report.page import CONFIDENCE, build_page, finite

FORMAT = 1
SIDES = ("a", "b")
EACH = (
    *("size_bytes", "peak_memory_bytes", "p50_ms", "p90_ms", "p99_ms", "qps", "load_ms", "runs"),
    *("accuracy", "status", "flags", "error"),
)
PAIRED = ("drop_pp", "flips", "flip_share", "lost", "won", "mcnemar_p")


@dataclass(frozen=True)
class Side:
    """One release: what was measured, what was said of it."""

    results: Results
    verdict: Verdict | None
    context: Context


def compare(a: Side, b: Side, *, anyway: bool = False) -> dict[str, Any]:
    """``b`` against ``a``, as plain numbers; ``comparison.schema.json`` describes it. Drops are a's score less b's.

    Raises:
        MeasureError: they come from different devices, and nobody said ``anyway``.
        ArtifactError: scores that were recorded can't be read any more.
    """
    differ = check_same_device(a.results.provenance, b.results.provenance, anyway=anyway)
    pages = {
        side: build_page(one.results, one.verdict, one.context, one.results.folder)
        for side, one in zip(SIDES, (a, b), strict=True)
    }
    rows = {side: {file["name"]: file for file in page["files"]} for side, page in pages.items()}
    both = [name for name in rows["b"] if name in rows["a"]]
    scored = a.context.metric is not None and a.context.metric == b.context.metric
    found: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "confidence": CONFIDENCE,
            "metric": a.context.metric if scored else None,
            "device_differs": differ,
            **{side: _about(page) for side, page in pages.items()},
            "files": [_file(a, b, name, {side: rows[side][name] for side in SIDES}, scored=scored) for name in both],
            "only_a": [name for name in rows["a"] if name not in rows["b"]],
            "only_b": [name for name in rows["b"] if name not in rows["a"]],
            "settings": _differences(a.results.config, b.results.config),
            "runtime_settings": [
                {"file": name, **row}
                for name in both
                for row in _differences(rows["a"][name]["settings"] or {}, rows["b"][name]["settings"] or {})
            ],
            "provenance": [
                {"part": part, **row}
                for part in ("device", "versions")
                for row in _differences(a.results.provenance.get(part, {}), b.results.provenance.get(part, {}))
            ],
        }
    )
    return found


def _about(page: Mapping[str, Any]) -> dict[str, Any]:
    """A release in short."""
    told = {key: page[key] for key in ("name", "created", "status", "headline", "picked", "picked_why")}
    return {**told, "device": page["provenance"].get("device", {}), "counts": page["counts"]}


def _file(a: Side, b: Side, name: str, rows: Mapping[str, Mapping[str, Any]], *, scored: bool) -> dict[str, Any]:
    one, other = rows["a"], rows["b"]
    ratio = other["size_bytes"] / one["size_bytes"] if one["size_bytes"] else None
    return {
        "name": name,
        **{key: other[key] for key in ("runtime", "precision", "role")},
        "same_bytes": one["sha256"] == other["sha256"],
        "size_ratio": ratio,
        **{key: {side: row[key] for side, row in rows.items()} for key in EACH},
        "p99_needs": other["p99_needs"] or one["p99_needs"],
        "p90_needs": other["p90_needs"] or one["p90_needs"],
        **(_paired(a, b, b.results.file(name)) if scored else _unpaired("nobody scored the answers of both")),
    }


def _paired(a: Side, b: Side, file: FileUnderTest) -> dict[str, Any]:
    """How b's answers differ from a's, on the samples that both have."""
    try:
        before, after = common(Release(a.context.name, a.results), b.results, file)
    except Unusable as error:
        return _unpaired(str(error))
    n = len(after)
    lost, won = discordant(before, after)
    if stats.is_binary(np.concatenate([before, after])):
        drop = stats.tango(lost, won, n)
    else:
        drop = stats.paired_mean_drop(before.astype(np.float64), after.astype(np.float64))
    told = {"flips": lost + won, "flip_share": (lost + won) / n, "lost": lost, "won": won}
    both = {"a": _mean(before), "b": _mean(after)}
    return {
        "paired_n": n,
        "paired_accuracy": both,
        "drop_pp": interval_of(drop, 100),
        **told,
        "mcnemar_p": stats.mcnemar_p(lost, won),
        "why_unpaired": "",
    }


def _unpaired(why: str) -> dict[str, Any]:
    return {"paired_n": 0, "paired_accuracy": None, **dict.fromkeys(PAIRED), "why_unpaired": why}


def _mean(scores: Any) -> float:
    return float(np.mean(scores, dtype=np.float64))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keys whose values differ, with both; a key that one side lacks is None there."""
    keys: Iterable[str] = dict.fromkeys([*one, *other])
    return [{"key": key, "a": one.get(key), "b": other.get(key)} for key in keys if one.get(key) != other.get(key)]
