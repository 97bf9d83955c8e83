"""How often a gate on accuracy passes: the naive one that compares two percentages, and the paired test.

Prints Markdown. Answers are drawn: of n samples a share psi flips, and the true drop is what is said. The second table
is the size of Tango's test: how often it passes a drop that is exactly at its margin, which should be 5 %. The third is
that of three looks at paired blocks, as ``edgewise gate --against`` takes them.

    python benchmarks/bench/gate_power.py            # under a minute on one core
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator

import numpy as np

from edgewise.bench import stats
from edgewise.bench.gate.power import ALPHA
from edgewise.side_by_side import LOOKS, SHARES

Z = 1.6448536269514722  # one-sided 5 %
DROPS_PP = (0.0, 0.5, 1.0, 1.5, 2.0)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="simulated test sets a cell")
    parser.add_argument("--runs", type=int, default=400, help="simulated comparisons of latency a row")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    random = np.random.default_rng(asked.seed)
    for line in (*_power(random, asked.draws), "", *_size(random, asked.draws), "", *_looks(random, asked.runs)):
        sys.stdout.write(line + "\n")


def _power(random: np.random.Generator, draws: int) -> Iterator[str]:
    yield f"Share of {draws:,} simulated test sets that pass, naive / paired test; 4 % of answers flip, limit 1 pp."
    yield ""
    yield f"| n | {' | '.join(f'true drop {drop:g} pp' for drop in DROPS_PP)} |"
    yield "|---|" + "---|" * len(DROPS_PP)
    for n in (1000, 2473, 5000, 10_000):
        cells = []
        for drop in DROPS_PP:
            lost, won = _drawn(random, n, 0.04, drop / 100, draws)
            naive = (lost - won) / n <= 0.01
            cells.append(f"{_share(naive)} / {_share(_passes(lost, won, n, 0.01))}")
        yield f"| {n:,} | {' | '.join(cells)} |"


def _size(random: np.random.Generator, draws: int) -> Iterator[str]:
    yield f"Share of {draws:,} test sets that pass though the true drop is exactly the margin; 5 % is meant."
    yield ""
    yield "| n | flips | margin | passes (95 % interval) |"
    yield "|---|---|---|---|"
    for n, psi, margin in (
        (500, 0.04, 0.01),
        (500, 0.15, 0.05),
        (1000, 0.04, 0.01),
        (5000, 0.04, 0.01),
        (10_000, 0.08, 0.005),
        (50_000, 0.02, 0.002),
        (50_000, 0.04, 0.01),
    ):
        lost, won = _drawn(random, n, psi, margin, draws)
        passed = int(_passes(lost, won, n, margin).sum())
        found = stats.wilson(passed, draws)
        told = f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f} %)"
        yield f"| {n:,} | {100 * psi:g} % | {100 * margin:g} pp | {told} |"


def _looks(random: np.random.Generator, runs: int) -> Iterator[str]:
    times = " and ".join(str(total) for total in np.cumsum(SHARES))
    yield (
        f"Two releases side by side, limit 1.05 on the ratio, {LOOKS} looks after {times} times 3 launches of 12 "
        f"blocks; {runs:,} simulated comparisons a row. Block ratios differ by 3 %, launches by 1.56 %."
    )
    yield ""
    yield "| true ratio | PASS | FAIL | INCONCLUSIVE | launches, mean |"
    yield "|---|---|---|---|---|"
    for ratio in (1.0, 1.02, 1.05, 1.10):
        ends = [_compared(random, ratio, 1.05) for _ in range(runs)]
        counts = [sum(status == one for status, _ in ends) for one in ("PASS", "FAIL", "INCONCLUSIVE")]
        cells = []
        for count in counts:
            found = stats.wilson(count, runs)
            cells.append(f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})")
        launches = float(np.mean([used for _, used in ends]))
        yield f"| {ratio:g} | {' | '.join(cells)} | {launches:.1f} |"


def _compared(random: np.random.Generator, ratio: float, limit: float) -> tuple[str, int]:
    """(status, launches used) of one comparison."""
    reference, candidate = [], []
    for share in SHARES:
        for _ in range(3 * share):
            apart = random.normal(0, 0.0156 * math.sqrt(2))
            noise = random.normal(0, 0.03, 12)
            reference.append([np.array([1.0])] * 12)
            candidate.append([np.array([ratio * math.exp(apart + one)]) for one in noise])
        found = stats.paired_ratio(candidate, reference, confidence=1 - 2 * ALPHA / LOOKS)
        assert found is not None  # every block has its pair
        if found.high <= limit:
            return "PASS", len(reference)
        if found.low > limit:
            return "FAIL", len(reference)
    return "INCONCLUSIVE", len(reference)


def _drawn(random: np.random.Generator, n: int, psi: float, drop: float, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """How many answers were lost and won, (draws,) each."""
    counts = random.multinomial(n, [(psi + drop) / 2, (psi - drop) / 2, 1 - psi], size=draws)
    return counts[:, 0], counts[:, 1]


def _passes(lost: np.ndarray, won: np.ndarray, n: int, margin: float) -> np.ndarray:
    return np.array([stats.tango_z(int(a), int(b), n, margin) < -Z for a, b in zip(lost, won, strict=True)])


def _share(passed: np.ndarray) -> str:
    return f"{float(np.mean(passed)):.2f}"


if __name__ == "__main__":
    main()
