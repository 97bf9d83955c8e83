"""The plan: every stage a recipe asks for, with its content address. Torch-free, so that it is made in a moment.

A step's key covers its config, its parents' keys, the files and the user's code it reads, the versions of what does the
work, and the number of processes where it trains. It leaves out what can't change the result: paths, and how often
training is checkpointed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgewise import artifact
from edgewise.compress.config import (
    Assistant,
    BornAgain,
    DataFree,
    Distill,
    DropBlocks,
    EmaTeacher,
    Inherit,
    Latency,
    Mutual,
    Offline,
    Online,
    Prune,
    PruneVocabulary,
    Quantize,
    SelfDistill,
    Train,
)
from edgewise.compress.losses import Custom
from edgewise.config import Config, Precision, RuntimeName
from edgewise.errors import RecipeError
from edgewise.models.config import HuggingFace, ModelFactory, OnnxFile
from edgewise.recipe import Recipe
from edgewise.recipe_file import TASK_FILES
from edgewise.stages import layers, ship, shrink, teach
from edgewise.stages.work import Stage

WORK: dict[type[Config], Stage] = {
    Train: teach.train,
    Inherit: teach.inherit,
    Prune: shrink.prune,
    DropBlocks: shrink.drop_blocks,
    PruneVocabulary: shrink.prune_vocabulary,
    Distill: teach.distill,
    Assistant: teach.assistant,
    DataFree: teach.data_free,
    Online: teach.online,
    Mutual: teach.mutual,
    SelfDistill: teach.self_distill,
    BornAgain: teach.born_again,
    EmaTeacher: teach.ema_teacher,
    Quantize: shrink.quantize,
}
# Stages with a teacher beside the model they work on; an assistant has a model of its own.
TAUGHT = (Inherit, Distill, DataFree, Online)
# The libraries whose versions decide a result.
TORCH = ("torch", "numpy", "pillow", "lightning-fabric")
LIBRARIES: dict[type[Config], tuple[str, ...]] = {Prune: ("torch-pruning",), Quantize: ("nncf",)}
EXPORT = ("torch", "onnx", "onnxscript", "nncf")
CONVERT: dict[RuntimeName, tuple[str, ...]] = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "litert": ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch", "nncf"),
    "tensorrt": ("onnx",),
}
NOT_IN_KEYS: Any = {
    "weights": True,
    "tokenizer": True,
    "path": True,
    "augment": {"embeddings"},
    "model": {"path"},  # an ONNX file's bytes are among a step's inputs
    "peers": {"__all__": {"path"}},
    "fit": {"checkpoint_every"},
    "train": {"checkpoint_every"},
    "ensemble": {"teachers"},  # steps of their own
}


@dataclass(frozen=True)
class Step:
    """One planned stage. ``parents`` are step names by role; ``inputs`` are digests of what lies outside the run."""

    name: str
    work: Stage
    config: Any
    parents: Mapping[str, str]
    versions: Mapping[str, str]
    inputs: Mapping[str, str]

    @property
    def trains(self) -> bool:
        """True where the processes of a torchrun group must all take part."""
        return getattr(self.config, "fit", None) is not None or getattr(self.config, "train", None) is not None

    @property
    def plain_config(self) -> Any:
        """The config as JSON, without what can't change the result."""
        if isinstance(self.config, Config):
            return self.config.model_dump(mode="json", exclude=NOT_IN_KEYS)
        return self.config

    def key(self, keys: Mapping[str, str]) -> str:
        """The content address, given the keys of the steps before."""
        parents = {role: keys[name] for role, name in self.parents.items()}
        return artifact.stage_key(self.name, [self.plain_config, dict(self.inputs)], parents, self.versions)


@dataclass(frozen=True)
class Wanted:
    """A file to convert; ``against`` is the step whose torch answers it must follow, ``exports`` the graphs it may
    start from."""

    name: str
    runtime: RuntimeName
    precision: Precision
    role: str
    reference: str
    parent: str
    against: str
    exports: tuple[str, ...]


def plan(recipe: Recipe) -> list[Step]:
    """Every stage of the recipe, in order; parents come before their children.

    Raises:
        RecipeError: the budget names no file of this recipe, or sets no limit.
    """
    from edgewise.models.tasks.load import fingerprint

    # where files lie can't change a result; what is in them is the fingerprint's business
    left = {**NOT_IN_KEYS, **dict.fromkeys(TASK_FILES.get(recipe.task.kind, ()), True)}
    data = {"task": artifact.sha256_json(recipe.task.model_dump(mode="json", exclude=left))}
    data["data"] = fingerprint(recipe.task)
    steps: list[Step] = []

    def add(
        name: str, work: Stage, config: Any, parents: Mapping[str, str], libraries: tuple[str, ...], **inputs: str
    ) -> str:
        steps.append(Step(name, work, config, parents, artifact.versions(*libraries), inputs))
        return name

    def add_model(name: str, work: Stage, config: Any, parents: Mapping[str, str]) -> str:
        libraries = (*TORCH, *LIBRARIES.get(type(config), ()))
        inputs = {**data, **_inputs(recipe, config)}
        goal = latency_goal(config)
        if goal is not None:  # what is measured is another number on another device, or by another runtime
            libraries = tuple(dict.fromkeys((*libraries, *EXPORT, *CONVERT[goal.runtime])))
            inputs["device"] = artifact.sha256_json(_device())
        return add(name, work, config, parents, libraries, **inputs)

    calibration = {"calibration_samples": recipe.deploy.calibration_samples}
    samples = add("samples", ship.samples, calibration, {}, ("numpy", "pillow"), **data)
    # The student comes first: its mistakes are told before the teacher is trained.
    student = add_model("student", teach.source, recipe.student, {}) if recipe.student else None
    teacher = add_model("teacher", teach.source, recipe.teacher, {})
    float_model, quantized, master = student or teacher, None, teacher
    for number, stage in enumerate(recipe.stages, start=1):
        name = f"{number}-{stage.kind}"
        parents = {} if isinstance(stage, Assistant) else {"model": float_model}
        if isinstance(stage, (*TAUGHT, Assistant)) or (isinstance(stage, Prune) and stage.fit is not None):
            parents["teacher"] = master
        if isinstance(stage, Quantize) and stage.teacher == "recipe":
            parents["teacher"] = master
        if isinstance(stage, Offline) and stage.ensemble:
            for place, source in enumerate(stage.ensemble.teachers, start=2):
                parents[f"teacher-{place}"] = add_model(f"{name}-teacher-{place}", teach.source, source, {})
        made = add_model(name, WORK[type(stage)], stage, parents)
        if isinstance(stage, Quantize):
            quantized = made
        elif isinstance(stage, Assistant):
            master = made
        else:
            float_model = made

    files = wanted_files(recipe, teacher, float_model, quantized)
    _check_budget(recipe, files)
    models = {"teacher": teacher, "quantized": quantized, "signed": quantized}
    for form in dict.fromkeys(form for file in files for form in file.exports):
        add(f"export-{form}", ship.export, {"form": form}, {"model": models.get(form) or float_model}, EXPORT)
    for file in files:
        config = {"runtime": file.runtime, "precision": file.precision}
        parents = {"samples": samples, "model": file.against, **{form: f"export-{form}" for form in file.exports}}
        add(file.name, ship.convert, config, parents, CONVERT[file.runtime])
    if recipe.deploy.triton is not None:
        _add_triton(steps, recipe, files)
    _add_measure(steps, recipe, [file for file in files if file.runtime != "tensorrt"])
    _add_layers(steps, files, float_model)
    return steps


def without(step: Step, failed: Collection[str]) -> Step | None:
    """The step where others have failed: what gathers files goes on with those that are there, anything else can't be
    done. None where nothing is left to do."""
    lost = {name for name in step.parents.values() if name in failed}
    if not lost:
        return step
    if step.work not in (ship.measure, ship.triton, layers.layers):
        return None
    files = [
        {**file, **{part: None for part in ("reference", "parent") if file.get(part) in lost}}
        for file in step.config["files"]
        if file["name"] not in lost
    ]
    if not files and step.work is not layers.layers:
        return None
    parents = {role: name for role, name in step.parents.items() if name not in lost}
    return replace(step, config={**step.config, "files": files}, parents=parents)


def _add_triton(steps: list[Step], recipe: Recipe, files: list[Wanted]) -> None:
    """One model a candidate that Triton has a backend for."""
    assert recipe.deploy.triton is not None
    served = [file for file in files if file.role == "candidate" and file.runtime != "litert"]
    config = {
        **recipe.deploy.triton.model_dump(mode="json"),
        "recipe": recipe.name,
        "files": [{"name": file.name, "runtime": file.runtime} for file in served],
        "left": [file.name for file in files if file.role == "candidate" and file.runtime == "litert"],
    }
    parents = {name: name for name in ("samples", *(file.name for file in served))}
    steps.append(Step("triton", ship.triton, config, parents, artifact.versions("onnx"), {}))


def _add_measure(steps: list[Step], recipe: Recipe, files: list[Wanted]) -> None:
    from edgewise.bench.provenance import versions as runtime_versions

    # Numbers of another device are other numbers. One that isn't here is known by its address, which `bench` holds.
    here = recipe.bench.device == "local"
    config = {
        "files": [asdict(file) for file in files],
        "bench": recipe.bench.model_dump(mode="json"),
        "device": _device() if here else None,
    }
    needed = ["samples", *dict.fromkeys(file.against for file in files), *(file.name for file in files)]
    versions = {**artifact.versions(), **(runtime_versions() if here else {})}
    steps.append(Step("measure", ship.measure, config, {name: name for name in needed}, versions, {}))


def _add_layers(steps: list[Step], files: list[Wanted], float_model: str) -> None:
    from edgewise.bench.provenance import versions as runtime_versions

    entries = [
        {"name": file.name, "runtime": file.runtime, "precision": file.precision, "against": file.against}
        | {"float": float_model}
        for file in files
        if file.role == "candidate" and file.precision != "float32"
    ]
    if not entries:
        return
    needed = ["samples", "measure", float_model, *(str(entry["name"]) for entry in entries)]
    versions = {**artifact.versions(*TORCH), **runtime_versions()}
    parents = {name: name for name in dict.fromkeys(needed)}
    steps.append(Step("layers", layers.layers, {"files": entries}, parents, versions, {}))


def _device() -> dict[str, Any]:
    from edgewise.bench.provenance import IDENTITY, provenance

    device = provenance()["device"]
    return {name: device[name] for name in IDENTITY}


def latency_goal(config: Any) -> Latency | None:
    """The latency that a stage measures on its way, if it does."""
    goal = getattr(config, "latency", None) or getattr(getattr(config, "mixed", None), "latency", None)
    return goal if isinstance(goal, Latency) else None


def wanted_files(recipe: Recipe, teacher: str, float_model: str, quantized: str | None) -> list[Wanted]:
    """The files to convert. For each runtime the float teacher (the reference), the float student (the parent, and the
    reference too where the teacher has its own tokenizer), and what was asked for. TensorRT's engines are built and
    timed on the device, so where it is the only target the float files are made for ONNX Runtime, to have something to
    measure here."""
    files: list[Wanted] = []
    targets = {target.runtime: target.precisions for target in recipe.deploy.targets}
    if set(targets) == {"tensorrt"}:
        targets = {**targets, "onnxruntime": ()}
    small = "student" if float_model != teacher else "teacher"
    # A device gives all files the same ids: a teacher that reads others is none to be measured beside them.
    own = recipe.teacher.tokenizer is not None
    for runtime, precisions in targets.items():
        first, form = (float_model, small) if own else (teacher, "teacher")
        reference = "" if runtime == "tensorrt" else f"{runtime}-float32" + ("" if own else "-teacher")
        parent = f"{runtime}-float32" if small == "student" and reference else reference
        if reference:
            forms = _forms(runtime, "float32", form)
            files.append(Wanted(reference, runtime, "float32", "reference", reference, parent, first, forms))
        if parent != reference:
            role = "candidate" if "float32" in precisions else "parent"
            forms = _forms(runtime, "float32", small)
            files.append(Wanted(parent, runtime, "float32", role, reference, parent, float_model, forms))
        for precision in precisions:
            name, forms = f"{runtime}-{precision}", _forms(runtime, precision, small)
            if precision == "int8" and quantized:
                files.append(Wanted(name, runtime, precision, "candidate", reference, parent, quantized, forms))
            elif precision != "float32" or runtime == "tensorrt":
                files.append(Wanted(name, runtime, precision, "candidate", reference, parent, float_model, forms))
    return files


def _forms(runtime: RuntimeName, precision: Precision, small: str) -> tuple[str, ...]:
    """The graphs that a file starts from. LiteRT starts from torch; TensorRT alone takes float16 graphs and signed
    activations, and has a float16 graph beside the quantized one to measure against."""
    if runtime == "litert":
        return ()
    if runtime == "tensorrt":
        return {"float16": ("half",), "int8": ("half", "signed")}.get(precision, (small,))
    return ("quantized",) if precision == "int8" else (small,)


def _inputs(recipe: Recipe, config: Any) -> dict[str, str]:
    """Digests of the files and the user's code that a model config names, and what else its result hangs on."""
    found = {"seed": str(recipe.seed), "threads": str(recipe.threads)}
    if getattr(config, "weights", None) is not None:
        found["weights"] = artifact.sha256_file(config.weights)
    if getattr(config, "tokenizer", None) is not None:
        from edgewise.models.tasks.text.tokenizer import file_of, unusual

        found["tokenizer"] = artifact.sha256_file(file_of(config.tokenizer))
        if named := unusual(config.tokenizer):
            found["special tokens"] = artifact.sha256_json(named)
    from edgewise.models.factory import source_digest

    for place, model in enumerate((getattr(config, "model", None), *getattr(config, "peers", ()))):
        if isinstance(model, ModelFactory):
            found[model.factory] = source_digest(model.factory)
        elif isinstance(model, OnnxFile):
            from edgewise.models.onnx.read import parts

            found[f"onnx {place}"] = artifact.sha256_json([artifact.sha256_file(part) for part in parts(model.path)])
        elif isinstance(model, HuggingFace):
            from edgewise.models.text import folder

            files = folder.parts(folder.located(model))
            found[f"encoder {place}"] = artifact.sha256_json([artifact.sha256_file(part) for part in files])
    for loss in getattr(config, "losses", ()):
        if isinstance(loss, Custom):
            found[loss.loss] = source_digest(loss.loss)
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":  # BatchNorm takes its statistics over each process's share of the batch
        found["processes"] = processes
    return found


def judged_names(recipe: Recipe) -> list[str]:
    """Names of the files that the recipe's budget will judge: those it names, else INT8 candidates, else all."""
    if recipe.budget is not None and recipe.budget.files is not None:
        return list(recipe.budget.files)
    changed = recipe.student or any(not isinstance(stage, (Quantize, Assistant)) for stage in recipe.stages)
    float_model = "student" if changed else "teacher"
    files = wanted_files(recipe, "teacher", float_model, None)
    candidates = [file for file in files if file.role == "candidate" and file.runtime != "tensorrt"]
    return [file.name for file in candidates if file.precision.startswith("int8")] or [one.name for one in candidates]


def _check_budget(recipe: Recipe, files: list[Wanted]) -> None:
    """Say before hours of training that the budget can't be judged."""
    if recipe.budget is None:
        return
    if recipe.budget.empty:
        raise RecipeError("the budget sets no limit", where="budget", hint="for instance max_accuracy_drop_pp: 1.0")
    for limits in recipe.budget.sliced:
        if limits.file is not None and not limits.file.is_file():
            raise RecipeError(f"expected a CSV file, got nothing at {limits.file}", where="budget.slices.file")
    measured = [file.name for file in files if file.runtime != "tensorrt"]
    candidates = [file.name for file in files if file.runtime != "tensorrt" and file.role == "candidate"]
    unknown = sorted(set(recipe.budget.files or ()) - set(measured))
    if unknown:
        raise RecipeError(
            f"no file is called {', '.join(unknown)}", where="budget.files", hint=f"{', '.join(measured)}"
        )
    if not candidates and not recipe.budget.files:
        raise RecipeError(
            "there is no file for the budget to judge: only float32 references are measured here",
            where="budget",
            hint="add a target with int8 or float16, name files, or leave the budget out",
        )
