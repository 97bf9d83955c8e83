"""Teachers that change: one that learns beside the student, and the student's own average."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.compress.config import EmaTeacher, Fit, Online, Sgd
from edgewise.compress.losses import AT, KD, FitNet
from edgewise.compress.strategies.live import TEACHER, learn_from_average, learn_online
from edgewise.compress.train import fit, labels_only
from edgewise.errors import ModelError
from edgewise.models.tasks.config import Augment

Net = Callable[..., nn.Module]
RUN = Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.05), checkpoint_every=1)
PLAIN = Fit(epochs=3, batch_size=48, optimizer=Sgd(lr=0.1, momentum=0, weight_decay=0), schedule="constant")
LOSSES = (KD(), FitNet(layers=("2",), weight=1.0), AT(layers=("2",), weight=10.0))


def online(run: Fit = RUN, **config: Any) -> Online:
    return Online(kind="online", fit=run, **config)


def average(run: Fit = RUN, **config: Any) -> EmaTeacher:
    return EmaTeacher(kind="ema_teacher", fit=run, **config)


def kl(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.kl_div(ours.log_softmax(1), theirs.detach().softmax(1), reduction="batchmean")


def stepped(model: nn.Module, loss: Tensor) -> None:
    with torch.no_grad():
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p -= 0.1 * g


def close(model: nn.Module, expected: nn.Module) -> None:
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def test_a_teacher_beside_the_student_learns_as_if_alone(split: Any, net: Net, bits: Any) -> None:
    """Bit for bit: nothing of the student's losses reaches it."""
    student, teacher, alone = net(0), net(1, width=6).requires_grad_(False), net(1, width=6)
    before = bits(student)
    history = learn_online(student, teacher, split, online(losses=LOSSES), seed=3)
    labels = fit(labels_only(alone), split, RUN, seed=3)
    assert bits(teacher) == bits(alone)
    assert bits(student) != before
    assert [epoch.terms[TEACHER] for epoch in history] == [epoch.loss for epoch in labels]
    assert list(student.state_dict()) == list(net(0).state_dict())


def test_the_student_follows_the_teacher_of_the_moment(split: Any, net: Net) -> None:
    student, teacher = net(0), net(1, width=6)
    by_hand, theirs = copy.deepcopy(student), copy.deepcopy(teacher)
    config = online(PLAIN, cross_entropy=0.5, losses=(KD(weight=2.0, temperature=1.0),), teacher_cross_entropy=0.7)
    history = learn_online(student, teacher, split, config, seed=3)
    inputs, targets = torch.from_numpy(split.images), torch.from_numpy(split.targets)
    for epoch in history:
        ours, answer = by_hand(inputs), theirs(inputs)
        divergence, labels = kl(ours, answer), F.cross_entropy(answer, targets)
        assert epoch.unweighted["kd"] == pytest.approx(float(divergence.detach()), rel=1e-4)
        assert epoch.terms[TEACHER] == pytest.approx(0.7 * float(labels.detach()), rel=1e-4)
        stepped(by_hand, 0.5 * F.cross_entropy(ours, targets) + 2 * divergence)
        stepped(theirs, 0.7 * labels)
    close(student, by_hand)
    close(teacher, theirs)


def test_the_teacher_learns_while_the_student_has_labels_alone(split: Any, net: Net, bits: Any) -> None:
    teacher, alone = net(1), net(1)
    history = learn_online(net(0), teacher, split, online(label_only_epochs=1), seed=3)
    fit(labels_only(alone), split, RUN, seed=3)
    assert bits(teacher) == bits(alone)
    assert sorted(history[0].terms) == ["cross_entropy", TEACHER]


def test_online_refusals(split: Any, net: Net) -> None:
    one = net(0)
    with pytest.raises(ModelError, match="pass a copy"):
        learn_online(one, one, split, online(), seed=3)
    with pytest.raises(ModelError, match="know the same classes"):
        learn_online(one, net(1, classes=4), split, online(), seed=3)


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("decay", [0.4, 0.999])
def test_the_average_follows_the_formula(
    split: Any, net: Net, killed: Any, tmp_path: Path, buffers: str, decay: float
) -> None:
    student, file = net(0), tmp_path / "checkpoint.safetensors"
    seen = [{name: value.clone() for name, value in student.state_dict().items()}]

    def tick(done: int, total: int, note: str) -> None:
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
        killed(6)(done, total, note)

    config = average(losses=LOSSES, decay=decay, buffers=buffers)
    with pytest.raises(KeyboardInterrupt):  # what is on disk then is the state after step 5
        learn_from_average(student, split, config, seed=3, checkpoint=file, tick=tick)
    state = load_file(file)
    for name, start in seen[0].items():
        if (buffers == "copy" and "running" in name) or "tracked" in name:
            assert torch.equal(state[f"model.average.{name}"], seen[5][name])
            continue
        expected = start.double()
        for step in range(1, 6):
            m = min(decay, step / (step + 9))
            expected = m * expected + (1 - m) * seen[step][name].double()
        torch.testing.assert_close(state[f"model.average.{name}"].double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    assert int(state["model.steps"]) == 5
    momenta = [name for name in state if name.startswith("optimizer")]
    learnt = [name for name in state if "learners" in name and name.endswith(("weight", "bias"))]
    assert len(momenta) == len(list(student.parameters())) + len(learnt)


def test_the_average_answers_in_evaluation_mode(split: Any, net: Net) -> None:
    student = net(0)
    by_hand, trailing = copy.deepcopy(student), copy.deepcopy(student).eval()
    config = average(PLAIN, cross_entropy=0.5, losses=(KD(weight=2.0, temperature=1.0),), decay=0.3)
    history = learn_from_average(student, split, config, seed=3)
    inputs, targets = torch.from_numpy(split.images), torch.from_numpy(split.targets)
    for step, epoch in enumerate(history, start=1):
        ours = by_hand(inputs)
        divergence = kl(ours, trailing(inputs))
        assert epoch.unweighted["kd"] == pytest.approx(float(divergence.detach()), rel=1e-4, abs=1e-7)
        stepped(by_hand, 0.5 * F.cross_entropy(ours, targets) + 2 * divergence)
        m = min(0.3, step / (step + 9))
        with torch.no_grad():
            for kept, now in zip(trailing.parameters(), by_hand.parameters(), strict=True):
                kept.copy_(m * kept + (1 - m) * now)
            for kept, now in zip(trailing.buffers(), by_hand.buffers(), strict=True):
                kept.copy_(now)
    close(student, by_hand)


@pytest.mark.parametrize("strategy", ["ema_teacher", "online"])
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_killed_run_ends_with_the_same_bits(
    split: Any, net: Net, bits: Any, killed: Any, tmp_path: Path, strategy: str, stop_at: int
) -> None:
    def learn(seed: int, **told: Any) -> tuple[Any, ...]:
        student, teacher = net(seed), net(seed + 1)
        shared: dict[str, Any] = {"seed": 3, "augment": Augment(crop=1, flip=True), **told}
        if strategy == "online":
            return learn_online(student, teacher, split, online(losses=LOSSES), **shared), bits(student), bits(teacher)
        return learn_from_average(student, split, average(losses=LOSSES, decay=0.9), **shared), bits(student)

    file = tmp_path / "checkpoint.safetensors"
    whole = learn(0)
    with pytest.raises(KeyboardInterrupt):
        learn(0, checkpoint=file, tick=killed(stop_at))
    assert file.exists()
    assert learn(90, checkpoint=file) == whole


def test_a_net_that_starts_as_its_own_teacher_is_not_weighed_by_gradients() -> None:
    with pytest.raises(ValidationError, match=r"balance.*start alike"):
        EmaTeacher(kind="ema_teacher", losses=(KD(weight=1.0),), balance="gradient")
