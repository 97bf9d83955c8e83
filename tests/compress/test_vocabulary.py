"""A pruned table of words against the whole one, looked up by a loop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.compress.saved import Description, load_model, save_model
from edgewise.compress.vocabulary import VocabularyPruned, prune_vocabulary, uses
from edgewise.errors import ArtifactError, ModelError
from edgewise.models.build import build
from edgewise.models.config import Bert, BiLstm, CifarResNet

WORDS, LENGTH, UNKNOWN = 40, 10, 1
SHAPE = (LENGTH, WORDS)
CONFIGS = [
    Bert(layers=1, width=16, heads=2),
    Bert(layers=1, width=16, heads=2, embedding=4),
    BiLstm(embedding=6, hidden=4),
]
USED = (4, 7, 8, 20, 39)


def counts(used: Any = USED) -> np.ndarray:
    found = np.zeros(WORDS, np.int64)
    found[list(used)] = 3
    return found


def made(config: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(config, SHAPE, 3).eval()


def table(net: Any) -> Any:
    return getattr(net.embeddings, "words", net.embeddings)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_texts_of_kept_words_have_the_same_answers(config: Any, tmp_path: Path) -> None:
    net, whole = made(config), made(config)
    gone = prune_vocabulary(net, counts(), at_least=1, special={0, 2}, unknown=UNKNOWN)
    assert gone.kept == (0, 1, 2, 4, 7, 8, 20, 39)
    assert gone.before == WORDS
    assert table(net).weight.shape[0] == 8
    generator = torch.Generator().manual_seed(0)
    kept = torch.tensor(gone.kept)[torch.randint(1, 8, (6, LENGTH), generator=generator)]
    kept[0, 4:] = 0
    assert torch.equal(net(kept), whole(kept))
    # Any text: what left is read as the unknown word.
    anything = torch.randint(1, WORDS, (6, LENGTH), generator=generator)
    read = torch.tensor([[token if token in gone.kept else UNKNOWN for token in row] for row in anything.tolist()])
    assert not torch.equal(anything, read)
    assert torch.equal(net(anything), whole(read))

    description = Description(model=config, input_shape=SHAPE, classes=3, edits=(VocabularyPruned(rows=8),))
    save_model(net, description, tmp_path)
    again, _ = load_model(tmp_path)
    assert torch.equal(again(anything), net(anything))
    save_model(net, description.model_copy(update={"edits": (VocabularyPruned(rows=99),)}), tmp_path)
    with pytest.raises(ArtifactError, match="99 rows of a table of 40"):
        load_model(tmp_path)


def test_a_pruned_table_learns_and_its_map_does_not() -> None:
    net: Any = made(CONFIGS[0])
    prune_vocabulary(net, counts(), at_least=1, special={0}, unknown=UNKNOWN)
    assert [name for name, _ in net.named_parameters() if "words" in name] == ["embeddings.words.weight"]
    net(torch.tensor([[4, 30, 31]])).square().sum().backward()
    learned = net.embeddings.words.weight.grad.abs().sum(1) > 0
    assert learned.tolist() == [False, True, True, False, False, False, False]  # 0, 1, 4, 7, …: 4, and what left


def test_uses_are_counted_over_all_texts() -> None:
    tokens = np.random.default_rng(0).integers(0, WORDS, (2500, LENGTH))
    split: Any = SimpleNamespace(ids=tuple(map(str, range(2500))), read=lambda index: tokens[index])
    expected = [int((tokens == token).sum()) for token in range(WORDS)]
    assert uses(split, WORDS).tolist() == expected
    rare = int(np.argmin(expected))
    net = made(CONFIGS[0])
    gone = prune_vocabulary(net, uses(split, WORDS), at_least=min(expected) + 1, special={0}, unknown=UNKNOWN)
    assert rare not in gone.kept or rare in (0, UNKNOWN)


def test_what_can_not_be_pruned_says_why() -> None:
    def prune(net: nn.Module, **more: Any) -> Any:
        return prune_vocabulary(net, **{"counts": counts(), "at_least": 1, "special": {0}, "unknown": UNKNOWN, **more})

    with pytest.raises(ModelError, match="one table of words, got 0"):
        prune(build(CifarResNet(depth=8, width=4), (3, 8, 8), 2))
    net = made(CONFIGS[0])
    with pytest.raises(ModelError, match="all 40 tokens are used at least 1 times"):
        prune(net, counts=np.ones(WORDS, np.int64))
    with pytest.raises(ModelError, match="ids that the model's table of 40 words doesn't"):
        prune(net, special={40})
    prune(net)
    with pytest.raises(ModelError, match="was pruned before"):
        prune(net)
    words = build(Bert(layers=1, width=16, heads=2, answers="vocabulary"), SHAPE, WORDS)
    with pytest.raises(ModelError, match="answers with words of this very vocabulary"):
        prune(words)
