"""What a file's process held in memory after each phase, and its peak within it: a row a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewise.bench import format as say
from edgewise.bench.report.plot import CARD, INK, LINE, as_svg, row_axes, rows_height, series

TALL = 0.55  # of a row, for the largest peak of all
KINDS = (("anonymous_bytes", 0.95), ("shared_bytes", 0.5), ("file_bytes", 0.22))  # and how dark each is drawn


def memory_by_phase(files: Sequence[dict[str, Any]]) -> str | None:
    """Stacked bars, one a phase: private, shared and mapped from files at its end; a line for the peak within it.

    ``files``: rows of the report with ``name runtime phases``. None where no file knows its peak.
    """
    shown = [file for file in files if file["phases"] and any(phase["peak_bytes"] for phase in file["phases"])]
    if not shown:
        return None
    names = [phase["phase"] for phase in shown[0]["phases"]]
    top = max(phase["peak_bytes"] or 0 for file in shown for phase in file["phases"])

    def draw(axes: Any) -> None:
        for row, file in enumerate(shown):
            base = row + 0.38
            axes.axhline(base, color=LINE, linewidth=0.6, zorder=1)
            for phase in file["phases"]:
                if phase["phase"] in names:
                    _bar(axes, names.index(phase["phase"]), base, phase, top, series(file["runtime"]))
            peak = max(phase["peak_bytes"] or 0 for phase in file["phases"])
            axes.annotate(
                say.size(peak), (len(names) - 0.35, base), (2, 2), textcoords="offset points", color=INK, fontsize=8
            )
        row_axes(axes, [(file["name"], file["runtime"]) for file in shown])
        axes.set_xlim(-0.5, len(names) + 0.6)
        axes.set_xticks(range(len(names)))
        axes.set_xticklabels([name.replace("_", "\n") for name in names], fontsize=8)
        axes.grid(visible=False)
        axes.tick_params(length=0)

    told = "; ".join(
        f"{file['name']}: peak {say.size(max(phase['peak_bytes'] or 0 for phase in file['phases']))}" for file in shown
    )
    return as_svg(draw, "memory", rows_height(len(shown)) + 0.1, "memory by phase, one row a file", told)


def _bar(axes: Any, x: int, base: float, phase: dict[str, Any], top: int, colour: str) -> None:
    bottom = 0.0
    for key, alpha in KINDS:
        height = TALL * (phase[key] or 0) / top
        axes.bar(x, -height, 0.62, base - bottom, color=colour, alpha=alpha, linewidth=0)
        bottom += height
    if phase["peak_bytes"]:
        y = base - TALL * phase["peak_bytes"] / top
        axes.plot([x - 0.38, x + 0.38], [y, y], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.plot([x - 0.38, x + 0.38], [y, y], color=CARD, linewidth=0)
