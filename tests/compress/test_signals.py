"""What can't be learnt is refused with the loss by name and the next step; what can comes out by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from edgewise.compress.config import Distill, Fit, Sgd
from edgewise.compress.losses import LossConfig
from edgewise.compress.losses.base import Batch
from edgewise.compress.signals import Signals, names
from edgewise.compress.strategies.offline import distill
from edgewise.compress.train import Epoch
from edgewise.errors import ModelError
from edgewise.models.tasks.config import Augment

SHAPE = (1, 8, 8)


@dataclass(frozen=True)
class Noise:
    targets: np.ndarray
    images: np.ndarray

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"noise-{i}" for i in range(len(self.targets)))

    def read(self, index: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self.images[index]
        return rows


def noise(classes: int) -> Noise:
    random = np.random.default_rng(0)
    images = random.normal(size=(16, *SHAPE)).astype(np.float32)
    return Noise((np.arange(16) % classes).astype(np.int64), images)


class Net(nn.Module):
    """A map (width, 8, 8), a map (2 width, 4, 4), and a classifier."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.early = nn.Conv2d(1, width, 3, padding=1)
        self.late = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.late(self.early(inputs).relu()).relu().mean(dim=(2, 3)))
        return logits


def loss(**said: Any) -> LossConfig:
    made: LossConfig = TypeAdapter(LossConfig).validate_python(said)
    return made


def learn(
    *losses: LossConfig,
    classes: int = 3,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
) -> list[Epoch]:
    config = Distill(kind="distill", losses=losses, fit=Fit(epochs=1, batch_size=8, optimizer=Sgd(lr=0.01)))
    teacher = teacher or Net(6, classes)
    student = Net(4, classes)
    return distill(student, teacher, noise(classes), config, seed=0, augment=augment, checkpoint=checkpoint)


def refusal(*losses: LossConfig, **how: Any) -> str:
    with pytest.raises(ModelError) as caught:
        learn(*losses, **how)
    return str(caught.value)


def test_a_sum_of_losses_is_learnt_each_by_its_name() -> None:
    said = [loss(kind="kd"), loss(kind="at"), loss(kind="kd", temperature=1.0), loss(kind="dkd"), loss(kind="fsp")]
    history = learn(*said)
    assert set(history[0].terms) == {"kd", "at", "kd-2", "dkd", "fsp", "cross_entropy"}
    assert names(said) == ["kd", "at", "kd-2", "dkd", "fsp"]
    for name, weight in (("kd", 0.9), ("at", 1000.0), ("fsp", 50.0)):
        assert history[0].terms[name] == pytest.approx(weight * history[0].unweighted[name])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            {"kind": "fitnet", "layers": ["lete"]},
            ["losses: fitnet: the student has no layer 'lete'", "next: near: late"],
        ),
        (
            {"kind": "at", "layers": [{"student": "late", "teacher": "missing"}]},
            ["losses: at: the teacher has no layer 'missing'", "next: "],
        ),
        (
            {"kind": "fitnet", "layers": [{"student": "classifier", "teacher": "late"}]},
            ["losses: fitnet: a vector can't be held against a map", "(3,)", "(12, 4, 4)", "pair layers of the same"],
        ),
        (
            {"kind": "fsp", "project": "never"},
            ["fsp can't be built: fsp without projection needs equal channels", "(4, 8, 8)", "project: where_needed"],
        ),
        ({"kind": "fsp", "layers": ["late"]}, ["fsp can't be built", "needs two or more, got 1: name layers"]),
        ({"kind": "mgd", "layers": "embedding"}, ["mgd can't be built", "got vectors (12,); use fitnet"]),
        (
            {"kind": "value_relations", "layers": ["late"]},
            ["losses: value_relations: the teacher's layers tell no numbers", "give value_relations its heads"],
        ),
        (
            {"kind": "attention_matrices"},
            ["losses: attention_matrices: no layer of the student is called 'blocks.*.attn.softmax:input'", "next: "],
        ),
        ({"kind": "crd", "max_bytes": 100}, ["crd can't be built", "max_bytes is 100: lower dim, or raise max_bytes"]),
    ],
    ids=lambda given: given["kind"] if isinstance(given, dict) else "",
)
def test_layers_that_do_not_fit_are_refused_before_training(said: dict[str, Any], told: list[str]) -> None:
    message = refusal(loss(kind="kd"), loss(**said))
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"kind": "dkd"}, "dkd needs at least 3 classes, got 2; use kd or logit_mse"),
        ({"kind": "nkd"}, "nkd needs at least 3 classes, got 2; use kd or logit_mse"),
        ({"kind": "dist"}, "dist needs at least 3 classes, got 2; use kd or logit_mse"),
        ({"kind": "kd", "standardize": True}, "kd with standardize needs at least 3 classes, got 2; leave standardize"),
    ],
    ids=["dkd", "nkd", "dist", "standardize"],
)
def test_two_classes_are_refused_where_nothing_is_left_to_say(said: dict[str, Any], told: str) -> None:
    message = refusal(loss(**said), classes=2)
    assert f"{said['kind']} can't be computed: {told}" in message
    assert "next: choose another loss" in message
    assert learn(loss(kind="kd"), classes=2)


@pytest.mark.parametrize("how", [{"mixup": 0.2}, {"cutmix": 1.0}], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("kind", ["dkd", "nkd", "crd"])
def test_mixed_samples_are_refused_where_a_loss_wants_single_ones(kind: str, how: dict[str, float]) -> None:
    message = refusal(loss(kind=kind), augment=Augment(**how))
    assert kind in message
    assert re.search(r"mixup (or|and) cutmix", message)
    assert "next: " in message
    assert learn(loss(kind="kd"), augment=Augment(**how))


def test_a_loss_whose_layers_stop_fitting_is_named_too() -> None:
    # The dry run saw other shapes than the batch has: what goes wrong inside a loss carries its name.
    student, teacher = Net(4), Net(6)
    signals = Signals([loss(kind="at", layers=["late"])], student, teacher, input_shape=SHAPE, samples=16)
    tokens = torch.zeros(2, 7, 8)
    batch = Batch(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.long), torch.arange(2))
    logits = torch.zeros(2, 3)

    def told(ours: Tensor, theirs: Tensor) -> None:
        signals((logits, {"late": ours}), ([logits], {"late": theirs}), batch, active=["at"])

    with pytest.raises(ModelError, match=r"losses: at: 7 tokens are no square grid(.|\n)*next: pair layers"):
        told(tokens, tokens)
    with pytest.raises(ModelError, match=r"at can't be computed: (.|\n)*next: choose other layers, or another loss"):
        told(logits, logits)


USERS = """
def undefined(student, teacher, batch):
    return (student.logits.sum() - student.logits.sum()) / 0.0

def many(student, teacher, batch):
    return student.logits

def huge(student, teacher, batch):
    return student.logits.pow(2).mean() + 1e9
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The import path of a user's own losses."""
    (tmp_path / "users_losses.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "users_losses"
    sys.modules.pop("users_losses", None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("undefined", "custom is no longer finite at step 1 of 2: nan"),
        ("huge", r"custom exploded at step 1 of 2: 1e\+09"),
    ],
)
def test_a_loss_that_is_not_finite_stops_with_its_name(users: str, tmp_path: Path, name: str, told: str) -> None:
    kept = tmp_path / "checkpoint.safetensors"
    message = refusal(loss(kind="kd"), loss(kind="custom", loss=f"{users}:{name}"), checkpoint=kept)
    assert re.search(told, message)
    assert "next: lower optimizer.lr or the term's weight" in message
    assert not kept.exists()


def test_a_users_loss_that_is_no_scalar_is_named_with_its_file(users: str) -> None:
    message = refusal(loss(kind="custom", loss=f"{users}:many"))
    assert "losses: custom (users_losses:many): expected a scalar tensor, got (8, 3)" in message
    assert "next: end it with .mean()" in message


@pytest.mark.parametrize("kind", ["kd", "at", "sp", "fitnet"])
def test_a_teacher_that_is_not_finite_stops_with_the_first_loss_it_spoils(kind: str) -> None:
    teacher = Net(6)
    with torch.no_grad():
        teacher.early.weight.fill_(torch.nan)
    message = refusal(loss(kind=kind), teacher=teacher)
    assert f"{kind} is no longer finite at step 1 of 2" in message


def test_a_teacher_of_other_classes_is_refused() -> None:
    message = refusal(loss(kind="kd"), teacher=Net(6, classes=5))
    assert "the student answers (8, 3), the teacher (8, 5)" in message
    assert "next: both must know the same classes" in message
