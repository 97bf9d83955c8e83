import copy

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.fold import fold_batchnorm
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, MobileNetV2

SHAPE = (3, 16, 16)


def lively(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean, std=0.5)
                nn.init.uniform_(module.running_var, 0.2, 3)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


def drift(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[list[str], float]:
    x = torch.randn(4, *shape)
    with torch.no_grad():
        before = copy.deepcopy(model)(x)
        names = fold_batchnorm(model, shape)
        after = model(x)
    return names, float((before - after).norm() / before.norm())


@pytest.mark.parametrize("config", [CifarResNet(depth=8, width=8), MobileNetV2(width_multiplier=0.25, stem="cifar")])
def test_every_batchnorm_of_a_cnn_folds_without_changing_it(config):
    model = lively(build(config, SHAPE, 10))
    wanted = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    tree = [name for name, _ in model.named_modules()]
    names, error = drift(model)
    assert set(names) == wanted
    assert error < 1e-5
    assert [name for name, _ in model.named_modules()] == tree
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert drift(model)[0] == []


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (5,)),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), SHAPE),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), SHAPE),
        (nn.Sequential(nn.ConvTranspose2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)), SHAPE),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), SHAPE),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.Identity(), nn.BatchNorm2d(6)), SHAPE),
    ],
)
def test_other_layers_fold(model, shape):
    names, error = drift(lively(model), shape)
    assert len(names) == 1
    assert error < 1e-5


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.conv(x)))


class OtherReader(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class Returned(Twice):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, self.bn(y)


class BatchNormTwice(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.bn(self.conv(x)))


class Tied(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.other(x)))


class Tokens(nn.Module):
    """BatchNorm over the second axis, where a linear layer has its positions, not its features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.bn = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x[..., 0, :]))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    return model


@pytest.mark.parametrize(
    "model",
    [
        Twice(),
        OtherReader(),
        Returned(),
        BatchNormTwice(),
        Tied(),
        Tokens(),
        hooked(),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
    ],
    ids=["twice", "other", "returned", "bn2", "tied", "tokens", "hook", "nostats", "relu", "parametrized"],
)
def test_what_cannot_be_folded_is_left_alone(model):
    lively(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert fold_batchnorm(model, SHAPE) == []
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_training_flags_come_back():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU()).train()
    model[3].eval()
    fold_batchnorm(model, SHAPE)
    assert model[2].training
    assert not model[3].training
