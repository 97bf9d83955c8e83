"""Augmentation: the draws belong to (seed, view, sample), not to the batch."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.models.tasks.arrays import Pixels
from edgewise.models.tasks.augment import augment, view, view_number
from edgewise.models.tasks.base import Float, Int
from edgewise.models.tasks.config import Augment

TOTAL = 500
BOTH = Augment(crop=2, flip=True)


def images(index: np.ndarray) -> Float:
    """Each sample's own pixels, none of them zero."""
    return np.stack([np.random.default_rng(i).uniform(1, 2, (3, 6, 7)).astype(np.float32) for i in index])


@pytest.mark.parametrize("config", [Augment(crop=1), Augment(crop=4), Augment(flip=True), BOTH])
@pytest.mark.parametrize("seed", [0, 7])
def test_batching_changes_nothing(config: Augment, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(TOTAL)[:60]
    whole = augment(images(order), order, TOTAL, config, seed, epoch=3)
    for size in (1, 7, 60):
        parts = [
            augment(images(order[i : i + size]), order[i : i + size], TOTAL, config, seed, epoch=3)
            for i in range(0, 60, size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
    shuffled = np.random.default_rng(1).permutation(60)
    again = augment(images(order[shuffled]), order[shuffled], TOTAL, config, seed, epoch=3)
    assert np.array_equal(again, whole[shuffled])


def test_epochs_seeds_and_samples_draw_anew() -> None:
    index = np.arange(40)
    same = images(np.zeros(40, int))  # one image under forty sample numbers
    first = augment(same, index, TOTAL, BOTH, 0, 0)
    assert len(np.unique(first.reshape(40, -1), axis=0)) > 15
    assert not np.array_equal(first, augment(same, index, TOTAL, BOTH, 0, 1))
    assert not np.array_equal(first, augment(same, index, TOTAL, BOTH, 1, 0))
    assert np.array_equal(first, augment(same, index, TOTAL, BOTH, 0, 0))


def test_every_result_is_a_shift_with_zeros_perhaps_mirrored() -> None:
    """Found by trying them all; over many samples each of the 25 shifts and both sides come, about equally often."""
    index = np.arange(TOTAL)
    source = images(np.zeros(TOTAL, int))
    padded = np.pad(source[0], ((0, 0), (2, 2), (2, 2)))
    known = {}
    for top in range(5):
        for left in range(5):
            window = padded[:, top : top + 6, left : left + 7]
            known[window.tobytes()] = (top, left, False)
            known[np.ascontiguousarray(window[:, :, ::-1]).tobytes()] = (top, left, True)
    found = [known[row.tobytes()] for row in augment(source, index, TOTAL, BOTH, 5, 2)]
    assert len(set(found)) == 50
    assert 200 < sum(flipped for _, _, flipped in found) < 300
    counts = np.bincount([5 * top + left for top, left, _ in found])
    assert counts.min() > 5
    assert counts.max() < 45


def test_input_is_left_alone_and_nothing_asked_is_nothing_done() -> None:
    index = np.arange(8)
    batch = images(index)
    kept = batch.copy()
    out = augment(batch, index, TOTAL, BOTH, 0, 0)
    assert np.array_equal(batch, kept)
    assert out.dtype == np.float32
    assert out.shape == batch.shape
    assert augment(batch, index, TOTAL, Augment(), 0, 0) is batch


@pytest.mark.parametrize("config", [Augment(crop=2), Augment(flip=True), BOTH, Augment(crop=9, flip=True)])
def test_draws_are_the_ones_of_earlier_versions(config: Augment) -> None:
    """The stream written out again: flips first, then offsets; padding, cutting and mirroring one image at a time."""
    generator = np.random.default_rng([7, 3])
    flips = generator.random(TOTAL) < 0.5
    offsets = generator.integers(0, 2 * config.crop + 1, size=(TOTAL, 2))
    index = np.random.default_rng(0).permutation(TOTAL)[:80]
    source = images(index)
    pad = config.crop
    for got, image, place in zip(augment(source, index, TOTAL, config, 7, 3), source, index, strict=True):
        top, left = offsets[place]
        expected = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))[:, top : top + 6, left : left + 7]
        assert np.array_equal(got, expected[:, :, ::-1] if config.flip and flips[place] else expected)


class ReadOnly:
    """A user's split: no more than the protocol asks for."""

    ids = tuple(map(str, range(TOTAL)))
    targets = np.arange(TOTAL) % 3

    def read(self, index: Int) -> Float:
        return images(index)


def test_a_view_is_what_was_read_augmented() -> None:
    index = np.array([4, 400, 17])
    got = view(ReadOnly(), index, BOTH, seed=2, epoch=5)
    assert np.array_equal(got.inputs, augment(images(index), index, TOTAL, BOTH, 2, 5))
    assert got.partners is None
    assert got.share is None
    assert np.array_equal(view(ReadOnly(), index, Augment(), 0, 0).inputs, images(index))


@pytest.mark.parametrize("config", [BOTH, Augment(crop=9), Augment(flip=True)])
@pytest.mark.parametrize("count", [1, 32, 77])
def test_pixels_in_memory_give_the_same_view(config: Augment, count: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (TOTAL, 3, 6, 7), np.uint8)
    split = Pixels(ReadOnly.ids, ReadOnly.targets, pixels, (0.4,), (0.3,))
    index = np.random.default_rng(count).permutation(TOTAL)[:count]
    expected = augment(split.read(index), index, TOTAL, config, 3, 1)
    assert np.array_equal(view(split, index, config, 3, 1).inputs, expected)


def test_views_come_again_after_their_number() -> None:
    config = BOTH.model_copy(update={"views": 3})
    index = np.arange(30)
    shown = [view(ReadOnly(), index, config, 1, epoch).inputs for epoch in range(7)]
    for epoch, inputs in enumerate(shown):
        assert np.array_equal(inputs, view(ReadOnly(), index, BOTH, 1, epoch % 3).inputs)
        assert view_number(config, epoch) == epoch % 3
        assert view_number(BOTH, epoch) == epoch
        assert view_number(Augment(), epoch) == 0
    assert not np.array_equal(shown[0], shown[1])
