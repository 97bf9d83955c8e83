"""Hooks that read what layers give and take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.taps import near, tapped
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet


class Pairs(nn.Module):
    """Gives a tuple, takes a number."""

    def forward(self, x: Tensor, times: int) -> tuple[int, Tensor, Tensor]:
        return times, x * times, x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pairs = Pairs()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, twice, _ = self.pairs(x, 2)
        out: Tensor = self.linear(input=twice) if self.training else self.linear(twice)
        return out


def test_outputs_and_inputs_are_the_very_tensors_and_carry_gradient() -> None:
    model = build(CifarResNet(depth=8), (3, 16, 16), 5)
    with tapped(model, ("layer2", "linear:input", "layer3:input", "linear", "layer2")) as features:
        logits = model(torch.randn(2, 3, 16, 16))
        assert features["linear"] is logits
        assert features["layer3:input"] is features["layer2"]
        torch.testing.assert_close(model.linear(features["linear:input"]), logits)
        features["linear:input"].sum().backward()
    assert model.conv1.weight.grad is not None


def test_a_tuple_gives_its_first_tensor() -> None:
    model = Net().eval()
    x = torch.randn(2, 4)
    with tapped(model, ("pairs", "pairs:input")) as features:
        model(x)
    assert torch.equal(features["pairs"], 2 * x)
    assert features["pairs:input"] is x


def test_hooks_fire_under_a_wrapper_and_leave_nothing_behind() -> None:
    model = Net().eval()
    wrapper = nn.Sequential(model)
    with tapped(model, ("linear", "linear:input")) as features:
        first = wrapper(torch.ones(2, 4))
        assert features["linear"] is first
        assert wrapper(torch.ones(3, 4)) is features["linear"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    wrapper(torch.ones(5, 4))
    assert len(features["linear"]) == 3


@pytest.mark.parametrize("name", ["liner", "liner:input", "linear:output"])
def test_an_unknown_layer_is_refused_with_what_comes_near(name: str) -> None:
    with pytest.raises(ModelError, match=f"no layer '{name}'") as refused, tapped(Net(), (name,)):
        pass
    assert "near: linear" in refused.value.hint


def test_a_layer_without_tensors_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, inputs, output: {"out": output})
    with pytest.raises(ModelError, match="'0' gives a dict, not a tensor"), tapped(model, ("0",)):
        model(torch.ones(1, 4))
    keywords = Net().train()
    with pytest.raises(ModelError, match="'linear:input' takes a tuple"), tapped(keywords, ("linear:input",)):
        keywords(torch.ones(1, 4))


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("layr1.*", "layer1.*"),
        ("layr1.*.*", "layer1.*"),
        ("layer[12].0.cov1", "layer1.0.conv1"),
        ("blocks.*.attn.qk", "blocks.1.attn.qkv"),
        ("*.qvk", "head"),
    ],
)
def test_what_comes_near_a_glob_is_cut_to_its_parts(pattern: str, meant: str) -> None:
    names = ["head", "layer1.0.conv1", "layer1.0.conv2", "blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert near(pattern, names).removeprefix("near: ").split(", ")[0] == meant
