"""Round each weight up or down such that the layer's answers stay: Nagel et al., arXiv 2004.10568.

    min over V of  E|Ŵ(V)x - y|² + λ·Σ (1 - |2h(V) - 1|^β),  Ŵ = s·clip(floor(W / s) + h(V)),
    h(V) = clip(1.2·sigmoid(V) - 0.1, 0, 1)

β falls from 20 to 2, so that each h may move freely at first and ends at 0 or 1. The error is computed from the layer's
moments, which is exact over all samples: there is no minibatch noise, and a step costs the same however many there are.
At the end a choice that lowers the error when it alone is turned round is turned round, until there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgewise.compress.quantization.config import AdaRound

STRETCH = 1.1  # the rectified sigmoid runs from 1 - STRETCH to STRETCH
WARMUP = 0.2  # of the iterations, without the regulariser
BETA = (20.0, 2.0)
GAIN = 1e-4  # of a step's error: less is float32's rounding


def adaround(
    weight: Tensor, step: Tensor, levels: tuple[int, int], moments: tuple[Tensor, Tensor], config: AdaRound
) -> Tensor:
    """The rounded weights: multiples of ``step``, each a neighbour of the weight (or the end of the range beyond which
    it lies). A channel whose nearest rounding gives less error keeps that.

    Args:
        weight: (C, D), D weights an output channel.
        step: (C, 1).
        levels: the lowest and the highest multiple.
        moments: (G, D, D) and (G, D, C / G), products of the input with itself and with the wanted output.
        config: iterations, rate and regulariser.

    Returns:
        (C, D).
    """
    low, high = levels
    xx, xy = (part.float() for part in moments)
    groups = len(xx)
    grid = weight / step
    floor = grid.floor()
    nearest = grid.round().clamp(low, high) * step
    scale = error(nearest, xx, xy)
    scale = (scale - _floor_of_error(xx, xy)).clamp(min=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rest = (grid - floor).clamp(0.01, 0.99)
    logits = torch.log((rest + STRETCH - 1) / (STRETCH - rest)).requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=config.lr)
    warmup = round(WARMUP * config.iterations)
    wide = floor.reshape(groups, -1, floor.shape[1])
    for iteration in range(config.iterations):
        up = _rectified(logits)
        soft = torch.clamp(wide + up.reshape(wide.shape), low, high) * step.reshape(groups, -1, 1)
        loss = (_quadratic(soft, xx, xy).reshape(-1) / scale).sum()
        if iteration >= warmup:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (config.iterations - iteration) / max(config.iterations - warmup, 1)
            loss = loss + config.regularization * (1 - (2 * up - 1).abs().pow(beta)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        chosen = polish(floor, (_rectified(logits) >= 0.5).float(), step, levels, (xx, xy))
        learned = torch.clamp(floor + chosen, low, high) * step
        better = error(learned, xx, xy) < error(nearest, xx, xy)
        return torch.where(better[:, None], learned, nearest)


def polish(floor: Tensor, up: Tensor, step: Tensor, levels: tuple[int, int], moments: tuple[Tensor, Tensor]) -> Tensor:
    """Turn single choices round, in each channel the best one at a time, while that lowers its error.

    Args:
        floor: (C, D) multiples of ``step``, rounded down.
        up: (C, D), 1 where the weight is rounded up.
        step: (C, 1).
        levels: the lowest and the highest multiple.
        moments: as in :func:`adaround`.

    Returns:
        ``up`` afterwards.
    """
    xx, xy = moments
    shape = (len(xx), -1, floor.shape[1])
    floor, up, step = floor.reshape(shape), up.reshape(shape).clone(), step.reshape(len(xx), -1, 1)
    squares = xx.diagonal(dim1=1, dim2=2)[:, None, :]
    weight = torch.clamp(floor + up, *levels) * step
    slope = weight @ xx - xy.transpose(1, 2)
    groups = torch.arange(len(xx))[:, None]
    for _ in range(2 * floor.shape[2]):
        move = torch.clamp(floor + 1 - up, *levels) * step - weight
        gain, place = (move * (2 * slope + move * squares)).min(2, keepdim=True)
        worth = gain < -GAIN * squares.mean() * step.square()
        if not worth.any():
            break
        taken = torch.where(worth, move.gather(2, place), 0)
        weight.scatter_add_(2, place, taken)
        slope += taken * xx[groups, place[:, :, 0]]
        up.scatter_(2, place, torch.where(worth, 1 - up.gather(2, place), up.gather(2, place)))
    return up.reshape(-1, shape[2])


def error(weight: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    """E|wx - y|² of each output channel, less the part that is the same for all weights: (C, D) -> (C,)."""
    return _quadratic(weight.reshape(len(xx), -1, weight.shape[1]), xx, xy).reshape(-1)


def _quadratic(weight: Tensor, xx: Tensor, xy: Tensor) -> Tensor:
    product: Tensor = (weight @ xx - 2 * xy.transpose(1, 2)) * weight
    return product.sum(2)


def _floor_of_error(xx: Tensor, xy: Tensor) -> Tensor:
    """The least that any weights could give, (C,): what rounding adds is counted from there."""
    ridge = 1e-6 * xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    best = torch.linalg.solve(
        xx.double() + ridge.double()[:, None, None] * torch.eye(xx.shape[1], device=xx.device), xy.double()
    )
    least: Tensor = -(best * xy.double()).sum(1)
    return least.reshape(-1).float()


def _rectified(logits: Tensor) -> Tensor:
    return torch.clamp(torch.sigmoid(logits) * (2 * STRETCH - 1) + 1 - STRETCH, 0, 1)


__all__ = ["adaround", "error", "polish"]
