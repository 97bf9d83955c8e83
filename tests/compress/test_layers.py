"""Which layers of two nets are paired, over the real families."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.adapters import Align
from edgewise.compress.layers import Trace, chosen, resolve, sizes, trace, uniform
from edgewise.compress.losses.base import LayerMap, Layers, Pair
from edgewise.compress.taps import tapped
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ModelConfig, ViT

IMAGE = (3, 32, 32)
CONFIGS: dict[str, ModelConfig] = {
    "resnet8": CifarResNet(depth=8),
    "resnet20": CifarResNet(depth=20),
    "mobile_cifar": MobileNetV2(stem="cifar", width_multiplier=0.25),
    "mobile_imagenet": MobileNetV2(stem="imagenet", width_multiplier=0.25),
    "vit4": ViT(patch=4, dim=32, depth=4, heads=2),
    "vit4_shallow": ViT(patch=4, dim=16, depth=2, heads=4),
    "vit8": ViT(patch=8, dim=32, depth=2, heads=2),
}


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    return {name: build(config, IMAGE, 10) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def traces(nets: dict[str, nn.Module]) -> dict[str, Trace]:
    return {name: trace(net, IMAGE) for name, net in nets.items()}


def paired(layers: Layers, student: Trace, teacher: Trace) -> list[tuple[str, str]]:
    return [(pair.student, pair.teacher) for pair in resolve(layers, student, teacher)]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet20", {"layer1": (32, 32), "layer2": (16, 16), "layer3": (8, 8)}),
        (
            "mobile_cifar",
            {"features.3": (32, 32), "features.6": (16, 16), "features.13": (8, 8), "features.17": (4, 4)},
        ),
        (
            "mobile_imagenet",
            {"features.1": (16, 16), "features.3": (8, 8), "features.6": (4, 4), "features.13": (2, 2)},
        ),
        ("vit4", {"blocks": (8, 8)}),
        ("vit8", {"blocks": (4, 4)}),
    ],
)
def test_stages_are_the_last_blocks_of_each_map_size(
    traces: dict[str, Trace], name: str, stages: dict[str, tuple[int, int]]
) -> None:
    assert list(traces[name].stages.items()) == list(stages.items())


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ("resnet8", "resnet20", [("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3")]),
        ("mobile_cifar", "resnet20", [("features.3", "layer1"), ("features.6", "layer2"), ("features.13", "layer3")]),
        ("mobile_imagenet", "resnet20", [("features.1", "layer2"), ("features.3", "layer3")]),
        ("resnet8", "mobile_imagenet", [("layer2", "features.1"), ("layer3", "features.3")]),
        ("vit4", "resnet20", [("blocks", "layer3")]),
        ("resnet8", "vit4", [("layer3", "blocks")]),
        ("vit8", "mobile_cifar", [("blocks", "features.17")]),
        # no size in common: from the deep end
        ("vit8", "resnet20", [("blocks", "layer3")]),
        ("resnet8", "vit8", [("layer3", "blocks")]),
        ("vit8", "vit4", [("blocks", "blocks")]),
    ],
)
def test_auto_pairs_by_size(traces: dict[str, Trace], student: str, teacher: str, pairs: list[tuple[str, str]]) -> None:
    assert paired("auto", traces[student], traces[teacher]) == pairs
    assert paired("last", traces[student], traces[teacher]) == pairs[-1:]


def test_every_family_can_teach_every_other(nets: dict[str, nn.Module], traces: dict[str, Trace]) -> None:
    x = torch.randn(2, *IMAGE)
    for ours in traces:
        for theirs in traces:
            pairs = resolve("auto", traces[ours], traces[theirs])
            told = sizes(pairs, traces[ours], traces[theirs], 50)
            assert (told.classes, told.samples) == (10, 50)
            if "resnet20" not in (ours, theirs):
                continue
            with (
                tapped(nets[ours], tuple(pair.student for pair in pairs)) as student,
                tapped(nets[theirs], tuple(pair.teacher for pair in pairs)) as teacher,
            ):
                nets[ours].eval()(x)
                nets[theirs].eval()(x)
            for pair, shape, other in zip(pairs, told.student, told.teacher, strict=True):
                assert (student[pair.student].shape[1:], teacher[pair.teacher].shape[1:]) == (shape, other)
                one, two = Align(shape, other)(student[pair.student], teacher[pair.teacher])
                assert one.shape == two.shape


def test_embedding_is_what_goes_into_the_classifier(traces: dict[str, Trace]) -> None:
    assert paired("embedding", traces["resnet8"], traces["mobile_cifar"]) == [("linear:input", "classifier.1:input")]
    pairs = resolve("embedding", traces["vit4"], traces["mobile_cifar"])
    told = sizes(pairs, traces["vit4"], traces["mobile_cifar"], 1)
    assert (told.student, told.teacher) == (((32,),), ((1280,),))
    both = (Pair(student="embedding", teacher="layer3"), Pair(student="layer3:input", teacher="embedding"))
    assert paired(both, traces["resnet8"], traces["resnet20"]) == [
        ("linear:input", "layer3"),
        ("layer3:input", "linear:input"),
    ]


def test_names_are_checked_in_both_nets(traces: dict[str, Trace]) -> None:
    small, large, vit = traces["resnet8"], traces["resnet20"], traces["vit4"]
    assert paired(("layer1", "layer2.0"), small, large) == [("layer1", "layer1"), ("layer2.0", "layer2.0")]
    with pytest.raises(ModelError, match=r"the student has no layer 'layer2\.2'") as refused:
        resolve(("layer2.2",), small, large)
    assert refused.value.where == "losses.layers"
    assert "layer2.0" in refused.value.hint
    with pytest.raises(ModelError, match="the teacher has no layer 'layr3:input'") as refused:
        resolve((Pair(student="blocks", teacher="layr3:input"),), vit, large)
    assert "layer3" in refused.value.hint
    with pytest.raises(ModelError, match="empty list"):
        resolve((), small, large)


def test_heads_are_those_around_the_teachers_layer(traces: dict[str, Trace]) -> None:
    student, teacher = traces["vit4_shallow"], traces["vit4"]
    assert teacher.heads == {f"blocks.{i}.attn": 2 for i in range(4)}
    names = ("blocks.1.attn.qkv", "blocks.1.attn", "blocks.0", "blocks.1.mlp", "norm", "blocks.0.attn.softmax")
    told = sizes(resolve(names, student, teacher), student, teacher, 1)
    assert told.heads == {name: 2 for name in names if name not in ("norm", "blocks.1.mlp")}
    assert told.student[0] == (65, 48)
    assert told.teacher[-1] == (2, 65, 65)


def test_maps_of_layers(traces: dict[str, Trace]) -> None:
    student, teacher = traces["vit4_shallow"], traces["vit4"]

    def layer_map(kind: str) -> LayerMap:
        return LayerMap.model_validate({"map": kind, "student": "blocks.*", "teacher": "blocks.*"})

    assert paired(layer_map("uniform"), student, teacher) == [("blocks.0", "blocks.1"), ("blocks.1", "blocks.3")]
    assert paired(layer_map("last"), student, teacher) == [("blocks.0", "blocks.2"), ("blocks.1", "blocks.3")]
    assert paired(layer_map("first"), student, teacher) == [("blocks.0", "blocks.0"), ("blocks.1", "blocks.1")]
    assert [theirs for _, theirs in paired(layer_map("uniform"), teacher, teacher)] == [f"blocks.{i}" for i in range(4)]
    inputs = LayerMap(map="uniform", student="layer*.0:input", teacher="layer*.2:input")
    assert paired(inputs, traces["resnet8"], traces["resnet20"])[1] == ("layer2.0:input", "layer2.2:input")
    with pytest.raises(ModelError, match="the last 4 of 2: the student has more layers"):
        resolve(layer_map("last"), teacher, student)
    with pytest.raises(ModelError, match=r"no layer of the teacher is called 'block\.\*'") as refused:
        resolve(LayerMap(map="uniform", student="blocks.*", teacher="block.*"), student, teacher)
    assert "blocks.*" in refused.value.hint
    with pytest.raises(ModelError, match=r"has no \* in it"):
        resolve(LayerMap(map="uniform", student="blocks", teacher="blocks.*"), student, teacher)


def test_the_uniform_map() -> None:
    assert uniform(4, 12) == (2, 5, 8, 11)
    assert uniform(3, 4) == (0, 2, 3)
    for count in range(1, 13):
        assert uniform(count, count) == tuple(range(count))
        for of in range(1, 13):
            places = uniform(count, of)
            assert places[-1] == of - 1
            assert list(places) == sorted(places)
            assert min(places) >= 0
            assert len(set(places)) == min(count, of)
    assert chosen("first", 2, 5) == (0, 1)
    assert chosen("last", 2, 5) == (3, 4)


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.noise = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.relu(self.bn(self.conv(x))) + torch.rand(())
        out: Tensor = self.linear(self.noise(x).mean((2, 3)))
        return out


def test_a_tap_that_is_changed_in_place_is_refused() -> None:
    net = trace(Overwriting(), (3, 8, 8))
    assert net.overwritten == {"bn", "relu:input"}
    assert paired(("conv", "relu"), net, net) == [("conv", "conv"), ("relu", "relu")]
    with pytest.raises(ModelError, match="the student's 'bn' is changed in place"):
        resolve(("bn",), net, net)


def test_a_trace_changes_nothing() -> None:
    model = Overwriting().train()
    model.bn.eval()
    model.to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trace(model, (3, 8, 8))
    assert torch.equal(torch.rand(2), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_flat_nets_have_stages_too() -> None:
    """VGG: one long sequence of layers."""

    def conv(channels_in: int, channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU()]

    features = nn.Sequential(*conv(3, 4), *conv(4, 4), nn.MaxPool2d(2), *conv(4, 8), nn.MaxPool2d(2), *conv(8, 8))
    net = trace(nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), (3, 16, 16))
    assert dict(net.stages) == {"0.3": (16, 16), "0.6": (8, 8), "0": (4, 4)}
    assert net.classifier == "3"


def test_what_cannot_be_paired_is_refused() -> None:
    flat = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(-1)), (3, 2, 2))
    assert flat.classifier == "3"
    with pytest.raises(ModelError, match="no layer of the student gives a map"):
        resolve("auto", flat, flat)
    pooled = trace(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 4, 4))
    with pytest.raises(ModelError, match="no Linear or Conv gives the student's logits"):
        resolve("embedding", pooled, pooled)
    with pytest.raises(ModelError, match="can't take an input of shape"):
        trace(nn.Linear(3, 4), (5,))
