"""Heads of attention leave: the right ones, everywhere at once, and what is left computes what they computed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.compress.attention import attention_of, sizes
from edgewise.compress.config import Inherit, Prune
from edgewise.compress.macs import count
from edgewise.compress.pruning.heads import head_groups
from edgewise.compress.pruning.prune import Pruned, prune
from edgewise.compress.quantization.insert import insert_quantizers, quantizer_config
from edgewise.compress.resize import resize, survey
from edgewise.compress.saved import ChannelPlan, Description, FakeQuantized, load_model, save_model
from edgewise.compress.strategies.inherit import inherit
from edgewise.deploy.export import export_float
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import ModelFactory, ViT

SHAPE = (3, 16, 16)
TOKENS = (1, 6, 32)
VIT = ViT(dim=32, depth=2, heads=4)

# Encoders of Hugging Face behind a small module: embeddings (N, 1, L, D) in, logits out.
USERS = """
import torch
from torch import nn
from transformers import BertConfig, CLIPVisionConfig, DistilBertConfig
from transformers.models.bert.modeling_bert import BertEncoder
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.models.distilbert.modeling_distilbert import Transformer

class Net(nn.Module):
    def __init__(self, kind, classes, depth, attention):
        super().__init__()
        self.kind = kind
        common = {"attn_implementation": attention}
        bert = dict(hidden_size=32, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=64, **common)
        self.encoder = {
            "bert": lambda: BertEncoder(BertConfig(**bert)),
            "clip": lambda: CLIPEncoder(CLIPVisionConfig(**bert)),
            "distilbert": lambda: Transformer(
                DistilBertConfig(dim=32, n_layers=depth, n_heads=4, hidden_dim=64, **common)
            ),
        }[kind]()
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        tokens = x[:, 0]
        out = self.encoder(inputs_embeds=tokens) if self.kind == "clip" else self.encoder(tokens)
        return self.head(out.last_hidden_state[:, 0])

def net(input_shape, classes, kind="bert", depth=2, attention="eager"):
    return Net(kind, classes, depth, attention)
"""


# The attention, its attributes that go with its heads, its output projection, the widening layer of the MLP.
FAMILIES = {
    "bert": (
        "layer.{}.attention.self",
        ("num_attention_heads", "all_head_size"),
        "layer.{}.attention.output.dense",
        "layer.{}.intermediate.dense",
    ),
    "clip": ("layers.{}.self_attn", ("num_heads", "embed_dim"), "layers.{}.self_attn.out_proj", "layers.{}.mlp.fc1"),
    "distilbert": ("layer.{}.attention", ("n_heads", "dim"), "layer.{}.attention.out_lin", "layer.{}.ffn.lin1"),
}


def _net(config: Any = VIT, shape: Any = SHAPE, classes: int = 10) -> nn.Module:
    model = build(config, shape, classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return model.eval()


def _prune(model: nn.Module, ratio: float, shape: Any = SHAPE, **settings: Any) -> Pruned:
    round_to = settings.pop("round_to", 8)
    return prune(model, Prune(kind="prune", macs_ratio=ratio, **settings), shape, round_to=round_to, seed=0)


def _inputs(shape: Any = SHAPE, count: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def _answers(model: nn.Module, inputs: NDArray[np.float32]) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(torch.from_numpy(inputs))
    return out


# --- the right heads, and the right outputs -------------------------------------------------------------------------


def _attention_by_hand(attention: Any, tokens: NDArray[Any], heads: list[int], dim: int) -> NDArray[Any]:
    """One head and one sample at a time, in float64, with the weights of the whole attention."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (attention.qkv.weight, attention.qkv.bias))
    project, shift = (tensor.detach().double().numpy() for tensor in (attention.proj.weight, attention.proj.bias))
    out = np.zeros((*tokens.shape[:2], dim))
    for sample, x in enumerate(tokens):
        for head in heads:
            q, k, v = (
                x @ weight[part * dim + head * 8 : part * dim + head * 8 + 8].T
                + bias[part * dim + head * 8 : part * dim + head * 8 + 8]
                for part in range(3)
            )
            scores = q @ k.T / np.sqrt(8)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            mixed = (scores / scores.sum(1, keepdims=True)) @ v
            out[sample] += mixed @ project[:, head * 8 : head * 8 + 8].T
    return out + shift


def test_the_weakest_heads_leave_and_the_others_stay_as_they_were() -> None:
    """Scores restated with loops: every weight of queries, keys and values that is a head's, and its columns of the
    output; then what the kept heads compute, restated by hand."""
    model: Any = _net()
    old: Any = copy.deepcopy(model)
    pruned = _prune(model, 0.75, criterion="l1", floors={"blocks.*.mlp.fc1": 64, "blocks.*.attn": 2}, scope="uniform")
    assert pruned.plan["blocks.0.attn"] == {"num_heads": 2}
    assert pruned.plan["blocks.0.attn.qkv"] == {"out": 48, "in": 32}
    assert pruned.plan["blocks.0.attn.proj"] == {"out": 32, "in": 16}
    tokens = np.random.default_rng(1).standard_normal((3, 5, 32))
    for number in range(2):
        attention, whole = model.blocks[number].attn, old.blocks[number].attn
        scores = []
        for head in range(4):
            rows = [part * 32 + head * 8 + n for part in range(3) for n in range(8)]
            inner = sum(float(whole.qkv.weight[row].detach().abs().sum()) for row in rows)
            scores.append(inner + float(whole.proj.weight[:, head * 8 : head * 8 + 8].detach().abs().sum()))
        kept = sorted(sorted(range(4), key=scores.__getitem__)[2:])
        expected = _attention_by_hand(whole, tokens, kept, 32)
        with torch.no_grad():
            got = attention(torch.from_numpy(tokens).float()).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert (attention.num_heads, attention.head_dim) == (2, 8)


@pytest.mark.parametrize("scope", ["global", "uniform", "isomorphic"])
@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_heads_and_width_go_down_to_half(scope: Any, criterion: Any) -> None:
    """MACs counted again with a formula: projections, the two products of attention, both layers of the MLP."""
    model: Any = _net()
    pruned = _prune(model, 0.5, scope=scope, criterion=criterion)
    length, dim, total = 17, 32, 16 * 3 * 16 * 32 + 32 * 10
    for block in model.blocks:
        inner, hidden = block.attn.num_heads * 8, block.mlp.fc1.out_features
        assert block.attn.proj.in_features == inner == block.attn.qkv.out_features // 3
        total += length * dim * 4 * inner + 2 * length * length * inner + 2 * length * dim * hidden
    assert total == pruned.macs_after == count(model, SHAPE).macs <= 0.5 * pruned.macs_before
    assert total > 0.4 * pruned.macs_before
    assert any(block.attn.num_heads < 4 for block in model.blocks)
    assert any(block.mlp.fc1.out_features < 64 for block in model.blocks)


@pytest.mark.parametrize(("dim", "heads", "round_to", "allowed"), [(48, 4, 8, {2, 4}), (48, 4, 12, {1, 2, 3, 4})])
def test_widths_stay_multiples(dim: int, heads: int, round_to: int, allowed: set[int]) -> None:
    """Heads of 12 channels: two of them make a multiple of 8."""
    model: Any = _net(ViT(dim=dim, depth=2, heads=heads))
    _prune(model, 0.55, round_to=round_to)
    counts = {block.attn.num_heads for block in model.blocks}
    assert counts <= allowed
    assert min(counts) < 4
    for block in model.blocks:
        assert block.attn.proj.in_features % round_to == 0


def test_heads_that_must_stay() -> None:
    model: Any = _net()
    pruned = _prune(model, 0.7, ignore=("blocks.0.attn",))
    assert model.blocks[0].attn.num_heads == 4
    assert "ignore" in pruned.skipped["blocks.0.attn.qkv"]
    one = _net(ViT(dim=16, depth=2, heads=1, mlp_ratio=4.0))
    assert _prune(one, 0.9).skipped["blocks.0.attn.qkv"] == "it has one head"


# --- families -------------------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    """Attention as many write it; ``kind`` is what makes it differ from timm's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_heads, self.head_dim = kind, 4, 8
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        if kind == "bias":
            self.bias = nn.Parameter(torch.randn(4, 6, 6))
        if kind == "scale":
            self.head_scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        parts = (self.num_heads, 3, self.head_dim) if self.kind == "interleaved" else (3, self.num_heads, self.head_dim)
        qkv = self.qkv(x).reshape(samples, length, *parts)
        q, k, v = (one.transpose(1, 2) for one in qkv.unbind(3 if self.kind == "interleaved" else 2))
        if self.kind == "mixed":  # heads talk to each other: none can leave alone
            q = q + q.mean(1, keepdim=True)
        scores = q @ k.transpose(-2, -1) * 8**-0.5
        scores = scores + self.bias if self.kind == "bias" else scores
        out = (scores.softmax(-1) @ v).transpose(1, 2)
        if self.kind == "reversed":
            out = out.flip(2)
        return self.proj(out.reshape(samples, length, width if self.kind == "fixed" else -1))


class _Tokens(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn, self.head = attention, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.attn(x[:, 0])
        logits: Tensor = self.head((out[0] if isinstance(out, tuple) else out).mean(1))
        return logits


def test_a_plain_attention_of_a_user_loses_heads() -> None:
    model: Any = _Tokens(_Attention("plain"))
    pruned = _prune(model, 0.6, TOKENS)
    assert model.attn.num_heads < 4
    assert "attn.qkv" not in pruned.skipped


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fixed", "fixed in forward"),
        ("bias", "fixed in forward"),
        ("mixed", "not the same as zeroing"),
        ("interleaved", "not the same as zeroing"),
        ("reversed", "not the same as zeroing"),
    ],
)
def test_heads_that_can_not_leave_are_found_by_trying(kind: str, reason: str) -> None:
    model: Any = _Tokens(_Attention(kind))
    pruned = _prune(model, 0.9, TOKENS)
    assert reason in pruned.skipped["attn.qkv"]
    assert (model.attn.num_heads, model.attn.qkv.out_features) == (4, 96)


def test_torchs_own_attention_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.one, self.two = (
                nn.MultiheadAttention(32, 4, batch_first=True),
                nn.Linear(32, 64),
                nn.Linear(64, 32),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.mix(x, x, x, need_weights=False)[0]
            out: Tensor = self.two(torch.relu(self.one(x)))
            return out

    model = _Tokens(Own())
    pruned = _prune(model, 0.8, TOKENS)
    assert "always fill its embed_dim" in pruned.skipped["attn.mix"]
    assert model.attn.one.out_features < 64


def test_tied_projections_are_named() -> None:
    class Tied(_Attention):
        def __init__(self) -> None:
            super().__init__("plain")
            self.other = nn.Linear(32, 96)
            self.other.weight = self.qkv.weight

    (candidate,), _ = head_groups(_Tokens(Tied()), TOKENS, round_to=8)
    assert "shares its weights" in candidate.why_not


@pytest.fixture
def _encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="Hugging Face's encoders need edgewise[text]")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "heads_users_net.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    sys.modules.pop("heads_users_net", None)


def _of_hugging_face(**arguments: Any) -> ModelFactory:
    return ModelFactory(kind="factory", factory="heads_users_net:net", arguments=arguments)


@pytest.mark.usefixtures("_encoders")
@pytest.mark.parametrize("family", ["bert", "bert with sdpa", "clip", "distilbert"])
def test_encoders_of_hugging_face(family: str) -> None:
    """MACs counted again with a formula, from the sizes that the layers say they have."""
    kind, _, attention = family.partition(" with ")
    mixer, counts, reader, feed = FAMILIES[kind]
    model = _net(_of_hugging_face(kind=kind, attention=attention or "eager"), TOKENS, 3)

    def part(name: str, number: int) -> Any:
        return model.get_submodule(f"encoder.{name.format(number)}")

    assert sizes(part(mixer, 0)) == dict(zip(counts, (4, 32), strict=True))
    pruned = _prune(model, 0.5, TOKENS)
    (_, length, dim), total, left = TOKENS, 32 * 3, []
    for number in range(2):
        found = attention_of(part(mixer, number))
        assert found is not None
        inner, hidden = 8 * found.heads, part(feed, number).out_features
        assert tuple(sizes(part(mixer, number)).values()) == (found.heads, inner)
        assert part(reader, number).in_features == inner
        total += length * dim * 4 * inner + 2 * length * length * inner + 2 * length * dim * hidden
        left += [(found.heads, hidden)]
    assert total == pruned.macs_after <= 0.5 * pruned.macs_before
    assert min(heads for heads, _ in left) < 4
    assert min(hidden for _, hidden in left) < 64


@pytest.mark.usefixtures("_encoders")
def test_a_pruned_bert_comes_back_and_is_exported(tmp_path: Path) -> None:
    config = _of_hugging_face(kind="bert", depth=3)
    model = _net(config, TOKENS, 3)
    description = Description(model=config, input_shape=TOKENS, classes=3)
    edits = tuple(ChannelPlan(plan=_prune(model, ratio, TOKENS).plan) for ratio in (0.8, 0.7))
    save_model(model, Description(**{**dict(description), "edits": edits}), tmp_path / "bert")
    loaded, _ = load_model(tmp_path / "bert")
    assert survey(loaded) == survey(model)
    assert torch.equal(_answers(loaded, _inputs(TOKENS)), _answers(model, _inputs(TOKENS)))
    export_float(loaded, TOKENS, tmp_path / "bert.onnx")
    session = onnxruntime.InferenceSession((tmp_path / "bert.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": _inputs(TOKENS)})[0]
    torch.testing.assert_close(torch.from_numpy(got), _answers(model, _inputs(TOKENS)), rtol=1e-4, atol=1e-4)


# --- saved, quantized, inherited ------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
def test_a_pruned_vit_comes_back_bit_for_bit(quantized: bool, tmp_path: Path) -> None:
    model: Any = _net()
    edits: list[Any] = [ChannelPlan(plan=_prune(model, ratio).plan) for ratio in (0.8, 0.75)]
    if quantized:
        model = insert_quantizers(model, _inputs(count=2))
        edits.append(FakeQuantized(nncf=quantizer_config(model)))
    save_model(model, Description(model=VIT, input_shape=SHAPE, classes=10, edits=tuple(edits)), tmp_path)
    loaded: Any = load_model(tmp_path)[0]
    assert [b.attn.num_heads for b in loaded.blocks] == [b.attn.num_heads for b in model.blocks]
    assert torch.equal(_answers(loaded, _inputs()), _answers(model, _inputs()))


def test_plans_that_do_not_fit_are_refused() -> None:
    for plan in (
        {"blocks.0.attn": {"heads": 2}},
        {"blocks.0.attn": {"num_heads": 0}},
        {"blocks.0.attn": {"forward": 1}},
    ):
        with pytest.raises(ModelError, match="the channel plan asks for"):
            resize(_net(), plan)


def test_fewer_heads_inherit_the_first_of_the_teachers() -> None:
    """Restated: each third of the fused projection is cut by itself."""
    teacher: Any = _net()
    student: Any = _net()
    _prune(student, 0.7, floors={"blocks.*.mlp.fc1": 64})
    inherit(student, teacher, Inherit(kind="inherit", slice=True))
    for ours, theirs in zip(student.blocks, teacher.blocks, strict=True):
        wide = ours.attn.num_heads * 8
        expected = theirs.attn.qkv.weight.reshape(3, 32, 32)[:, :wide].reshape(-1, 32)
        assert wide < 32
        assert torch.equal(ours.attn.qkv.weight, expected)
        assert torch.equal(ours.attn.proj.weight, theirs.attn.proj.weight[:, :wide])
