"""Tango's test against the worked examples of its paper, and its size at the margin."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.bench import stats

Z = 1.6448536269514722  # one-sided 5 %


def test_the_lens_trial_of_the_paper() -> None:
    """Tango 1998, section 6.1: 44 pairs, none and one differ; not worse by .1 with Z = 1.709, 90 % bound -.096."""
    # ours is the statistic of a drop: as large, with the other sign
    assert stats.tango_z(1, 0, 44, 0.1) == pytest.approx(-1.709, abs=0.005)
    assert stats.tango(0, 1, 44, confidence=0.9).low == pytest.approx(-0.096, abs=0.0006)


def test_the_sleep_data_of_the_paper() -> None:
    """Tango 1998, section 6.2: 32 pairs, 9 and 3 differ, 95 % interval -.027 to .390."""
    found = stats.tango(9, 3, 32)
    assert (found.low, found.high) == (pytest.approx(-0.027, abs=0.0006), pytest.approx(0.390, abs=0.0006))


@pytest.mark.parametrize(
    ("n", "flips", "margin"),
    [(500, 0.04, 0.01), (500, 0.15, 0.05), (2000, 0.04, 0.01), (10_000, 0.08, 0.005), (50_000, 0.02, 0.002)],
)
def test_a_drop_at_the_margin_passes_in_one_of_twenty(n: int, flips: float, margin: float) -> None:
    chances = [(flips + margin) / 2, (flips - margin) / 2, 1 - flips]
    draws = np.random.default_rng(n).multinomial(n, chances, size=4000)
    passed = np.mean([stats.tango_z(int(lost), int(won), n, margin) < -Z for lost, won, _ in draws])
    assert 0.035 <= passed <= 0.065
