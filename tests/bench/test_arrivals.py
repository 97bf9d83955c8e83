"""The scheduler in virtual time: no test here waits, or asks a clock what it took."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from edgewise.bench.agent.scenarios import closed_loop, multi_stream, poisson_arrivals, server

MS = 1_000_000
NEVER = 10**18


class Virtual:
    """Time that moves only when all ``threads`` sleep: then the one that wakes first goes on, alone.

    Which thread goes on is no accident of the machine, so what a run gives is a function of its arguments.
    """

    def __init__(self, threads: int) -> None:
        self.now = 0
        self._threads = threads
        self._asleep: dict[int, int] = {}
        self._seen: set[threading.Thread] = set()
        self._changed = threading.Condition()

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.spend(round(seconds * 1e9))

    def spend(self, ns: int) -> None:
        me = threading.get_ident()
        with self._changed:
            self._seen.add(threading.current_thread())
            self._asleep[me] = self.now + ns
            self._changed.notify_all()
            while True:
                ended = sum(not thread.is_alive() for thread in self._seen)
                first = min(self._asleep, key=lambda name: (self._asleep[name], name))
                if len(self._asleep) == self._threads - ended and first == me:
                    break
                self._changed.wait(0.002)
            self.now = max(self.now, self._asleep.pop(me))
            self._changed.notify_all()


def queue(arrivals: np.ndarray, service: np.ndarray, servers: int) -> np.ndarray:
    """Waits plus service of a first-come first-served queue, by the recursion of Kiefer and Wolfowitz (1955)."""
    free = [0] * servers
    latencies = []
    for due, takes in zip(arrivals, service, strict=True):
        place = free.index(min(free))
        free[place] = max(due, free[place]) + takes
        latencies.append(free[place] - due)
    return np.array(latencies)


def served(arrivals: list[int], takes: Callable[[int], int], **limits: int) -> tuple[Virtual, object]:
    time = Virtual(1)
    outcome = server(
        [lambda turn: time.spend(takes(turn))],
        arrivals,
        limits.get("limit_ns", NEVER),
        limits.get("patience_ns", NEVER),
        limits.get("budget_ns"),
        limits.get("allowed", 0),
        clock=time.clock,
        sleep=time.sleep,
    )
    return time, outcome


def test_one_server_is_the_queue_of_the_textbook() -> None:
    arrivals = poisson_arrivals(80, 5000, 1)
    _, outcome = served(arrivals, lambda turn: 10 * MS)
    assert outcome.latencies_ns == queue(np.array(arrivals), np.full(5000, 10 * MS), 1).tolist()
    assert outcome.stopped == ""


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_mean_wait_is_pollaczek_and_khinchine(load: float) -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) services."""
    arrivals = poisson_arrivals(load * 1000, 40_000, 7)
    _, outcome = served(arrivals, lambda turn: MS)
    wait = np.mean(outcome.latencies_ns) / MS - 1
    # Waits hang together over about 2 / (1 - load)^2 queries: this is 4 standard errors of the mean, generously.
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.25 if load > 0.7 else 0.1)


def test_two_servers_are_the_textbooks_queue_too() -> None:
    arrivals = poisson_arrivals(150, 120, 3)
    service = np.random.default_rng(0).integers(5 * MS, 15 * MS, 120)
    time = Virtual(2)
    run = lambda turn: time.spend(int(service[turn]))  # noqa: E731
    outcome = server([run, run], arrivals, NEVER, NEVER, clock=time.clock, sleep=time.sleep)
    assert outcome.latencies_ns == queue(np.array(arrivals), service, 2).tolist()


def test_a_latency_begins_when_its_query_was_due() -> None:
    """One answer of 100 ms makes nine others wait: a closed loop would have shown one slow query."""
    arrivals = [10 * MS * (turn + 1) for turn in range(20)]
    _, outcome = served(arrivals, lambda turn: 100 * MS if turn == 5 else MS)
    latencies = np.array(outcome.latencies_ns) / MS
    assert latencies[:5].tolist() == [1] * 5
    assert latencies[5:16].tolist() == [100 - 9 * step for step in range(11)]
    assert latencies[16:].tolist() == [1] * 4


def test_who_cannot_keep_up_is_stopped_and_says_so() -> None:
    arrivals = [MS * (turn + 1) for turn in range(10_000)]
    time, outcome = served(arrivals, lambda turn: 2 * MS, patience_ns=500 * MS)
    # Query k is due at k + 1 and taken at 1 + 2 k: it has waited k ms, so the 501st has waited too long.
    assert len(outcome.latencies_ns) == 501
    assert "can't keep up: 1003 of 10000 queries had come" in outcome.stopped
    assert time.now == 1003 * MS


def test_a_budget_that_is_lost_ends_the_run() -> None:
    arrivals = [10 * MS * (turn + 1) for turn in range(1000)]
    _, outcome = served(arrivals, lambda turn: 7 * MS if turn % 10 == 9 else MS, budget_ns=5 * MS, allowed=3)
    assert len(outcome.latencies_ns) == 40
    assert outcome.stopped == "over the budget: 4 of 1000 queries took longer than 5 ms, 3 may"


def test_a_budget_that_holds_is_told_from_all_queries() -> None:
    arrivals = [10 * MS * (turn + 1) for turn in range(100)]
    _, outcome = served(arrivals, lambda turn: 5 * MS, budget_ns=5 * MS)
    assert len(outcome.latencies_ns) == 100
    assert outcome.stopped == ""


def test_a_run_ends_at_its_limit() -> None:
    arrivals = [10 * MS * (turn + 1) for turn in range(100)]
    _, outcome = served(arrivals, lambda turn: MS, limit_ns=500 * MS)
    assert len(outcome.latencies_ns) == 50
    assert outcome.stopped == "ended after 0.5 s with 50 of 100 queries"


def test_arrivals_are_poisson() -> None:
    from scipy.stats import kstest, poisson

    gaps = np.diff([0, *poisson_arrivals(200, 20_000, 5)]) / 1e9
    assert kstest(gaps, "expon", args=(0, 1 / 200)).pvalue > 0.001
    # Counts in windows of a tenth of a second: mean and variance are one, as of no other process.
    counts = np.bincount((np.cumsum(gaps) * 10).astype(int))[:900]
    assert counts.mean() == pytest.approx(20, rel=0.03)
    assert counts.var() == pytest.approx(20, rel=0.2)
    assert poisson.cdf(counts.max(), 20) < 1 - 1e-6
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


def test_a_seed_is_a_schedule_and_a_rate_only_stretches_it() -> None:
    one, same, other = (poisson_arrivals(100, 50, seed) for seed in ([0, 1], [0, 1], [0, 2]))
    assert one == same != other
    faster = poisson_arrivals(200, 50, [0, 1])
    np.testing.assert_allclose(np.array(one) / 2, faster, atol=1)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_a_closed_loop_runs_each_query_once_and_adds_up(streams: int) -> None:
    time = Virtual(streams)
    ran: list[int] = []

    def run(turn: int) -> None:
        ran.append(turn)
        time.spend(4 * MS)

    outcome = closed_loop([run] * streams, 12, NEVER, time.clock)
    assert sorted(ran) == list(range(12))
    assert outcome.latencies_ns == [4 * MS] * 12
    assert outcome.duration_ns == 12 // streams * 4 * MS
    assert outcome.stopped == ""


def test_a_closed_loop_ends_at_its_limit() -> None:
    time = Virtual(1)
    outcome = closed_loop([lambda turn: time.spend(MS)], 100, 10 * MS, time.clock)
    assert len(outcome.latencies_ns) == 11
    assert outcome.stopped == "ended after 0.01 s with 11 of 100 queries"


def test_a_query_of_many_samples_ends_with_its_last() -> None:
    time = Virtual(1)
    ran: list[int] = []

    def run(turn: int) -> None:
        ran.append(turn)
        time.spend((turn + 1) * MS)

    outcome = multi_stream([run], 3, 4, NEVER, time.clock)
    assert ran == list(range(12))
    assert outcome.latencies_ns == [(1 + 2 + 3 + 4) * MS, (5 + 6 + 7 + 8) * MS, (9 + 10 + 11 + 12) * MS]
    assert outcome.duration_ns == sum(outcome.latencies_ns)


def test_streams_share_a_querys_samples_and_none_runs_ahead() -> None:
    """While a query isn't answered, nothing of the next may run."""
    running: list[int] = []
    lock = threading.Lock()
    seen: list[tuple[int, ...]] = []

    def run(turn: int) -> None:
        with lock:
            running.append(turn)
            seen.append(tuple(running))
        threading.Event().wait(0.0005)
        with lock:
            running.remove(turn)

    outcome = multi_stream([run, run], 10, 6, NEVER)
    assert len(outcome.latencies_ns) == 10
    assert sorted(now[-1] for now in seen) == list(range(60))
    assert all(len({turn // 6 for turn in now}) == 1 for now in seen)
    assert max(len(now) for now in seen) == 2


def test_many_samples_a_query_end_at_the_limit_in_all_streams() -> None:
    time = Virtual(1)
    outcome = multi_stream([lambda turn: time.spend(MS)], 100, 2, 9 * MS, time.clock)
    assert len(outcome.latencies_ns) == 5
    assert outcome.stopped == "ended after 0.009 s with 5 of 100 queries"
    assert multi_stream([lambda turn: None] * 2, 100, 2, -1).stopped != ""


@pytest.mark.parametrize("pattern", ["closed", "multi", "server"])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_stream_that_fails_fails_the_run(pattern: str, streams: int) -> None:
    def run(turn: int) -> None:
        if turn == 7:
            raise ValueError("out of memory")

    runs = [run] * streams
    asked: dict[str, Callable[[], object]] = {
        "closed": lambda: closed_loop(runs, 20, NEVER),
        "multi": lambda: multi_stream(runs, 5, 4, NEVER),
        "server": lambda: server(runs, [0] * 20, NEVER, NEVER),
    }
    with pytest.raises(ValueError, match="out of memory"):
        asked[pattern]()
