"""Which chunks leave first, in each scope; floors, ignored layers, names that aren't there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.config import Prune
from edgewise.compress.pruning.prune import Pruned, prune
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2

SHAPE = (3, 16, 16)


def _prune(model: nn.Module, **settings: Any) -> Pruned:
    goal = {} if {"params_ratio", "macs_ratio"} & set(settings) else {"macs_ratio": 0.6}
    config = Prune.model_validate({"kind": "prune", **goal, **settings})
    return prune(model, config, SHAPE, round_to=8, seed=0)


class _Two(nn.Module):
    """Two topologies: convolutions, and hidden units of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3))
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def _uneven() -> _Two:
    """One channel of each convolution, and most hidden units, are far weaker than the rest."""
    torch.manual_seed(0)
    model = _Two()
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            layer.weight[:48] *= 1e-3
            layer.bias[:48] *= 1e-3
        model.fc2.weight[:, :48] *= 1e-3
        model.fc3.weight[:, :48] *= 1e-3
    return model


def test_global_takes_the_weakest_wherever_they_are_isomorphic_a_share_of_each_topology() -> None:
    """64 + 64 hidden units, of which 48 + 48 are weak, and 32 + 32 channels. At 70 % of the parameters the weak units
    alone are enough for the global scope; the isomorphic one takes as large a part of the convolutions."""
    everywhere, alike = _uneven(), _uneven()
    _prune(everywhere, params_ratio=0.7, scope="global")
    _prune(alike, params_ratio=0.7, scope="isomorphic")
    assert (everywhere.conv1.out_channels, everywhere.conv2.out_channels) == (32, 32)
    assert everywhere.fc1.out_features < 64
    gone_conv = 1 - (alike.conv1.out_channels + alike.conv2.out_channels) / 64
    gone_linear = 1 - (alike.fc1.out_features + alike.fc2.out_features) / 128
    assert gone_conv > 0
    assert gone_conv == pytest.approx(gone_linear, abs=8 / 64 + 1e-9)  # one chunk apart at most


def test_isomorphic_ranks_inside_a_topology_by_score_and_uniform_does_not() -> None:
    """Both hidden layers are of one topology; half of the second's units hardly matter."""
    models = {scope: _uneven() for scope in ("isomorphic", "uniform")}
    for model in models.values():
        with torch.no_grad():
            model.fc1.weight.copy_(torch.randn(64, 32))
            model.fc2.weight.copy_(torch.randn(64, 64))
            model.fc3.weight.copy_(torch.randn(4, 64))
            model.fc2.weight[:32] *= 1e-3
            model.fc3.weight[:, :32] *= 1e-3
    for scope, model in models.items():
        _prune(model, params_ratio=0.9, scope=scope, ignore=("conv*",))
    assert models["isomorphic"].fc2.out_features < models["isomorphic"].fc1.out_features == 64
    assert abs(models["uniform"].fc1.out_features - models["uniform"].fc2.out_features) <= 8
    assert models["uniform"].fc1.out_features < 64


def test_one_topology_ranks_as_global_does() -> None:
    torch.manual_seed(0)
    first, second = (build(CifarResNet(depth=14), SHAPE, 10) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert _prune(first, scope="global", macs_ratio=0.7).plan == _prune(second, scope="isomorphic", macs_ratio=0.7).plan


def test_params_goal() -> None:
    model = build(MobileNetV2(stem="cifar", width_multiplier=0.5), SHAPE, 10)
    before = sum(parameter.numel() for parameter in model.parameters())
    pruned = _prune(model, params_ratio=0.5)
    after = sum(parameter.numel() for parameter in model.parameters())
    assert (pruned.params_before, pruned.params_after) == (before, after)
    assert 0.48 * before < after <= 0.5 * before
    with pytest.raises(ModelError, match=r"params_ratio 0\.01 is out of reach"):
        _prune(build(CifarResNet(depth=8), SHAPE, 10), params_ratio=0.01)


# --- floors and ignored layers --------------------------------------------------------------------------------------


def test_floors_hold_by_name_and_by_glob() -> None:
    floors = {"layer1.*.conv1": 16, "layer3.0.conv1": 40}
    model = build(CifarResNet(depth=14), SHAPE, 10)
    pruned = _prune(model, floors=floors, macs_ratio=0.75, scope="uniform")
    assert model.layer1[0].conv1.out_channels == model.layer1[1].conv1.out_channels == 16
    assert "floors" in pruned.skipped["layer1.0.conv1"]
    assert model.layer3[0].conv1.out_channels >= 40
    assert model.layer3[1].conv1.out_channels < 64
    with pytest.raises(ModelError, match=r"(?s)out of reach.*at floors.*or floors"):
        _prune(build(CifarResNet(depth=14), SHAPE, 10), floors={"layer[23].*.conv1": 20}, macs_ratio=0.3)


def test_a_floor_that_is_no_multiple_is_rounded_up() -> None:
    model = build(CifarResNet(depth=14), SHAPE, 10)
    _prune(model, floors={"*.conv1": 17}, macs_ratio=0.73)
    counts = {block.conv1.out_channels for layer in (model.layer2, model.layer3) for block in layer}
    assert min(counts) == 24


def test_ignored_layers_keep_their_outputs() -> None:
    model = build(CifarResNet(depth=14), SHAPE, 10)
    pruned = _prune(model, ignore=("layer3.*",), macs_ratio=0.7)
    assert {block.conv1.out_channels for block in model.layer3} == {64}
    assert pruned.skipped["layer3.0.conv1"] == "the recipe says to ignore it"


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"ignore": ("layer1.0.conv",)}, "ignore"),
        ({"floors": {"layer9.*": 8}}, "floors"),
        ({"ignore": ("",)}, "ignore"),
    ],
)
def test_names_that_are_not_there_are_refused_with_the_nearest(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ModelError, match="near: ") as caught:
        _prune(build(CifarResNet(depth=14), SHAPE, 10), **settings)
    assert caught.value.where == where
    assert "layer3.*" in str(caught.value.hint) or "conv1" in str(caught.value.hint)
