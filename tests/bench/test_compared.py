"""Comparisons of made-up launches whose truth is known; real files on a busy host are in benchmarks/bench/aa.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as other

from edgewise.bench.compared import compare, half_width, told, undecided
from edgewise.bench.record import Block, Launch, Measurement
from edgewise.bench.selftest import detectable
from edgewise.bench.stats import Interval, blocks

MARGIN = 0.05


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "RESAMPLES", 200)


def _pair(
    slower: float, launches: int, seed: int, *, differ: float = 0.01, waits: Callable[[float], float] = lambda t: t
) -> tuple[Measurement, Measurement]:
    """Two files of 1 and ``slower`` ms: launches differ by some 1 %, spells of the machine hit both.

    ``waits``: how long an inference of so many ns takes on the wall.
    """
    random = np.random.default_rng(seed)
    made: dict[str, list[Launch]] = {"old": [], "new": []}
    for number in range(launches):
        levels = {"old": 1e6, "new": 1e6 * slower}
        levels = {name: level * math.exp(random.normal(0, differ / math.sqrt(2))) for name, level in levels.items()}
        turns: dict[str, list[Block]] = {"old": [], "new": []}
        for turn in range(10):
            spell = random.choice([1.0, 1.3])
            for name, level in levels.items():
                cpu = level * spell * np.exp(random.normal(0, 0.02, 9))
                wall = tuple(int(waits(value)) for value in cpu)
                turns[name].append(Block(turn, wall, sum(wall), int(cpu.sum()), int(cpu.sum()), 0, 1, turn))
        for name, found in turns.items():
            made[name].append(Launch(number, {}, {}, (), True, tuple(found)))
    one, two = (Measurement(name, 1, 1, tuple(found)) for name, found in made.items())
    return one, two


def _until_told(slower: float, seed: int) -> str:
    """As ``measure`` does it: from three launches on, ask whether to go on; at most twelve."""
    old, new = _pair(slower, 12, seed)
    for count in range(3, 13):
        one, two = (Measurement(m.file, 1, 1, m.launches[:count]) for m in (old, new))
        if not undecided([("old", "new")], MARGIN)({"old": one, "new": two}):
            break
    return compare(one, two, MARGIN).found


def test_the_same_file_is_not_called_slower_and_five_percent_are_found() -> None:
    same = [_until_told(1.0, seed) for seed in range(60)]
    assert same.count("slower") <= 3
    assert same.count("not slower") >= 54
    found = [_until_told(1.05, seed) for seed in range(60)]
    assert found.count("slower") >= 51  # 90 % less three standard errors of so few


def test_ratio_is_the_new_files_time_over_the_old_ones() -> None:
    found = compare(*_pair(1.2, 6, 0), MARGIN)
    assert found.ratio is not None
    assert found.ratio.low < 1.2 < found.ratio.high
    assert (found.clock, found.launches, found.pairs) == ("wall", 6, 60)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.99, 1.04, "not slower"),
        (1.01, 1.04, "not slower"),
        (1.01, 1.08, "slower"),
        (1.06, 1.08, "slower"),
        (0.98, 1.06, "can't tell"),
        (0.5, 0.6, "not slower"),
    ],
)
def test_what_an_interval_says(low: float, high: float, found: str) -> None:
    assert told(Interval((low + high) / 2, low, high), MARGIN) == found
    assert told(None, MARGIN) == "can't tell"


def test_an_interval_as_narrow_as_half_the_margin_always_tells() -> None:
    half = math.log1p(MARGIN) / 2 * 0.999
    for value in np.exp(np.linspace(-0.1, 0.1, 201)):
        interval = Interval(value, value * math.exp(-half), value * math.exp(half))
        assert half_width(interval) < math.log1p(MARGIN) / 2
        assert told(interval, MARGIN) != "can't tell"


def test_too_few_launches_and_launches_that_do_not_pair_tell_nothing() -> None:
    assert compare(*_pair(2.0, 2, 0), MARGIN).found == "can't tell"
    old, new = _pair(1.0, 6, 0)
    apart = compare(Measurement("old", 1, 1, old.launches[:3]), Measurement("new", 1, 1, new.launches[3:]), MARGIN)
    assert (apart.found, apart.ratio, apart.launches) == ("can't tell", None, 0)


def test_where_long_inferences_are_cut_cpu_time_decides() -> None:
    """Every second inference waits for three slices of others: on the wall a coin flip, on the CPU's clock none."""
    flip = np.random.default_rng(1)

    def waits(value: float) -> float:
        return value * flip.uniform(1.5, 4)

    found = compare(*_pair(1.2, 5, 0, waits=waits), MARGIN)
    assert found.clock == "cpu"
    assert found.found == "slower"
    old, new = _pair(1.2, 5, 0, waits=waits)
    threads = compare(Measurement("old", 1, 2, old.launches), Measurement("new", 1, 2, new.launches), MARGIN)
    assert threads.clock == "wall"


def test_a_file_that_failed_is_waited_for_no_longer() -> None:
    old, new = _pair(1.0, 3, 0, differ=0.2)
    more = undecided([("old", "new")], MARGIN)
    assert more({"old": old, "new": new}) == {"old", "new"}
    assert more({"old": old}) == set()


def test_the_smallest_slowdown_is_found_as_often_as_it_says() -> None:
    """By the formula alone: normal launches, Student's interval, the slowdown that ``detectable`` names."""
    random = np.random.default_rng(3)
    sd, launches = 0.01, 8
    half = other.t.ppf(0.975, launches - 1) * sd / math.sqrt(launches)
    typical = compare(*_pair(1.0, launches, 0), MARGIN)
    known = type(typical)(**{**vars(typical), "ratio": Interval(1.0, math.exp(-half), math.exp(half))})
    slowdown = detectable(known)
    assert 0.01 < slowdown < 0.02
    found = 0
    for _ in range(4000):
        logs = random.normal(math.log1p(slowdown), sd, launches)
        low = logs.mean() - other.t.ppf(0.975, launches - 1) * logs.std(ddof=1) / math.sqrt(launches)
        found += low > 0
    assert 0.86 <= found / 4000 <= 0.94
