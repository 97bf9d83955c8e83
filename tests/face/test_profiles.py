"""Profiles choose what is open, keep what the recipe says, and tell both."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from edgewise import profiles
from edgewise.compress.config import Prune
from edgewise.deploy.config import Target
from edgewise.errors import RecipeError
from edgewise.profiles import PROFILES
from edgewise.recipe import Recipe


def recipe(*, prune: dict[str, JsonValue] | None = None, deploy: dict[str, JsonValue] | None = None) -> Recipe:
    plain: dict[str, JsonValue] = {
        "name": "r",
        "task": {"kind": "digits"},
        "teacher": {"model": {"kind": "cifar_resnet"}, "train": {}},
        "stages": [{"kind": "prune", "macs_ratio": 0.5, **(prune or {})}, {"kind": "quantize"}],
    }
    return Recipe.model_validate(plain if deploy is None else {**plain, "deploy": deploy})


def round_to(of: Recipe) -> int | None:
    stage = of.stages[0]
    assert isinstance(stage, Prune)
    return stage.round_to


@pytest.mark.parametrize(
    ("name", "targets", "multiple"),
    [
        ("phone", {"litert": ("int8", "float16")}, 8),
        ("jetson", {"tensorrt": ("int8", "float16")}, 32),
        ("raspberry-pi", {"litert": ("int8",), "onnxruntime": ("int8",)}, 8),
        ("x86", {"onnxruntime": ("int8",), "openvino": ("int8",)}, 16),
    ],
)
def test_open_choices_are_made_and_told(name: str, targets: dict[str, tuple[str, ...]], multiple: int) -> None:
    made, lines = profiles.apply(recipe(), name)
    assert {target.runtime: target.precisions for target in made.deploy.targets} == targets
    assert round_to(made) == multiple
    assert len(lines) == 2
    assert lines[0].startswith("deploy.targets: ")
    assert all(runtime in lines[0] for runtime in targets)
    assert lines[1].startswith(f"stages[0].round_to: {multiple} (")


def test_what_the_recipe_says_wins_and_is_told() -> None:
    asked = recipe(prune={"round_to": 4}, deploy={"targets": [{"runtime": "openvino", "precisions": ["int8"]}]})
    made, lines = profiles.apply(asked, "phone")
    assert made == asked
    assert lines == [
        "deploy.targets[0]: kept openvino int8 (the recipe says so; the profile would not ship openvino)",
        "stages[0].round_to: kept 4 (the recipe says so; the profile would take 8)",
    ]


def test_open_precisions_of_a_named_runtime_are_the_profiles() -> None:
    asked = recipe(deploy={"targets": [{"runtime": "litert"}, {"runtime": "openvino"}]})
    made, lines = profiles.apply(asked, "phone")
    assert made.deploy.targets == (
        Target(runtime="litert", precisions=("int8", "float16")),
        Target(runtime="openvino", precisions=("int8",)),
    )
    assert [line.split(" (")[0] for line in lines[:2]] == [
        "deploy.targets[0]: litert int8 + float16",
        "deploy.targets[1]: kept openvino int8",
    ]


def test_the_rest_of_deploy_stays() -> None:
    made, _ = profiles.apply(recipe(deploy={"min_sqnr_db": 30.0}), "jetson")
    assert made.deploy.min_sqnr_db == 30
    assert made.deploy.targets[0].runtime == "tensorrt"


def test_without_a_profile_only_rounding_is_chosen() -> None:
    asked = recipe()
    made, lines = profiles.apply(asked, None)
    assert round_to(made) == 8
    assert made.deploy == asked.deploy
    assert len(lines) == 1


@pytest.mark.parametrize("name", PROFILES)
def test_applying_is_pure_valid_and_settled(name: str) -> None:
    asked = recipe()
    before = asked.model_dump()
    made, _ = profiles.apply(asked, name)
    assert asked.model_dump() == before
    assert Recipe.model_validate(made.model_dump()) == made
    assert profiles.apply(made, name)[0] == made


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(RecipeError, match=r"no profile 'rasberry'.*did you mean 'raspberry-pi'"):
        profiles.apply(recipe(), "rasberry")
