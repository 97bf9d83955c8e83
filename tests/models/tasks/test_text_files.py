"""Sentences, pairs and grades from TSV and CSV files: what is read, how it is split, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.errors import DataError, EdgewiseError, RuntimeMissing
from edgewise.models.tasks.base import UNLABELLED, TextSplit
from edgewise.models.tasks.config import TextFiles
from edgewise.models.tasks.load import fingerprint, load_task
from edgewise.models.tasks.text.metrics import for_tags
from edgewise.models.tasks.text.split import Texts

WORDS = "good bad film a the very ##ly not , great"
GOOD = "sentence\tlabel\na good film\t1\nthe bad film\t0\nvery good\t1\nvery bad\t0\n"
Make = Callable[..., TextFiles]


@pytest.fixture
def make(tmp_path: Path, word_pieces: Callable[..., Path]) -> Make:
    """A config over files written from ``<split>=content``; ``train`` and ``test`` are there anyway."""

    def build(*, suffix: str = ".tsv", **changes: Any) -> TextFiles:
        files = {"train": GOOD, "test": GOOD} | {
            name: changes.pop(name) for name in ("train", "test", "val", "transfer") if name in changes
        }
        paths = {}
        for name, content in files.items():
            paths[name] = content if isinstance(content, Path) else tmp_path / f"{name}{suffix}"
            if not isinstance(content, Path):
                paths[name].write_bytes(content if isinstance(content, bytes) else content.encode())
        return TextFiles(**{"tokenizer": word_pieces(WORDS), "max_length": 8, **paths, **changes})

    return build


def split(config: TextFiles, name: str = "train") -> Texts:
    found = load_task(config).splits[name]
    assert isinstance(found, Texts)
    return found


def test_ids_are_those_of_transformers_own_tokenizer(make: Make) -> None:
    transformers = pytest.importorskip("transformers")
    config = make()
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(config.tokenizer / "tokenizer.json"), pad_token="[PAD]", model_input_names=["input_ids"]
    )
    texts = ["A good film , not bad", "goodly", "good 漢 film", "good " * 20]
    rows = "".join(f"{text}\t{number % 2}\n" for number, text in enumerate(texts))
    found = split(make(test="sentence\tlabel\n" + rows), "test")
    told = own(texts, padding="max_length", truncation=True, max_length=8)["input_ids"]
    assert found.read(np.arange(4)).tolist() == told
    assert found.lengths.tolist() == [sum(piece != 0 for piece in row) for row in told]


def test_a_task_has_its_splits_in_order_with_stable_ids(make: Make) -> None:
    task = load_task(make(val=GOOD, transfer="sentence\nnot bad\n"))
    assert {name: part.ids[0] for name, part in task.splits.items()} == {
        name: f"{name}-00000" for name in ("train", "val", "test", "transfer")
    }
    assert task.classes == ("0", "1")
    assert task.input_shape == (8, 15)
    assert task.splits["train"].targets.tolist() == [1, 0, 1, 0]
    assert task.splits["transfer"].targets.tolist() == [UNLABELLED]
    assert task.carried["tokenizer.json"].is_file()
    for part in task.splits.values():
        assert isinstance(part, TextSplit)
    some = task.splits["train"].read(np.array([3, 0]))
    assert some.dtype == np.int64
    assert some.tolist() == [[2, 10, 6, 3, 0, 0, 0, 0], [2, 8, 5, 7, 3, 0, 0, 0]]
    assert not task.notes


def test_limits_and_val_size_keep_the_rows_of_the_file(make: Make) -> None:
    rows = "sentence\tlabel\n" + "".join(
        f"{'good' if i % 2 else 'bad'} {'very ' * (i % 4)}film\t{i % 2}\n" for i in range(40)
    )
    task = load_task(make(train=rows, val_size=8, train_limit=10))
    train, val = task.splits["train"], task.splits["val"]
    assert (len(train.ids), len(val.ids)) == (10, 8)
    assert not set(train.ids) & set(val.ids)
    assert all(name.startswith("train-") for name in (*train.ids, *val.ids))
    for part in (train, val):
        assert [int(name[-5:]) % 2 for name in part.ids] == part.targets.tolist()
        assert np.ptp(np.bincount(part.targets)) == 0


@pytest.mark.parametrize(
    ("train", "labels", "classes", "targets"),
    [
        ("good\tyes\nbad\tno\n", None, ("no", "yes"), [1, 0]),
        ("good\t10\nbad\t9\n", None, ("9", "10"), [1, 0]),  # numbers are sorted as numbers
        ("good\t1\nbad\t0\n", ("negative", "positive"), ("negative", "positive"), [1, 0]),
        ("good\tpositive\nbad\tnegative\n", ("negative", "positive"), ("negative", "positive"), [1, 0]),
        ("good\t2\nbad\t1\n", (2, 1), ("2", "1"), [0, 1]),  # names that are numbers are names
    ],
)
def test_labels_are_words_or_numbers(
    make: Make, train: str, labels: tuple[str, ...] | None, classes: tuple[str, ...], targets: list[int]
) -> None:
    text = "sentence\tlabel\n" + train
    task = load_task(make(train=text, test=text, labels=labels))
    assert task.classes == classes
    assert task.splits["train"].targets.tolist() == targets


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbfsentence\tlabel\r\ngood "film\t1\r\nbad film"\t0\r\n',
        b'label\tid\tsentence\n1\tx\tgood "film\n0\ty\tbad film"\n\n\n',
        b'sentence\tlabel\rgood "film\t1\rbad film"\t0',
    ],
    ids=["bom and crlf", "other columns", "old mac"],
)
def test_every_kind_of_line_end_is_read_and_quotes_are_letters(make: Make, content: bytes) -> None:
    found = split(make(train=content))
    assert list(found.texts) == ['good "film', 'bad film"']
    assert found.targets.tolist() == [1, 0]


def test_a_csv_has_quotes_and_lines_inside_cells(make: Make) -> None:
    content = 'sentence,label\n"good, ""very"" good",1\n"bad\nfilm",0\n'
    found = split(make(suffix=".csv", train=content, test=content))
    assert list(found.texts) == ['good, "very" good', "bad\nfilm"]


def test_a_transfer_file_of_plain_lines(make: Make, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("good\tfilm\nlabel\n")
    found = split(make(transfer=tmp_path / "more.txt"), "transfer")
    assert list(found.texts) == ["good\tfilm", "label"]
    assert found.targets.tolist() == [UNLABELLED] * 2


def test_transfer_labels_may_be_empty(make: Make) -> None:
    found = split(make(transfer="sentence\tlabel\ngood\t1\nbad\t\n"), "transfer")
    assert found.targets.tolist() == [1, UNLABELLED]


def test_pairs_are_joined_by_the_tokenizer(make: Make) -> None:
    rows = "a\tb\tlabel\ngood film\tbad film\t1\nvery good\tgood\t0\n"
    found = split(make(train=rows, test=rows, text=("a", "b")))
    assert found.read(np.array([1])).tolist() == [[2, 10, 5, 3, 5, 3, 0, 0]]


def test_numbers_are_graded_and_correlated(make: Make) -> None:
    rows = "sentence\tlabel\ngood\t4.5\nbad\t0.5\nvery good\t3\n"
    task = load_task(make(train=rows, test=rows, transfer="sentence\tlabel\na\t\n", regress=True))
    targets = task.splits["test"].targets
    assert (task.kind, task.classes, targets.dtype) == ("regress", ("label",), np.float32)
    assert np.isnan(task.splits["transfer"].targets).all()
    answers = np.array([[4.5], [2.5], [99.0]], np.float32)
    assert task.score(answers, targets).tolist() == [1.0, 0.5, 0.0]
    # Pearson's r by its definition, Spearman's rho as that of ranks
    x, y = answers[:, 0].astype(float), targets.astype(float)
    for name, (p, q) in {"pearson": (x, y), "spearman": (x.argsort().argsort(), y.argsort().argsort())}.items():
        p, q = p - p.mean(), q - q.mean()
        assert task.others[name](answers, targets) == pytest.approx((p @ q) / np.sqrt((p @ p) * (q @ q)))
    assert task.others["pearson"](np.ones((3, 1), np.float32), targets) == 0.0


def test_f1_and_matthews_of_counts_by_hand(make: Make) -> None:
    task = load_task(make())
    answers = np.array([[0, 1], [0, 1], [0, 1], [1, 0]], np.float32)  # against 1 0 1 0: two hits, one false alarm
    targets = task.splits["train"].targets
    assert task.others["f1"](answers, targets) == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert task.others["matthews"](answers, targets) == pytest.approx(2 * 1 / np.sqrt(3 * 2 * 2 * 1))


def test_what_the_tokenizer_does_to_texts_is_told(make: Make) -> None:
    rows = "sentence\tlabel\n" + "good " * 9 + "\t1\n漢 字\t0\ngood 漢\t0\n"
    cut, lost, share = load_task(make(train=rows)).notes
    assert cut.startswith("train: 1 of 3 texts are longer than max_length 8")
    assert "train.tsv:2" in cut
    assert lost.startswith("train: of 1 of 3 texts the tokenizer knows no piece")
    assert "train.tsv:3" in lost
    assert "train: 30.0% of all pieces are unknown" in share  # 3 of 6 + 2 + 2


def test_transfer_texts_are_limited_evenly_and_labels_play_no_part(make: Make) -> None:
    rows = "sentence\tlabel\n" + "".join(f"good film {'bad ' * n}\t{int(n < 5)}\n" for n in range(6))
    transfer = load_task(make(transfer=rows, transfer_limit=3)).splits["transfer"]
    assert transfer.ids == ("transfer-00000", "transfer-00002", "transfer-00004")
    for changes in ({"transfer": rows, "transfer_limit": 7}, {"transfer_limit": 1}):
        with pytest.raises(DataError, match="transfer_limit is"):
            load_task(make(**changes))


def test_a_label_without_texts_is_told(make: Make) -> None:
    assert any("no text has the label 2" in note for note in load_task(make(labels=("0", "1", "2"))).notes)


def test_another_tokenizer_reads_the_same_samples(make: Make, word_pieces: Callable[..., Path]) -> None:
    found = split(make())
    other = found.encoded(word_pieces("film the bad good a very", special="[UNK] [CLS] [PAD] [SEP]"))
    assert other.padding == 2
    assert other.ids == found.ids
    assert other.read(np.array([1, 2])).tolist() == [[1, 5, 6, 4, 3, 2, 2, 2], [1, 9, 7, 3, 2, 2, 2, 2]]
    with pytest.raises(DataError, match="no such tokenizer"):
        found.encoded(Path("nowhere"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": "text\tlabel\ngood\t1\n"}, r"train\.tsv: no column 'sentence'.*'text', 'label'"),
        ({"train": "sentence\tlabel\ngood\t1\nbad\n"}, r"train\.tsv:3: expected 2 cells with a tab.*got 1"),
        ({"train": "sentence\tlabel\ngood\t1\nbad\tfilm\t0\n"}, r"train\.tsv:3: expected 2 cells.*got 3"),
        ({"train": "sentence\tlabel\ngood\t1\n \t0\n"}, r"train\.tsv:3: the text is empty"),
        ({"train": "sentence\tlabel\ngood\t1\n\u200b\t0\n"}, r"train\.tsv:3: the tokenizer leaves nothing"),
        ({"train": "sentence\tlabel\ngood\t1\nbad\t1\n"}, r"at least 2 classes, got \['1'\]"),
        ({"train": ""}, r"train\.tsv: the file is empty"),
        ({"train": "sentence\tlabel\n"}, r"train\.tsv: the file has no samples"),
        ({"train": "label\tlabel\na\tb\n"}, r"train\.tsv:1: two columns have the same name"),
        ({"train": b"sentence\tlabel\ngood\t1\ncaf\xe9\t0\n"}, r"train\.tsv:3: not UTF-8: byte 0xe9"),
        ({"train": b"sentence\tlabel\ngo\0od\t1\n"}, r"train\.tsv:2: a zero byte"),
        ({"test": "sentence\tlabel\ngood\t1\nbad\t2\n"}, r"test\.tsv:3: the label '2' is not among the classes: 0, 1"),
        ({"test": "sentence\tlabel\ngood\t\nbad\t0\n"}, r"test\.tsv:2: the label is empty"),
        ({"labels": ("x", "y", "x")}, "two classes have the same name"),
        ({"train": Path("gone.tsv")}, r"gone\.tsv: no such file"),
        ({"max_length": 4, "text": ("sentence", "sentence")}, "special tokens alone take 3"),
        ({"val": GOOD, "val_size": 2}, "val_size is set, but there is a val file"),
        ({"val_size": 3}, "val_size 3 leaves too little of 4"),
        ({"train_limit": 9}, "train_limit is 9, but there are 4"),
        ({"regress": True, "train": "sentence\tlabel\ngood\tx\n"}, r"train\.tsv:2: expected a number, got 'x'"),
        ({"regress": True, "train": "sentence\tlabel\ngood\tinf\n"}, r"train\.tsv:2: expected a number, got 'inf'"),
        ({"regress": True, "train": "sentence\tlabel\ngood\t1\nbad\t1\n"}, "every label is 1"),
        ({"train": "sentence\tlabel\n" + "".join(f"good\tclass {n}\n" for n in range(9))}, "9 different labels on 9"),
    ],
)
def test_a_mistake_is_told_with_its_place(make: Make, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_task(make(**changes))


def test_a_pair_with_one_text_is_refused(make: Make) -> None:
    rows = "a\tb\tlabel\ngood film\tbad film\t1\nvery good\t\t0\n"
    with pytest.raises(DataError, match=r"train\.tsv:3: a pair needs two texts, and 'b' is empty"):
        load_task(make(train=rows, text=("a", "b")))


def test_broken_quotes_of_a_csv_are_told(make: Make) -> None:
    with pytest.raises(DataError, match=r"train\.csv:3: quotes that don't match"):
        load_task(make(suffix=".csv", train='sentence,label\ngood,1\n"bad" film,0\n', test="sentence,label\ngood,1\n"))


def test_what_is_no_tokenizer_is_told(make: Make, word_pieces: Callable[..., Path], tmp_path: Path) -> None:
    for content in ("{", "{}", "[1]", '{"model": {"type": "Nothing"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
            load_task(make(tokenizer=tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer\.json in the folder"):
        load_task(make(tokenizer=tmp_path))
    with pytest.raises(DataError, match="has no padding token"):
        load_task(make(tokenizer=word_pieces(WORDS, special="[UNK] [CLS] [SEP]")))


def test_a_missing_extra_is_said_with_the_command(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RuntimeMissing, match="need the package tokenizers") as told:
        load_task(config)
    assert told.value.hint == "pip install 'edgewise[text]'"
    monkeypatch.setitem(sys.modules, "seqeval.metrics.sequence_labeling", None)
    with pytest.raises(RuntimeMissing, match="needs the package seqeval"):
        for_tags(("O", "B-X"))["span_f1"](np.zeros((1, 2, 2), np.float32), np.zeros((1, 2), np.int64))


def test_the_fingerprint_is_of_the_contents_alone(make: Make, tmp_path: Path) -> None:
    config = make()
    first = fingerprint(config)
    moved = tmp_path / "elsewhere.tsv"
    config.train.rename(moved)
    assert fingerprint(config.model_copy(update={"train": moved})) == first
    assert fingerprint(config.model_copy(update={"train": moved, "val": config.test})) != first
    moved.write_text(GOOD.replace("a good", "a bad"))
    assert fingerprint(config.model_copy(update={"train": moved})) != first
    with pytest.raises(EdgewiseError, match="can't be read"):
        fingerprint(config)


def test_sst2_as_it_lies(make: Make, real_data: Callable[[str], Path]) -> None:
    folder = real_data("sst2/train.tsv").parent
    task = load_task(make(train=folder / "train.tsv", val=folder / "dev.tsv", test=folder / "test.tsv", max_length=64))
    assert {name: len(part.ids) for name, part in task.splits.items()} == {"train": 6920, "val": 872, "test": 1821}
    assert np.bincount(task.splits["test"].targets).tolist() == [912, 909]
