"""Structured pruning: what leaves is what should, what is left computes the same, and traps are found by trying."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from edgewise.compress.config import Prune
from edgewise.compress.macs import count
from edgewise.compress.pruning.prune import Pruned, prune
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2, ViT

SMALL = (3, 16, 16)


def _prune(model: nn.Module, ratio: float, shape: tuple[int, ...] = SMALL, **settings: Any) -> Pruned:
    round_to, seed = settings.pop("round_to", 8), settings.pop("seed", 0)
    return prune(model, Prune(kind="prune", macs_ratio=ratio, **settings), shape, round_to=round_to, seed=seed)


def _randomize(model: nn.Module) -> nn.Module:
    """Statistics and scales as if trained, so that nothing is hidden by ones and zeros."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.second(x)), 2)
        return self.head(x.flatten(1))


# --- the right channels, and the right outputs ----------------------------------------------------------------------


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_the_weakest_channels_leave(criterion: str, power: int) -> None:
    """Scores restated with loops: every weight that goes with a channel, conv out, BatchNorm, next layer's in."""
    model = _randomize(_Plain())
    old = copy.deepcopy(model)
    scores = []
    for c in range(16):
        parts = (old.first.weight[c], old.norm.weight[c], old.second.weight[:, c])
        scores.append(sum(float(part.detach().abs().pow(power).sum()) for part in parts))
    pruned = _prune(model, 0.4, criterion=criterion, round_to=8, max_layer_ratio=0.5)
    assert pruned.plan["first"] == {"out": 8, "in": 3, "groups": 1}
    assert pruned.plan["norm"] == {"out": 8}
    kept = sorted(sorted(range(16), key=scores.__getitem__)[8:])
    assert torch.equal(model.first.weight, old.first.weight[kept])
    assert torch.equal(model.norm.running_var, old.norm.running_var[kept])
    rows = [c for c in range(12) if any(torch.equal(old.second.weight[c, kept], row) for row in model.second.weight)]
    assert torch.equal(model.second.weight, old.second.weight[rows][:, kept])


def test_agrees_with_torch_prunings_own_pruner() -> None:
    ours = _randomize(build(CifarResNet(depth=8), SMALL, 10))
    theirs = copy.deepcopy(ours)
    pruned = _prune(ours, 0.62, scope="uniform", max_layer_ratio=0.5, round_to=8)
    inner = {f"layer{s}.0.conv1" for s in (1, 2, 3)}
    halved = {name for name in inner if pruned.plan.get(name, {}).get("out") == count_of(theirs, name) // 2}
    pruner = torch_pruning.pruner.BasePruner(
        theirs,
        (torch.zeros(1, *SMALL),),
        torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict={theirs.get_submodule(name): 0.5 for name in halved},
        ignored_layers=[m for n, m in theirs.named_modules() if isinstance(m, nn.Conv2d) and n not in inner]
        + [theirs.linear],
    )
    pruner.step()
    assert len(halved) >= 2
    for name in halved:
        for key in ("conv1.weight", "bn1.weight", "bn1.running_mean", "conv2.weight"):
            full = f"{name.removesuffix('conv1')}{key}"
            assert torch.equal(ours.state_dict()[full], theirs.state_dict()[full]), full


def count_of(model: nn.Module, name: str) -> int:
    return int(model.get_submodule(name).out_channels)


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_pruned_block_computes_what_its_kept_channels_did(scope: str) -> None:
    """Restated by hand on the original: zero the columns of conv2 whose channel of conv1 is gone."""
    model = _randomize(build(CifarResNet(depth=14), SMALL, 10))
    old = copy.deepcopy(model)
    _prune(model, 0.6, scope=scope)
    for name, block in old.named_modules():
        if hasattr(block, "conv1") and hasattr(block, "conv2"):
            left = model.get_submodule(name).conv1.weight
            gone = [c for c, row in enumerate(block.conv1.weight) if not any(torch.equal(row, other) for other in left)]
            assert len(gone) == len(block.conv1.weight) - len(left)
            with torch.no_grad():
                block.conv2.weight[:, gone] = 0
    x = torch.randn(4, *SMALL)
    with torch.no_grad():
        torch.testing.assert_close(model(x), old(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "shape", "ratio"),
    [
        (CifarResNet(depth=20), SMALL, 0.5),
        (CifarResNet(depth=8), SMALL, 0.61),
        (MobileNetV2(stem="cifar", width_multiplier=0.35), SMALL, 0.5),
        (ViT(dim=32, depth=2, heads=2, mlp_ratio=4.0), SMALL, 0.75),
    ],
    ids=lambda value: str(getattr(value, "kind", value)),
)
@pytest.mark.parametrize("round_to", [1, 8])
def test_lands_at_or_just_below_the_ratio(config: Any, shape: Any, ratio: float, round_to: int) -> None:
    model = build(config, shape, 10)
    before = dict(copy.deepcopy(model).named_modules())
    pruned = _prune(model, ratio, shape, round_to=round_to)
    got = count(model, shape)
    assert (got.macs, got.params) == (pruned.macs_after, pruned.params_after)
    assert got.macs <= ratio * pruned.macs_before
    # One chunk more and it would be above: no chunk of these nets holds more than a tenth.
    assert got.macs > (ratio - 0.1) * pruned.macs_before
    for name, counts in pruned.plan.items():
        for side in ("out", "in"):
            old = getattr(before[name], {"out": "out_channels", "in": "in_channels"}[side], None)
            if old is not None and counts[side] != old:
                assert counts[side] % round_to == 0
                assert counts[side] >= 0.25 * old
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_the_layout_in_memory_makes_no_difference() -> None:
    """Training leaves convolutions in channels_last."""
    model = _randomize(build(CifarResNet(depth=8), SMALL, 10))
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    one, two = _prune(model, 0.7), _prune(other, 0.7)
    assert one == two
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_depthwise_convolutions_follow() -> None:
    model = build(MobileNetV2(stem="cifar", width_multiplier=0.35), SMALL, 10)
    pruned = _prune(model, 0.5)
    depthwise = {name: counts for name, counts in pruned.plan.items() if counts.get("groups", 1) > 1}
    assert depthwise
    assert all(counts["groups"] == counts["in"] == counts["out"] for counts in depthwise.values())


def test_the_classifier_and_padded_shortcuts_are_left_with_a_reason() -> None:
    model = build(CifarResNet(depth=14), SMALL, 10)
    pruned = _prune(model, 0.6)
    assert set(pruned.skipped) == {"conv1", "linear"} | {f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1)}
    assert "pads these channels" in pruned.skipped["layer2.0.conv2"]
    assert "output" in pruned.skipped["linear"]
    changed = {name for name, counts in pruned.plan.items() if "in" in counts and counts["out"] % 16}
    assert all(name.endswith("conv1") for name in changed)


def test_hidden_units_and_heads_of_a_transformer_leave() -> None:
    model = build(ViT(dim=32, depth=2, heads=2), SMALL, 10)
    pruned = _prune(model, 0.7, scope="uniform")
    assert {name.split(".", 2)[2] for name in pruned.plan} == {"attn", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert 1 in {block.attn.num_heads for block in model.blocks}
    assert "'pos_embed'" in pruned.skipped["blocks.0.attn.proj"]
    ignoring = _prune(build(ViT(dim=32, depth=2, heads=2), SMALL, 10), 0.85, ignore=("*.attn",))
    assert {name.rsplit(".", 1)[1] for name in ignoring.plan} == {"fc1", "fc2"}
    assert ignoring.skipped["blocks.0.attn.qkv"] == "the recipe says to ignore it"


def test_the_residual_stream_before_a_layer_norm_is_left() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    assert "LayerNorm '1'" in _prune(model, 0.8, (8,)).skipped["0"]


# --- traps no graph shows -------------------------------------------------------------------------------------------


class _Trap(nn.Module):
    """conv -> something about channels -> conv -> head; only ``after`` may be pruned."""

    def __init__(self, middle: Callable[[Tensor], Tensor], into: int = 16) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = middle
        self.after = nn.Conv2d(into, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.after(self.middle(self.before(x))))
        return self.head(x.mean((2, 3)))


def _fixed_reshape(x: Tensor) -> Tensor:
    return x.reshape(-1, 4, 4, *x.shape[2:]).softmax(2).flatten(1, 2)


def _channel_mean(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def _pad_to_its_own_count(x: Tensor) -> Tensor:
    return torch.cat([x[:, : x.shape[1] // 2], x[:, : x.shape[1] // 2].flip(1)], 1)


def _zeros_in_front(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(x), 8, *x.shape[2:]), x], 1)


def _fixed_scale(x: Tensor) -> Tensor:
    return x * torch.linspace(1, 2, 16).view(1, 16, 1, 1)


@pytest.mark.parametrize(
    ("middle", "into"),
    [(_fixed_reshape, 16), (_channel_mean, 16), (_pad_to_its_own_count, 16), (_zeros_in_front, 24), (_fixed_scale, 16)],
)
def test_a_layer_whose_channels_are_handled_by_hand_is_skipped(middle: Callable[[Tensor], Tensor], into: int) -> None:
    model = _Trap(middle, into)
    pruned = _prune(model, 0.99)
    assert pruned.plan["after"]["in"] == into
    assert "before" in pruned.skipped
    assert "before" not in pruned.plan


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Linear(16, 8)
        self.up = nn.Linear(8, 16)
        self.out = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))[:, :, None, None]
        return self.head(torch.relu(self.out(x)).mean((2, 3)))


def test_gates_shrink_with_what_they_gate() -> None:
    model = _SqueezeExcite()
    pruned = _prune(model, 0.5, round_to=4)
    assert pruned.plan["up"]["out"] == pruned.plan["conv"]["out"] == pruned.plan["out"]["in"] < 16
    assert set(pruned.skipped) == {"head"}


class _Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.join = nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(torch.relu(self.join(torch.relu(x))).mean((2, 3)))


def test_both_sides_of_a_concatenation_can_shrink() -> None:
    model = _Concat()
    pruned = _prune(model, 0.3)
    assert model.join.in_channels == model.left.out_channels + model.right.out_channels
    assert pruned.plan["left"]["out"] == pruned.plan["right"]["out"] == 8


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two, self.head = (nn.Linear(16, 16) for _ in range(4))
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(torch.relu(self.first(x)))))))


def test_tied_weights_are_left() -> None:
    with pytest.raises(ModelError, match="shares its weights"):
        _prune(_Tied(), 0.7, (16,))


class _Hidden(nn.Module):
    """The block's last scale starts at zero, so with its own weights nothing inside could be seen to go wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.outer = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm(self.outer(_channel_mean(self.inner(x))))
        return self.head(x.mean((2, 3)))


def test_a_branch_that_starts_at_zero_hides_nothing() -> None:
    assert "inner" in _prune(_Hidden(), 0.7).skipped


# --- settings, errors, order ----------------------------------------------------------------------------------------


def test_same_seed_same_model_and_torchs_generator_is_left_alone() -> None:
    base = build(CifarResNet(depth=14), SMALL, 10)
    state = torch.get_rng_state()
    models = [copy.deepcopy(base) for _ in range(3)]
    plans = [_prune(m, 0.7, criterion="random", seed=s) for m, s in zip(models, (1, 1, 2), strict=True)]
    assert torch.equal(torch.get_rng_state(), state)
    assert plans[0] == plans[1]
    first, second, third = (list(m.state_dict().values()) for m in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, third, strict=True))


def test_modes_and_frozen_weights_stay() -> None:
    model = build(CifarResNet(depth=8), SMALL, 10).train()
    model.layer1[0].bn1.eval()
    model.layer1[0].conv1.weight.requires_grad_(False)
    _prune(model, 0.61)
    assert model.training
    assert not model.layer1[0].bn1.training
    assert not model.layer1[0].conv1.weight.requires_grad
    assert model.layer1[0].conv2.weight.requires_grad


def test_an_impossible_ratio_names_the_smallest_and_changes_nothing() -> None:
    model = build(CifarResNet(depth=8), SMALL, 10)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"the smallest is 0\.\d+.*round_to.*max_layer_ratio") as caught:
        _prune(model, 0.05)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    smallest = float(str(caught.value.hint).split()[2])
    assert _prune(model, smallest).macs_after <= smallest * count(build(CifarResNet(depth=8), SMALL, 10), SMALL).macs


def test_layers_too_small_to_round_are_named() -> None:
    pruned = _prune(build(CifarResNet(depth=8), SMALL, 10), 0.75, round_to=16)
    assert "no smaller multiple of 16" in pruned.skipped["layer1.0.conv1"]
    assert pruned.plan["layer3.0.conv1"]["out"] % 16 == 0
    with pytest.raises(ModelError, match="no layer of the model can lose channels"):
        _prune(build(CifarResNet(depth=8), SMALL, 10), 0.75, round_to=64)


class _NoGraph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).detach()


class _Pair(_NoGraph):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x), x


@pytest.mark.parametrize("model", [_NoGraph(), _Pair()])
def test_a_model_that_cannot_be_followed_is_a_clear_error(model: nn.Module) -> None:
    with pytest.raises(ModelError):
        _prune(model, 0.5, (8,))


def test_nan_weights_are_refused() -> None:
    model = build(CifarResNet(depth=8), SMALL, 10)
    with torch.no_grad():
        model.layer1[0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError):
        _prune(model, 0.7)
