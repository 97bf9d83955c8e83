"""Self-distillation by deep supervision: exits at inner layers learn from the labels and from the net's own end.

    L = CE(z, y) + sum over exits i of (1 - a) * CE(q_i, y) + a * T^2 * KL(q_i || sg z) + b * |F_i - sg F|^2

Zhang et al., "Be Your Own Teacher", arXiv 1905.08094, equation 7: a = 0.1, T = 3, b = 1e-6 in the authors' code. An
exit is a 1x1 convolution to the last map's channels (its output is F_i), pooling and a linear classifier. The authors'
exits are stacks of separable convolutions; these cost less and leave the same net behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from typing_extensions import Unpack

from edgewise.compress.adapters import map_shape, to_map
from edgewise.compress.config import SelfDistill
from edgewise.compress.layers import Trace, resolve, sizes, trace
from edgewise.compress.lesson import Lesson, label_loss
from edgewise.compress.losses.base import Batch, Pair
from edgewise.compress.losses.kd import kd_loss
from edgewise.compress.schedule import value_at
from edgewise.compress.taps import tapped
from edgewise.compress.train import Epoch, Running, fit
from edgewise.errors import ModelError
from edgewise.models.inputs import is_text
from edgewise.models.tasks.base import Split, shape_of


class Exit(nn.Module):
    """A map (N, C, H, W) or tokens (N, L, D) -> (features like the last map's (N, C', H', W'), logits (N, K))."""

    def __init__(self, channels_in: int, last: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, *size = last
        self.size = (size[0], size[1])
        self.reach = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.classify = nn.Linear(channels, classes)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled to the last map's size first: an exit costs little at a large map."""
        reached = self.reach(adaptive_avg_pool2d(to_map(feature), self.size))
        return reached, self.classify(reached.mean(dim=(2, 3)))


class Exits(Lesson):
    """A net with exits at ``layers``; ``last`` is the deepest map."""

    def __init__(
        self,
        model: nn.Module,
        layers: tuple[str, ...],
        last: str,
        found: Trace,
        config: SelfDistill,
        features: Mapping[str, Tensor],
    ) -> None:
        super().__init__(model)
        self.layers, self.last, self.config, self.features = layers, last, config, features
        end = map_shape(found.shapes[last])
        pairs = tuple(Pair(student=name, teacher=name) for name in layers)
        shapes = sizes(pairs, found, found, samples=0).student  # also of what goes into a layer
        self.exits = nn.ModuleList(Exit(map_shape(shape)[0], end, found.output[-1]) for shape in shapes)

    def weights(self, epoch: float, epochs: float) -> dict[str, float]:
        """The labels' at the end; at every exit the labels', its own end's and the features'."""
        found = {"cross_entropy": value_at(self.config.cross_entropy, epoch, epochs)}
        for name in self.layers:
            found[f"{name}: cross_entropy"] = 1 - self.config.alpha
            found[f"{name}: kd"] = self.config.alpha
            found[f"{name}: features"] = value_at(self.config.feature_weight, epoch, epochs)
        return found

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Three terms an exit."""
        smoothing = self.config.fit.label_smoothing
        logits = self.model(batch.inputs)
        end, temperature = to_map(self.features[self.last]).detach().float(), batch.at(self.config.temperature)
        terms = {"cross_entropy": label_loss(logits, batch, smoothing)}
        for name, leave in zip(self.layers, self.exits, strict=True):
            reached, answer = leave(self.features[name])
            terms[f"{name}: cross_entropy"] = label_loss(answer, batch, smoothing)
            terms[f"{name}: kd"] = kd_loss(answer, logits, temperature=temperature)
            terms[f"{name}: features"] = (reached.float() - end).pow(2).sum(dim=(1, 2, 3)).mean()
        return terms


def exit_layers(
    model: nn.Module, chosen: Literal["auto"] | tuple[str, ...], input_shape: tuple[int, ...]
) -> tuple[Trace, tuple[str, ...], str]:
    """A dry run of ``model``, the layers with exits, and the deepest map.

    Raises:
        ModelError: there is no inner layer to leave at, or a named one isn't there.
    """
    if is_text(input_shape):
        raise ModelError(
            "exits are made for maps of images, and the task gives texts",
            where="self_distill",
            hint="use ema_teacher or born_again, which need no exits",
        )
    found = trace(model, input_shape)
    stages = list(found.stages)
    layers = tuple(stages[:-1]) if chosen == "auto" else tuple(p.student for p in resolve(chosen, found, found))
    if not stages or not layers:
        raise ModelError(
            f"no inner layer to leave at; maps of different size: {', '.join(stages) or 'none'}",
            where="layers",
            hint="name layers whose output is a map (N, C, H, W) or tokens (N, L, D)",
        )
    return found, layers, stages[-1]


def learn_from_end(
    model: nn.Module,
    split: Split,
    config: SelfDistill,
    **running: Unpack[Running],
) -> list[Epoch]:
    """Train ``model`` in place with exits, which are forgotten afterwards.

    Raises:
        ModelError: there is no inner layer to leave at, or a named one is no map.
    """
    found, layers, last = exit_layers(model, config.layers, shape_of(split))
    torch.manual_seed(running["seed"])
    with tapped(model, (*layers, last)) as features:
        lesson = Exits(model, layers, last, found, config, features)
        return fit(lesson, split, config.fit, **running)
