"""The same scenarios by MLPerf's own LoadGen (``pip install mlcommons-loadgen``; x86_64 alone). Python >= 3.8.

What LoadGen calls a sample is one inference here, a batch. It keeps raw latencies only in its trace, a file of about
600 bytes a query, so a run has a limit. It knows no warm-up: streams are warm when it starts.
"""

from __future__ import annotations

import json
import os
import queue
import re
import tempfile
import threading
import time
from typing import Any, Dict, List, Tuple

from edgewise.bench.agent.scenarios import Outcome, Run
from edgewise.errors import MeasureError, RuntimeMissing

MAX_QUERIES = 50000
SAMPLES = 1024  # indices that LoadGen draws from; which one it draws chooses the feed
SAMPLE = re.compile(r'\{"name":"Sample".*"ph":"b",.*"query_seq":(\d+),.*"complete_ns":(\d+)')
NAMES = {"single_stream": "SingleStream", "multi_stream": "MultiStream", "server": "Server", "offline": "Offline"}


def run(runs: List[Run], request: Dict[str, Any]) -> Tuple[Dict[str, Any], Outcome]:
    """Let LoadGen send ``request["count"]`` queries to the streams; what it said, and the latencies it took.

    Raises:
        RuntimeMissing: LoadGen isn't installed.
        MeasureError: more queries than its trace may hold, or a scenario it doesn't know.
    """
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise RuntimeMissing(
            "engine loadgen: mlperf_loadgen can't be imported (%s)" % error,
            hint="pip install mlcommons-loadgen (x86_64, Python 3.8 to 3.13), or leave the engine at edgewise",
        ) from error
    if request["kind"] not in NAMES or request["count"] > MAX_QUERIES:
        raise MeasureError(
            "expected one of %s with at most %d queries, got %s with %d"
            % (", ".join(NAMES), MAX_QUERIES, request["kind"], request["count"]),
            where="engine loadgen",
        )
    # While the next query waits for the last one's answer, one stream needs no thread of its own.
    inline = len(runs) == 1 and request["kind"] in ("single_stream", "multi_stream")
    sut = _Sut(runs, mlperf_loadgen, inline)
    handle = mlperf_loadgen.ConstructSUT(sut.issue, _nothing)
    library = mlperf_loadgen.ConstructQSL(SAMPLES, SAMPLES, _nothing, _nothing)
    try:
        with tempfile.TemporaryDirectory(prefix="edgewise-loadgen-") as folder:
            log = mlperf_loadgen.LogSettings()
            log.log_output.outdir = folder
            log.log_output.copy_summary_to_stdout = False
            log.enable_trace = True
            # An audit.config in the current directory would change the test: name one that isn't there.
            audit = os.path.join(folder, "audit.config")
            mlperf_loadgen.StartTestWithLogSettings(handle, library, _settings(mlperf_loadgen, request), log, audit)
            sut.end()
            said, latencies = _detail(folder), _latencies(folder)
    finally:
        sut.end()
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(handle)
    if sut.errors:
        raise sut.errors[0]
    stopped, asked = "", 1 if request["kind"] == "offline" else request["count"]
    if len(latencies) < asked:
        stopped = "LoadGen ended after %d of %d queries" % (len(latencies), asked)
    outcome = Outcome(latencies, [], sut.last - sut.first, [], stopped)
    if request["kind"] == "offline":
        # One query with all samples: what the host counts are its inferences.
        outcome = outcome._replace(latencies_ns=latencies * request["count"], duration_ns=latencies[0])
    return {"engine": "loadgen", "loadgen": said}, outcome


class _Sut:
    """LoadGen's system under test: a queue that the streams take from, or the calling thread where one is enough."""

    def __init__(self, runs: List[Run], loadgen: Any, inline: bool) -> None:
        self._runs = runs
        self._loadgen = loadgen
        self._queue: queue.Queue[Any] = queue.Queue()
        self._threads: List[threading.Thread] = []
        self.errors: List[BaseException] = []
        self.first = self.last = 0
        for each in [] if inline else runs:
            thread = threading.Thread(target=self._take, args=(each,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def issue(self, queries: Any) -> None:
        """LoadGen's callback."""
        self.first = self.first or time.perf_counter_ns()
        for query in queries:
            if self._threads:
                self._queue.put((query.id, query.index))
            else:
                self._answer(self._runs[0], query.id, query.index)

    def end(self) -> None:
        """Let the streams end."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _take(self, each: Run) -> None:
        while True:
            taken = self._queue.get()
            if taken is None:
                return
            self._answer(each, *taken)

    def _answer(self, each: Run, number: int, index: int) -> None:
        try:
            each(index)
        # LoadGen waits for an answer to each query: it gets one, and the error is raised when it is done.
        except Exception as error:
            self.errors.append(error)
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(number, 0, 0)])
        self.last = time.perf_counter_ns()


def _settings(loadgen: Any, request: Dict[str, Any]) -> Any:
    kind, count = request["kind"], request["count"]
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, NAMES[kind])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = 0
    settings.max_duration_ms = int(request["max_s"] * 1000)
    settings.min_query_count = settings.max_query_count = count
    # It makes queries beforehand, by what it expects: expecting them to take no time makes enough.
    if kind == "single_stream":
        settings.single_stream_expected_latency_ns = max(1, request["expected_ns"])
    elif kind == "multi_stream":
        settings.multi_stream_samples_per_query = request["runs"]
        settings.multi_stream_expected_latency_ns = max(1, request["expected_ns"])
    elif kind == "offline":
        settings.offline_expected_qps = 1
    else:
        settings.server_target_qps = request["rate"]
        settings.server_target_latency_ns = request["budget_ns"]
        settings.server_target_latency_percentile = 0.99
        seed, repeat = request["seed"]
        settings.schedule_rng_seed = (seed * 1000003 + repeat) % 2**31 + 1
    return settings


def _detail(folder: str) -> Dict[str, Any]:
    """What LoadGen reports of its run: results, early-stopping estimates, version, errors and warnings."""
    found: Dict[str, Any] = {}
    with open(os.path.join(folder, "mlperf_log_detail.txt"), encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(":::MLLOG "):
                entry = json.loads(line[len(":::MLLOG ") :])
                if entry["key"].startswith(("result_", "early_stopping", "loadgen_version", "num_")):
                    found[entry["key"]] = entry["value"]
    return found


def _latencies(folder: str) -> List[int]:
    """Each query's latency in ns, in order: from when it was due to when the last of its samples was answered."""
    found: Dict[int, int] = {}
    # Line by line: some of its lines are no JSON.
    with open(os.path.join(folder, "mlperf_log_trace.json"), encoding="utf-8") as lines:
        for line in lines:
            event = SAMPLE.match(line)
            if event:
                query, took = int(event.group(1)), int(event.group(2))
                found[query] = max(found.get(query, 0), took)
    return [found[number] for number in sorted(found)]


def _nothing(*_: Any) -> None:
    """LoadGen wants to be called back where there is nothing to do."""
