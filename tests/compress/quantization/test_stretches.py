"""The search for layers that INT8 slows down, against every choice of stretches there is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import combinations

import numpy as np
import pytest

from edgewise.compress.quantization.stretches import PARTS, fastest_in_float

LAYERS = [f"layer{place}" for place in range(16)]


def _net(int8: Sequence[float], floating: Sequence[float], end: float) -> Callable[[Collection[str]], float]:
    """A chain: what each layer takes either way, and what it costs to go from one to the other."""

    def cost(floats: Collection[str]) -> float:
        states = [name in floats for name in LAYERS]
        own = sum(f if state else i for state, i, f in zip(states, int8, floating, strict=True))
        return own + end * sum(a != b for a, b in zip([True, *states], [*states, True], strict=True))

    return cost


def _anything(floats: Collection[str]) -> bool:
    return True


def _best(cost: Callable[[Collection[str]], float]) -> float:
    """Of all 256 choices of the stretches that the search knows."""
    parts = [LAYERS[place : place + 2] for place in range(0, 16, 2)]
    chosen = (picked for count in range(PARTS + 1) for picked in combinations(parts, count))
    return min(cost([name for part in picked for name in part]) for picked in chosen)


def test_a_slow_beginning_is_found_and_nothing_else() -> None:
    cost = _net([3.0] * 6 + [0.5] * 10, [1.0] * 16, end=0.3)
    asked: list[tuple[str, ...]] = []

    def counted(floats: Sequence[str]) -> float:
        asked.append(tuple(floats))
        return cost(floats)

    found, reached = fastest_in_float(LAYERS, counted, now=cost(()), limit=0.0, allowed=_anything)
    assert found == LAYERS[:6]
    assert reached == cost(LAYERS[:6]) == _best(cost)
    assert len(asked) <= 24  # not one of each subset
    assert len(set(asked)) == len(asked)


def test_it_stops_where_the_limit_is_met() -> None:
    cost = _net([3.0] * 6 + [0.5] * 10, [1.0] * 16, end=0.0)
    found, reached = fastest_in_float(LAYERS, cost, now=cost(()), limit=cost(()) - 4.0, allowed=_anything)
    assert len(found) == 2
    assert reached == pytest.approx(cost(()) - 4.0)
    assert fastest_in_float(LAYERS, cost, now=9.0, limit=9.0, allowed=_anything) == ([], 9.0)


def test_stretches_apart_are_both_found() -> None:
    slow = [3.0 if place in (0, 1, 2, 3, 12, 13) else 0.5 for place in range(16)]
    cost = _net(slow, [1.0] * 16, end=0.2)
    found, reached = fastest_in_float(LAYERS, cost, now=cost(()), limit=0.0, allowed=_anything)
    assert found == [*LAYERS[:4], *LAYERS[12:14]]
    assert reached == _best(cost)


def test_nets_drawn_at_random_end_near_the_best_choice_of_all() -> None:
    random = np.random.default_rng(0)
    behind = []
    for _ in range(200):
        blocks = np.repeat(random.lognormal(0, 0.7, 4), 4)  # neighbours are alike, as in nets
        cost = _net(blocks * random.lognormal(0, 0.2, 16), [1.0] * 16, end=float(random.uniform(0, 0.4)))
        start = cost(())
        found, reached = fastest_in_float(LAYERS, cost, now=start, limit=0.0, allowed=_anything)
        assert reached == pytest.approx(cost(found))
        assert reached <= start
        behind.append(reached / _best(cost))
    assert np.mean(np.isclose(behind, 1)) > 0.8
    assert max(behind) < 1.15


def test_what_isn_t_allowed_is_never_timed() -> None:
    cost = _net([3.0] * 16, [1.0] * 16, end=0.0)
    asked: list[int] = []

    def counted(floats: Sequence[str]) -> float:
        asked.append(len(floats))
        return cost(floats)

    found, _ = fastest_in_float(LAYERS, counted, now=cost(()), limit=0.0, allowed=lambda floats: len(floats) <= 4)
    assert len(found) == max(asked) == 4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nets_of_few_layers(count: int) -> None:
    layers = LAYERS[:count]
    found, reached = fastest_in_float(
        layers, lambda floats: float(count - len(floats)), now=float(count), limit=0.0, allowed=_anything
    )
    assert found == layers
    assert reached == 0.0
