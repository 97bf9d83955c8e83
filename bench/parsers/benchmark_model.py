"""LiteRT's (TFLite's) ``benchmark_model``: the text that it prints, in its several versions.

Each line may begin with a log's own words (``INFO: ``, ``I/tflite ( 6794): ``). Of two lines ``count=…`` the first is
the warm-up. ``p5 median p95`` and the memory are missing in older versions. It prints no single times, so a percentile
is the tool's own or none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgewise.bench.parsers.text import last_words, number
from edgewise.errors import MeasureError

TOOL = "benchmark_model"
TIMINGS = re.compile(
    r"Inference timings in us: Init: (\S+), First inference: (\S+), Warmup \(avg\): (\S+), Inference \(avg\): (\S+)"
)
# Until 2020: "Average inference timings in us: Warmup: 83235, Init: 38467, Inference: 79760.9", or "no stats: ".
OLD_TIMINGS = re.compile(
    r"Average inference timings in us: Warmup: (\S+), Init: (\S+), (?:Inference|no stats): ([^\s,]+)"
)
COUNT = re.compile(r"\bcount=(\S+)((?: \w+=\S+)*)")
MEMORY = re.compile(r"Memory footprint delta from the start of the tool \(MB\): init=(\S+) overall=(\S+)")
THREADS = re.compile(r"#threads used for CPU inference: \[(\d{1,4})\]")
GRAPH = re.compile(r"\bLoaded model (\S+)")
DELEGATED = re.compile(r"Replacing (\d{1,9}) out of (\d{1,9}) node\(s\) with delegate \((\w+)\)")
PLACES = ("first", "min", "max", "std", "p5", "median", "p95")


@dataclass(frozen=True)
class BenchmarkModel:
    """One run of the tool. Times in microseconds; ``delegated``: operations that the delegate took, of how many."""

    init_us: float
    first_us: float | None
    warmup_us: float
    inference_us: float
    count: int | None = None
    min_us: float | None = None
    max_us: float | None = None
    std_us: float | None = None
    p5_us: float | None = None
    median_us: float | None = None
    p95_us: float | None = None
    init_mb: float | None = None
    overall_mb: float | None = None
    threads: int | None = None
    graph: str | None = None
    delegate: str | None = None
    delegated: tuple[int, int] | None = None


def benchmark_model(text: str) -> BenchmarkModel:
    """What one run of the tool printed.

    Raises:
        MeasureError: it has no result in it, or a number that can't be.
    """
    timings = _timings(text)
    if timings is None:
        raise MeasureError(f"expected its inference timings, found none; {last_words(text)}", where=TOOL)
    init, first, warmup, inference = timings
    if inference <= 0:
        raise MeasureError(f"expected an average above 0 us, got {inference:g}", where=TOOL)
    counted = COUNT.findall(text)
    # With one line only nobody knows whether it is the warm-up's.
    steady = _steady(counted[-1]) if len(counted) > 1 else {}
    count = steady.pop("count", None)
    memory = _last(MEMORY, text)
    delegated = _last(DELEGATED, text)
    graph, threads = _last(GRAPH, text), _last(THREADS, text)
    return BenchmarkModel(
        init_us=init,
        first_us=first,
        warmup_us=warmup,
        inference_us=inference,
        count=None if count is None else int(count),
        **{f"{name}_us": steady.get(name) for name in PLACES if name != "first"},
        init_mb=number(memory[0], TOOL) if memory else None,
        overall_mb=number(memory[1], TOOL) if memory else None,
        threads=int(threads[0]) if threads else None,
        graph=graph[0] if graph else None,
        delegate=delegated[2] if delegated else None,
        delegated=(int(delegated[0]), int(delegated[1])) if delegated else None,
    )


def _timings(text: str) -> tuple[float, float | None, float, float] | None:
    found = _last(TIMINGS, text)
    if found:
        init, first, warmup, inference = (number(value, TOOL) for value in found)
        return init, first, warmup, inference
    old = _last(OLD_TIMINGS, text)
    if old:
        warmup, init, inference = (number(value, TOOL) for value in old)
        return init, None, warmup, inference
    return None


def _steady(found: tuple[str, str]) -> dict[str, float]:
    """``count=50 first=1 curr=2 min=1 max=2 avg=1.5 std=0 p5=1 median=1 p95=2`` by name."""
    values = {"count": number(found[0], TOOL)}
    for part in found[1].split():
        name, _, text = part.partition("=")
        if name in PLACES:
            values[name] = number(text, TOOL)
    low, high = values.get("min"), values.get("max")
    if low is not None and high is not None and low > high:
        raise MeasureError(f"its minimum {low:g} us lies above its maximum {high:g} us", where=TOOL)
    return values


def _last(pattern: re.Pattern[str], text: str) -> tuple[str, ...] | None:
    found = None
    for match in pattern.finditer(text):
        found = match.groups()
    return found
