"""The published recipes for text encoders, as recipe blocks, on tiny nets: each learns, padding or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from edgewise.compress.config import Distill, Mutual, Online, SelfDistill, StageConfig
from edgewise.compress.strategies.caching import caches
from edgewise.compress.strategies.exits import learn_from_end
from edgewise.compress.strategies.live import learn_online
from edgewise.compress.strategies.mutual import learn_together
from edgewise.compress.strategies.offline import distill
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import Bert
from edgewise.models.tasks.base import IGNORED, UNLABELLED, TextSplit

LENGTH, WORDS = 20, 30


@dataclass(frozen=True)
class Sentences:
    """Ids 1 to 29, 0 the padding. ``shift``: what another tokenizer adds to every id."""

    kind: str = "classify"
    shift: int = 0
    padding: int = 0
    vocabulary: int = WORDS
    samples: int = 48
    tokens: np.ndarray = field(init=False)
    lengths: np.ndarray = field(init=False)
    targets: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        lengths = random.integers(2, 17, self.samples)
        real = np.arange(LENGTH) < lengths[:, None]
        tokens = np.where(real, random.integers(1, WORDS, (self.samples, LENGTH)), 0)
        high = (tokens > WORDS // 2) & real
        targets: np.ndarray = (high.sum(1) / lengths > 0.5).astype(np.int64)
        if self.kind == "tag":
            targets = np.where(real & (np.arange(LENGTH) > 0), high, IGNORED)
        if self.kind == "regress":
            targets = (high.sum(1) / lengths).astype(np.float32)
        if self.kind == "unlabelled":
            targets = np.full(self.samples, UNLABELLED)
        tokens = np.where(real, tokens + self.shift, 0)
        for name, value in (("tokens", tokens), ("lengths", lengths), ("targets", targets)):
            object.__setattr__(self, name, value)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.samples)))

    def read(self, index: np.ndarray) -> np.ndarray:
        tokens: np.ndarray = self.tokens[index]
        return tokens

    def encoded(self, tokenizer: Path) -> TextSplit:
        return Sentences(self.kind, shift=5, vocabulary=WORDS + 5)


def bert(seed: int, layers: int = 2, width: int = 8, classes: int = 2, words: int = WORDS, **more: Any) -> nn.Module:
    torch.manual_seed(seed)
    config = Bert(layers=layers, width=width, heads=2, **{"dropout": 0.0, **more})
    model = build(config, (LENGTH, words), classes)
    for parameter in model.parameters():  # as alive as a trained one
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def stage(**settings: Any) -> Distill:
    fit = {"epochs": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "lr": 0.01, "decay": "matrices"}}
    found: object = TypeAdapter(StageConfig).validate_python({"kind": "distill", "fit": fit, **settings})
    assert isinstance(found, Distill)
    return found


DEEP = 4
RECIPES: Mapping[str, list[dict[str, Any]]] = {
    "TinyBERT, stage one": [
        {"kind": "hidden_states", "layers": ["embeddings"]},
        {"kind": "hidden_states", "layers": {"student": "blocks.*", "teacher": "blocks.*"}},
        {"kind": "attention_matrices"},
    ],
    "TinyBERT, stage two": [{"kind": "kd", "weight": 1.0, "temperature": 1.0}],
    "DistilBERT": [
        {"kind": "kd", "weight": 5.0, "temperature": 2.0},
        {"kind": "hidden_cosine", "layers": [{"student": "blocks.1", "teacher": f"blocks.{DEEP - 1}"}]},
    ],
    "DistilBERT, by default": [{"kind": "kd", "weight": 5.0, "temperature": 2.0}, {"kind": "hidden_cosine"}],
    "MiniLM": [
        {
            "kind": "value_relations",
            "layers": [{"student": "blocks.1.attn.qkv", "teacher": f"blocks.{DEEP - 1}.attn.qkv"}],
        },
        {
            "kind": "attention_matrices",
            "mode": "probabilities_kl",
            "layers": [{"student": "blocks.1.attn.softmax", "teacher": f"blocks.{DEEP - 1}.attn.softmax"}],
        },
    ],
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_published_recipe_learns_from_a_wider_and_deeper_teacher(name: str) -> None:
    cross_entropy = 2.0 if "DistilBERT" in name else 0.0
    config = stage(cross_entropy=cross_entropy, losses=RECIPES[name])
    told: list[str] = []
    teacher = bert(0, DEEP, width=12)
    history = distill(bert(1), teacher, Sentences(), config, seed=0, tell=told.append)
    assert history[1].loss < history[0].loss
    for kind, value in history[1].unweighted.items():
        assert kind == "cross_entropy" or value < history[0].unweighted[kind], kind  # the teacher knows no labels
    if name == "TinyBERT, stage one":
        assert "hidden_states-2: blocks.0 follows blocks.1, blocks.1 follows blocks.3" in told
    if name == "DistilBERT, by default":
        assert "hidden_cosine: blocks.1 follows blocks.3" in told


@pytest.mark.parametrize("name", RECIPES)
def test_answers_from_the_cache_teach_what_live_ones_do(name: str, tmp_path: Path) -> None:
    config = stage(cross_entropy=0.0, losses=RECIPES[name], cache_dtype="float32", cache="always")
    students, split, teacher = (bert(1), bert(1)), Sentences(), bert(0, DEEP, width=12)
    live = distill(students[0], teacher, split, config, seed=0)
    with caches(tmp_path, [teacher], split, config, classes=2, seed=0) as opened:
        kept = distill(students[1], teacher, split, config, seed=0, open_cache=opened)
    # Batches differ in the second epoch, and with them the padding of the texts whose answers were kept.
    assert [epoch.loss for epoch in kept] == pytest.approx([epoch.loss for epoch in live], rel=1e-5)
    for ours, theirs in zip(students[1].parameters(), students[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_tags_are_learnt_from_the_teacher_s_answers_to_each_token(tmp_path: Path) -> None:
    split = Sentences("tag")
    teacher, student = bert(0, answers="token"), bert(1, answers="token")
    losses = [{"kind": "kd", "temperature": 1.0}, {"kind": "logit_gram"}]
    config = stage(cross_entropy=0.5, losses=losses, teacher_wrong="drop", cache="always")
    with caches(tmp_path, [teacher], split, config, classes=(LENGTH, 2), seed=0) as opened:
        history = distill(student, teacher, split, config, seed=0, open_cache=opened)
    assert history[1].loss < history[0].loss
    assert 0 < history[0].unweighted["teacher_right"] < 1


def test_numbers_are_learnt_from_the_teacher_s() -> None:
    teacher, student = bert(0, classes=1), bert(1, classes=1)
    config = stage(cross_entropy=1.0, losses=[{"kind": "regression"}, {"kind": "bounded_regression"}])
    history = distill(student, teacher, Sentences("regress"), config, seed=0)
    assert history[1].loss < history[0].loss
    with pytest.raises(ModelError, match=r"kd.*regression"):
        distill(student, teacher, Sentences("regress"), stage(losses=[{"kind": "kd"}]), seed=0)
    wrong = stage(losses=[{"kind": "kd"}], teacher_wrong="drop")
    with pytest.raises(ModelError, match="numbers"):
        distill(bert(1), bert(2), Sentences("regress"), wrong, seed=0)


def test_a_transfer_set_needs_no_labels_unless_something_reads_them() -> None:
    split, teacher = Sentences("unlabelled"), bert(0)
    kd = [{"kind": "kd", "temperature": 1.0}]
    history = distill(bert(1), teacher, split, stage(cross_entropy=0.0, losses=kd), seed=0)
    assert history[1].loss < history[0].loss
    assert set(history[0].terms) == {"kd"}
    for config in (
        stage(cross_entropy=0.1, losses=kd),
        stage(cross_entropy=0.0, losses=kd, teacher_wrong="swap"),
        stage(cross_entropy=0.0, losses=kd, label_only_epochs=1),
    ):
        with pytest.raises(ModelError, match="without a label"):
            distill(bert(1), teacher, split, config, seed=0)
    reading = stage(cross_entropy=0.0, losses=[{"kind": "nkd"}])
    with pytest.raises(ModelError, match=r"without a label, and nkd"):
        distill(bert(1, classes=3), bert(0, classes=3), split, reading, seed=0)


def test_a_teacher_with_its_own_tokenizer_reads_its_own_tokens(tmp_path: Path) -> None:
    split = Sentences()
    own = split.encoded(Path("tokenizer.json"))
    teacher = bert(0, words=WORDS + 5)
    seen: list[int] = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(int(inputs[0].max())))
    config = stage(
        cross_entropy=0.0, losses=[{"kind": "kd", "temperature": 1.0}], cache="always", cache_dtype="float32"
    )
    live, kept = bert(1), bert(1)
    distill(live, teacher, split, config, seed=0, reads=[own])
    assert max(seen) >= WORDS
    calls = len(seen)
    with caches(tmp_path, [teacher], split, config, classes=2, seed=0, reads=[own]) as opened:
        distill(kept, teacher, split, config, seed=0, reads=[own], open_cache=opened)
    assert len(seen) < 2 * calls
    for ours, theirs in zip(kept.parameters(), live.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "losses",
    [[{"kind": "hidden_cosine"}], [{"kind": "rkd_distance"}], [{"kind": "kd"}, {"kind": "attention_matrices"}]],
)
def test_its_layers_are_not_followed(losses: list[dict[str, Any]]) -> None:
    own = Sentences().encoded(Path("tokenizer.json"))
    with pytest.raises(ModelError, match=rf"another tokenizer.*{losses[-1]['kind']}"):
        distill(bert(1), bert(0, words=WORDS + 5), Sentences(), stage(losses=losses), seed=0, reads=[own])


def test_its_answers_to_tokens_are_not_followed() -> None:
    split = Sentences("tag")
    nets = bert(1, answers="token"), bert(0, answers="token", words=WORDS + 5)
    with pytest.raises(ModelError, match="answers to each"):
        distill(*nets, split, stage(losses=[{"kind": "kd"}]), seed=0, reads=[split.encoded(Path("x"))])


def test_peers_and_a_learning_teacher_read_texts_too() -> None:
    fit = {"epochs": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "lr": 0.01}}
    mutual = Mutual.model_validate({"kind": "mutual", "fit": fit, "peers": [{"kind": "bert"}]})
    assert all(math.isfinite(e.loss) for e in learn_together(bert(0), [bert(1)], Sentences(), mutual, seed=0))
    losses = [{"kind": "kd"}, {"kind": "hidden_states"}]
    online = Online.model_validate({"kind": "online", "fit": fit, "losses": losses})
    assert all(math.isfinite(e.loss) for e in learn_online(bert(0), bert(1, DEEP), Sentences(), online, seed=0))


def test_exits_are_for_maps() -> None:
    config = SelfDistill.model_validate({"kind": "self_distill", "fit": {"epochs": 1}})
    with pytest.raises(ModelError, match="images"):
        learn_from_end(bert(0), Sentences(), config, seed=0)
