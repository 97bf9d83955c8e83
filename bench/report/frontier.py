"""Accuracy against latency: a point a file, with both intervals, and the line that no file beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewise.bench import format as say
from edgewise.bench.report.plot import CARD, INK, MARKERS, MUTED, as_svg, log_ticks, series, short


def frontier(files: Sequence[dict[str, Any]], metric: str, named: Sequence[str]) -> str | None:
    """Accuracy against p50 latency with both intervals, a point a file; None with nothing to draw.

    ``files``: rows of the report with ``name runtime role p50_ms accuracy``; of them ``named`` are named.
    """
    shown = [file for file in files if file["p50_ms"] and file["accuracy"]]
    if not shown:
        return None
    best = _frontier(shown)

    def draw(axes: Any) -> None:
        for file in shown:
            _point(axes, file)
        if len(best) > 1:
            line = [(file["p50_ms"]["value"], 100 * file["accuracy"]["value"]) for file in best]
            axes.plot(*zip(*line, strict=True), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xscale("log")
        axes.margins(x=0.16, y=0.14)
        log_ticks(axes)
        axes.set_xlabel("p50 latency (left is faster)")
        axes.set_ylabel(f"{metric}, %", parse_math=False)
        _label(
            axes,
            [(f["name"], f["p50_ms"]["value"], 100 * f["accuracy"]["value"]) for f in shown],
            {file["name"] for file in [*best, *shown] if file["name"] in named or len(shown) <= NAMED},
        )

    told = "; ".join(
        f"{file['name']}: {say.duration(file['p50_ms']['value'])}, {say.percent(file['accuracy']['value'])}"
        for file in shown
    )
    return as_svg(draw, "frontier", 3.7, f"{metric} against p50 latency, one point a file, with 95 % intervals", told)


NAMED = 4  # so few that all get their names
FAR = 14  # points from which on a line leads from a name to its point
LEADER = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}


def _point(axes: Any, file: dict[str, Any]) -> None:
    x, y, colour = file["p50_ms"], file["accuracy"], series(file["runtime"])
    axes.errorbar(
        [x["value"]],
        [100 * y["value"]],
        xerr=[[x["value"] - min(x["low"], x["value"])], [max(x["high"], x["value"]) - x["value"]]],
        yerr=[[100 * (y["value"] - y["low"])], [100 * (y["high"] - y["value"])]],
        fmt=MARKERS[file["role"]],
        color=colour,
        markerfacecolor=colour if file["role"] == "candidate" else CARD,
        markeredgewidth=1.6,
        markersize=7,
        elinewidth=1.1,
        zorder=3,
    )


def _frontier(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files that no other beats in both, from fast to slow."""
    best: list[dict[str, Any]] = []
    for file in sorted(files, key=lambda one: (one["p50_ms"]["value"], -one["accuracy"]["value"])):
        if not best or file["accuracy"]["value"] > best[-1]["accuracy"]["value"]:
            best.append(file)
    return best


def _label(axes: Any, points: Sequence[tuple[str, float, float]], named: set[str]) -> None:
    """Write the names of ``named`` beside their points, where they hide no name or point, if there is such a place."""
    axes.figure.draw_without_rendering()
    taken: list[tuple[float, ...]] = []
    for _, x, y in points:
        px, py = axes.transData.transform((x, y))
        taken.append((px - 6, py - 6, px + 6, py + 6))
    places = [
        (8, 4, "left"),
        (8, -11, "left"),
        (-8, 4, "right"),
        (-8, -11, "right"),
        (0, 11, "center"),
        (0, -18, "center"),
    ]
    places += [(8, dy, "left") for dy in (16, -23, 28, -35, 40)] + [(-8, dy, "right") for dy in (16, -23, 28, -35, 40)]
    frame = axes.get_window_extent()
    for name, x, y in sorted((one for one in points if one[0] in named), key=lambda point: -point[2]):
        tried: list[tuple[float, int, Any, tuple[float, ...]]] = []
        for dx, dy, side in places:
            text = axes.annotate(
                short(name),
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=side,
                color=INK,
                parse_math=False,
                zorder=4,
            )
            box = text.get_window_extent()
            corners = (box.x0, box.y0, box.x1, box.y1)
            cost = sum(_overlap(corners, other) for other in taken)
            outside = max(0, frame.x0 - box.x0) + max(0, box.x1 - frame.x1 - 8) + max(0, box.y1 - frame.y1 - 8)
            tried.append((cost + 20 * outside, len(tried), text, corners))
        best = min(tried)
        for one in tried:
            if one is not best:
                one[2].remove()
        taken.append(best[3])
        if abs(best[2].xyann[1]) > FAR:
            axes.annotate("", (x, y), best[2].xyann, textcoords="offset points", arrowprops=LEADER)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
