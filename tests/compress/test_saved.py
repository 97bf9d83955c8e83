"""Models on disk: what comes back is what was saved, bit for bit, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgewise.compress.config import Prune
from edgewise.compress.pruning.prune import prune
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config
from edgewise.compress.saved import (
    ARCHITECTURE,
    WEIGHTS,
    ChannelPlan,
    Description,
    FakeQuantized,
    describe,
    load_model,
    save_model,
)
from edgewise.errors import ArtifactError, WeightsError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ModelFactory, ViT

SHAPE = (3, 16, 16)
USERS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes, width):
        super().__init__()
        self.one = nn.Conv2d(channels, width, 3)
        self.act = nn.PReLU(width)
        self.two = nn.ConvTranspose2d(width, width, 2)
        self.norm = nn.BatchNorm2d(width)
        self.mid = nn.Linear(width, width, bias=False)
        self.same = nn.Linear(width, width, bias=False)
        self.same.weight = self.mid.weight
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.norm(self.two(self.act(self.one(x)))).mean((2, 3))
        return self.head(self.same(self.mid(x)))

def net(input_shape, classes, width=16):
    return Net(input_shape[0], classes, width)
"""
FAMILIES = [
    CifarResNet(depth=8),
    MobileNetV2(stem="cifar", width_multiplier=0.35),
    ViT(dim=32, depth=1, heads=2, mlp_ratio=4.0),
    ModelFactory(kind="factory", factory="saved_users_net:net", arguments={"width": 24}),
]


@pytest.fixture(autouse=True)
def _users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "saved_users_net.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))


def _trained(config: Any) -> nn.Module:
    """Built, with statistics that are not those of a fresh model."""
    model = build(config, SHAPE, 10)
    for tensor in model.buffers():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def _outputs(model: nn.Module) -> Tensor:
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: Tensor = model.eval()(x)
    return result


def _prune(model: nn.Module, ratio: float) -> ChannelPlan:
    config = Prune(kind="prune", macs_ratio=ratio)
    return ChannelPlan(plan=prune(model, config, SHAPE, round_to=4, seed=0).plan)


def _quantize(model: nn.Module) -> tuple[nn.Module, FakeQuantized]:
    samples = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    quantized = insert_quantizers(model, samples)
    return quantized, FakeQuantized(nncf=quantizer_config(quantized))


def _round_trip(model: nn.Module, description: Description, folder: Path) -> nn.Module:
    expected = _outputs(model)
    save_model(model, description, folder)
    loaded, read = load_model(folder)
    assert read == description
    assert not loaded.training
    assert {p.name for p in folder.iterdir()} == {ARCHITECTURE, WEIGHTS}
    state, again = model.state_dict(), loaded.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[name], again[name]) and state[name].dtype == again[name].dtype for name in state)
    assert torch.equal(_outputs(loaded), expected)
    return loaded


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.kind)
@pytest.mark.parametrize("edits", ["plain", "pruned", "pruned twice"])
def test_comes_back_bit_for_bit(config: Any, edits: str, tmp_path: Path) -> None:
    model = _trained(config)
    description = Description(model=config, input_shape=SHAPE, classes=10)
    for ratio in {"plain": (), "pruned": (0.9,), "pruned twice": (0.95, 0.9)}[edits]:
        description = Description(**{**dict(description), "edits": (*description.edits, _prune(model, ratio))})
    loaded = _round_trip(model, description, tmp_path / "model")
    for (name, module), (_, again) in zip(model.named_modules(), loaded.named_modules(), strict=True):
        assert repr(module) == repr(again), name  # sizes said by the modules, not only by their tensors


@pytest.mark.parametrize(
    ("config", "pruned"),
    [(FAMILIES[0], False), *((config, True) for config in FAMILIES)],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_quantized_models_come_back_bit_for_bit(config: Any, pruned: bool, tmp_path: Path) -> None:
    model = _trained(config)
    edits: tuple[Any, ...] = (_prune(model, 0.9),) if pruned else ()
    quantized, edit = _quantize(model)
    description = Description(model=config, input_shape=SHAPE, classes=10, edits=(*edits, edit))
    _round_trip(quantized, description, tmp_path / "model")


def _saved(folder: Path) -> tuple[nn.Module, Description]:
    model = _trained(CifarResNet(depth=8))
    description = Description(model=CifarResNet(depth=8), input_shape=SHAPE, classes=10, edits=(_prune(model, 0.7),))
    save_model(model, description, folder)
    return model, description


def test_same_model_same_bytes(tmp_path: Path) -> None:
    model, description = _saved(tmp_path / "a")
    save_model(model, description, tmp_path / "b")
    loaded, read = load_model(tmp_path / "a")
    save_model(loaded.to(memory_format=torch.channels_last), read, tmp_path / "c")
    for file in (ARCHITECTURE, WEIGHTS):
        assert len({hashlib.sha256((tmp_path / x / file).read_bytes()).hexdigest() for x in "abc"}) == 1


def test_the_architecture_is_readable_json(tmp_path: Path) -> None:
    _, description = _saved(tmp_path)
    text = (tmp_path / ARCHITECTURE).read_text()
    data = json.loads(text)
    assert data["format"] == 1
    assert data["model"] == {"kind": "cifar_resnet", "depth": 8, "width": 16}
    assert data["edits"][0]["plan"] == description.edits[0].model_dump()["plan"]
    assert text == json.dumps(data, indent=1, sort_keys=True) + "\n"


def test_loading_leaves_torchs_generator_alone(tmp_path: Path) -> None:
    _saved(tmp_path)
    state = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    config = FAMILIES[3]
    loaded = _round_trip(_trained(config), Description(model=config, input_shape=SHAPE, classes=10), tmp_path / "m")
    assert loaded.same.weight is loaded.mid.weight


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / ARCHITECTURE).read_text())
        change(data)
        (folder / ARCHITECTURE).write_text(json.dumps(data))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / ARCHITECTURE).unlink(),
        lambda folder: (folder / ARCHITECTURE).write_text("{"),
        lambda folder: (folder / ARCHITECTURE).write_text("[]"),
        lambda folder: (folder / ARCHITECTURE).write_bytes(b"\xff\xfe"),
        _edit(lambda data: data.update(format=2)),
        _edit(lambda data: data.update(extra=1)),
        _edit(lambda data: data["model"].update(depth=9)),
        _edit(lambda data: data["edits"][0].update(kind="grown")),
        _edit(lambda data: data["edits"][0]["plan"].update({"nowhere": {"out": 4}})),
        _edit(lambda data: data["edits"][0]["plan"].update({"conv1": {"out": 4}})),
        _edit(lambda data: data["edits"][0]["plan"].update({"bn1": {"out": 0}})),
        _edit(lambda data: data["edits"].append({"kind": "quantized", "nncf": {"quantizers": "?"}})),
    ],
)
def test_a_damaged_architecture_is_an_error(damage: Callable[[Path], object], tmp_path: Path) -> None:
    _saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        load_model(tmp_path)
    assert caught.value.where == str(tmp_path / ARCHITECTURE)


def _rewrite(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "can't be read"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "can't be read"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04."), "can't be read"),
        (_rewrite(lambda tensors: tensors.pop("conv1.weight")), "conv1.weight is missing"),
        (_rewrite(lambda tensors: tensors.update(more=torch.zeros(1))), "more is unexpected"),
        (_rewrite(lambda tensors: tensors.update({"linear.bias": torch.zeros(9)})), r"\(9,\) and should be \(10,\)"),
    ],
)
def test_damaged_weights_are_an_error(damage: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    _saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=text):
        load_model(tmp_path)


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = _trained(CifarResNet(depth=8))
    with pytest.raises(ArtifactError, match="can't be written"):
        save_model(
            model, Description(model=CifarResNet(depth=8), input_shape=SHAPE, classes=10), tmp_path / "file" / "x"
        )


def test_one_line_for_people(tmp_path: Path) -> None:
    _, description = _saved(tmp_path)
    line = describe(description)
    assert line.startswith("cifar_resnet depth=8 width=16, 3x16x16 -> 10, pruned (")
    assert "\n" not in line
