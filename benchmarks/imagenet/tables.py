"""Tables of what ``run.py`` measured, in Markdown: every option, losers too, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from options import CALIBRATION, NETS, options
from own import ROW as OWN
from samples import spread

from edgewise.bench.numbers import clock_of, samples_of, speedup
from edgewise.bench.record import Results, load_results
from edgewise.bench.stats import Interval, bootstrap_percentiles, tango, wilson
from edgewise.deploy.parity import sqnr_db

RUNTIMES = ("onnxruntime", "openvino", "litert")
LIMIT_PP = 1.5


def tables(out: Path) -> str:
    """All that was measured below ``out``."""
    parts = [text for name in NETS for text in [accuracy_table(out, name)] if text]
    return "\n".join([*parts, *(text for text in (speed_table(out), own_table(out)) if text)])


def accuracy_table(out: Path, name: str) -> str:
    """One net: each option in each runtime against the float file in the same runtime."""
    floats = _results(out / name / "float" / "answers")
    if floats is None:
        return ""
    rows = []
    for row, settings in options(name).items():
        found = _results(out / name / row / "answers")
        for runtime in RUNTIMES if found else ():
            rows.append([f"`{row}`", json.dumps(settings), *_against(floats, found, runtime, row)])
    head = ["option", "`quantize`", "runtime", "top-1 %", "drop, pp", "flips", "changed", "SQNR dB", "drop, others, pp"]
    intro = []
    for runtime in RUNTIMES:
        scores = floats.scores(f"{runtime}-float")
        if scores is not None:
            top = wilson(float(scores.sum()), len(scores))
            intro.append(f"{runtime} {_percent(top)}")
    return f"### {name}\n\nFloat: {'; '.join(intro)}.\n\n{markdown(head, rows)}"


def _against(floats: Results, found: Results | None, runtime: str, row: str) -> list[str]:
    assert found is not None
    before, after = floats.scores(f"{runtime}-float"), _scores(found, f"{runtime}-{row}")
    if before is None or after is None:
        return [runtime, *["-"] * 6]
    n = len(after)
    top = wilson(float(after.sum()), n)
    drop = drop_of(before, after)
    lost, won = (int(((before > after) if first else (after > before)).sum()) for first in (True, False))
    a, b = floats.outputs(f"{runtime}-float"), found.outputs(f"{runtime}-{row}")
    assert a is not None
    assert b is not None
    changed = wilson(float((a.argmax(1) != b.argmax(1)).sum()), n)
    held = np.setdiff1d(np.arange(n), spread(n, CALIBRATION))
    others = drop_of(before[held], after[held])
    bold = f"**{_pp(drop)}**" if 100 * drop.value <= LIMIT_PP else _pp(drop)
    flips = f"{lost + won} ({lost} lost, {won} won)"
    return [runtime, _percent(top), bold, flips, _percent(changed), f"{sqnr_db(a, b):.1f}", _pp(others)]


def drop_of(before: np.ndarray, after: np.ndarray) -> Interval:
    """How far accuracy falls, from paired answers."""
    return tango(int((before > after).sum()), int((after > before).sum()), len(before))


def speed_table(out: Path) -> str:
    """INT8 over float in the same runtime."""
    rows = []
    for name in NETS:
        for row in options(name):
            for runtime in RUNTIMES:
                found = _results(out / name / row / f"speed-{runtime}")
                if found is not None:
                    rows.append([name, f"`{row}`", runtime, *_speed(found, runtime, row, out / name / row)])
    head = ["net", "option", "runtime", "float p50 ms", "INT8 p50 ms", "INT8 / float", "clock", "% of MACs in INT8"]
    return f"### Speed\n\n{markdown(head, rows)}" if rows else ""


def _speed(found: Results, runtime: str, row: str, folder: Path) -> list[str]:
    names = (f"{runtime}-float", f"{runtime}-{row}")
    clock = clock_of(found, *names)
    # The product tells how many times faster; a ratio of times is what others published.
    ratio = speedup(found, names[1], names[0], clock=clock)
    told = json.loads((folder / f"{runtime}.report.json").read_text())
    share = told.get("integer_macs_share")
    times = [_p50(samples_of(found.measurements[name])) for name in names]
    cells = [f"{time.value / 1e6:.3f}" if time else "-" for time in times]
    text = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if ratio else "-"
    return [*cells, text, clock or "-", f"{100 * share:.1f}" if share is not None else "-"]


def own_table(out: Path) -> str:
    """INT8 by the product's defaults beside INT8 by each runtime's own tools."""
    rows = []
    for name in NETS:
        for runtime in RUNTIMES:
            found = _results(out / name / OWN / f"speed-{runtime}")
            if found is None:
                continue
            names = {row: f"{runtime}-{row}" for row in ("float", "mse", OWN)}
            clock = clock_of(found, *names.values())
            pairs = ((names["mse"], names["float"]), (names[OWN], names["float"]), (names["mse"], names[OWN]))
            ratios = [speedup(found, over, under, clock=clock) for over, under in pairs]
            cells = [f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" if one else "-" for one in ratios]
            rows.append([name, runtime, *cells, *_drops(out / name, runtime), clock or "-"])
    head = ["net", "runtime", "ours / float", "own / float", "ours / own", "ours drop, pp", "own drop, pp", "clock"]
    return f"### Beside the runtimes' own tools\n\n{markdown(head, rows)}" if rows else ""


def _drops(folder: Path, runtime: str) -> list[str]:
    floats = _results(folder / "float" / "answers")
    before = None if floats is None else floats.scores(f"{runtime}-float")
    cells = []
    for row in ("mse", OWN):
        found = _results(folder / row / "answers")
        after = None if found is None else _scores(found, f"{runtime}-{row}")
        cells.append("" if before is None or after is None else _pp(drop_of(before, after)))
    return cells


def _p50(samples: Any) -> Interval | None:
    return bootstrap_percentiles(samples, [0.5])[0]


def _scores(found: Results, name: str) -> Any:
    try:
        return found.scores(name)
    except KeyError:
        return None


def _results(folder: Path) -> Results | None:
    return load_results(folder) if (folder / "measurements.json").exists() else None


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _pp(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]) + "\n"
