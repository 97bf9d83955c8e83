"""What the report's pictures share: matplotlib's SVG made part of a page, in colours for light and dark."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

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
WIDTH = 5.0
# One place for each runtime, so that its colour is the same in every report.
RUNTIMES = ("onnxruntime", "openvino", "litert", "tensorrt")
MARKERS = {"reference": "s", "parent": "o", "candidate": "D"}


def runtime_colour(runtime: str) -> int:
    """Which series, 1 to 4, a runtime is drawn as."""
    return RUNTIMES.index(runtime) + 1 if runtime in RUNTIMES else 4


def series(runtime: str) -> str:
    """The colour that a runtime is painted with."""
    return SERIES[runtime_colour(runtime) - 1]


def rows_height(rows: int) -> float:
    """Inches that so many rows of a picture take, its axis included."""
    return 0.75 + 0.5 * rows


def row_axes(axes: Any, names: list[tuple[str, str]]) -> None:
    """Rows from top to bottom, each under its file's name: row i lies between i - 0.5 and i + 0.5, upside down."""
    axes.set_ylim(len(names) - 0.45, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for row, (name, _) in enumerate(names):
        # From the left edge of the picture, whatever the axis: names never move and never meet.
        axes.annotate(
            short(name, 52),
            (0, row),
            (0, 9.5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=INK,
            fontsize=8.5,
            parse_math=False,
            zorder=6,
        )


def as_svg(
    draw: Callable[[Any], None], name: str, height: float, title: str, told: str = "", width: float = WIDTH
) -> str:
    """What ``draw`` paints on matplotlib's axes, as SVG to put into a page.

    Sizes are in inches; ``name`` makes its ids unique; a screen reader says the ``title``, then what is ``told``.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9.5,
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
    return _inline(written.getvalue(), name, title, told)


def _inline(svg: str, name: str, title: str, told: str) -> str:
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
    names = f"{name}-title {name}-desc" if told else f"{name}-title"
    words = f'<title id="{name}-title">{html.escape(title)}</title>'
    words += f'<desc id="{name}-desc">{html.escape(told)}</desc>' if told else ""
    return f'<svg {links} {box.group(0)} role="img" aria-labelledby="{names}">{words}{body[head.end() :]}'


def short(name: str, most: int = 30) -> str:
    """The end of a long name, which is what tells it from others."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def log_ticks(axes: Any, which: str = "x") -> None:
    """Ticks at 1, 2 and 5 with their unit, few enough to read; ms in, µs where that is shorter."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    if high / low < 4:
        middle = (low * high) ** 0.5
        low, high = min(low, middle / 2), max(high, middle * 2)
        getattr(axes, f"set_{which}lim")(low, high)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms * 1000:g} µs" if ms < 1 else f"{ms:g} ms"))
    axis.set_minor_formatter(NullFormatter())
