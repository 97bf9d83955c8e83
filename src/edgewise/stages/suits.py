"""Whether the recipe suits its data, told before any net is built."""

from __future__ import annotations

import numpy as np

from edgewise.compress.config import DataFree, Inherit, Lessons, Offline, Online, Prune, Quantize, Source
from edgewise.compress.schedule import numbers
from edgewise.errors import RecipeError
from edgewise.models.inputs import is_text
from edgewise.models.tasks.base import UNLABELLED, Task
from edgewise.models.tasks.config import TaskFactory
from edgewise.recipe import Recipe, check_mixing
from edgewise.recipe_yaml import dotted, named
from edgewise.stages.mixed import FEWEST


def check_data(recipe: Recipe, task: Task) -> None:
    """Whether the task has the splits, the labels and the kind of samples that the stages ask for.

    Raises:
        RecipeError: naming the key that it hasn't.
    """
    sources = {"teacher": recipe.teacher} | company(recipe)
    runs = {f"{where}.train": source.train for where, source in sources.items()}
    for place, stage in enumerate(recipe.stages):
        runs[f"stages[{place}].fit"] = getattr(stage, "fit", None)
        if isinstance(stage, Quantize) and stage.mixed is not None:
            left = len(task.splits["train"].ids) - stage.calibration_samples
            if left < FEWEST:
                raise RecipeError(
                    f"the plan is judged on training samples that calibration leaves, and of "
                    f"{len(task.splits['train'].ids)} it leaves {max(left, 0)}; {FEWEST} are needed",
                    where=f"stages[{place}].mixed",
                    hint="lower calibration_samples, or name float_layers by hand",
                )
        if isinstance(stage, DataFree) and is_text(task.input_shape):
            raise RecipeError(
                "data_free makes images, and the task gives texts",
                where=f"stages[{place}]",
                hint="distil on texts without labels: split: transfer",
            )
        if isinstance(stage, Offline) and stage.split == "transfer":
            _check_transfer(stage, task, f"stages[{place}]")
        if isinstance(stage, Lessons) and stage.teacher_wrong != "none" and task.kind == "regress":
            raise RecipeError(
                "whether the teacher is wrong is not known of a task whose answers are numbers",
                where=f"stages[{place}].teacher_wrong",
                hint="set it to none",
            )
    _check_tokenizers(recipe, task)
    for where, run in runs.items():
        if run is not None and run.label_smoothing and task.kind == "regress":
            raise RecipeError(
                "labels that are numbers can't be smoothed", where=f"{where}.label_smoothing", hint="set it to 0"
            )
        if run is not None and run.early_stop is not None and "val" not in task.splits:
            own = isinstance(recipe.task, TaskFactory)
            raise RecipeError(
                "early stopping needs a validation split, and the task has none: the test split is not for choosing",
                where=f"{where}.early_stop",
                hint=f"{'give the task a val split' if own else 'set task.val_size'}, or leave early_stop out",
            )
    try:
        check_mixing(recipe.stages, task.augment)
    except ValueError as error:
        head, _, text = str(error).partition(": ")
        raise RecipeError(text, where=dotted(named(head))) from error


def _check_transfer(stage: Offline, task: Task, where: str) -> None:
    """Samples that a teacher answers must be there, and what reads a label must find one."""
    split = task.splits.get("transfer")
    if split is None:
        raise RecipeError(
            "the task has no transfer split",
            where=f"{where}.split",
            hint="give the task its transfer texts, or write split: train",
        )
    targets = np.asarray(split.targets)
    if not (np.isnan(targets) if np.issubdtype(targets.dtype, np.floating) else targets == UNLABELLED).any():
        return
    reads: list[str] = [loss.kind for loss in stage.losses if loss.needs_labels]
    reads += ["cross_entropy"] if max(numbers(stage.cross_entropy)) > 0 or stage.label_only_epochs > 0 else []
    reads += ["teacher_wrong"] if stage.teacher_wrong != "none" else []
    if reads:
        raise RecipeError(
            f"{', '.join(reads)} would read labels, and there are samples without one in the transfer split",
            where=where,
            hint="set cross_entropy: 0, and learn from the teacher's answers alone",
        )


def _check_tokenizers(recipe: Recipe, task: Task) -> None:
    """A teacher that reads other tokens can be asked for answers alone; what is deployed reads the task's."""
    sources = {"teacher": recipe.teacher} | company(recipe)
    own = [where for where, source in sources.items() if source.tokenizer is not None]
    if own and task.kind == "tag":
        raise RecipeError(
            "the task asks for an answer to each token, and a teacher with its own tokenizer has other tokens",
            where=f"{own[0]}.tokenizer",
            hint="take a teacher with the task's tokenizer",
        )
    if recipe.teacher.tokenizer is None:
        return
    if recipe.student is None:
        raise RecipeError(
            "without a student the teacher itself is compressed, and reads what the task's tokenizer gives",
            where="teacher.tokenizer",
            hint="set it at the task, or add a student",
        )
    for place, stage in enumerate(recipe.stages):
        follows = isinstance(stage, Online | Inherit | DataFree) or (isinstance(stage, Prune) and stage.fit is not None)
        if follows or (isinstance(stage, Quantize) and stage.teacher == "recipe"):
            raise RecipeError(
                f"{stage.kind} needs a teacher that reads the same tokens, and this one has its own tokenizer",
                where=f"stages[{place}]",
                hint="distil with kd or logit_mse, or take a teacher with the task's tokenizer",
            )


def company(recipe: Recipe) -> dict[str, Source]:
    """The teachers beside the first, by their place in the recipe."""
    found = {}
    for place, stage in enumerate(recipe.stages):
        ensemble = getattr(stage, "ensemble", None)
        for number, source in enumerate(ensemble.teachers if ensemble else ()):
            found[f"stages[{place}].ensemble.teachers[{number}]"] = source
    return found
