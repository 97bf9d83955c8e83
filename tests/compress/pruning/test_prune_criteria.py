"""Each criterion against a slow restatement with loops in float64, and against torch-pruning's own."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from edgewise.compress.pruning.channels import channel_groups
from edgewise.compress.pruning.criteria import rank
from edgewise.errors import ModelError

SHAPE = (3, 6, 6)


class _Net(nn.Module):
    """first -> norm -> second (in four groups) -> head; ``first``'s channels leave by fours, one of each group."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, padding=1, groups=groups)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.second(x)), 2)
        return self.head(x.flatten(1))


def _net(groups: int) -> _Net:
    torch.manual_seed(3)
    net = _Net(groups).eval()
    for tensor in (net.norm.weight, net.norm.bias, net.norm.running_mean, net.norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return net


def _samples(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(count, *SHAPE, generator=generator)
    targets = torch.randint(5, (count,), generator=generator)
    return [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]


def _columns(net: _Net, values: np.ndarray, channel: int) -> np.ndarray:
    """What of the second layer's weights reads ``channel``: only the rows of its own group."""
    groups = net.second.groups
    rows, columns = 12 // groups, 8 // groups
    group = channel // columns
    return values[group * rows : (group + 1) * rows, channel % columns]


def _gradients(net: _Net, size: int) -> Iterable[dict[str, np.ndarray]]:
    for inputs, targets in _samples():
        for at in range(0, len(inputs), size):
            net.zero_grad()
            nn.functional.cross_entropy(net(inputs[at : at + size]), targets[at : at + size]).backward()
            yield {name: p.grad.numpy().astype(np.float64) for name, p in net.named_parameters() if p.grad is not None}


def _restated(net: _Net, criterion: str) -> list[float]:
    """The scores of the eight channels of ``first``, over its own rows, the norm, and what reads it."""
    w = {name: p.detach().numpy().astype(np.float64) for name, p in net.named_parameters()}
    taken = list(_gradients(net, 1 if criterion == "hessian" else 4)) if criterion in ("taylor", "hessian") else []
    scores = []
    for c in range(8):
        own, gamma, read = w["first.weight"][c], w["norm.weight"][c], _columns(net, w["second.weight"], c)
        if criterion in ("l1", "l2"):
            power = int(criterion[1])
            sides = [(abs(part) ** power).sum() for part in (own, gamma, read)]
        elif criterion == "bn_scale":
            sides = [abs(gamma)]
        elif criterion == "taylor":
            gates = [(read * _columns(net, g["second.weight"], c)).sum() for g in taken]
            sides = [np.mean(np.square(gates))]
        else:
            squares = {name: np.mean([g[name] ** 2 for g in taken], axis=0) for name in taken[0]}
            sides = [
                (own**2 * squares["first.weight"][c]).sum(),
                gamma**2 * squares["norm.weight"][c],
                (read**2 * _columns(net, squares["second.weight"], c)).sum(),
            ]
        scores.append(float(np.mean(sides)))
    return scores


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale", "taylor", "hessian"])
@pytest.mark.parametrize("groups", [1, 4])
def test_scores_are_what_the_formula_says(criterion: str, groups: int) -> None:
    net = _net(groups)
    candidates, _ = channel_groups(net, SHAPE, seed=0)
    first = next(one for one in candidates if one.writers == ("first",))
    (group,), skipped = rank(net, [first], criterion, seed=0, samples=_samples())
    assert not skipped
    expected = np.array(_restated(net, criterion))
    expected /= expected.mean()
    # By hand: in each group of the second layer the weakest first, then one of each together.
    size = 8 // groups
    ranked = [sorted(range(g * size, (g + 1) * size), key=expected.__getitem__) for g in range(groups)]
    portions = [tuple(part[place] for part in ranked) for place in range(size)]
    assert list(group.portions) == portions
    np.testing.assert_allclose(group.scores, [expected[list(p)].mean() for p in portions], rtol=1e-4)


def test_taylor_foresees_what_a_faint_channel_costs() -> None:
    """First order, squared: what the loss really does when a channel is scaled by 1 - e, in float64, by central
    differences."""
    net = _net(1)
    first = next(one for one in channel_groups(net, SHAPE, seed=0)[0] if one.writers == ("first",))
    (group,), _ = rank(net, [first], "taylor", seed=0, samples=_samples())
    net = net.double()

    def cost(channel: int, scale: float) -> np.ndarray:
        faint = copy.deepcopy(net)
        with torch.no_grad():  # ReLU passes a scale on, so scaling the norm scales the channel
            faint.norm.weight[channel] *= scale
            faint.norm.bias[channel] *= scale
            return np.array([float(nn.functional.cross_entropy(faint(x.double()), y)) for x, y in _samples()])

    expected = np.array([np.square((cost(c, 1 + 1e-4) - cost(c, 1 - 1e-4)) / 2e-4).mean() for c in range(8)])
    expected /= expected.mean()
    got = dict(zip([unit for (unit,) in group.portions], group.scores, strict=True))
    np.testing.assert_allclose([got[c] for c in range(8)], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("criterion", "theirs"),
    [
        ("l1", torch_pruning.importance.GroupMagnitudeImportance(p=1)),
        ("l2", torch_pruning.importance.GroupMagnitudeImportance(p=2)),
        ("bn_scale", torch_pruning.importance.BNScaleImportance()),
    ],
)
def test_agrees_with_torch_prunings_own_criteria(criterion: str, theirs: torch_pruning.importance.Importance) -> None:
    net = _net(1)
    first = next(one for one in channel_groups(net, SHAPE, seed=0)[0] if one.writers == ("first",))
    (group,), _ = rank(net, [first], criterion, seed=0)
    graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=(torch.zeros(1, *SHAPE),))
    function = torch_pruning.prune_conv_out_channels
    expected = theirs(graph.get_pruning_group(net.first, function, idxs=list(range(8)))).tolist()
    np.testing.assert_allclose(group.scores, sorted(expected), rtol=1e-5)


def test_agrees_with_torch_prunings_hessian_of_one_sample() -> None:
    """Of one: torch-pruning 1.6.1 forgets all gradients but the last it is shown."""
    net = _net(1)
    inputs, targets = (part[:1] for part in _samples()[0])
    first = next(one for one in channel_groups(net, SHAPE, seed=0)[0] if one.writers == ("first",))
    (group,), _ = rank(net, [first], "hessian", seed=0, samples=[(inputs, targets)])
    theirs = torch_pruning.importance.GroupHessianImportance()
    graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=(torch.zeros(1, *SHAPE),))
    net.zero_grad()
    nn.functional.cross_entropy(net(inputs), targets).backward()
    theirs.accumulate_grad(net)
    scores = theirs(graph.get_pruning_group(net.first, torch_pruning.prune_conv_out_channels, idxs=list(range(8))))
    np.testing.assert_allclose(group.scores, sorted(scores.tolist()), rtol=1e-4)


def test_gradients_need_samples_and_leave_the_model_alone() -> None:
    net = _net(1).train()
    candidates, _ = channel_groups(net, SHAPE, seed=0)
    with pytest.raises(ModelError, match="training samples"):
        rank(net, candidates, "taylor", seed=0)
    with pytest.raises(ModelError, match="no training sample"):
        rank(net, candidates, "taylor", seed=0, samples=[])
    mean = net.norm.running_mean.clone()
    rank(net, candidates, "hessian", seed=0, samples=_samples())
    assert net.training
    assert torch.equal(net.norm.running_mean, mean)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_no_batchnorm_scales_is_named() -> None:
    net = _net(1)
    groups, skipped = rank(net, channel_groups(net, SHAPE, seed=0)[0], "bn_scale", seed=0)
    assert skipped["second"] == "no BatchNorm scales its channels"
    assert [group.writers for group in groups] == [("first",)]
