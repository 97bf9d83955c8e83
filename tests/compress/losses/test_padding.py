"""Every loss in the registry on texts: a longer padding changes nothing, or the loss is refused and says why."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.losses import Custom, LossConfig
from edgewise.compress.losses.base import Batch, Loss
from edgewise.compress.signals import Signals
from edgewise.compress.taps import tapped
from edgewise.errors import ModelError
from edgewise.models.build import build
from edgewise.models.config import Bert
from edgewise.models.tasks.base import IGNORED

LENGTH, WORDS, CLASSES, SAMPLES = 16, 30, 4, 6
KINDS: tuple[type[Loss], ...] = tuple(kind for kind in get_args(get_args(LossConfig)[0]) if kind is not Custom)
BETWEEN_TOKENS = {"hidden_states", "hidden_cosine", "attention_matrices", "value_relations"}
ONLY_IMAGES = {"simkd"}  # it builds a convolution into the student
NEEDS_POSITIONS = {"at", "cwd", "fsp", "hcl", "mgd", "masked_feature", "attention_matrices", "value_relations"}
TAPS = {
    "attention_matrices": "blocks.1.attn.softmax:input",
    "value_relations": "blocks.1.attn.qkv",
}


def modes() -> Iterator[Loss]:
    for kind in KINDS:
        yield kind.model_validate({})
        for name, field in kind.model_fields.items():
            choices = get_args(field.annotation) if get_origin(field.annotation) is not None else ()
            for choice in choices:
                if isinstance(choice, str) and choice != field.default and name in ("mode", "heads", "over", "mask"):
                    yield kind.model_validate({name: choice})


EVERY = [loss for loss in modes() if loss.kind not in ONLY_IMAGES]


def called(loss: Loss) -> str:
    return "-".join(map(str, [loss.kind, *loss.model_dump(exclude_defaults=True, exclude={"kind"}).values()]))


def bert(seed: int, answers: str = "sequence") -> nn.Module:
    torch.manual_seed(seed)
    config = Bert.model_validate({"layers": 2, "width": 8, "heads": 2, "dropout": 0.0, "answers": answers})
    model = build(config, (LENGTH, WORDS), CLASSES)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def on(loss: Loss, layer: str) -> Loss:
    """``loss`` between ``layer`` of both nets, or with softmax instead of its input where it asks for probabilities."""
    if getattr(loss, "mode", "").startswith("probabilities"):
        layer = layer.removesuffix(":input")
    layers: Any = "embedding" if layer == "embedding" else [layer]
    return type(loss).model_validate({**loss.model_dump(exclude_unset=True), "layers": layers})


def value(loss: Loss, signals: Signals, nets: tuple[nn.Module, nn.Module], tokens: Tensor, targets: Tensor) -> Tensor:
    signals = copy.deepcopy(signals)  # memories stay as they are
    with tapped(nets[0], signals.student_layers) as ours, tapped(nets[1], signals.teacher_layers) as theirs:
        logits, answers = nets[0](tokens), nets[1](tokens).detach()
        batch = Batch(tokens, targets, torch.arange(SAMPLES), mask=tokens != 0, epoch=1.0, epochs=4.0)
        torch.manual_seed(7)
        found: Tensor = signals((logits, ours), ([answers], theirs), batch, active=[loss.kind])[loss.kind]
    return found


def texts() -> Tensor:
    torch.manual_seed(2)
    tokens = torch.randint(1, WORDS, (SAMPLES, 8))
    return tokens * (torch.arange(8) < torch.tensor([[8], [3], [5], [1], [7], [4]]))


def longer(tokens: Tensor, filler: int, amount: int = 8) -> Tensor:
    return torch.cat([tokens, torch.full((len(tokens), amount), filler)], dim=1)


def compared(loss: Loss, answers: str = "sequence") -> tuple[Tensor, Tensor]:
    """The loss on short padding and on long."""
    nets = bert(0, answers), bert(1, answers)
    torch.manual_seed(5)
    signals = Signals([loss], *nets, input_shape=(LENGTH, WORDS), samples=20)  # type: ignore[list-item]
    tokens, targets = texts(), torch.arange(SAMPLES) % CLASSES
    more = targets
    if answers == "token":
        targets = torch.where(tokens > 0, tokens % CLASSES, IGNORED)
        more = longer(targets, IGNORED)
    if "regression" in loss.kind:
        targets = more = torch.randn(SAMPLES, CLASSES)
    return value(loss, signals, nets, tokens, targets), value(loss, signals, nets, longer(tokens, 0), more)


@pytest.mark.parametrize("loss", [loss for loss in EVERY if loss.wanted_layers() is None], ids=called)
@pytest.mark.parametrize("answers", ["sequence", "token"])
def test_padding_changes_no_loss_between_answers(loss: Loss, answers: str) -> None:
    if answers == "token" and not loss.about_classes:
        answers = "sequence"  # a task of tags has no numbers
    short, long = compared(loss, answers)
    assert torch.isfinite(short)
    torch.testing.assert_close(long, short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [loss for loss in EVERY if loss.wanted_layers() is not None], ids=called)
def test_padding_changes_no_loss_between_tokens_or_it_is_refused(loss: Loss) -> None:
    asked = on(loss, TAPS.get(loss.kind, "blocks.1"))
    if loss.kind not in BETWEEN_TOKENS:
        with pytest.raises(ModelError, match=r"can't tell tokens from padding") as caught:
            compared(asked)
        assert caught.value.where == f"losses: {loss.kind}"
        return
    short, long = compared(asked)
    assert torch.isfinite(short)
    assert short > 0
    torch.testing.assert_close(long, short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [loss for loss in EVERY if loss.wanted_layers() is not None], ids=called)
def test_padding_changes_no_loss_between_vectors_of_whole_texts(loss: Loss) -> None:
    if loss.kind in NEEDS_POSITIONS:
        with pytest.raises(ModelError) as caught:
            compared(on(loss, "embedding"))
        assert loss.kind in str(caught.value)
        return
    short, long = compared(on(loss, "embedding"))
    assert torch.isfinite(short)
    torch.testing.assert_close(long, short, rtol=1e-5, atol=1e-6)


def test_every_loss_is_here() -> None:
    assert {loss.kind for loss in EVERY} | ONLY_IMAGES == {kind.model_fields["kind"].default for kind in KINDS}
    assert {loss.kind for loss in EVERY if loss.reads_mask} == BETWEEN_TOKENS
