import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from edgewise.compress.config import Quantize
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config, restore_quantizers
from edgewise.compress.quantization.places import bake_weights, given, owners
from edgewise.compress.quantization.weights import weight_range
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, ViT

SHAPE = (3, 16, 16)
CONFIGS = {"resnet": CifarResNet(depth=8, width=8), "vit": ViT(patch=4, dim=16, depth=1, heads=2)}


def samples(count: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *SHAPE), dtype=np.float32)


def fresh(name: str) -> nn.Module:
    torch.manual_seed(1)
    return build(CONFIGS[name], SHAPE, 10).eval()


def weight_quantizers(model: nn.Module) -> dict[str, nn.Module]:
    tensors = given(model, torch.from_numpy(samples(1)))
    return {name: quantizer for quantizer, name in owners(model, tensors).items()}


@pytest.mark.parametrize("level", [7, 127])
def test_mse_range_is_that_of_a_search_by_channel(level):
    weight = np.random.default_rng(0).standard_t(3, (6, 4, 3, 3)).astype(np.float32)
    found = weight_range(torch.from_numpy(weight), torch.Size((6, 1, 1, 1)), level, "mse").numpy().reshape(6)
    for channel, chosen in zip(weight.astype(np.float64), found, strict=True):
        largest = np.abs(channel).max()

        def error(bound: float, channel: np.ndarray = channel) -> float:
            step = bound / level
            return float(np.square(channel - np.clip(np.rint(channel / step), -level, level) * step).sum())

        best = min(error(largest * part / 400) for part in range(40, 401))
        assert error(float(chosen)) <= 1.03 * best
        assert error(float(chosen)) <= error(largest) * (1 + 1e-6)


def test_max_range_is_the_largest_weight_of_each_channel():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    found = weight_range(weight, torch.Size((5, 1)), 127, "max")
    assert torch.equal(found.reshape(5), weight.abs().max(1).values)
    assert (weight_range(torch.zeros(2, 3), torch.Size((2, 1)), 7, "mse") > 0).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_four_bits_are_fifteen_levels_but_at_the_ends(name):
    model = insert_quantizers(fresh(name), samples(), Quantize(kind="quantize", weight_bits=4))
    held = weight_quantizers(model)
    assert len(held) > 4
    for place, (parameter, quantizer) in enumerate(held.items()):
        wide = place in (0, len(held) - 1)
        assert (quantizer.level_low, quantizer.level_high) == ((-127, 127) if wide else (-7, 7)), parameter
        weight = model.get_parameter(parameter).detach()
        for channel in quantizer(weight).detach().flatten(1).numpy():
            assert wide or len(np.unique(channel)) <= 15, parameter
    activations = [q for q in given(model, torch.from_numpy(samples(1))) if q not in held.values()]
    assert all(q.num_bits == 8 for q in activations)


@pytest.mark.parametrize("name", CONFIGS)
def test_four_bits_survive_saving(name):
    model, x = insert_quantizers(fresh(name), samples(), Quantize(kind="quantize", weight_bits=4)), samples()
    config = json.loads(json.dumps(quantizer_config(model)))
    restored = restore_quantizers(fresh(name), config, SHAPE)
    levels = {parameter: q.level_high for parameter, q in weight_quantizers(restored).items()}
    assert sorted(set(levels.values())) == [7, 127]  # before any tensor is loaded
    restored.load_state_dict(load(save(model.state_dict())))
    with torch.no_grad():
        assert torch.equal(model(torch.from_numpy(x)), restored(torch.from_numpy(x)))


@pytest.mark.parametrize("name", CONFIGS)
def test_baking_clips_what_left_the_range_and_changes_no_answer(name):
    model, x = insert_quantizers(fresh(name), samples(), Quantize(kind="quantize", weight_bits=4)), samples()
    with torch.no_grad():
        for quantizer in weight_quantizers(model).values():
            quantizer._scale_param_storage.mul_(0.5)  # as training may: half of the weights' range is left outside
        before = model(torch.from_numpy(x))
        bake_weights(model, SHAPE)
        torch.testing.assert_close(model(torch.from_numpy(x)), before, rtol=1e-5, atol=1e-6)
        for parameter, quantizer in weight_quantizers(model).items():
            bound = quantizer.scale.abs() * (1 + 1e-5)
            assert (model.get_parameter(parameter).abs() <= bound).all(), parameter
    float_model = fresh(name)
    kept = {key: value.clone() for key, value in float_model.state_dict().items()}
    bake_weights(float_model, SHAPE)  # no quantizers: nothing to write
    assert all(torch.equal(kept[key], value) for key, value in float_model.state_dict().items())
