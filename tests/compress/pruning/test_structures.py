"""Grouped convolutions and concatenations lose channels as they must: what is left computes the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.config import Prune
from edgewise.compress.pruning.prune import Pruned, prune
from edgewise.compress.resize import resize

SHAPE = (3, 8, 8)


class _Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.features(x)).mean((2, 3)))


class _Grouped(_Net):
    """Groups of 4, then of 8, on the same channels."""

    def __init__(self) -> None:
        super().__init__(32)
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 64, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(64)
        self.c = nn.Conv2d(64, 64, 3, padding=1, groups=8)
        self.d = nn.Conv2d(64, 32, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.c(torch.relu(self.norm(self.b(torch.relu(self.a(x))))))))


class _Transposed(_Net):
    def __init__(self) -> None:
        super().__init__(32)
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.ConvTranspose2d(32, 32, 2, stride=2, groups=2)
        self.c = nn.ConvTranspose2d(32, 32, 2, stride=2)

    def features(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class _ResNext(_Net):
    """Residual blocks with a grouped convolution in the middle."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3, padding=1, groups=8), nn.BatchNorm2d(64), nn.ReLU()),
                nn.Conv2d(64, 32, 1),
            )
            for _ in range(2)
        )

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x


class _Dense(_Net):
    """Every layer reads all before it, through a BatchNorm of its own (DenseNet)."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 16 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(16 + 16 * i, 16, 3, padding=1) for i in range(3))
        self.last = nn.Conv2d(64, 32, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.last(x)


class _AddedToConcatenation(_Net):
    """A layer whose first half is tied to one other layer, and its second half to another."""

    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.c = nn.Conv2d(3, 32, 3, padding=1)
        self.d = nn.Conv2d(32, 16, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        return self.d(torch.cat([self.a(x), self.b(x)], 1) + self.c(x))


class _Multiplied(_Net):
    """A depthwise convolution with two outputs for each input."""

    def __init__(self) -> None:
        super().__init__(32)
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.c = nn.Conv2d(32, 32, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


class _Shuffled(_Net):
    """Grouped convolutions around a shuffle of channels that counts them (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__(32)
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 1, groups=4)
        self.c = nn.Conv2d(32, 32, 1, groups=4)

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        return self.c(x)


def _prune(model: nn.Module, ratio: float, **settings: object) -> Pruned:
    config = Prune.model_validate({"kind": "prune", "macs_ratio": ratio, "scope": "uniform", **settings})
    return prune(model, config, SHAPE, round_to=8, seed=0)


def _zeroed(model: nn.Module, smaller: nn.Module) -> nn.Module:
    """The original with every channel silenced that the smaller one lost, found by its weights alone: a row of a
    layer's bias that is no longer there. Biases are drawn, so each is met once."""
    silent = copy.deepcopy(model)
    for name, module in silent.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd | nn.BatchNorm2d):
            continue
        left = set(smaller.get_submodule(name).bias.tolist())
        gone = [row for row, value in enumerate(module.bias.tolist()) if value not in left]
        assert len(gone) == len(module.bias) - len(left)
        with torch.no_grad():
            module.bias[gone] = 0
            if getattr(module, "transposed", False):
                part = module.out_channels // module.groups
                for row in gone:
                    rows = module.in_channels // module.groups
                    group = row // part
                    module.weight[group * rows : (group + 1) * rows, row % part] = 0
            else:
                module.weight[gone] = 0
    return silent


@pytest.mark.parametrize(
    "kind", [_Grouped, _Transposed, _ResNext, _Dense, _AddedToConcatenation, _Multiplied, _Shuffled]
)
def test_what_is_left_computes_what_it_did(kind: type[_Net]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    old = copy.deepcopy(model)
    pruned = _prune(model, 0.5)
    x = torch.randn(4, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(model(x), _zeroed(old, model)(x), rtol=1e-4, atol=1e-4)
    for name, counts in pruned.plan.items():
        assert counts["out"] % 8 == 0 or name == "head"
        if "groups" in counts:
            assert counts["in"] % counts["groups"] == counts["out"] % counts["groups"] == 0
    fresh = kind()
    resize(fresh, pruned.plan)
    fresh.load_state_dict(model.state_dict())


@pytest.mark.parametrize("kind", [_Grouped, _ResNext, _Dense, _AddedToConcatenation])
def test_nothing_but_the_classifier_is_skipped(kind: type[_Net]) -> None:
    model = kind()
    assert set(_prune(model, 0.5).skipped) == {"head"}


def test_groups_keep_their_number_and_lose_alike() -> None:
    model = _Grouped()
    _prune(model, 0.5)
    assert (model.b.groups, model.c.groups) == (4, 8)
    assert model.b.out_channels < 64
    assert model.b.weight.shape == (model.b.out_channels, model.a.out_channels // 4, 3, 3)
    assert model.c.weight.shape == (model.c.out_channels, model.b.out_channels // 8, 3, 3)


def test_a_part_of_a_concatenation_that_a_grouped_convolution_reads_is_named() -> None:
    model = _AddedToConcatenation()
    model.d = nn.Conv2d(32, 16, 3, padding=1, groups=2)
    pruned = _prune(model, 0.8)
    assert "grouped convolution 'd' takes only a part" in pruned.skipped["a"]
    assert "one channel on this side" in _prune(_Multiplied(), 0.5).skipped["a"]
    assert "forward mixes or counts channels" in _prune(_Shuffled(), 0.6).skipped["b"]
