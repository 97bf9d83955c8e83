"""A student that starts from its teacher's layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.config import Inherit
from edgewise.compress.strategies.inherit import inherit
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import Bert, CifarResNet, MobileNetV2, ModelConfig, ViT

IMAGE = (3, 16, 16)


def net(config: ModelConfig, seed: int) -> nn.Module:
    """Fresh weights, and statistics and affine numbers that no two layers share."""
    torch.manual_seed(seed)
    model = build(config, IMAGE, 5)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def told(config: dict[str, object]) -> Inherit:
    return Inherit.model_validate({"kind": "inherit", **config})


def same(student: nn.Module, here: str, teacher: nn.Module, there: str) -> bool:
    ours, theirs = student.get_submodule(here).state_dict(), teacher.get_submodule(there).state_dict()
    return bool(ours) and list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("kind", "first_stage", "others"),
    [("uniform", (2, 5, 8), (0, 4, 8)), ("first", (0, 1, 2), (0, 1, 2)), ("last", (6, 7, 8), (0, 7, 8))],
)
def test_resnet56_to_resnet20(kind: str, first_stage: tuple[int, ...], others: tuple[int, ...]) -> None:
    """The block that opens a stage has shapes of its own, so it can only come from the block that opens it there."""
    student, teacher = net(CifarResNet(depth=20), 0), net(CifarResNet(depth=56), 1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    copied = inherit(student, teacher, told({"map": kind}))
    assert copied == list(student.state_dict())
    for stage, places in (("layer1", first_stage), ("layer2", others), ("layer3", others)):
        for block, place in enumerate(places):
            assert same(student, f"{stage}.{block}", teacher, f"{stage}.{place}")
            assert not same(student, f"{stage}.{block}", teacher, f"{stage}.{(place + 1) % 9}")
    for name in ("conv1", "bn1", "linear"):
        assert same(student, name, teacher, name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    with torch.no_grad():
        student.conv1.weight.zero_()
    assert not same(student, "conv1", teacher, "conv1")


def test_vit_of_depth_4_to_depth_2() -> None:
    student, teacher = net(ViT(dim=16, depth=2, heads=2), 0), net(ViT(dim=16, depth=4, heads=2), 1)
    assert inherit(student, teacher, told({})) == list(student.state_dict())
    assert same(student, "blocks.0", teacher, "blocks.1")
    assert same(student, "blocks.1", teacher, "blocks.3")
    assert torch.equal(student.pos_embed, teacher.pos_embed)
    assert torch.equal(student.cls_token, teacher.cls_token)


@pytest.mark.parametrize(
    "config",
    [CifarResNet(depth=8), MobileNetV2(stem="cifar", width_multiplier=0.25), ViT(dim=16, depth=2, heads=2)],
)
@pytest.mark.parametrize("slice", [False, True])
def test_a_twin_becomes_the_teacher(config: ModelConfig, slice: bool) -> None:
    student, teacher = net(config, 0).eval(), net(config, 1).eval()
    inherit(student, teacher, told({"slice": slice}))
    x = torch.randn(2, *IMAGE)
    assert torch.equal(student(x), teacher(x))


def test_a_deeper_student_repeats_blocks_where_the_map_allows() -> None:
    student, teacher = net(ViT(dim=16, depth=4, heads=2), 0), net(ViT(dim=16, depth=2, heads=2), 1)
    with pytest.raises(ModelError, match="blocks: the last 4 of 2") as refused:
        inherit(student, teacher, told({"map": "last"}))
    assert refused.value.where == "inherit"
    inherit(student, teacher, told({}))
    assert [next(i for i in range(2) if same(student, f"blocks.{b}", teacher, f"blocks.{i}")) for b in range(4)] == [
        0,
        0,
        1,
        1,
    ]
    with pytest.raises(ModelError, match=r"block layer2\.1 is like none of the teacher's 1 blocks"):
        inherit(net(CifarResNet(depth=20), 0), net(CifarResNet(depth=8), 1), told({}))


def untouched(student: nn.Module, teacher: nn.Module, config: Inherit, message: str) -> ModelError:
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(ModelError, match=message) as refused:
        inherit(student, teacher, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    return refused.value


def test_another_width_is_refused_unless_it_may_be_cut() -> None:
    student, teacher = net(CifarResNet(depth=8, width=8), 0), net(CifarResNet(depth=14, width=16), 1)
    error = untouched(
        student, teacher, told({}), r"tensors don't fit .* conv1\.weight \(8, 3, 3, 3\) from conv1\.weight"
    )
    assert "slice: true" in error.hint
    assert inherit(student, teacher, told({"slice": True})) == list(student.state_dict())
    assert torch.equal(student.layer2[0].conv1.weight, teacher.layer2[0].conv1.weight[:16, :8])
    assert torch.equal(student.layer3[0].bn2.running_var, teacher.layer3[0].bn2.running_var[:32])
    assert torch.equal(student.linear.weight, teacher.linear.weight[:, :32])
    untouched(net(CifarResNet(depth=8, width=32), 0), teacher, told({"slice": True}), "the student is wider")


def test_fused_attention_is_cut_by_heads() -> None:
    student, teacher = net(ViT(dim=16, depth=1, heads=2), 0), net(ViT(dim=32, depth=3, heads=4), 1)
    inherit(student, teacher, told({"slice": True}))
    ours, theirs = student.blocks[0].attn, teacher.blocks[2].attn

    def parts(tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.detach().chunk(3)

    for one, other in zip(parts(ours.qkv.weight), parts(theirs.qkv.weight), strict=True):
        assert torch.equal(one, other[:16, :16])
    for one, other in zip(parts(ours.qkv.bias), parts(theirs.qkv.bias), strict=True):
        assert torch.equal(one, other[:16])
    assert torch.equal(ours.proj.weight, theirs.proj.weight[:16, :16])
    assert torch.equal(student.pos_embed, teacher.pos_embed[..., :16])
    message = r"attn\.qkv\.weight .* heads of 8 channels from heads of "
    untouched(student, net(ViT(dim=32, depth=3, heads=2), 1), told({"slice": True}), message + "16")
    # As many numbers, but cut into other heads.
    untouched(student, net(ViT(dim=16, depth=3, heads=4), 1), told({}), message + "4")


def test_only_channels_are_cut() -> None:
    student, teacher = net(ViT(dim=16, depth=1, heads=2, patch=8), 0), net(ViT(dim=16, depth=1, heads=2, patch=4), 1)
    untouched(student, teacher, told({"slice": True}), r"pos_embed .* dimension 1 differs, which is no channel")
    untouched(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3), told({"slice": True}), "dimension 2 differs")


def test_another_family_is_refused() -> None:
    untouched(
        net(CifarResNet(depth=8), 0), net(ViT(dim=16, depth=1, heads=2), 1), told({}), "has its name in the teacher"
    )


def test_bert_takes_every_other_block() -> None:
    """DistilBERT's student: of six blocks the second, fourth and sixth, the table, the places and the types."""
    torch.manual_seed(0)
    teacher = build(Bert(layers=6, width=16, heads=4, separator=3), (12, 50), 3)
    student = build(Bert(layers=3, width=16, heads=4, pooler="none", pooling="mean"), (12, 50), 3)
    assert set(inherit(student, teacher, told({}))) == set(student.state_dict())
    assert all(same(student, f"blocks.{place}", teacher, f"blocks.{2 * place + 1}") for place in range(3))
    assert same(student, "embeddings", teacher, "embeddings")


def test_a_factorised_table_takes_the_nearest_of_its_rank() -> None:
    """Against NumPy's singular values."""
    torch.manual_seed(0)
    shape = (12, 50)
    teacher: Any = build(Bert(layers=2, width=16, heads=4), shape, 3)
    student: Any = build(Bert(layers=1, width=16, heads=4, embedding=5), shape, 3)
    names = inherit(student, teacher, told({}))
    assert {"embeddings.words.weight", "embeddings.project.weight", "embeddings.project.bias"} <= set(names)
    table = teacher.embeddings.words.weight.detach().numpy()
    left, values, right = np.linalg.svd(table, full_matrices=False)
    expected = (left[:, :5] * values[:5]) @ right[:5]
    with torch.no_grad():
        got = student.embeddings.project(student.embeddings.words.weight)
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
