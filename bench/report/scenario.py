"""Latency against load: what a file does when more than one request is on its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewise.bench import format as say
from edgewise.bench.report.plot import CARD, INK, as_svg, log_ticks, series, short

MARKERS = {"single_stream": "o", "multi_stream": "s", "server": "^", "offline": "P", "sweep": "D"}
STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1, 1, 1)))


def load_curve(rows: Sequence[dict[str, Any]]) -> str | None:
    """p99 (p50 where too few queries tell it, drawn hollow) against samples a second; points of one sweep are joined.

    ``rows``: scenarios of the report. None with nothing to draw.
    """
    shown = [row for row in rows if row["qps"] and (row["p99_ms"] or row["p50_ms"])]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        most = max(row["qps"]["value"] for row in shown)
        names = list(dict.fromkeys(row["file"] for row in shown))
        for place, name in enumerate(names):
            mine = [row for row in shown if row["file"] == name]
            sweep = sorted((row for row in mine if row["kind"] == "sweep"), key=lambda row: row["in_flight"])
            if len(sweep) > 1:
                points = [(row["qps"]["value"], _y(row)) for row in sweep]
                style = STYLES[place % len(STYLES)]
                axes.plot(*zip(*points, strict=True), color=series(sweep[0]["runtime"]), linewidth=1.2, linestyle=style)
            for row in mine:
                colour = series(row["runtime"])
                axes.plot(
                    [row["qps"]["low"], row["qps"]["high"]], [_y(row), _y(row)], color=colour, linewidth=1, alpha=0.7
                )
                axes.plot(
                    [row["qps"]["value"]],
                    [_y(row)],
                    MARKERS.get(row["kind"], "o"),
                    color=colour,
                    markerfacecolor=colour if row["p99_ms"] else CARD,
                    markersize=6,
                )
            last = max(mine, key=lambda row: row["qps"]["value"])
            right = last["qps"]["value"] > most / 2
            axes.annotate(
                short(name),
                (last["qps"]["value"], _y(last)),
                (6 if not right else -2, 7 + 9 * (place % 3)),
                textcoords="offset points",
                ha="right" if right else "left",
                color=INK,
                fontsize=8.5,
                parse_math=False,
            )
        axes.set_yscale("log")
        axes.margins(x=0.1, y=0.25)
        log_ticks(axes, "y")
        axes.set_xlim(left=0)
        axes.set_xlabel("samples a second (right is more)")
        axes.set_ylabel("p99 of a query (hollow: p50)")

    told = "; ".join(
        f"{row['file']}, {row['name']}: {say.rate(row['qps']['value'])}, p99 {say.quantity(row['p99_ms'], 'ms')}"
        for row in shown
    )
    return as_svg(draw, "load", 3.7, "latency of a query against samples a second", told)


def _y(row: dict[str, Any]) -> float:
    found: float = row["p99_ms"] if row["p99_ms"] else row["p50_ms"]
    return found
