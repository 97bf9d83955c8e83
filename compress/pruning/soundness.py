"""Is removing the same as zeroing? Tried, with random weights and random units, so a layer whose forward does what no
graph shows (a fixed reshape, a shortcut that pads channels, a norm over channels) is found by what happens, not by the
name of its family."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgewise.compress.macs import evaluating, shown
from edgewise.compress.pruning.cut import remove, zero
from edgewise.compress.pruning.groups import Candidate, Cut, cuts_of, merge, portions
from edgewise.errors import ModelError
from edgewise.models.inputs import drawn


def sound(
    model: nn.Module, candidates: list[Candidate], input_shape: tuple[int, ...], seed: int
) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates for which removing random units equals zeroing them, and the reason for each of the others.

    All at once first, then halves: a model without trouble costs two forward passes.
    """
    skipped: dict[str, str] = {}
    generator = torch.Generator().manual_seed(seed)
    probe = randomized(model, generator)

    def keep(some: list[Candidate], cuts: list[list[Cut]]) -> list[Candidate]:
        wrong = difference(probe, merge(cuts), input_shape)
        if not wrong:
            return some
        if len(some) == 1:
            skipped.update(dict.fromkeys(some[0].writers, wrong))
            return []
        middle = len(some) // 2
        return keep(some[:middle], cuts[:middle]) + keep(some[middle:], cuts[middle:])

    for part in (2, 0):  # half of the units, then one alone: a few may fall into place by accident
        candidates = keep(candidates, [_some(one, part, generator) for one in candidates]) if candidates else []
    return candidates, skipped


def check(model: nn.Module, cuts: list[Cut], input_shape: tuple[int, ...], seed: int) -> None:
    """With its own weights and with random ones, ``model`` less these cuts must compute what the rest computed.

    Raises:
        ModelError: it doesn't.
    """
    random = randomized(model, torch.Generator().manual_seed(seed))
    wrong = difference(model, cuts, input_shape) or difference(random, cuts, input_shape)
    if wrong:
        raise ModelError(
            f"the pruned model doesn't compute what the channels it keeps computed before: {wrong}",
            hint="check that the model's own weights are finite, or leave the prune stage out",
        )


def randomized(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random weights: a branch that trained or started at zero would hide a mistake."""
    probe = copy.deepcopy(model)
    for name, tensor in [*probe.named_parameters(), *probe.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if tensor.dim() >= 2:
            random = torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5
        else:  # scales and variances near one, biases and means near zero
            shift = 0.0 if name.endswith(("bias", "mean")) else 1.0
            random = torch.rand(tensor.shape, generator=generator) - 0.5 + shift
        tensor.data.copy_(random)
    return probe


def difference(model: nn.Module, cuts: list[Cut], input_shape: tuple[int, ...]) -> str:
    """Empty if ``model`` with the cuts removed computes what it computes with them zeroed, else what happened."""
    inputs = shown(model, drawn(input_shape, 2, seed=0))
    zeroed, removed = copy.deepcopy(model), copy.deepcopy(model)
    try:
        zero(zeroed, cuts)
        remove(removed, cuts)
        expected, got = _run(zeroed, inputs), _run(removed, inputs)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        return f"its channel count is fixed in forward: {str(error).splitlines()[0]}"
    if expected.shape != got.shape:
        return "writes the model's output"
    largest = float((expected - got).abs().max())
    if not largest <= 1e-3 * float(expected.abs().max()):  # NaN too
        return "removing its channels is not the same as zeroing them: forward mixes or counts channels"
    return ""


def _some(candidate: Candidate, part: int, generator: torch.Generator) -> list[Cut]:
    """One in ``part`` of the units at random, as many of each kind; of each kind one where ``part`` is 0."""
    drawn = portions(candidate, torch.rand(candidate.units, generator=generator))
    some = drawn[: len(drawn) // part if part else 1]
    return cuts_of(candidate, [unit for portion in some for unit in portion])


def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model):
        output = model(inputs)
    if not isinstance(output, Tensor):
        raise TypeError(f"the model returns {type(output).__name__}, not one tensor")
    return output
