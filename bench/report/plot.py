"""The report's two pictures, as SVG to put into the page. Colours are CSS variables, for light and dark."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Painted by matplotlib, then replaced: no real colour looks like these.
COLOURS = {
    "#a0b001": "var(--series-1)",
    "#a0b002": "var(--series-2)",
    "#a0b003": "var(--series-3)",
    "#a0b004": "var(--series-4)",
    "#a0b005": "var(--ink)",
    "#a0b006": "var(--muted)",
    "#a0b007": "var(--line)",
    "#a0b008": "var(--card)",
}
SERIES = tuple(COLOURS)[:4]
INK, MUTED, LINE, CARD = tuple(COLOURS)[4:]
WIDTH = 5.6
# One place for each runtime, so that its colour is the same in every report.
RUNTIMES = ("onnxruntime", "openvino", "litert", "tensorrt")
MARKERS = {"reference": "s", "parent": "o", "candidate": "D"}


def runtime_colour(runtime: str) -> int:
    """Which series, 1 to 4, a runtime is drawn as."""
    return RUNTIMES.index(runtime) + 1 if runtime in RUNTIMES else 4


def accuracy_latency(files: Sequence[dict[str, Any]], metric: str) -> str | None:
    """Accuracy against p50 latency with both intervals, a point a file; None with nothing to draw.

    ``files``: rows of the report with ``name runtime role p50_ms accuracy``.
    """
    shown = [file for file in files if file["p50_ms"] and file["accuracy"]]
    if not shown:
        return None

    def draw(axes: Any) -> None:
        for file in shown:
            x, y = file["p50_ms"], file["accuracy"]
            colour = SERIES[runtime_colour(file["runtime"]) - 1]
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
        frontier = _frontier([(file["p50_ms"]["value"], 100 * file["accuracy"]["value"]) for file in shown])
        axes.plot(*zip(*frontier, strict=True), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xscale("log")
        axes.margins(x=0.16, y=0.14)
        _log_ticks(axes)
        axes.set_xlabel("p50 latency (left is faster)")
        axes.set_ylabel(f"{metric}, %")
        _label(axes, [(f["name"], f["p50_ms"]["value"], 100 * f["accuracy"]["value"]) for f in shown])

    return as_svg(draw, "accuracy-latency", 4.1, f"{metric} against p50 latency, one point a file, with 95 % intervals")


def latency_spread(names: Sequence[tuple[str, str]], samples_ms: Sequence[Any]) -> str | None:
    """How the latencies of each (name, runtime) spread: p1 to p99 thin, p25 to p75 thick, p50 a dot."""
    rows = [
        (name, runtime, samples) for (name, runtime), samples in zip(names, samples_ms, strict=True) if len(samples)
    ]
    if not rows:
        return None

    def draw(axes: Any) -> None:
        for row, (name, runtime, samples) in enumerate(rows):
            colour = SERIES[runtime_colour(runtime) - 1]
            p1, p25, p50, p75, p99 = np.percentile(samples, [1, 25, 50, 75, 99])
            axes.plot([p1, p99], [row, row], color=colour, linewidth=1.2, solid_capstyle="butt")
            axes.plot([p25, p75], [row, row], color=colour, linewidth=6, solid_capstyle="butt", alpha=0.45)
            axes.plot([p50], [row], "o", color=colour, markersize=5)
            axes.annotate(name, (p1, row), (0, 6), textcoords="offset points", color=INK, parse_math=False)
        axes.set_xscale("log")
        axes.set_ylim(len(rows) - 0.6, -0.9)
        axes.set_yticks([])
        axes.margins(x=0.08)
        _log_ticks(axes)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("latency: p1 to p99, thick p25 to p75, dot p50")

    height = max(2.2, 0.8 + 0.33 * len(rows))
    return as_svg(draw, "latency-spread", height, "spread of single latencies, one row a file")


def as_svg(draw: Callable[[Any], None], name: str, height: float, label: str, width: float = WIDTH) -> str:
    """What ``draw`` paints on matplotlib's axes, as SVG to put into a page.

    Sizes are in inches; ``name`` makes its ids unique, ``label`` is what a screen reader says.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }
    written = io.StringIO()
    # A character that matplotlib's font lacks only makes a label's width a guess: the reader's browser draws the text.
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        draw(axes)
        figure.savefig(
            written,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(written.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """An SVG file as part of a page: no prologue, no style for the whole page, ids of its own, the page's colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for painted, variable in COLOURS.items():
        body = body.replace(painted, variable)
    head = re.match(r"<svg[^>]*>", body)
    box = re.search(r'viewBox="[^"]*"', head.group(0) if head else "")
    if head is None or box is None:
        raise AssertionError("matplotlib wrote an SVG without a size")
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {links} {box.group(0)} role="img" aria-label="{html.escape(label)}">{body[head.end() :]}'


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both, from fast to slow."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _log_ticks(axes: Any) -> None:
    """Ticks at 1, 2 and 5 with their unit, few enough to read; ms in, µs where that is shorter."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    if high / low < 4:
        middle = (low * high) ** 0.5
        axes.set_xlim(min(low, middle / 2), max(high, middle * 2))
        low, high = axes.get_xlim()
    steps = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms * 1000:g} µs" if ms < 1 else f"{ms:g} ms"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each name beside its point, where it hides no other name or point, if there is such a place."""
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
    places += [(8, 15, "left"), (8, -22, "left"), (-8, 15, "right"), (-8, -22, "right")]
    frame = axes.get_window_extent()
    for name, x, y in sorted(points, key=lambda point: -point[2]):
        tried: list[tuple[float, int, Any, tuple[float, ...]]] = []
        for dx, dy, side in places:
            text = axes.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, color=INK, parse_math=False, zorder=4
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


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
