"""Target profiles: what ``--for phone`` chooses where the recipe leaves it open. What the recipe says always wins."""

from __future__ import annotations

from dataclasses import dataclass

from edgewise.compress.config import Prune, StageConfig
from edgewise.config import Precision, RuntimeName
from edgewise.deploy.config import Deploy, Target
from edgewise.errors import RecipeError
from edgewise.recipe import Recipe
from edgewise.recipe_words import did_you_mean


@dataclass(frozen=True)
class Profile:
    """Runtimes with their precisions, the channel multiple, and why."""

    targets: tuple[tuple[RuntimeName, tuple[Precision, ...]], ...]
    targets_reason: str
    round_to: int
    round_reason: str


PROFILES = {
    "phone": Profile(
        (("litert", ("int8", "float16")),),
        "Android apps ship LiteRT; int8 is for the CPU, float16 for the GPU delegate",
        8,
        "XNNPACK's ARM kernels take channels by 8",
    ),
    "jetson": Profile(
        (("tensorrt", ("int8", "float16")),),
        "TensorRT is what uses the GPU; float16 is there where int8 costs too much accuracy",
        32,
        "tensor cores take INT8 channels by 32",
    ),
    "raspberry-pi": Profile(
        (("litert", ("int8",)), ("onnxruntime", ("int8",))),
        "both have good ARM kernels, and which is faster depends on the model: measure both",
        8,
        "NEON kernels take channels by 8",
    ),
    "x86": Profile(
        (("onnxruntime", ("int8",)), ("openvino", ("int8",))),
        "both use VNNI, and which is faster depends on the model: measure both",
        16,
        "an AVX-512 VNNI register holds 16 sums",
    ),
}

DEFAULT_ROUND_TO = 8
DEFAULT_ROUND_REASON = "no profile was named; 8 suits every runtime, x86 is often faster with 16"


def get(name: str) -> Profile:
    """The profile called ``name``.

    Raises:
        RecipeError: no such profile.
    """
    if name not in PROFILES:
        known = ", ".join(PROFILES)
        raise RecipeError(f"no profile {name!r}; there are {known}{did_you_mean(name, PROFILES)}", where="--for")
    return PROFILES[name]


def apply(recipe: Recipe, profile: str | None) -> tuple[Recipe, list[str]]:
    """The recipe with every open choice made, and one line for each choice made, or kept against the profile.

    Without a profile only the channel multiple is open: targets have a default of their own.

    Raises:
        RecipeError: no such profile.
    """
    chosen = None if profile is None else get(profile)
    stages, lines = _round(recipe, chosen)
    deploy = recipe.deploy
    if chosen is not None:
        deploy, more = _targets(recipe, chosen)
        lines = [*more, *lines]
    # No choice can break the recipe: a target with open precisions has already needed the quantize stage for int8.
    return recipe.model_copy(update={"stages": stages, "deploy": deploy}), lines


def _targets(recipe: Recipe, profile: Profile) -> tuple[Deploy, list[str]]:
    precisions = dict(profile.targets)
    if "targets" not in recipe.deploy.model_fields_set:
        targets = tuple(Target(runtime=name, precisions=wanted) for name, wanted in profile.targets)
        return _retarget(recipe.deploy, targets), [f"deploy.targets: {_named(targets)} ({profile.targets_reason})"]
    kept: list[Target] = []
    lines = []
    for i, target in enumerate(recipe.deploy.targets):
        wanted, place = precisions.get(target.runtime), f"deploy.targets[{i}]"
        if "precisions" not in target.model_fields_set and wanted is not None:
            target = target.model_copy(update={"precisions": wanted})
            lines.append(f"{place}: {_named((target,))} ({profile.targets_reason})")
        elif target.precisions != wanted:
            other = f"take {' + '.join(wanted)}" if wanted else f"not ship {target.runtime}"
            lines.append(f"{place}: kept {_named((target,))} (the recipe says so; the profile would {other})")
        kept.append(target)
    return _retarget(recipe.deploy, tuple(kept)), lines


def _retarget(deploy: Deploy, targets: tuple[Target, ...]) -> Deploy:
    return deploy.model_copy(update={"targets": targets})


def _round(recipe: Recipe, profile: Profile | None) -> tuple[tuple[StageConfig, ...], list[str]]:
    multiple = DEFAULT_ROUND_TO if profile is None else profile.round_to
    reason = DEFAULT_ROUND_REASON if profile is None else profile.round_reason
    stages: list[StageConfig] = []
    lines = []
    for i, stage in enumerate(recipe.stages):
        if isinstance(stage, Prune) and stage.round_to is None:
            stage = stage.model_copy(update={"round_to": multiple})
            lines.append(f"stages[{i}].round_to: {multiple} ({reason})")
        elif isinstance(stage, Prune) and profile is not None and stage.round_to != multiple:
            lines.append(
                f"stages[{i}].round_to: kept {stage.round_to} (the recipe says so; the profile would take {multiple})"
            )
        stages.append(stage)
    return tuple(stages), lines


def _named(targets: tuple[Target, ...]) -> str:
    return "; ".join(f"{target.runtime} {' + '.join(target.precisions)}" for target in targets)
