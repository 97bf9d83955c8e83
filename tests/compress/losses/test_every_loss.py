"""What holds for every loss in the registry, in each of its modes: a new one is covered by being registered."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor, nn

from edgewise.compress import losses
from edgewise.compress.losses import Custom, LossConfig
from edgewise.compress.losses.base import Batch, LogitLoss, Loss, Outputs, Sizes
from edgewise.errors import ModelError

REPO = Path(__file__).resolve().parents[3]
KINDS: tuple[type[Loss], ...] = tuple(kind for kind in get_args(get_args(LossConfig)[0]) if kind is not Custom)
FUNCTIONS = tuple(name for name in losses.__all__ if name.endswith("_loss"))

Shape = tuple[int, ...]
Pairs = tuple[tuple[Shape, Shape], ...]

# (student, teacher) by layer, without N: other channels everywhere, and other sizes where a loss takes them.
MAPS: Pairs = (((6, 8, 8), (8, 8, 8)), ((6, 4, 4), (8, 2, 2)))
VECTORS: Pairs = (((6,), (8,)),)
TOKENS: Pairs = (((5, 6), (5, 8)), ((5, 6), (5, 8)))
FORMS: dict[str, Pairs] = {
    "hidden_states": TOKENS,
    "hidden_cosine": TOKENS,
    "attention_matrices": (((2, 5, 5), (2, 5, 5)),),
    "value_relations": (((5, 12), (5, 24)),),
    "simkd": (((8, 4, 4), (8, 8, 8)),),  # its projector has the teacher's channels
}


def modes(kind: type[Loss]) -> Iterator[Loss]:
    """The defaults, and each other value of each choice."""
    yield kind.model_validate({})
    for name, field in kind.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        for choice in choices:
            if choice not in ("never", field.default):
                yield kind.model_validate({name: choice})
    if issubclass(kind, LogitLoss):
        yield kind.model_validate({"standardize": True})


def called(loss: Loss) -> str:
    changed = loss.model_dump(exclude_defaults=True, exclude={"kind"})
    return "-".join([loss.kind, *map(str, (part for item in changed.items() for part in item))])


EVERY = tuple(loss for kind in KINDS for loss in modes(kind))
every = pytest.mark.parametrize("loss", EVERY, ids=called)


@dataclass(frozen=True)
class Case:
    """A loss with all that it is called with."""

    loss: Loss
    student: Outputs
    teacher: Outputs
    batch: Batch
    learner: nn.Module | None

    def value(self) -> Tensor:
        """The loss, with what it draws repeatable, and memories and statistics left as they are."""
        torch.manual_seed(7)
        return self.loss(self.student, self.teacher, self.batch, copy.deepcopy(self.learner))

    def leaves(self) -> list[Tensor]:
        """What the student gave of what the loss reads."""
        return [self.student.logits] if self.loss.wanted_layers() is None else list(self.student.features)

    def changed(self, student: Callable[[Tensor], Tensor], teacher: Callable[[Tensor], Tensor]) -> Case:
        """The same with other numbers."""
        return replace(self, student=every_tensor(self.student, student), teacher=every_tensor(self.teacher, teacher))


def every_tensor(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    def leaf(tensor: Tensor) -> Tensor:
        return change(tensor.detach()).clone().requires_grad_()

    return Outputs(leaf(outputs.logits), tuple(map(leaf, outputs.features)))


def layers_of(loss: Loss) -> Pairs:
    wanted = loss.wanted_layers()
    if wanted is None:
        return ()
    return FORMS.get(loss.kind, VECTORS if wanted == "embedding" else MAPS)


def probable(loss: Loss) -> bool:
    return getattr(loss, "mode", "").startswith("probabilities")


def case(loss: Loss, *, samples: int = 6, classes: int = 5, pairs: Pairs | None = None) -> Case:
    pairs = layers_of(loss) if pairs is None else pairs
    torch.manual_seed(3)

    def outputs(side: int) -> Outputs:
        features = [torch.randn(samples, *pair[side]) for pair in pairs]
        if probable(loss):
            features = [feature.softmax(dim=-1) for feature in features]
        return every_tensor(Outputs(torch.randn(samples, classes) * 3, tuple(features)), lambda tensor: tensor)

    student, teacher = outputs(0), outputs(1)
    targets = torch.randn(samples, classes) * 3 if "regression" in loss.kind else torch.arange(samples) % classes
    batch = Batch(torch.zeros(samples, 3, 8, 8), targets, torch.arange(samples), epoch=1.0, epochs=4.0)
    shapes = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    learner = loss.learner(Sizes(*shapes, classes=classes, samples=20, heads={"layer": 2})) if pairs else None
    return Case(loss, student, teacher, batch, learner)


def learns(learner: nn.Module | None) -> bool:
    """Whether the learner has something to train."""
    return learner is not None and any(parameter.requires_grad for parameter in learner.parameters())


def gradients(given: Case) -> list[Tensor]:
    """Of the student's leaves, each there and finite, by a value that is a finite float32 scalar."""
    value = given.value()
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert torch.isfinite(value)
    value.backward()
    found = [leaf.grad for leaf in given.leaves()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def test_kinds_are_unique_and_each_is_the_name_of_its_function_or_of_its_module() -> None:
    kinds = [kind.model_fields["kind"].default for kind in KINDS]
    assert len(set(kinds)) == len(kinds) > 30
    for name, kind in zip(kinds, KINDS, strict=True):
        assert f"{name}_loss" in FUNCTIONS or kind.__module__.endswith(f".{name}")


@every
def test_gradient_reaches_the_student_and_never_the_teacher(loss: Loss) -> None:
    given = case(loss)
    torch.manual_seed(7)
    value = given.loss(given.student, given.teacher, given.batch, given.learner)
    value.backward()
    for leaf in given.leaves():
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().sum() > 0
    assert given.teacher.logits.grad is None
    assert [feature.grad for feature in given.teacher.features] == [None] * len(given.teacher.features)
    if given.learner is not None:
        for name, parameter in given.learner.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert value.dtype == torch.float32
    assert value.shape == ()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_is_finite_and_close(loss: Loss, dtype: torch.dtype) -> None:
    given = case(loss)
    full, same = float(given.value().detach()), float(rounded_to(dtype, given, torch.float32).value().detach())
    halved = rounded_to(dtype, given, dtype)
    with torch.autocast("cpu", dtype=dtype):
        value = halved.value()
    assert value.dtype == torch.float32
    value.backward()
    assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in halved.leaves())
    # The loss itself is computed in float32: halves cost what rounding its inputs costs, and where a projection is
    # learnt, what autocast takes from that.
    assert float(value.detach()) == pytest.approx(same, rel=1e-3 if learns(given.learner) else 1e-7)
    assert float(value.detach()) == pytest.approx(full, rel=1e-3 if dtype == torch.float16 else 1e-2)


def rounded_to(dtype: torch.dtype, given: Case, kept_as: torch.dtype) -> Case:
    def change(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).to(kept_as)

    return given.changed(change, change)


@every
def test_large_values_stay_finite_in_fp16(loss: Loss) -> None:
    given = case(loss)
    if not probable(loss):
        given = given.changed(lambda tensor: 100 * tensor, lambda tensor: 100 * tensor)
    given = rounded_to(torch.float16, given, torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        value = given.value()
    assert torch.isfinite(value)


# Softened teachers, which only a softer student equals.
BEST: dict[str, Callable[[Loss, Tensor], Tensor]] = {
    "ttm": lambda loss, logits: logits * getattr(loss, "gamma", 1.0),
    "wttm": lambda loss, logits: logits * getattr(loss, "gamma", 1.0),
}
# nkd goes on pulling towards the label.
NO_MINIMUM = {"nkd"}


def level(loss: Loss) -> Case:
    """The student gives what the teacher gives, or its best answer to that."""
    if "project" in type(loss).model_fields:
        loss = loss.model_copy(update={"project": "where_needed"})
    same = tuple((pair[1], pair[1]) for pair in layers_of(loss))
    given = case(loss, pairs=same)
    best = BEST.get(loss.kind, lambda _, tensor: tensor)
    student = Outputs(best(loss, given.teacher.logits), given.teacher.features)
    return replace(given, student=every_tensor(student, lambda tensor: tensor))


def has_a_least(loss: Loss) -> bool:
    """Not where something at random stands between; nor can a standardized student be softer than it is."""
    softer = loss.kind in BEST and getattr(loss, "standardize", False)
    return loss.kind not in NO_MINIMUM and not softer and not learns(level(loss).learner)


COMPARED = tuple(loss for loss in EVERY if has_a_least(loss))


@pytest.mark.parametrize("loss", COMPARED, ids=called)
def test_the_least_is_where_the_student_equals_the_teacher(loss: Loss) -> None:
    given = level(loss)
    least = given.value()
    least.backward()
    slack = 1e-5 * (1 + float(least.detach().abs()))
    for leaf in given.leaves():
        assert leaf.grad is not None
        assert float(leaf.grad.abs().max()) < slack
    worse = 0
    for scale in (1e-2, 0.3, 3.0):

        def moved(tensor: Tensor, scale: float = scale) -> Tensor:
            noise = scale * torch.randn_like(tensor)
            return (tensor.log() + noise).softmax(dim=-1) if probable(loss) and tensor.dim() == 4 else tensor + noise

        value = float(given.changed(moved, lambda tensor: tensor).value().detach())
        assert value >= float(least.detach()) - 1e-6
        worse += value > float(least.detach()) + 1e-6
    assert worse


REFUSED = r"(need|expected|use |pair|must|can't be held)"


def works_or_says_why(make: Callable[[], Case]) -> None:
    try:
        given = make()
        gradients(given)
    except (ValueError, ModelError) as error:
        if not re.search(REFUSED, str(error)):
            pytest.fail(f"doesn't say what is needed: {error}")


@every
def test_a_batch_of_one_works_or_is_refused(loss: Loss) -> None:
    works_or_says_why(lambda: case(loss, samples=1))


@every
def test_two_classes_work_or_are_refused(loss: Loss) -> None:
    works_or_says_why(lambda: case(loss, classes=2))


@pytest.mark.parametrize("loss", [loss for loss in EVERY if layers_of(loss)], ids=called)
@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param((((6,), (8,)), ((6,), (8,))), id="vectors"),
        pytest.param(TOKENS, id="tokens"),
        pytest.param((((6, 4, 4), (17, 8)), ((17, 6), (8, 8, 8))), id="tokens and maps"),
        pytest.param((((6,), (8, 4, 4)), ((6,), (8, 4, 4))), id="a vector and a map"),
        pytest.param((((7, 6), (8, 4, 4)), ((7, 6), (8, 4, 4))), id="no grid"),
        pytest.param((((6, 1, 1), (8, 1, 1)), ((6, 1, 1), (8, 1, 1))), id="1x1"),
    ],
)
def test_every_form_of_feature_works_or_is_refused(loss: Loss, pairs: Pairs) -> None:
    works_or_says_why(lambda: case(loss, pairs=pairs))


# What they draw goes to the samples in the order of the batch.
DRAWS = {"mgd", "crd"}


@pytest.mark.parametrize("loss", [loss for loss in EVERY if loss.kind not in DRAWS], ids=called)
def test_the_order_of_the_batch_does_not_matter(loss: Loss) -> None:
    given = case(loss)
    other = torch.tensor([3, 0, 5, 1, 4, 2])
    batch = replace(given.batch, targets=given.batch.targets[other], index=given.batch.index[other])
    permuted = replace(given.changed(lambda tensor: tensor[other], lambda tensor: tensor[other]), batch=batch)
    assert float(permuted.value().detach()) == pytest.approx(float(given.value().detach()), rel=1e-5, abs=1e-7)


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "constant": torch.ones_like,
    "duplicates": lambda tensor: tensor[:1].expand_as(tensor),
    "one sample zero": lambda tensor: tensor * (torch.arange(len(tensor)) > 0).view(-1, *[1] * (tensor.dim() - 1)),
}


@every
@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("both", [False, True], ids=["student", "both"])
def test_zero_constant_and_duplicate_inputs_give_finite_gradients(loss: Loss, spoil: str, both: bool) -> None:
    given = case(loss).changed(SPOILT[spoil], SPOILT[spoil] if both else lambda tensor: tensor)
    # Nor does the inverse of a small constant come through.
    assert max(float(gradient.abs().max()) for gradient in gradients(given)) < 2e5


@every
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(loss: Loss, side: str, number: float) -> None:
    # The training loop stops at a loss that isn't finite: one that hides it would go on learning from nothing.
    def spoil(tensor: Tensor) -> Tensor:
        return torch.cat([torch.full_like(tensor[:1], number), tensor[1:]])

    def keep(tensor: Tensor) -> Tensor:
        return tensor

    given = case(loss).changed(*((spoil, keep) if side == "student" else (keep, spoil)))
    # To a sigmoid, an infinite logit is an answer like others.
    certain = loss.kind == "multi_label" and side == "teacher" and number == torch.inf
    assert bool(torch.isfinite(given.value())) == certain


def test_every_function_and_every_module_says_where_it_comes_from() -> None:
    for name in FUNCTIONS:
        function = getattr(losses, name)
        assert re.search(r"\(N, ", inspect.getdoc(function) or ""), f"{name}: no shape"
    for kind in KINDS:
        text = inspect.getdoc(importlib.import_module(kind.__module__)) or ""
        source = re.search(r"arXiv\s\d{4}\.\d{4,5}|(CVPR|ICCV|NeurIPS|ICLR)\s\d{4}|no paper", text)
        assert source, f"{kind.__module__}: no source"


def test_tensors_are_positional_and_numbers_are_named_and_have_the_published_defaults() -> None:
    configs = {f"{kind.model_fields['kind'].default}_loss": kind.model_fields for kind in KINDS}
    for name in FUNCTIONS:
        parameters = inspect.signature(getattr(losses, name)).parameters
        assert list(parameters)[:2] == ["student", "teacher"], name
        if "target" in parameters:
            assert list(parameters)[2] == "target", name
        for parameter in parameters.values():
            named = parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert named != (parameter.default is inspect.Parameter.empty) or parameter.name == "heads", name
            field = configs.get(name, {}).get(parameter.name)
            if named and field is not None and parameter.name != "heads":
                assert parameter.default == field.default, f"{name}: {parameter.name}"


def test_the_default_weight_is_on_the_page() -> None:
    page = (REPO / "docs" / "recipe.md").read_text()
    for kind in KINDS:
        fields = kind.model_fields
        section = re.search(rf"^### .*`kind: {fields['kind'].default}`$(.*?)(?=^### )", page, re.MULTILINE | re.DOTALL)
        assert section, kind
        assert re.search(rf"^\| `weight` \|.*\| `{fields['weight'].default}` \|", section[1], re.MULTILINE), kind


def test_configs_are_made_without_torch() -> None:
    code = """
        import sys
        sys.modules["torch"] = None
        from pydantic import TypeAdapter
        from edgewise.compress.losses import LossConfig
        made = TypeAdapter(LossConfig)
        for kind in sys.argv[1:]:
            assert made.validate_python({"kind": kind}).kind == kind
    """
    kinds = [kind.model_fields["kind"].default for kind in KINDS]
    subprocess.run([sys.executable, "-c", inspect.cleandoc(code), *kinds], check=True, timeout=120)
