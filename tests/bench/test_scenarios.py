"""Scenarios from the host's side: real files in real workers, and a device whose latency is a plain curve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgewise.bench import scenario_runs
from edgewise.bench.agent import scenarios as agent
from edgewise.bench.config import Bench
from edgewise.bench.devices.local import LOCAL_DEVICE
from edgewise.bench.process import PROTOCOL
from edgewise.bench.record import scenario_from_json
from edgewise.bench.scenario_config import MultiStream, Offline, Scenario, Server, SingleStream, Sweep
from edgewise.bench.scenarios import Loaded, check_scenarios, run_scenarios
from edgewise.bench_scenarios import asked_scenarios
from edgewise.errors import MeasureError

MS = 1_000_000
QUICK: dict[str, Any] = {"repeats": 2, "seconds": 0.02, "min_queries": 8}


class Curve:
    """A device in virtual time: an inference takes ``service_ms``, with so many streams as it has ``cores`` for."""

    name = "curve"

    def __init__(self, service_ms: float = 10.0, cores: int = 1, gain: Callable[[int], float] | None = None) -> None:
        self.service = round(service_ms * MS)
        self.cores = cores
        self.gain = gain or (lambda streams: min(streams, cores))
        self.opened = 0
        self.asked: list[dict[str, Any]] = []

    def cpus(self) -> int:
        return self.cores

    def worker(self, file: str, threads: int) -> Any:
        self.opened += 1
        return CurveWorker(self, file)


class CurveWorker:
    def __init__(self, curve: Curve, file: str) -> None:
        self.curve, self.file = curve, file

    def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
        self.curve.asked.append({"do": do, **request})
        if do == "import":
            return {"type": do, "protocol": PROTOCOL}
        if do == "load":
            return {"settings": {"threads": request["threads"], "streams": request["streams"], "batch": 1}}
        if do == "warmup":
            return {"samples_ns": [self.curve.service] * 8}
        return self._load(request) if do == "scenario" else {}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        now = [0]

        def run(turn: int) -> None:
            now[0] += self.curve.service

        def sleep(seconds: float) -> None:
            now[0] += max(1, round(seconds * 1e9))

        limit = int(request["max_s"] * 1e9)
        if request["kind"] == "server":
            arrivals = agent.poisson_arrivals(request["rate"], request["count"], request["seed"])
            patience = int(request["patience_s"] * 1e9)
            budget = request["budget_ns"], request["allowed"]
            found = agent.server([run], arrivals, limit, patience, *budget, clock=lambda: now[0], sleep=sleep)
        else:
            found = agent.closed_loop([run], request["count"], limit, lambda: now[0])
        took = found.duration_ns / self.curve.gain(request["streams"]) if request["kind"] != "server" else now[0]
        return {"latencies_ns": found.latencies_ns, "duration_ns": int(took), "stopped": found.stopped}

    def kill(self) -> None: ...

    def close(self) -> None: ...


def on_curve(curve: Curve, *scenarios: Scenario) -> Any:
    asked = {"path": "x", "inputs": "y", "threads": 1, "batch": 1, "precision": "float32"}
    return run_scenarios(Loaded("x", "onnxruntime", asked, curve), scenarios)  # type: ignore[arg-type]


def largest_p99_rate(service_s: float, budget_s: float, seed: list[int]) -> float:
    """The largest of many rates whose queue holds the budget; its waits are how far a random walk is above its lowest
    point so far (Lindley 1952)."""
    best = 0.0
    for rate in np.geomspace(1, 1 / service_s, 1500):
        n = max(662, int(np.ceil(rate)))
        arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))
        walk = np.cumsum(np.concatenate([[0.0], service_s - np.diff(arrivals)]))
        latencies = walk - np.minimum.accumulate(walk) + service_s
        if (latencies > budget_s + 1e-9).sum() <= allowed(n):
            best = float(rate)
    return best


def allowed(n: int) -> int:
    """The most of ``n`` that may be over p99, from the binomial distribution itself."""
    from scipy.stats import binom

    return int((binom.cdf(np.arange(n), n, 0.01) <= 0.01).sum()) - 1


@pytest.mark.parametrize("budget_ms", [25.0, 60.0])
def test_the_servers_rate_is_the_largest_that_holds_the_budget(budget_ms: float) -> None:
    server = Server(p99_ms=budget_ms, repeats=1, seconds=1, min_queries=662, tolerance=0.01)
    (found,) = on_curve(Curve(10.0), server)
    truth = largest_p99_rate(0.010, budget_ms / 1e3, [0, 0])
    assert found.valid
    assert found.qps == pytest.approx(truth, rel=0.02)
    assert found.p99_upper_ns <= budget_ms * MS
    assert (found.qps_low, found.qps_high) == (None, None)
    assert found.target_qps == found.qps


def test_repeats_draw_other_arrivals_and_give_the_rate_an_interval() -> None:
    curve = Curve(10.0)
    (found,) = on_curve(curve, Server(p99_ms=40, repeats=4, seconds=1))
    assert curve.opened == 4
    assert found.qps_low < found.qps < found.qps_high
    assert len(found.repeat_queries) == 4
    assert sum(found.repeat_queries) == found.queries == len(found.latencies_ns)
    seeds = {tuple(one["seed"]) for one in curve.asked if "seed" in one}
    assert seeds == {(0, 0), (0, 1), (0, 2), (0, 3)}


def test_no_rate_holds_a_budget_below_one_inference() -> None:
    (found,) = on_curve(Curve(10.0), Server(p99_ms=9, repeats=2, seconds=1))
    assert not found.valid
    assert "no rate keeps p99 within 9 ms: over the budget: 2 of 662 queries" in found.note


def test_one_rate_is_judged_on_all_its_queries() -> None:
    (good,) = on_curve(Curve(10.0), Server(p99_ms=60, qps=50, repeats=2, seconds=1))
    assert good.valid
    assert good.target_qps == 50
    assert good.qps == pytest.approx(50, rel=0.1)
    (slow,) = on_curve(Curve(10.0), Server(p99_ms=15, qps=50, repeats=2, seconds=1))
    assert not slow.valid
    assert slow.queries == 1324
    assert "over the budget of 15 ms" in slow.note
    (late,) = on_curve(Curve(10.0), Server(p99_ms=15, qps=300, repeats=2, seconds=1))
    assert not late.valid
    assert late.queries < 1324
    assert "can't keep up" in late.note
    assert "and so in 1 more repeats" in late.note


def test_offline_is_samples_by_time_of_one_window() -> None:
    (found,) = on_curve(Curve(10.0, cores=2), Offline(streams=2, seconds=1, repeats=3))
    assert found.qps == pytest.approx(200)
    assert (found.queries, found.samples_a_query, found.repeat_queries) == (3, 200, (1, 1, 1))
    assert found.latencies_ns == (1000 * MS,) * 3
    assert found.duration_ns == 3000 * MS


def test_a_sweep_ends_where_more_in_flight_gains_nothing() -> None:
    found = on_curve(Curve(10.0, cores=8, gain=lambda n: {1: 1, 2: 1.8, 4: 1.85, 8: 8}[n]), Sweep(repeats=2, seconds=1))
    assert [(one.name, one.in_flight) for one in found] == [("sweep x1", 1), ("sweep x2", 2), ("sweep x4", 4)]
    assert [one.qps for one in found] == pytest.approx([100, 180, 185], rel=0.01)
    assert found[-1].note == "4 in flight gained 2.8 %: take 2"


def test_a_sweep_ends_over_its_p99() -> None:
    found = on_curve(Curve(10.0, cores=4), Sweep(repeats=2, seconds=10, p99_ms=9))
    assert len(found) == 1
    assert "did not hold" in found[0].note


def test_a_sweep_ends_where_its_p99_cannot_be_told() -> None:
    (found,) = on_curve(Curve(10.0, cores=4), Sweep(repeats=2, seconds=1, p99_ms=50))
    assert found.p99_ns is None
    assert "it needs 662: raise seconds" in found.note


def test_a_run_over_its_time_does_not_count() -> None:
    (found,) = on_curve(Curve(10.0), SingleStream(max_seconds=0.5, min_queries=1000, repeats=1))
    assert not found.valid
    assert found.note == "ended after 0.5 s with 51 of 1000 queries"
    assert found.queries == 51


@pytest.mark.parametrize(("key", "lie"), [("threads", 4), ("streams", 7), ("batch", 2), ("precision", "bfloat16")])
def test_a_setting_that_is_not_honoured_is_no_scenario(key: str, lie: Any) -> None:
    curve = Curve()

    class Liar(CurveWorker):
        def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
            told = super().ask(do, limit_s=limit_s, **request)
            return {"settings": {**told["settings"], key: lie}} if do == "load" else told

    curve.worker = lambda file, threads: Liar(curve, file)  # type: ignore[method-assign]
    (found,) = on_curve(curve, SingleStream(repeats=1, seconds=1))
    assert not found.valid
    assert f"asked for {key}" in found.note
    assert f"the runtime says {lie}" in found.note


def test_one_scenario_that_fails_leaves_the_others() -> None:
    curve = Curve()

    class Broken(CurveWorker):
        def ask(self, do: str, *, limit_s: float, **request: Any) -> dict[str, Any]:
            if do == "scenario" and request["kind"] == "offline":
                raise MeasureError("the process died", where=self.file)
            return super().ask(do, limit_s=limit_s, **request)

    curve.worker = lambda file, threads: Broken(curve, file)  # type: ignore[method-assign]
    offline, single = on_curve(curve, Offline(repeats=1), SingleStream(repeats=1, seconds=1))
    assert (offline.valid, offline.note, offline.qps) == (False, "x: the process died", None)
    assert single.valid
    assert single.p50_ns == 10 * MS


@pytest.mark.parametrize(
    ("scenario", "batch", "message"),
    [
        (Offline(streams=3), 1, "3 streams with threads: 2 need 6 CPUs, there are 4"),
        (Sweep(max_streams=3), 1, "3 streams with threads: 2 need 6 CPUs"),
        (MultiStream(samples_a_query=7), 2, "7 samples is no whole number of batches of 2"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(scenario: Scenario, batch: int, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        check_scenarios([scenario], ["onnxruntime"], 2, batch, 4)


def test_a_gpu_has_more_streams_than_the_host_has_cpus() -> None:
    check_scenarios([Offline(streams=8)], ["tensorrt"], 1, 1, 2)


def test_rates_have_students_interval() -> None:
    from scipy.stats import ttest_1samp

    rates = [101.0, 99.0, 104.0, 98.0]
    value, low, high = scenario_runs.rate_interval(rates)
    truth = ttest_1samp(rates, 0).confidence_interval(0.95)
    assert (value, low, high) == pytest.approx((np.mean(rates), truth.low, truth.high))
    assert scenario_runs.rate_interval([50.0, 50.0, 50.0], 0.03) == pytest.approx((50, 48.5, 51.5))
    assert scenario_runs.rate_interval([50.0], 0.03) == (50, None, None)


def test_two_scenarios_need_two_names() -> None:
    with pytest.raises(ValidationError, match="two are called 'offline'"):
        Bench(scenarios=[Offline(), Offline(streams=2)])
    assert len(Bench(scenarios=[Offline(), Offline(name="two", streams=2)]).scenarios) == 2


@pytest.fixture
def loaded(onnx_file: Callable[..., Path], tmp_path: Path) -> Loaded:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.random.default_rng(0).normal(size=(50, 3, 4, 4)).astype(np.float32))
    path = str(onnx_file("small.onnx", 8))
    asked = {"path": path, "inputs": str(inputs), "threads": 1, "batch": 2, "precision": "float32"}
    return Loaded("small", "onnxruntime", asked, LOCAL_DEVICE, warmup_s=0.01)


def test_a_real_file_runs_all_scenarios_and_goes_to_json_and_back(loaded: Loaded) -> None:
    scenarios: list[Scenario] = [
        SingleStream(**QUICK),
        MultiStream(**QUICK, samples_a_query=6),
        Offline(**QUICK),
        Sweep(**QUICK, max_streams=1),
        Server(p99_ms=60_000, qps=5000, repeats=1, seconds=0.02),
    ]
    found = run_scenarios(loaded, scenarios)
    assert [one.kind for one in found] == ["single_stream", "multi_stream", "offline", "sweep", "server"]
    for one in found:
        assert one.valid, one.note
        assert len(one.latencies_ns) == one.queries == sum(one.repeat_queries)
        assert min(one.latencies_ns) > 0
        assert one.qps is not None
        assert one.settings["streams"] == 1
        assert one.settings["streams_by"] == "calls into one session"
        assert scenario_from_json(asdict(one)) == one
    assert [one.samples_a_query for one in found[:2]] == [2, 6]
    assert found[4].queries == 662


def test_two_streams_of_a_real_file(loaded: Loaded) -> None:
    if LOCAL_DEVICE.cpus() < 2:
        pytest.skip("one CPU")
    (found,) = run_scenarios(loaded, [MultiStream(**QUICK, streams=2)])
    assert found.valid, found.note
    assert (found.in_flight, found.settings["streams"]) == (2, 2)


def test_loadgen_that_is_missing_is_said_with_how_to_get_it(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from edgewise.bench.agent import loadgen
    from edgewise.errors import RuntimeMissing

    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(RuntimeMissing, match="pip install mlcommons-loadgen"):
        loadgen.run([], {"kind": "offline", "count": 1})


def test_loadgen_drives_the_same_worker(loaded: Loaded) -> None:
    pytest.importorskip("mlperf_loadgen", reason="pip install mlcommons-loadgen")
    server = Server(engine="loadgen", p99_ms=60_000, qps=5000, repeats=1, seconds=0.02)
    found = run_scenarios(loaded, [SingleStream(**QUICK, engine="loadgen"), server])
    for one in found:
        assert one.valid, one.note
        assert one.engine == "loadgen"
        assert one.settings["loadgen"]["result_query_count"] == one.repeat_queries[-1]


def test_options_go_to_the_scenarios_that_know_them() -> None:
    asked = asked_scenarios(["server", "single-stream"], {"p99_ms": 10.0, "streams": 2, "qps": None, "engine": None})
    assert asked == [{"kind": "server", "p99_ms": 10.0, "streams": 2}, {"kind": "single_stream"}]
    assert asked_scenarios([], {"p99_ms": None}) is None


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (["fast"], {}, "--scenario: expected one of single_stream, .*, got 'fast'"),
        (["server"], {}, "--p99-ms: server: field required"),
        (["offline"], {"p99_ms": 10.0}, "--p99-ms: no scenario asked for takes it"),
        ([], {"streams": 2}, "--streams: no scenario asked for takes it"),
        (["offline"], {"engine": "mine"}, "--engine: offline: input should be 'edgewise' or 'loadgen'"),
        (["server"], {"p99_ms": -1.0}, "--p99-ms: server: input should be greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(kinds: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        asked_scenarios(kinds, options)
