"""The stage that leaves out blocks: what it saves, and what it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.artifact import Artifact
from edgewise.compress.config import DropBlocks
from edgewise.compress.saved import Description, load_model, save_model
from edgewise.models.build import build
from edgewise.models.config import CifarResNet
from edgewise.models.tasks.load import load_task
from edgewise.recipe import Recipe
from edgewise.stages import shrink
from edgewise.stages.work import Work

CONFIG = CifarResNet(depth=14, width=4)
RECIPE = {
    "name": "dropped",
    "task": {"kind": "digits"},
    "teacher": {"model": CONFIG, "train": {"epochs": 1}},
    "stages": [{"kind": "drop_blocks", "count": 1}],
    "deploy": {"targets": [{"runtime": "onnxruntime", "precisions": ["float32"]}]},
}


@pytest.mark.parametrize("settings", [{"count": 2, "samples": 20}, {"names": ["layer3.1"]}], ids=["count", "names"])
def test_the_stage_saves_a_net_without_them(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.model_validate(RECIPE)
    task = load_task(recipe.task)
    whole = build(CONFIG, task.input_shape, len(task.classes)).eval()
    save_model(
        whole, Description(model=CONFIG, input_shape=task.input_shape, classes=len(task.classes)), tmp_path / "whole"
    )
    ticks: list[str] = []
    work = Work(
        name="1-drop_blocks",
        recipe=recipe,
        config=DropBlocks(kind="drop_blocks", **settings),
        task=lambda: task,
        parents={"model": Artifact(tmp_path / "whole", "teacher", "", "", {}, {}, {}, {}, {}, 0.0)},
        payload=tmp_path / "made",
        scratch=tmp_path,
        cache=tmp_path,
        tick=lambda done, total, note: ticks.append(note),
        note=ticks.append,
    )
    work.payload.mkdir()
    metrics = shrink.drop_blocks(work)
    model, description = load_model(work.payload)
    (edit,) = description.edits
    told = json.loads((work.payload / "blocks.json").read_text())
    assert edit.model_dump() == {"kind": "blocks_dropped", "names": tuple(told["names"])}
    assert metrics["macs"] == told["macs_after"] < told["macs_before"]
    assert metrics["told"][0].startswith(f"dropped {', '.join(told['names'])}: ")
    assert any(line.startswith("not to be dropped: layer2.0: its input") for line in metrics["told"])
    inputs = torch.from_numpy(task.splits["test"].read(np.arange(8)))
    for name in told["names"]:
        whole.set_submodule(name, torch.nn.Identity())
    with torch.no_grad():
        expected = whole(inputs).numpy()
        assert np.array_equal(expected, model(inputs).numpy())
    np.testing.assert_allclose(np.load(work.payload / "answers.npy")[:8], expected, rtol=1e-4, atol=1e-5)
