"""Time TensorRT engines with ``trtexec``, for devices where TensorRT's Python isn't installed: run it on the device.

Each launch is a fresh process that writes every query's time (``--exportTimes``), so percentiles and intervals come
from raw samples as everywhere else. TensorRT 11 turned trtexec's defaults round (CUDA graphs and spinning on, copies
out): each setting is passed by the version that was found, and read back from the log.

Never run on a Jetson by its authors: tested with a ``trtexec`` that plays transcripts.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.parsers.text import last_words
from edgewise.bench.parsers.trtexec import Query, TrtexecLog, trtexec_log, trtexec_times
from edgewise.bench.stats import Interval, bootstrap_percentiles
from edgewise.errors import DeviceError, MeasureError, RuntimeMissing
from edgewise.progress import Tick, silent

OLDEST = (10, 3, 0)
GRACE_S = 300.0
BLOCK_MS = 50.0
# What to pass for off and on. Where a version has no word for it, its default is that, and the log must say so.
FLAGS: dict[str, tuple[tuple[str | None, str | None], tuple[str | None, str | None]]] = {
    # setting: (off, on) before TensorRT 11, (off, on) from it on
    "cuda_graph": ((None, "--useCudaGraph"), ("--noCudaGraph", None)),
    "spin_wait": ((None, "--useSpinWait"), ("--noSpinWait", None)),
    "data_transfers": (("--noDataTransfers", None), (None, "--includeDataTransfers")),
}


@dataclass(frozen=True)
class Settings:
    """How trtexec is to run, whatever its version's defaults."""

    cuda_graph: bool = False
    spin_wait: bool = False
    data_transfers: bool = True
    streams: int = 1
    seconds: float = 3.0
    warmup_ms: int = 500


@dataclass(frozen=True)
class EngineResult:
    """One engine: each launch's latencies in ns, in order, by block; what the tool said of itself."""

    name: str
    path: str
    size_bytes: int
    version: tuple[int, int, int] | None
    launches: tuple[tuple[tuple[int, ...], ...], ...]
    settings: dict[str, Any]
    qps: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()
    error: str | None = None

    def percentiles_ms(self, quantiles: Sequence[float] = (0.5, 0.9, 0.99)) -> list[Interval | None]:
        """Each quantile with its 95 % interval; None below its floor."""
        if not self.launches:
            return [None for _ in quantiles]
        samples: list[list[NDArray[np.float64]]] = [
            [np.array(block, dtype=np.float64) for block in launch] for launch in self.launches
        ]
        found = bootstrap_percentiles(samples, quantiles)
        return [one and Interval(one.value / 1e6, one.low / 1e6, one.high / 1e6) for one in found]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def trtexec_argv(tool: str, version: tuple[int, int, int], engine: Path, times: Path, settings: Settings) -> list[str]:
    """The command line for this version of trtexec, every setting that it has a word for said.

    Raises:
        MeasureError: older than ``OLDEST``.
    """
    if version < OLDEST:
        raise MeasureError(
            f"expected TensorRT {'.'.join(map(str, OLDEST))} or newer, got {'.'.join(map(str, version))}", where=tool
        )
    argv = [
        tool,
        f"--loadEngine={engine}",
        f"--exportTimes={times}",
        f"--duration={settings.seconds:g}",
        f"--warmUp={settings.warmup_ms}",
        "--iterations=10",
        f"--infStreams={settings.streams}",
        "--percentile=50,90,99",
    ]
    for name, by_version in FLAGS.items():
        word = by_version[version >= (11,)][bool(getattr(settings, name))]
        if word is not None:
            argv.append(word)
    return argv


def measure_engines(
    engines: Sequence[Path],
    tool: str,
    work: Path,
    *,
    settings: Settings | None = None,
    launches: int = 3,
    seed: int = 0,
    tick: Tick = silent,
) -> tuple[EngineResult, ...]:
    """Measure ``engines`` here with the ``trtexec`` called ``tool``; its traces stay in ``work``.

    Raises:
        RuntimeMissing: no such tool.
        DeviceError: it can't be started.
        MeasureError: too old, or not one engine could be measured.
    """
    asked = settings or Settings()
    version = trtexec_log(_run([tool, "--help"], GRACE_S)[1]).version
    work.mkdir(parents=True, exist_ok=True)
    found: dict[Path, list[tuple[TrtexecLog, tuple[Query, ...]]]] = {engine: [] for engine in engines}
    failed: dict[Path, str] = {}
    for turn in range(launches):
        order = np.random.default_rng([seed, turn]).permutation(len(engines))
        for step, place in enumerate(order):
            engine = engines[place]
            if engine not in failed:
                try:
                    found[engine].append(_launch(tool, version, engine, work / f"{place}-{turn}.json", asked))
                except MeasureError as error:
                    failed[engine] = str(error)
            tick(
                turn * len(engines) + step + 1, launches * len(engines), f"{engine.name}: launch {turn + 1}/{launches}"
            )
    if not any(found.values()):
        said = "\n  ".join(f"{engine.name}: {why}" for engine, why in failed.items())
        raise MeasureError(f"not one engine could be measured:\n  {said}", where=tool)
    return tuple(_result(engine, found[engine], asked, failed.get(engine)) for engine in engines)


def blocks_of(queries: Sequence[Query], block_ms: float = BLOCK_MS) -> tuple[tuple[int, ...], ...]:
    """Latencies in ns, by the stretch of ``block_ms`` in which each query began to compute."""
    found: dict[int, list[int]] = {}
    for query in queries:
        place = int((query.start_ms - queries[0].start_ms) // block_ms)
        found.setdefault(place, []).append(max(1, round(query.latency_ms * 1e6)))
    return tuple(tuple(found[place]) for place in sorted(found))


def _launch(
    tool: str, version: tuple[int, int, int], engine: Path, times: Path, settings: Settings
) -> tuple[TrtexecLog, tuple[Query, ...]]:
    times.unlink(missing_ok=True)
    code, text = _run(trtexec_argv(tool, version, engine, times, settings), settings.seconds + GRACE_S)
    log = trtexec_log(text)
    if code != 0 or not log.passed:
        raise MeasureError(f"trtexec failed with exit status {code}; {last_words(text)}", where=engine.name)
    try:
        trace = times.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise MeasureError(f"trtexec wrote no times: {error}", where=engine.name) from error
    return log, trtexec_times(trace)


def _result(
    engine: Path, runs: Sequence[tuple[TrtexecLog, tuple[Query, ...]]], asked: Settings, error: str | None
) -> EngineResult:
    said = runs[0][0].settings if runs else {}
    wanted = {name: getattr(asked, name) for name in ("cuda_graph", "spin_wait", "data_transfers", "streams")}
    flags = {
        "unstable": any(log.unstable_percent is not None for log, _ in runs),
        "single_launch": len(runs) == 1,
        # A setting that the log doesn't mention may be at whatever default: that isn't honoured either.
        "setting_not_honoured": any(log.settings.get(name) != want for log, _ in runs for name, want in wanted.items()),
    }
    return EngineResult(
        name=engine.name,
        path=str(engine),
        size_bytes=engine.stat().st_size if engine.is_file() else 0,
        version=runs[0][0].version if runs else None,
        launches=tuple(blocks_of(queries) for _, queries in runs),
        settings=said,
        qps=tuple(log.qps for log, _ in runs if log.qps is not None),
        flags=tuple(name for name, is_so in flags.items() if is_so),
        error=error,
    )


def _run(argv: Sequence[str], limit_s: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s
        )
    except FileNotFoundError as error:
        raise RuntimeMissing(
            "no such tool", where=argv[0], hint="on a Jetson it is /usr/src/tensorrt/bin/trtexec"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"no end within {limit_s:g} s", where=argv[0]) from error
    except OSError as error:
        raise DeviceError(f"can't be started: {error}", where=argv[0]) from error
    return done.returncode, done.stdout.decode("utf-8", "replace")
