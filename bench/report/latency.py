"""How latencies spread, how they went over time, and what the device did meanwhile: a row a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewise.bench import format as say
from edgewise.bench.report.plot import CARD, INK, LINE, MUTED, SERIES, as_svg, log_ticks, row_axes, rows_height, series

TALL = 0.62  # of a row, for the highest bar
RANGE = 0.25  # a row of the timeline shows 25 % around the file's p50; what lies outside is drawn at its edge


def latency_spread(files: Sequence[dict[str, Any]], edges_ms: Sequence[float]) -> str | None:
    """A histogram a file on one logarithmic axis, with p50, p90 and p99 marked; None with nothing to draw.

    ``files``: rows of the report with ``name runtime histogram p50_ms p90_ms p99_ms``.
    """
    shown = [file for file in files if file["histogram"]]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        for row, file in enumerate(shown):
            colour, counts, base = series(file["runtime"]), file["histogram"], row + 0.3
            top = max(counts)
            heights = [base - TALL * count / top for count in counts]
            axes.stairs(heights, edges_ms, baseline=base, fill=True, color=colour, alpha=0.4, linewidth=0)
            axes.plot([edges_ms[0], edges_ms[-1]], [base, base], color=LINE, linewidth=0.6, zorder=1)
            for key, style in (("p50_ms", "-"), ("p90_ms", (0, (2, 1.5))), ("p99_ms", (0, (1, 1.5)))):
                if file[key]:
                    at = file[key]["value"]
                    axes.plot([at, at], [base, base - TALL], color=colour, linewidth=1.5, linestyle=style)
        axes.set_xscale("log")
        axes.margins(x=0.02)
        log_ticks(axes)
        row_axes(axes, [(file["name"], file["runtime"]) for file in shown])
        axes.set_xlabel("latency of one inference; solid p50, dashed p90, dotted p99")

    told = "; ".join(f"{file['name']}: p50 {_said(file['p50_ms'])}, p99 {_said(file['p99_ms'])}" for file in shown)
    return as_svg(draw, "spread", rows_height(len(shown)), "spread of single latencies, one row a file", told)


def latency_over_time(files: Sequence[dict[str, Any]]) -> str | None:
    """Each block's p50 in the order in which blocks ran, against the file's own; None with nothing to draw.

    Shaded is p10 to p90 of the block; crosses are blocks that other work disturbed, triangles ran at a low clock. A
    launch is as wide as another, and what lies between two, when processes start, is left out.
    """
    shown = [file for file in files if file["timeline"] and file["p50_ms"]]
    if not shown:
        return None
    launches = _launches([block for file in shown for block in file["timeline"]])

    def draw(axes: Any) -> None:
        for row, file in enumerate(shown):
            _row(axes, row, file, launches)
        row_axes(axes, [(file["name"], file["runtime"]) for file in shown])
        axes.set_xlim(-0.05, len(launches))
        axes.set_xticks([place for place, _, _ in launches.values()])
        words = [f"launch {launch + 1}{_since(start)}" for launch, (_, start, _) in launches.items()]
        axes.set_xticklabels(words, fontsize=8, ha="left")
        axes.set_xlabel(f"a row is \N{PLUS-MINUS SIGN}{100 * RANGE:.0f} % of the file's p50")

    told = "; ".join(
        f"{file['name']}: {len(file['timeline'])} blocks, {sum(row['contended'] for row in file['timeline'])} disturbed"
        for file in shown
    )
    title = "p50 of each block in the order in which they ran, one row a file"
    return as_svg(draw, "timeline", rows_height(len(shown)) + 0.15, title, told)


Launches = dict[int, tuple[int, float | None, float]]


def _launches(blocks: Sequence[dict[str, Any]]) -> Launches:
    """Each launch's place, when its first block began (None where blocks don't tell), and how long it took."""
    found: Launches = {}
    timed = all(block["start_s"] is not None for block in blocks)
    for place, launch in enumerate(sorted({block["launch"] for block in blocks})):
        at = [block["start_s"] if timed else block["round"] for block in blocks if block["launch"] == launch]
        found[launch] = (place, min(at) if timed else None, max(at) - min(at) or 1.0)
    return found


def _since(start: float | None) -> str:
    return "" if start is None else f"\nat {start:.0f} s"


def _row(axes: Any, row: int, file: dict[str, Any], launches: Launches) -> None:
    colour, middle, base = series(file["runtime"]), file["p50_ms"]["value"], row + 0.08
    axes.axhline(base, color=LINE, linewidth=0.8, zorder=1)
    for launch, (place, start, long) in launches.items():
        mine = [block for block in file["timeline"] if block["launch"] == launch]
        xs = [place + 0.9 * (b["round"] if start is None else b["start_s"] - start) / long for b in mine]
        low, p50, high = ([_place(b[key], middle, base) for b in mine] for key in ("p10_ms", "p50_ms", "p90_ms"))
        axes.fill_between(xs, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(xs, p50, color=colour, linewidth=1.1, marker="o", markersize=2.2, zorder=3)
        for flag, marker in (("contended", "x"), ("slow_clock", "v")):
            found = [(x, y) for x, y, block in zip(xs, p50, mine, strict=True) if block[flag]]
            if found:
                axes.plot(*zip(*found, strict=True), marker, color=INK, markersize=4.5, markeredgewidth=1.1, zorder=4)


def _place(ms: float, middle: float, base: float) -> float:
    """Where in its row a block lies: up is slower."""
    away = max(-1.0, min(1.0, (ms / middle - 1) / RANGE))
    return base - 0.38 * away


def device_over_time(rows: Sequence[dict[str, Any]]) -> str | None:
    """Temperature, the fastest CPU's clock and the power drawn, each on its own scale; None with nothing to draw."""
    lines = {
        key: [(row["t_s"], row[key]) for row in rows if row[key] is not None]
        for key in ("temp_c", "freq_mhz", "power_w")
    }
    lines = {key: points for key, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    words = {"temp_c": "hottest zone, °C", "freq_mhz": "fastest CPU, MHz", "power_w": "power of the largest rail, W"}

    def draw(axes: Any) -> None:
        for row, points in enumerate(lines.values()):
            ys = [y for _, y in points]
            low, high = min(ys), max(ys)
            room = (high - low) or 1.0
            axes.plot(
                [x for x, _ in points],
                [row + 0.3 - TALL * (y - low) / room for y in ys],
                color=SERIES[row],
                linewidth=1.3,
                marker="o",
                markersize=2,
                markerfacecolor=CARD,
            )
        axes.margins(x=0.02)
        row_axes(axes, [(f"{words[key]}: {_range(points)}", "") for key, points in lines.items()])
        axes.set_xlabel("seconds since the first block")
        axes.tick_params(colors=MUTED)

    told = "; ".join(f"{words[key]}: {_range(points)}" for key, points in lines.items())
    return as_svg(draw, "device", rows_height(len(lines)), "what the device's sensors said meanwhile", told)


def _range(points: Sequence[tuple[float, float]]) -> str:
    ys = [y for _, y in points]
    low, high = say.plain(min(ys)), say.plain(max(ys))
    return low if low == high else f"{low} to {high}"


def _said(interval: dict[str, float] | None) -> str:
    return say.duration(interval["value"]) if interval else say.NONE
