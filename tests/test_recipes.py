"""The recipes that are shipped, and the reference that describes them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgewise.profiles import PROFILES
from edgewise.recipe_file import load_recipe

REPO = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPO / "recipes").rglob("*.yaml"))


def test_there_is_a_recipe_to_start_with() -> None:
    assert REPO / "recipes" / "digits.yaml" in RECIPES


@pytest.mark.parametrize("profile", [None, *PROFILES])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(REPO / "recipes")))
def test_every_shipped_recipe_is_valid(
    path: Path, profile: str | None, real_data: Callable[[str], Path], word_pieces: Callable[..., Path], tmp_path: Path
) -> None:
    parts = yaml.safe_load(path.read_text())
    task, data = parts["task"], None
    if {"path", "train"} & set(task) or any("weights" in parts.get(role, {}) for role in ("teacher", "student")):
        data = real_data(".")
    if "tokenizer" in task:  # a pretrained encoder is the user's own to bring: here is what a recipe asks of it
        for there in data.iterdir() if data else ():
            (tmp_path / there.name).symlink_to(there.resolve())
        (tmp_path / task["tokenizer"]).symlink_to(word_pieces("a b"))
        data = tmp_path
    assert load_recipe(path, data=data, profile=profile).recipe.name == parts["name"]


def test_the_recipe_reference_says_what_the_configs_say() -> None:
    spec = importlib.util.spec_from_file_location("recipe_reference", REPO / "tools" / "recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    current = reference.PAGE.read_text()
    assert current == reference.page(current), "run python tools/recipe_reference.py"
