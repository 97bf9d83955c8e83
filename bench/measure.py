"""Measure files side by side: fresh processes, one running at a time, blocks in random order.

In each launch round every file has its own process, all alive, and only the one that is asked computes. Each round of
blocks visits the files in a new random order: a slow spell of the machine hits all files alike, and blocks of one
round make pairs. Accuracy comes from one more process a file, through the same runtime.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.bench.config import Bench
from edgewise.bench.numbers import samples_of
from edgewise.bench.process import LOCAL, PROTOCOL, Worker, started, worker_path
from edgewise.bench.provenance import provenance, usable_cpus
from edgewise.bench.record import (
    Answers,
    Block,
    FileUnderTest,
    Launch,
    Measurement,
    Phase,
    Results,
    file_stem,
    save_results,
)
from edgewise.bench.stats import bootstrap_percentiles
from edgewise.errors import DataError, MeasureError
from edgewise.progress import Tick, silent

ANSWER_BATCH = 100
# Host-side limits; generous, because a device may be slow, but never endless.
LIMIT_S = 300.0
ANSWERS_LIMIT_S = 3600.0
CONTENDED = 1.3  # wall time / CPU time of one thread; a quiet machine is near 1
DRIFT = 0.05  # last third of the blocks against the first
UNSTABLE = 0.05  # half width of the p50's interval, of the p50

Score = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


def measure(
    files: Sequence[FileUnderTest],
    inputs: Path,
    targets: NDArray[np.int64],
    ids: Sequence[str],
    config: Bench,
    out: Path,
    *,
    score: Score,
    tick: Tick = silent,
    command: Sequence[str] = LOCAL,
) -> Results:
    """Measure ``files`` and let each answer the samples; write it all below ``out``.

    Args:
        files: what to measure; names must differ.
        inputs: ``.npy``, float32 (N, C, H, W), preprocessed.
        targets: (N,).
        ids: N names of samples.
        config: threads, batch, launches, blocks, warm-up, samples to answer.
        out: folder for ``measurements.json``, ``answers/`` and ``ids.txt``.
        score: ``(outputs (n, K), targets (n,)) -> (n,)``, one value a sample.
        tick: told after each step.
        command: how to start a worker.

    Raises:
        DataError: inputs, targets and ids don't fit each other.
        MeasureError: more threads than CPUs, two files of one name, or not one file could be measured.
    """
    _check(files, inputs, targets, ids, config)
    index = _chosen(len(targets), config)
    (out / "answers").mkdir(parents=True, exist_ok=True)
    index_path = out / "index.npy"
    np.save(index_path, index)
    (out / "ids.txt").write_text("".join(f"{ids[i]}\n" for i in index), encoding="utf-8")
    progress = _Progress(tick, len(files) * (config.launches * (1 + config.blocks) + 1))
    before = provenance()

    launches: dict[str, list[Launch]] = {file.name: [] for file in files}
    failed: dict[str, str] = {}
    for number in range(config.launches):
        alive = [file for file in files if file.name not in failed]
        found, errors = _round(alive, number, inputs, config, progress, command)
        failed.update(errors)
        progress.skip((len(files) - len(alive)) * (1 + config.blocks))
        for name, launch in found.items():
            launches[name].append(launch)

    answers = {file.name: _unanswered(file, f"it could not be run: {failed.get(file.name)}") for file in files}
    runnable = [file for file in files if launches[file.name] or file.name not in failed]
    progress.skip(len(files) - len(runnable))
    # No time is taken any more, so as many answer at once as there are CPUs for.
    working = _Working()
    with ThreadPoolExecutor(max(1, usable_cpus() // config.threads)) as pool:
        try:
            replies = {
                pool.submit(_answer, file, inputs, index_path, config, out, command, working): file for file in runnable
            }
            for done in as_completed(replies):
                file = replies[done]
                answers[file.name] = _scored(file, done.result(), targets[index], out, score)
                progress.step(f"{file.name}: {len(index)} answers")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            working.stop()
            raise
    if all(answer.error for answer in answers.values()) and not any(launches.values()):
        raise MeasureError("not one file could be measured:\n  " + "\n  ".join(f"{n}: {e}" for n, e in failed.items()))

    results = Results(
        files=tuple(files),
        measurements={
            file.name: with_flags(
                Measurement(
                    file=file.name,
                    batch=config.batch,
                    threads=config.threads,
                    launches=tuple(launches[file.name]),
                    error=failed.get(file.name),
                ),
                file.runtime,
            )
            for file in files
        },
        answers=answers,
        ids="ids.txt",
        config=config.model_dump(mode="json"),
        provenance={**before, "state_after": provenance()["state"]},
        folder=out,
    )
    save_results(results)
    return results


def with_flags(measurement: Measurement, runtime: str) -> Measurement:
    """The measurement with what makes it doubtful: contended, drift, unstable, warmup_not_converged, single_launch."""
    flags = []
    launches = measurement.launches
    blocks = [block for launch in launches for block in launch.blocks]
    if blocks:
        if not all(launch.warmup_converged for launch in launches):
            flags.append("warmup_not_converged")
        # Whatever the threads, one of them computes at any time: less CPU time means that the CPU was elsewhere. With
        # more threads this misses some contention. With a GPU the clocks say nothing about each other.
        if runtime != "tensorrt":
            busy = [block.wall_ns / block.process_cpu_ns for block in blocks if block.process_cpu_ns]
            if busy and float(np.median(busy)) > CONTENDED:
                flags.append("contended")
        if abs(float(np.median([_drift(launch) for launch in launches]))) > DRIFT:
            flags.append("drift")
        (p50,) = bootstrap_percentiles(samples_of(measurement), [0.5])
        if p50 is not None and (p50.high - p50.low) / 2 > UNSTABLE * p50.value:
            flags.append("unstable")
        if len(launches) == 1:
            flags.append("single_launch")
    return replace(measurement, flags=tuple(flags))


def _round(
    files: Sequence[FileUnderTest],
    number: int,
    inputs: Path,
    config: Bench,
    progress: _Progress,
    command: Sequence[str],
) -> tuple[dict[str, Launch], dict[str, str]]:
    """One process a file, then blocks in turns; a file that fails leaves the others running."""
    random = np.random.default_rng([config.seed, number])
    errors: dict[str, str] = {}
    opened: dict[str, tuple[Worker, dict[str, Any]]] = {}
    blocks: dict[str, list[Block]] = {file.name: [] for file in files}
    with contextlib.ExitStack() as stack:
        for place in random.permutation(len(files)):
            file = files[place]
            try:
                worker = stack.enter_context(started(file.name, config.threads, command))
                opened[file.name] = worker, _open(worker, file, inputs, config)
            except MeasureError as error:
                errors[file.name] = str(error)
            progress.step(f"launch {number + 1}/{config.launches}: {file.name} warmed up")
        for turn in range(config.blocks):
            for place in random.permutation(len(files)):
                name = files[place].name
                if name in opened and name not in errors:
                    try:
                        blocks[name].append(_block(opened[name][0], turn, config))
                    except MeasureError as error:
                        errors[name] = str(error)
                progress.step(f"launch {number + 1}/{config.launches}: block {turn + 1}/{config.blocks}")
        launches = {}
        for name, (worker, start) in opened.items():
            if name not in errors:
                try:
                    launches[name] = _finish(worker, number, start, blocks[name])
                except MeasureError as error:
                    errors[name] = str(error)
    return launches, errors


def _open(worker: Worker, file: FileUnderTest, inputs: Path, config: Bench) -> dict[str, Any]:
    asked = {"path": worker_path(Path(file.path)), "inputs": worker_path(inputs), **_options(file, config)}
    imported = _import(worker, file)
    loaded = worker.ask("load", limit_s=LIMIT_S, **asked)
    _check_settings(file, loaded["settings"], config)
    first = worker.ask("first", limit_s=LIMIT_S, **asked)
    warm = worker.ask("warmup", limit_s=LIMIT_S + config.warmup_s, seconds=config.warmup_s)
    return {"import": imported, "load": loaded, "first": first, "warm": warm}


def _block(worker: Worker, turn: int, config: Bench) -> Block:
    reply = worker.ask("block", limit_s=LIMIT_S + config.block_ms / 1000, ms=config.block_ms)
    samples = tuple(int(value) for value in reply["samples_ns"])
    if not samples or min(samples) <= 0:
        raise MeasureError(f"expected times above 0 ns, got {samples[:5]}", where=worker.file)
    keys = ("wall_ns", "thread_cpu_ns", "process_cpu_ns", "nivcsw", "settle_runs")
    return Block(round=turn, samples_ns=samples, **{key: int(reply[key]) for key in keys})


def _finish(worker: Worker, number: int, start: dict[str, Any], blocks: list[Block]) -> Launch:
    closed = worker.ask("close", limit_s=LIMIT_S)
    steady = {**closed["steady"], "duration_ns": sum(block.wall_ns for block in blocks)}
    phases = {
        "import": start["import"]["phase"],
        "load": start["load"]["phase"],
        "first_inference": start["first"]["phase"],
        "warmup": start["warm"]["phase"],
        "steady": steady,
        "unload": closed["phase"],
    }
    return Launch(
        index=number,
        phases={name: Phase(**phase) for name, phase in phases.items()},
        settings=start["load"]["settings"],
        warmup_ns=tuple(start["warm"]["samples_ns"]),
        warmup_converged=start["warm"]["converged"],
        blocks=tuple(blocks),
    )


def _answer(
    file: FileUnderTest,
    inputs: Path,
    index: Path,
    config: Bench,
    out: Path,
    command: Sequence[str],
    working: _Working,
) -> int | MeasureError:
    """Let ``file`` answer the samples in a process of its own: the batch it took, or why there are no answers."""
    try:
        with started(file.name, config.threads, command) as worker:
            working.add(worker)
            _import(worker, file)
            reply = worker.ask(
                "answers",
                limit_s=ANSWERS_LIMIT_S,
                path=worker_path(Path(file.path)),
                inputs=worker_path(inputs),
                index=worker_path(index),
                out=worker_path(out / _outputs(file)),
                **{**_options(file, config), "batch": ANSWER_BATCH},
            )
            return int(reply["batch"])
    except MeasureError as error:
        return error


def _scored(
    file: FileUnderTest, batch: int | MeasureError, targets: NDArray[np.int64], out: Path, score: Score
) -> Answers:
    if isinstance(batch, MeasureError):
        return _unanswered(file, str(batch))
    scores = f"answers/{file_stem(file.name)}.scores.npy"
    try:
        answered: NDArray[np.float32] = np.load(out / _outputs(file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        return _unanswered(file, f"its answers can't be read: {error}")
    sound = np.isfinite(answered).all(axis=1)
    # NaN is never the largest: without this, argmax would call it the first class.
    values = np.asarray(score(np.nan_to_num(answered, nan=-np.inf), targets), dtype=np.float32)
    if values.shape != targets.shape:
        raise DataError(f"expected one score a sample {targets.shape}, got {values.shape}", where="score")
    values[~sound] = 0.0
    np.save(out / scores, values)
    return Answers(
        file=file.name,
        samples=len(values),
        mean_score=float(values.astype(np.float64).mean()),
        finite=bool(sound.all()),
        batch=batch,
        outputs=_outputs(file),
        scores=scores,
    )


def _outputs(file: FileUnderTest) -> str:
    return f"answers/{file_stem(file.name)}.npy"


def _unanswered(file: FileUnderTest, error: str) -> Answers:
    return Answers(file.name, samples=0, mean_score=None, finite=False, batch=0, outputs="", scores="", error=error)


def _import(worker: Worker, file: FileUnderTest) -> dict[str, Any]:
    reply = worker.ask("import", limit_s=LIMIT_S, runtime=file.runtime)
    if reply.get("protocol") != PROTOCOL:
        raise MeasureError(f"expected a worker of protocol {PROTOCOL}, got {reply.get('protocol')}", where=file.name)
    return reply


def _options(file: FileUnderTest, config: Bench) -> dict[str, Any]:
    return {"threads": config.threads, "batch": config.batch, "precision": arithmetic(file)}


def arithmetic(file: FileUnderTest) -> str:
    """What a runtime may use for the file's float operations, as its ``Options.precision``.

    A float32 or int8 file's stay exact float32; bfloat16 is asked for by name, and only who asked for float16 leaves it
    to the runtime. A TensorRT engine has it all fixed when it is built, and refuses to be asked.
    """
    if file.precision == "bfloat16" and file.runtime != "tensorrt":
        return "bfloat16"
    return "default" if file.precision == "float16" or file.runtime == "tensorrt" else "float32"


def _check_settings(file: FileUnderTest, settings: dict[str, Any], config: Bench) -> None:
    for key, want in (("threads", config.threads), ("batch", config.batch)):
        have = settings.get(key, want)
        if have != want:
            raise MeasureError(f"asked for {key} {want}, the runtime says {have}", where=file.name)


def _check(
    files: Sequence[FileUnderTest],
    inputs: Path,
    targets: NDArray[np.int64],
    ids: Sequence[str],
    config: Bench,
) -> None:
    names = [file.name for file in files]
    if not names:
        raise MeasureError("expected files to measure, got none")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise MeasureError(f"two files are called {', '.join(twice)}", hint="give each its own name")
    cpus = usable_cpus()
    if config.threads > cpus:
        raise MeasureError(
            f"expected at most {cpus} threads, the CPUs of this process, got {config.threads}",
            where="bench.threads",
            hint=f"ask for {cpus}; more would wait for each other and measure that",
        )
    try:
        samples = np.load(inputs, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"can't read the inputs: {error}", where=str(inputs)) from error
    if not len(samples) == len(targets) == len(ids) or len(samples) == 0:
        raise DataError(
            "expected inputs, and as many targets and ids, "
            f"got {len(samples)} inputs, {len(targets)} targets and {len(ids)} ids",
            where=str(inputs),
        )


def _chosen(samples: int, config: Bench) -> NDArray[np.int64]:
    """Which samples to answer, in order. Drawn, not the first ones: data often comes sorted by class."""
    wanted = config.accuracy_samples
    if wanted is None or wanted >= samples:
        return np.arange(samples)
    return np.sort(np.random.default_rng(config.seed).choice(samples, wanted, replace=False))


def _drift(launch: Launch) -> float:
    """How far the last third of the blocks lies above the first, of the first; 0 where that is within their noise."""
    medians = np.array([float(np.median(block.samples_ns)) for block in launch.blocks])
    third = len(medians) // 3
    if third < 3:
        return 0.0
    first, last = medians[:third], medians[-third:]
    # Only a trend that separates the two thirds altogether counts; anything else is noise, and has its own flag.
    if first.max() >= last.min() and last.max() >= first.min():
        return 0.0
    return float(np.median(last) / np.median(first) - 1)


class _Working:
    """The workers that answer now, so that they can be stopped from another thread."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._stopped = threading.Event()

    def add(self, worker: Worker) -> None:
        self._workers.append(worker)
        if self._stopped.is_set():  # it was started just while the others were stopped
            worker.kill()

    def stop(self) -> None:
        self._stopped.set()
        for worker in self._workers:
            worker.kill()


class _Progress:
    """Counts steps for ``tick``."""

    def __init__(self, tick: Tick, total: int) -> None:
        self._tick, self._total, self._done = tick, total, 0

    def skip(self, steps: int) -> None:
        self._done += steps

    def step(self, note: str) -> None:
        self._done += 1
        self._tick(self._done, self._total, note)
