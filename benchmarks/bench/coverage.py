"""How often the 95 % interval of the p50 holds the truth, on series whose truth is known.

    python benchmarks/bench/coverage.py --trials 1000

Series: independent log-normal; heavy-tailed (log of Student's t with 2 degrees of freedom); AR(1) with rho .8 from
inference to inference, which goes on across blocks. Twelve blocks a launch. ``effect``: standard deviation between
launches, as processes differ. ``stop``: launches go on from 3 to 6 until the half width is 2 %, as ``measure`` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from hosts import table
from scipy.signal import lfilter

from edgewise.bench.stats import Interval, blocks, bootstrap_percentiles, wilson

BLOCKS = 12
RUNS = {"fast": 30, "slow": 3, "slowest": 1}
KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "iid log-normal": lambda random, n: np.exp(random.normal(0, 0.1, n)),
    "heavy-tailed": lambda random, n: np.exp(0.05 * random.standard_t(2, n)),
    "AR(1) rho .8": lambda random, n: np.exp(_ar1(random, n)),
}


def _ar1(random: np.random.Generator, n: int, rho: float = 0.8) -> np.ndarray:
    noise = random.normal(0, 0.1 * np.sqrt(1 - rho * rho), n)
    noise[0] = random.normal(0, 0.1)  # from the stationary distribution on
    return np.asarray(lfilter([1.0], [1.0, -rho], noise))


def _launch(kind: str, random: np.random.Generator, runs: int, effect: float) -> list[np.ndarray]:
    values = KINDS[kind](random, BLOCKS * runs) * np.exp(random.normal(0, effect))
    return list(values.reshape(BLOCKS, runs))


def _interval(launches: list[list[np.ndarray]], seed: int) -> Interval:
    (found,) = bootstrap_percentiles(launches, [0.5], seed=seed)
    assert found is not None
    return found


def cover(kind: str, launches: int | None, runs: int, effect: float, trials: int) -> tuple[int, float, float]:
    """How many of ``trials`` intervals hold the true median 1; their median half width; the mean number of launches."""
    random = np.random.default_rng([len(kind), launches or 0, runs, round(1000 * effect)])
    held, halves, used = 0, [], []
    for trial in range(trials):
        series = [_launch(kind, random, runs, effect) for _ in range(launches or 3)]
        found = _interval(series, trial)
        while launches is None and len(series) < 6 and (found.high - found.low) / 2 > 0.02 * found.value:
            series.append(_launch(kind, random, runs, effect))
            found = _interval(series, trial)
        held += found.low <= 1 <= found.high
        halves.append((found.high - found.low) / 2)
        used.append(len(series))
    return held, float(np.median(halves)), float(np.mean(used))


def main() -> None:
    """Simulate and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    blocks.RESAMPLES = 300
    cases = [(1, 0.0), (2, 0.02), (3, 0.0), (3, 0.02), (3, 0.05), (5, 0.02), (None, 0.0), (None, 0.01), (None, 0.02)]
    rows = []
    for kind in KINDS:
        for launches, effect in cases:
            cells = []
            for runs in RUNS.values():
                held, half, used = cover(kind, launches, runs, effect, args.trials)
                share = wilson(held, args.trials)
                bounds = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
                more = f", {used:.1f} launches" if launches is None else ""
                cells.append(f"{100 * share.value:.1f} % ({bounds}), ±{100 * half:.1f} %{more}")
            rows.append([kind, launches or "stop", f"{100 * effect:.0f} %", *cells])
            print(*rows[-1], sep=" | ", flush=True)
    head = ["series", "launches", "effect", *(f"{name}: {runs} a block" for name, runs in RUNS.items())]
    command = f"python benchmarks/bench/coverage.py --trials {args.trials}"
    print(f"\n{table(head, rows)}\n\n`{command}`, {args.trials} trials a cell")


if __name__ == "__main__":
    main()
