"""Encoders pruned: heads, hidden units and whole blocks leave, and what is left computes what it computed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.compress.config import DropBlocks, Prune
from edgewise.compress.macs import count
from edgewise.compress.pruning.blocks import drop_blocks, influence, mean_loss
from edgewise.compress.pruning.identity import BlocksDropped
from edgewise.compress.pruning.prune import prune
from edgewise.compress.resize import survey
from edgewise.compress.saved import ChannelPlan, Description, load_model, save_model
from edgewise.models.build import build
from edgewise.models.config import Bert, BiLstm

WORDS, LENGTH = 40, 12
SHAPE = (LENGTH, WORDS)
BERT = Bert(layers=3, width=32, heads=8, ffn=64, embedding=8, separator=3)


def made(config: Any = BERT, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    net = build(config, SHAPE, classes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def texts(rows: int = 6) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(4, WORDS, (rows, LENGTH))
    tokens[:, 5] = 3
    for row in range(rows):
        tokens[row, LENGTH - row :] = 0
    return tokens


def split(rows: int = 40, targets: Any = None) -> Any:
    tokens = texts(rows=12).repeat(rows // 12 + 1, axis=0)[:rows]
    return SimpleNamespace(
        ids=tuple(map(str, range(rows))),
        targets=np.arange(rows) % 3 if targets is None else targets,
        read=lambda index: tokens[index],
        padding=0,
    )


@pytest.mark.parametrize("criterion", ["l2", "taylor", "hessian"])
def test_half_of_a_bert_leaves_and_the_rest_is_the_same(criterion: str, tmp_path: Path) -> None:
    """Saved and loaded, it gives the same answers. That what was cut equals what was zeroed, ``prune`` itself tries."""
    net, before = made(), count(made(), SHAPE)
    config = Prune(kind="prune", macs_ratio=0.5, criterion=criterion, fit=None)
    pruned = prune(net, config, SHAPE, round_to=1, seed=0, samples=split())
    after = count(net, SHAPE)
    assert 0.4 < after.macs / before.macs <= 0.5
    changed = set(pruned.plan)
    assert any(name.endswith("mlp.fc1") for name in changed)
    assert any(name.endswith("attn.qkv") for name in changed)
    inner = (".mlp.", ".attn", "pooler", "head")  # what is added to a residual stream keeps its width
    assert all(any(part in name for part in inner) for name in changed)
    description = Description(model=BERT, input_shape=SHAPE, classes=3, edits=(ChannelPlan(plan=pruned.plan),))
    save_model(net, description, tmp_path)
    again, _ = load_model(tmp_path)
    tokens = torch.from_numpy(texts())
    assert torch.equal(again(tokens), net(tokens))
    assert survey(again) == survey(net)
    # Trailing padding is still none of its business.
    torch.testing.assert_close(net(tokens[3:4, :9]), net(tokens)[3:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", ["tags", "numbers"])
def test_gradients_of_tags_and_numbers_rank_units(targets: str) -> None:
    config = BERT.model_copy(update={"answers": "token"}) if targets == "tags" else BERT
    labels: Any = np.linspace(0, 1, 40, dtype=np.float32)
    if targets == "tags":
        labels = np.full((40, LENGTH), -100)
        labels[:, 1] = np.arange(40) % 3
    net = made(config, classes=3 if targets == "tags" else 1)
    ask = Prune(kind="prune", macs_ratio=0.7, criterion="taylor")
    prune(net, ask, SHAPE, round_to=1, seed=0, samples=split(targets=labels))
    assert count(net, SHAPE).macs <= 0.7 * count(made(config, classes=3), SHAPE).macs


@pytest.mark.parametrize("criterion", ["influence", "loss", "last"])
def test_a_block_leaves_and_its_mask_with_it(criterion: str, tmp_path: Path) -> None:
    net = made()
    config = DropBlocks(kind="drop_blocks", count=1, criterion=criterion)
    gone = drop_blocks(net, config, SHAPE, seed=0, inputs=texts(), targets=np.arange(6) % 3)
    assert len(gone.names) == 1
    assert gone.names[0] in {"blocks.0", "blocks.1", "blocks.2"}
    shorter = made(BERT.model_copy(update={"layers": 2}))
    left = [number for number in range(3) if f"blocks.{number}" not in gone.names]
    state = dict(made().state_dict())
    for place, number in enumerate(left):
        for name in list(shorter.state_dict()):
            if name.startswith(f"blocks.{place}."):
                state[name] = made().state_dict()[name.replace(f"blocks.{place}.", f"blocks.{number}.", 1)]
    shorter.load_state_dict({name: state[name] for name in shorter.state_dict()})
    tokens = torch.from_numpy(texts())
    assert torch.equal(net(tokens), shorter(tokens))
    edits = (BlocksDropped(names=gone.names),)
    save_model(net, Description(model=BERT, input_shape=SHAPE, classes=3, edits=edits), tmp_path)
    assert torch.equal(load_model(tmp_path)[0](tokens), net(tokens))


def test_influence_is_of_real_tokens_alone() -> None:
    net = made()
    tokens = texts()
    names = ["blocks.0", "blocks.1"]
    one = influence(net, names, tokens)
    each = [influence(net, names, tokens[row : row + 1, : LENGTH - row]) for row in range(6)]
    real = [LENGTH - row for row in range(6)]
    for name in names:
        expected = sum(value[name] * count for value, count in zip(each, real, strict=True)) / sum(real)
        assert one[name] == pytest.approx(expected, rel=1e-5)


def test_mean_loss_is_over_tokens_that_have_a_label() -> None:
    net = made(BERT.model_copy(update={"answers": "token"}))
    tokens, labels = texts(70 // 12 + 12), np.full((17, LENGTH), -100)
    labels[:, 1] = np.arange(17) % 3
    labels[3, 2] = 1
    with torch.no_grad():
        logs = net(torch.from_numpy(tokens)).log_softmax(-1).numpy()
    terms = [-logs[row, place, labels[row, place]] for row, place in np.argwhere(labels >= 0)]
    assert mean_loss(net, tokens, labels) == pytest.approx(float(np.mean(terms)), rel=1e-5)


def test_macs_of_encoders_by_hand() -> None:
    """Every product of one text of L tokens."""
    block = LENGTH * (32 * 96 + 32 * 32 + 2 * 32 * 64) + 2 * LENGTH * LENGTH * 32
    assert count(made(), SHAPE).macs == LENGTH * 8 * 32 + 3 * block + 32 * 32 + 32 * 3
    lstm = BiLstm(embedding=6, hidden=5, dense=7)
    assert count(made(lstm), SHAPE).macs == 2 * LENGTH * 4 * 5 * (6 + 5) + 10 * 7 + 7 * 3


def test_labels_may_be_of_any_whole_type() -> None:
    net, labels = made(), np.arange(6) % 3
    assert mean_loss(net, texts(), labels.astype(np.int32)) == mean_loss(net, texts(), labels.astype(np.int64))
