"""Images from a small generator that a frozen teacher takes for its training data: data-free learning (DAFL).

    L = CE(z, argmax z) - alpha * mean|f| - beta * H(mean over samples of softmax(z)) + gamma * R_BN(x)

z are the teacher's logits, f what goes into its classifier, H the entropy in nats: each image sure, its features awake,
the classes equally frequent. R_BN (``statistics.py``) is the BatchNorm term of DeepInversion, as an option.
Chen et al., "Data-Free Learning of Student Networks", arXiv 1904.01186, section 3.1.

We differ: the generator is trained first, with the training loop, and the student then learns from a fixed set of its
images like from any data; the paper trains both in turn. H is neither divided by the number of classes (the paper) nor
taken with log10 (the published code): their 5 is 2.17 here. Where the pixels' bounds are known the last layer is
scaled into them; else the images are normalised as in the paper.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from edgewise.compress.config import AdamW, Fit
from edgewise.compress.layers import trace
from edgewise.compress.lesson import Lesson
from edgewise.compress.losses.base import Batch
from edgewise.compress.strategies.data_free_config import Generator
from edgewise.compress.strategies.inversion import Bounds
from edgewise.compress.strategies.statistics import frozen, watched
from edgewise.compress.taps import INPUT, tapped
from edgewise.compress.train import fit
from edgewise.errors import ModelError
from edgewise.progress import Tick, silent


class ImageGenerator(nn.Module):
    """Noise (N, noise, 1, 1) -> images (N, C, H, W): a linear layer to a map of a quarter of the size, two doublings
    with a 3x3 convolution each, and a last convolution; BatchNorm after every one."""

    def __init__(self, noise: int, width: int, input_shape: tuple[int, int, int], bounds: Bounds | None = None) -> None:
        super().__init__()
        channels, height, width_ = input_shape
        self.sizes = [(-(-height // part), -(-width_ // part)) for part in (4, 2, 1)]
        self.start = nn.Linear(noise, 2 * width * self.sizes[0][0] * self.sizes[0][1])
        self.norm = nn.BatchNorm2d(2 * width)
        self.middle = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)
        )
        self.full = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        self.bounded = bounds is not None
        # Before tanh a learnt scale, so that it can saturate: black is where most real pixels are.
        self.end = nn.BatchNorm2d(channels, affine=self.bounded)
        low, high = torch.tensor(bounds or [(-1.0, 1.0)] * channels).T.reshape(2, 1, channels, 1, 1)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, noise: Tensor) -> Tensor:
        """(N, C, H, W), within the bounds where there are any."""
        x: Tensor = self.norm(self.start(noise.flatten(1)).unflatten(1, (-1, *self.sizes[0])))
        x = self.middle(interpolate(x, size=self.sizes[1]))
        x = self.last(self.full(interpolate(x, size=self.sizes[2])))
        if not self.bounded:
            out: Tensor = self.end(torch.tanh(x))
            return out
        assert isinstance(self.low, Tensor)
        assert isinstance(self.high, Tensor)
        return self.low + (self.high - self.low) * (0.5 + 0.5 * torch.tanh(self.end(x).float()))


@dataclass(frozen=True)
class Noise:
    """A split of noise vectors (noise, 1, 1), one for each image to make."""

    values: NDArray[np.float32]

    @property
    def ids(self) -> tuple[str, ...]:
        """By place."""
        return tuple(f"noise-{place}" for place in range(len(self.values)))

    @property
    def targets(self) -> NDArray[np.int64]:
        """No classes: the generator chooses what it shows."""
        return np.zeros(len(self.values), np.int64)

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """(len(index), noise, 1, 1)."""
        return self.values[index]


def generator_terms(logits: Tensor, features: Tensor) -> dict[str, Tensor]:
    """DAFL's three terms, unweighted scalars to be minimised, in float32.

    Args:
        logits: (N, K), the teacher's.
        features: (N, ...), what goes into its classifier.
    """
    logits = logits.float()
    mean = logits.softmax(dim=1).mean(dim=0)
    return {
        "one_hot": cross_entropy(logits, logits.detach().argmax(dim=1)),
        "activation": -features.float().abs().mean(),
        "entropy": (mean * mean.clamp_min(1e-12).log()).sum(),
    }


class _GeneratorLesson(Lesson):
    """Noise in, the teacher's opinion out. ``features`` and ``gaps`` are filled by hooks on the teacher."""

    def __init__(
        self,
        model: ImageGenerator,
        teacher: nn.Module,
        config: Generator,
        classes: int,
        features: dict[str, Tensor],
        gaps: list[Tensor],
    ) -> None:
        super().__init__(model)
        self.teacher, self.config, self.classes = (teacher,), config, classes
        self.features, self.gaps = features, gaps

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Three terms, or four."""
        self.gaps.clear()
        (teacher,) = self.teacher
        teacher.to(batch.inputs.device)
        logits = teacher(self.model(batch.inputs))
        if logits.shape != (len(batch.inputs), self.classes):
            raise ModelError(f"expected the teacher to know {self.classes} classes, got {tuple(logits.shape)}")
        (features,) = self.features.values()
        terms = generator_terms(logits, features)
        if self.config.statistics:
            terms["statistics"] = torch.stack(self.gaps).sum()
        return terms

    def weights(self, epoch: float, epochs: float) -> dict[str, float]:
        """Constant."""
        return {name: getattr(self.config, name) for name in ("one_hot", "activation", "entropy", "statistics")}


def generate(
    teacher: nn.Module,
    config: Generator,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    seed: int,
    bounds: Bounds | None = None,
    checkpoint: Path | None = None,
    tick: Tick = silent,
) -> NDArray[np.float32]:
    """(samples, C, H, W) normalised images, made from the teacher alone. Its values and modes come back as they were;
    it stands where the training loop runs.

    Args:
        teacher: any classifier; with BatchNorm where ``statistics`` is set.
        config: numbers and weights.
        input_shape: (C, H, W).
        classes: at least 2; the teacher's answers are (N, classes).
        seed: of weights, noise and order.
        bounds: (low, high) of a normalised pixel, for each channel.
        checkpoint: of the generator's training, which goes on from there.
        tick: counts training steps.

    Raises:
        ModelError: the teacher has no BatchNorm (with ``statistics``) or no classifier; the loss is no longer finite.
    """
    if classes < 2:
        raise ModelError(f"a generator needs at least 2 classes to aim at, got {classes}")
    if config.samples < config.batch_size:
        raise ModelError(
            f"expected at least one batch of {config.batch_size} images, got {config.samples}",
            where="generator.batch_size",
            hint=f"set batch_size to {config.samples} or less",
        )
    classifier = trace(teacher, input_shape).classifier
    if classifier is None:
        raise ModelError("no Linear or Conv gives the teacher's logits, so there are no features before it")
    random = torch.Generator().manual_seed(seed)
    noise = Noise(torch.randn(config.samples, config.noise, 1, 1, generator=random).numpy())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageGenerator(config.noise, config.width, input_shape, bounds)
    model.to(next(teacher.parameters()).device)
    run = Fit(
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=AdamW(lr=config.lr, weight_decay=0.0),
        precision=config.precision,
    )
    watch: AbstractContextManager[list[Tensor]] = watched(teacher) if config.statistics else nullcontext([])
    with frozen(teacher), tapped(teacher, (classifier + INPUT,)) as features, watch as gaps:
        lesson = _GeneratorLesson(model, teacher, config, classes, features, gaps)
        fit(lesson, noise, run, seed=seed, checkpoint=checkpoint, tick=tick)
    return _sampled(model, noise.values, config.batch_size)


@torch.no_grad()
def _sampled(model: ImageGenerator, noise: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
    """Images of all noise. BatchNorm takes the statistics of each whole batch, as it did in training; the last batch is
    filled up from the first."""
    model.train()
    device = next(model.parameters()).device
    filled = np.concatenate([noise, noise[: -len(noise) % batch_size]])
    batches = torch.split(torch.from_numpy(filled), batch_size)
    return np.concatenate([model(batch.to(device)).float().cpu().numpy() for batch in batches])[: len(noise)]
