"""The teacher's classifier reused: the loss, the surgery, what it costs, and that it is saved, pruned and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.config import Prune
from edgewise.compress.losses.base import Batch, Outputs, Pair
from edgewise.compress.losses.simkd import SimKD, simkd_loss
from edgewise.compress.macs import count
from edgewise.compress.pruning.prune import prune
from edgewise.compress.saved import ChannelPlan, Description, describe, load_model, save_model
from edgewise.compress.simkd import ReusedClassifier, restore_classifier, reuse_classifier
from edgewise.compress.taps import tapped
from edgewise.deploy.export import export_float
from edgewise.errors import ArtifactError, ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ViT

SHAPE = (3, 16, 16)
RESNET, MOBILENET = CifarResNet(depth=8, width=8), MobileNetV2(stem="cifar", width_multiplier=0.35)
BATCH = Batch(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.long), torch.arange(2))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fresh(config: CifarResNet | MobileNetV2 | ViT, classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return build(config, SHAPE, classes).eval()


def test_the_loss_is_the_mean_square_with_the_larger_map_pooled() -> None:
    student, teacher = drawn(2, 3, 4, 4, seed=0), drawn(2, 3, 4, 4, seed=1)
    expected = (
        sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)) / 96
    )
    assert float(simkd_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)
    small = teacher.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    assert float(simkd_loss(small, teacher)) == pytest.approx(0.0, abs=1e-12)
    assert float(simkd_loss(teacher, small)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="maps"):
        simkd_loss(student, drawn(2, 4, 4, 4, seed=1))


def test_gradient_reaches_the_student_alone() -> None:
    student, teacher = drawn(1, 3, 4, 4, seed=0).requires_grad_(), drawn(1, 3, 2, 2, seed=1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = simkd_loss(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(("pupil", "master"), [(RESNET, MOBILENET), (MOBILENET, CifarResNet(depth=14, width=16))])
def test_the_student_answers_with_the_teachers_classifier(
    pupil: CifarResNet | MobileNetV2, master: CifarResNet | MobileNetV2
) -> None:
    student, teacher = fresh(pupil), fresh(master)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = SimKD()
    edit = config.edit(student, teacher, SHAPE)
    reused, linear = student.get_submodule(edit.classifier), teacher.get_submodule(_classifier(master))
    assert torch.equal(reused.get_parameter("weight"), linear.get_parameter("weight"))
    assert edit.relu
    assert not any(parameter.requires_grad for parameter in reused.parameters())
    assert all(p.requires_grad for name, p in student.named_parameters() if not name.startswith(edit.classifier))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())

    assert config.wanted_layers() == (Pair(student="pool.0", teacher="pool:input"),)
    x = drawn(2, *SHAPE, seed=1)
    with tapped(student, ("pool.0",)) as ours, tapped(teacher, ("pool:input",)) as theirs:
        logits, told = student(x), teacher(x)
    loss = config(Outputs(logits, (ours["pool.0"],)), Outputs(told, (theirs["pool:input"],)), BATCH, None)
    assert float(loss.detach()) == pytest.approx(float(simkd_loss(ours["pool.0"], theirs["pool:input"]).detach()))
    # A projector that gives the teacher's map gives the teacher's answers.
    torch.testing.assert_close(reused(theirs["pool:input"].mean((2, 3))), told)


def _classifier(config: CifarResNet | MobileNetV2) -> str:
    return "linear" if isinstance(config, CifarResNet) else "classifier.1"


def test_training_moves_the_projector_and_not_the_classifier() -> None:
    student, teacher = fresh(RESNET), fresh(CifarResNet(depth=8, width=16))
    config = SimKD()
    edit = config.edit(student, teacher, SHAPE)
    kept = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    x = drawn(8, *SHAPE, seed=2)
    student.train()
    losses = []
    for _ in range(8):
        with tapped(student, ("pool.0",)) as ours, tapped(teacher, ("pool:input",)) as theirs:
            logits, told = student(x), teacher(x)
        loss = config(Outputs(logits, (ours["pool.0"],)), Outputs(told, (theirs["pool:input"],)), BATCH, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    now = student.state_dict()
    assert torch.equal(now[f"{edit.classifier}.weight"], kept[f"{edit.classifier}.weight"])
    assert not torch.equal(now["pool.0.0.weight"], kept["pool.0.0.weight"])


def test_its_cost_is_counted() -> None:
    student, teacher = fresh(RESNET), fresh(CifarResNet(depth=8, width=16))
    before = count(student, SHAPE)
    edit = SimKD(factor=4).edit(student, teacher, SHAPE)
    after = count(student, SHAPE)
    # Maps of 4x4: 32 -> 16, 16 -> 16 by 3x3, 16 -> 64 channels; then a classifier of 64 inputs and not 32.
    assert (edit.channels_in, edit.inner, edit.channels) == (32, 16, 64)
    convolutions = 32 * 16 + 9 * 16 * 16 + 16 * 64
    assert after.macs - before.macs == 16 * convolutions + 32 * 10
    assert after.params - before.params == convolutions + 2 * (16 + 16 + 64) + 32 * 10


def test_it_is_saved_and_comes_back(tmp_path: Path) -> None:
    student = fresh(RESNET)
    edit = SimKD().edit(student, fresh(MOBILENET), SHAPE)
    description = Description(model=RESNET, input_shape=SHAPE, classes=10, edits=(edit,))
    save_model(student, description, tmp_path)
    again, read = load_model(tmp_path)
    x = drawn(2, *SHAPE, seed=3)
    assert read == description
    assert torch.equal(again(x), student(x))
    assert not again.get_submodule("linear").get_parameter("weight").requires_grad
    assert describe(read).endswith("teacher's classifier (1280 channels)")

    wrong = description.model_copy(update={"edits": (edit.model_copy(update={"pool": "nowhere"}),)})
    save_model(student, wrong, tmp_path)
    with pytest.raises(ArtifactError, match="the saved reused_classifier edit doesn't fit the model"):
        load_model(tmp_path)


def test_it_can_be_pruned_afterwards(tmp_path: Path) -> None:
    student = fresh(RESNET)
    edit = SimKD().edit(student, fresh(CifarResNet(depth=8, width=16)), SHAPE)
    pruned = prune(student, Prune(kind="prune", macs_ratio=0.6), SHAPE, round_to=4, seed=0)
    assert "pool.0.0" in pruned.plan
    assert not student.get_submodule("linear").get_parameter("weight").requires_grad
    edits = (edit, ChannelPlan(plan=pruned.plan))
    save_model(student, Description(model=RESNET, input_shape=SHAPE, classes=10, edits=edits), tmp_path)
    x = drawn(2, *SHAPE, seed=4)
    assert torch.equal(load_model(tmp_path)[0](x), student.eval()(x))


def test_it_is_exported(tmp_path: Path) -> None:
    student = fresh(RESNET)
    SimKD().edit(student, fresh(CifarResNet(depth=8, width=16)), SHAPE)
    export_float(student, SHAPE, tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    x = drawn(3, *SHAPE, seed=5)
    np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], student(x).detach().numpy(), atol=1e-3)


class Net(nn.Module):
    def __init__(self, channels: int, act: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.conv, self.act, self.avgpool, self.fc = nn.Conv2d(3, channels, 3), act, nn.AvgPool2d(14), head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.avgpool(self.act(self.conv(x))).flatten(1))
        return out


def test_a_users_nets_are_named_and_a_teacher_below_zero_gets_no_relu() -> None:
    student, teacher = fresh(RESNET), Net(12, nn.SiLU(), nn.Linear(12, 10, bias=False)).eval()
    edit = SimKD(teacher_pool="avgpool").edit(student, teacher, SHAPE)
    assert not edit.relu
    assert not edit.bias
    again = fresh(RESNET)
    restore_classifier(again, edit)
    again.load_state_dict(student.state_dict())
    torch.testing.assert_close(again(drawn(2, *SHAPE, seed=6)), student(drawn(2, *SHAPE, seed=6)))


def test_nets_that_end_otherwise_are_refused() -> None:
    teacher = fresh(MOBILENET)
    with pytest.raises(ModelError, match="the student has no layer 'pol'"):
        reuse_classifier(fresh(RESNET), teacher, SHAPE, pool="pol")
    with pytest.raises(ModelError, match="the teacher has no layer 'pool'"):
        SimKD().edit(fresh(RESNET), fresh(ViT(dim=32, depth=1, heads=2, mlp_ratio=4.0)), SHAPE)
    with pytest.raises(ModelError, match="5 classes and the teacher 10"):
        SimKD().edit(fresh(RESNET, classes=5), teacher, SHAPE)
    deep = Net(12, nn.ReLU(), nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))).eval()
    with pytest.raises(ModelError, match="isn't given the average of what goes into 'avgpool'"):
        SimKD(teacher_pool="avgpool").edit(fresh(RESNET), deep, SHAPE)
    with pytest.raises(ModelError, match="is a Sequential"):
        SimKD(teacher_pool="avgpool", teacher_classifier="fc").edit(fresh(RESNET), deep, SHAPE)
    twice = fresh(RESNET)
    SimKD().edit(twice, teacher, SHAPE)
    with pytest.raises(ModelError, match="isn't given the average"):
        SimKD().edit(twice, teacher, SHAPE)
    with pytest.raises(ModelError, match="no layer 'gone'"):
        restore_classifier(fresh(RESNET), _edit(classifier="gone"))


def _edit(classifier: str) -> ReusedClassifier:
    return ReusedClassifier(
        pool="pool", classifier=classifier, channels_in=4, inner=2, channels=4, classes=3, bias=True, relu=True
    )
