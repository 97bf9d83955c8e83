"""The recipe: one YAML file says what to compress, how, for which targets and within which budget."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from edgewise.bench.config import Bench, Budget
from edgewise.compress.config import Fit, Prune, Quantize, Source, StageConfig
from edgewise.config import Config
from edgewise.deploy.config import Deploy
from edgewise.models.config import ModelConfig
from edgewise.models.tasks.config import TaskConfig


class Student(Config):
    """A smaller model to distil into; its weights may start at random."""

    model: ModelConfig
    weights: Path | None = None


class Recipe(Config):
    """From a trained model to measured files."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int = Field(
        1,
        ge=1,
        description="CPU threads of torch: part of the result, because sums depend on them in the last bits",
    )
    task: TaskConfig
    teacher: Source
    student: Student | None = Field(None, description="left out: the teacher itself is made smaller")
    stages: tuple[StageConfig, ...] = ()
    deploy: Deploy = Deploy()
    bench: Bench = Bench()
    budget: Budget | None = None

    @model_validator(mode="after")
    def _order(self) -> Recipe:
        kinds = [stage.kind for stage in self.stages]
        if kinds.count("quantize") > 1 or "quantize" in kinds[:-1]:
            raise ValueError("stages: quantize comes once, and last: pruning or training would undo its ranges")
        if self.student is None and "inherit" in kinds:
            raise ValueError("stages: inherit copies the teacher's layers into a student, and there is no student")
        wants_int8 = [t.runtime for t in self.deploy.targets if "int8" in t.precisions]
        if wants_int8 and "quantize" not in kinds:
            raise ValueError(f"deploy.targets: int8 for {', '.join(wants_int8)} needs a quantize stage at the end")
        return self

    @model_validator(mode="after")
    def _targets_once(self) -> Recipe:
        runtimes = [target.runtime for target in self.deploy.targets]
        for target in self.deploy.targets:
            if runtimes.count(target.runtime) > 1:
                raise ValueError(f"deploy.targets: {target.runtime} stands twice; list its precisions together")
            if len(set(target.precisions)) < len(target.precisions):
                raise ValueError(f"deploy.targets: {target.runtime} has a precision twice")
        return self


__all__ = ["Fit", "Prune", "Quantize", "Recipe", "Source", "Student"]
