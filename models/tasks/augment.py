"""One view of the training samples for a step: RandAugment, crop, flip, then mixup or CutMix.

Everything random is a function of (seed, view, position in the split) alone, so that batching, resuming and the number
of processes change nothing, and a view can be replayed, for instance for a teacher whose answers were kept. There is
one view a step, and teacher and student both see it.

    mixup     x = l * x_i + (1 - l) * x_j                                        arXiv 1710.09412, section 2
    CutMix    x = x_i with a box of x_j, l = 1 - area of the box / (H * W)       arXiv 1905.04899, section 3.1

l ~ Beta(alpha, alpha). The papers' code draws one l and one box for a batch, and the partner j from that batch. Here l
and box belong to the sample, and j comes from a permutation of the whole split that belongs to the view, because a
batch must not decide what its samples look like. A partner is augmented as it is for itself in that view. CutMix's box
is clipped at the border and l is what is left, as in the authors' code. Where both are asked for, each sample gets one
of them, by a fair coin. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.models.tasks.arrays import Pixels
from edgewise.models.tasks.base import DrawnSplit, Float, Int, Split
from edgewise.models.tasks.config import Augment

# Kinds of draws, so that no two share their numbers; 1 is the order in which training visits the samples.
MIXING = 2
# What is in memory is read in pieces of so many samples: large arrays that come and go make the system clear their
# pages anew each time, which can cost more than all the rest.
PIECE = 32


@dataclass(frozen=True)
class View:
    """``inputs`` (N, C, H, W). Where samples are mixed, ``partners`` (N,) are the positions of the other samples in the
    split (the sample itself where it stays whole) and ``share`` (N,) is the part of the sample's own label, 0..1.
    Where the view decides what is asked, ``targets`` are its own."""

    inputs: NDArray[Any]
    partners: Int | None = None
    share: Float | None = None
    targets: NDArray[Any] | None = None


@dataclass(frozen=True)
class _Mixing:
    """For each sample of the view: its partner, whether it is cut (else blended), its l, the box's centre (y, x) in
    0..1."""

    partners: Int
    cuts: NDArray[np.bool_]
    kept: NDArray[np.float64]
    centres: NDArray[np.float64]


def view_number(config: Augment, epoch: int) -> int:
    """Which view ``epoch`` (from 0) shows: two epochs of the same number show the same inputs."""
    if not config.draws:
        return 0
    return epoch if config.views is None else epoch % config.views


def view(split: Split, index: Int, config: Augment, seed: int, epoch: int) -> View:
    """What training shows of the samples at ``index`` (N,), positions in ``split``, in ``epoch`` (from 0).

    Raises:
        DataError: RandAugment is asked for, but ``split`` does not say how its inputs become pixels.
    """
    number = view_number(config, epoch)
    if isinstance(split, DrawnSplit):
        inputs, targets = split.draw(index, seed, number)
        return View(inputs, targets=targets)
    inputs = _single(split, index, config, seed, number)
    if not config.mixes:
        return View(inputs)
    draws = _mixing(seed, number, len(split.ids), config.mixup, config.cutmix, config.mix_chance)
    partners, cuts, share = draws.partners[index], draws.cuts[index], draws.kept[index].astype(np.float32)
    height, width = inputs.shape[2:]
    boxes = _boxes(draws.kept[index], draws.centres[index], height, width)
    share[cuts] = 1 - ((boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (height * width))[cuts]
    rows = np.flatnonzero(partners != index)
    others = _single(split, partners[rows], config, seed, number)
    # Where nothing else was done, the split may have given its own memory.
    mixed = inputs if config.randaugment or config.crop or config.flip else inputs.copy()
    # One sample after the other stays in the processor's cache, which is faster than the whole batch at once.
    for row, other in zip(rows.tolist(), others, strict=True):
        if cuts[row]:
            top, bottom, left, right = boxes[row]
            mixed[row, :, top:bottom, left:right] = other[:, top:bottom, left:right]
        else:
            part = float(share[row])
            mixed[row] *= part
            mixed[row] += (1 - part) * other
    return View(mixed, partners, share)


def augment(batch: Float, index: Int, total: int, config: Augment, seed: int, epoch: int) -> Float:
    """Crop and flip: a changed copy of ``batch`` (N, C, H, W), or ``batch`` itself where neither is asked for.

    Args:
        batch: normalised inputs; the padding of a crop is 0 here, the mean colour.
        index: (N,) positions in the training split.
        total: samples in the training split.
        config: what to do.
        seed: of the run.
        epoch: the view's number.
    """
    if not config.crop and not config.flip:
        return batch
    out = np.zeros_like(batch)
    _crop_and_flip(out, batch, index, total, config, seed, epoch)
    return out


def _crop_and_flip(out: Float, batch: Float, index: Int, total: int, config: Augment, seed: int, number: int) -> None:
    """``augment`` into ``out``, which holds the padding's zeros."""
    shifts, flips = _draws(seed, number, total, config.crop)
    height, width = batch.shape[2:]
    offsets = shifts[index] - config.crop
    flipped = flips[index] if config.flip else np.zeros(len(index), bool)
    # A slice for each sample is four times as fast as one fancy index over windows of the padded batch.
    for new, old, (top, left), flip in zip(out, batch, offsets.tolist(), flipped.tolist(), strict=True):
        bottom, right = min(height, height + top), min(width, width + left)
        first, start = max(top, 0), max(left, 0)
        if first >= bottom or start >= right:
            continue  # nothing but padding
        window = new[:, :, ::-1] if flip else new
        window[:, first - top : bottom - top, start - left : right - left] = old[:, first:bottom, start:right]


def _single(split: Split, index: Int, config: Augment, seed: int, number: int) -> Float:
    """Each sample for itself, (len(index), C, H, W)."""
    total = len(split.ids)
    if isinstance(split, Pixels) and (config.crop or config.flip) and config.randaugment is None:
        out = np.zeros((len(index), *split.pixels.shape[1:]), np.float32)
        for start in range(0, len(index), PIECE):
            piece = index[start : start + PIECE]
            _crop_and_flip(out[start : start + PIECE], split.read(piece), piece, total, config, seed, number)
        return out
    inputs = split.read(index)
    if config.randaugment is not None:
        from edgewise.models.tasks.randaugment import pixel_scale, randaugment

        scale = pixel_scale(split, inputs.shape[1])
        inputs = randaugment(inputs, index, total, config.randaugment, scale, seed, number)
    return augment(inputs, index, total, config, seed, number)


def _boxes(kept: NDArray[np.float64], centres: NDArray[np.float64], height: int, width: int) -> Int:
    """(N, 4): top, bottom, left, right. Sides are sqrt(1 - l) of the image's; clipped at the border."""
    bounds = []
    for side, centre in ((height, centres[:, 0]), (width, centres[:, 1])):
        half = (side * np.sqrt(1 - kept)).astype(np.int64) // 2
        middle = (side * centre).astype(np.int64)
        bounds += [np.clip(middle - half, 0, side), np.clip(middle + half, 0, side)]
    return np.stack(bounds, axis=1)


@lru_cache(maxsize=2)
def _draws(seed: int, epoch: int, total: int, crop: int) -> tuple[Int, NDArray[np.bool_]]:
    """For each sample of the epoch: (total, 2) offsets in 0..2 * crop, and (total,) whether to flip."""
    generator = np.random.default_rng([seed, epoch])
    flips = generator.random(total) < 0.5
    return generator.integers(0, 2 * crop + 1, size=(total, 2)), flips


@lru_cache(maxsize=2)
def _mixing(seed: int, number: int, total: int, mixup: float, cutmix: float, chance: float) -> _Mixing:
    generator = np.random.default_rng([seed, number, MIXING])
    partners = generator.permutation(total)
    whole = generator.random(total) >= chance
    coin = generator.random(total) < 0.5
    centres = generator.random((total, 2))
    cuts = coin if mixup and cutmix else np.full(total, cutmix > 0)
    kept = np.empty(total)
    for alpha, which in ((mixup, ~cuts), (cutmix, cuts)):
        if alpha:
            kept[which] = generator.beta(alpha, alpha, total)[which]
    positions = np.arange(total)
    partners = np.where(whole, positions, partners)
    kept[partners == positions] = 1
    return _Mixing(partners, cuts, kept, centres)
