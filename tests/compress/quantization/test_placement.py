"""Where activation quantizers are: one for each tensor, and one before what no integer convolution takes in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewise.compress.config import Quantize
from edgewise.compress.quantization.insert import (
    insert_quantizers,
    quantizer_config,
    quantizers,
    restore_quantizers,
)

IMAGES = np.random.default_rng(0).standard_normal((6, 3, 12, 12)).astype(np.float32)


class Leaky(nn.Module):
    """Two convolutions, a module and a call as their activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.1)
        self.conv2, self.linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.conv2(self.act(self.conv1(x))), 0.2)
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


class Projections(nn.Module):
    """Attention with three projections of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.query, self.key, self.value = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(1, 2))
        weights = torch.softmax(self.query(tokens) @ self.key(tokens).transpose(1, 2), dim=-1)
        out: Tensor = self.head((weights @ self.value(tokens)).mean(1) + tokens[:, 0])
        return out


def before_activations(model: nn.Module) -> dict[str, nn.Module]:
    return {name: q for name, q in quantizers(model).items() if name.startswith("pre_hooks") and "leaky_relu" in name}


def bounds(quantizer: Any) -> tuple[float, float]:
    low, high = (float(bound.detach()) for bound in quantizer.get_input_low_input_high())
    return low, high


def test_leaky_relus_get_a_quantizer_before_with_the_mean_of_the_extremes() -> None:
    torch.manual_seed(0)

    model = insert_quantizers(Leaky().eval(), IMAGES, Quantize(kind="quantize", ranges="mean_min_max"))

    found = before_activations(model)
    assert {name.split(".")[1] for name in found} == {"act/leaky_relu/0__0", "/leaky_relu/0__0"}
    given: list[Tensor] = []
    found["pre_hooks.act/leaky_relu/0__0.0"].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        model(torch.from_numpy(IMAGES))
    values = given[0].double().numpy().reshape(len(IMAGES), -1)
    low, high = bounds(found["pre_hooks.act/leaky_relu/0__0.0"])
    # NNCF moves the range so that zero is a level: by less than half a step.
    step = (high - low) / 255
    assert low == pytest.approx(values.min(1).mean(), abs=step)
    assert high == pytest.approx(values.max(1).mean(), abs=step)


def test_the_ranges_asked_for_hold_before_leaky_relus_too() -> None:
    torch.manual_seed(0)
    model = insert_quantizers(Leaky().eval(), IMAGES, Quantize(kind="quantize", ranges="min_max"))
    torch.manual_seed(0)
    defaults = insert_quantizers(Leaky().eval(), IMAGES, Quantize(kind="quantize", ranges="mean_min_max"))

    wide, mean = (before_activations(m)["pre_hooks.act/leaky_relu/0__0.0"] for m in (model, defaults))

    assert bounds(wide)[1] > bounds(mean)[1]


def test_nothing_is_quantized_behind_a_float_layer() -> None:
    torch.manual_seed(0)
    model = insert_quantizers(Leaky().eval(), IMAGES, Quantize(kind="quantize", float_layers=("conv1",)))

    assert {name.split(".")[1] for name in before_activations(model)} == {"/leaky_relu/0__0"}


def test_what_a_float_layer_reads_is_quantized_before_the_leaky_relu_alone() -> None:
    """So that the convolution before writes integers: its output, and not what the activation makes of it."""
    torch.manual_seed(0)
    config = Quantize(kind="quantize", ranges="min_max", float_layers=("conv2",))
    model = insert_quantizers(Leaky().eval(), IMAGES, config)

    assert {name.split(".")[1] for name in before_activations(model)} == {"act/leaky_relu/0__0"}
    assert not any(name.startswith("post_hooks.act/") for name in quantizers(model))
    with torch.no_grad():
        written = model.conv1(torch.from_numpy(IMAGES))
    (quantizer,) = before_activations(model).values()
    low, high = bounds(quantizer)
    assert low == pytest.approx(float(written.min()), rel=0.05)
    assert high == pytest.approx(float(written.max()), rel=0.05)


def test_uneven_nets_get_asymmetric_activations_and_come_back_from_their_config() -> None:
    torch.manual_seed(0)
    net = Leaky().eval()
    model = insert_quantizers(net, IMAGES)
    inputs = torch.from_numpy(IMAGES)

    restored = restore_quantizers(Leaky(), quantizer_config(model), (3, 12, 12))
    restored.load_state_dict(model.state_dict())

    activations = [q for name, q in quantizers(model).items() if name.startswith("post_hooks")]
    assert {type(q).__name__ for q in activations} == {"AsymmetricQuantizer"}
    with torch.no_grad():
        assert torch.equal(restored(inputs), model(inputs))


def test_projections_of_one_tensor_share_its_quantizer_and_answers_stay() -> None:
    torch.manual_seed(0)
    model = insert_quantizers(Projections().eval(), IMAGES)

    inputs = {name: q for name, q in quantizers(model).items() if name.endswith("linear/0__0.0") and "pre" in name}
    shared = [inputs[f"pre_hooks.{name}/linear/0__0.0"] for name in ("query", "key", "value")]

    assert shared[0] is shared[1] is shared[2]
    assert len({id(q) for q in quantizers(model).values()}) == len(quantizers(model)) - 2
    restored = restore_quantizers(Projections(), quantizer_config(model), (3, 12, 12))
    restored.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(restored(torch.from_numpy(IMAGES)), model(torch.from_numpy(IMAGES)))
