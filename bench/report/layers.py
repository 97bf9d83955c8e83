"""The picture of a net's layers: how closely each follows another form of the net, in dB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.bench.report.plot import CARD, INK, LINE, MUTED, SERIES, as_svg, runtime_colour

TOP_DB, BOTTOM_DB = 150.0, -20.0  # equal layers are drawn at the top, broken ones at the bottom
LABELS = 32  # names that fit below
STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "D", "^")


@dataclass(frozen=True)
class Line:
    """One file: (layer, SQNR in dB; inf where equal, None where it isn't finite) in order of execution."""

    name: str
    runtime: str
    rows: tuple[tuple[str, float | None], ...]
    first_bad: str | None = None


def line_of(name: str, runtime: str, found: dict[str, Any]) -> Line:
    """A comparison as plain data, as a line."""
    rows = tuple((row["name"], math.inf if row["exact"] else row["sqnr_db"]) for row in found["rows"])
    return Line(name, runtime, rows, found["first_bad"])


def layer_sqnr(lines: Sequence[Line], floor_db: float | None = None, name: str = "layers") -> str | None:
    """SQNR by layer, a line a file, the first bad layer of each marked; None with nothing to draw."""
    lines = [line for line in lines if line.rows]
    if not lines:
        return None
    order = _order(lines)
    place = {layer: index for index, layer in enumerate(order)}
    cap = min(TOP_DB, 8 + max([20.0, *(db for line in lines for _, db in line.rows if db is not None and db < TOP_DB)]))

    def draw(axes: Any) -> None:
        same: dict[int, int] = {}
        for line in lines:
            series = runtime_colour(line.runtime)
            turn = same[series] = same.get(series, -1) + 1
            colour, style = SERIES[series - 1], turn % len(STYLES)
            points = [(place[layer], _shown(db, cap)) for layer, db in line.rows]
            xs, ys = zip(*points, strict=True)
            axes.plot(
                xs, ys, color=colour, linestyle=STYLES[style], marker=MARKERS[style], markersize=3.2, linewidth=1.2
            )
            if line.first_bad in place:
                _mark(
                    axes, line, dict(points)[place[str(line.first_bad)]], place[str(line.first_bad)], len(order), colour
                )
        if floor_db is not None:
            axes.axhline(floor_db, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(f"floor {floor_db:.0f} dB", (0, floor_db), (0, 3), textcoords="offset points", color=MUTED)
        step = math.ceil(len(order) / LABELS)
        axes.set_xticks(range(0, len(order), step))
        axes.set_xticklabels([_short(layer) for layer in order[::step]], rotation=90, fontsize=7, parse_math=False)
        axes.tick_params(axis="x", length=2)
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.02, y=0.12)
        axes.set_ylabel("SQNR, dB (up is closer)")
        axes.spines["bottom"].set_color(LINE)

    title = "signal to quantization noise of each layer in dB, in order of execution"
    told = "; ".join(f"{line.name}: first bad layer {line.first_bad or 'none'}" for line in lines)
    return as_svg(draw, name, 4.2, title, told, width=11.2)


def _mark(axes: Any, line: Line, y: float, x: int, count: int, colour: str) -> None:
    axes.plot([x], [y], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4, zorder=4)
    right = x > 0.7 * count
    axes.annotate(
        f"{line.first_bad} ({line.name})",
        (x, y),
        (-9 if right else 9, -14),
        textcoords="offset points",
        ha="right" if right else "left",
        color=INK,
        parse_math=False,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": CARD, "edgecolor": colour, "linewidth": 0.7},
    )


def _order(lines: Sequence[Line]) -> list[str]:
    """All layers: those of the longest line, and each other one behind the layer that it follows in its own line."""
    order = [layer for layer, _ in max(lines, key=lambda line: len(line.rows)).rows]
    for line in lines:
        last = -1
        for layer, _ in line.rows:
            if layer in order:
                last = order.index(layer)
            else:
                last += 1
                order.insert(last, layer)
    return order


def _shown(db: float | None, cap: float) -> float:
    return BOTTOM_DB if db is None else max(BOTTOM_DB, min(cap, db))


def _short(layer: str) -> str:
    return layer if len(layer) <= 28 else f"…{layer[-27:]}"
