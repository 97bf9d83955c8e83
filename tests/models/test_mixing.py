"""Mixup and CutMix: what is mixed with what, how much, and that neither hangs on the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from pydantic import ValidationError

from edgewise.models.tasks.augment import View, _boxes, view
from edgewise.models.tasks.base import Float, Int
from edgewise.models.tasks.config import Augment

TOTAL = 400
EVERYTHING = np.arange(TOTAL)
MIXUP, CUTMIX = Augment(mixup=1.0), Augment(cutmix=1.0)
EITHER = Augment(mixup=0.8, cutmix=1.0, mix_chance=0.7, crop=1, flip=True)
EVERY = [MIXUP, CUTMIX, EITHER, Augment(mixup=0.2, flip=True, views=2)]


@dataclass(frozen=True)
class Noise:
    """Every pixel of every image is unlike all others, so that each can be traced to where it came from."""

    shape: tuple[int, int, int] = (3, 7, 6)
    total: int = TOTAL

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.total)))

    @property
    def targets(self) -> Int:
        return np.arange(self.total) % 5

    @property
    def images(self) -> Float:
        values = np.random.default_rng(0).permutation(self.total * int(np.prod(self.shape))) + 1
        return values.reshape(self.total, *self.shape).astype(np.float32)

    def read(self, index: Int) -> Float:
        return self.images[index]


def labels(mixed: View) -> tuple[Int, Float]:
    assert mixed.partners is not None
    assert mixed.share is not None
    return mixed.partners, mixed.share


@pytest.mark.parametrize("config", EVERY)
@pytest.mark.parametrize("seed", [0, 7])
def test_batching_changes_nothing(config: Augment, seed: int) -> None:
    split = Noise()
    order = np.random.default_rng(seed).permutation(TOTAL)[:60]
    whole = view(split, order, config, seed, 3)
    for size in (1, 7):
        parts = [view(split, order[i : i + size], config, seed, 3) for i in range(0, 60, size)]
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
        for kind in (0, 1):
            assert np.array_equal(np.concatenate([labels(part)[kind] for part in parts]), labels(whole)[kind])


@pytest.mark.parametrize("config", EVERY)
def test_views_and_seeds_draw_anew_and_come_back(config: Augment) -> None:
    split = Noise()
    index = EVERYTHING[:50]
    first = view(split, index, config, 0, 0)
    for seed, epoch in ((0, 1), (1, 0)):
        other = view(split, index, config, seed, epoch)
        assert not np.array_equal(first.inputs, other.inputs)
        assert not np.array_equal(labels(first)[0], labels(other)[0])
        assert not np.array_equal(labels(first)[1], labels(other)[1])
    again = view(split, index, config, 0, config.views or 0)
    assert np.array_equal(first.inputs, again.inputs)
    assert np.array_equal(labels(first)[1], labels(again)[1])


@pytest.mark.parametrize("config", [MIXUP, Augment(mixup=0.4, crop=2, flip=True)])
def test_mixup_is_the_weighted_mean_of_two_views(config: Augment) -> None:
    split = Noise()
    alone = view(split, EVERYTHING, config.model_copy(update={"mixup": 0.0}), 4, 1).inputs.astype(np.float64)
    index = np.random.default_rng(1).permutation(TOTAL)[:90]
    got = view(split, index, config, 4, 1)
    for image, place, partner, part in zip(got.inputs, index, *labels(got), strict=True):
        expected = float(part) * alone[place] + (1 - float(part)) * alone[partner]
        assert np.allclose(image, expected, rtol=1e-5)


@pytest.mark.parametrize("config", [CUTMIX, Augment(cutmix=0.5, crop=2, flip=True)])
@pytest.mark.parametrize("shape", [(3, 7, 6), (1, 9, 5), (1, 1, 1), (2, 12, 1)])
def test_cutmix_is_one_image_with_a_box_of_another(config: Augment, shape: tuple[int, int, int]) -> None:
    split = Noise(shape, total=120)
    alone = view(split, np.arange(120), config.model_copy(update={"cutmix": 0.0}), 4, 1).inputs
    got = view(split, np.arange(120), config, 4, 1)
    for place, (image, partner, part) in enumerate(zip(got.inputs, *labels(got), strict=True)):
        foreign = (image != alone[place]).any(axis=0)
        # Padding may look alike in both, so every pixel must be one of the two, and the box may be larger than seen.
        assert ((image == alone[place]) | (image == alone[partner])).all()
        rows, columns = np.flatnonzero(foreign.any(axis=1)), np.flatnonzero(foreign.any(axis=0))
        if not config.crop and partner != place:
            box = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0]) if len(rows) else 0
            assert foreign.sum() == box  # a full rectangle
            assert part == pytest.approx(1 - box / foreign.size, abs=1e-6)
        assert foreign.sum() <= round((1 - float(part)) * foreign.size)


def test_boxes_are_those_of_the_authors() -> None:
    """Side sqrt(1 - l) of the image's, rounded down; half to each side of a centre inside; clipped."""
    generator = np.random.default_rng(3)
    kept, centres = generator.random(300), generator.random((300, 2))
    for (top, bottom, left, right), part, (y, x) in zip(_boxes(kept, centres, 32, 21), kept, centres, strict=True):
        for low, high, side, centre in ((top, bottom, 32, y), (left, right, 21, x)):
            length, middle = int(side * (1 - part) ** 0.5), int(side * centre)
            assert low == max(0, middle - length // 2)
            assert high == min(side, middle + length // 2)
    assert _boxes(np.array([0.0, 1.0]), np.array([[0.5, 0.5]] * 2), 8, 6).tolist() == [[0, 8, 0, 6], [4, 4, 3, 3]]


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, Augment(mixup=1, cutmix=1)])
def test_every_sample_is_somebodys_partner_once(config: Augment) -> None:
    partners, _ = labels(view(Noise(), EVERYTHING, config, 0, 2))
    assert sorted(partners) == EVERYTHING.tolist()
    assert (partners == EVERYTHING).sum() < 6  # about one of a permutation stays in its place
    # Drawn apart from the order in which training visits the samples.
    order = np.random.default_rng([0, 2, 1]).permutation(TOTAL)
    assert not np.array_equal(partners, order)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), over 20,000 samples."""
    split = Noise((1, 1, 1), total=20_000)
    _, share = labels(view(split, np.arange(20_000), Augment(mixup=alpha), 0, 0))
    variance = 1 / (4 * (2 * alpha + 1))
    assert share.mean() == pytest.approx(0.5, abs=5 * (variance / 20_000) ** 0.5)
    assert share.var() == pytest.approx(variance, rel=0.05)
    assert share.dtype == np.float32


def test_both_is_a_fair_coin_and_a_chance_leaves_the_rest_whole() -> None:
    split = Noise(total=2000)
    index = np.arange(2000)
    got = view(split, index, Augment(mixup=1, cutmix=1, mix_chance=0.6), 0, 0)
    partners, share = labels(got)
    alone = split.images
    whole = partners == index
    assert 0.55 < 1 - whole.mean() < 0.65
    assert np.array_equal(got.inputs[whole], alone[whole])
    assert (share[whole] == 1).all()
    pasted = ((got.inputs == alone) | (got.inputs == alone[partners])).all(axis=(1, 2, 3))
    assert 0.45 < pasted[~whole].mean() < 0.55


def test_the_splits_own_memory_is_left_alone() -> None:
    kept = Noise().images

    class Lender(Noise):
        def read(self, index: Int) -> Float:
            return kept if len(index) == TOTAL else kept[index]

    before = kept.copy()
    for config in EVERY:
        view(Lender(), EVERYTHING, config, 0, 0)
    assert np.array_equal(kept, before)


def test_one_sample_alone_stays_whole() -> None:
    split = replace(Noise(), total=1)
    got = view(split, np.zeros(1, np.int64), MIXUP, 0, 0)
    assert np.array_equal(got.inputs, split.images)
    assert labels(got)[1].tolist() == [1.0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mix_chance": 0.5}, "set mixup or cutmix"),
        ({"mixup": -0.1}, "greater than or equal to 0"),
        ({"cutmix": float("nan")}, "finite number"),
        ({"mixup": float("inf")}, "finite number|less than or equal"),
        ({"mixup": 1, "mix_chance": 0}, "greater than 0"),
        ({"views": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_can_not_be_honoured_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Augment.model_validate(settings)
