"""Mixed-precision plans against all plans there are, and layers that stay in float against the graph they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgewise.bench.stats import paired_mean_drop, tango
from edgewise.compress.agreement import Samples, answers
from edgewise.compress.config import Latency, Mixed, Quantize
from edgewise.compress.pruning.goals import Timed
from edgewise.compress.quantization.float_layers import resolve_float_layers, weighted_layers
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config, quantizers
from edgewise.compress.quantization.mixed import MixedPlan, plan_mixed
from edgewise.compress.quantization.switches import find_switches
from edgewise.compress.saved import Description, FakeQuantized, describe, load_model, planned_floats, save_model
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet
from edgewise.stages.mixed import paired_drop

SHAPE = (3, 8, 8)
CLASSES = 5
LAYERS = ("conv1", "conv2", "conv3", "conv4", "head")


class Chain(nn.Module):
    """Four convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv4 = nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) -> (N, 5)."""
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(conv(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _hostile(model: nn.Module, writer: str, reader: str) -> None:
    """One channel between two layers a thousand times as large: the same function, but ``reader``'s input has one
    scale for all channels."""
    first, second = model.get_submodule(writer), model.get_submodule(reader)
    with torch.no_grad():
        first.weight[2] *= 1000
        first.bias[2] *= 1000
        second.weight[:, 2] /= 1000


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Chain().eval()
    with torch.no_grad():  # answers that differ from image to image
        net.head.weight.mul_(20)
        net.head.bias.zero_()
        net.head.bias.sub_(net(torch.randn(256, *SHAPE) * (0.2 + 1.8 * torch.rand(256, 3, 1, 1))).mean(0))
    _hostile(net, "conv3", "conv4")
    return net


@pytest.fixture(scope="module")
def images(model: nn.Module) -> np.ndarray:
    """Those that the net is surest of: small errors turn none of its answers."""
    many = np.random.default_rng(7).standard_normal((1500, *SHAPE)).astype(np.float32)
    many *= np.random.default_rng(8).uniform(0.2, 2, (1500, 3, 1, 1)).astype(np.float32)
    best = np.sort(answers(model, many), axis=1)
    return many[np.sort(np.argsort(best[:, -2] - best[:, -1])[:352])]


class Split:
    """Images with the net's own answers as labels: its accuracy is 1."""

    def __init__(self, model: nn.Module, images: np.ndarray) -> None:
        self.images = images
        self.ids = tuple(f"image-{place}" for place in range(len(images)))
        self.targets = answers(model, images).argmax(1).astype(np.int64)

    def read(self, index: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W)."""
        return self.images[index]


@pytest.fixture(scope="module")
def held(model: nn.Module, images: np.ndarray) -> Samples:
    split = Split(model, images)
    assert np.bincount(split.targets, minlength=CLASSES).max() < 0.7 * len(images)
    return Samples(split, np.arange(32, len(images)))


def _plan(model: nn.Module, images: np.ndarray, held: Samples, mixed: Mixed, **more: object) -> MixedPlan:
    config = Quantize(kind="quantize", mixed=mixed, **more.pop("config", {}))  # type: ignore[arg-type]
    return plan_mixed(model, images[:32], config, held, paired=paired_drop, **more)  # type: ignore[arg-type]


BUDGET = Mixed(max_accuracy_drop_pp=4, sensitivity_samples=32)


@pytest.fixture(scope="module")
def plan(model: nn.Module, images: np.ndarray, held: Samples) -> MixedPlan:
    return _plan(model, images, held, BUDGET)


def test_the_plan_is_the_smallest_of_all_that_keep_the_budget(
    plan: MixedPlan, model: nn.Module, images: np.ndarray, held: Samples
) -> None:
    budget = 4.0
    assert plan.float_layers == ("conv4",)
    assert plan.drop.low_pp <= plan.drop.pp <= plan.drop.high_pp
    assert plan.drop.pp <= budget < plan.drop_all_int8.pp
    macs = weighted_layers(model, SHAPE)
    for count in range(len(LAYERS)):
        for floats in combinations(LAYERS, count):
            if floats != plan.float_layers and sum(macs[name] for name in floats) >= macs["conv4"]:
                continue  # no smaller plan
            quantized = insert_quantizers(model, images[:32], Quantize(kind="quantize", float_layers=floats))
            drop = 100 * float(1 - (answers(quantized, held[:]).argmax(1) == held.targets).mean())
            assert (drop <= budget) == (floats == plan.float_layers)
            if floats in ((), plan.float_layers):
                assert drop == pytest.approx((plan.drop if floats else plan.drop_all_int8).pp)
    assert plan.float_share == pytest.approx(macs["conv4"] / sum(macs.values()))


def test_another_batchnorm_than_the_one_that_ships_is_refused(
    model: nn.Module, images: np.ndarray, held: Samples
) -> None:
    with pytest.raises(ModelError, match="another BatchNorm than the one that ships"):
        _plan(model, images, held, BUDGET, config={"reestimate_batchnorm": True})


def test_the_plan_is_data(plan: MixedPlan, model: nn.Module, images: np.ndarray, held: Samples) -> None:
    told: list[str] = []
    data = json.loads(json.dumps(plan.to_json(), allow_nan=False))
    assert data["budget"] == {"max_accuracy_drop_pp": 4.0}
    assert data["float_layers"] == ["conv4"]
    assert [row["name"] for row in data["sensitivities"]] == list(LAYERS)
    assert data["n"] == 320
    assert data["drop"] == {"pp": plan.drop.pp, "low_pp": plan.drop.low_pp, "high_pp": plan.drop.high_pp}
    assert data["drop_all_int8"]["pp"] > 4
    assert data["sample_ids"][0] == "image-32"  # none that calibration saw
    assert data["order"][-1] not in data["given_back"]
    assert "in float: conv4" in plan.in_words()
    assert plan == _plan(model, images, held, BUDGET, tick=lambda done, total, note: told.append(note))
    assert "mixed-precision plan" in told


def test_nothing_is_left_in_float_where_nothing_must_be(images: np.ndarray) -> None:
    torch.manual_seed(1)
    easy = Chain().eval()
    samples = Samples(Split(easy, images), np.arange(32, len(images)))
    plan = _plan(easy, images, samples, Mixed(max_accuracy_drop_pp=50))
    assert plan.float_layers == ()
    assert plan.drop == plan.drop_all_int8


def test_layers_named_by_hand_are_in_the_plan(model: nn.Module, images: np.ndarray, held: Samples) -> None:
    plan = _plan(model, images, held, BUDGET, config={"float_layers": ("conv1",)})
    assert plan.float_layers == ("conv1", "conv4")
    assert "conv1" not in plan.order


def test_a_budget_out_of_reach_says_what_was_best(model: nn.Module, images: np.ndarray, held: Samples) -> None:
    mixed = Mixed(max_accuracy_drop_pp=1, max_float_share=0.05)
    with pytest.raises(ModelError, match=r"1 pp is out of reach with at most 5 %.*the best is \d.*on 320 samples"):
        _plan(model, images, held, mixed)


def _clock(model: nn.Module, calls: list[tuple[str, ...]]) -> Callable[[nn.Module], Timed]:
    """As if time were in proportion to what is in float: 0.4 of the float model's and more."""
    macs = weighted_layers(model, SHAPE)

    def time(candidate: nn.Module) -> Timed:
        floats = find_switches(candidate, SHAPE).in_float()
        calls.append(floats)
        ratio = 0.4 + 0.6 * sum(macs[name] for name in floats) / sum(macs.values())
        return Timed(p50_ms=10 * ratio, reference_ms=10, ratio=ratio, low=ratio, high=ratio)

    return time


def test_under_a_latency_the_longest_beginning_of_the_order_is_taken(
    model: nn.Module, images: np.ndarray, held: Samples
) -> None:
    calls: list[tuple[str, ...]] = []
    mixed = Mixed(latency=Latency(runtime="onnxruntime", precision="int8", p50_ms=6.2), max_float_share=0.9)
    clock = _clock(model, calls)
    plan = _plan(model, images, held, mixed, clock=clock)
    assert plan.timed is not None
    assert plan.timed["ratio"] <= 0.62
    taken = len(plan.float_layers)
    assert set(plan.float_layers) == set(plan.order[:taken])
    assert plan.given_back == plan.order[taken:]
    longer = Quantize(kind="quantize", float_layers=plan.order[: taken + 1])
    assert clock(insert_quantizers(model, images[:32], longer)).ratio > 0.62
    assert calls[0] == ()
    assert plan.drop.pp < plan.drop_all_int8.pp


def test_layers_that_are_slower_in_int8_are_left_in_float_first(
    model: nn.Module, images: np.ndarray, held: Samples
) -> None:
    """As if the first two were four times as slow in INT8: without them in float no plan is in time."""
    macs = weighted_layers(model, SHAPE)
    calls: list[tuple[str, ...]] = []

    def time(candidate: nn.Module) -> Timed:
        floats = find_switches(candidate, SHAPE).in_float()
        calls.append(floats)
        factors = {name: 1.0 if name in floats else 4.0 if name in LAYERS[:2] else 0.5 for name in LAYERS}
        ratio = sum(macs[name] * factors[name] for name in LAYERS) / sum(macs.values())
        return Timed(p50_ms=10 * ratio, reference_ms=10, ratio=ratio, low=ratio, high=ratio)

    mixed = Mixed(latency=Latency(runtime="litert", precision="int8", ratio=0.8), max_float_share=0.9)
    plan = _plan(model, images, held, mixed, clock=time, config={"rounding": "adaround"})
    assert calls[0] == ()
    assert plan.for_speed == ("conv1", "conv2")
    assert {"conv1", "conv2", "conv4"} <= set(plan.float_layers)  # and the fragile one, for which there is time
    assert plan.order[0] == "conv4"
    assert not set(plan.order) & set(plan.for_speed)
    assert plan.timed is not None
    assert plan.timed["ratio"] <= 0.8
    assert plan.drop.pp < plan.drop_all_int8.pp
    assert json.loads(json.dumps(plan.to_json()))["for_speed"] == ["conv1", "conv2"]
    none = mixed.model_copy(update={"latency": Latency(runtime="litert", precision="int8", ratio=0.3)})
    with pytest.raises(ModelError, match=r"and 0\.\d+ at best, with conv1, conv2 in float; 0\.3 is the budget"):
        _plan(model, images, held, none, clock=time)
    few = mixed.model_copy(update={"max_float_share": 0.01})
    with pytest.raises(ModelError, match=r"\(at most 1 % of the multiply-accumulates\)"):
        _plan(model, images, held, few, clock=time)


def test_a_latency_that_no_plan_reaches_is_refused(model: nn.Module, images: np.ndarray, held: Samples) -> None:
    mixed = Mixed(latency=Latency(runtime="onnxruntime", precision="int8", p50_ms=3))
    with pytest.raises(
        ModelError, match=r"takes 4\.000 ms with every layer in INT8, and nothing is faster .* 3 is the b"
    ):
        _plan(model, images, held, mixed, clock=_clock(model, []))
    with pytest.raises(ModelError, match="needs a clock"):
        _plan(model, images, held, mixed)


def test_one_budget_and_no_more() -> None:
    latency = Latency(runtime="openvino", precision="int8", p50_ms=1)
    for wrong in ({}, {"max_accuracy_drop_pp": 1, "latency": latency}):
        with pytest.raises(ValidationError, match="exactly one"):
            Mixed(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="expected int8"):
        Mixed(latency=Latency(runtime="openvino", p50_ms=1))


def test_the_drop_s_interval_is_the_bench_s() -> None:
    random = np.random.default_rng(0)
    right, other = (random.random((2, 200)) < 0.8).astype(np.float32)
    expected = tango(int(((right == 1) & (other == 0)).sum()), int(((right == 0) & (other == 1)).sum()), 200)
    assert paired_drop(right, other) == (expected.value, expected.low, expected.high)
    grades = random.random((2, 50)).astype(np.float32)
    drop = paired_mean_drop(grades[0], grades[1])
    assert paired_drop(grades[0], grades[1]) == (drop.value, drop.low, drop.high)


# --- layers that stay in float ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build(CifarResNet(kind="cifar_resnet", depth=8, width=8), (3, 16, 16), 10).eval()


def test_names_and_patterns_are_resolved_in_order(resnet: nn.Module) -> None:
    wanted = ("linear", "layer2.*.conv2", "conv1")
    assert resolve_float_layers(resnet, wanted, (3, 16, 16)) == ("conv1", "layer2.0.conv2", "linear")
    assert resolve_float_layers(resnet, (), (3, 16, 16)) == ()


def test_a_name_that_isn_t_there_is_answered_with_the_nearest(resnet: nn.Module) -> None:
    for name in ("layer2.0.conv3", "layer2.0.bn1", "layer2.0"):
        with pytest.raises(ModelError, match=f"(?s)no convolution or linear layer '{name}'.*near: .*layer"):
            resolve_float_layers(resnet, ("conv1", name), (3, 16, 16))
    with pytest.raises(ModelError, match="nothing is left to quantize"):
        resolve_float_layers(resnet, ("*",), (3, 16, 16))


@pytest.mark.parametrize("name", ["conv1", "layer1.0.conv1", "layer2.0.conv2"])
def test_exactly_the_plan_loses_its_quantizers(name: str, resnet: nn.Module) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    whole = set(quantizers(insert_quantizers(resnet, images)))
    quantized = insert_quantizers(resnet, images, Quantize(kind="quantize", float_layers=(name,)))
    left = set(quantizers(quantized))
    place = name.replace(".", "/")
    weights = {hook for hook in whole if hook.startswith("pre_hooks.") and hook.endswith("__1.0") and "add" not in hook}
    assert {hook for hook in weights if hook not in left} == {hook for hook in weights if f".{place}/" in hook}
    assert find_switches(quantized, (3, 16, 16)).in_float() == (name,)
    # Both sides of every addition are quantized all the same.
    switches = find_switches(quantized, (3, 16, 16))
    blocks = ("layer1.0", "layer2.0", "layer3.0")
    read = {block: sum(block in readers for readers in switches.readers.values()) for block in blocks}
    assert read == dict.fromkeys(blocks, 2)


def test_what_the_switches_leave_out_is_what_is_left_out(model: nn.Module, images: np.ndarray) -> None:
    """Without bias correction, whose statistics differ, both are one net."""
    whole = insert_quantizers(model, images[:32])
    real = insert_quantizers(model, images[:32], Quantize(kind="quantize", float_layers=("conv4",)))
    real.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in real.state_dict()})
    with find_switches(whole, SHAPE).without(["conv4"]):
        switched = answers(whole, images[:64])
    np.testing.assert_allclose(answers(real, images[:64]), switched, atol=1e-5)
    assert np.abs(answers(whole, images[:64]) - switched).max() > 1e-2


def test_the_plan_is_kept_with_the_model(resnet: nn.Module, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    floats = ("layer1.0.conv1", "linear")
    quantized = insert_quantizers(resnet, images, Quantize(kind="quantize", float_layers=floats))
    edit = FakeQuantized(nncf=quantizer_config(quantized), float_layers=floats)
    config = CifarResNet(kind="cifar_resnet", depth=8, width=8)
    description = Description(model=config, input_shape=(3, 16, 16), classes=10, edits=(edit,))
    save_model(quantized, description, tmp_path)
    loaded, found = load_model(tmp_path)
    assert planned_floats(found) == floats
    assert "quantized (2 layers in float)" in describe(found)
    assert find_switches(loaded, (3, 16, 16)).in_float() == floats
    np.testing.assert_array_equal(answers(loaded, images), answers(quantized, images))
