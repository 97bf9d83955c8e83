"""Everything that the report shows, as one value: ``report.json``. The other forms are made from it alone."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgewise.bench import format as say
from edgewise.bench.gate import Verdict, slower_than_float, words
from edgewise.bench.gate.verdict import worst
from edgewise.bench.record import Context, LayersRow, Results
from edgewise.bench.report.file import file_row
from edgewise.bench.report.load import energy_row, scenario_rows
from edgewise.bench.report.slices import slice_rows, slices_left_out
from edgewise.bench.report.timeline import blocks_of, origin_ns, spread_of, telemetry_of, thinned

FORMAT = 2
CONFIDENCE = 0.95
NOT_JUDGED = "NOT JUDGED"


def build_page(results: Results, verdict: Verdict | None, context: Context, out: Path) -> dict[str, Any]:
    """Everything that the page shows, as plain numbers with units in their names; ``schema.json`` describes it.

    Intervals are 95 % ones, a verdict's 90 % ones. Paths are relative to ``out``, the folder that the page is for; of
    files elsewhere only the name is told.

    Raises:
        ArtifactError: scores or labels that were recorded can't be read any more.
    """
    origin = origin_ns(results)
    edges, counts = spread_of(results)
    telemetry = telemetry_of(results, origin)
    files = []
    for file in results.files:
        row = file_row(results, file, context, out)
        measured = results.measurements.get(file.name)
        row["energy"] = energy_row(measured.energy) if measured else None
        row["histogram"] = counts.get(file.name)
        row["timeline"] = blocks_of(measured, origin, telemetry) if measured and file.runtime != "tensorrt" else []
        files.append(row)
    short = _in_short(files, verdict)
    for row in files:
        row["in_short"] = row["name"] in short
        row["status"] = _status(row["name"], verdict)
    runtimes = {file.name: file.runtime for file in results.files}
    unseen = slices_left_out(results) if context.metric is not None else []
    page: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "name": context.name,
            "created": context.created,
            "metric": context.metric,
            "confidence": CONFIDENCE,
            "status": verdict.status if verdict else NOT_JUDGED,
            "headline": words.headline(verdict) if verdict else say.headline([]),
            "verdict": verdict.to_json() if verdict else None,
            "verdict_error": round((1 - verdict.confidence) / 2, 6) if verdict else None,
            "picked": context.picked,
            "picked_why": context.picked_why,
            "runtimes": list(dict.fromkeys(row["runtime"] for row in files)),
            "flags": _flags(files),
            "counts": _counts(files),
            "warnings": _warnings(results, verdict),
            "failed": [{"name": name, "why": why} for name, why in context.failed.items()],
            "files": files,
            "bin_edges_ms": edges,
            "telemetry": thinned(telemetry),
            "slices": slice_rows(results, short) if context.metric is not None else [],
            "scenarios": scenario_rows(results),
            "journey": _journey(context, files),
            "parity": [
                {"file": name, **asdict(row), "exact": row.sqnr_db == math.inf}
                for name, rows in context.parity.items()
                for row in rows
            ],
            "layers": [
                {"file": name, "runtime": runtimes.get(name, name.split("-")[0]), **_layers(row)}
                for name, row in context.layers.items()
            ],
            "agreement": [
                {
                    **asdict(row),
                    "share": row.same / row.n if row.n else None,
                    "layers": _layers(row.layers) if row.layers else None,
                }
                for row in context.agreement
            ],
            "plan": [asdict(row) for row in context.plan],
            "plan_note": context.plan_note,
            "goals": [asdict(row) for row in context.goals],
            "others": _others(context),
            "bundles": [asdict(row) for row in context.bundles],
            "notes": [*context.notes, *_notes(files), *unseen],
            "config": results.config,
            "provenance": results.provenance,
            "cpus": _cpus(results.provenance.get("device", {})),
            # The device's own versions last: its runtimes are the ones that were measured.
            "versions": {**context.versions, **results.provenance.get("versions", {})},
            "commands": list(context.commands),
            "recipe_text": context.recipe_text,
        }
    )
    return page


def _others(context: Context) -> dict[str, Any]:
    """A row a model or file, a cell a metric."""
    names = list(dict.fromkeys(name for row in context.others for name in row.metrics))
    rows = [{"name": row.name, "found": [row.metrics.get(name) for name in names]} for row in context.others]
    return {"metrics": names, "rows": rows}


def _in_short(files: list[dict[str, Any]], verdict: Verdict | None) -> list[str]:
    """The files that the first lines are about: those judged, else the INT8 candidates, else all candidates."""
    candidates = [file for file in files if file["role"] == "candidate"]
    judged = {check.file for check in verdict.checks} if verdict else set()
    names = judged or {f["name"] for f in candidates if f["precision"] == "int8"} or {f["name"] for f in candidates}
    return [file["name"] for file in files if file["name"] in names]


def _status(name: str, verdict: Verdict | None) -> str | None:
    """The worst of a file's checks that isn't waived, None where it wasn't judged."""
    found = [check for check in verdict.checks if check.file == name] if verdict else []
    return worst(found) if found else None


def _flags(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each flag once, with the files that carry it."""
    names = dict.fromkeys(flag for file in files for flag in file["flags"])
    return [{"flag": flag, "files": [file["name"] for file in files if flag in file["flags"]]} for flag in names]


def _counts(files: list[dict[str, Any]]) -> dict[str, Any]:
    """What "how sure are you" counts."""
    launches = [file["launches"] for file in files if file["launches"]]
    return {
        "files": len(files),
        "doubtful": sum(bool(file["flags"]) for file in files),
        "samples": max((file["samples"] for file in files), default=0),
        "runs": sum(file["runs"] or 0 for file in files),
        "launches_low": min(launches, default=0),
        "launches_high": max(launches, default=0),
    }


def _warnings(results: Results, verdict: Verdict | None) -> list[str]:
    """The verdict's; that a file is slower than its own float is told by the files themselves, once."""
    told_elsewhere = set(slower_than_float(results))
    return [warning for warning in (verdict.warnings if verdict else ()) if warning not in told_elsewhere]


def _journey(context: Context, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages of the model, each with the p50 of the float files made of it, then the files to ship."""
    timed = {file["name"]: file for file in files if file["p50_ms"]}
    return [
        {
            **asdict(row),
            "latency": [
                {"file": name, "runtime": timed[name]["runtime"], "p50_ms": timed[name]["p50_ms"]}
                for name in row.files
                if name in timed
            ],
        }
        for row in context.journey
    ]


def _layers(found: LayersRow) -> dict[str, Any]:
    """A comparison by layers; the worst of them apart, for who reads no picture."""
    worst = sorted((row for row in found.rows if not row.exact), key=lambda row: _depth(row.sqnr_db))
    return {
        **asdict(found),
        "count": len(found.rows),
        "worst": [{"name": row.name, "sqnr_db": row.sqnr_db} for row in worst[:3]],
    }


def _depth(sqnr_db: float | None) -> float:
    return -math.inf if sqnr_db is None else sqnr_db


def _cpus(device: dict[str, Any]) -> int | None:
    """CPUs that the measurement could use."""
    affinity = device.get("affinity")
    cores = device.get("cores")
    return len(affinity) if affinity else cores if isinstance(cores, int) else None


def _notes(files: list[dict[str, Any]]) -> list[str]:
    """What went wrong with files that have numbers all the same, and what a runtime doesn't tell."""
    blind = {file["runtime"]: file["settings"] for file in files if file["settings"]}
    return [
        *(f"{file['name']}: {file['error']}" for file in files if file["error"] and (file["runs"] or file["samples"])),
        *(
            f"{runtime} doesn't tell how many threads it uses: {settings['threads']} asked for, not read back"
            for runtime, settings in blind.items()
            if settings.get("threads_read_back") is False
        ),
    ]


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null. Tuples are lists there, and keys are texts."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
