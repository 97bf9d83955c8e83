"""Deep supervision: the formula, no gradient into the net's end, and nothing left behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.config import Fit, SelfDistill, Sgd
from edgewise.compress.layers import trace
from edgewise.compress.losses.base import Batch
from edgewise.compress.schedule import Linear
from edgewise.compress.strategies.exits import Exits, learn_from_end
from edgewise.compress.taps import tapped
from edgewise.compress.train import fit, labels_only
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, ViT
from edgewise.models.tasks.config import Augment

RUN = Fit(epochs=2, batch_size=16, optimizer=Sgd(lr=0.02), checkpoint_every=1)


def told(run: Fit = RUN, **config: Any) -> SelfDistill:
    return SelfDistill(kind="self_distill", fit=run, **config)


def resnet(seed: int) -> nn.Module:
    """Maps of 8x8, 4x4 and 2x2."""
    torch.manual_seed(seed)
    return build(CifarResNet(depth=8, width=4), (1, 8, 8), 3)


def normed(values: np.ndarray, norm: nn.BatchNorm2d) -> np.ndarray:
    """BatchNorm in training mode, in float64."""
    mean, variance = values.mean((0, 2, 3), keepdims=True), values.var((0, 2, 3), keepdims=True)
    scale, shift = (p.detach().double().numpy().reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return (values - mean) / np.sqrt(variance + norm.eps) * scale + shift


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.fixture
def batch(split: Any) -> Batch:
    return Batch(torch.from_numpy(split.images), torch.from_numpy(split.targets), torch.arange(48))


def terms_of(model: nn.Module, config: SelfDistill, batch: Batch) -> tuple[Exits, dict[str, Tensor], dict[str, Tensor]]:
    """The lesson, its terms, and the features they were made of."""
    torch.manual_seed(7)
    with tapped(model, ("layer1", "layer2", "layer3")) as features:
        lesson = Exits(model, ("layer1", "layer2"), "layer3", trace(model, (1, 8, 8)), config, features)
        lesson.train()
        return lesson, lesson.terms(batch), dict(features)


def test_the_terms_against_a_restatement(batch: Batch) -> None:
    config = told(alpha=0.3, temperature=2.0, feature_weight=0.01, cross_entropy=0.5)
    lesson, terms, features = terms_of(resnet(0), config, batch)
    targets, rows = batch.targets.numpy(), np.arange(48)
    last = features["layer3"].detach().double().numpy()
    linear = lesson.model.get_submodule("linear")
    end = last.mean((2, 3)) @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
    expected, total = {"cross_entropy": -log_softmax(end)[rows, targets].mean()}, 0.0
    for name, leave in zip(("layer1", "layer2"), lesson.exits, strict=True):
        feature = features[name].detach().double().numpy()
        size = feature.shape[2] // 2
        pooled = feature.reshape(48, -1, 2, size, 2, size).mean((3, 5))
        weight = leave.reach[0].weight.detach().double().numpy()[:, :, 0, 0]
        reached = normed(np.einsum("oc,nchw->nohw", weight, pooled), leave.reach[1]).clip(min=0)
        answer = reached.mean((2, 3)) @ leave.classify.weight.detach().double().numpy().T
        answer = answer + leave.classify.bias.detach().double().numpy()
        p, q = log_softmax(end / 2), log_softmax(answer / 2)
        expected[f"{name}: cross_entropy"] = -log_softmax(answer)[rows, targets].mean()
        expected[f"{name}: kd"] = 4 * (np.exp(p) * (p - q)).sum(axis=1).mean()
        expected[f"{name}: features"] = ((reached - last) ** 2).sum((1, 2, 3)).mean()
        total += 0.7 * expected[f"{name}: cross_entropy"] + 0.3 * expected[f"{name}: kd"]
        total += 0.01 * expected[f"{name}: features"]
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    weights = lesson.weights(0.0, 1.0)
    loss = sum(weights[name] * float(term.detach()) for name, term in terms.items())
    assert loss == pytest.approx(0.5 * expected["cross_entropy"] + total, rel=1e-4)


@pytest.mark.parametrize("term", ["kd", "features"])
def test_the_end_gets_no_gradient_from_those_who_follow_it(batch: Batch, term: str) -> None:
    model = resnet(0)
    _, terms, _ = terms_of(model, told(), batch)
    terms[f"layer1: {term}"].backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"conv1", "bn1", "layer1"}


def test_nothing_is_left_behind(split: Any, bits: Any) -> None:
    model, alone = resnet(0), resnet(0)
    keys = list(model.state_dict())
    history = learn_from_end(model, split, told(), seed=3)
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert len(history[0].terms) == 7
    fit(labels_only(alone), split, RUN, seed=3)
    assert bits(model) != bits(alone)


def test_the_whole_net_learns_from_its_exits(split: Any) -> None:
    """Without labels at the end, its classifier gets no gradient; what the exits share does."""
    run = Fit(epochs=1, batch_size=16, optimizer=Sgd(lr=0.02, weight_decay=0))
    model, before = resnet(0), resnet(0).state_dict()
    learn_from_end(model, split, told(run, cross_entropy=0.0), seed=3)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"conv1", "bn1", "layer1", "layer2"}


def test_the_history_is_weighted(split: Any) -> None:
    run = Fit(epochs=2, batch_size=48, optimizer=Sgd(lr=0.01))
    feature_weight = Linear(kind="linear", start=0.0, end=1e-4)
    history = learn_from_end(resnet(0), split, told(run, alpha=0.2, feature_weight=feature_weight), seed=3)
    for epoch, weight in zip(history, (0.0, 5e-5), strict=True):
        shares = {"cross_entropy": 0.8, "kd": 0.2, "features": weight}
        for layer in ("layer1", "layer2"):
            for term, share in shares.items():
                name = f"{layer}: {term}"
                assert epoch.terms[name] == pytest.approx(share * epoch.unweighted[name], rel=1e-6)
        assert all(math.isfinite(value) for value in epoch.unweighted.values())


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_killed_run_ends_with_the_same_bits(split: Any, bits: Any, killed: Any, tmp_path: Path, stop_at: int) -> None:
    whole, resumed, file = resnet(0), resnet(9), tmp_path / "checkpoint.safetensors"
    shared: dict[str, Any] = {"seed": 3, "augment": Augment(crop=1, flip=True)}
    history = learn_from_end(whole, split, told(), **shared)
    with pytest.raises(KeyboardInterrupt):
        learn_from_end(resnet(0), split, told(), **shared, checkpoint=file, tick=killed(stop_at))
    assert learn_from_end(resumed, split, told(), **shared, checkpoint=file) == history
    assert bits(resumed) == bits(whole)


def test_an_exit_at_what_goes_into_a_layer_is_one_at_what_came_out_before(split: Any, bits: Any) -> None:
    one, two = resnet(0), resnet(0)
    for model, name in ((one, "layer2"), (two, "layer3:input")):
        learn_from_end(model, split, told(layers=(name,)), seed=3)
    assert bits(one) == bits(two)


def test_exits_in_a_transformer(split: Any) -> None:
    torch.manual_seed(0)
    model = build(ViT(patch=4, dim=16, depth=3, heads=2), (1, 8, 8), 3)
    names = ("blocks.0", "blocks.1")
    history = learn_from_end(model, split, told(layers=names), seed=3)
    assert all(math.isfinite(value) for value in history[-1].terms.values())
    assert f"{names[1]}: kd" in history[-1].terms


@pytest.mark.parametrize("width", [4, 5])
def test_where_nobody_can_leave(split: Any, net: Callable[..., nn.Module], width: int) -> None:
    with pytest.raises(ModelError, match="no inner layer to leave at"):
        learn_from_end(net(0, width=width), split, told(), seed=3)
    with pytest.raises(ModelError, match="no layer 'layer9'"):
        learn_from_end(resnet(0), split, told(layers=("layer9",)), seed=3)
    # 256 numbers are no 16x16 grid of tokens either.
    with pytest.raises(ModelError, match=r"a vector of .* is no map"):
        learn_from_end(net(0, width=width), split, told(layers=("3",)), seed=3)
