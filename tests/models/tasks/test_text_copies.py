"""New texts out of old ones: functions of the seed and the row, near words alone, nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgewise.errors import DataError
from edgewise.models.tasks.base import UNLABELLED
from edgewise.models.tasks.config import MaskWords, ReplaceWords, TextFiles
from edgewise.models.tasks.load import load_task
from edgewise.models.tasks.text.copies import make_copies
from edgewise.models.tasks.text.split import Texts
from edgewise.models.tasks.text.tokenizer import Tokenizer, read_tokenizer

WORDS = "good great fine bad awful poor film movie ##ly a 7"
ROWS = np.arange(3)
TEXTS = ["a good, bad film", "Good goodly film's 7", "movie"]


@pytest.fixture
def tokenizer(word_pieces: Callable[..., Path]) -> Tokenizer:
    return read_tokenizer(word_pieces(WORDS))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three directions: good great fine, bad awful poor, film movie; in each, the first two are nearest."""
    vectors = np.random.default_rng(0).normal(0, 0.01, (16, 4)).astype(np.float32)
    for start, count, axis in ((5, 3, 0), (8, 3, 1), (11, 2, 2)):
        vectors[start : start + count, axis] += 1
        vectors[start + 2 * (count == 3), 3] += 0.5 * (count == 3)
    save_file({"words": vectors, "other": vectors[:4]}, tmp_path / "table.safetensors")
    return tmp_path / "table.safetensors"


def replace(table: Path, **changes: object) -> ReplaceWords:
    return ReplaceWords(**{"embeddings": table, "tensor": "words", "copies": 40, "candidates": 2, **changes})


def test_words_of_one_piece_become_near_ones_and_all_else_stays(table: Path, tokenizer: Tokenizer) -> None:
    made, sources = make_copies(TEXTS, ROWS, replace(table), tokenizer)
    of = [{copy for copy, (place, _) in zip(made, sources, strict=True) if place == text} for text in range(3)]
    near = {"good": "great fine", "bad": "awful poor", "film": "movie"}
    for copy in of[0]:
        words = copy.replace(",", "").split()
        for old, new in zip(["a", "good", "bad", "film"], words, strict=True):
            assert new == old or old == "film" or new in near[old].split()
        assert copy[len("a ") + len(words[1])] == ","
    assert {copy.split()[1] for copy in of[0]} == {"good,", "great,", "fine,"}
    # two pieces, a part of a longer word, and a number stay; a capital is the word that the tokenizer makes of it
    assert of[1] == {f"{word} goodly film's 7" for word in ("great", "fine")}
    assert "film" in of[2]


def test_candidates_are_the_nearest_by_cosine(table: Path, tokenizer: Tokenizer) -> None:
    from safetensors.numpy import load_file

    vectors = load_file(table)["words"]
    whole = list(range(5, 13))
    names = WORDS.split()
    for piece in whole:
        cosine = [
            -np.inf if other == piece else vectors[piece] @ vectors[other] / np.linalg.norm(vectors[other])
            for other in whole
        ]
        expected = names[whole[int(np.argmax(cosine))] - 5]
        made, _ = make_copies([names[piece - 5]], ROWS[:1], replace(table, candidates=1, chance=1.0), tokenizer)
        assert made == [expected]


def test_how_often_a_word_is_replaced(table: Path, tokenizer: Tokenizer) -> None:
    texts = [" ".join(["good"] * 50)] * 40
    made, _ = make_copies(texts, np.arange(40), replace(table, copies=1, chance=0.4), tokenizer)
    share = np.mean([word != "good" for copy in made for word in copy.split()])
    assert abs(share - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 2000)


@pytest.mark.parametrize("kind", ["mask", "replace"])
def test_copies_depend_on_seed_and_row_alone(kind: str, table: Path, tokenizer: Tokenizer) -> None:
    def config(seed: int) -> ReplaceWords | MaskWords:
        return replace(table, seed=seed) if kind == "replace" else MaskWords(copies=20, seed=seed)

    made, sources = make_copies(TEXTS, ROWS, config(1), tokenizer)
    again, _ = make_copies(TEXTS, ROWS, config(1), tokenizer)
    alone, _ = make_copies(TEXTS[1:2], ROWS[1:2], config(1), tokenizer)
    other, _ = make_copies(TEXTS, ROWS, config(2), tokenizer)
    assert made == again
    assert alone == [copy for copy, (place, _) in zip(made, sources, strict=True) if place == 1]
    assert made != other
    for place, text in enumerate(TEXTS):
        mine = [copy for copy, (source, _) in zip(made, sources, strict=True) if source == place]
        assert len(set(mine)) == len(mine)
        assert text not in mine


def test_masked_words_and_short_texts_by_their_chances(tokenizer: Tokenizer) -> None:
    texts = [" ".join(f"w{place}" for place in range(30))] * 400
    made, _ = make_copies(texts, np.arange(400), MaskWords(copies=1), tokenizer)
    short = [copy for copy in made if len(copy.split()) < 30]
    assert {len(copy.split()) for copy in short} == {1, 2, 3, 4, 5}
    assert abs(len(short) - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)
    whole = [copy.split() for copy in made if len(copy.split()) == 30]
    masked = np.mean([word == "[MASK]" for words in whole for word in words])
    assert abs(masked - 0.1) < 4 * np.sqrt(0.09 / (30 * len(whole)))
    for words in whole:
        assert all(word in ("[MASK]", f"w{place}") for place, word in enumerate(words))
    for copy in short:
        known = [int(word[1:]) for word in copy.split() if word != "[MASK]"]
        assert known == sorted(known)


def test_of_pairs_one_side_changes_then_the_other_then_both(table: Path, tokenizer: Tokenizer) -> None:
    pair = ("good good good", "bad bad bad")
    made, sources = make_copies([pair], ROWS[:1], replace(table, copies=30, chance=1.0), tokenizer)
    for (first, second), (_, number) in zip(made, sources, strict=True):
        changed = (first != pair[0], second != pair[1])
        assert changed == ((True, False), (False, True), (True, True))[number % 3]


def files(tmp_path: Path, tokenizer: Tokenizer, **changes: object) -> TextFiles:
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na good film\t1\na bad film\t0\n")
    return TextFiles(
        **{"train": tmp_path / "a.tsv", "test": tmp_path / "a.tsv", "tokenizer": tokenizer.path, **changes}
    )


def test_a_transfer_split_has_the_originals_and_copies(table: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = load_task(files(tmp_path, tokenizer, augment=replace(table, copies=3)))
    train, found = task.splits["train"], task.splits["transfer"]
    assert isinstance(found, Texts)
    assert found.ids[:2] == train.ids
    assert found.targets[:2].tolist() == train.targets.tolist()
    assert len(found.ids) > 2
    assert set(found.targets[2:].tolist()) == {UNLABELLED}
    assert all(name.split("~")[0] in train.ids for name in found.ids[2:])
    assert task.notes[0].startswith(f"transfer: 2 texts and {len(found.ids) - 2} made of them")

    (tmp_path / "b.tsv").write_text("sentence\nmovie\n")
    task = load_task(files(tmp_path, tokenizer, transfer=tmp_path / "b.tsv", augment=replace(table, copies=40)))
    found = task.splits["transfer"]
    assert isinstance(found, Texts)
    assert found.ids[0] == "transfer-00000"
    assert [found.texts[0], "film" in found.texts, len(found.texts)] == ["movie", True, 3]  # two candidates, each once


def test_what_does_not_fit_is_told(
    table: Path, tokenizer: Tokenizer, tmp_path: Path, word_pieces: Callable[..., Path]
) -> None:
    cases: list[tuple[ReplaceWords | MaskWords, str]] = [
        (replace(table, tensor="gone"), "no tensor 'gone', but: other, words"),
        (replace(table, tensor="other"), r"expected a vector for each of 16 ids, got \(4, 4\)"),
        (replace(tmp_path / "a.tsv"), "no table of vectors can be read"),
        (replace(tmp_path / "none"), "no such file"),
    ]
    for config, told in cases:
        with pytest.raises(DataError, match=told):
            load_task(files(tmp_path, tokenizer, augment=config))
    without = read_tokenizer(word_pieces(WORDS, special="[PAD] [UNK] [CLS] [SEP]"))
    with pytest.raises(DataError, match="no mask token"):
        load_task(files(tmp_path, without, augment=MaskWords()))
