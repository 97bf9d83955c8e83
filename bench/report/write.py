"""Write the report: ``report.json`` with everything, and ``report.md``, ``report.html``, ``junit.xml`` made from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import format as say
from edgewise.bench import stats
from edgewise.bench.gate import Verdict, slower_than_float
from edgewise.bench.numbers import (
    accuracy_drop,
    clock_of,
    discordant,
    load_ms,
    paired_scores,
    peak_memory,
    qps,
    samples_of,
    speedup,
)
from edgewise.bench.pick import pick
from edgewise.bench.record import Context, FileUnderTest, LayersRow, Measurement, Results
from edgewise.bench.report.junit import junit
from edgewise.bench.report.layers import layer_sqnr, line_of
from edgewise.bench.report.plot import accuracy_latency, latency_spread, runtime_colour

FORMAT = 1
CONFIDENCE = 0.95
FILES = ("report.json", "report.md", "report.html", "junit.xml")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def write_report(results: Results, verdict: Verdict | None, context: Context, out: Path) -> dict[str, Path]:
    """Write the four forms of the report into ``out``; their paths by name.

    Raises:
        ArtifactError: scores that were recorded can't be read any more.
    """
    page = build_page(results, verdict, context, out)
    out.mkdir(parents=True, exist_ok=True)
    forms = {
        "report.json": json.dumps(page, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "report.md": render_markdown(page),
        "report.html": render_html(page, results),
        "junit.xml": junit(verdict, context.name),
    }
    for name, text in forms.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)
    return {name: out / name for name in forms}


def build_page(results: Results, verdict: Verdict | None, context: Context, out: Path) -> dict[str, Any]:
    """Everything that the page shows, as plain numbers with units in their names. Intervals are 95 % ones.

    Paths are relative to ``out``, the folder that the page is for; of files elsewhere only the name is told.

    Beside ``files``, ``journey``, ``parity`` … it holds ``picked`` (the file to ship, None for none), ``picked_why``;
    ``slower``: {file slower than its own float: how much}; ``failed``: {what could not be made: why}; ``layers``:
    {file: ``against``, ``n``, ``rows`` of ``name sqnr_db exact max_abs shape``, ``worst`` three, ``first_bad``,
    ``why``, ``floor_db``, ``flips``, ``unmatched``, ``note``}; ``agreement``: pairs of INT8 files, ``same`` of ``n``
    answers, with ``layers`` where they are too few; ``plan``: a row a layer of the mixed-precision plan; ``goals``. A
    file has ``integer_macs_share``, 0..1, and ``float_layers``.
    """
    files = [_file(results, file, context, out) for file in results.files]
    first = [file for file in files if file["role"] == "candidate"]
    judged = {check.file for check in verdict.checks} if verdict else set()
    names = judged or {f["name"] for f in first if f["precision"] == "int8"} or {f["name"] for f in first}
    page = {
        "format": FORMAT,
        "name": context.name,
        "created": context.created,
        "metric": context.metric,
        "confidence": CONFIDENCE,
        "verdict": verdict.to_json() if verdict else None,
        "headline": say.headline([check.status for check in verdict.checks] if verdict else []),
        "in_short": [file["name"] for file in files if file["name"] in names],
        "warnings": list(verdict.warnings) if verdict else slower_than_float(results),
        "files": files,
        "journey": [asdict(row) for row in context.journey],
        "parity": {
            name: [{**asdict(row), "exact": row.sqnr_db == math.inf} for row in rows]
            for name, rows in context.parity.items()
        },
        "picked": context.picked,
        "picked_why": context.picked_why,
        "slower": dict(pick(results, verdict).slower),
        "failed": dict(context.failed),
        "layers": {name: _layers(row) for name, row in context.layers.items()},
        "agreement": [
            {**asdict(row), "layers": _layers(row.layers) if row.layers else None} for row in context.agreement
        ],
        "plan": [asdict(row) for row in context.plan],
        "plan_note": context.plan_note,
        "goals": [asdict(row) for row in context.goals],
        "bundles": [asdict(bundle) for bundle in context.bundles],
        "notes": [*context.notes, *_notes(files)],
        "config": results.config,
        "provenance": results.provenance,
        "versions": {**results.provenance.get("versions", {}), **context.versions},
        "commands": list(context.commands),
        "recipe_text": context.recipe_text,
    }
    finite: dict[str, Any] = _finite(page)
    return finite


def render_markdown(page: dict[str, Any]) -> str:
    """The page as Markdown, for a terminal, a pull request or a step summary."""
    text: str = _environment(escape=False).get_template("page.md.j2").render(page=page)
    return text


def render_html(page: dict[str, Any], results: Results) -> str:
    """The page as one HTML file that needs nothing else: no network, no scripts."""
    drawn = [results.measurements[f["name"]] for f in page["files"] if f["name"] in results.measurements]
    spread = latency_spread(
        [(one.file, results.file(one.file).runtime) for one in drawn], [_pooled(one) / 1e6 for one in drawn]
    )
    plots = [plot for plot in (accuracy_latency(page["files"], page["metric"]), spread) if plot]
    runtimes = {file.name: file.runtime for file in results.files}
    lines = [line_of(name, runtimes.get(name, name.split("-")[0]), found) for name, found in page["layers"].items()]
    layers = layer_sqnr(lines)
    parted = [row for row in page["agreement"] if row["layers"]]
    apart = [
        layer_sqnr([line_of(row["other"], runtimes.get(row["other"], ""), row["layers"])], name=f"apart-{place}")
        for place, row in enumerate(parted)
    ]
    page_template = _environment(escape=True).get_template("page.html.j2")
    text: str = page_template.render(page=page, plots=plots, layers=layers, lines=lines, apart=apart, parted=parted)
    return text


def render_inspection(found: dict[str, Any], warnings: list[str], runtime: str) -> str:
    """Two nets layer by layer as one HTML file that needs nothing else.

    Args:
        found: ``Comparison.to_json()`` and ``flip_rate``, an interval or None.
        warnings: what the reader must know first.
        runtime: of the second net, for its colour.
    """
    plot = layer_sqnr([line_of(found["other"], runtime, found)], found["floor_db"])
    text: str = (
        _environment(escape=True).get_template("inspect.html.j2").render(found=found, warnings=warnings, plot=plot)
    )
    return text


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


def _file(results: Results, file: FileUnderTest, context: Context, out: Path) -> dict[str, Any]:
    # A float file is its own reference or parent at times; "1.00x faster than itself" tells nobody anything.
    file = replace(
        file,
        reference=None if file.role == "reference" else file.reference,
        parent=file.parent if file.role == "candidate" else None,
    )
    answers, measurement = results.answers.get(file.name), results.measurements.get(file.name)
    reference = next((one for one in results.files if one.name == file.reference), None)
    row = {
        **asdict(file),
        "path": _told_path(Path(file.path), out),
        "size_ratio": reference.size_bytes / file.size_bytes if reference and file.size_bytes else None,
        "error": next((part.error for part in (measurement, answers) if part is not None and part.error), None),
        "flags": list(measurement.flags) if measurement else [],
        **_accuracy(results, file),
        **_speed(results, file, measurement),
    }
    parity = context.parity.get(file.name)
    row["sqnr_db"] = parity[-1].sqnr_db if parity else None
    row["sqnr_exact"] = bool(parity) and row["sqnr_db"] == math.inf  # JSON has no infinity
    row["integer"] = context.integer.get(file.name)
    row["integer_macs_share"] = context.integer_macs_share.get(file.name)
    row["float_layers"] = list(context.float_layers.get(file.name, ()))
    return row


def _layers(found: LayersRow) -> dict[str, Any]:
    """A comparison by layers; the worst of them apart, for who reads no picture."""
    worst = sorted((row for row in found.rows if not row.exact), key=lambda row: _depth(row.sqnr_db))
    return {**asdict(found), "worst": [{"name": row.name, "sqnr_db": row.sqnr_db} for row in worst[:3]]}


def _depth(sqnr_db: float | None) -> float:
    return -math.inf if sqnr_db is None else sqnr_db


def _told_path(path: Path, out: Path) -> str:
    """Nobody else needs to know where on this machine a run lies."""
    path, out = path.resolve(), out.resolve()
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else path.name


def _speedups(results: Results, file: FileUnderTest) -> dict[str, Any]:
    """Against the reference and the own float: what is believed, which clock it is from, and the wall clock's ratio."""
    row: dict[str, Any] = {}
    for key, other in (("speedup", file.reference), ("speedup_parent", file.parent)):
        clock = clock_of(results, other, file.name)
        wall = _interval(speedup(results, other, file.name))
        row[key] = wall if clock == "wall" else _interval(speedup(results, other, file.name, clock=clock))
        row[f"{key}_clock"] = clock if row[key] else None
        row[f"{key}_wall"] = wall
    return row


def _accuracy(results: Results, file: FileUnderTest) -> dict[str, Any]:
    answers, scores = results.answers.get(file.name), results.scores(file.name)
    usable = scores is not None and answers is not None and answers.finite
    found = stats.mean_interval(np.asarray(scores, dtype=np.float64)) if usable else None
    pair = paired_scores(results, file.reference, file.name) if usable else None
    row: dict[str, Any] = {
        "accuracy": asdict(found) if found else None,
        "samples": answers.samples if answers else 0,
        "drop_pp": None,
        "flips": None,
        "lost": None,
        "won": None,
        "mcnemar_p": None,
    }
    drop = accuracy_drop(results, file.reference, file.name) if pair else None
    if pair is None or drop is None:
        return row
    lost, won = discordant(*pair)
    return {
        **row,
        "drop_pp": {key: 100 * value for key, value in asdict(drop).items()},
        "flips": lost + won,
        "lost": lost,
        "won": won,
        "mcnemar_p": stats.mcnemar_p(lost, won),
    }


def _speed(results: Results, file: FileUnderTest, measurement: Measurement | None) -> dict[str, Any]:
    keys = ("runs", "p50_ms", "p90_ms", "p99_ms", "p90_needs", "p99_needs", "mean_ms", "qps", "peak_memory_bytes")
    row: dict[str, Any] = {
        **dict.fromkeys((*keys, "load_ms", "first_ms", "phases", "settings")),
        **_speedups(results, file),
    }
    if measurement is None or not measurement.launches:
        return row
    launches = samples_of(measurement)
    pooled = _pooled(measurement)
    found = stats.bootstrap_percentiles(launches, list(PERCENTILES.values()))
    for name, interval in zip(PERCENTILES, found, strict=True):
        row[f"{name}_ms"] = {key: value / 1e6 for key, value in asdict(interval).items()} if interval else None
    firsts = [launch.phases["first_inference"].duration_ns / 1e6 for launch in measurement.launches]
    return {
        **row,
        "runs": len(pooled),
        "p90_needs": stats.sample_floor(0.9),
        "p99_needs": stats.sample_floor(0.99),
        "mean_ms": float(pooled.mean()) / 1e6,
        "qps": asdict(qps(measurement)[0]),
        "peak_memory_bytes": peak_memory(measurement),
        "load_ms": _spread(load_ms(measurement)),
        "first_ms": _spread(firsts),
        "phases": _phases(measurement),
        "settings": measurement.launches[0].settings,
    }


def _phases(measurement: Measurement) -> dict[str, dict[str, Any]]:
    """Of each phase over launches: the median time, the largest peak, the median of what was anonymous at its end."""
    found: dict[str, dict[str, Any]] = {}
    for name in measurement.launches[0].phases:
        phases = [launch.phases[name] for launch in measurement.launches if name in launch.phases]
        peaks = [phase.peak_bytes for phase in phases if phase.peak_bytes is not None]
        anonymous = [phase.anonymous_bytes for phase in phases if phase.anonymous_bytes is not None]
        found[name] = {
            "duration_ms": float(np.median([phase.duration_ns for phase in phases])) / 1e6,
            "peak_bytes": max(peaks) if peaks else None,
            "anonymous_bytes": int(np.median(anonymous)) if anonymous else None,
        }
    return found


def _environment(*, escape: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgewise.bench.report", ""),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "q": say.quantity,
        "span": say.span,
        "size": say.size,
        "faster": say.faster,
        "smaller": say.smaller,
        "count": say.count,
        "roughly": say.roughly,
        "percent": say.percent,
        "duration": say.duration,
        "decibel": say.decibel,
        "probability": say.probability,
        "check_words": say.check_words,
        "flag_words": say.flag_words,
        "cell": _cell,
        "tidy": _tidy,
        "colour": runtime_colour,
    }
    environment.filters.update(filters)
    environment.globals.update(limit_words=say.limit_words, too_few=say.too_few, unknown=say.NONE)
    return environment


def _cell(text: object) -> str:
    """Text in a cell of a Markdown table: one line, nothing that ends the cell or starts HTML."""
    line = " ".join(str(text).split())
    for sign in "\\`*_|<>[]":
        line = line.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return line


def _tidy(value: object) -> str:
    """A setting or fact as text: lists with commas, nothing as n/a."""
    if value is None:
        return say.NONE
    if isinstance(value, (list, tuple)):
        return ", ".join(_tidy(one) for one in value) or "none"
    if isinstance(value, float):
        return say.plain(value, 4)
    return str(value)


def _pooled(measurement: Measurement) -> NDArray[np.float64]:
    blocks = [block for launch in samples_of(measurement) for block in launch]
    return np.concatenate(blocks) if blocks else np.empty(0)


def _interval(found: stats.Interval | None) -> dict[str, float] | None:
    return asdict(found) if found else None


def _spread(values: list[float]) -> dict[str, float]:
    return {"value": float(np.median(values)), "low": min(values), "high": max(values)}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
