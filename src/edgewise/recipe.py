"""The recipe: one YAML file says what to compress, how, for which targets and within which budget."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from edgewise.bench.config import Bench
from edgewise.bench.gate.config import Budget
from edgewise.compress.config import (
    Assistant,
    BornAgain,
    DataFree,
    Distill,
    Fit,
    Inherit,
    Lessons,
    Offline,
    Online,
    Prune,
    Quantize,
    Source,
    StageConfig,
)
from edgewise.compress.losses.base import Loss
from edgewise.config import Config
from edgewise.deploy.config import Deploy
from edgewise.models.config import ModelConfig
from edgewise.models.tasks.config import Augment, TaskConfig


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
        taught = [
            isinstance(stage, Distill | DataFree | Online | Inherit | Assistant)
            or (isinstance(stage, Prune) and stage.fit is not None)
            or (isinstance(stage, Quantize) and stage.teacher == "recipe")
            for stage in self.stages
        ]
        for place, stage in enumerate(self.stages):
            if isinstance(stage, Assistant) and not any(taught[place + 1 :]):
                raise ValueError(f"stages.{place}: the assistant teaches nobody: a distill stage must come after it")
            reused = any(
                loss.kind == "simkd" for before in self.stages[:place] for loss in getattr(before, "losses", ())
            )
            if isinstance(stage, BornAgain) and reused:
                raise ValueError(
                    f"stages.{place}: born_again starts from fresh weights, and simkd's classifier is the teacher's"
                )
        wants_int8 = [t.runtime for t in self.deploy.targets if "int8" in t.precisions]
        if wants_int8 and "quantize" not in kinds:
            raise ValueError(f"deploy.targets: int8 for {', '.join(wants_int8)} needs a quantize stage at the end")
        return self

    @model_validator(mode="after")
    def _only_offline_edits(self) -> Recipe:
        for place, stage in enumerate(self.stages):
            if isinstance(stage, Lessons) and not isinstance(stage, Offline):
                changing = [loss.kind for loss in stage.losses if type(loss).edit is not Loss.edit]
                if changing:
                    raise ValueError(
                        f"stages.{place}.losses: {', '.join(changing)} puts a part of the teacher into the student, "
                        f"which only distill and assistant do, not {stage.kind}"
                    )
        return self

    @model_validator(mode="after")
    def _mixing(self) -> Recipe:
        augment = getattr(self.task, "augment", None)  # a factory's is known when its task is made
        if isinstance(augment, Augment):
            check_mixing(self.stages, augment)
        return self

    @model_validator(mode="after")
    def _triton_serves(self) -> Recipe:
        if self.deploy.triton is not None and {target.runtime for target in self.deploy.targets} == {"litert"}:
            raise ValueError("deploy.triton: LiteRT can't be served by it; add onnxruntime, openvino or tensorrt")
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


def check_mixing(stages: tuple[StageConfig, ...], augment: Augment) -> None:
    """Mixed samples have two labels: what reads one can't learn from them.

    Raises:
        ValueError: mixup or cutmix is on, and a stage needs one label a sample.
    """
    for place, stage in enumerate(stages):
        if not augment.mixes or not isinstance(stage, Lessons) or getattr(stage, "fit", None) is None:
            continue
        reading = [loss.kind for loss in stage.losses if loss.needs_labels]
        if reading:
            raise ValueError(
                f"stages.{place}.losses: {', '.join(reading)} needs one label a sample, and mixup or cutmix gives two; "
                "leave the mixing out, or use kd or dist"
            )
        if stage.teacher_wrong != "none":
            raise ValueError(
                f"stages.{place}.teacher_wrong: whether the teacher is wrong is not known of samples that mixup or "
                "cutmix made; leave the mixing out, or set it to none"
            )


__all__ = ["Fit", "Prune", "Quantize", "Recipe", "Source", "Student", "check_mixing"]
