"""Texts in the one loop: padding changes nothing, batches of like length, and what the labels of each kind ask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.config import AdamW, Fit
from edgewise.compress.lesson import Lesson, label_loss
from edgewise.compress.losses.base import Batch
from edgewise.compress.train import WINDOW, _optimizer, evaluate, fit, labels_only, lr_factor, order
from edgewise.errors import ModelError
from edgewise.models.tasks.base import IGNORED, UNLABELLED, TextSplit

LENGTH, WORDS = 24, 20


@dataclass(frozen=True)
class Sentences:
    """Ids below WORDS, 0 the padding; whether a text has more high ids than low ones, for each token or in all."""

    kind: str = "classify"
    samples: int = 64
    padding: int = 0
    vocabulary: int = WORDS
    tokens: np.ndarray = field(init=False)
    lengths: np.ndarray = field(init=False)
    targets: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(0)
        lengths = random.integers(1, 20, self.samples)
        real = np.arange(LENGTH) < lengths[:, None]
        tokens = np.where(real, random.integers(1, WORDS, (self.samples, LENGTH)), 0)
        high = (tokens > WORDS // 2) & real
        targets: np.ndarray = np.where(real, high, IGNORED)
        if self.kind != "tag":
            targets = high.sum(1) / lengths
            targets = targets.astype(np.float32) if self.kind == "regress" else (targets > 0.5).astype(np.int64)
        for name, value in (("tokens", tokens), ("lengths", lengths), ("targets", targets)):
            object.__setattr__(self, name, value)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.samples)))

    def read(self, index: np.ndarray) -> np.ndarray:
        tokens: np.ndarray = self.tokens[index]
        return tokens

    def encoded(self, tokenizer: Path) -> TextSplit:
        raise AssertionError("there is one tokenizer here")


class Reader(nn.Module):
    """Word vectors, a mean over the real ones or an answer for each."""

    def __init__(self, classes: int = 2, *, each: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 8)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, classes)
        self.each = each
        self.seen: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.append(tuple(tokens.shape))
        real = (tokens != 0).float()[..., None]
        vectors: Tensor = self.drop(self.norm(self.words(tokens)))
        if not self.each:
            vectors = (vectors * real).sum(1) / real.sum(1)
        answer: Tensor = self.head(vectors)
        return answer


NETS: dict[str, Callable[..., Reader]] = {
    "classify": Reader,
    "tag": lambda **kw: Reader(each=True, **kw),
    "regress": lambda **kw: Reader(1, **kw),
}
FIT = Fit(epochs=30, batch_size=8, optimizer=AdamW(lr=0.03, decay="matrices"), schedule="linear")


@pytest.mark.parametrize("kind", NETS)
def test_each_kind_of_answer_is_learnt_from_texts(kind: str) -> None:
    split, model = Sentences(kind), NETS[kind]()
    history = fit(labels_only(model), split, FIT, seed=1)
    assert history[-1].loss < 0.5 * history[0].loss
    answers = evaluate(model, split)
    assert answers.shape == {"classify": (64, 2), "tag": (64, LENGTH, 2), "regress": (64, 1)}[kind]
    if kind == "regress":
        assert np.corrcoef(answers[:, 0], split.targets)[0, 1] > 0.9
    else:
        known = split.targets != IGNORED
        assert (answers.argmax(-1) == split.targets)[known].mean() > 0.9


@pytest.mark.parametrize("kind", NETS)
def test_answers_come_back_in_the_split_s_order_whatever_shares_a_batch(kind: str) -> None:
    split, model = Sentences(kind, 30), NETS[kind]()
    with torch.no_grad():
        whole = model.eval()(torch.from_numpy(split.tokens)).numpy()
    if kind == "tag":
        whole[np.arange(LENGTH) >= split.lengths[:, None]] = 0
    model.seen.clear()
    answers = evaluate(model, split, batch_size=7)
    if kind == "tag":
        answers[np.arange(LENGTH) >= split.lengths[:, None]] = 0
    np.testing.assert_allclose(answers, whole, atol=1e-6)
    lengths = [length for _, length in model.seen]
    assert lengths == sorted(lengths)
    assert lengths[0] < LENGTH
    assert all(length % 8 == 0 for length in lengths)


def test_a_step_sees_no_more_padding_than_its_longest_text_needs() -> None:
    split, model, masks = Sentences(samples=64), Reader(), []

    class Watching(Lesson):
        def terms(self, batch: Batch) -> dict[str, Tensor]:
            assert batch.mask is not None
            masks.append(batch.mask)
            assert torch.equal(batch.mask.sum(1), torch.from_numpy(split.lengths)[batch.index])
            return {"cross_entropy": label_loss(self.model(batch.inputs), batch, 0.0)}

    fit(Watching(model), split, Fit(epochs=1, batch_size=8), seed=0)
    for mask in masks:
        longest = int(mask.sum(1).max())
        assert longest <= mask.shape[1] < longest + 8


def test_batches_of_texts_are_of_like_length_and_visit_every_sample_once() -> None:
    lengths = np.random.default_rng(1).integers(1, 200, 1000)
    visit = order(1000, 5, 2, 8, lengths)
    assert sorted(visit) == list(range(1000))
    assert np.array_equal(visit, order(1000, 5, 2, 8, lengths))
    assert not np.array_equal(visit, order(1000, 5, 3, 8, lengths))
    batches = lengths[visit].reshape(-1, 8)
    assert np.ptp(batches, axis=1).mean() < 0.1 * np.ptp(lengths[order(1000, 5, 2)].reshape(-1, 8), axis=1).mean()
    means = batches.mean(1)  # short ones and long ones come in no order
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.3
    assert 8 * WINDOW < 1000  # more than one window was sorted


def test_what_does_not_fill_a_batch_is_not_always_the_longest() -> None:
    lengths = np.arange(20)
    left_out = [set(range(20)) - set(order(20, 0, epoch, 8, lengths)) for epoch in range(30)]
    assert all(len(left) == 4 for left in left_out)
    assert len(set.union(*left_out)) == 20


def test_a_killed_run_with_dropout_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = FIT.model_copy(update={"epochs": 3, "checkpoint_every": 1})
    expected, resumed, file = Reader(dropout=0.3), Reader(dropout=0.3), tmp_path / "checkpoint.safetensors"
    fit(labels_only(expected), Sentences(), config, seed=1)

    def stop(done: int, total: int, note: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(labels_only(resumed), Sentences(), config, seed=1, checkpoint=file, tick=stop)
    fresh = Reader(dropout=0.3)
    fit(labels_only(fresh), Sentences(), config, seed=1, checkpoint=file)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), fresh.parameters(), strict=True))


def batch(targets: Tensor) -> Batch:
    return Batch(torch.zeros(len(targets), 4, dtype=torch.long), targets, torch.arange(len(targets)))


def test_tokens_without_a_label_weigh_nothing() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    targets = torch.tensor([[1, IGNORED, 2], [IGNORED, IGNORED, 0]])
    by_hand = -logits.log_softmax(-1)[[0, 0, 1], [0, 2, 2], [1, 2, 0]].mean()
    assert label_loss(logits, batch(targets), 0.0).item() == pytest.approx(by_hand.item())
    nothing = label_loss(logits, batch(torch.full((2, 3), IGNORED)), 0.0)
    nothing.backward()  # type: ignore[no-untyped-call]
    assert nothing.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("targets", [torch.tensor([0, UNLABELLED]), torch.tensor([0.5, math.nan])])
def test_a_sample_without_a_label_is_refused(targets: Tensor) -> None:
    with pytest.raises(ModelError, match="without a label"):
        label_loss(torch.zeros(2, 1 if targets.is_floating_point() else 2), batch(targets), 0.0)


def test_numbers_are_not_smoothed_and_need_one_answer_each() -> None:
    with pytest.raises(ModelError, match="smoothed"):
        label_loss(torch.zeros(2, 1), batch(torch.zeros(2)), 0.1)
    with pytest.raises(ModelError, match="one number a sample"):
        label_loss(torch.zeros(2, 2), batch(torch.zeros(2)), 0.0)


def test_only_matrices_decay_where_asked() -> None:
    model = Reader()
    optimizer = _optimizer(labels_only(model), Fit(optimizer=AdamW(weight_decay=0.1, decay="matrices")))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.1 if parameter.dim() > 1 else 0), name
    assert len(_optimizer(labels_only(model), Fit(optimizer=AdamW())).param_groups) == 1


def test_linear_goes_down_to_zero_after_warm_up() -> None:
    factors = [lr_factor(step, 10, 2, "linear") for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
