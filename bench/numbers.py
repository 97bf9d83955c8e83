"""What follows from results: speed-ups, drops, throughput, peaks. One definition each, for the gate and the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.record import Measurement, Results
from edgewise.errors import ArtifactError

Clock = Literal["wall", "cpu"]

OFF_CPU = ("tensorrt",)  # runtimes whose work a process's CPU time doesn't hold
BUSY = 1.3  # wall time / CPU time of one thread; a quiet machine is near 1


def samples_of(measurement: Measurement) -> list[list[NDArray[np.float64]]]:
    """Latencies in ns, by launch and block round, as ``edgewise.bench.stats`` wants them."""
    return [
        [np.asarray(block.samples_ns, dtype=np.float64) for block in sorted(launch.blocks, key=lambda b: b.round)]
        for launch in measurement.launches
    ]


def cpu_times_of(measurement: Measurement) -> list[list[NDArray[np.float64]]]:
    """CPU time in ns of one inference, of all the process's threads: one mean a block, by launch and block round.

    A block's CPU time covers its timed runs and nothing else; the runs that settle the caches come before it. A block
    too short for the CPU's clock is empty.
    """
    return [
        [
            np.array([block.process_cpu_ns / len(block.samples_ns)] if block.process_cpu_ns > 0 else [])
            for block in sorted(launch.blocks, key=lambda b: b.round)
        ]
        for launch in measurement.launches
    ]


def p50_half_width(measurement: Measurement) -> float | None:
    """Half the width of the p50's 95 % interval, of the p50; None with too few samples for one."""
    samples = samples_of(measurement)
    (p50,) = stats.bootstrap_percentiles(samples, [0.5]) if samples else (None,)
    return None if p50 is None else (p50.high - p50.low) / 2 / p50.value


def busy(measurement: Measurement) -> bool:
    """Whether a thread's wall time was over 1.3 times its CPU time in most blocks: other work had the CPU."""
    shares = [
        block.wall_ns / block.process_cpu_ns
        for launch in measurement.launches
        for block in launch.blocks
        if block.process_cpu_ns > 0
    ]
    return bool(shares) and float(np.median(shares)) > BUSY


def clock_of(results: Results, *names: str | None) -> Clock | None:
    """What times of these files may be compared on: the wall clock, on a quiet machine.

    The scheduler cuts long inferences and leaves short ones whole, so on a busy machine wall times favour the smaller
    file. CPU time doesn't. But with more than one thread it isn't what a user waits for, and where a GPU does the work
    it is that of launching it: nothing is left then, None.
    """
    found = [results.measurements[name] for name in names if name in results.measurements]
    if not any("contended" in one.flags for one in found):
        return "wall"
    elsewhere = any(file.runtime in OFF_CPU for file in results.files if file.name in names)
    return "cpu" if not elsewhere and all(one.threads == 1 for one in found) else None


def speedup(
    results: Results, reference: str | None, name: str, *, clock: Clock | None = "wall", confidence: float = 0.95
) -> stats.Interval | None:
    """Time of ``reference`` / time of ``name`` from paired blocks; None where either has none, or without a clock."""
    one = results.measurements.get(reference) if reference else None
    other = results.measurements.get(name)
    if clock is None or one is None or other is None:
        return None
    return time_ratio(one, other, clock=clock, confidence=confidence)


def time_ratio(
    one: Measurement, other: Measurement, *, clock: Clock = "wall", confidence: float = 0.95
) -> stats.Interval | None:
    """Time of ``one`` / time of ``other`` from paired blocks; None where nothing pairs.

    On the wall clock of blocks' medians, on CPU time of their means.
    """
    times = {"wall": samples_of, "cpu": cpu_times_of}[clock]
    # A launch in which one of them failed pairs with nothing.
    both = sorted({launch.index for launch in one.launches} & {launch.index for launch in other.launches})
    mine, theirs = (
        times(replace(m, launches=tuple(launch for launch in m.launches if launch.index in both))) for m in (one, other)
    )
    return stats.paired_ratio(mine, theirs, confidence=confidence)


def paired_scores(
    results: Results, reference: str | None, name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Both files' scores (N,) on the same samples; None where one didn't answer."""
    one, other = results.scores(reference) if reference else None, results.scores(name)
    return None if one is None or other is None or len(one) != len(other) else (one, other)


def accuracy_drop(
    results: Results, reference: str | None, name: str, *, confidence: float = 0.95
) -> stats.Interval | None:
    """Mean score of ``reference`` less that of ``name``, paired by sample: Tango's interval for 0/1 scores."""
    pair = paired_scores(results, reference, name)
    if pair is None:
        return None
    if stats.is_binary(np.concatenate(pair)):
        lost, won = discordant(*pair)
        return stats.tango(lost, won, len(pair[0]), confidence=confidence)
    reference_scores, scores = (np.asarray(values, dtype=np.float64) for values in pair)
    return stats.paired_mean_drop(reference_scores, scores, confidence=confidence)


def discordant(reference: NDArray[np.float32], other: NDArray[np.float32]) -> tuple[int, int]:
    """How many samples only ``reference`` has right, and only ``other``; for scores that aren't 0/1, is better at."""
    return int((reference > other).sum()), int((reference < other).sum())


def flippable(results: Results, name: str) -> bool:
    """Whether the file's answers can flip: one number, as a regression gives, is only nearer or further. Where only
    scores were kept, they are what is compared."""
    try:
        outputs = results.outputs(name)
    except ArtifactError:
        return True
    return outputs is None or outputs.ndim < 2 or outputs.shape[-1] > 1


def qps(measurement: Measurement, *, confidence: float = 0.95) -> tuple[stats.Interval, int]:
    """Samples a second in the timed blocks, one caller that never waits; and the number of blocks."""
    counts = [[len(b.samples_ns) * measurement.batch for b in launch.blocks] for launch in measurement.launches]
    seconds = [[b.wall_ns / 1e9 for b in launch.blocks] for launch in measurement.launches]
    return stats.bootstrap_rate(counts, seconds, confidence=confidence), sum(len(launch) for launch in counts)


def peak_memory(measurement: Measurement) -> int | None:
    """The process's largest resident size in bytes, over all launches, from loading on; None where not known.

    What the runtime's library takes before, when it is imported, is its own phase, and counts here as far as it stays.
    """
    peaks = [
        launch.phases[name].peak_bytes
        for launch in measurement.launches
        for name in ("load", "first_inference", "warmup", "steady")
        if name in launch.phases
    ]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known and len(known) == len(peaks) else None


def load_ms(measurement: Measurement) -> list[float]:
    """Time to open the file, a launch each."""
    return [launch.phases["load"].duration_ns / 1e6 for launch in measurement.launches]
