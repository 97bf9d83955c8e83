"""Encoders of texts to INT8: ranges that padding can't move, close answers, and every option of the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.compress.agreement import Samples, answers, change
from edgewise.compress.config import Quantize
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config, quantizers
from edgewise.compress.quantization.qad import quantize
from edgewise.compress.quantization.strip import strip_quantizers
from edgewise.compress.saved import Description, FakeQuantized, load_model, save_model
from edgewise.compress.sensitivity import quantization_sensitivity
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import Bert, BiLstm
from edgewise.models.tasks.base import IGNORED, TextSplit

LENGTH, WORDS = 16, 40
SHAPE = (LENGTH, WORDS)
BERT = Bert(layers=2, width=32, heads=4, dropout=0.0)


class Sentences:
    padding, vocabulary = 0, WORDS

    def __init__(self, samples: int = 48, tags: bool = False) -> None:
        random = np.random.default_rng(0)
        self.lengths = random.integers(2, LENGTH + 1, samples)
        real = np.arange(LENGTH) < self.lengths[:, None]
        self.tokens = np.where(real, random.integers(1, WORDS, (samples, LENGTH)), 0)
        self.targets: np.ndarray = (self.tokens.sum(1) / self.lengths > WORDS / 2).astype(np.int64)
        if tags:
            self.targets = np.where(real, (self.tokens > WORDS // 2).astype(np.int64), IGNORED)
        self.ids = tuple(map(str, range(samples)))

    def read(self, index: np.ndarray) -> np.ndarray:
        tokens: np.ndarray = self.tokens[index]
        return tokens

    def encoded(self, tokenizer: Path) -> TextSplit:
        raise AssertionError(tokenizer)


def bert(config: Bert = BERT) -> nn.Module:
    """As alive as a trained one: norms that scale, biases that shift."""
    torch.manual_seed(0)
    model = build(config, SHAPE, 2).eval()
    for name, parameter in model.named_parameters():
        spread = 0.2 if parameter.dim() > 1 else 0.1
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=spread)
    return model


def stage(**settings: Any) -> Quantize:
    return Quantize.model_validate({"kind": "quantize", **settings})


def learned(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if "hook" in name and value.is_floating_point()}


@pytest.fixture(scope="module")
def split() -> Sentences:
    return Sentences()


@pytest.mark.parametrize(("ranges", "least"), [("mse", 25), ("mean_min_max", 22)])
def test_answers_stay_close_and_words_stay_in_float(split: Sentences, ranges: str, least: float) -> None:
    model = bert()
    quantized, history = quantize(model, split, stage(ranges=ranges), calibration=split.tokens, seed=0)
    held = Samples(split, np.arange(48))
    assert change(answers(model, held), answers(quantized, held)).sqnr_db >= least
    assert not history
    found = quantizers(quantized)
    assert not any("embedding" in name for name in found)
    # The four products of each block by weights, the pooler's and the head's.
    assert len([name for name in found if name.endswith("__1.0")]) == 2 * 4 + 2
    specs: list[Any] = [q._qspec for q in found.values() if not q._narrow_range]
    assert all(tuple(spec.scale_shape) == (1,) for spec in specs)


def test_a_longer_padding_moves_no_range_and_no_bias(split: Sentences) -> None:
    wide = np.concatenate([split.tokens, np.zeros((48, 8), np.int64)], axis=1)
    short, long = (
        insert_quantizers(bert(Bert(**{**dict(BERT), "positions": 32})), tokens, padding=0)
        for tokens in (split.tokens, wide)
    )
    for name, value in learned(short).items():
        torch.testing.assert_close(learned(long)[name], value, rtol=1e-4, atol=1e-5, msg=name)
    told = dict(short.named_parameters())
    for name, value in long.named_parameters():
        if name.endswith("bias"):
            torch.testing.assert_close(value, told[name], rtol=1e-3, atol=1e-4, msg=name)


def test_what_padding_would_do_to_the_ranges_is_left_out(split: Sentences) -> None:
    """Its word vector is made enormous: where padding counted, the ranges would follow it."""
    model = bert()
    with torch.no_grad():
        model.get_submodule("embeddings.words").get_parameter("weight")[0] *= 100
    model.set_submodule("embeddings.norm", nn.Identity())
    first = "blocks/0/attn/qkv/linear/0__0"
    ranges = []
    for padding in (0, None):
        found = learned(insert_quantizers(model, split.tokens, padding=padding))
        ranges.append(max(float(value.max()) for name, value in found.items() if first in name))
    assert ranges[0] < 0.5 * ranges[1]


def test_trained_against_the_float_net_it_comes_closer(split: Sentences) -> None:
    fit = {"epochs": 6, "batch_size": 8, "optimizer": {"kind": "adamw", "lr": 5e-4, "decay": "matrices"}}
    model, held = bert(), Samples(split, np.arange(48))
    start, _ = quantize(model, split, stage(weight_bits=4), calibration=split.tokens, seed=0)
    losses = [{"kind": "logit_mse"}, {"kind": "hidden_states", "layers": ["blocks.1"]}]
    config = stage(weight_bits=4, fit=fit, losses=losses)
    trained, history = quantize(model, split, config, calibration=split.tokens, seed=0)
    assert history[-1].loss < history[0].loss
    before, after = (change(answers(model, held), answers(net, held)).sqnr_db for net in (start, trained))
    assert after > before


def test_rounding_is_learnt_of_every_product(split: Sentences) -> None:
    told: list[str] = []
    config = stage(weight_bits=4, rounding="adaround", adaround={"iterations": 200, "samples": 48})
    model, held = bert(), Samples(split, np.arange(48))
    rounded, _ = quantize(model, split, config, calibration=split.tokens, tell=told.append, seed=0)
    nearest, _ = quantize(model, split, stage(weight_bits=4), calibration=split.tokens, seed=0)
    assert not told
    closer, before = (change(answers(model, held), answers(net, held)).sqnr_db for net in (rounded, nearest))
    assert closer > before


def test_each_layer_s_part_of_the_noise_is_told(split: Sentences) -> None:
    quantized = insert_quantizers(bert(), split.tokens, correct_biases=False, padding=0)
    rows = quantization_sensitivity(quantized, Samples(split, np.arange(48)), split.targets)
    names = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert [row.name for row in rows] == [*names, "pooler.dense", "head"]
    assert all(20 < row.only_sqnr_db < 200 for row in rows)


def test_named_layers_stay_in_float(split: Sentences) -> None:
    quantized = insert_quantizers(bert(), split.tokens, stage(float_layers=["blocks.1.mlp.*", "head"]), padding=0)
    named = " ".join(quantizers(quantized))
    assert "blocks/0/mlp/fc1" in named
    assert "blocks/1/mlp" not in named.replace("blocks/1/mlp/act", "")
    assert "head/" not in named


def test_what_means_nothing_to_an_encoder_is_refused(split: Sentences) -> None:
    with pytest.raises(ModelError, match="evened out"):
        insert_quantizers(bert(), split.tokens, stage(equalize=True), padding=0)
    with pytest.raises(ModelError, match="BatchNorm"):
        quantize(bert(), split, stage(reestimate_batchnorm=True), calibration=split.tokens, seed=0)
    with pytest.raises(ModelError, match="can't take calibration samples"):
        insert_quantizers(bert(), split.tokens.astype(np.float32))
    with pytest.raises(ModelError, match="can't take calibration samples"):
        insert_quantizers(bert(), split.tokens + WORDS)


def test_a_saved_one_answers_alike_and_its_weights_come_off_their_grid(split: Sentences, tmp_path: Path) -> None:
    quantized = insert_quantizers(bert(), split.tokens, padding=0)
    edit = FakeQuantized(nncf=quantizer_config(quantized))
    save_model(quantized, Description(model=BERT, input_shape=SHAPE, classes=2, edits=(edit,)), tmp_path)
    tokens = torch.from_numpy(split.tokens[:, :11])
    loaded, _ = load_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), quantized(tokens))
        plain = strip_quantizers(loaded, SHAPE)
        assert change(quantized(tokens).numpy(), plain(tokens).numpy()).sqnr_db > 25
    row = plain.get_submodule("blocks.0.attn.qkv").get_parameter("weight")[0]
    levels = row / row.abs().max() * 127
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_tags_and_a_bilstm_are_quantized_too(split: Sentences) -> None:
    tags = Sentences(tags=True)
    model = bert(Bert(**{**dict(BERT), "answers": "token"}))
    quantized, _ = quantize(model, tags, stage(), calibration=tags.tokens, seed=0)
    held = Samples(tags, np.arange(48))
    found = change(answers(model, held), answers(quantized, held))
    assert found.sqnr_db >= 25
    assert found.flips < found.n
    torch.manual_seed(0)
    reader = build(BiLstm(embedding=16, hidden=16, dense=8, dropout=0.0), SHAPE, 2).eval()
    smaller, _ = quantize(reader, split, stage(), calibration=split.tokens, seed=0)
    held = Samples(split, np.arange(48))
    assert change(answers(reader, held), answers(smaller, held)).sqnr_db >= 20
