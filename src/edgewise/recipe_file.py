"""From a YAML file to a checked recipe: every mistake at once, each with its place and line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgewise import profiles
from edgewise.bench.gate.config import Budget
from edgewise.errors import RecipeError
from edgewise.recipe import Recipe
from edgewise.recipe_words import did_you_mean, mistakes, sentence
from edgewise.recipe_yaml import Document, Place, read_document

Model = TypeVar("Model", bound=BaseModel)
_TEXTS = dict.fromkeys(("train", "test", "val", "transfer"), "a file") | {"tokenizer": "a folder or a file"}
# What a task of each kind names, and what must be there.
TASK_FILES = {
    "npz": {"path": "a file"},
    "image_folder": {"path": "a folder"},
    "text": _TEXTS,
    "tags": _TEXTS,
    "masked_lm": _TEXTS,
}
_MODEL_PATHS = {"onnx": "a file", "huggingface": "a folder"}


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe. Its paths are absolute; ``base`` is the folder that relative ones were looked up in;
    ``choices`` says what the profile set or left alone, one line each; ``text`` is the file as it was read."""

    recipe: Recipe
    text: str
    base: Path
    choices: list[str]


def load_recipe(path: Path, *, data: Path | None = None, profile: str | None = None) -> LoadedRecipe:
    """Read and check a recipe, look its files up in ``data`` (else beside the recipe), then apply ``profile``.

    Raises:
        RecipeError: all mistakes together, each with its place and line; or an unknown profile.
    """
    if profile is not None:
        profiles.get(profile)
    document = read_document(path)
    base = (data or path.parent).expanduser().resolve()
    if data is not None and not base.is_dir():
        raise RecipeError(f"expected a folder, got {base}", where="--data")
    found = _missing_files(document, base)
    recipe = _validate(Recipe, document, path, found)
    recipe, choices = profiles.apply(_with_absolute_paths(recipe, base), profile)
    return LoadedRecipe(recipe, document.text, base, choices)


def load_budget(path: Path) -> Budget:
    """Read and check a budget: its keys at the top of the file, or below ``budget:`` as in a recipe.

    Raises:
        RecipeError: all mistakes together, each with its place and line.
    """
    document = _budget_of(read_document(path))
    budget = _with_absolute_paths(_validate(Budget, document, path, []), path.parent.resolve())
    for limits in budget.sliced:
        if limits.file is not None and not limits.file.is_file():
            raise RecipeError(f"expected a CSV file, got nothing at {limits.file}", where=f"{path}: slices.file")
    return budget


def budget_lines(path: Path) -> dict[str, int]:
    """The line in the file of each key of a budget, such as ``release.max_latency_ratio``.

    Raises:
        RecipeError: it isn't a YAML mapping.
    """
    document = _budget_of(read_document(path))
    return {".".join(map(str, place)): line for place, line in document.lines.items() if place}


def _budget_of(document: Document) -> Document:
    """What stands below ``budget:``, or all of it."""
    below = document.data.get("budget")
    if not isinstance(below, dict):
        return document
    lines = {place[1:]: line for place, line in document.lines.items() if place[0] == "budget"}
    return Document(below, lines, document.text)


def _validate(model: type[Model], document: Document, path: Path, found: list[tuple[int, str]]) -> Model:
    try:
        # Strict, so that `epochs: true` is no 1; from JSON, so that lists may be tuples and text may be paths.
        value = model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        found = [*found, *mistakes(error, model, document)]
    if found:
        what = "a mistake" if len(found) == 1 else f"{len(found)} mistakes"
        raise RecipeError("\n  ".join([what, *(text for _, text in sorted(found))]), where=str(path))
    return value


def _files(data: dict[str, Any]) -> list[tuple[Place, str, str]]:
    """(place, path as written, what it must be) of every file a recipe names, also in a recipe with mistakes."""
    task = data.get("task")
    kind = task.get("kind") if isinstance(task, dict) else None
    named = TASK_FILES.get(kind, {}) if isinstance(kind, str) else {}
    places: list[tuple[Place, str]] = [(("task", key), wanted) for key, wanted in named.items()]
    places += _models(data, ())
    found = []
    for place, wanted in places:
        written: Any = data
        for key in place:
            written = written.get(key) if isinstance(written, dict) else written[key]
        if isinstance(written, str):
            found.append((place, written, wanted))
    return found


def _models(value: Any, place: Place) -> list[tuple[Place, str]]:
    """Where weights, ONNX files and folders of encoders are named: wherever a model is; and what each must be."""
    if isinstance(value, list):
        return [found for number, item in enumerate(value) for found in _models(item, (*place, number))]
    if not isinstance(value, dict):
        return []
    found = [found for key, item in value.items() for found in _models(item, (*place, key))]
    if "model" in value and "weights" in value:
        found.append(((*place, "weights"), "a file"))
    if "model" in value and "tokenizer" in value:
        found.append(((*place, "tokenizer"), "a folder or a file"))
    if value.get("kind") in _MODEL_PATHS and "path" in value:
        found.append(((*place, "path"), _MODEL_PATHS[value["kind"]]))
    return found


def _missing_files(document: Document, base: Path) -> list[tuple[int, str]]:
    found = []
    for place, written, wanted in _files(document.data):
        path = _absolute(Path(written), base)
        if ("folder" in wanted and path.is_dir()) or ("file" in wanted and path.is_file()):
            continue
        if path.exists():
            text = f"expected {wanted}, got {'a folder' if path.is_dir() else 'a file'}: {path}"
        else:
            names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            text = f"expected {wanted}, got nothing at {path}{did_you_mean(path.name, names)}"
        found.append(sentence(place, document, text))
    return found


def _absolute(path: Path, base: Path) -> Path:
    try:
        return base / path.expanduser()
    except RuntimeError:  # "~name" of a user that isn't there: a file of that name, which is missing too
        return base / path


def _with_absolute_paths(recipe: Model, base: Path) -> Model:
    def absolute(value: Any) -> Any:
        """The same with every path absolute, wherever in the recipe it stands."""
        if isinstance(value, Path):
            return _absolute(value, base)
        if isinstance(value, tuple):
            return tuple(absolute(item) for item in value)
        if isinstance(value, BaseModel):
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            changed = {name: new for name, old in fields.items() if (new := absolute(old)) is not old and new != old}
            return value.model_copy(update=changed) if changed else value
        return value

    found: Model = absolute(recipe)
    return found
