"""A file under load: MLPerf's scenarios and a sweep, each run in a fresh process of its own, nothing beside it.

SingleStream, MultiStream, Server and Offline mean what MLPerf means by them (arXiv 1911.02549). The scheduler is on the
device (``bench.agent.scenarios``); here it is decided what is run, and what follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgewise.bench import search, stats
from edgewise.bench.devices.base import Worker
from edgewise.bench.record import ScenarioResult
from edgewise.bench.scenario_config import MultiStream, Offline, Scenario, Server, SingleStream, Sweep
from edgewise.bench.scenario_runs import Loaded, Run, Taken, count_of, pooled, rate_interval, streams_of
from edgewise.errors import MeasureError
from edgewise.progress import Tick, silent

__all__ = ["Loaded", "check_scenarios", "run_scenarios"]

CAPACITY_S = 1.0
ABOVE_CAPACITY = 1.25  # a short run may look slower than the file is
PATIENCE_S = 1.0

Runs = dict[float, Run]  # by rate


def check_scenarios(
    scenarios: Sequence[Scenario], runtimes: Sequence[str], threads: int, batch: int, cpus: int
) -> None:
    """Refuse what can't be run, before anything is.

    Raises:
        MeasureError: more streams than CPUs for their threads, or a query that isn't a whole number of batches.
    """
    on_cpu = any(runtime != "tensorrt" for runtime in runtimes)
    for scenario in scenarios:
        streams = (scenario.max_streams or 1) if isinstance(scenario, Sweep) else streams_of(scenario)
        if on_cpu and streams * threads > cpus:
            raise MeasureError(
                f"{streams} streams with threads: {threads} need {streams * threads} CPUs, there are {cpus}",
                where=f"scenario {scenario.known_as}",
                hint=f"ask for at most {max(1, cpus // threads)} streams, or for fewer threads",
            )
        if isinstance(scenario, MultiStream) and scenario.samples_a_query % batch:
            raise MeasureError(
                f"a query of {scenario.samples_a_query} samples is no whole number of batches of {batch}",
                where=f"scenario {scenario.known_as}",
                hint="choose samples_a_query as a multiple of the batch",
            )


def run_scenarios(loaded: Loaded, scenarios: Sequence[Scenario], tick: Tick = silent) -> tuple[ScenarioResult, ...]:
    """Run each scenario on one file; one that fails is a result that isn't valid, and the others go on.

    A sweep gives a result for each number in flight.

    Raises:
        MeasureError: what ``check_scenarios`` refuses.
        DeviceError: the device doesn't answer any more.
    """
    check_scenarios(scenarios, [loaded.runtime], loaded.asked["threads"], loaded.batch, loaded.device.cpus())
    found: list[ScenarioResult] = []
    for number, scenario in enumerate(scenarios):
        taken = Taken(loaded, scenario)
        try:
            found += _results(taken, scenario)
        except MeasureError as error:
            found.append(taken.result([], note=str(error)))
        tick(number + 1, len(scenarios), f"{loaded.name}: {scenario.known_as}")
    return tuple(found)


def _results(taken: Taken, scenario: Scenario) -> list[ScenarioResult]:
    if isinstance(scenario, Sweep):
        return _swept(taken, scenario)
    if isinstance(scenario, Server):
        return [_searched(taken, scenario) if scenario.qps is None else _at_one_rate(taken, scenario, scenario.qps)]
    streams = streams_of(scenario)
    return [taken.result([_closed(taken, scenario, repeat, streams) for repeat in range(scenario.repeats)])]


def _closed(taken: Taken, scenario: SingleStream | MultiStream | Offline | Sweep, repeat: int, streams: int) -> Run:
    """A fresh process in which each stream sends its next query when its last is answered."""
    with taken.opened(streams) as (worker, one_ns):
        if isinstance(scenario, MultiStream):
            runs = scenario.samples_a_query // taken.loaded.batch
            expected_ns = one_ns * -(-runs // streams)
        else:
            runs, expected_ns = 1, one_ns / streams
        count = count_of(scenario.seconds * 1e9 / expected_ns, scenario.min_queries)
        return taken.ask(worker, repeat, streams, count, runs=runs, expected_ns=int(expected_ns))


def _searched(taken: Taken, scenario: Server) -> ScenarioResult:
    """The largest rate that holds, searched anew in each repeat."""
    best: list[Run] = []
    rates: list[float] = []
    for repeat in range(scenario.repeats):
        with taken.opened(scenario.streams) as (worker, one_ns):
            count = count_of(CAPACITY_S * 1e9 * scenario.streams / one_ns, 20)
            plain = taken.ask(worker, repeat, scenario.streams, count, kind="offline", engine="edgewise")
            high = ABOVE_CAPACITY * plain.qps / taken.loaded.batch
            held: Runs = {}

            def holds(
                rate: float, worker: Worker = worker, repeat: int = repeat, held: dict[float, Run] = held
            ) -> bool:
                held[rate] = _at_rate(taken, worker, scenario, repeat, rate, to_the_end=False)
                return not held[rate].stopped

            guess = rates[-1] if rates and rates[-1] < high else None
            rate = search.largest_rate(holds, high, tolerance=scenario.tolerance, guess=guess)
        if rate is None:
            return taken.result(
                best, valid=False, note=f"no rate keeps p99 within {scenario.p99_ms:g} ms: {taken.points[-1].note}"
            )
        rates.append(rate)
        best.append(held[rate])
    qps, low, high_qps = rate_interval([rate * taken.loaded.batch for rate in rates], scenario.tolerance)
    return taken.result(best, target_qps=sum(rates) / len(rates), qps=qps, qps_low=low, qps_high=high_qps)


def _at_one_rate(taken: Taken, scenario: Server, rate: float) -> ScenarioResult:
    """One rate, judged on all repeats together."""
    runs = []
    for repeat in range(scenario.repeats):
        with taken.opened(scenario.streams) as (worker, _):
            runs.append(_at_rate(taken, worker, scenario, repeat, rate, to_the_end=True))
    upper = stats.percentile_upper(pooled(runs), 0.99)
    over = upper is not None and upper > scenario.p99_ms * 1e6
    note = f"p99 may be {(upper or 0) / 1e6:.4g} ms, over the budget of {scenario.p99_ms:g} ms" if over else ""
    return taken.result(runs, target_qps=rate, valid=not over, note=note)


def _at_rate(taken: Taken, worker: Worker, scenario: Server, repeat: int, rate: float, *, to_the_end: bool) -> Run:
    """Queries at ``rate`` a second. Ends early where it can't keep up or, unless ``to_the_end``, hold the budget."""
    count = count_of(rate * scenario.seconds, scenario.min_queries)
    budget_ns = round(scenario.p99_ms * 1e6)
    run = taken.ask(
        worker,
        repeat,
        scenario.streams,
        count,
        max_s=max(scenario.max_seconds, 1.5 * count / rate),
        rate=rate,
        # One draw of gaps a repeat: a higher rate is the same arrivals closer together, so that "holds" is monotone.
        seed=[scenario.seed, repeat],
        patience_s=max(PATIENCE_S, scenario.p99_ms / 100),
        budget_ns=budget_ns,
        allowed=count if to_the_end else stats.over_allowed(count, 0.99),
    )
    upper = stats.percentile_upper(pooled([run]), 0.99)
    if to_the_end or run.stopped or (upper is not None and upper <= budget_ns):
        return run
    note = "p99 is over the budget"
    taken.points[-1] = replace(taken.points[-1], valid=False, note=note)
    return replace(run, stopped=note)


def _swept(taken: Taken, scenario: Sweep) -> list[ScenarioResult]:
    """A result for each number in flight; the last says why there are no more."""
    steps: list[ScenarioResult] = []

    def rate_at(streams: int) -> float | None:
        taken.points.clear()
        runs = [_closed(taken, scenario, repeat, streams) for repeat in range(scenario.repeats)]
        step = taken.result(runs, name=f"{scenario.known_as} x{streams}")
        steps.append(step)
        if scenario.p99_ms is None or not step.valid:
            return step.qps if step.valid else None
        if step.p99_ns is None:
            needs = f"p99 can't be told from {step.queries} queries, it needs {stats.sample_floor(0.99)}: raise seconds"
            steps[-1] = replace(step, note="; ".join(filter(None, [step.note, needs])))
            return None
        return step.qps if step.p99_ns <= scenario.p99_ms * 1e6 else None

    most = scenario.max_streams or max(1, taken.loaded.device.cpus() // taken.loaded.asked["threads"])
    best, why = search.sweep(rate_at, most, scenario.min_gain)
    steps[-1] = replace(
        steps[-1], note="; ".join(filter(None, [steps[-1].note, f"{why}: take {best}" if best else why]))
    )
    return steps
