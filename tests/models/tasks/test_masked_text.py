"""Words to guess: what is masked is a function of seed, view and sample, in BERT's proportions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import DataError
from edgewise.models.tasks import load
from edgewise.models.tasks.augment import view, view_number
from edgewise.models.tasks.base import IGNORED, DrawnSplit, TextSplit
from edgewise.models.tasks.config import MaskedText
from edgewise.models.tasks.text import masked

WORDS = [f"w{'abcdefghij'[n // 10]}{'abcdefghij'[n % 10]}" for n in range(100)]
MASK, L = 4, 24


@pytest.fixture
def config(tmp_path: Path, word_pieces: Callable[..., Path]) -> MaskedText:
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(3, 20))) for _ in range(2000)]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "test.tsv").write_text("sentence\tlabel\n" + "".join(f"{line}\t1\n" for line in lines[:50]))
    return MaskedText(
        train=tmp_path / "train.txt",
        test=tmp_path / "test.tsv",
        tokenizer=word_pieces(" ".join(WORDS)),
        max_length=L,
        chance=0.2,
    )


def test_a_view_is_a_function_of_seed_view_and_sample(config: MaskedText) -> None:
    task = load.load_task(config)
    train = task.splits["train"]
    assert isinstance(train, DrawnSplit)
    assert isinstance(train, TextSplit)
    index = np.array([7, 1999, 3])
    first = view(train, index, task.augment, seed=1, epoch=2)
    assert first.targets is not None
    alone = view(train, index[1:2], task.augment, seed=1, epoch=2)
    assert np.array_equal(first.inputs[1:2], alone.inputs)
    again = view(load.load_task(config).splits["train"], index, task.augment, seed=1, epoch=2)
    assert np.array_equal(first.inputs, again.inputs)
    for seed, epoch in ((1, 3), (2, 2)):
        other = view(train, np.arange(100), task.augment, seed=seed, epoch=epoch)
        assert not np.array_equal(view(train, np.arange(100), task.augment, seed=1, epoch=2).inputs, other.inputs)
    assert [view_number(task.augment, epoch) for epoch in range(3)] == [0, 1, 2]
    few = load.load_task(config.model_copy(update={"views": 2})).augment
    assert [view_number(few, epoch) for epoch in range(3)] == [0, 1, 0]


def test_the_proportions_are_berts(config: MaskedText) -> None:
    task = load.load_task(config.model_copy(update={"chance": 0.5}))
    train = task.splits["train"]
    assert isinstance(train, masked.Masked)
    index = np.arange(2000)
    whole = train.whole.read(index)
    tokens, targets = train.draw(index, 0, 0)
    asked = targets != IGNORED
    real = np.arange(L) < train.lengths[:, None]
    assert np.array_equal(targets[asked], whole[asked])
    assert np.array_equal(tokens[~asked], whole[~asked])
    assert not asked[~real | (whole < 5)].any()  # nor padding nor special tokens
    words = (whole >= 5).sum()
    assert abs(asked.sum() - 0.5 * words) < 4 * np.sqrt(0.25 * words)
    n = asked.sum()
    assert abs((tokens[asked] == MASK).sum() - 0.8 * n) < 4 * np.sqrt(0.16 * n)
    other = (tokens != whole) & (tokens != MASK)
    assert abs(other.sum() - 0.1 * 0.99 * n) < 4 * np.sqrt(0.09 * n)  # a hundredth is swapped for itself
    assert tokens[other].min() >= 5
    assert len(np.unique(tokens[other])) > 90


def test_something_is_asked_of_every_text(config: MaskedText) -> None:
    train = load.load_task(config.model_copy(update={"chance": 0.001})).splits["train"]
    assert isinstance(train, masked.Masked)
    tokens, targets = train.draw(np.arange(2000), 0, 0)
    asked = targets != IGNORED
    assert (asked.sum(axis=1) >= 1).all()
    assert asked.sum() < 2100
    assert (tokens[asked] == MASK).mean() > 0.9
    assert len(np.unique(np.argmax(asked, axis=1))) > 10  # not always the same place


def test_test_texts_have_one_fixed_view(config: MaskedText) -> None:
    task = load.load_task(config)
    test = task.splits["test"]
    tokens, targets = test.read(np.arange(50)), test.targets
    assert (task.kind, targets.shape, len(task.classes), task.classes[5]) == ("tag", (50, L), 105, "waa")
    assert np.array_equal(test.read(np.array([9])), tokens[9:10])
    answers = np.zeros((50, L, 105), np.float32)
    np.put_along_axis(answers, tokens[..., None], 1, axis=2)  # whoever repeats what is there is right about a tenth
    told = [
        np.mean([token == target for token, target in zip(*row, strict=True) if target != IGNORED])
        for row in zip(tokens, targets, strict=True)
    ]
    assert task.score(answers, targets) == pytest.approx(told)
    changed = load.load_task(config.model_copy(update={"seed": 1})).splits["test"]
    assert not np.array_equal(changed.targets, targets)


def test_answers_that_fit_nowhere_are_refused(config: MaskedText, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "ANSWERS_BYTES", 4 * L * 105 * 49)
    with pytest.raises(DataError, match=r"24 x 105 numbers.*there are 50") as told:
        load.load_task(config)
    assert "set it to 49" in told.value.hint
    few = config.model_copy(update={"test_limit": 49})
    assert len(load.load_task(few).splits["test"].ids) == 49
    with pytest.raises(DataError, match=r"task\.val_size.*each val text.*there are 60"):
        load.load_task(few.model_copy(update={"val_size": 60}))


def test_what_can_not_be_masked_is_refused(config: MaskedText, word_pieces: Callable[..., Path]) -> None:
    without = word_pieces("waa", special="[PAD] [UNK] [CLS] [SEP]")
    with pytest.raises(DataError, match="no mask token"):
        load.load_task(config.model_copy(update={"tokenizer": without}))
    config.train.write_text("waa\n\nwab\n")
    with pytest.raises(DataError, match=r"train\.txt:2: the text is empty"):
        load.load_task(config)
    config.train.write_text("waa wab wac\n" * 200)
    with pytest.raises(DataError, match="pieces of the task's own tokenizer"):
        load.load_task(config).splits["train"].encoded(without)  # type: ignore[attr-defined]
