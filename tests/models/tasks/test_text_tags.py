"""Tagged words from CoNLL files: labels at the first piece of each word, scores of words, spans by seqeval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgewise.bench.stats import bootstrap_metric
from edgewise.errors import DataError
from edgewise.models.tasks.base import IGNORED, UNLABELLED
from edgewise.models.tasks.config import TaggedFiles
from edgewise.models.tasks.load import load_task
from edgewise.models.tasks.text.metrics import for_tags
from edgewise.models.tasks.text.tags import read_sentences
from edgewise.stages.work import others

SENTENCES = """-DOCSTART- -X- -X- O

Ada NNP B-PER
Lovelace NNP I-PER
saw VBD O

Paris NNP B-LOC
"""
WORDS = "ada love ##lace saw paris"
Make = Callable[..., TaggedFiles]


@pytest.fixture
def make(tmp_path: Path, word_pieces: Callable[..., Path]) -> Make:
    def build(**changes: object) -> TaggedFiles:
        files = {"train": SENTENCES, "test": SENTENCES}
        for name in ("train", "test", "transfer"):
            if name in changes:
                files[name] = str(changes.pop(name))
        paths = {name: tmp_path / f"{name}.conll" for name in files}
        for name, content in files.items():
            paths[name].write_text(content)
        return TaggedFiles(**{"tokenizer": word_pieces(WORDS), "max_length": 8, **paths, **changes})

    return build


def test_each_word_is_labelled_at_its_first_piece(make: Make) -> None:
    task = load_task(make())
    assert (task.kind, task.classes) == ("tag", ("O", "B-LOC", "B-PER", "I-PER"))
    test = task.splits["test"]
    x = IGNORED
    assert test.read(np.arange(2)).tolist() == [[2, 5, 6, 7, 8, 3, 0, 0], [2, 9, 3, 0, 0, 0, 0, 0]]
    assert test.targets.tolist() == [[x, 2, 3, x, 0, x, x, x], [x, 1, x, x, x, x, x, x]]


def test_another_tokenizer_labels_its_own_first_pieces(make: Make, word_pieces: Callable[..., Path]) -> None:
    other = load_task(make()).splits["test"].encoded(word_pieces("a ##d ##a lovelace saw paris"))  # type: ignore[attr-defined]
    x = IGNORED
    assert other.targets.tolist() == [[x, 2, x, x, 3, 0, x, x], [x, 1, x, x, x, x, x, x]]


def test_the_score_is_the_share_of_words_and_f1_is_of_spans(make: Make) -> None:
    pytest.importorskip("seqeval")
    task = load_task(make())
    targets = task.splits["test"].targets
    answers = np.zeros((2, 8, 4), np.float32)  # O everywhere, but
    answers[0, 1, 2] = answers[0, 2, 2] = answers[1, 1, 1] = 1  # B-PER B-PER O: the span of two words is missed
    assert task.score(answers, targets) == pytest.approx([2 / 3, 1.0])
    # found: Ada, Lovelace, Paris; true: Ada Lovelace, Paris; one is right
    assert task.others["span_f1"](answers, targets) == pytest.approx(2 * 1 / (3 + 2))
    answers[0, 3] = 9  # what stands at the second piece is not asked
    assert task.others["span_f1"](answers, targets) == pytest.approx(2 / 5)


def test_f1_of_spans_is_seqevals_and_so_is_its_bootstrap() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    classes, random = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), np.random.default_rng(0)
    targets = random.choice(5, (40, 12), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    targets[random.random(targets.shape) < 0.2] = IGNORED
    answers = np.eye(5, dtype=np.float32)[np.where(random.random(targets.shape) < 0.7, np.maximum(targets, 0), 0)]

    def slowly(index: np.ndarray) -> float:
        names = np.asarray(classes)
        pairs = [(targets[n], answers[n].argmax(axis=1), targets[n] != IGNORED) for n in index]
        true, given = ([names[pair[side][pair[2]]].tolist() for pair in pairs] for side in (0, 1))
        return float(seqeval.f1_score(true, given, zero_division=0))

    task = SimpleNamespace(others=for_tags(classes))
    found = others(task, answers, targets)["span_f1"]  # type: ignore[arg-type]
    expected = bootstrap_metric(slowly, 40)
    assert 0.2 < expected.value < 0.9
    assert list(found.values()) == pytest.approx([expected.value, expected.low, expected.high])
    nothing = np.zeros_like(answers)
    nothing[..., 0] = 1
    assert task.others["span_f1"](nothing, targets) == 0.0


def test_tags_without_spans_get_f1_over_words(make: Make) -> None:
    task = load_task(make(train="a\tX\nb\tY\n", test="a\tX\nb\tY\nc\tY\n"))
    answers = np.zeros((1, 8, 2), np.float32)
    answers[..., 1] = 1  # Y everywhere: F1 0 of X, 2 * 2 / (3 + 2) of Y
    assert task.others["f1_macro"](answers, task.splits["test"].targets) == pytest.approx(0.4)


def test_transfer_sentences_need_no_tags(make: Make) -> None:
    found = load_task(make(transfer="Ada\nsaw\n\nParis B-LOC\n")).splits["transfer"]
    x = IGNORED
    assert found.targets.tolist()[0] == [x, UNLABELLED, UNLABELLED, x, x, x, x, x]
    assert found.targets[1, 1] == 1


def test_words_beyond_the_limit_are_told(make: Make) -> None:
    task = load_task(make(test=SENTENCES + "\n" + "saw\tO\n" * 9))
    assert len(task.notes) == 1
    assert task.notes[0].startswith("test: 1 of 3 texts are longer than max_length 8")
    assert task.splits["test"].targets[2].tolist() == [IGNORED, 0, 0, 0, 0, 0, 0, IGNORED]


def test_blank_lines_and_document_starts_part_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("\n\na\tX Y\tO\r\n \nb O\n-DOCSTART-\tO\nc\tO\n\n")
    found = read_sentences(path)
    assert found.words == [["a"], ["b"], ["c"]]
    assert found.lines == [3, 5, 7]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": "a\tO\nword\n"}, r"train\.conll:2: expected a word and its tag, got 'word'"),
        ({"train": "a\tO\n\tB-X\n"}, r"train\.conll:2: a tag without a word"),
        ({"train": "a\tO\nb\t\n"}, r"train\.conll:2: expected a word and its tag"),
        ({"train": "\n\n"}, "no sentence"),
        ({"train": "a\tO\n"}, r"expected at least 2 tags, got \['O'\]"),
        ({"test": "Ada\tB-PER\nsaw\tB-ORG\n"}, r"test\.conll:2: the tag 'B-ORG' of 'saw' is not among the classes"),
        ({"labels": ("O", "O")}, "two tags have the same name"),
    ],
)
def test_a_mistake_is_told_with_its_place(make: Make, changes: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_task(make(**changes))
