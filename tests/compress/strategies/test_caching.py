"""A run that reads its teacher's answers from disk ends with the bits of one that asked the teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from edgewise.compress.config import Distill, Fit, Sgd
from edgewise.compress.losses import AT, KD, FitNet
from edgewise.compress.losses.base import Pair
from edgewise.compress.strategies.caching import caches
from edgewise.compress.strategies.offline import distill
from edgewise.errors import ArtifactError
from edgewise.models.tasks.config import Augment

Net = Callable[..., nn.Module]
RUN = Fit(epochs=4, batch_size=16, optimizer=Sgd(lr=0.02), checkpoint_every=1)
PAIRS = (Pair(student="2", teacher="tap"),)
LOGITS, FEATURES = (KD(),), (KD(), FitNet(layers=PAIRS, weight=1.0), AT(layers=PAIRS, weight=10.0))
STILL, DRAWN = Augment(), Augment(crop=1, flip=True, views=2)


def told(run: Fit = RUN, **config: Any) -> Distill:
    return Distill(kind="distill", fit=run, **config)


class Teacher(nn.Module):
    """Its feature can be read at ``tap``; with ``rounded``, feature and answer as half precision keeps them."""

    def __init__(self, layers: nn.Module, rounded: bool) -> None:
        super().__init__()
        assert isinstance(layers, nn.Sequential)
        self.body, self.head, self.tap = layers[:3], layers[3:], nn.Identity()
        self.rounded = rounded

    def forward(self, inputs: Tensor) -> Tensor:
        feature: Tensor = self.body(inputs)
        answer: Tensor = self.head(feature)
        self.tap(feature.half().float() if self.rounded else feature)
        return answer.half().float() if self.rounded else answer


@pytest.fixture
def asked(net: Net) -> Callable[..., tuple[nn.Module, list[int]]]:
    """A teacher, and the size of each batch that it was asked about."""

    def make(seed: int = 1, rounded: bool = False) -> tuple[nn.Module, list[int]]:
        teacher, sizes = Teacher(net(seed, width=6), rounded), list[int]()
        teacher.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
        return teacher, sizes

    return make


@pytest.fixture
def learn(split: Any, net: Net, bits: Any, tmp_path: Path) -> Callable[..., Any]:
    """A run with the caches under one root -> (history, the student's bits)."""

    def run(teachers: Any, config: Distill, augment: Augment, *, seed: int = 3, tell: Any = None, **more: Any) -> Any:
        teachers, student = teachers if isinstance(teachers, tuple) else (teachers,), net(0)
        shared: dict[str, Any] = {"seed": seed, "augment": augment}
        told = shared if tell is None else {**shared, "tell": tell}
        with caches(tmp_path / "cache", teachers, split, config, classes=3, **told) as opened:
            history = distill(student, teachers, split, config, open_cache=opened, **shared, **more)
        return history, bits(student)

    return run


@pytest.mark.parametrize("augment", [STILL, DRAWN], ids=["still", "two views"])
@pytest.mark.parametrize("losses", [LOGITS, FEATURES], ids=["logits", "features"])
def test_a_cached_run_is_a_live_run_of_rounded_answers(
    asked: Any, learn: Any, augment: Augment, losses: tuple[Any, ...]
) -> None:
    teacher, sizes = asked()
    config = told(losses=losses)
    filling = learn(teacher, config, augment)
    epochs = 1 if augment is STILL else 2
    traced = [2] if losses is FEATURES else []
    assert sizes == traced + [16] * 3 * epochs
    sizes.clear()
    assert learn(teacher, config, augment) == filling  # from disk alone
    assert sizes == traced
    live = told(losses=losses, cache="never")
    assert learn(asked(rounded=True)[0], live, augment) == filling
    assert learn(teacher, live, augment) != filling


@pytest.mark.parametrize("augment", [STILL, DRAWN], ids=["still", "two views"])
@pytest.mark.parametrize("losses", [LOGITS, FEATURES], ids=["logits", "features"])
def test_in_float32_a_cached_run_is_the_live_run(
    asked: Any, learn: Any, augment: Augment, losses: tuple[Any, ...]
) -> None:
    teacher, sizes = asked()
    live = learn(teacher, told(losses=losses, cache="never"), augment)
    config = told(losses=losses, cache_dtype="float32")
    assert learn(teacher, config, augment) == live
    sizes.clear()
    assert learn(teacher, config, augment) == live
    assert sizes == ([2] if losses is FEATURES else [])  # the dry run alone


def test_the_next_seed_has_views_of_its_own(asked: Any, learn: Any) -> None:
    """Also with a single view, which is drawn once and for all."""
    for augment, shared in ((STILL, True), (DRAWN, False), (Augment(crop=1, flip=True, views=1), False)):
        teacher, sizes = asked()
        learn(teacher, told(), augment, seed=3)
        sizes.clear()
        cached = learn(teacher, told(), augment, seed=4)
        assert (sizes == []) == shared
        assert learn(asked(rounded=True)[0], told(cache="never"), augment, seed=4) == cached


def test_mixed_samples_come_again_too(asked: Any, learn: Any) -> None:
    (teacher, sizes), augment = asked(), Augment(mixup=0.4, cutmix=1.0, flip=True, views=2)
    first = learn(teacher, told(), augment)
    sizes.clear()
    assert learn(teacher, told(), augment) == first
    assert sizes == []


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_run_killed_while_it_fills_the_cache(
    asked: Any, learn: Any, killed: Any, tmp_path: Path, stop_at: int
) -> None:
    teacher, sizes = asked()
    config, checkpoint = told(losses=FEATURES), tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        learn(teacher, config, STILL, checkpoint=checkpoint, tick=killed(stop_at))
    resumed = learn(teacher, config, STILL, checkpoint=checkpoint)
    assert sizes == [2, *[16] * min(stop_at, 3), 2, *[16] * (3 - min(stop_at, 3))]
    assert learn(teacher, config, STILL) == resumed


def test_each_teacher_has_its_own(asked: Any, learn: Any, tmp_path: Path) -> None:
    (one, first), (two, second) = asked(1), asked(2)
    filling = learn((one, two), told(losses=FEATURES), STILL)
    features = sorted(
        len(json.loads(file.read_text())["features"]) for file in (tmp_path / "cache").glob("*/cache.json")
    )
    assert features == [0, 1]  # features come from the first alone
    first.clear()
    second.clear()
    assert learn((one, two), told(losses=FEATURES), STILL) == filling
    assert (first, second) == ([2], [])


def test_labels_alone_at_first_need_no_answers(asked: Any, learn: Any) -> None:
    (teacher, sizes), config = asked(), told(label_only_epochs=1.5)
    cached = learn(teacher, config, STILL)
    assert sizes == [16] * 4  # the last batch of the second epoch, then all of the third
    assert learn(teacher, config, STILL) == cached
    assert learn(asked(rounded=True)[0], told(label_only_epochs=1.5, cache="never"), STILL) == cached


def test_where_no_view_comes_again_the_teacher_is_asked(asked: Any, learn: Any, tmp_path: Path) -> None:
    teacher, sizes = asked()
    learn(teacher, told(), Augment(crop=1, flip=True))
    assert sizes == [16] * 12
    assert not list(tmp_path.glob("cache/*"))


def test_answers_that_do_not_fit(asked: Any, learn: Any, tmp_path: Path) -> None:
    (teacher, sizes), notes = asked(), list[str]()
    learn(teacher, told(cache_bytes=48 * 3), STILL, tell=notes.append)
    assert len(notes) == 1
    assert "asked live" in notes[0]
    assert sizes == [16] * 12
    with pytest.raises(ArtifactError, match="the bound is"):
        learn(teacher, told(cache_bytes=48 * 3, cache="always"), STILL)
