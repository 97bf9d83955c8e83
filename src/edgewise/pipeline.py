"""The pipeline: plans every stage and its key from the recipe, runs what isn't there yet, reports.

Planning needs no torch: a run with nothing left to do answers at once. Under torchrun every process comes here; the
first one writes, the others only take part in training.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import artifact, stages
from edgewise.artifact import Artifact
from edgewise.compress.config import Distill, Prune, Quantize, Train
from edgewise.config import Config
from edgewise.deploy.config import Precision, RuntimeName
from edgewise.errors import ArtifactError, RecipeError, RuntimeMissing
from edgewise.models.config import ModelFactory
from edgewise.models.tasks.base import Task
from edgewise.recipe import Recipe, Student
from edgewise.stages import Stage, Work

if TYPE_CHECKING:
    from edgewise.bench.gate import Verdict
    from edgewise.bench.record import Context
    from edgewise.console import Console
    from edgewise.recipe_file import LoadedRecipe

WORK: dict[type[Config], Stage] = {
    Train: stages.train,
    Prune: stages.prune,
    Distill: stages.distill,
    Quantize: stages.quantize,
}
CONVERTERS = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "litert": ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch"),
    "tensorrt": ("onnx",),
}
TORCH = ("torch", "numpy")
LIBRARIES: dict[type[Config], tuple[str, ...]] = {Prune: ("torch-pruning",), Quantize: ("nncf",)}


@dataclass(frozen=True)
class Step:
    """One planned stage. ``parents`` are step names by role; ``inputs`` are digests of what lies outside the run."""

    name: str
    work: Stage
    config: Any
    parents: Mapping[str, str]
    versions: Mapping[str, str]
    inputs: Mapping[str, str]

    def key(self, keys: Mapping[str, str]) -> str:
        """The content address, given the keys of the steps before."""
        parents = {role: keys[name] for role, name in self.parents.items()}
        return artifact.stage_key(self.name, [_json(self.config), dict(self.inputs)], parents, self.versions)

    @property
    def trains(self) -> bool:
        """True where processes of a torchrun group must all take part."""
        return getattr(self.config, "fit", None) is not None or getattr(self.config, "train", None) is not None


@dataclass(frozen=True)
class Wanted:
    """A file to convert and measure; ``against`` is the step whose torch answers it must follow."""

    name: str
    runtime: str
    precision: str
    role: str
    reference: str
    parent: str
    against: str


@dataclass(frozen=True)
class Ran:
    """What became of a step."""

    name: str
    key: str
    seconds: float
    reused: bool
    folder: Path


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    stages: tuple[Ran, ...]
    report: Path | None
    verdict: dict[str, Any] | None

    def summary(self) -> dict[str, Any]:
        """The run as JSON."""
        return {
            "folder": str(self.folder),
            "stages": [{**vars(ran), "folder": str(ran.folder)} for ran in self.stages],
            "report": str(self.report) if self.report else None,
            "verdict": self.verdict,
        }


def _json(config: Any) -> Any:
    # Paths are left out of keys: the same bytes under another name are the same input (see Step.inputs).
    return config.model_dump(mode="json", exclude={"weights", "path"}) if isinstance(config, Config) else config


def _inputs(config: Any) -> dict[str, str]:
    """Digests of the files and the user's code that a model config names."""
    found = {}
    if getattr(config, "weights", None) is not None:
        found["weights"] = artifact.sha256_file(config.weights)
    if isinstance(getattr(config, "model", None), ModelFactory):
        from edgewise.models.factory import source_digest

        found["factory"] = source_digest(config.model.factory)
    return found


def plan(recipe: Recipe) -> list[Step]:
    """Every stage of the recipe, in order; parents come before their children."""
    from edgewise.bench.provenance import provenance
    from edgewise.bench.provenance import versions as runtime_versions
    from edgewise.models.tasks.load import fingerprint as task_fingerprint

    held = {"task": _json(recipe.task), "data": task_fingerprint(recipe.task), "seed": recipe.seed}
    data = {"held": artifact.sha256_json(held)}
    torch_versions, steps = artifact.versions(*TORCH), []

    def add(name: str, work: Stage, config: Any, parents: Mapping[str, str], versions: Mapping[str, str]) -> str:
        steps.append(Step(name, work, config, parents, versions, {**data, **_inputs(config)}))
        return name

    calibration = {"calibration_samples": recipe.deploy.calibration_samples}
    add("samples", stages.samples, calibration, {}, artifact.versions("numpy", "pillow"))
    teacher = add("teacher", stages.teacher, recipe.teacher, {}, torch_versions)
    model = teacher
    if isinstance(recipe.student, Student):
        model = add("student", stages.teacher, recipe.student, {}, torch_versions)
    float_model, quantized = model, None
    for number, stage in enumerate(recipe.stages, start=1):
        parents = {"model": model, "teacher": teacher} if isinstance(stage, Distill) else {"model": model}
        versions = artifact.versions(*TORCH, *LIBRARIES.get(type(stage), ()))
        model = add(f"{number}-{stage.kind}", WORK[type(stage)], stage, parents, versions)
        if isinstance(stage, Quantize):
            quantized = model
        else:
            float_model = model

    wanted = {target.runtime: target.precisions for target in recipe.deploy.targets}
    exported = {"teacher": teacher}
    if float_model != teacher:
        exported["student"] = float_model
    if quantized:
        exported["quantized"] = quantized
    half = {"half": "tensorrt" in wanted}  # float16 graphs, which only TensorRT starts from
    export = add("export", stages.export, half, exported, artifact.versions("torch", "onnx", "onnxscript", "nncf"))
    files = _files(wanted, teacher, float_model, quantized)
    bundles = [
        Wanted(f"tensorrt-{precision}", "tensorrt", precision, "candidate", "", "", quantized or float_model)
        for precision in wanted.get("tensorrt", ())
    ]
    for file in [*files, *bundles]:
        config = {"runtime": file.runtime, "precision": file.precision, "role": file.role}
        parents = {"export": export, "samples": "samples", "model": file.against}
        add(file.name, stages.convert, config, parents, artifact.versions(*CONVERTERS[file.runtime]))
    if files:
        bench = {
            "files": [asdict(file) for file in files],
            "bench": recipe.bench.model_dump(mode="json"),
            "device": provenance()["device"],
        }
        needed = ["samples", *dict.fromkeys(file.against for file in files), *(file.name for file in files)]
        versions = {**artifact.versions(), **runtime_versions()}
        add("measure", stages.measure, bench, {name: name for name in needed}, versions)
    return steps


def _files(
    wanted: Mapping[RuntimeName, tuple[Precision, ...]], teacher: str, float_model: str, quantized: str | None
) -> list[Wanted]:
    """The files to convert and measure: for each runtime the float teacher (the reference), the float student (the
    parent), and what was asked for. TensorRT is not among them: its engines are built and timed on the device."""
    files: list[Wanted] = []
    for runtime, precisions in wanted.items():
        if runtime == "tensorrt":
            continue
        reference = f"{runtime}-float32-teacher"
        parent = f"{runtime}-float32" if float_model != teacher else reference
        rows = [(reference, "float32", "reference", teacher)]
        if parent != reference:
            rows.append((parent, "float32", "candidate" if "float32" in precisions else "parent", float_model))
        for precision in precisions:
            if precision != "float32":
                against = quantized if precision == "int8" and quantized else float_model
                rows.append((f"{runtime}-{precision}", precision, "candidate", against))
        files += [Wanted(name, runtime, p, role, reference, parent, against) for name, p, role, against in rows]
    return files


def find(root: Path, name: str, key: str, console: Console) -> Artifact | None:
    """The finished artifact, verified by hash, or None. A corrupt one is named, set aside and made again."""
    folder = artifact.stage_folder(root, name, key)
    if not folder.exists():
        return None
    try:
        return artifact.load(folder)
    except ArtifactError as error:
        console.warn(f"{error}\n  it is made again")
        shutil.rmtree(folder)
        return None


def run(loaded: LoadedRecipe, out: Path, console: Console) -> RunResult:
    """Run ``loaded.recipe`` in the folder ``out``; finished stages are kept and reused.

    Raises:
        EdgewiseError: any mistake of the user's; what was finished stays.
    """
    recipe, rank = loaded.recipe, int(os.environ.get("RANK", "0"))
    root = out / "stages"

    @cache
    def task() -> Task:
        from edgewise.models.tasks.load import load_task

        return load_task(recipe.task)

    with ExitStack() as held:
        if rank == 0:
            held.enter_context(artifact.locked(out))
        steps = plan(recipe)
        keys: dict[str, str] = {}
        for step in steps:
            keys[step.name] = step.key(keys)
        if not all(artifact.stage_folder(root, name, key).exists() for name, key in keys.items()):
            _require_runtimes(recipe)
        done: dict[str, Artifact] = {}
        ran: list[Ran] = []
        for step in steps:
            if rank and step.name == "export":
                return RunResult(out, tuple(ran), None, None)  # the other processes only train
            key, started = keys[step.name], time.monotonic()
            found = find(root, step.name, key, console)
            made = found or _make(step, key, root, recipe, task, done, console, rank)
            done[step.name] = made
            seconds = time.monotonic() - started
            ran.append(Ran(step.name, key, seconds, found is not None, made.folder))
            console.stage(step.name, reused=found is not None, seconds=seconds)
        record = {
            "format": 1,
            "name": recipe.name,
            "recipe": recipe.model_dump(mode="json"),
            "text": loaded.text,
            "choices": list(loaded.choices),
            "steps": [{"name": step.name, "folder": f"stages/{done[step.name].folder.name}"} for step in steps],
        }
        (out / "run.json").write_text(json.dumps(record, indent=1))
        page, verdict = _report(out, recipe, done, loaded.text, list(loaded.choices))
    return RunResult(out, tuple(ran), page, verdict)


def _require_runtimes(recipe: Recipe) -> None:
    """Say what is missing before hours of training, not after."""
    from edgewise.deploy.runtimes import MODULES

    for target in recipe.deploy.targets:
        missing = import_module(MODULES[target.runtime]).missing()
        if missing is not None and target.runtime != "tensorrt":  # a TensorRT bundle is made without the runtime
            raise RuntimeMissing(missing, where=f"deploy.targets: {target.runtime}", hint="edgewise doctor")


def _make(
    step: Step,
    key: str,
    root: Path,
    recipe: Recipe,
    task: Callable[[], Task],
    done: Mapping[str, Artifact],
    console: Console,
    rank: int,
) -> Artifact:
    """Do the work of a step and seal it. Processes other than the first train along, then wait for the seal."""
    parents = {role: done[name] for role, name in step.parents.items()}
    console.stage(step.name)
    if rank:
        if step.trains:
            with artifact.workplace(root / f".rank{rank}", step.name, key) as (payload, scratch):
                shared = artifact.stage_folder(root, step.name, key).with_suffix(".partial") / "scratch"
                step.work(
                    Work(
                        recipe,
                        step.config,
                        task,
                        parents,
                        payload,
                        shared if shared.exists() else scratch,
                        console.tick,
                    )
                )
            shutil.rmtree(root / f".rank{rank}", ignore_errors=True)
        return _wait(artifact.stage_folder(root, step.name, key))
    started = time.monotonic()
    with artifact.workplace(root, step.name, key) as (payload, scratch):
        metrics = step.work(Work(recipe, step.config, task, parents, payload, scratch, console.tick))
    made = Artifact(
        folder=payload,
        name=step.name,
        key=key,
        digest="",
        parents={role: keys.digest for role, keys in parents.items()},
        config=_json(step.config) if isinstance(step.config, Config) else step.config,
        files={},
        metrics=metrics,
        versions=step.versions,
        seconds=round(time.monotonic() - started, 3),
    )
    return artifact.commit(root, made)


def _wait(folder: Path, limit_s: float = 600.0) -> Artifact:
    deadline = time.monotonic() + limit_s
    while not (folder / artifact.RECORD).exists():
        if time.monotonic() > deadline:
            raise ArtifactError(f"the first process did not finish within {limit_s:.0f} s", where=str(folder))
        time.sleep(0.1)
    return artifact.load(folder)


def _opened(folder: Path) -> tuple[Recipe, dict[str, Any], dict[str, Artifact]]:
    """A finished run: its recipe, its record, its artifacts.

    Raises:
        ArtifactError: ``folder`` isn't a finished run.
    """
    try:
        record = json.loads((folder / "run.json").read_text())
        done = {step["name"]: artifact.load(folder / step["folder"]) for step in record["steps"]}
        return Recipe.model_validate(record["recipe"]), record, done
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"not a finished run ({error})", where=str(folder), hint="edgewise run RECIPE makes one"
        ) from error


def report(folder: Path) -> Path:
    """Write the report of a finished run again; returns the HTML page.

    Raises:
        ArtifactError: ``folder`` isn't a finished run, or its artifacts changed.
    """
    recipe, record, done = _opened(folder)
    page, _ = _report(folder, recipe, done, record["text"], record["choices"], always=True)
    return page


def gate_run(folder: Path, budget: Path | None) -> Verdict:
    """Judge a finished run by a budget file, or by the budget in its recipe.

    Raises:
        ArtifactError: ``folder`` isn't a finished run.
        RecipeError: no budget, or one with mistakes.
    """
    from edgewise.bench.gate import gate
    from edgewise.bench.record import load_results
    from edgewise.recipe_file import load_budget

    recipe, _, done = _opened(folder)
    limits = load_budget(budget) if budget is not None else recipe.budget
    if limits is None:
        raise RecipeError("the recipe has no budget", where=str(folder), hint="give one with --budget FILE")
    return gate(limits, load_results(done["measure"].folder))


def _report(
    out: Path, recipe: Recipe, done: Mapping[str, Artifact], text: str, choices: list[str], *, always: bool = False
) -> tuple[Path, dict[str, Any] | None]:
    """Judge and write the report, unless the one there was made from the same measurement, budget and recipe."""
    page = out / "report.html"
    limits = recipe.budget.model_dump(mode="json") if recipe.budget else None
    mark = artifact.sha256_json(
        [done["measure"].key, done["measure"].digest, limits, text, choices, artifact.versions()]
    )
    stamp = out / ".report"
    if not always and page.exists() and stamp.exists():
        held = json.loads(stamp.read_text())
        if held["mark"] == mark:
            return page, held["verdict"]

    from edgewise.bench.gate import gate
    from edgewise.bench.record import load_results
    from edgewise.bench.report.write import write_report

    results = load_results(done["measure"].folder)
    verdict = gate(recipe.budget, results) if recipe.budget else None
    write_report(results, verdict, _context(recipe, done, text, choices), out)
    told = verdict.to_json() if verdict else None
    stamp.write_text(json.dumps({"mark": mark, "verdict": told}))
    return page, told


def _context(recipe: Recipe, done: Mapping[str, Artifact], text: str, choices: list[str]) -> Context:
    """What the report tells beside the measurements: the journey, parity, bundles, versions."""
    from edgewise.bench.record import BundleRow, Context, JourneyRow, ParityRow
    from edgewise.bench.stats import wilson

    journey = []
    for name, made in done.items():
        if "accuracy" not in made.metrics:
            continue
        m = made.metrics
        interval = wilson(m["correct"], m["samples"])
        note = f"made in {made.seconds:.0f} s"
        size = made.files["model.safetensors"]["size_bytes"]
        journey.append(
            JourneyRow(
                name, m["params"], m["macs"], m["accuracy"], interval.low, interval.high, m["samples"], size, note
            )
        )
    bundles = []
    for name, made in done.items():
        if name.startswith("tensorrt-"):
            manifest = json.loads(made.file(made.metrics["main"]).read_text())
            bundles.append(BundleRow(name, manifest["built"], manifest["reason"], tuple(made.files)))
    skipped: dict[str, str] = next(
        (made.metrics["skipped"] for made in done.values() if made.metrics.get("skipped")), {}
    )
    parity = json.loads(done["measure"].file("parity.json").read_text())
    return Context(
        name=recipe.name,
        created=done["measure"].metrics["measured_at"],
        recipe_text=text,
        journey=tuple(journey),
        parity={name: ParityRow(**row) for name, row in parity.items()},
        bundles=tuple(bundles),
        notes=(*choices, *(f"not pruned: {layer}: {reason}" for layer, reason in skipped.items())),
        versions={name: version for made in done.values() for name, version in made.versions.items()},
        metric=done["measure"].metrics["metric"],
    )
