"""The page on own models, data and losses: what it prints works."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "your-own.md"


def block(mark: str, language: str) -> str:
    found = re.search(rf"<!-- {re.escape(mark)} -->\s*```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, mark
    return found[1]


def test_the_printed_task_model_and_recipe_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.compress.train import evaluate, fit, labels_only
    from edgewise.models.build import build
    from edgewise.models.tasks.load import load_task
    from edgewise.recipe_file import load_recipe

    (tmp_path / "mine.py").write_text(block("python: mine.py", "python"))
    (tmp_path / "mine.yaml").write_text(block("recipe", "yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    recipe = load_recipe(tmp_path / "mine.yaml").recipe
    assert recipe.teacher.train is not None
    task = load_task(recipe.task)
    assert len(task.splits["train"].ids) == 200
    model = build(recipe.teacher.model, task.input_shape, len(task.classes))
    fit(labels_only(model), task.splits["train"], recipe.teacher.train, seed=0)
    test = task.splits["test"]
    score = task.score(evaluate(model, test), test.targets)
    assert score.shape == (200,)
    assert np.isin(score, (0, 1)).all()
    monkeypatch.delitem(sys.modules, "mine")


def test_the_printed_losses_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.compress.config import Distill
    from edgewise.compress.strategies.offline import distill
    from edgewise.models.build import build
    from edgewise.models.tasks.load import load_task
    from edgewise.recipe_file import load_recipe
    from edgewise.stages.rehearse import rehearse

    for name in ("my_loss", "my_hint"):
        (tmp_path / f"{name}.py").write_text(block(f"python: {name}.py", "python"))
    (tmp_path / "losses.yaml").write_text(block("recipe: losses", "yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    recipe = load_recipe(tmp_path / "losses.yaml").recipe
    task = load_task(recipe.task)
    rehearse(recipe, task)
    (stage,) = recipe.stages
    assert isinstance(stage, Distill)
    assert recipe.student is not None
    student, teacher = (
        build(model, task.input_shape, len(task.classes)) for model in (recipe.student.model, recipe.teacher.model)
    )
    before = set(student.state_dict())
    (epoch,) = distill(student, teacher, task.splits["train"], stage, seed=0)
    # Both, and each with its own weight.
    assert {"kd", "custom", "custom-2"} < set(epoch.terms)
    for name, weight in (("custom", 0.1), ("custom-2", 0.5)):
        assert epoch.terms[name] == pytest.approx(weight * epoch.unweighted[name])
        assert epoch.unweighted[name] > 0
    assert set(student.state_dict()) == before
    for name in ("my_loss", "my_hint"):
        monkeypatch.delitem(sys.modules, name)


def test_the_printed_function_is_the_margin_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from edgewise.compress.losses import Custom
    from edgewise.compress.losses.base import Batch, Outputs

    (tmp_path / "my_loss.py").write_text(block("python: my_loss.py", "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loss = Custom(kind="custom", loss="my_loss:margin", arguments={"at_least": 2.0})
    student = torch.tensor([[3.0, 0.0, 2.5], [1.0, 0.0, 0.0], [0.0, 5.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])  # wrong about the second
    batch = Batch(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1]), torch.arange(3))
    assert float(loss(Outputs(student), Outputs(teacher), batch, None)) == pytest.approx((2.0 - 0.5) / 3)
    monkeypatch.delitem(sys.modules, "my_loss")
