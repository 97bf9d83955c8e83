"""Words to guess, through the one training loop: each epoch learns from its own masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewise.compress.config import AdamW, Fit
from edgewise.compress.lesson import Labels
from edgewise.compress.losses.base import Batch
from edgewise.compress.train import evaluate, fit
from edgewise.models.build import build
from edgewise.models.config import Bert
from edgewise.models.tasks.base import IGNORED, DrawnSplit, Task
from edgewise.models.tasks.config import MaskedText
from edgewise.models.tasks.load import load_task

WORDS = "red green blue one two three"


class Seen(Labels):
    """Keeps what the loop showed."""

    batches: list[tuple[np.ndarray, ...]]

    def terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.batches.append((batch.index.numpy(), batch.inputs.numpy(), batch.targets.numpy()))
        return super().terms(batch)


@pytest.fixture
def task(tmp_path: Path, word_pieces: Callable[..., Path]) -> Task:
    """A colour and the number that always goes with it."""
    random = np.random.default_rng(0)
    pairs = list(zip(WORDS.split()[:3], WORDS.split()[3:], strict=True))
    lines = [" ".join(pairs[random.integers(3)] * 2) for _ in range(96)]
    for name, some in (("train", lines), ("test", lines[:40])):
        (tmp_path / f"{name}.txt").write_text("\n".join(some) + "\n")
    return load_task(
        MaskedText(
            train=tmp_path / "train.txt",
            test=tmp_path / "test.txt",
            tokenizer=word_pieces(WORDS),
            max_length=8,
            chance=0.25,
        )
    )


def config(epochs: int) -> Fit:
    return Fit(epochs=epochs, batch_size=16, optimizer=AdamW(lr=5e-3))


def model(task: Task) -> torch.nn.Module:
    torch.manual_seed(0)
    bert = Bert(layers=1, width=16, heads=2, answers="vocabulary", dropout=0.0, pooler="none")
    return build(bert, task.input_shape, len(task.classes))


def test_each_epoch_asks_for_the_words_of_its_own_view(task: Task) -> None:
    train = task.splits["train"]
    assert isinstance(train, DrawnSplit)
    lesson = Seen(model(task), 0.0)
    lesson.batches = []
    fit(lesson, train, config(2), seed=3, augment=task.augment)
    for number, (index, inputs, targets) in enumerate(lesson.batches):
        tokens, asked = train.draw(index, 3, number // 6)
        assert np.array_equal(inputs, tokens[:, : inputs.shape[1]])
        assert np.array_equal(targets, asked[:, : inputs.shape[1]])
        assert (asked[:, inputs.shape[1] :] == IGNORED).all()
    assert len(lesson.batches) == 12


def test_an_encoder_learns_which_words_go_together(task: Task) -> None:
    net, test = model(task), task.splits["test"]
    before = task.score(evaluate(net, test), test.targets).mean()
    fit(Labels(net, 0.0), task.splits["train"], config(15), seed=0, augment=task.augment)
    after = task.score(evaluate(net, test), test.targets).mean()
    assert before < 0.4
    assert after > before + 0.3
