"""The worker's request ``scenario``: the open file under one pattern of load. Python >= 3.8.

Streams are opened and warmed before the first query, feeds are those of the timed blocks, and nothing else runs.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from typing import Any, Dict, List

from edgewise.bench.agent import scenarios
from edgewise.deploy import runtimes
from edgewise.errors import MeasureError

WARM_RUNS = 3
WARM_S = 0.2
MAX_QUERIES = 200000  # of one run: what is kept raw must stay within a reply


def do_scenario(state: Any, request: Dict[str, Any]) -> Dict[str, Any]:
    """Run one pattern of load; every latency in ns.

    Asked with ``kind``, ``count`` (queries), ``streams``, ``max_s``, and in multi_stream ``runs`` a query, in server
    ``rate``, ``seed``, ``patience_s``, ``budget_ns`` and ``allowed``, as ``bench.agent.scenarios`` has them.
    """
    if not 1 <= request["count"] <= MAX_QUERIES:
        raise MeasureError("expected 1 to %d queries, got %r" % (MAX_QUERIES, request["count"]), where="count")
    runs = [_feeding(session, state.feeds) for session in _sessions(state, request["streams"])]
    _warm(runs)
    usage, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time_ns()
    gc.collect()
    gc.disable()
    try:
        if request.get("engine", "edgewise") == "loadgen":
            from edgewise.bench.agent import loadgen

            reply, outcome = loadgen.run(runs, request)
        else:
            outcome = _own(runs, request)
            reply = {"engine": "edgewise"}
    finally:
        gc.enable()
    cpu = time.process_time_ns() - cpu
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - usage.ru_nivcsw
    wakes = sorted(outcome.wakes_ns)
    reply.update(
        latencies_ns=outcome.latencies_ns,
        duration_ns=outcome.duration_ns,
        stopped=outcome.stopped,
        process_cpu_ns=cpu,
        nivcsw=switches,
        slept=len(wakes),
    )
    if wakes:
        reply.update(wake_p50_ns=wakes[len(wakes) // 2], wake_p99_ns=wakes[int(len(wakes) * 0.99)])
    return reply


def _own(runs: List[scenarios.Run], request: Dict[str, Any]) -> scenarios.Outcome:
    count, limit = request["count"], int(request["max_s"] * 1e9)
    kind = request["kind"]
    if kind in ("single_stream", "offline", "sweep"):
        return scenarios.closed_loop(runs, count, limit)
    if kind == "multi_stream":
        return scenarios.multi_stream(runs, count, request["runs"], limit)
    if kind == "server":
        arrivals = scenarios.poisson_arrivals(request["rate"], count, request["seed"])
        _sharp_timer()
        patience, budget = int(request["patience_s"] * 1e9), request.get("budget_ns")
        return scenarios.server(runs, arrivals, limit, patience, budget, request.get("allowed", 0))
    raise MeasureError("no scenario %r" % kind, where="kind")


def _sessions(state: Any, count: int) -> List[runtimes.Session]:
    """``count`` sessions of the open file; those that are missing are opened, and ``close`` closes them."""
    first = state.opened()
    while 1 + len(state.streams) < count:
        state.streams.append(first.stream())
    return [first, *state.streams][:count]


def _feeding(session: runtimes.Session, feeds: List[Dict[str, Any]]) -> scenarios.Run:
    run, count = session.run, len(feeds)
    return lambda turn: run(feeds[turn % count])


def _warm(runs: List[scenarios.Run]) -> None:
    """Let all streams run at once, untimed: each has buffers and threads of its own to wake."""

    def loop(stream: int) -> None:
        end, turn = time.perf_counter() + WARM_S, 0
        while turn < WARM_RUNS or time.perf_counter() < end:
            runs[stream](turn)
            turn += 1

    scenarios.in_streams(len(runs), loop, scenarios.Board(0), time.perf_counter_ns)


def _sharp_timer() -> None:
    """Let this thread and those it starts wake when they asked to: Linux else adds 50 microseconds."""
    if sys.platform == "linux":
        pr_set_timerslack = 29
        ctypes.CDLL(None).prctl(pr_set_timerslack, 1)
