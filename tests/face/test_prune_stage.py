"""The prune stage: rounds that survive a killed run, a latency measured on real files, and what is in its key."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise import plan as planning
from edgewise.artifact import Artifact
from edgewise.compress.config import Prune
from edgewise.compress.macs import count
from edgewise.compress.saved import Description, load_model, save_model
from edgewise.errors import EdgewiseError, RecipeError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet
from edgewise.models.tasks.base import Task
from edgewise.models.tasks.config import Digits
from edgewise.models.tasks.load import load_task
from edgewise.progress import silent
from edgewise.recipe import Recipe
from edgewise.stages import clock, shrink
from edgewise.stages.rehearse import rehearse
from edgewise.stages.work import Work

NET = {"kind": "cifar_resnet", "depth": 8, "width": 16}
FIT = {"epochs": 1, "batch_size": 128, "checkpoint_every": 2}
ROUNDS = {"kind": "prune", "macs_ratio": 0.6, "rounds": 3, "fit": FIT}


@cache
def digits() -> Task:
    return load_task(Digits())


def recipe(*stages: dict[str, Any], **more: Any) -> Recipe:
    document = {"name": "tiny", "task": {"kind": "digits"}, "teacher": {"model": NET, "train": FIT}, **more}
    targets = [{"runtime": "onnxruntime", "precisions": ["float32"]}]
    return Recipe.model_validate({**document, "stages": stages, "deploy": {"targets": targets}})


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., Work]:
    """A stage's work in folders called ``name``; its parents are two nets, and a wide one as ``parent``."""
    made = {}
    for seed, (role, width) in enumerate({"model": 16, "teacher": 16, "wide": 64}.items()):
        torch.manual_seed(seed)
        config = CifarResNet(depth=8, width=width)
        description = Description(model=config, input_shape=digits().input_shape, classes=10)
        save_model(build(config, digits().input_shape, 10), description, tmp_path / role)
        made[role] = Artifact(tmp_path / role, role, role, "", {}, {}, {}, {}, {}, 0.0)

    def make(
        name: str, stage: dict[str, Any], tick: Any = silent, note: Any = lambda line: None, parent: str = "model"
    ) -> Work:
        payload, scratch = tmp_path / name / "payload", tmp_path / name / "scratch"
        for folder in (payload, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        config, parents = Prune.model_validate(stage), {"model": made[parent], "teacher": made["teacher"]}
        return Work("1-prune", recipe(stage), config, digits, parents, payload, scratch, tmp_path / "cache", tick, note)

    return make


class _Killed(Exception):
    """Stands for a process that ends in the middle."""


def test_a_run_killed_between_and_within_rounds_ends_with_the_same_bytes(work: Callable[..., Work]) -> None:
    trained: list[int] = []

    def until(steps: int) -> Any:
        def tick(done: int, total: int, note: str) -> None:
            if "loss" in note:
                trained.append(done)
                if len(trained) == steps:
                    raise _Killed

        return tick

    whole = work("whole", ROUNDS, until(-1))
    metrics = shrink.prune(whole)
    steps = len(trained)
    rounds = json.loads((whole.payload / "rounds.json").read_text())
    assert [row["round"] for row in rounds] == [1, 2]
    seen = 0
    for kill in (3, steps // 2):  # within the first round, within the second
        trained.clear()
        with pytest.raises(_Killed):
            shrink.prune(work("killed", ROUNDS, until(kill)))
        seen += len(trained)
    trained.clear()
    again = shrink.prune(work("killed", ROUNDS, until(-1)))
    assert seen + len(trained) <= steps + 3 * FIT["checkpoint_every"]  # nothing but what followed a checkpoint twice
    assert again == metrics
    killed = work("killed", ROUNDS).payload
    for name in ("model.safetensors", "architecture.json", "pruned.json", "rounds.json"):
        assert (killed / name).read_bytes() == (whole.payload / name).read_bytes(), name


def test_training_between_rounds_takes_one_process(work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EdgewiseError, match="in one process"):
        shrink.prune(work("group", ROUNDS))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_latency_goal_end_to_end(work: Callable[..., Work], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real files in a real runtime: what the stage keeps is the candidate that it timed, and a killed search goes on
    with the numbers it has."""
    for name, value in {"LAUNCHES": 1, "BLOCKS": 4, "BLOCK_MS": 10.0, "WARMUP_S": 0.05}.items():
        monkeypatch.setattr(clock, name, value)  # how well it is timed is not asked here
    goal = {"runtime": "onnxruntime", "precision": precision, "ratio": 0.9}
    told: list[str] = []
    stage = {"kind": "prune", "latency": goal, "round_to": 16}
    first = work("latency", stage, note=told.append, parent="wide")
    metrics = shrink.prune(first)
    pruned = json.loads((first.payload / "pruned.json").read_text())
    model, _ = load_model(first.payload)
    kept = count(model, digits().input_shape).macs / pruned["macs_before"]
    assert kept == pytest.approx(metrics["macs"] / pruned["macs_before"])
    chosen = [trial for trial in pruned["trials"] if trial["macs_ratio"] == pytest.approx(kept)]
    assert np.median([timed["ratio"] for timed in chosen[0]["timed"]]) <= 0.9
    assert all(timed["low"] <= timed["ratio"] <= timed["high"] for timed in chosen[0]["timed"])
    assert "below the goal" in told[0]
    log = first.scratch / "clock" / "timed.json"
    before = log.read_bytes()
    (first.scratch / "clock" / "reference" / "model.onnx").unlink()  # nothing is timed again
    assert shrink.prune(first) == metrics
    assert log.read_bytes() == before


def key(document: Recipe, name: str = "1-prune") -> str:
    keys: dict[str, str] = {}
    for step in planning.plan(document):
        keys[step.name] = step.key(keys)
    return keys[name]


def test_device_and_runtime_are_in_the_key_of_what_was_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = recipe({"kind": "prune", "latency": {"runtime": "onnxruntime", "ratio": 0.5}})
    counted = recipe({"kind": "prune", "macs_ratio": 0.5})
    before = key(timed), key(counted)
    monkeypatch.setattr(planning, "_device", lambda: {"cpu": "another"})
    assert key(timed) != before[0]
    assert key(counted) == before[1]
    monkeypatch.undo()
    (step,) = (step for step in planning.plan(timed) if step.name == "1-prune")
    assert "onnxruntime" in step.versions
    assert "onnxruntime" not in next(s for s in planning.plan(counted) if s.name == "1-prune").versions


def test_the_teacher_is_a_parent_only_where_it_teaches() -> None:
    def parents(stage: dict[str, Any]) -> set[str]:
        return set(next(step for step in planning.plan(recipe(stage)) if step.name == "1-prune").parents)

    assert parents({"kind": "prune", "macs_ratio": 0.5, "rounds": 2}) == {"model"}
    assert parents(ROUNDS) == {"model", "teacher"}
    (step,) = (step for step in planning.plan(recipe(ROUNDS)) if step.name == "1-prune")
    assert step.trains
    assert "checkpoint_every" not in step.plain_config["fit"]


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"ignore": ["layer1.0.conv"]}, "layer1.0.conv"),
        ({"floors": {"layer4.*": 8}}, "layer4"),
        ({"floors": {"layer1.*.conv1": 17}}, "at most 16, the outputs that layer1.0.conv1 has, got 17"),
        ({"macs_ratio": 0.02}, "macs_ratio 0.02 is out of reach"),
        ({"macs_ratio": 0.02, "criterion": "taylor"}, "macs_ratio 0.02 is out of reach"),
        ({"rounds": 2, "fit": FIT, "losses": [{"kind": "at", "layers": ["nowhere"]}]}, "nowhere"),
    ],
)
def test_names_are_checked_before_anything_is_trained(stage: dict[str, Any], told: str) -> None:
    document = recipe({"kind": "prune", "macs_ratio": 0.6, **stage})
    with pytest.raises(EdgewiseError, match=told) as caught:
        rehearse(document, digits())
    assert str(caught.value.where).startswith("stages[0] (prune)")
    state = copy.deepcopy(torch.get_rng_state())
    rehearse(recipe({"kind": "prune", "macs_ratio": 0.6, "ignore": ["layer1.*"]}), digits())
    assert torch.equal(state, torch.get_rng_state())


def test_a_timed_stage_is_checked_before_hours_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise import pipeline

    document = recipe({"kind": "prune", "latency": {"runtime": "onnxruntime", "ratio": 0.5, "threads": 512}})
    with pytest.raises(RecipeError, match="got 512") as caught:
        pipeline._require(document)
    assert caught.value.where == "stages[0].latency.threads"
