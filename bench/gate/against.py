"""Checks against the release before: answers paired by sample, times from both releases measured side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import stats
from edgewise.bench.gate import accuracy
from edgewise.bench.gate.config import ReleaseLimit
from edgewise.bench.gate.device import BUSY, FEW_WINDOWS, ON_CPU_TIME
from edgewise.bench.gate.found import Finding, Measured, TooFew, Unusable, exactly, more, scores, sound
from edgewise.bench.gate.slices import Part
from edgewise.bench.gate.verdict import CONFIDENCE
from edgewise.bench.numbers import clock_of, peak_memory, speedup
from edgewise.bench.record import Energy, FileUnderTest, Launch, Results
from edgewise.bench.slices import labels_of

SIDE_BY_SIDE = ("max_latency_ratio", "max_load_ratio", "max_memory_ratio", "max_energy_ratio")
"""Limits that need both releases measured again, never a stored number of another day."""


@dataclass(frozen=True)
class Release:
    """The release before. ``results``: its own, as stored. ``side``: files of both measured again side by side, those
    of the release by ``release_name``; None where nothing was measured again. ``confidence``: of the intervals on
    ``side``, wider where it was looked at more than once."""

    name: str
    results: Results
    side: Results | None = None
    confidence: float = CONFIDENCE


def release_name(name: str) -> str:
    """What the release's file called ``name`` is called among those measured side by side."""
    return f"{name} (release)"


def answers(key: str, release: Release, part: Part | None = None) -> Measured:
    """What finds the budget's ``key`` on answers, within ``part`` of the samples."""
    return partial(_answers, key, release, part)


def measure(key: str, release: Release, limit: ReleaseLimit) -> Measured:
    """What finds the budget's ``key`` of ``limit``."""
    if key in ("max_accuracy_drop_pp", "max_flip_rate"):
        return answers(key, release)
    if key == "max_memory_ratio":
        return partial(_memory, release, limit)
    return partial(RATIOS[key], release)


def predecessor(release: Release, file: FileUnderTest) -> FileUnderTest:
    """The release's file of the same name."""
    known = {one.name: one for one in release.results.files}
    if file.name not in known:
        raise Unusable(f"the release {release.name} has no file of this name, but: {', '.join(known)}")
    sound(release.results, known[file.name])
    return known[file.name]


def _answers(key: str, release: Release, part: Part | None, results: Results, file: FileUnderTest) -> Finding:
    theirs, mine = common(release, results, file, part)
    name = f"{release.name}: {predecessor(release, file).name}"
    judge = accuracy.of_drop if key == "max_accuracy_drop_pp" else accuracy.of_flips
    found = judge(theirs, mine, name)
    have = len(results_ids(results))
    if part is None and len(mine) < have:
        note = f"on the {len(mine):,} of {have:,} samples that both have answered"
        return Finding(**{**vars(found), "note": note})
    return found


def common(
    release: Release, results: Results, file: FileUnderTest, part: Part | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores of the release's file and of ``file`` on the samples that both have answered, found by id."""
    then = predecessor(release, file)
    theirs, mine = scores(release.results, then), scores(results, file)
    places = {name: place for place, name in enumerate(results_ids(release.results))}
    inside = part.inside if part else np.ones(len(mine), bool)
    pairs = [(places[name], i) for i, name in enumerate(results_ids(results)) if name in places and inside[i]]
    if not pairs:
        raise Unusable(f"not one sample{f' of {part.name}' if part else ''} was answered by both releases")
    one, other = (np.array(column) for column in zip(*pairs, strict=True))
    if max(one) >= len(theirs) or max(other) >= len(mine):
        raise Unusable("expected as many scores as ids")
    _same_samples(release, results, one, other)
    return theirs[one], mine[other]


def results_ids(results: Results) -> list[str]:
    """Ids of the samples answered, in order."""
    try:
        return (results.folder / results.ids).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Unusable(f"the ids of its samples can't be read: {error}") from error


def _same_samples(release: Release, results: Results, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """Ids may be mere places in a file that has changed since: then the classes differ."""
    then, now = labels_of(release.results, "class"), labels_of(results, "class")
    if then is None or now is None:
        return
    theirs = np.array([*then.names, ""])[then.labels[one]]
    mine = np.array([*now.names, ""])[now.labels[other]]
    if (theirs != mine).any():
        differ = int((theirs != mine).sum())
        raise Unusable(f"{differ} samples of the same id are of another class: these are not the release's samples")


def _latency(release: Release, results: Results, file: FileUnderTest) -> Finding:
    side, theirs = _side(release, file)
    clock = clock_of(side, theirs, file.name)
    if clock is None:
        raise Unusable(BUSY)
    # speedup is reference / file; the ratio asked for is file / reference
    found = speedup(side, file.name, theirs, clock=clock, confidence=release.confidence)
    if found is None:
        raise Unusable("both releases were not measured in the same launches")
    pairs = sum(len(launch.blocks) for launch in side.measurements[file.name].launches)
    slower = "slower than the release, beyond chance" if found.low > 1 else ""
    note = "; ".join(text for text in (slower, ON_CPU_TIME if clock == "cpu" else "") if text)
    return Finding(found, pairs, "block pairs", partial(more, found, pairs), "ratio", note, release.name)


def _load(release: Release, results: Results, file: FileUnderTest) -> Finding:
    side, theirs = _side(release, file)
    ratios = [
        now.phases["load"].duration_ns / then.phases["load"].duration_ns for then, now in _launches(side, theirs, file)
    ]
    return _of_launches(release, ratios)


def _of_launches(release: Release, ratios: Sequence[float]) -> Finding:
    """The mean ratio of launches side by side, on the log scale, with Student's interval."""
    from scipy.special import stdtrit

    logs, n = np.log(ratios), len(ratios)
    value = float(np.exp(logs.mean()))
    if n < 2:
        raise TooFew(n, 2, "launch pairs")
    half = float(stdtrit(n - 1, (1 + release.confidence) / 2)) * float(logs.std(ddof=1)) / math.sqrt(n)
    found = stats.Interval(value, value * math.exp(-half), value * math.exp(half))
    return Finding(found, n, "launch pairs", partial(more, found, n), "paired", "", release.name)


def _memory(release: Release, limit: ReleaseLimit, results: Results, file: FileUnderTest) -> Finding:
    side, theirs = _side(release, file)
    now, then = peak_memory(side.measurements[file.name]), peak_memory(side.measurements[theirs])
    if now is None or then is None:
        raise Unusable("this system does not tell a process's peak memory")
    assert limit.max_memory_ratio is not None
    slack = limit.memory_slack_bytes / then
    count = len(side.measurements[file.name].launches)
    note = f"{limit.max_memory_ratio:g} and {limit.memory_slack_bytes / 1e6:g} MB of {then / 1e6:.1f} MB"
    return Finding(
        exactly(now / then),
        count,
        "launches",
        kind="memory",
        note=note,
        baseline=release.name,
        limit=limit.max_memory_ratio + slack,
    )


def _size(release: Release, results: Results, file: FileUnderTest) -> Finding:
    then = predecessor(release, file).size_bytes
    if not then:
        raise Unusable("the release's file is empty")
    return Finding(exactly(file.size_bytes / then), 1, "file", baseline=release.name)


def _energy(release: Release, results: Results, file: FileUnderTest) -> Finding:
    side, theirs = _side(release, file)
    now, then = side.measurements[file.name].energy, side.measurements[theirs].energy
    if now is None or then is None:
        raise Unusable("no energy was measured: the device has no sensor that may be read, or bench.energy is off")
    if now.low <= 0 or then.low <= 0:
        raise Unusable("the joules of an inference can't be told apart from idling, so they have no ratio")
    n = min(now.windows, then.windows)
    if n < FEW_WINDOWS:
        raise TooFew(n, FEW_WINDOWS, "windows")
    value = now.joules_per_inference / then.joules_per_inference
    # Half widths on the log scale add in squares.
    half = math.hypot(_half(now, release.confidence), _half(then, release.confidence))
    found = stats.Interval(value, value * math.exp(-half), value * math.exp(half))
    return Finding(found, n, "windows", partial(more, found, n), "paired", now.source, release.name)


def _half(found: Energy, confidence: float) -> float:
    """The wider half of its interval on the log scale, Student's of 95 % over its windows, put to ``confidence``."""
    from scipy.special import stdtrit

    value, free = found.joules_per_inference, found.windows - 1
    wider = max(math.log(found.high / value), math.log(value / found.low))
    return wider * float(stdtrit(free, (1 + confidence) / 2) / stdtrit(free, 0.975))


RATIOS = {"max_latency_ratio": _latency, "max_load_ratio": _load, "max_size_ratio": _size, "max_energy_ratio": _energy}


def _side(release: Release, file: FileUnderTest) -> tuple[Results, str]:
    """Both files, measured side by side; the release's is called by the second."""
    theirs = release_name(predecessor(release, file).name)
    if release.side is None:
        raise Unusable("both releases were not measured side by side, and stored times of another day say nothing")
    for name in (file.name, theirs):
        found = release.side.measurements.get(name)
        if found is None or not found.launches:
            raise Unusable(f"{name}, measured again: {found.error if found and found.error else 'no launch'}")
        if found.error:
            raise Unusable(f"{name}, measured again: {found.error.splitlines()[0]}")
    return release.side, theirs


def _launches(side: Results, theirs: str, file: FileUnderTest) -> list[tuple[Launch, Launch]]:
    then = {launch.index: launch for launch in side.measurements[theirs].launches}
    return [(then[one.index], one) for one in side.measurements[file.name].launches if one.index in then]
