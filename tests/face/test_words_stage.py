"""The stage that prunes a vocabulary, and whether net and tokenizer speak of the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.artifact import Artifact
from edgewise.compress.config import PruneVocabulary
from edgewise.compress.saved import Description, load_model, save_model
from edgewise.compress.vocabulary import VocabularyPruned
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import Bert, BiLstm, HuggingFace
from edgewise.models.tasks.load import load_task
from edgewise.recipe import Recipe
from edgewise.stages import shrink
from edgewise.stages.rehearse import rehearse
from edgewise.stages.words import check_reads
from edgewise.stages.work import Work

# ids 5 to 10
PIECES = "good bad film plot never seen"
TRAIN = "sentence\tlabel\ngood film\t1\nbad film\t0\ngood plot\t1\nbad plot\t0\n"
TEST = "sentence\tlabel\ngood seen plot\t1\nbad film\t0\n"


def recipe(folder: Path, tokenizer: Path, model: Any, **stage: Any) -> Recipe:
    (folder / "train.tsv").write_text(TRAIN)
    (folder / "test.tsv").write_text(TEST)
    task = {"kind": "text", "train": folder / "train.tsv", "test": folder / "test.tsv", "tokenizer": tokenizer}
    return Recipe.model_validate(
        {
            "name": "words",
            "task": {**task, "max_length": 8},
            "teacher": {"model": model, "train": {"epochs": 1}},
            "stages": [{"kind": "prune_vocabulary", **stage}],
            "deploy": {"targets": [{"runtime": "onnxruntime", "precisions": ["float32"]}]},
        }
    )


@pytest.mark.parametrize(
    "config", [Bert(layers=1, width=8, heads=2), BiLstm(embedding=4, hidden=3)], ids=["bert", "lstm"]
)
def test_what_the_texts_use_is_kept(config: Any, tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    asked = recipe(tmp_path, word_pieces(PIECES), config.model_dump())
    task = load_task(asked.task)
    rehearse(asked, task)
    whole = build(config, task.input_shape, 2).eval()
    save_model(whole, Description(model=config, input_shape=task.input_shape, classes=2), tmp_path / "whole")
    told: list[str] = []
    work = Work(
        name="1-prune_vocabulary",
        recipe=asked,
        config=PruneVocabulary(kind="prune_vocabulary"),
        task=lambda: task,
        parents={"model": Artifact(tmp_path / "whole", "teacher", "", "", {}, {}, {}, {}, {}, 0.0)},
        payload=tmp_path / "made",
        scratch=tmp_path,
        cache=tmp_path,
        tick=lambda *_: None,
        note=told.append,
    )
    work.payload.mkdir()
    metrics = shrink.prune_vocabulary(work)
    # Special tokens, and good, bad, film and plot; of the five test tokens "seen" is unknown now.
    assert json.loads((work.payload / "vocabulary.json").read_text()) == {"before": 11, "kept": list(range(9))}
    assert metrics["told"] == ["9 of 11 words are left; of the test texts' tokens 20.00% are now unknown ones"]
    model, description = load_model(work.payload)
    assert description.edits == (VocabularyPruned(rows=9),)
    trained = torch.from_numpy(task.splits["train"].read(np.arange(4)))
    assert torch.equal(model(trained), whole(trained))
    seen = torch.from_numpy(task.splits["test"].read(np.arange(1)))
    assert 10 in seen
    assert torch.equal(model(seen), whole(torch.where(seen == 10, 1, seen)))


def test_a_tokenizer_without_an_unknown_token_is_asked_for_one(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "good": 1, "bad": 2, "film": 3, "plot": 4, "seen": 5, "no": 6}))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[PAD]"])
    made.save(str(tmp_path / "tokenizer.json"))
    model = {"kind": "bert", "layers": 1, "width": 8, "heads": 2}
    asked = recipe(tmp_path, tmp_path / "tokenizer.json", model)
    with pytest.raises(
        ModelError, match=r"stages\[0\] .prune_vocabulary.*unknown: .*no token for what it doesn't know"
    ):
        rehearse(asked, load_task(asked.task))
    asked = recipe(tmp_path, tmp_path / "tokenizer.json", model, unknown=6)
    rehearse(asked, load_task(asked.task))


def test_another_padding_token_is_refused(tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    model = {"kind": "bert", "layers": 1, "width": 8, "heads": 2, "padding": 3}
    asked = recipe(tmp_path, word_pieces(PIECES), model)
    with pytest.raises(ModelError, match="takes token 3 for padding, and the tokenizer pads with token 0\n  next: say"):
        rehearse(asked, load_task(asked.task))


def test_another_checkpoints_tokenizer_is_refused(tmp_path: Path, word_pieces: Callable[..., Path]) -> None:
    """Ids must mean the same words; rows that are kept free may mean anything."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    folder = word_pieces(PIECES.replace("never", "[unused1]"))
    transformers.BertModel(transformers.BertConfig(vocab_size=11, **sizes)).save_pretrained(folder)
    config = HuggingFace(path=folder)
    net = build(config, (8, 11), 2)
    check_reads(config, net, 0, folder)
    check_reads(config, net, 0, word_pieces(PIECES))
    with pytest.raises(ModelError, match="token 5 is 'bad' in the task's tokenizer and 'good' in the checkpoint's own"):
        check_reads(config, net, 0, word_pieces("bad good film plot"))
