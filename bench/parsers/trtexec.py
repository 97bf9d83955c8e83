"""TensorRT's ``trtexec``: its log, and the times that ``--exportTimes`` writes.

A latency is ``latencyMs``: copying in, computing, copying out; without the copies where they are left out. The log says
which TensorRT it was and which settings it took: they are read back, not believed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from edgewise.bench.parsers.text import NUMBER, last_words, number
from edgewise.errors import MeasureError

TOOL = "trtexec"
VERSION = re.compile(r"&&&& (?:RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v(\d{4,6})\]")
SETTING = re.compile(r"\[I\] (Spin-wait|CUDA Graph|Data transfers|Inference Streams|Duration): *([^\r\n]{1,80})")
QPS = re.compile(r"\[I\] Throughput: " + NUMBER + r" qps")
UNSTABLE = re.compile(r"GPU compute time is unstable, with coefficient of variance = " + NUMBER + "%")
MOST_MS = 1e7  # nearly three hours: longer is a broken file


@dataclass(frozen=True)
class TrtexecLog:
    """What the log says. ``version``: major, minor, patch; ``settings``: as the tool said them back."""

    version: tuple[int, int, int]
    passed: bool
    settings: dict[str, Any]
    qps: float | None
    unstable_percent: float | None


@dataclass(frozen=True)
class Query:
    """One query of the trace, in ms: when its computing began, what it took in all, and the computing alone."""

    start_ms: float
    latency_ms: float
    compute_ms: float


def trtexec_log(text: str) -> TrtexecLog:
    """The log of one run.

    Raises:
        MeasureError: it isn't one.
    """
    mark = VERSION.search(text)
    if mark is None:
        raise MeasureError(f"expected the log of trtexec, found no version in it; {last_words(text)}", where=TOOL)
    rate, unstable = QPS.search(text), UNSTABLE.search(text)
    return TrtexecLog(
        version=trtexec_version(mark.group(1)),
        passed="&&&& PASSED TensorRT.trtexec" in text,
        settings=_settings(text),
        qps=number(rate.group(1), TOOL) if rate else None,
        unstable_percent=number(unstable.group(1), TOOL) if unstable else None,
    )


def trtexec_version(digits: str) -> tuple[int, int, int]:
    """``100300`` as 10.3.0; before TensorRT 10 the minor and the patch had one digit less: ``8502`` as 8.5.2."""
    whole = int(digits)
    if whole >= 100_000:
        return whole // 10_000, whole // 100 % 100, whole % 100
    return whole // 1000, whole // 100 % 10, whole % 100


def trtexec_times(text: str) -> tuple[Query, ...]:
    """The queries in a file of ``--exportTimes``, in order of their start.

    Raises:
        MeasureError: no such file, cut off, or with times that can't be.
    """
    try:
        plain = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MeasureError(f"expected the JSON of --exportTimes: {error}", where=TOOL) from error
    if not isinstance(plain, list) or not plain:
        raise MeasureError("expected a list of queries, got none", where=TOOL)
    found = [_query(entry, place) for place, entry in enumerate(plain)]
    return tuple(sorted(found, key=lambda query: query.start_ms))


def _query(entry: Any, place: int) -> Query:
    if not isinstance(entry, dict):
        raise MeasureError(f"expected a query, got {str(entry)[:40]!r}", where=f"{TOOL}, query {place}")
    values = []
    for key in ("startComputeMs", "latencyMs", "computeMs"):
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_MS:
            raise MeasureError(f"expected {key} from 0, got {str(value)[:40]!r}", where=f"{TOOL}, query {place}")
        values.append(float(value))
    query = Query(*values)
    if query.latency_ms <= 0:
        raise MeasureError("expected a latency above 0 ms, got 0", where=f"{TOOL}, query {place}")
    return query


def _settings(text: str) -> dict[str, Any]:
    names = {"Spin-wait": "spin_wait", "CUDA Graph": "cuda_graph", "Data transfers": "data_transfers"}
    found: dict[str, Any] = {}
    for name, value in SETTING.findall(text):
        word = value.strip()
        if name in names and word in ("Enabled", "Disabled"):
            found[names[name]] = word == "Enabled"
        elif name == "Inference Streams" and word.isascii() and word.isdigit():
            found["streams"] = int(word)
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no time")
