"""A frozen teacher: a step equals one written by hand, nothing of the teacher moves, a killed run loses nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.compress.config import Distill, Fit, Sgd
from edgewise.compress.losses import AT, CRD, HCL, KD, SP, FitNet, LogitMSE, RKDDistance
from edgewise.compress.losses.base import Batch, Outputs
from edgewise.compress.schedule import Cosine, Linear, Piecewise
from edgewise.compress.signals import corrected
from edgewise.compress.strategies.offline import KEPT, distill
from edgewise.compress.train import fit, labels_only
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ModelConfig, ViT
from edgewise.models.tasks.config import Augment

Net = Callable[..., nn.Module]
Bits = Callable[[nn.Module], dict[str, bytes]]
Killed = Callable[[int], Callable[[int, int, str], None]]
STILL = Sgd(lr=1e-30, momentum=0, weight_decay=0)  # nothing moves: every epoch sees the same nets


def told(run: Fit | None = None, **config: Any) -> Distill:
    run = run or Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.05))
    return Distill(kind="distill", fit=run, **config)


def everything(split: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.images), torch.from_numpy(split.targets)


def hinton(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean")


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (F.normalize(f.square().mean(1).flatten(1)) for f in (student, teacher))
    return (ours - theirs).square().mean()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_teacher_keeps_every_bit_and_the_student_its_layers(
    split: Any, net: Net, bits: Bits, training: bool
) -> None:
    student, teacher = net(0), net(1, width=6).train(training)
    before, keys = bits(teacher), list(student.state_dict())
    distill(student, teacher, split, told(losses=(KD(), FitNet(layers=("2",)), AT(layers=("2",)))), seed=3)
    assert bits(teacher) == before
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert list(student.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for one in (student, teacher) for m in one.modules())


def test_adapters_learn_with_the_student(split: Any, net: Net, killed: Killed, tmp_path: Path) -> None:
    """The checkpoints after step 1 and after step 4 show them, and the optimizer's momentum for them."""
    config = told(Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.05), checkpoint_every=1), losses=(FitNet(),))
    states = []
    for step in (1, 4):
        file, student = tmp_path / f"{step}.safetensors", net(0)
        with pytest.raises(KeyboardInterrupt):  # a checkpoint is written once the next loss is known to be sound
            distill(student, net(1, width=6), split, config, seed=3, checkpoint=file, tick=killed(step + 1))
        states.append(load_file(file))
    adapters = [name for name in states[0] if name.startswith("model.signals")]
    assert adapters
    assert not any(torch.equal(states[0][name], states[1][name]) for name in adapters)
    learnt = [name for name in adapters if name.endswith(("weight", "bias"))]
    momenta = [name for name in states[0] if name.startswith("optimizer")]
    assert len(momenta) == len(list(net(0).parameters())) + len(learnt)
    assert not any("teacher" in name for name in states[0])


def test_two_steps_equal_steps_written_by_hand(split: Any, net: Net) -> None:
    student, teacher = net(0), net(1, width=6)
    by_hand = copy.deepcopy(student).train()
    losses = (KD(weight=0.9, temperature=4.0), AT(weight=50.0, layers=("2",)))
    run = Fit(epochs=2, batch_size=48, optimizer=Sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4))
    history = distill(student, teacher, split, told(run, cross_entropy=0.1, losses=losses), seed=3)
    inputs, targets = everything(split)
    momenta = [torch.zeros_like(p) for p in by_hand.parameters()]
    for epoch, lr in enumerate((0.1, 0.05)):  # half a cosine: 1, then 1/2
        middle, theirs = by_hand[:3](inputs), teacher[:3](inputs)
        terms = {
            "cross_entropy": 0.1 * F.cross_entropy(by_hand[3:](middle), targets),
            "kd": 0.9 * hinton(by_hand[3:](middle), teacher[3:](theirs), 4.0),
            "at": 50.0 * attention(middle, theirs),
        }
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(by_hand.parameters()))
        with torch.no_grad():
            for p, g, momentum in zip(by_hand.parameters(), gradients, momenta, strict=True):
                g = g + 5e-4 * p
                momentum.mul_(0.9).add_(g)
                p -= lr * (g + 0.9 * momentum)
        told_terms = {name: float(term.detach()) for name, term in terms.items()}
        assert history[epoch].terms == pytest.approx(told_terms, rel=1e-5)
    for (name, ours), expected in zip(student.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_labels_alone_at_first(split: Any, net: Net, bits: Bits, killed: Killed) -> None:
    calls: list[bool] = []
    teacher = net(1)
    teacher.register_forward_hook(lambda *_: calls.append(True))
    run = Fit(epochs=3, batch_size=16, optimizer=Sgd(lr=0.05), schedule="constant")
    config = told(run, cross_entropy=0.25, label_only_epochs=1, losses=(KD(weight=0.5),))
    first, alone = net(0), net(0)
    with pytest.raises(KeyboardInterrupt):
        distill(first, teacher, split, config, seed=3, tick=killed(3))
    assert not calls
    fit(labels_only(alone), split, run.model_copy(update={"epochs": 1}), seed=3)
    assert bits(first) == bits(alone)
    history = distill(net(0), teacher, split, config, seed=3)
    assert [sorted(epoch.terms) for epoch in history] == [["cross_entropy"], *[["cross_entropy", "kd"]] * 2]
    assert history[0].terms == history[0].unweighted
    for epoch in history[1:]:
        assert epoch.terms["cross_entropy"] == pytest.approx(0.25 * epoch.unweighted["cross_entropy"])
        assert epoch.terms["kd"] == pytest.approx(0.5 * epoch.unweighted["kd"])


def test_schedules_in_the_history(split: Any, net: Net) -> None:
    """One step an epoch and nets that stand still: what changes is the weight and the temperature alone."""
    student, teacher = net(0, norm=False), net(1, norm=False)
    temperatures = (1.0, 1.0, 4.0, 4.0)
    kd = KD(
        weight=Linear(kind="linear", start=1.0, end=3.0),
        temperature=Piecewise(kind="piecewise", points=((0, 1.0), (2, 4.0))),
    )
    config = told(
        Fit(epochs=4, batch_size=48, optimizer=STILL),
        cross_entropy=Cosine(kind="cosine", start=1.0, end=0.0),
        losses=(kd,),
    )
    history = distill(student, teacher, split, config, seed=3)
    inputs, targets = everything(split)
    with torch.no_grad():
        answers = student(inputs), teacher(inputs)
    labels = float(F.cross_entropy(answers[0], targets))
    halves = (1.0, 0.8535533905932737, 0.5, 0.14644660940672627)
    for epoch, weight, share, temperature in zip(history, (1.0, 1.5, 2.0, 2.5), halves, temperatures, strict=True):
        unweighted = float(hinton(*answers, temperature))
        assert epoch.unweighted["kd"] == pytest.approx(unweighted, rel=1e-5)
        assert epoch.terms["kd"] == pytest.approx(weight * unweighted, rel=1e-5)
        assert epoch.terms["cross_entropy"] == pytest.approx(share * labels, rel=1e-5)
        assert epoch.loss == pytest.approx(weight * unweighted + share * labels, rel=1e-5)


def length(term: Tensor, model: nn.Module) -> float:
    found = torch.autograd.grad(term, list(model.parameters()), retain_graph=True, allow_unused=True)
    return float(torch.cat([g.flatten() for g in found if g is not None]).norm())


def test_balanced_gradients_are_as_long_as_the_labels(split: Any, net: Net) -> None:
    student, teacher = net(0, norm=False), net(1, width=6, norm=False)
    losses = (KD(weight=0.5), AT(weight=2.0, layers=("2",)))
    run = Fit(epochs=1, batch_size=48, optimizer=STILL)
    epoch = distill(student, teacher, split, told(run, losses=losses, balance="gradient"), seed=3)[0]
    inputs, targets = everything(split)
    middle, theirs = student[:3](inputs), teacher[:3](inputs)
    labels = length(F.cross_entropy(student[3:](middle), targets), student)
    kd, at = hinton(student[3:](middle), teacher[3:](theirs), 4.0), attention(middle, theirs)
    for name, term, weight in (("kd", kd, 0.5), ("at", at, 2.0)):
        scale = labels / length(term, student)
        assert abs(math.log(scale)) > 0.1  # there was something to balance
        assert epoch.unweighted[name] == pytest.approx(float(term.detach()), rel=1e-4)
        assert epoch.terms[name] == pytest.approx(weight * scale * float(term.detach()), rel=1e-4)


def test_balance_is_measured_once(split: Any, net: Net, killed: Killed, tmp_path: Path) -> None:
    run = Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.05), checkpoint_every=1)
    config = told(run, losses=(KD(weight=0.9), AT(layers=("2",), weight=1.0)), balance="gradient")
    scales = []
    for step in (1, 4):
        file = tmp_path / f"{step}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            distill(net(0), net(1), split, config, seed=3, checkpoint=file, tick=killed(step + 1))
        scales.append(load_file(file)["model.scales"])
    assert torch.equal(scales[0], scales[1])
    assert scales[0].isfinite().all()


def test_balance_waits_for_a_gradient(split: Any, net: Net) -> None:
    """A student that starts as its teacher's copy has none yet; rounding errors are no measure."""
    student = net(0, norm=False)
    run = Fit(epochs=2, batch_size=48, optimizer=Sgd(lr=0.05, momentum=0, weight_decay=0), schedule="constant")
    config = told(run, cross_entropy=1.0, losses=(KD(weight=0.5),), balance="gradient")
    teacher, by_hand = copy.deepcopy(student), copy.deepcopy(student)
    history = distill(student, teacher, split, config, seed=3)
    inputs, targets = everything(split)
    labels = F.cross_entropy(by_hand(inputs), targets)
    with torch.no_grad():
        for p, g in zip(by_hand.parameters(), torch.autograd.grad(labels, list(by_hand.parameters())), strict=True):
            p -= 0.05 * g
    kd, labels = hinton(by_hand(inputs), teacher(inputs), 4.0), F.cross_entropy(by_hand(inputs), targets)
    assert history[0].unweighted["kd"] == pytest.approx(0, abs=1e-5)
    expected = 0.5 * float(kd.detach()) * length(labels, by_hand) / length(kd, by_hand)
    assert history[1].terms["kd"] == pytest.approx(expected, rel=1e-3)
    assert history[1].unweighted["kd"] == pytest.approx(float(kd.detach()), rel=1e-3)


RESUMED: dict[str, dict[str, Any]] = {
    "adapters and memories": {"losses": (FitNet(layers=("2",)), CRD(layers=("2",), dim=8, negatives=20))},
    "balance": {"losses": (KD(weight=0.9), AT(layers=("2",), weight=1.0)), "balance": "gradient"},
    "label_only": {"losses": (KD(), FitNet(layers=("2",), weight=1.0)), "label_only_epochs": 0.5},
    "drop": {"losses": (KD(),), "teacher_wrong": "drop"},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_killed_run_ends_with_the_same_bits(
    split: Any, net: Net, bits: Bits, killed: Killed, tmp_path: Path, name: str, stop_at: int
) -> None:
    run = Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.02), clip_norm=5.0, checkpoint_every=1)
    config, teacher, augment = told(run, **RESUMED[name]), net(1, width=6), Augment(crop=1, flip=True)
    whole, resumed, file = net(0), net(99), tmp_path / "checkpoint.safetensors"
    history = distill(whole, teacher, split, config, seed=3, augment=augment)
    with pytest.raises(KeyboardInterrupt):
        distill(net(0), teacher, split, config, seed=3, augment=augment, checkpoint=file, tick=killed(stop_at))
    assert file.exists()
    assert distill(resumed, teacher, split, config, seed=3, augment=augment, checkpoint=file) == history
    assert bits(resumed) == bits(whole)


ANSWERS = torch.tensor([[3.0, 1, 0, -1], [0, 2, 1, -3], [1, 4, 3, 2], [0.5, 0, 2, 1]])
RIGHT = torch.tensor([0, 1, 3, 1])  # right, right, third of four, last of four


def test_teachers_that_err_against_a_slow_restatement() -> None:
    student = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    features = torch.arange(8.0).reshape(4, 2)
    batch = Batch(features, RIGHT, torch.tensor([10, 11, 12, 13]))
    found = {
        wrong: corrected(wrong, Outputs(student, (features,)), Outputs(ANSWERS, (2 * features,)), batch)
        for wrong in ("none", "drop", "swap", "masked")
    }
    ours, theirs, kept = found["none"]
    assert torch.equal(ours.logits, student)
    assert torch.equal(theirs.logits, ANSWERS)
    ours, theirs, kept = found["drop"]
    assert torch.equal(ours.logits, student[:2])
    assert torch.equal(theirs.logits, ANSWERS[:2])
    assert torch.equal(theirs.features[0], 2 * features[:2])
    assert torch.equal(kept.inputs, features[:2])
    assert (kept.targets.tolist(), kept.index.tolist()) == ([0, 1], [10, 11])
    ours, theirs, kept = found["swap"]
    rows = [[3.0, 1, 0, -1], [0, 2, 1, -3], [1, 2, 3, 4], [0.5, 2, 0, 1]]
    assert torch.equal(theirs.logits, torch.tensor(rows))
    assert torch.equal(ours.logits, student)
    ours, theirs, kept = found["masked"]
    for row, right in enumerate(RIGHT.tolist()):
        allowed = [k for k in range(4) if ANSWERS[row, k] <= ANSWERS[row, right]]
        for whole, masked in ((student, ours.logits), (ANSWERS, theirs.logits)):
            numbers = np.exp(whole[row].double().numpy()) * [k in allowed for k in range(4)]
            np.testing.assert_allclose(masked[row].softmax(0), numbers / numbers.sum(), rtol=1e-5)
    assert len(kept.targets) == 4


@pytest.mark.parametrize("wrong", ["drop", "swap", "masked"])
def test_teachers_that_err_in_a_run(split: Any, net: Net, wrong: str) -> None:
    """The logged loss, sample by sample in float64."""
    student, teacher = net(0, norm=False), net(1, norm=False)
    run = Fit(epochs=1, batch_size=48, optimizer=STILL)
    config = told(run, losses=(KD(temperature=2.0),), teacher_wrong=wrong)
    epoch = distill(student, teacher, split, config, seed=3)[0]
    inputs, targets = everything(split)
    with torch.no_grad():
        answers = [one(inputs).double().numpy() for one in (student, teacher)]
    values, right = [], 0
    for ours, theirs, target in zip(*answers, targets.tolist(), strict=True):
        first = int(theirs.argmax())
        right += first == target
        classes = [0, 1, 2]
        if first != target and wrong == "drop":
            continue
        if first != target and wrong == "swap":
            theirs[[first, target]] = theirs[[target, first]]
        if wrong == "masked":
            classes = [k for k in classes if theirs[k] <= theirs[target]]
        p, q = (np.exp(z[classes] / 2) / np.exp(z[classes] / 2).sum() for z in (theirs, ours))
        values.append(4 * float((p * np.log(p / q)).sum()))
    assert 0 < right < 48
    assert epoch.unweighted["kd"] == pytest.approx(sum(values) / 48, rel=1e-4)  # dropped ones weigh nothing
    assert epoch.unweighted[KEPT] == pytest.approx(right / 48)
    assert epoch.terms[KEPT] == 0
    assert epoch.loss == pytest.approx(epoch.terms["kd"] + epoch.terms["cross_entropy"])


def test_where_the_teacher_knows_nothing_the_labels_teach_alone(split: Any, net: Net, bits: Bits) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(teacher[1].weight)
    teacher[1].bias.data = torch.tensor([2.0, 0, 1])
    ones = type(split)(np.ones_like(split.targets), split.images)
    run = Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.05))
    taught, alone = net(0), net(0)
    config = told(run, cross_entropy=1.0, losses=(KD(), LogitMSE(weight=1.0)), teacher_wrong="drop")
    history = distill(taught, teacher, ones, config, seed=3)
    fit(labels_only(alone), ones, run, seed=3)
    assert bits(taught) == bits(alone)
    assert all(epoch.unweighted[name] == 0 for name in ("kd", "logit_mse", KEPT) for epoch in history)


@pytest.mark.parametrize("mix", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_of_mixed_samples_nobody_knows_whether_the_teacher_errs(split: Any, net: Net, mix: dict[str, float]) -> None:
    with pytest.raises(ModelError, match="mixed samples"):
        distill(net(0), net(1), split, told(losses=(KD(),), teacher_wrong="swap"), seed=3, augment=Augment(**mix))
    distill(net(0), net(1), split, told(losses=(KD(),)), seed=3, augment=Augment(**mix))


def test_a_teacher_of_other_classes_is_refused(split: Any, net: Net) -> None:
    with pytest.raises(ModelError, match=r"student answers \(16, 3\), the teacher \(16, 4\)"):
        distill(net(0), net(1, classes=4), split, told(), seed=3)
    with pytest.raises(ModelError, match=r"the teacher \(16, 4\)"):
        distill(net(0), (net(1), net(2, classes=4)), split, told(), seed=3)


def test_a_student_that_is_its_own_teacher_is_refused(split: Any, net: Net) -> None:
    one = net(0)
    with pytest.raises(ModelError, match="pass a copy"):
        distill(one, (net(1), one), split, told(), seed=3)


RESNET, MOBILENET = CifarResNet(depth=8, width=4), MobileNetV2(width_multiplier=0.25, stem="cifar")
VIT = ViT(patch=4, dim=16, depth=2, heads=2)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [(RESNET, MOBILENET), (RESNET, VIT), (VIT, RESNET)],
    ids=["resnet to mobilenet", "resnet to vit", "vit to resnet"],
)
def test_nets_of_different_families(split: Any, teacher: ModelConfig, student: ModelConfig) -> None:
    nets = []
    for seed, config in enumerate((student, teacher)):
        torch.manual_seed(seed)
        nets.append(build(config, (1, 16, 16), 3))
    larger = type(split)(split.targets[:16], split.images[:16].repeat(2, axis=2).repeat(2, axis=3))
    losses = (KD(), AT(weight=100.0), HCL(), RKDDistance(weight=10.0, layers="auto"), SP(weight=10.0, layers="auto"))
    run = Fit(epochs=8, batch_size=16, optimizer=Sgd(lr=0.01), clip_norm=5.0, schedule="constant")
    history = distill(*nets, larger, told(run, losses=losses), seed=3)
    assert all(math.isfinite(value) for epoch in history for value in epoch.terms.values())
    for name in ("at", "hcl", "rkd_distance", "sp"):
        assert history[-1].terms[name] < history[0].terms[name], name
