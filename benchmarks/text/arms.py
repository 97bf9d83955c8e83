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


def _random(recipe: Recipe) -> None:
    recipe["stages"] = [stage for stage in recipe["stages"] if stage["kind"] != "inherit"]


def _wide(recipe: Recipe) -> None:
    """Feed-forward layers as wide as the teacher's."""
    del recipe["student"]["model"]["ffn"]
    del recipe["stages"][0]["slice"]


def _nothing(recipe: Recipe) -> None:
    pass


ALL = ("onnxruntime", "openvino", "litert")
LABELS, LOGITS, RANDOM = "labels", "logits", "random"


def _family(recipe: str, about: str, change: Callable[[Recipe], None], controls: tuple[str, ...]) -> dict[str, Arm]:
    """A student, and beside it the same one taught by less; ``controls``: the runtimes of those."""

    def then(other: Callable[[Recipe], None]) -> Callable[[Recipe], None]:
        def both(document: Recipe) -> None:
            change(document)
            other(document)

        return both

    return {
        "": Arm(recipe, about, change, ALL),
        f"-{LABELS}": Arm(recipe, "no teacher: the labels alone", then(_labels_only), controls),
        f"-{LOGITS}": Arm(recipe, "answers alone", then(_logits_only), controls),
        f"-{RANDOM}": Arm(recipe, "from random weights", then(_random), controls),
    }


DISTILBERT = _family("distilbert", "answers and hidden states", _nothing, ALL)
TINYBERT = _family("tinybert", "embeddings, hidden states, attention, then answers", _nothing, ALL)
WIDE = _family("tinybert", "the same, feed-forward layers as wide as the teacher's", _wide, ("onnxruntime",))
ARMS: Mapping[str, Arm] = {
    **{f"distilbert{less}": arm for less, arm in DISTILBERT.items()},
    **{f"tinybert{less}": arm for less, arm in TINYBERT.items()},
    **{f"tinybert-wide{less}": arm for less, arm in WIDE.items()},
    "minilm": Arm("minilm", "value relations of the last layer, then answers", runtimes=ALL),
    "bilstm": Arm("bilstm", "answers"),
    "bilstm-labels": Arm("bilstm", "no teacher: the labels alone", _labels_from_scratch),
}


def control_of(arm: str) -> str | None:
    """The arm of the same student that learns from the labels alone, None where there is none or it is that."""
    family, _, last = arm.rpartition("-")
    control = f"{family if last in (LABELS, LOGITS, RANDOM) else arm}-{LABELS}"
    return control if control in ARMS and control != arm else None


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
