"""The page on own models and data: what it prints works."""

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
    fit(model, task.splits["train"], labels_only(0.0), recipe.teacher.train, seed=0)
    test = task.splits["test"]
    score = task.score(evaluate(model, test), test.targets)
    assert score.shape == (200,)
    assert np.isin(score, (0, 1)).all()
    monkeypatch.delitem(sys.modules, "mine")
