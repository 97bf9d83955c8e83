"""How queries come to a file: MLPerf's scenarios (arXiv 1911.02549) over one or more streams. Python >= 3.8.

A stream is a session of the open file with a thread of its own. Streams take queries from one list in order, so many
streams are one queue with as many servers. Clock and sleep are arguments: what is tested runs in virtual time.

Times are whole ns. In ``server`` a latency begins when its query was due, not when a stream was free to take it:
otherwise a slow answer would hide the wait of those behind it (coordinated omission).
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

Run = Callable[[int], Any]  # one inference; the number chooses the sample
Clock = Callable[[], int]  # ns
Sleep = Callable[[float], Any]  # seconds


class Outcome(NamedTuple):
    """What a run gave. ``ends_ns`` count from its start, in the order of queries; a query that never ran has no entry.

    ``wakes_ns``: how late a stream woke that slept until a query was due. ``stopped`` says why it ended early, else "".
    """

    latencies_ns: List[int]
    ends_ns: List[int]
    duration_ns: int
    wakes_ns: List[int]
    stopped: str


class Board:
    """What the streams of one run share: who takes which query, what came of it, and whether to stop."""

    def __init__(self, count: int) -> None:
        self.turns: Iterator[int] = iter(range(count))
        self.latencies = [-1] * count
        self.ends = [-1] * count
        self.wakes: List[int] = []
        self.stopped = ""
        self.opened = 0

    def outcome(self, closed: int) -> Outcome:
        """All that was answered, in the order of queries."""
        done = [i for i, latency in enumerate(self.latencies) if latency >= 0]
        return Outcome(
            [self.latencies[i] for i in done],
            [self.ends[i] - self.opened for i in done],
            closed - self.opened,
            self.wakes,
            self.stopped,
        )


def closed_loop(streams: List[Run], count: int, limit_ns: int, clock: Clock = time.perf_counter_ns) -> Outcome:
    """``count`` queries, each stream sending its next when its last is answered; a latency is that of its own run.

    With one stream this is SingleStream; the same with any number, told as samples by time, is Offline.
    """
    board = Board(count)

    def loop(stream: int) -> None:
        run, latencies, ends = streams[stream], board.latencies, board.ends
        last = board.opened + limit_ns
        # A range's iterator hands out each number once, whatever the threads.
        for turn in board.turns:
            begin = clock()
            run(turn)
            end = ends[turn] = clock()
            latencies[turn] = end - begin
            if end > last and turn + 1 < count:
                board.stopped = board.stopped or late(turn + 1, count, limit_ns)
            if board.stopped:
                return

    return in_streams(len(streams), loop, board, clock)


def multi_stream(
    streams: List[Run], queries: int, a_query: int, limit_ns: int, clock: Clock = time.perf_counter_ns
) -> Outcome:
    """``queries`` of ``a_query`` runs each, the next when all of the last are answered; a latency ends with the last.

    With more than one stream a query's runs are dealt out to them anew each time.
    """
    board = Board(queries)
    count = len(streams)
    part: Dict[str, Any] = {"turns": iter(()), "base": 0}
    issued, answered = threading.Barrier(count), threading.Barrier(count)

    def loop(stream: int) -> None:
        run = streams[stream]
        for query in range(queries):
            if stream == 0:
                if board.stopped:
                    issued.abort()
                    return
                part["turns"], begin = iter(range(query * a_query, (query + 1) * a_query)), clock()
            if count > 1:
                issued.wait()
            for turn in part["turns"]:
                run(turn)
            if count > 1:
                answered.wait()
            if stream == 0:
                end = board.ends[query] = clock()
                board.latencies[query] = end - begin
                if end > board.opened + limit_ns and query + 1 < queries:
                    board.stopped = late(query + 1, queries, limit_ns)

    return in_streams(count, loop, board, clock, (issued, answered))


def server(
    streams: List[Run],
    arrivals_ns: List[int],
    limit_ns: int,
    patience_ns: int,
    budget_ns: Optional[int] = None,
    allowed: int = 0,
    clock: Clock = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
) -> Outcome:
    """A query at each of the times ``arrivals_ns``, counted from the start; the first free stream takes the oldest.

    Args:
        streams: one run each.
        arrivals_ns: rising.
        limit_ns: the run ends here.
        patience_ns: it can't keep up once a query has waited for so long.
        budget_ns: with ``allowed``: once more latencies than that are over the budget, the rest can't mend it.
        allowed: see there.
        clock: ns.
        sleep: seconds.
    """
    board = Board(len(arrivals_ns))
    over: List[int] = []

    def loop(stream: int) -> None:
        run, latencies, ends = streams[stream], board.latencies, board.ends
        for turn in board.turns:
            if board.stopped:
                return
            due = board.opened + arrivals_ns[turn]
            now = clock()
            if now < due:
                while now < due:
                    sleep((due - now) / 1e9)
                    now = clock()
                board.wakes.append(now - due)
            elif now - due > patience_ns:
                came = int(np.searchsorted(arrivals_ns, now - board.opened, side="right"))
                waited = "the next to be run had waited %.3g ms" % ((now - due) / 1e6)
                board.stopped = "can't keep up: %d of %d queries had come, and %s" % (came, len(arrivals_ns), waited)
                return
            run(turn)
            end = ends[turn] = clock()
            latencies[turn] = end - due
            if budget_ns is not None and end - due > budget_ns:
                over.append(turn)
                if len(over) > allowed:
                    board.stopped = "over the budget: %d of %d queries took longer than %.6g ms, %d may" % (
                        len(over),
                        len(arrivals_ns),
                        budget_ns / 1e6,
                        allowed,
                    )
                    return
            if end - board.opened > limit_ns and turn + 1 < len(arrivals_ns):
                board.stopped = board.stopped or late(turn + 1, len(arrivals_ns), limit_ns)
                return

    return in_streams(len(streams), loop, board, clock)


def poisson_arrivals(rate: float, count: int, seed: int) -> List[int]:
    """When ``count`` queries come, in ns from the start: exponential gaps, ``rate`` a second on average."""
    gaps = np.random.default_rng(seed).exponential(1e9 / rate, count)
    return [int(value) for value in np.cumsum(gaps)]


def in_streams(
    count: int, loop: Callable[[int], None], board: Board, clock: Clock, barriers: Tuple[Any, ...] = ()
) -> Outcome:
    """Run ``loop`` in as many threads, all let go at once; the first error of any of them."""
    if count == 1:
        board.opened = clock()
        loop(0)
        return board.outcome(clock())
    errors: List[BaseException] = []

    def opened() -> None:
        board.opened = clock()

    start = threading.Barrier(count, action=opened)

    def body(stream: int) -> None:
        try:
            start.wait()
            loop(stream)
        except threading.BrokenBarrierError:
            pass
        # Whatever it is, it is told by the thread that started this one.
        except BaseException as error:
            errors.append(error)
            board.stopped = "a stream failed"
            for barrier in barriers:
                barrier.abort()

    threads = [threading.Thread(target=body, args=(stream,), daemon=True) for stream in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return board.outcome(max([board.opened, *board.ends]))


def late(done: int, count: int, limit_ns: int) -> str:
    """Why a run ended at its limit."""
    return "ended after %.3g s with %d of %d queries" % (limit_ns / 1e9, done, count)
