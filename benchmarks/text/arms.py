"""The arms of the SST-2 experiment: each a recipe that is shipped, and what is changed in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "sst2"
TEACHER = "teacher"

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """``recipe``: the file in recipes/sst2, ``about``: for the tables; ``change`` edits the recipe in place;
    ``runtimes``: what its files are made for."""

    recipe: str
    about: str
    change: Callable[[Recipe], None] = lambda recipe: None
    runtimes: tuple[str, ...] = ("onnxruntime",)


def _taught(recipe: Recipe) -> list[dict[str, Any]]:
    return [stage for stage in recipe["stages"] if stage["kind"] == "distill"]


def _labels_only(recipe: Recipe) -> None:
    """The same student, started alike, fine-tuned on the labelled sentences as the teacher was."""
    first = recipe["stages"].index(_taught(recipe)[0])
    recipe["stages"] = [stage for stage in recipe["stages"] if stage["kind"] != "distill"]
    recipe["stages"].insert(first, {"kind": "train", "fit": recipe["teacher"]["train"]})


def _labels_from_scratch(recipe: Recipe) -> None:
    """A net without pretrained layers needs a higher rate and more epochs; the best on the validation split stays."""
    fit = {**_taught(recipe)[0]["fit"], "epochs": 12, "batch_size": 32, "early_stop": {"patience": 3}}
    _labels_only(recipe)
    for stage in recipe["stages"]:
        if stage["kind"] == "train":
            stage["fit"] = fit


def _logits_only(recipe: Recipe) -> None:
    """Every stage keeps its epochs and learns from the answers alone."""
    for stage in _taught(recipe):
        kept = [loss for loss in stage["losses"] if loss["kind"] in ("kd", "logit_mse")]
        stage["losses"] = kept or [{"kind": "kd", "weight": 1.0, "temperature": 1.0}]


def _narrow(recipe: Recipe) -> None:
    """Feed-forward layers half as wide, started from the first half of the teacher's."""
    recipe["student"]["model"]["ffn"] = 768
    recipe["stages"][0]["slice"] = True


def _random(recipe: Recipe) -> None:
    recipe["stages"] = [stage for stage in recipe["stages"] if stage["kind"] != "inherit"]


ALL = ("onnxruntime", "openvino", "litert")
ARMS: Mapping[str, Arm] = {
    "distilbert": Arm("distilbert", "answers and hidden states", runtimes=ALL),
    "distilbert-labels": Arm("distilbert", "no teacher: the labels alone", _labels_only),
    "distilbert-logits": Arm("distilbert", "answers alone", _logits_only),
    "distilbert-random": Arm("distilbert", "from random weights", _random),
    "tinybert": Arm("tinybert", "embeddings, hidden states, attention, then answers", runtimes=ALL),
    "tinybert-narrow": Arm("tinybert", "the same, feed-forward layers half as wide", _narrow, ("openvino",)),
    "tinybert-labels": Arm("tinybert", "no teacher: the labels alone", _labels_only),
    "tinybert-logits": Arm("tinybert", "answers alone", _logits_only, ALL),
    "tinybert-random": Arm("tinybert", "from random weights", _random, ALL),
    "minilm": Arm("minilm", "value relations of the last layer, then answers", runtimes=ALL),
    "bilstm": Arm("bilstm", "answers"),
    "bilstm-labels": Arm("bilstm", "no teacher: the labels alone", _labels_from_scratch),
}


def recipe_of(arm: str, seed: int, data: Path, weights: Path) -> Recipe:
    """The recipe of ``arm`` with a teacher that is trained already: the same for every arm and seed."""
    chosen = ARMS[arm]
    recipe: Recipe = copy.deepcopy(read(chosen.recipe, data))
    chosen.change(recipe)
    recipe["name"], recipe["seed"] = f"{arm}-{seed}", seed
    del recipe["teacher"]["train"]
    recipe["teacher"]["weights"] = str(weights)
    recipe["bench"] = {
        "launches": 2,
        "max_launches": 2,
        "blocks": 2,
    }  # accuracy is what counts here; speed is measured after
    targets = recipe["deploy"]["targets"]
    recipe["deploy"]["targets"] = [target for target in targets if target["runtime"] in chosen.runtimes]
    return recipe


def teacher_recipe(data: Path) -> Recipe:
    """The teacher alone, fine-tuned."""
    recipe = read("distilbert", data)
    del recipe["student"]
    recipe["name"], recipe["stages"] = TEACHER, []
    for target in recipe["deploy"]["targets"]:
        target["precisions"] = ["float32"]
    recipe["bench"] = {"launches": 2, "max_launches": 2, "blocks": 2}
    return recipe


def read(name: str, data: Path) -> Recipe:
    """A shipped recipe whose files lie below ``data``."""
    recipe: Recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    for key in ("train", "val", "test", "transfer", "tokenizer"):
        if key in recipe["task"]:
            recipe["task"][key] = str(data.resolve() / recipe["task"][key])
    recipe["teacher"]["model"]["path"] = str(data.resolve() / recipe["teacher"]["model"]["path"])
    return recipe
