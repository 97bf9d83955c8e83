"""Images optimised until a frozen teacher takes them for its training data: BatchNorm-statistics inversion.

    min over x of  CE(z_t(x), y) + a_f * R_BN(x) + a_tv * TV(x) + a_l2 * |x|_2 + a_c * (1 - JS(p_t, p_s))

R_BN is in ``statistics.py``; TV is the sum of the norms of the batch's differences to the right, down and along both
diagonals; JS, at temperature 3, sends images to where a student still disagrees (adaptive inversion).
Yin et al., "Dreaming to Distill", arXiv 1912.08795, section 3.

We differ: the learning rate falls along a cosine unless told otherwise. JS is the Jensen-Shannon divergence of the
paper, in nats; the published code clips probabilities to [0.01, 0.99] and takes KL(mean || each), the other way
round. No batch is smaller than the others by more than one image, because a small one can't carry the statistics. The
pixels can be kept within what a real image can hold. Pixels, not weights, are optimised here, so this is no run of
the training loop.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgewise.compress.cache import teacher_digest
from edgewise.compress.strategies.data_free_config import Inversion
from edgewise.compress.strategies.statistics import frozen, watched
from edgewise.errors import ArtifactError, ModelError
from edgewise.progress import Tick, silent

Bounds = tuple[tuple[float, float], ...]
"""(lowest, highest) value of a normalised pixel, for each channel."""


def pixel_bounds(mean: tuple[float, ...], std: tuple[float, ...]) -> Bounds:
    """What black and white become when pixels in 0..1 are normalised as (pixel - mean) / std."""
    return tuple(((0.0 - m) / s, (1.0 - m) / s) for m, s in zip(mean, std, strict=True))


def total_variation(images: Tensor) -> Tensor:
    """Scalar: norms of the differences of ``images`` (N, C, H, W) along two axes and two diagonals, each over all."""
    x = images.float()
    gaps = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    return torch.stack([torch.linalg.vector_norm(gap) for gap in gaps]).sum()


def js_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Scalar Jensen-Shannon divergence, 0..log 2, of the softened logits (N, K), averaged over samples."""
    ours = (student.float() / temperature).log_softmax(dim=-1)
    theirs = (teacher.float() / temperature).log_softmax(dim=-1)
    middle = torch.logaddexp(ours, theirs) - math.log(2)
    both = ours.exp() * (ours - middle) + theirs.exp() * (theirs - middle)
    return 0.5 * both.sum(dim=-1).mean()


def targets_of(config: Inversion, classes: int, *, seed: int) -> NDArray[np.int64]:
    """(samples,) the class each image is meant to show: in turn, or drawn."""
    if config.targets == "balanced":
        return np.arange(config.samples, dtype=np.int64) % classes
    return np.random.default_rng([seed, 2]).integers(0, classes, config.samples)


def invert(
    teacher: nn.Module,
    config: Inversion,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    seed: int,
    bounds: Bounds | None = None,
    student: nn.Module | None = None,
    checkpoint: Path | None = None,
    tick: Tick = silent,
) -> NDArray[np.float32]:
    """(samples, C, H, W) normalised images for :func:`targets_of`, made from the teacher alone.

    A batch is a function of (seed, its place): finished ones are kept in ``checkpoint``, and a killed run that
    goes on ends with what an uninterrupted one gives. Both nets come back as they were.

    Args:
        teacher: with BatchNorm; the images are made on its device.
        config: numbers and weights.
        input_shape: (C, H, W).
        classes: at least 2; the teacher's answers are (N, classes).
        seed: of noise, shifts, flips and drawn classes.
        bounds: the images are kept within these, see :func:`pixel_bounds`.
        student: whom the images are to puzzle, where ``compete`` is set.
        checkpoint: a file of finished batches.
        tick: counts steps of all batches.

    Raises:
        ModelError: the teacher has no statistics, is quantized, or answers in another shape; ``compete`` without a
            student; the loss is no longer finite.
        ArtifactError: ``checkpoint`` belongs to another run.
    """
    if classes < 2:
        raise ModelError(f"inversion needs at least 2 classes to aim at, got {classes}")
    if bool(config.compete) != (student is not None):
        raise ModelError(
            "competition needs both a student and a weight",
            where="inversion.compete",
            hint="pass the student that the images are to puzzle and set compete above 0, or neither",
        )
    if bounds is not None and (len(bounds) != input_shape[0] or any(low >= high for low, high in bounds)):
        raise ModelError(f"expected {input_shape[0]} bounds (low, high), one a channel, got {bounds}")
    device = next(teacher.parameters()).device
    targets = torch.from_numpy(targets_of(config, classes, seed=seed)).to(device)
    batches = targets.tensor_split(math.ceil(config.samples / config.batch_size))
    models = [teacher] if student is None else [teacher, student]
    settings = (teacher_digest(*models), config.model_dump_json(), tuple(input_shape), classes, seed, bounds)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()
    images = _load(checkpoint, key) if checkpoint is not None else []
    with frozen(*models), watched(teacher, first=config.first) as gaps:
        for place in range(len(images), len(batches)):
            random = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 3, place]).generate_state(1)[0]))
            aims = batches[place]
            batch = torch.randn(len(aims), *input_shape, generator=random).to(device)

            def terms(view: Tensor, aims: Tensor = aims) -> dict[str, Tensor]:
                gaps.clear()
                return _terms(view, aims, teacher, student, config, gaps, classes)

            def told(step: int, loss: float, place: int = place) -> None:
                note = f"batch {place + 1}/{len(batches)} loss {loss:.3f}"
                tick(place * config.steps + step, len(batches) * config.steps, note)

            images.append(_optimised(batch, terms, config, bounds, random, told).cpu().numpy())
            if checkpoint is not None:
                _save(checkpoint, key, images)
    return np.concatenate(images)


def _terms(
    view: Tensor,
    aims: Tensor,
    teacher: nn.Module,
    student: nn.Module | None,
    config: Inversion,
    gaps: list[Tensor],
    classes: int,
) -> dict[str, Tensor]:
    """The weighted terms of ``view`` (N, C, H, W), which is meant to show ``aims`` (N,)."""
    logits = teacher(view)
    if logits.shape != (len(view), classes):
        raise ModelError(f"expected the teacher to answer {(len(view), classes)}, got {tuple(logits.shape)}")
    terms = {
        "cross_entropy": cross_entropy(logits.float(), aims),
        "statistics": config.statistics * torch.stack(gaps).sum(),
        "total_variation": config.total_variation * total_variation(view),
        "l2": config.l2 * torch.linalg.vector_norm(view),
    }
    if student is not None:
        likeness = 1 - js_divergence(student(view), logits, temperature=config.temperature)
        terms["compete"] = config.compete * likeness
    return terms


def _optimised(
    images: Tensor,
    terms: Callable[[Tensor], dict[str, Tensor]],
    config: Inversion,
    bounds: Bounds | None,
    random: torch.Generator,
    told: Callable[[int, float], None],
) -> Tensor:
    """``images`` (N, C, H, W) after all steps; every step looks at them through another shift and flip."""
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=config.lr)
    reach = min(images.shape[2:]) // 16 if config.jitter is None else config.jitter
    limits = None if bounds is None else torch.tensor(bounds, device=images.device).T.reshape(2, 1, -1, 1, 1)
    for step in range(config.steps):
        if config.schedule == "cosine":
            optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        down, right = torch.randint(-reach, reach + 1, (2,), generator=random).tolist()
        view = torch.roll(images, (down, right), dims=(2, 3))
        if config.flip and torch.rand(1, generator=random).item() < 0.5:
            view = view.flip(3)
        values = terms(view)
        loss = torch.stack(list(values.values())).sum()
        (images.grad,) = torch.autograd.grad(loss, [images])
        optimizer.step()
        if limits is not None:
            with torch.no_grad():
                images.clamp_(limits[0], limits[1])
        # Not at every step: reading a number waits for an accelerator.
        if (step + 1) % 20 == 0 or step + 1 == config.steps:
            if not math.isfinite(loss.item()):
                found = {name: value.item() for name, value in values.items()}
                raise ModelError(
                    f"the loss is no longer finite at step {step + 1} of {config.steps} ({found})",
                    hint="lower inversion.lr or the weight of the term that is not",
                )
            told(step + 1, loss.item())
    return images.detach().contiguous()


def _save(path: Path, key: str, images: list[NDArray[np.float32]]) -> None:
    """One safetensors file, written beside and renamed: a killed process leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(to_bytes({f"batch{place}": batch for place, batch in enumerate(images)}, {"key": key}))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _load(path: Path, key: str) -> list[NDArray[np.float32]]:
    """Finished batches; none where there is no file."""
    if not path.exists():
        return []
    try:
        with safe_open(str(path), framework="np") as file:
            found = file.metadata()["key"]
            images = [file.get_tensor(f"batch{place}") for place in range(len(file.keys()))]
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"not a checkpoint of an inversion ({error})", where=str(path), hint="delete it to start over"
        ) from error
    if found != key:
        raise ArtifactError(
            "this checkpoint is of another inversion: another teacher, student, config, seed or image size",
            where=str(path),
            hint="delete it to start over",
        )
    return images
