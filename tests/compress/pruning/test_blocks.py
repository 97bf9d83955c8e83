"""Whole blocks leave: those that are residual are found by what they do, and what is left computes what it must."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.compress.config import DropBlocks, Inherit, Prune
from edgewise.compress.layers import resolve, trace
from edgewise.compress.losses.base import LayerMap
from edgewise.compress.macs import count
from edgewise.compress.pruning.blocks import BlocksGone, drop_blocks, influence
from edgewise.compress.pruning.identity import BlocksDropped
from edgewise.compress.pruning.prune import prune
from edgewise.compress.pruning.residual import find_blocks
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config
from edgewise.compress.saved import ChannelPlan, Description, FakeQuantized, built, describe, load_model, save_model
from edgewise.compress.strategies.inherit import inherit
from edgewise.deploy.export import export_float
from edgewise.errors import ArtifactError, ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ViT
from edgewise.models.mobilenet_v2 import BOTTLENECKS

SHAPE = (3, 16, 16)
Samples = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture
def samples() -> Samples:
    generator = np.random.default_rng(0)
    return generator.standard_normal((24, *SHAPE)).astype(np.float32), generator.integers(0, 10, 24)


def _net(config: Any, shape: Any = SHAPE) -> nn.Module:
    """With statistics and scales as if trained."""
    model = build(config, shape, 10)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dim() == 1:
            nn.init.uniform_(tensor.data, *((-0.2, 0.2) if name.endswith(("bias", "mean")) else (0.5, 1.5)))
    return model.eval()


def _drop(model: nn.Module, samples: Samples | None = None, shape: Any = SHAPE, **settings: Any) -> BlocksGone:
    inputs, targets = samples or (None, None)
    seed = settings.pop("seed", 0)
    if "names" not in settings:
        settings = {"criterion": "influence", **settings}
    config = DropBlocks(kind="drop_blocks", **settings)
    return drop_blocks(model, config, shape, seed=seed, inputs=inputs, targets=targets)


def _answers(model: nn.Module, inputs: NDArray[np.float32]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(torch.from_numpy(inputs))
    return out


# --- which blocks are residual --------------------------------------------------------------------------------------


def test_resnets_identity_blocks() -> None:
    """Restated from the paper: three stages of n blocks, the second and third open with another shape."""
    blocks, skipped = find_blocks(_net(CifarResNet(depth=20)), SHAPE)
    every = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert blocks == [name for name in every if name not in ("layer2.0", "layer3.0")]
    assert list(skipped) == ["layer2.0", "layer3.0"]
    assert "(16, 16, 16) and its output (32, 8, 8)" in skipped["layer2.0"]


def test_mobilenets_repeats() -> None:
    """Table 2 of the paper: all but the first of each row are residual."""
    blocks, skipped = find_blocks(_net(MobileNetV2(stem="cifar", width_multiplier=0.5)), SHAPE)
    first, residual, opening = 1, [], []
    for _, _, repeats, _ in BOTTLENECKS:
        opening.append(f"features.{first}")
        residual += [f"features.{first + n}" for n in range(1, repeats)]
        first += repeats
    assert blocks == residual
    assert set(opening) == set(skipped)


def test_layers_of_a_transformer() -> None:
    assert find_blocks(_net(ViT(dim=32, depth=3, heads=2)), SHAPE) == (["blocks.0", "blocks.1", "blocks.2"], {})


class _Wrapped(nn.Module):
    """Convolution in, ``block`` three times in a row, mean and classifier out."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.row = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.row:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x.mean((2, 3)))


class _Conv(nn.Module):
    """Two convolutions, put together in another way each time."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "overwrites":
            kept = x.clone()
            x = nn.functional.relu(x, inplace=True)
            return kept + self.two(self.one(x))
        branch = self.two(torch.relu(self.one(x)))
        return {
            "added": lambda: x + branch,
            "gate": lambda: x * torch.sigmoid(branch),
            "plain": lambda: branch,
            "scaled": lambda: (x + branch) * 0.7,
            "tuple": lambda: (x + branch, branch),
            "pooled": lambda: nn.functional.avg_pool2d(x, 3, 1, 1) + branch,
            "relu": lambda: torch.relu(x + branch),
        }[self.kind]()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("added", ""),
        ("relu", ""),
        ("overwrites", ""),
        ("gate", "adds nothing"),
        ("plain", "adds nothing"),
        ("scaled", "adds nothing"),
        ("pooled", "adds nothing"),
        ("tuple", "gives tuple"),
    ],
)
def test_a_block_is_known_by_what_it_does(kind: str, reason: str) -> None:
    model = _Wrapped(_Conv("added"), _Conv(kind))
    blocks, skipped = find_blocks(model, SHAPE)
    assert blocks == (["row.0", "row.1"] if not reason else ["row.0"])
    assert all(reason in text for text in skipped.values())
    assert list(skipped) == (["row.1"] if reason else [])


def test_a_block_called_twice_stays() -> None:
    class Twice(_Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.row[0](self.row[0](torch.relu(self.stem(x)))).mean((2, 3)))

    blocks, skipped = find_blocks(Twice(_Conv("added")), SHAPE)
    assert (blocks, skipped) == ([], {"row.0": "it runs 2 times in one pass"})


def test_what_the_rest_reads_off_a_block_keeps_it() -> None:
    """torch's own encoder looks into its first layer."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.encoder(x.flatten(2).transpose(1, 2)).mean(1))
            return out

    blocks, skipped = find_blocks(Encoder(), (16, 4, 4))
    assert blocks == ["encoder.layers.1", "encoder.layers.2"]
    assert "self_attn" in skipped["encoder.layers.0"]


def test_the_layers_of_an_encoder_not_the_encoder_nor_what_is_in_them() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.feed = _Conv("added"), _Conv("added")

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.feed(self.mix(x))
            return out

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(Inner(), Inner())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out

    assert find_blocks(_Wrapped(Encoder()), SHAPE) == (["row.0.layer.0", "row.0.layer.1"], {})


# --- which of them leave --------------------------------------------------------------------------------------------


def _slow_influence(before: Tensor, after: Tensor) -> float:
    """ShortGPT's formula in float64, one vector at a time; channels last."""
    one, other = (x.double().numpy().reshape(-1, x.shape[-1]) for x in (before, after))
    similar = []
    for x, y in zip(one, other, strict=True):
        length = np.sqrt((x**2).sum()) * np.sqrt((y**2).sum())
        similar.append(1.0 if not x.any() and not y.any() else (x * y).sum() / max(length, 1e-300))
    return 1 - float(np.mean(similar))


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_influence_restated(family: str, samples: Samples) -> None:
    model: Any = _net(ViT(dim=32, depth=3, heads=2) if family == "vit" else CifarResNet(depth=14))
    with torch.no_grad():
        x = torch.from_numpy(samples[0])
        if family == "vit":
            x = model.patch_embed(x)
            x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
            rows = [("blocks", model.blocks)]
        else:
            x = torch.relu(model.bn1(model.conv1(x)))
            rows = [(f"layer{n}", model.get_submodule(f"layer{n}")) for n in (1, 2, 3)]
        expected = {}
        for row, blocks in rows:
            for number, block in enumerate(blocks):
                after = block(x)
                if after.shape == x.shape:
                    pair = (x, after) if family == "vit" else (x.movedim(1, -1), after.movedim(1, -1))
                    expected[f"{row}.{number}"] = _slow_influence(*pair)
                x = after
    got = influence(model, list(expected), samples[0])
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert max(expected.values()) > 0.01


def test_a_block_that_does_nothing_leaves_first_and_is_not_missed(samples: Samples) -> None:
    model: Any = _net(CifarResNet(depth=20))
    for name in ("layer2.1", "layer1.2"):
        nn.init.zeros_(model.get_submodule(name).bn2.weight)
        nn.init.zeros_(model.get_submodule(name).bn2.bias)
        model.get_submodule(name).bn2.running_mean.zero_()
    assert _drop(copy.deepcopy(model), samples, count=1, criterion="loss").scores["layer2.1"] == 0
    smaller = copy.deepcopy(model)
    gone = _drop(smaller, samples, count=2)
    assert set(gone.names) == {"layer2.1", "layer1.2"}
    assert gone.scores["layer2.1"] == pytest.approx(0, abs=1e-12)
    assert torch.equal(_answers(smaller, samples[0]), _answers(model, samples[0]))


def test_the_rise_of_the_loss_restated(samples: Samples) -> None:
    model: Any = _net(ViT(dim=32, depth=3, heads=2))
    inputs, targets = samples

    def loss(skipped: tuple[int, ...]) -> float:
        with torch.no_grad():
            x = model.patch_embed(torch.from_numpy(inputs))
            x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
            for number, block in enumerate(model.blocks):
                x = x if number in skipped else block(x)
            logits = model.head(model.norm(x)[:, 0]).double().numpy()
        shifted = logits - logits.max(1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return -float(np.mean([row[k] for row, k in zip(log, targets, strict=True)]))

    rises = {f"blocks.{n}": loss((n,)) - loss(()) for n in range(3)}
    first = min(range(3), key=lambda n: loss((n,)))
    second = min((n for n in range(3) if n != first), key=lambda n: loss((first, n)))
    gone = _drop(model, samples, count=2, criterion="loss")
    assert gone.scores == pytest.approx(rises, abs=1e-6)
    assert gone.names == (f"blocks.{first}", f"blocks.{second}")


def test_one_ranking_or_a_new_one_each_time(samples: Samples) -> None:
    """Without rescoring the two lowest of the first ranking leave; with it, the second is the lowest of a net that is
    without the first."""
    model = _net(ViT(dim=32, depth=4, heads=2))
    names = [f"blocks.{n}" for n in range(4)]
    first = influence(model, names, samples[0])
    once = _drop(copy.deepcopy(model), samples, count=2, rescore=False)
    assert list(once.names) == sorted(names, key=first.__getitem__)[:2]
    again = _drop(copy.deepcopy(model), samples, count=2)
    left = copy.deepcopy(model)
    left.set_submodule(again.names[0], nn.Identity())
    second = influence(left, [name for name in names if name != again.names[0]], samples[0])
    assert again.names[1] == min(second, key=second.__getitem__)


def test_last_and_random(samples: Samples) -> None:
    model = _net(CifarResNet(depth=20))
    assert _drop(copy.deepcopy(model), count=3, criterion="last").names == ("layer3.2", "layer3.1", "layer2.2")
    drawn = {_drop(copy.deepcopy(model), count=2, criterion="random", seed=seed).names for seed in range(6)}
    assert len(drawn) > 1
    same = [_drop(copy.deepcopy(model), count=2, criterion="random", seed=3).names for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.parametrize("ratio", [0.9, 0.7, 0.45])
def test_down_to_a_ratio_and_no_further(ratio: float, samples: Samples) -> None:
    """The MACs are counted again; no dropped block could have stayed."""
    model = _net(MobileNetV2(stem="cifar", width_multiplier=0.35))
    whole = copy.deepcopy(model)
    gone = _drop(model, samples, macs_ratio=ratio)
    assert count(model, SHAPE).macs == gone.macs_after <= ratio * gone.macs_before
    assert count(model, SHAPE).params == gone.params_after < gone.params_before == count(whole, SHAPE).params
    for kept in gone.names:
        other = copy.deepcopy(whole)
        _drop(other, names=[name for name in gone.names if name != kept]) if len(gone.names) > 1 else None
        assert count(other, SHAPE).macs > ratio * gone.macs_before


def test_what_is_left_computes_what_it_did(samples: Samples) -> None:
    model: Any = _net(CifarResNet(depth=14))
    old: Any = copy.deepcopy(model)
    gone = _drop(model, names=["layer1.*", "layer3.1"])
    assert gone.names == ("layer1.0", "layer1.1", "layer3.1")
    with torch.no_grad():
        x = torch.relu(old.bn1(old.conv1(torch.from_numpy(samples[0]))))
        x = old.layer3[0](old.layer2(x))
        expected = old.linear(old.pool(x).flatten(1))
    assert torch.equal(_answers(model, samples[0]), expected)
    left = {name for name in old.state_dict() if not name.startswith(gone.names)}
    assert set(model.state_dict()) == left  # the others keep their names


# --- what can't be done is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ["layer1.7"]}, "no block of the model is called 'layer1.7'"),
        ({"names": ["layer1"]}, "holds several"),
        ({"names": ["layer1.1", "conv1"]}, "a part of a block"),
        ({"names": ["layer2.0"]}, "can't be dropped: its input"),
        ({"count": 8}, "count 8 is out of reach: 7 blocks"),
        ({"macs_ratio": 0.05}, "macs_ratio 0.05 is out of reach"),
        ({"count": 1}, "needs training samples"),
        ({"count": 1, "criterion": "loss"}, "needs training samples"),
    ],
)
def test_refused_and_left_as_it_was(settings: dict[str, Any], message: str) -> None:
    model = _net(CifarResNet(depth=20))
    before = str(model)
    with pytest.raises(ModelError, match=message):
        _drop(model, **settings)
    assert str(model) == before


def test_no_block_at_all() -> None:
    with pytest.raises(ModelError, match=r"no block of the model can be dropped: row\.0: it adds nothing"):
        _drop(_Wrapped(_Conv("plain")), count=1, criterion="last")


def test_scores_that_are_no_numbers(samples: Samples) -> None:
    model: Any = _net(CifarResNet(depth=8))
    nn.init.constant_(model.layer1[0].conv1.weight, float("nan"))
    with pytest.raises(ModelError, match="score is nan"):
        _drop(model, samples, count=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of count, macs_ratio and names"),
        ({"count": 1, "macs_ratio": 0.5}, "exactly one"),
        ({"names": ["a"], "criterion": "influence"}, "criterion: it is not read"),
        ({"count": 1, "criterion": "last", "samples": 3}, "samples: it is not read"),
        ({"count": 1, "criterion": "random", "rescore": False}, "rescore: it is not read"),
    ],
)
def test_configs_that_say_two_things(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DropBlocks(kind="drop_blocks", **settings)


# --- a net without some blocks is a net like any other --------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(["drop", "prune"])), ids=" then ".join)
@pytest.mark.parametrize("config", [CifarResNet(depth=14), ViT(dim=32, depth=3, heads=2)], ids=lambda c: c.kind)
def test_comes_back_bit_for_bit(config: Any, order: tuple[str, ...], samples: Samples, tmp_path: Path) -> None:
    model = _net(config)
    edits: list[Any] = []
    for kind in order:
        if kind == "drop":
            edits.append(BlocksDropped(names=_drop(model, samples, count=1).names))
        else:
            pruned = prune(model, Prune(kind="prune", macs_ratio=0.8), SHAPE, round_to=4, seed=0)
            edits.append(ChannelPlan(plan=pruned.plan))
    description = Description(model=config, input_shape=SHAPE, classes=10, edits=tuple(edits))
    save_model(model, description, tmp_path)
    loaded, read = load_model(tmp_path)
    assert read == description
    assert "without " in describe(read)
    assert torch.equal(_answers(loaded, samples[0]), _answers(model, samples[0]))
    assert [n for n, _ in built(read).named_modules()] == [n for n, _ in model.named_modules()]
    assert count(loaded, SHAPE) == count(model, SHAPE)


def test_an_edit_of_another_net_is_noticed(tmp_path: Path) -> None:
    model = _net(CifarResNet(depth=8))
    edit = BlocksDropped(names=("layer1.1",))  # there is one block a stage
    save_model(model, Description(model=CifarResNet(depth=8), input_shape=SHAPE, classes=10, edits=(edit,)), tmp_path)
    with pytest.raises(ArtifactError, match="blocks_dropped edit doesn't fit the model: the model has no block"):
        load_model(tmp_path)


def test_quantized_afterwards(samples: Samples, tmp_path: Path) -> None:
    model = _net(CifarResNet(depth=14))
    gone = _drop(model, samples, count=2)
    quantized = insert_quantizers(model, samples[0][:4])
    edits = (BlocksDropped(names=gone.names), FakeQuantized(nncf=quantizer_config(quantized)))
    save_model(
        quantized, Description(model=CifarResNet(depth=14), input_shape=SHAPE, classes=10, edits=edits), tmp_path
    )
    assert torch.equal(_answers(load_model(tmp_path)[0], samples[0]), _answers(quantized, samples[0]))
    assert not any(name.replace(".", "/") in key for key in str(edits[1].nncf).split("'") for name in gone.names)


def test_exported_graphs_do_not_hold_it(samples: Samples, tmp_path: Path) -> None:
    model = _net(CifarResNet(depth=8))
    whole, part = tmp_path / "whole.onnx", tmp_path / "part.onnx"
    export_float(model, SHAPE, whole)
    gone = _drop(model, samples, count=1)
    export_float(model, SHAPE, part)
    names = {path: [node.name for node in onnx.load(path).graph.node] for path in (whole, part)}
    assert any(name.startswith(gone.names[0]) for name in names[whole])
    assert not any(name.startswith(gone.names[0]) for name in names[part])
    assert len(names[part]) < len(names[whole])
    session = onnxruntime.InferenceSession(part.read_bytes(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": samples[0]})[0]
    torch.testing.assert_close(torch.from_numpy(got), _answers(model, samples[0]), rtol=1e-4, atol=1e-4)


def test_losses_find_the_layers_that_are_left(samples: Samples) -> None:
    """A pattern means the blocks that are there; a name may still mean the place of a dropped one."""
    student, teacher = _net(ViT(dim=32, depth=4, heads=2)), _net(ViT(dim=32, depth=6, heads=2))
    _drop(student, names=["blocks.1", "blocks.3"])
    ours, theirs = trace(student, SHAPE), trace(teacher, SHAPE)
    pairs = resolve(LayerMap(student="blocks.*", teacher="blocks.*", map="last"), ours, theirs)
    assert [(p.student, p.teacher) for p in pairs] == [("blocks.0", "blocks.4"), ("blocks.2", "blocks.5")]
    assert [p.student for p in resolve(("blocks.1",), ours, theirs)] == ["blocks.1"]
    assert resolve("auto", ours, theirs)


def test_what_is_left_can_inherit(samples: Samples) -> None:
    """By name where both have as many places, shared out among those that are there where not."""
    teacher = _net(ViT(dim=32, depth=4, heads=2))
    student = _net(ViT(dim=32, depth=4, heads=2))
    _drop(student, names=["blocks.1"])
    inherit(student, teacher, Inherit(kind="inherit"))
    assert torch.equal(
        student.get_parameter("blocks.2.mlp.fc1.weight"), teacher.get_parameter("blocks.2.mlp.fc1.weight")
    )
    short = _net(ViT(dim=32, depth=3, heads=2))
    _drop(short, names=["blocks.1"])
    inherit(short, teacher, Inherit(kind="inherit", map="last"))
    for ours, theirs in (("blocks.0", "blocks.2"), ("blocks.2", "blocks.3")):
        name = "attn.qkv.weight"
        assert torch.equal(short.get_parameter(f"{ours}.{name}"), teacher.get_parameter(f"{theirs}.{name}"))
