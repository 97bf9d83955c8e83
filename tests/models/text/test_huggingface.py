"""Folders in Hugging Face form: our net against transformers' own, and every folder that can't be one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.compress.saved import Description, load_model, save_model
from edgewise.errors import EdgewiseError, ModelError, WeightsError
from edgewise.models.build import build
from edgewise.models.config import Bert, Encoder, HuggingFace
from edgewise.models.text.labels import align_labels

transformers = pytest.importorskip("transformers")

WORDS, LENGTH, SEP, LABELS = 60, 16, 3, 5
SHAPE = (LENGTH, WORDS)
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "num_labels": LABELS,
}
DISTIL = {"vocab_size": WORDS, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 40}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": SIZES | {"hidden_act": "gelu_new"},
    "DistilBert": DISTIL | {"initializer_range": 0.3, "num_labels": LABELS},
    "Roberta": SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    "XLMRoberta": SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    "Camembert": SIZES | {"pad_token_id": 1, "type_vocab_size": 1},
    "Electra": SIZES | {"embedding_size": 8},
}


def saved(folder: Path, kind: str, task: str = "Model", **more: Any) -> Any:
    """A net of transformers with random weights, norms and biases too, and its folder."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**KINDS.get(kind, SIZES), **more)
    model = getattr(transformers, f"{kind}{task}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def texts(padding: int) -> torch.Tensor:
    """Four of different lengths, one as long as can be, each with two separators."""
    tokens = torch.randint(5, WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((LENGTH, 5, 9, 3)):
        tokens[row, length // 2] = tokens[row, length - 1] = SEP
        tokens[row, length:] = padding
    return tokens


def told(model: Any, tokens: torch.Tensor, *, padding: int, pairs: bool = False) -> Any:
    """What transformers gives, told mask and types by a loop."""
    more = {}
    if pairs:
        rows = []
        for row in tokens.tolist():
            first = row.index(SEP)
            rows.append([0 if place <= first else 1 for place in range(len(row))])
        more["token_type_ids"] = torch.tensor(rows)
    with torch.no_grad():
        return model(tokens, attention_mask=(tokens != padding).long(), **more)


def states(net: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """What the last block gives."""
    kept: list[torch.Tensor] = []
    blocks: Any = net.get_submodule("blocks")
    handle = blocks[-1].register_forward_hook(lambda _m, _i, out: kept.append(out))
    with torch.no_grad():
        net(tokens)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_hidden_states_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs = saved(tmp_path, kind)
    padding = KINDS[kind].get("pad_token_id", 0)
    net = build(HuggingFace(path=tmp_path), SHAPE, 2).eval()
    tokens = texts(padding)
    real = tokens != padding
    expected = told(theirs, tokens, padding=padding).last_hidden_state
    assert expected[real].std() > 0.3
    torch.testing.assert_close(states(net, tokens)[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_classifiers_answer_as_in_transformers(tmp_path: Path, kind: str) -> None:
    theirs = saved(tmp_path, kind, "ForSequenceClassification")
    padding = KINDS[kind].get("pad_token_id", 0)
    net = build(HuggingFace(path=tmp_path), SHAPE, LABELS).eval()
    expected = told(theirs, texts(padding), padding=padding).logits
    torch.testing.assert_close(net(texts(padding)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_taggers_and_masked_words_answer_as_in_transformers(tmp_path: Path, kind: str) -> None:
    padding = KINDS[kind].get("pad_token_id", 0)
    tokens = texts(padding)
    real = tokens != padding
    for task, answers, classes in (("TokenClassification", "token", LABELS), ("MaskedLM", "vocabulary", WORDS)):
        theirs = saved(tmp_path / task, kind, f"For{task}")
        net = build(HuggingFace(path=tmp_path / task, answers=answers), SHAPE, classes).eval()
        expected = told(theirs, tokens, padding=padding).logits
        torch.testing.assert_close(net(tokens)[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "Electra"])
def test_pairs_have_their_types(tmp_path: Path, kind: str) -> None:
    theirs = saved(tmp_path, kind, "ForSequenceClassification")
    tokens = texts(0)
    expected = told(theirs, tokens, padding=0, pairs=True).logits
    paired = build(HuggingFace(path=tmp_path, separator=SEP), SHAPE, LABELS).eval()
    torch.testing.assert_close(paired(tokens), expected, rtol=1e-4, atol=1e-5)
    single = build(HuggingFace(path=tmp_path), SHAPE, LABELS).eval()
    assert (single(tokens) - expected).abs().max() > 0.01


def test_the_pooler_is_taken_where_it_was_trained(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "Bert")
    net: Any = build(HuggingFace(path=tmp_path), SHAPE, 3).eval()
    pooled = told(theirs, texts(0), padding=0).pooler_output
    torch.testing.assert_close(net(texts(0)), net.head(pooled), rtol=1e-4, atol=1e-5)
    first: Any = build(HuggingFace(path=tmp_path, pooling="cls"), SHAPE, 3).eval()
    hidden = told(theirs, texts(0), padding=0).last_hidden_state
    torch.testing.assert_close(first(texts(0)), first.head(hidden[:, 0]), rtol=1e-4, atol=1e-5)


def test_sentence_transformers_say_that_they_pool_all_tokens(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "Bert")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    net: Any = build(HuggingFace(path=tmp_path), SHAPE, 3).eval()
    tokens = texts(0)
    hidden = told(theirs, tokens, padding=0).last_hidden_state.numpy()
    mean = np.stack([row[ids != 0].mean(0) for row, ids in zip(hidden, tokens.numpy(), strict=True)])
    torch.testing.assert_close(net(tokens), net.head(torch.from_numpy(mean)), rtol=1e-4, atol=1e-5)


def test_a_head_of_other_labels_is_left_fresh(tmp_path: Path) -> None:
    saved(tmp_path, "Bert", "ForSequenceClassification")
    torch.manual_seed(1)
    one: Any = build(HuggingFace(path=tmp_path), SHAPE, 3)
    torch.manual_seed(2)
    other: Any = build(HuggingFace(path=tmp_path), SHAPE, 3)
    assert one.head.out_features == 3
    assert not torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(one.pooler.dense.weight, other.pooler.dense.weight)


def test_fewer_layers_words_and_places(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "Bert")
    net: Any = build(HuggingFace(path=tmp_path, layers=2), (8, 40), 3).eval()
    assert (len(net.blocks), net.embeddings.words.num_embeddings, net.embeddings.positions.num_embeddings) == (2, 40, 8)
    theirs.encoder.layer = theirs.encoder.layer[:2]
    tokens = texts(0)[:, :8].clamp(max=39)
    expected = told(theirs, tokens, padding=0).last_hidden_state
    torch.testing.assert_close(states(net, tokens)[tokens != 0], expected[tokens != 0], rtol=1e-4, atol=1e-5)


def test_a_trained_head_answers_in_the_order_of_the_tasks_classes(tmp_path: Path) -> None:
    names = ["bad", "fair", "good", "superb", "unknown"]
    theirs = saved(tmp_path, "Bert", "ForSequenceClassification", id2label=dict(enumerate(names)))
    config, tokens = HuggingFace(path=tmp_path), texts(0)
    expected = told(theirs, tokens, padding=0).logits
    net: Any = build(config, SHAPE, LABELS).eval()
    classes = ("superb", "Good", "unknown", "bad", "fair")
    assert align_labels(net, config, classes) is None
    order = [names.index(name.lower()) for name in classes]
    torch.testing.assert_close(net(tokens), expected[:, order], rtol=1e-4, atol=1e-5)
    # other names: as they come, and said
    net = build(config, SHAPE, LABELS).eval()
    note = align_labels(net, config, ("0", "1", "2", "3", "4"))
    assert note is not None
    assert "bad for 0, fair for 1" in note
    torch.testing.assert_close(net(tokens), expected, rtol=1e-4, atol=1e-5)
    _edit(tmp_path, id2label={str(place): f"LABEL_{place}" for place in range(LABELS)})
    assert align_labels(net, config, classes) is None


def test_shards_are_read_as_one_file(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "Bert", "ForSequenceClassification")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    whole = build(HuggingFace(path=tmp_path), SHAPE, LABELS)
    parts = build(HuggingFace(path=tmp_path / "shards"), SHAPE, LABELS)
    assert whole.state_dict().keys() == parts.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name


@pytest.mark.parametrize(("kind", "more"), [("MPNet", {"pad_token_id": 1}), ("Albert", {}), ("DebertaV2", {})])
def test_other_kinds_go_through_transformers(tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    theirs = saved(tmp_path, kind, **more)
    padding = json.loads((tmp_path / "config.json").read_text()).get("pad_token_id") or 0
    config = HuggingFace(path=tmp_path, pooling="cls")
    net: Any = build(config, SHAPE, 3).eval()
    assert not any("pooler" in name for name in net.state_dict()), "its answer is read by nobody"
    tokens = texts(padding)
    expected = told(theirs, tokens, padding=padding).last_hidden_state
    torch.testing.assert_close(net(tokens), net.head(expected[:, 0]), rtol=1e-4, atol=1e-4)
    save_model(net, Description(model=config, input_shape=SHAPE, classes=3), tmp_path / "saved")
    for file in tmp_path.glob("*.*"):
        file.unlink()
    again, description = load_model(tmp_path / "saved")
    assert isinstance(description.model, Encoder)
    assert torch.equal(again(tokens), net(tokens))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_saved_net_needs_no_folder(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind)
    config = HuggingFace(path=tmp_path)
    net = build(config, SHAPE, 3).eval()
    save_model(net, Description(model=config, input_shape=SHAPE, classes=3), tmp_path / "saved")
    for file in tmp_path.glob("*.*"):
        file.unlink()
    again, description = load_model(tmp_path / "saved")
    assert isinstance(description.model, Bert)
    assert str(tmp_path) not in (tmp_path / "saved" / "architecture.json").read_text()
    assert torch.equal(again(texts(0)), net(texts(0)))


def test_names_from_before_layernorm_had_weights(tmp_path: Path) -> None:
    """Google's own checkpoints call them gamma and beta."""
    from safetensors.torch import load_file, save_file

    saved(tmp_path, "Bert", "ForSequenceClassification")
    new = build(HuggingFace(path=tmp_path), SHAPE, LABELS)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old, file)
    again = build(HuggingFace(path=tmp_path), SHAPE, LABELS)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in new.state_dict().items())


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _nan(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def _without(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.adapter.weight"] = tensors.pop("encoder.layer.0.output.dense.weight")
    save_file(tensors, folder / "model.safetensors")


def _lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"embeddings.LayerNorm.bias": "../model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (_only_pickle, WeightsError, r"pytorch_model.bin alone.*\n  next: save them as safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), WeightsError, "no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), ModelError, "which has a config.json; there is none"),
        (lambda f: (f / "config.json").write_text("{"), ModelError, "not a JSON file"),
        (lambda f: (f / "config.json").write_text("[]"), ModelError, "expected a JSON object, got list"),
        (lambda f: _edit(f, model_type=None), ModelError, "names no model_type"),
        (lambda f: _edit(f, model_type="berd"), ModelError, "(?s)can't build its berd.*next: give a BERT"),
        (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), ModelError, "an encoder with a decoder"),
        (lambda f: _edit(f, vocab_size=50), ModelError, "tokenizer has 60 tokens, the checkpoint 50"),
        (
            lambda f: _edit(f, max_position_embeddings=10),
            ModelError,
            "up to 16 tokens, the checkpoint has places for 10",
        ),
        (lambda f: _edit(f, hidden_act="silu"), ModelError, "its activation 'silu'"),
        (lambda f: _edit(f, hidden_size="16 x"), ModelError, "says no net: hidden_size"),
        (lambda f: _edit(f, num_attention_heads=5), ModelError, "heads 5 does not divide width 16"),
        (lambda f: _edit(f, num_hidden_layers=4), WeightsError, "tensors missing .encoder.layer.3"),
        (
            lambda f: _edit(f, intermediate_size=32),
            WeightsError,
            r"of another shape .blocks.0.mlp.fc1.weight: .*24, 16",
        ),
        (lambda f: _edit(f, position_embedding_type="relative_key"), ModelError, "absolute positions"),
        (_cut, WeightsError, "not a whole safetensors file"),
        (_nan, WeightsError, "NaN or infinity in 1 of"),
        (_without, WeightsError, r"1 of \d+ tensors missing .*; 1 unexpected .encoder.layer.0.adapter"),
        (_lost_shard, WeightsError, "not beside it"),
    ],
)
def test_a_folder_that_is_no_net_says_why(tmp_path: Path, damage: Any, error: Any, says: str) -> None:
    saved(tmp_path, "Bert")
    damage(tmp_path)
    with pytest.raises(error, match=says):
        build(HuggingFace(path=tmp_path), SHAPE, 3)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"layers": 4}, "layers: 4, and the checkpoint has 3"),
        ({"separator": SEP}, "a distilbert has no token types"),
        ({"pooling": "pooler"}, "no trained pooler"),
        ({"answers": "vocabulary"}, "tells 60 words apart, the task has 3 classes"),
    ],
)
def test_wishes_that_a_folder_can_not_meet(tmp_path: Path, wish: dict[str, Any], says: str) -> None:
    saved(tmp_path, "DistilBert")
    with pytest.raises(ModelError, match=says):
        build(HuggingFace(path=tmp_path, **wish), SHAPE, 3)


def test_the_hub_is_asked_once_for_what_is_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache as huggingface_hub lays it out, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "models--someone--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    theirs = saved(kept / "snapshots" / commit, "Bert", "ForSequenceClassification")
    net = build(HuggingFace(hub="someone/tiny"), SHAPE, LABELS).eval()
    torch.testing.assert_close(net(texts(0)), told(theirs, texts(0), padding=0).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="someone/other: the hub doesn't give it"):
        build(HuggingFace(hub="someone/other"), SHAPE, LABELS)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match="got nothing\n  next: check the path"):
        build(HuggingFace(path=tmp_path / "none"), SHAPE, 3)
    with pytest.raises(ValueError, match="exactly one of path"):
        HuggingFace()
