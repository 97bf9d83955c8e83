"""Our own nets for texts: what padding may not change, what is refused, what the sizes give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import Bert, BiLstm, CifarResNet, ViT

WORDS, LENGTH, SEP = 50, 24, 3
SHAPE = (LENGTH, WORDS)
LENGTHS = (11, 3, 7, 1, 9)
SMALL = {"layers": 2, "width": 32, "heads": 4}
NETS = {
    "bert": Bert(**SMALL),
    "pairs": Bert(**SMALL, separator=SEP, pooling="mean", pooler="none"),
    "tags": Bert(**SMALL, answers="token", embedding=8),
    "electra": Bert(**SMALL, embedding=8, projects="sum", pooler="gelu", activation="relu"),
    "words": Bert(**SMALL, answers="vocabulary", embedding=8),
    "padded with 7": Bert(**SMALL, padding=7, pooling="mean"),
    "bilstm": BiLstm(embedding=12, hidden=10, layers=2),
    "bilstm tags": BiLstm(embedding=12, hidden=10, answers="token", dense=0),
}


def made(config: Any, shape: tuple[int, ...] = SHAPE, classes: int = 3) -> nn.Module:
    """With weights large enough to tell answers apart."""
    torch.manual_seed(0)
    net = build(config, shape, shape[1] if config.answers == "vocabulary" else classes).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.requires_grad_(False)


def texts(padding: int = 0) -> Tensor:
    """Five texts of ``LENGTHS``, each with a separator where it is long enough; none holds its padding."""
    tokens = torch.randint(8, WORDS, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    tokens[:, 2] = SEP
    for row, length in enumerate(LENGTHS):
        tokens[row, length:] = padding
    return tokens


@pytest.mark.parametrize("name", NETS)
def test_padding_changes_no_answer(name: str) -> None:
    """In one batch, in a wider one and alone, a text has the same answer."""
    config: Any = NETS[name]
    net, tokens = made(config), texts(config.padding)
    together = net(tokens)
    wider = net(nn.functional.pad(tokens, (0, LENGTH - tokens.shape[1]), value=config.padding))
    assert together.std() > 0.05
    for row, length in enumerate(LENGTHS):
        alone = net(tokens[row : row + 1, :length])[0]
        one = together[row] if together.dim() == 2 else together[row, :length]
        other = wider[row] if wider.dim() == 2 else wider[row, :length]
        torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NETS if name != "words"])  # whose table is read for answers too
def test_padding_gets_no_gradient(name: str) -> None:
    config: Any = NETS[name]
    net = made(config).requires_grad_(True)
    table: Any = net.get_submodule("embeddings.words" if isinstance(config, Bert) else "embeddings")
    tokens = texts(config.padding)
    answers = net(tokens)
    (answers if answers.dim() == 2 else answers[tokens != config.padding]).square().sum().backward()
    gradient = table.weight.grad
    assert not gradient[config.padding].any()
    assert gradient[tokens[0, 0]].any()


@pytest.mark.parametrize("name", NETS)
def test_every_token_counts(name: str) -> None:
    """What stands last in a text changes its answer."""
    config: Any = NETS[name]
    net, tokens = made(config), texts(config.padding)
    changed = tokens.clone()
    changed[0, LENGTHS[0] - 1] = 8 + (tokens[0, LENGTHS[0] - 1] + 1) % (WORDS - 8)
    assert (net(changed)[0] - net(tokens)[0]).abs().max() > 1e-4
    torch.testing.assert_close(net(changed)[1:], net(tokens)[1:])


def test_the_second_text_of_a_pair_is_another() -> None:
    """With a separator types differ behind the first; without one they don't."""
    net: Any = made(NETS["pairs"])
    tokens = torch.tensor([[8, 9, SEP, 10, SEP, 11]])
    before = net(tokens)
    net.embeddings.types.weight[1] += torch.randn(32, generator=torch.Generator().manual_seed(0))
    assert (net(tokens) - before).abs().max() > 1e-3
    first = torch.tensor([[8, 9, SEP]])
    assert torch.equal(net(first), made(NETS["pairs"])(first))


def test_an_empty_text_has_an_answer() -> None:
    config: Any
    for name, config in NETS.items():
        assert made(config)(torch.full((2, 4), config.padding)).isfinite().all(), name


def test_a_factorised_table_is_smaller() -> None:
    def parameters(**more: Any) -> int:
        net = build(Bert(layers=1, width=64, heads=4, **more), (8, 1000), 2)
        return sum(p.numel() for p in net.parameters())

    # (V, D) less, (V, E) and a projection with its bias more
    assert parameters(embedding=8) == parameters() - 1000 * 64 + 1000 * 8 + 8 * 64 + 64


def test_a_number_is_one_class() -> None:
    assert made(NETS["bert"], classes=1)(texts()).shape == (5, 1)


def test_bilstm_is_that_of_torch_on_packed_texts() -> None:
    """PyTorch's own bidirectional LSTM on packed sequences, with the same weights."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    config = BiLstm(embedding=12, hidden=10, layers=2, dense=0, dropout=0)
    net: Any = made(config)
    reference = nn.LSTM(12, 10, num_layers=2, bidirectional=True, batch_first=True)
    state = {}
    for layer, module in enumerate(net.layers):
        for suffix, one in (("", module.forwards), ("_reverse", module.backwards)):
            for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                state[f"{key}_l{layer}{suffix}"] = getattr(one, f"{key}_l0")
    reference.load_state_dict(state)
    tokens = texts()
    packed = pack_padded_sequence(net.embeddings(tokens), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    states, (last, _) = reference(packed)
    expected = net.head(torch.cat([last[-2], last[-1]], dim=1))
    torch.testing.assert_close(net(tokens), expected, rtol=1e-5, atol=1e-6)
    tags: Any = made(config.model_copy(update={"answers": "token"}))
    tags.load_state_dict(net.state_dict())
    every, _ = pad_packed_sequence(states, batch_first=True, total_length=tokens.shape[1])
    torch.testing.assert_close(tags(tokens), net.head(every), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter's own code
@pytest.mark.parametrize("name", NETS)
def test_onnx_gives_the_same_for_any_batch_and_length(name: str, tmp_path: Any) -> None:
    """Torch's exporter, both axes open, against ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    config: Any = NETS[name]
    net, file = made(config), tmp_path / "net.onnx"
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=LENGTH)}
    example = torch.full((2, LENGTH), 9)
    torch.onnx.export(net, (example,), file, dynamo=True, opset_version=20, dynamic_shapes=(axes,), verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    tokens = texts(config.padding)
    for given in (tokens, tokens[:1, :1], nn.functional.pad(tokens, (0, 5), value=config.padding)):
        answers = session.run(None, {session.get_inputs()[0].name: given.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(answers), net(given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "shape", "classes", "says"),
    [
        (Bert(), (3, 32, 32), 10, "bert reads texts, and the task gives images .*\n  next: kinds that read images"),
        (BiLstm(), (3, 32, 32), 10, "bilstm reads texts"),
        (ViT(), SHAPE, 3, "vit reads images, and the task gives texts of up to 24 tokens\n  next: .*bert"),
        (CifarResNet(), SHAPE, 3, "cifar_resnet reads images"),
        (Bert(width=30, heads=4), SHAPE, 3, "heads 4 does not divide width 30"),
        (Bert(positions=8), SHAPE, 3, "up to 24 tokens, the table of positions has 8\n  next: say positions: 24"),
        (Bert(padding=50), SHAPE, 3, "padding is token 50, and the task's vocabulary has 50"),
        (Bert(separator=99), SHAPE, 3, "separator is token 99"),
        (BiLstm(padding=50), SHAPE, 3, "padding is token 50"),
        (Bert(projects="sum"), SHAPE, 3, "without a width to project from"),
        (Bert(answers="vocabulary"), SHAPE, 3, "tells 50 words apart, the task has 3 classes"),
        (Bert(), SHAPE, 0, "at least 2 classes, got 0"),
        (Bert(), (0, 50), 3, "all at least 1"),
    ],
)
def test_what_can_not_be_built_says_why(config: Any, shape: Any, classes: int, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        build(config, shape, classes)
