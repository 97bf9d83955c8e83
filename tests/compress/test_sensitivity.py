"""Sensitivity against switches thrown by hand, channels zeroed by hand, and a layer that was made to hurt."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.agreement import Samples, answers
from edgewise.compress.quantization.insert import insert_quantizers, quantizers
from edgewise.compress.quantization.switches import find_switches
from edgewise.compress.sensitivity import (
    LayerSensitivity,
    PruningSensitivity,
    pruning_sensitivity,
    quantization_sensitivity,
)
from edgewise.errors import ModelError

SHAPE = (3, 8, 8)
CLASSES = 4


class Residual(nn.Module):
    """A stem, a shortcut, and a head: conv1's output is read by conv2 and by the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 8, 8) -> (N, 4)."""
        x = torch.relu(self.conv1(x))
        x = torch.relu(x + self.conv3(torch.relu(self.conv2(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


# Which hook serves which layer: written down from the graph above.
OWN = {
    "conv1": {"post_hooks.x__0.0", "pre_hooks.conv1/conv2d/0__1.0"},
    "conv2": {"post_hooks./relu/0__0.0", "pre_hooks.conv2/conv2d/0__1.0"},
    "conv3": {"post_hooks./relu/1__0.0", "pre_hooks.conv3/conv2d/0__1.0"},
    "head": {"post_hooks./mean/0__0.0", "pre_hooks.head/linear/0__1.0"},
}
SHARED = "post_hooks./relu/0__0.0"  # with the addition


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((48, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(images: np.ndarray) -> nn.Module:
    torch.manual_seed(2)
    return insert_quantizers(Residual().eval(), images[:16])


def _by_hand(model: nn.Module, on: set[str], images: np.ndarray) -> np.ndarray:
    """Logits with just these hooks on, one sample at a time."""
    twin = copy.deepcopy(model)
    for name, quantizer in quantizers(twin).items():
        quantizer.get_buffer("enabled")[0] = int(name in on)
    with torch.no_grad():
        return np.concatenate([twin(torch.from_numpy(image[None])).numpy() for image in images])


def _sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    wide = reference.astype(np.float64)
    return 10 * math.log10((wide**2).sum() / ((wide - other) ** 2).sum())


def test_quantizers_are_found_by_what_reads_them(quantized: nn.Module) -> None:
    names = {hook: name for name, hook in quantizers(quantized).items()}
    switches = find_switches(quantized, SHAPE)
    assert {layer: {names[hook] for hook in switches.of(layer)} for layer in switches.layers} == OWN
    assert {names[hook] for hook, readers in switches.readers.items() if len(readers) > 1} == {SHARED}
    assert switches.layers == {"conv1": 64 * 8 * 27, "conv2": 64 * 8 * 72, "conv3": 64 * 8 * 72, "head": 8 * CLASSES}
    assert switches.in_float() == ()


def test_rows_are_those_of_switches_thrown_by_hand(quantized: nn.Module, images: np.ndarray) -> None:
    targets = np.random.default_rng(0).integers(0, CLASSES, len(images))
    rows = quantization_sensitivity(quantized, images, targets, batch=5)
    assert [row.name for row in rows] == list(OWN)
    everything = set(quantizers(quantized))
    floats = _by_hand(quantized, set(), images)
    right = (floats.argmax(1) == targets).mean()
    for row in rows:
        only = _by_hand(quantized, OWN[row.name], images)
        without = _by_hand(quantized, everything - (OWN[row.name] - {SHARED}), images)
        for logits, sqnr, flips, drop in (
            (only, row.only_sqnr_db, row.only_flips, row.only_drop_pp),
            (without, row.without_sqnr_db, row.without_flips, row.without_drop_pp),
        ):
            assert sqnr == pytest.approx(_sqnr(floats, logits), abs=0.05)
            assert flips == (floats.argmax(1) != logits.argmax(1)).sum()
            assert drop == pytest.approx(100 * (right - (logits.argmax(1) == targets).mean()))
        assert row.n == len(images)


def test_the_model_is_the_same_afterwards(quantized: nn.Module, images: np.ndarray) -> None:
    model = copy.deepcopy(quantized)
    switched = list(quantizers(model).values())[2]
    switched.get_buffer("enabled")[0] = 0  # someone's own choice
    model.get_submodule("conv2").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    quantization_sensitivity(model, images[:8])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


def test_batches_don_t_matter_and_samples_are_read_when_needed(quantized: nn.Module, images: np.ndarray) -> None:
    seen: list[int] = []

    class Split:
        ids = tuple(map(str, range(len(images))))
        targets = np.zeros(len(images), np.int64)

        def read(self, index: np.ndarray) -> np.ndarray:
            seen.append(len(index))
            return images[index]

    index = np.arange(0, len(images), 2)
    lazily = answers(quantized, Samples(Split(), index), batch=7)
    np.testing.assert_allclose(lazily, answers(quantized, images[::2], batch=24), atol=1e-5)
    assert max(seen) == 7
    assert sum(seen) == len(index)


def test_a_layer_made_hostile_ranks_first(images: np.ndarray) -> None:
    """One channel between conv2 and conv3 a thousand times as large: the same function, and conv3's input has one
    scale for all channels."""
    torch.manual_seed(2)
    model = Residual().eval()
    with torch.no_grad():
        model.conv2.weight[3] *= 1000
        model.conv2.bias[3] *= 1000
        model.conv3.weight[:, 3] /= 1000
    rows = quantization_sensitivity(insert_quantizers(model, images[:16]), images)
    assert min(rows, key=lambda row: row.only_sqnr_db).name == "conv3"
    assert max(rows, key=lambda row: row.without_sqnr_db).name == "conv3"


def test_progress_is_told(quantized: nn.Module, images: np.ndarray) -> None:
    told: list[tuple[int, int]] = []
    quantization_sensitivity(quantized, images[:4], tick=lambda done, total, note: told.append((done, total)))
    assert told == [(done, 4) for done in range(5)]


def test_pruning_a_group_is_zeroing_its_smallest_channels(images: np.ndarray) -> None:
    torch.manual_seed(4)
    model = Residual().eval()
    before = copy.deepcopy(model.state_dict())
    rows, skipped = pruning_sensitivity(model, images, ratios=(0.25, 0.5))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {(row.layers, row.ratio) for row in rows} >= {(("conv2",), 0.25), (("conv2",), 0.5)}
    assert "writes the model's output" in skipped["head"]
    weight = model.conv2.weight.detach()
    # What leaves with a channel of conv2: its weights, and those that read it; each by its own mean.
    inside, reading = weight.square().sum((1, 2, 3)), model.conv3.weight.detach().square().sum((0, 2, 3))
    least = ((inside + reading) / 2).argsort()
    floats = answers(model, images)
    for row in (row for row in rows if row.layers == ("conv2",)):
        twin = copy.deepcopy(model)
        gone = least[: round(row.ratio * 8)]
        with torch.no_grad():
            twin.conv2.weight[gone] = 0
            twin.conv2.bias[gone] = 0
        logits = answers(twin, images)
        assert row.sqnr_db == pytest.approx(_sqnr(floats, logits), abs=0.01)
        assert row.flips == (floats.argmax(1) != logits.argmax(1)).sum()
        assert row.drop_pp is None


def test_rows_are_plain_data() -> None:
    row = LayerSensitivity("a", 1, math.inf, 0, -math.inf, 3, 8).to_json()
    assert row == {
        "name": "a",
        "macs": 1,
        "only_sqnr_db": None,
        "only_flips": 0,
        "without_sqnr_db": None,
        "without_flips": 3,
        "n": 8,
        "only_drop_pp": None,
        "without_drop_pp": None,
    }
    assert PruningSensitivity(("a",), 0.5, math.inf, 0, 8).to_json()["sqnr_db"] is None


def test_what_can_t_be_measured_is_refused(quantized: nn.Module, images: np.ndarray) -> None:
    with pytest.raises(ModelError, match="no quantizers"):
        quantization_sensitivity(Residual(), images)
    with pytest.raises(ModelError, match="got none"):
        quantization_sensitivity(quantized, images[:0])
    with pytest.raises(ModelError, match=r"above 0 and below 1, got \[1.5\]"):
        pruning_sensitivity(Residual(), images, ratios=(0.5, 1.5))
