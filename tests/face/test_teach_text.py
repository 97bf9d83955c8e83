"""Teaching on texts, as the stages do it: a transfer split without labels, a teacher with its own tokenizer, and what
the rehearsal refuses of either."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.artifact import Artifact
from edgewise.compress.saved import load_model
from edgewise.errors import EdgewiseError
from edgewise.models.tasks.load import load_task
from edgewise.plan import wanted_files
from edgewise.recipe import Recipe
from edgewise.stages import teach
from edgewise.stages.rehearse import rehearse
from edgewise.stages.work import Work

# Ids 5 to 10, and in the teacher's tokenizer other ones, up to 13.
PIECES = "good bad film plot never seen"
OTHERS = "a b c plot film bad good never seen"
TRAIN = "sentence\tlabel\n" + "good film\t1\nbad film\t0\ngood plot\t1\nbad plot never seen\t0\n" * 4
PHRASES = "sentence\ngood\nbad\nnever\nseen film\n"
FIT = {"epochs": 2, "batch_size": 2, "optimizer": {"kind": "adamw", "lr": 0.01, "decay": "matrices"}}
BERT = {"kind": "bert", "layers": 1, "width": 8, "heads": 2, "dropout": 0.0}
KD = [{"kind": "kd", "temperature": 1.0}]


def recipe(folder: Path, tokenizer: Path, stage: Mapping[str, Any], **changed: Any) -> Recipe:
    files = {"train": TRAIN, "test": "".join(TRAIN.splitlines(keepends=True)[:3]), "transfer": PHRASES}
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text)
    task = {"kind": "text", "tokenizer": tokenizer, "max_length": 8}
    task |= {name: folder / f"{name}.tsv" for name in files}
    told = {
        "name": "words",
        "task": task,
        "teacher": {"model": BERT, "train": FIT},
        "student": {"model": BERT},
        "stages": [{"kind": "distill", "fit": FIT, "cross_entropy": 0.0, "losses": KD, **stage}],
        "deploy": {"targets": [{"runtime": "onnxruntime", "precisions": ["float32"]}]},
    }
    for name, value in changed.items():
        told[name] = {**told[name], **value} if isinstance(value, dict) else value  # type: ignore[dict-item]
    return Recipe.model_validate(told)


def made(asked: Recipe, name: str, config: Any, parents: Mapping[str, Artifact], folder: Path) -> Artifact:
    """What the stage ``name`` leaves in ``folder``."""
    task = load_task(asked.task)
    payload = folder / name
    payload.mkdir()
    scratch = folder / f"{name}.scratch"
    work = Work(
        name=name,
        recipe=asked,
        config=config,
        task=lambda: task,
        parents=parents,
        payload=payload,
        scratch=scratch,
        cache=folder / "cache",
        tick=lambda *_: None,
        note=lambda line: None,
    )
    metrics = (teach.distill if name == "1-distill" else teach.source)(work)
    return Artifact(payload, name, "", "", {}, {}, {}, metrics, {}, 0.0)


def taught(asked: Recipe, folder: Path) -> tuple[Artifact, Artifact, Artifact]:
    """Teacher, student as it started, student as it ended."""
    teacher = made(asked, "teacher", asked.teacher, {}, folder)
    student = made(asked, "student", asked.student, {}, folder)
    parents = {"model": student, "teacher": teacher}
    return teacher, student, made(asked, "1-distill", asked.stages[0], parents, folder)


def test_texts_without_labels_teach(tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    asked = recipe(tmp_path, word_pieces(PIECES), {"split": "transfer", "losses": [*KD, {"kind": "hidden_states"}]})
    rehearse(asked, load_task(asked.task))
    _, start, end = taught(asked, tmp_path)
    assert end.metrics["samples"] == 2  # of the test split
    before, after = (load_model(one.folder)[0].state_dict() for one in (start, end))
    assert not torch.equal(before["head.weight"], after["head.weight"])
    (kept,) = (tmp_path / "cache").glob("teacher-*")
    assert np.load(kept / "logits.npy").shape == (1, 4, 2)
    assert np.load(kept / "feature-0.npy").shape == (1, 4, 8, 8)


def test_a_teacher_reads_its_own_tokens(tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    own = word_pieces(OTHERS)
    asked = recipe(tmp_path, word_pieces(PIECES), {}, teacher={"tokenizer": own})
    task = load_task(asked.task)
    rehearse(asked, task)
    teacher, _, end = taught(asked, tmp_path)
    model, description = load_model(teacher.folder)
    assert description.input_shape == (8, 14)
    assert load_model(end.folder)[1].input_shape == task.input_shape == (8, 11)
    # Its answers on the test split are those to its own tokens.
    texts = task.splits["test"].encoded(own).read(np.arange(2))  # type: ignore[attr-defined]
    with torch.no_grad():
        wanted = model(torch.from_numpy(texts)).numpy()
    np.testing.assert_allclose(np.load(teacher.folder / "answers.npy"), wanted, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "labels that nobody gave": ({"split": "transfer", "cross_entropy": 0.1}, {}, "cross_entropy would read labels"),
    "a teacher that errs": ({"split": "transfer", "teacher_wrong": "drop"}, {}, "teacher_wrong would read labels"),
    "layers of other tokens": ({"losses": [{"kind": "hidden_cosine"}]}, {"own": True}, "followed by hidden_cosine"),
    "a map of tokens": ({"losses": [{"kind": "fitnet", "layers": ["blocks.0"]}]}, {}, "can't tell tokens from padding"),
    "maps": ({"losses": [{"kind": "simkd"}]}, {}, "texts"),
    "two classes": ({"losses": [{"kind": "dkd"}]}, {}, "at least 3 classes"),
    "two classes of another's tokens": ({"losses": [{"kind": "dkd"}]}, {"own": True}, "at least 3 classes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_before_anything_is_trained(what: str, tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    stage, more, reason = REFUSED[what]
    changed = {"teacher": {"tokenizer": word_pieces(OTHERS)}} if more else {}
    asked = recipe(tmp_path, word_pieces(PIECES), stage, **changed)
    with pytest.raises(EdgewiseError, match=reason) as caught:
        rehearse(asked, load_task(asked.task))
    assert "stages[0]" in caught.value.where


TOKENS = {"model": {**BERT, "answers": "token"}}
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "tags for a text": ({}, {"teacher": TOKENS, "student": TOKENS}, r"one answer a text.*gives \(8, 2\)"),
    "classes for a number": ({}, {"task": {"regress": True}}, "at least 2 classes, got 1"),
    "a number is not smoothed": (
        {"losses": [{"kind": "regression"}], "fit": {**FIT, "label_smoothing": 0.1}},
        {"task": {"regress": True}},
        "can't be smoothed",
    ),
    "a number is not wrong": (
        {"losses": [{"kind": "logit_mse"}], "teacher_wrong": "drop"},
        {"task": {"regress": True}},
        "answers are numbers",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_the_task_is_refused(what: str, tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    stage, changed, reason = WRONG[what]
    asked = recipe(tmp_path, word_pieces(PIECES), stage, **changed)
    with pytest.raises(EdgewiseError, match=reason):
        rehearse(asked, load_task(asked.task))


def test_the_other_teachers_are_looked_at_too(tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    others = [{"model": {**BERT, "padding": 3}, "train": FIT}]
    asked = recipe(tmp_path, word_pieces(PIECES), {"ensemble": {"teachers": others}})
    with pytest.raises(EdgewiseError, match=r"ensemble\.teachers\[0\].*takes token 3 for padding"):
        rehearse(asked, load_task(asked.task))


def test_a_checkpoint_without_a_head_must_learn_first(tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    settings = transformers.BertConfig(vocab_size=11, **sizes)
    for kind, ready in ((transformers.BertModel, False), (transformers.BertForSequenceClassification, True)):
        folder = tmp_path / kind.__name__
        kind(settings).save_pretrained(folder)
        teacher = {"model": {"kind": "huggingface", "path": folder}, "train": None}
        asked = recipe(tmp_path, word_pieces(PIECES), {}, teacher=teacher)
        if ready:
            rehearse(asked, load_task(asked.task))
        else:
            with pytest.raises(EdgewiseError, match="no head for the task's labels"):
                rehearse(asked, load_task(asked.task))


def test_inputs_are_ids_where_openvino_is_asked_what_it_quantizes(
    tmp_path: Path, word_pieces: Callable[..., Path]
) -> None:
    deploy = {"targets": [{"runtime": "openvino", "precisions": ["int8_dynamic"]}]}
    asked = recipe(tmp_path, word_pieces(PIECES), {}, deploy=deploy)
    rehearse(asked, load_task(asked.task))


@pytest.mark.parametrize("own", [False, True])
def test_only_files_that_read_the_task_s_tokens_are_made(
    own: bool, tmp_path: Path, word_pieces: Callable[..., Path]
) -> None:
    teacher = {"tokenizer": word_pieces(OTHERS)} if own else {}
    asked = recipe(tmp_path, word_pieces(PIECES), {}, teacher=teacher)
    files = wanted_files(asked, "teacher", "1-distill", None)
    assert {file.against for file in files} == ({"1-distill"} if own else {"teacher", "1-distill"})
    assert len({file.name for file in files}) == len(files)
    reference = "onnxruntime-float32" if own else "onnxruntime-float32-teacher"
    assert {file.reference for file in files} == {reference}
    assert [file.exports for file in files if file.name == reference] == [("student",) if own else ("teacher",)]


@pytest.mark.parametrize(
    "stage",
    [{"kind": "inherit"}, {"kind": "online"}, {"kind": "quantize", "fit": FIT, "teacher": "recipe"}],
    ids=lambda stage: stage["kind"],
)
def test_stages_that_need_the_teacher_s_tokens_say_so(
    stage: dict[str, Any], tmp_path: Path, word_pieces: Callable[..., Path]
) -> None:
    own = {"tokenizer": word_pieces(OTHERS)}
    asked = recipe(tmp_path, word_pieces(PIECES), {}, teacher=own, stages=[stage])
    with pytest.raises(EdgewiseError, match="its own tokenizer"):
        rehearse(asked, load_task(asked.task))


@pytest.mark.parametrize("stage", [{"kind": "data_free"}, {"kind": "self_distill"}], ids=lambda stage: stage["kind"])
def test_what_is_made_for_images_says_so(
    stage: dict[str, Any], tmp_path: Path, word_pieces: Callable[..., Path]
) -> None:
    asked = recipe(tmp_path, word_pieces(PIECES), {}, stages=[stage])
    with pytest.raises(EdgewiseError, match="images"):
        rehearse(asked, load_task(asked.task))


def test_a_transfer_split_must_be_there(tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    asked = recipe(tmp_path, word_pieces(PIECES), {"split": "transfer"})
    task = load_task(asked.task)
    without = replace(task, splits={name: split for name, split in task.splits.items() if name != "transfer"})
    with pytest.raises(EdgewiseError, match="no transfer split"):
        rehearse(asked, without)
