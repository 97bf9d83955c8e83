"""RandAugment: each operation against its definition, the draws, and whom it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from edgewise.errors import DataError
from edgewise.models.tasks.arrays import Pixels
from edgewise.models.tasks.augment import view
from edgewise.models.tasks.base import Float, Int, Task
from edgewise.models.tasks.check import check_task
from edgewise.models.tasks.config import Augment, Digits, RandAugment
from edgewise.models.tasks.load import load_task
from edgewise.models.tasks.randaugment import BY_NAME, CHOICES, _draws, pixel_scale, randaugment

TOTAL = 300
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
FILL = (1, 2, 3)


def split(channels: int = 3, height: int = 11, width: int = 8, white: int = 255) -> Pixels:
    shape = (TOTAL, channels, height, width)
    pixels = np.random.default_rng(0).integers(0, white + 1, shape, np.uint8)
    return Pixels(
        tuple(map(str, range(TOTAL))), np.arange(TOTAL) % 4, pixels, MEAN[:channels], STD[:channels], white=white
    )


def image(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def apply(name: str, pixels: NDArray[np.uint8], level: float) -> NDArray[np.uint8]:
    return np.asarray(BY_NAME[name](Image.fromarray(pixels), level, FILL if pixels.ndim == 3 else 9))


def test_the_fourteen_operations_of_the_paper() -> None:
    assert len(CHOICES) == len(set(CHOICES)) == 14


@pytest.mark.parametrize("shape", [(11, 8, 3), (11, 8)])
@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"autocontrast", "equalize"}))
def test_no_strength_is_no_change(name: str, shape: tuple[int, ...]) -> None:
    pixels = image(*shape)
    assert np.array_equal(apply(name, pixels, 0.0), pixels)
    assert np.array_equal(apply(name, pixels, -0.0), pixels)


@pytest.mark.parametrize("name", list(BY_NAME))
@pytest.mark.parametrize("shape", [(11, 8, 3), (11, 8), (1, 1, 3), (1, 1), (2, 1), (1, 5, 3)])
@pytest.mark.parametrize("level", [-1.0, 0.37, 1.0])
def test_size_and_mode_stay(name: str, shape: tuple[int, ...], level: float) -> None:
    got = apply(name, image(*shape), level)
    assert got.shape == shape
    assert got.dtype == np.uint8


@pytest.mark.parametrize(("level", "threshold"), [(0.5, 128), (-0.5, 128), (1.0, 0), (0.25, 192)])
def test_solarize_inverts_what_is_bright(level: float, threshold: int) -> None:
    pixels = image(11, 8, 3)
    assert np.array_equal(apply("solarize", pixels, level), np.where(pixels < threshold, pixels, 255 - pixels))


@pytest.mark.parametrize(("level", "bits"), [(0.25, 7), (-0.5, 6), (1.0, 4)])
def test_posterize_keeps_the_high_bits(level: float, bits: int) -> None:
    pixels = image(11, 8, 3)
    assert np.array_equal(apply("posterize", pixels, level), pixels >> (8 - bits) << (8 - bits))


@pytest.mark.parametrize("level", [-1.0, -0.3, 0.6, 1.0])
def test_enhancing_moves_away_from_or_to_the_plain_image(level: float) -> None:
    """plain + (1 + 0.9 level) (image - plain), where plain is black, the mean grey, or the image in grey."""
    pixels = image(11, 8, 3)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
    plains = {
        "brightness": np.zeros(pixels.shape),
        "contrast": np.full(pixels.shape, np.floor(grey.mean() + 0.5)),
        "color": np.repeat(grey[:, :, None], 3, axis=2),
    }
    for name, plain in plains.items():
        expected = np.clip(plain + (1 + 0.9 * level) * (pixels - plain), 0, 255)
        assert np.abs(apply(name, pixels, level) - expected).max() <= 1


def test_autocontrast_and_equalize_fill_the_range() -> None:
    pixels = (image(16, 16) // 4 + 50).astype(np.uint8)  # 50..113
    low, high = int(pixels.min()), int(pixels.max())
    expected = (pixels.astype(np.float64) - low) * 255 / (high - low)
    assert np.abs(apply("autocontrast", pixels, 1) - expected).max() <= 1
    # Each value becomes the part of the pixels that are darker; Pillow counts in whole 255ths, so take many pixels.
    large = (image(256, 256) // 4 + 50).astype(np.uint8)
    darker = np.searchsorted(np.sort(large.ravel()), large.ravel()).reshape(large.shape)
    assert np.abs(apply("equalize", large, 1) - 255 * darker / darker.max()).max() <= 2


@pytest.mark.parametrize("level", [-1.0, -0.4, 0.4, 1.0])
def test_translation_moves_and_fills(level: float) -> None:
    pixels = image(20, 30, 3)
    for name, axis in (("translate_x", 1), ("translate_y", 0)):
        shift = round(abs(level) * 150 / 331 * pixels.shape[axis] - 1e-9)
        got, source = (np.moveaxis(array, axis, 0) for array in (apply(name, pixels, level), pixels))
        side = len(source)
        kept, gone = slice(0, side - shift), slice(shift, side)
        if level < 0:
            kept, gone = gone, kept
        assert np.array_equal(got[kept], source[gone])
        empty = got[side - shift :] if level > 0 else got[:shift]
        assert (empty == FILL).all()


@pytest.mark.parametrize("level", [-1.0, 0.5])
def test_shear_moves_each_row_by_its_number(level: float) -> None:
    pixels = image(9, 12)
    by_row = apply("shear_x", pixels, level)
    by_column = apply("shear_y", np.ascontiguousarray(pixels.T), level).T
    for y in range(9):
        for x in range(12):
            source = int(np.floor(x + 0.5 + 0.3 * level * (y + 0.5)))
            expected = pixels[y, source] if 0 <= source < 12 else 9
            assert by_row[y, x] == expected
            assert by_column[y, x] == expected


def test_rotation_by_thirty_degrees_and_back() -> None:
    """A smooth picture turned one way and back is the picture, in the middle."""
    y, x = np.mgrid[:41, :41]
    pixels = (x * 4 + y).astype(np.uint8)
    turned = apply("rotate", pixels, 1)
    back = apply("rotate", turned, -1)
    middle = slice(14, 27)
    assert np.abs(back[middle, middle].astype(int) - pixels[middle, middle]).max() <= 5
    # counter-clockwise, image coordinates: the gradient (4, 1) becomes R(4, 1)
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    dx, dy = (np.gradient(turned[middle, middle].astype(float), axis=axis).mean() for axis in (1, 0))
    assert (dx, dy) == pytest.approx((4 * cosine + sine, cosine - 4 * sine), abs=0.35)


@pytest.mark.parametrize("name", sorted({"brightness", "contrast", "color", "sharpness", "solarize", "posterize"}))
def test_more_strength_is_more_change(name: str) -> None:
    pixels = image(32, 32, 3)
    changes = [np.abs(apply(name, pixels, level).astype(int) - pixels).mean() for level in (0, 0.25, 0.5, 0.75, 1)]
    assert changes == sorted(changes)
    assert changes[0] == 0
    assert changes[-1] > 3


def test_no_magnitude_leaves_the_pixels_or_stretches_their_contrast() -> None:
    """Every 8-bit value survives the way to pixels and back, with the mean and std of each channel."""
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    source = Pixels(("a",), np.zeros(1, np.int64), values, MEAN, STD)
    index = np.zeros(1, np.int64)
    batch = source.read(index)
    # This image has every value once, so that autocontrast and equalize leave it as it is, too.
    got = randaugment(batch, index, 1, RandAugment(ops=9, magnitude=0), pixel_scale(source, 3), 0, 0)
    assert np.allclose(got, batch, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("white", [16, 255])
def test_batching_changes_nothing(channels: int, white: int) -> None:
    config = Augment(randaugment=RandAugment(), crop=1, flip=True, mixup=0.3)
    source = split(channels, white=white)
    order = np.random.default_rng(0).permutation(TOTAL)[:40]
    whole = view(source, order, config, 3, 2)
    parts = [view(source, order[i : i + 7], config, 3, 2).inputs for i in range(0, 40, 7)]
    assert np.array_equal(np.concatenate(parts), whole.inputs)
    assert whole.inputs.dtype == np.float32
    assert whole.inputs.shape == (40, channels, 11, 8)
    assert not np.array_equal(whole.inputs, view(source, order, config, 3, 1).inputs)
    assert not np.array_equal(whole.inputs, view(source, order, config, 4, 2).inputs)


def test_operations_and_directions_are_drawn_evenly() -> None:
    chosen, signs = _draws(0, 0, 5000, 3)
    counts = np.bincount(chosen.ravel(), minlength=14)
    assert len(counts) == 14
    assert np.abs(counts - 15_000 / 14).max() < 5 * (15_000 / 14) ** 0.5
    assert set(signs.ravel().tolist()) == {-1, 1}
    assert np.abs(signs.mean(axis=0)).max() < 5 / 5000**0.5
    # with replacement: the same operation twice in a row is as likely as any other
    assert np.mean(chosen[:, 0] == chosen[:, 1]) == pytest.approx(1 / 14, abs=0.02)


def test_operations_follow_one_another_with_one_strength() -> None:
    source = split()
    order = np.array([200, 3, 77, 120, 5])
    got = randaugment(source.read(order), order, TOTAL, RandAugment(ops=3, magnitude=4), pixel_scale(source, 3), 6, 9)
    chosen, signs = _draws(6, 9, TOTAL, 3)
    fill = tuple(round(255 * mean) for mean in MEAN)
    for row, place in zip(got, order, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(source.pixels[place].transpose(1, 2, 0)))
        for number, sign in zip(chosen[place], signs[place], strict=True):
            picture = list(BY_NAME.values())[number](picture, 0.4 * sign, fill)
        pixels = (row.transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)) * 255
        assert np.allclose(pixels, np.asarray(picture), atol=1e-3)


def test_what_geometry_leaves_empty_is_the_mean_colour() -> None:
    pixels = np.full((TOTAL, 3, 20, 20), 255, np.uint8)
    source = Pixels(split().ids, split().targets, pixels, MEAN, STD)
    index = np.arange(TOTAL)
    got = randaugment(source.read(index), index, TOTAL, RandAugment(ops=1, magnitude=10), pixel_scale(source, 3), 0, 0)
    # 8 bits can't say the mean exactly: up to half a step off
    filled = np.abs(got).max(axis=1).reshape(TOTAL, -1) <= 0.5 / 255 / 0.24 + 1e-6
    some = filled.any(axis=1) & ~filled.all(axis=1)
    assert 0.2 < some.mean() < 0.5  # 5 of the 14


def test_a_split_that_does_not_know_its_pixels_is_refused() -> None:
    @dataclass(frozen=True)
    class Plain:
        ids: tuple[str, ...]
        targets: Int

        def read(self, index: Int) -> Float:
            return np.zeros((len(index), 3, 4, 4), np.float32)

    plain = Plain(split().ids, split().targets)
    config = Augment(randaugment=RandAugment())
    with pytest.raises(DataError, match="Plain does not say how its inputs become pixels"):
        view(plain, np.arange(2), config, 0, 0)
    task = Task("mine", tuple("abcd"), (3, 4, 4), {"train": plain, "test": plain}, config)
    with pytest.raises(DataError, match="give the split mean and std"):
        check_task(task, "mine")
    with pytest.raises(DataError, match="1 or 3 channels, got 2"):
        pixel_scale(split(2), 2)
    with pytest.raises(DataError, match="std must be finite and above 0"):
        pixel_scale(Pixels(("a",), np.zeros(1, np.int64), image(1, 1, 2, 2), (0.5,), (0.0,)), 1)


def test_the_digits_can_be_augmented() -> None:
    config = Augment(randaugment=RandAugment(ops=1, magnitude=2))
    train = load_task(Digits(augment=config)).splits["train"]
    index = np.arange(60)
    got, plain = view(train, index, config, 0, 0).inputs, train.read(index)
    assert got.min() >= -1
    assert got.max() <= 1
    # 8 bits can't say sixteenths exactly
    alike = np.abs(got - plain).max(axis=(1, 2, 3)) < 2 / 255
    assert 0 < alike.sum() < 60


@pytest.mark.parametrize("settings", [{"ops": 0}, {"magnitude": 10.5}, {"magnitude": -1}, {"magnitude": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RandAugment.model_validate(settings)
