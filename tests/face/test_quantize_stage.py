"""The quantize stage: PTQ, QAT and QAD from one recipe key, whose teacher, and which samples calibrated."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.artifact import Artifact
from edgewise.compress.config import Quantize
from edgewise.compress.saved import Description, load_model, save_model
from edgewise.errors import EdgewiseError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet
from edgewise.models.tasks.base import Task
from edgewise.models.tasks.config import Digits
from edgewise.models.tasks.load import load_task
from edgewise.plan import plan
from edgewise.progress import silent
from edgewise.recipe import Recipe
from edgewise.stages import shrink
from edgewise.stages.rehearse import rehearse
from edgewise.stages.work import Work

NET = {"kind": "cifar_resnet", "depth": 8, "width": 8}
FIT = {"epochs": 1, "batch_size": 128, "optimizer": {"kind": "sgd", "lr": 0.01}}
PTQ = {"kind": "quantize", "calibration_samples": 40, "weight_bits": 4}
QAD = {**PTQ, "fit": FIT}
QAT = {**QAD, "losses": [], "cross_entropy": 1.0}


@cache
def digits() -> Task:
    return load_task(Digits())


def recipe(stage: dict[str, Any]) -> Recipe:
    document = {"name": "tiny", "task": {"kind": "digits"}, "teacher": {"model": NET, "train": FIT}, "stages": [stage]}
    targets = [{"runtime": "onnxruntime", "precisions": ["int8"]}]
    return Recipe.model_validate({**document, "student": {"model": NET}, "deploy": {"targets": targets}})


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Work]:
    parents = {}
    for seed, role in enumerate(("model", "teacher")):
        torch.manual_seed(seed)
        config = CifarResNet(depth=8, width=8)
        description = Description(model=config, input_shape=digits().input_shape, classes=10)
        save_model(build(config, digits().input_shape, 10), description, tmp_path / role)
        metrics = {"macs": 1, "params": 1}
        parents[role] = Artifact(tmp_path / role, role, role, "", {}, {}, {}, metrics, {}, 0.0)

    def make(name: str, stage: dict[str, Any], note: Any = lambda line: None) -> Work:
        payload, scratch = tmp_path / name / "payload", tmp_path / name / "scratch"
        for folder in (payload, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        config = Quantize.model_validate(stage)
        roles = ("model", "teacher") if config.teacher == "recipe" else ("model",)
        mine = {role: parents[role] for role in roles}
        return Work(
            "1-quantize", recipe(stage), config, digits, mine, payload, scratch, tmp_path / "cache", silent, note
        )

    return make


@pytest.mark.parametrize(
    ("stage", "terms"), [(PTQ, None), (QAD, {"kd"}), (QAT, {"cross_entropy"})], ids=["ptq", "qad", "qat"]
)
def test_one_key_gives_three_ways(stage: dict[str, Any], terms: set[str] | None, work: Callable[..., Work]) -> None:
    mine = work("one", stage)
    metrics = shrink.quantize(mine)
    history = json.loads((mine.payload / "history.json").read_text())
    assert [set(epoch["terms"]) for epoch in history] == ([terms] if terms else [])
    model, description = load_model(mine.payload)
    assert description.edits[-1].kind == "quantized"
    split = digits().splits["test"]
    with torch.no_grad():
        answers = model(torch.from_numpy(split.read(np.arange(len(split.ids))))).numpy()
    # Other batches sum in another order, which a tie in rounding makes a step.
    same = np.isclose(answers, np.load(mine.payload / "answers.npy"), rtol=1e-4, atol=1e-5)
    assert same.mean() > 0.97
    assert metrics["accuracy"] == pytest.approx(float((answers.argmax(1) == split.targets).mean()))


def test_the_samples_that_calibrated_are_stated(work: Callable[..., Work]) -> None:
    settings = {**PTQ, "ranges": "entropy", "reestimate_batchnorm": True}
    mine = work("one", settings)
    shrink.quantize(mine)
    stated = json.loads((mine.payload / "calibration.json").read_text())
    ids = digits().splits["train"].ids
    expected = [ids[round(place)] for place in np.linspace(0, len(ids) - 1, 40)]
    assert stated["ids"] == expected
    assert {name: stated[name] for name in ("split", "count", "seed", "ranges", "rounding")} == {
        "split": "train",
        "count": 40,
        "seed": 0,
        "ranges": "entropy",
        "rounding": "nearest",
    }
    assert stated["batchnorm_samples"] == len(ids)
    again = work("two", settings)
    shrink.quantize(again)
    for name in ("calibration.json", "model.safetensors", "architecture.json"):
        assert (again.payload / name).read_bytes() == (mine.payload / name).read_bytes(), name


def test_the_recipes_teacher_is_a_parent_only_where_it_teaches(work: Callable[..., Work]) -> None:
    losses = {}
    for teacher in ("self", "recipe"):
        stage = {**QAD, "teacher": teacher}
        step = next(step for step in plan(recipe(stage)) if step.name == "1-quantize")
        assert set(step.parents) == ({"model"} if teacher == "self" else {"model", "teacher"})
        mine = work(teacher, stage)
        shrink.quantize(mine)
        losses[teacher] = json.loads((mine.payload / "history.json").read_text())[0]["loss"]
    assert losses["recipe"] > 2 * losses["self"]  # it starts as a copy of the one and knows nothing of the other


def test_what_could_not_be_done_is_told(work: Callable[..., Work]) -> None:
    lines: list[str] = []
    shrink.quantize(work("one", {**PTQ, "equalize": True}, lines.append))
    assert "1-quantize: evened out 3 pairs of layers" in lines
    assert any(line.startswith("1-quantize: not evened out: conv1: read by several") for line in lines)


def test_a_loss_that_the_recipes_teacher_cannot_teach_is_told_before_training() -> None:
    layers = [{"kind": "at", "layers": ["layer9"]}]
    with pytest.raises(EdgewiseError) as caught:
        rehearse(recipe({**QAD, "teacher": "recipe", "losses": layers}), digits())
    assert "layer9" in str(caught.value)
    assert str(caught.value.where).startswith("stages[0] (quantize)")
