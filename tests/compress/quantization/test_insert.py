import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from edgewise.compress.quantization.fake_quantize import Asymmetric, Symmetric
from edgewise.compress.quantization.insert import (
    insert_quantizers,
    is_transformer,
    quantizer_config,
    quantizers,
    restore_quantizers,
)
from edgewise.errors import ArtifactError, ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ViT

SHAPE = (3, 16, 16)
CONFIGS = {
    "resnet": CifarResNet(depth=8, width=8),
    "mobilenet": MobileNetV2(width_multiplier=0.1, stem="cifar"),
    "vit": ViT(patch=4, dim=16, depth=1, heads=2),
    "sequential": None,
}


def fresh(name: str) -> nn.Module:
    torch.manual_seed(1)
    if name == "sequential":
        parts = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*parts, nn.Linear(8, 10))
    return build(CONFIGS[name], SHAPE, 10)


def samples(number: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((number, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="module")
def quantized() -> dict[str, nn.Module]:
    return {name: insert_quantizers(fresh(name), samples()) for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_per_channel_and_activations_per_tensor(quantized, name):
    for hook, quantizer in quantizers(quantized[name]).items():
        parts = int(np.prod(quantizer.scale_shape))
        if quantizer._narrow_range:
            assert (quantizer.level_low, quantizer.level_high) == (-127, 127), hook
            assert parts == max(quantizer.scale_shape) > 1, hook
        else:
            assert parts == 1, hook
            assert quantizer.level_high - quantizer.level_low == 255, hook


def test_every_layer_with_weights_gets_quantized_weights(quantized):
    for name in CONFIGS:
        layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in quantized[name].modules())
        assert sum(q._narrow_range for q in quantizers(quantized[name]).values()) == layers, name


def test_transformers_get_asymmetric_activations(quantized):
    assert is_transformer(fresh("vit"))
    assert not is_transformer(fresh("resnet"))
    kinds = {name: {type(q).__name__ for q in quantizers(model).values()} for name, model in quantized.items()}
    assert "AsymmetricQuantizer" in kinds["vit"]
    assert kinds["resnet"] == kinds["mobilenet"] == {"SymmetricQuantizer"}


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_restored_without_any_difference(quantized, name):
    model, x = quantized[name], torch.from_numpy(samples())
    config = json.loads(json.dumps(quantizer_config(model)))
    restored = restore_quantizers(fresh(name), config, SHAPE)
    restored.load_state_dict(load(save(model.state_dict())))
    with torch.no_grad():
        assert float((model(x) - restored(x)).abs().max()) == 0.0
    assert quantizer_config(restored) == quantizer_config(model)


def test_a_deep_copy_is_independent(quantized):
    model, x = quantized["resnet"], torch.from_numpy(samples())
    with torch.no_grad():
        before, other = model(x), copy.deepcopy(model)
        assert torch.equal(before, other(x))
        for parameter in other.parameters():
            if parameter.is_floating_point():
                parameter.mul_(0.5)
        assert torch.equal(before, model(x))
        assert not torch.equal(before, other(x))


def test_it_follows_the_float_model_and_leaves_it_alone():
    model = fresh("resnet").eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        reference = model(torch.from_numpy(samples()))
        found = insert_quantizers(model, samples())(torch.from_numpy(samples()))
    assert 10 * torch.log10(reference.square().sum() / (reference - found).square().sum()) > 20
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_plain_loop_trains_weights_and_ranges(quantized):
    model = copy.deepcopy(quantized["resnet"]).train()
    x, y = torch.from_numpy(samples(32)), torch.arange(32) % 10
    ranges = {key: value.clone() for key, value in model.state_dict().items() if key.endswith(".scale")}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert losses[-1] < 0.8 * losses[0]
    moved = [key for key, value in model.state_dict().items() if key in ranges and not torch.equal(value, ranges[key])]
    assert len(moved) > len(ranges) / 2


def test_nothing_is_compiled_or_printed(capfd):
    from nncf.torch.quantization.extensions import QuantizedFunctionsCPU

    model = insert_quantizers(fresh("resnet"), samples(2))
    model(torch.from_numpy(samples(2))).sum().backward()
    assert QuantizedFunctionsCPU._loaded_namespace is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (np.zeros((0, *SHAPE), np.float32), "expected calibration samples"),
        (np.full((2, *SHAPE), np.nan, np.float32), "NaN"),
    ],
)
def test_bad_calibration_data_is_refused(calibration, message):
    with pytest.raises(ModelError, match=message):
        insert_quantizers(fresh("resnet"), calibration)


def test_a_quantized_model_is_refused(quantized):
    with pytest.raises(ModelError, match="quantized already"):
        insert_quantizers(quantized["resnet"], samples())
    with pytest.raises(ModelError, match="no quantizers"):
        quantizer_config(fresh("resnet"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantizers": [{"hooks": ["x"], "kind": "Popen", "spec": {}}]},
        {
            "quantizers": [
                {"hooks": ["x"], "kind": "SymmetricQuantizer", "spec": {"mode": "symmetric", "scale_shape": [1]}}
            ]
        },
    ],
)
def test_a_damaged_config_is_refused(config):
    with pytest.raises(ArtifactError):
        restore_quantizers(fresh("resnet"), config, SHAPE)


# torch's own learnable fake quantization is an independent statement of the same arithmetic and of its gradients.
NATIVE = torch.ops.aten._fake_quantize_learnable_per_tensor_affine


@pytest.mark.parametrize(("low", "high"), [(-128, 127), (0, 255), (-127, 127)])
def test_symmetric_values_and_gradients_are_those_of_learned_step_sizes(low, high):
    x, weight = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    ours, scale = x.clone().requires_grad_(), torch.tensor([1.3], requires_grad=True)
    out = Symmetric.apply(ours, scale, low, high, high - low + 1)
    (out * weight).sum().backward()
    native, step = x.clone().requires_grad_(), torch.tensor([1.3 / high], requires_grad=True)
    expected = NATIVE(native, step, torch.zeros(1), low, high)
    (expected * weight).sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours.grad, native.grad)
    torch.testing.assert_close(scale.grad, step.grad / high, rtol=1e-3, atol=1e-3)


def test_per_channel_gradients_are_those_of_each_channel_alone():
    x, weight = torch.randn(4, 5), torch.randn(4, 5)
    scale = torch.tensor([[0.5], [1.0], [2.0], [3.0]], requires_grad=True)
    (Symmetric.apply(x, scale, -127, 127, 255) * weight).sum().backward()
    for row in range(4):
        one = scale[row].detach().clone().requires_grad_()
        (Symmetric.apply(x[row], one, -127, 127, 255) * weight[row]).sum().backward()
        torch.testing.assert_close(scale.grad[row], one.grad)


def test_asymmetric_values_and_gradients_against_loops():
    x, weight = torch.randn(200, dtype=torch.float64).float(), torch.randn(200)
    step, zero = 0.01, 90
    low, span = torch.tensor([-zero * step], requires_grad=True), torch.tensor([255 * step], requires_grad=True)
    ours = x.clone().requires_grad_()
    out = Asymmetric.apply(ours, low, span, 0, 255, 256)
    (out * weight).sum().backward()
    wanted_low = wanted_span = 0.0
    for value, got, g, grad in zip(x.tolist(), out.tolist(), weight.tolist(), ours.grad.tolist(), strict=True):
        level = min(max(round(value / step) + zero, 0), 255)
        assert got == pytest.approx((level - zero) * step, abs=1e-6)
        inside = -zero * step <= value <= (255 - zero) * step
        assert grad == pytest.approx(g if inside else 0.0)
        if inside:
            wanted_span += g * (got - value) / (255 * step)
        else:
            # At the bottom out = low, at the top out = low + span.
            wanted_low += g
            wanted_span += g if value > 0 else 0.0
    assert low.grad.item() == pytest.approx(wanted_low, abs=1e-3)
    assert span.grad.item() == pytest.approx(wanted_span, abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_keep_their_type_and_a_float32_scale(dtype):
    x = torch.randn(64, dtype=dtype)
    out = Symmetric.apply(x, torch.tensor([1.003]), -128, 127, 256)
    assert out.dtype == dtype
    expected = Symmetric.apply(x.float(), torch.tensor([1.003]), -128, 127, 256).to(dtype)
    assert torch.equal(out, expected)
