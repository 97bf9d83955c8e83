"""Write the report: ``report.json`` with everything, and ``report.md``, ``report.html``, ``junit.xml`` made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgewise.bench.gate import Verdict
from edgewise.bench.gate.junit import junit
from edgewise.bench.record import Context, Results
from edgewise.bench.report.layers import layer_sqnr, line_of
from edgewise.bench.report.page import build_page
from edgewise.bench.report.render import render, render_html, render_markdown

FILES = ("report.json", "report.md", "report.html", "junit.xml")


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
        "report.html": render_html(page),
        "junit.xml": junit(verdict, context.name),
    }
    for name, text in forms.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)
    return {name: out / name for name in forms}


def render_inspection(found: dict[str, Any], warnings: list[str], runtime: str) -> str:
    """Two nets layer by layer as one HTML file that needs nothing else.

    Args:
        found: ``Comparison.to_json()`` and ``flip_rate``, an interval or None.
        warnings: what the reader must know first.
        runtime: of the second net, for its colour.
    """
    plot = layer_sqnr([line_of(found["other"], runtime, found)], found["floor_db"])
    return render("inspect.html.j2", {"found": found, "warnings": warnings}, plot=plot)
