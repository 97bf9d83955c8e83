"""A user's own task of texts: what training, pairing and devices rely on is asked at the door."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.errors import DataError
from edgewise.models.tasks.base import IGNORED, UNLABELLED, Task, TextSplit
from edgewise.models.tasks.check import check_task
from edgewise.models.tasks.config import Augment

TOKENS = np.array([[5, 6, 0, 0], [7, 0, 0, 0], [8, 9, 3, 4]])


@dataclass(frozen=True)
class Plain:
    targets: np.ndarray = field(default_factory=lambda: np.array([0, 1, 1]))
    tokens: np.ndarray = field(default_factory=lambda: TOKENS)
    ids: tuple[str, ...] = ("a", "b", "c")

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.tokens[index]


@dataclass(frozen=True)
class Own(Plain):
    lengths: np.ndarray = field(default_factory=lambda: np.array([2, 1, 4]))
    padding: int = 0
    vocabulary: int = 10

    def encoded(self, tokenizer: Path) -> TextSplit:
        raise DataError("one tokenizer only", where=str(tokenizer))


def task(split: Plain, more: dict[str, Any] | None = None, **changes: Any) -> Task:
    splits = {"train": split, "test": split, **(more or {})}
    return Task("own", **{"classes": ("x", "y"), "input_shape": (4, 10), "splits": splits, **changes})


TAGS = np.where(TOKENS == 0, IGNORED, TOKENS % 2)
GRADES = np.array([0.5, 1, 2], np.float32)


@pytest.mark.parametrize(
    "made",
    [
        task(Own()),
        task(Own(), {"transfer": Own(np.array([UNLABELLED, 1, UNLABELLED]))}),
        task(Own(), {"transfer": Own(np.full(3, UNLABELLED))}),
        task(Own(TAGS), {"transfer": Own(np.where(TAGS == 1, UNLABELLED, TAGS))}, kind="tag"),
        task(Own(GRADES), {"transfer": Own(np.array([np.nan] * 3, np.float32))}, kind="regress", classes=("grade",)),
    ],
)
def test_what_is_sound_passes(made: Task) -> None:
    check_task(made, "own")


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (task(Plain()), "Plain is no split of texts: padding, vocabulary, lengths and encoded are needed"),
        (
            task(Own(tokens=np.where(TOKENS == 9, 10, TOKENS))),
            r"from 3 to 10 in the sample c, but the vocab.* 10",
        ),
        (task(Own(tokens=TOKENS[:, :3])), r"read gave \(1, 3\) of int64 for one sample, expected \(1, 4\) of int64"),
        (task(Own(tokens=TOKENS.astype(np.float32))), r"of float32 for one sample, expected \(1, 4\) of int64"),
        (task(Own(vocabulary=9)), "9 token ids, but the task's inputs have 10"),
        (task(Own(padding=10)), "the padding id is 10, but there are 10"),
        (task(Own(lengths=np.array([2, 0, 4]))), r"a length in 1\.\.4"),
        (task(Own(lengths=np.array([1, 1, 4]))), "tokens after the end of the sample a"),
        (task(Own(lengths=np.array([2, 1]))), r"a length in 1\.\.4 for each of 3"),
        (task(Own(np.array([0, 1, UNLABELLED]))), r"labels -1\.\.1"),
        (task(Own(TAGS)), r"expected targets \(N,\) of whole numbers, got \(3, 4\)"),
        (task(Own(TAGS[:, :3]), kind="tag"), r"expected targets \(N, 4\)"),
        (task(Own(np.full((3, 4), IGNORED)), kind="tag"), "no word has a tag"),
        (task(Own(np.where(TAGS >= 0, 1, TAGS)), kind="tag"), "every word is of the class y"),
        (task(Own(), kind="regress", classes=("grade",)), r"expected targets \(N,\) of float32, got \(3,\) of int64"),
        (task(Own(GRADES), kind="regress"), "has one name in classes"),
        (
            task(Own(GRADES * np.float32(np.nan)), kind="regress", classes=("grade",)),
            "NaN or infinity among",
        ),
        (task(Own(), augment=Augment(flip=True)), "augment changes pixels, and these are texts"),
        (task(Own(), input_shape=(4,)), r"\(C, H, W\), or \(L, V\) of texts"),
        (task(Own(), carried={"a/b": Path(__file__)}), "under a plain name"),
        (task(Own(), carried={"b": Path("nowhere")}), "expected a file to carry"),
        (task(Own(), carried={"inputs.npy": Path(__file__)}), "is the name of a file that is written beside it"),
        (task(Own(), carried={"model.xml": Path(__file__)}), "is the name of a file that is written beside it"),
    ],
)
def test_what_is_not_is_told(made: Task, told: str) -> None:
    with pytest.raises(DataError, match=told):
        check_task(made, "own")


def test_images_can_not_be_tagged() -> None:
    pixels = Plain(tokens=np.zeros((3, 1, 2, 2), np.float32))
    check_task(task(pixels, input_shape=(1, 2, 2)), "own")
    with pytest.raises(DataError, match="only tokens of texts can be tagged"):
        check_task(replace(task(pixels, input_shape=(1, 2, 2)), kind="tag"), "own")
