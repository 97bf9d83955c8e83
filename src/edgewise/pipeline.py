"""The pipeline: runs what the plan asks for and isn't there yet, then judges and reports.

Under torchrun every process comes here; the first one writes, the others only take part in training.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise import artifact
from edgewise.artifact import Artifact
from edgewise.config import Config
from edgewise.errors import (
    ArtifactError,
    ContractError,
    EdgewiseError,
    MeasureError,
    ModelError,
    RecipeError,
    RuntimeMissing,
)
from edgewise.models.tasks.base import Task
from edgewise.outlook import check_power
from edgewise.plan import Step, latency_goal, plan, without
from edgewise.recipe import Recipe
from edgewise.stages.layers import layers
from edgewise.stages.rehearse import rehearse
from edgewise.stages.ship import convert, export, measure, samples, triton
from edgewise.stages.work import Work
from edgewise.told import beside

if TYPE_CHECKING:
    from edgewise.bench.gate import Verdict
    from edgewise.bench.gate.config import Budget
    from edgewise.bench.pick import Pick
    from edgewise.bench.record import Context, Results
    from edgewise.console import Console
    from edgewise.recipe_file import LoadedRecipe


# Stages that fail alone: what doesn't hang on them goes on.
ALONE = (export, convert, triton, layers)
UNTRAINED = "train longer; a few hundred steps also leave BatchNorm's averages behind"
DIVERGED = "clip its gradients (fit: {clip_norm: 1.0}) or lower its rate: it began as the calibrated net"


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
    """A finished run. ``files``: what was made to ship, by name; ``left_out``: what is not to be shipped, and why;
    ``failed``: what could not be made, and why. ``picked``: the file to take, None where none will do."""

    folder: Path
    stages: tuple[Ran, ...]
    report: Path | None
    verdict: dict[str, Any] | None
    files: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    picked: str | None = None
    picked_why: str = ""

    def check(self) -> None:
        """Pass where everything was made.

        Raises:
            ModelError: naming what failed; the rest is there, measured and reported.
        """
        if self.failed:
            raise _some_failed(self.failed, self.report)

    def summary(self) -> dict[str, Any]:
        """The run as JSON."""
        return {
            "folder": str(self.folder),
            "stages": [{**vars(ran), "folder": str(ran.folder)} for ran in self.stages],
            "report": str(self.report) if self.report else None,
            "verdict": self.verdict,
            "files": dict(self.files),
            "warnings": list(self.warnings),
            "left_out": dict(self.left_out),
            "failed": dict(self.failed),
            "picked": self.picked,
            "picked_why": self.picked_why,
        }


def find(root: Path, name: str, key: str, console: Console) -> Artifact | None:
    """The finished artifact, verified by hash, or None. A corrupt one is named, and will be made again."""
    folder = artifact.stage_folder(root, name, key)
    if not folder.exists():
        return None
    try:
        return artifact.load(folder, key)
    except ArtifactError as error:
        console.warn(f"{error}\n  it is made again")
        return None


def run(loaded: LoadedRecipe, out: Path, console: Console) -> RunResult:
    """Run ``loaded.recipe`` in the folder ``out``; finished stages are kept and reused.

    A graph or a file that can't be made stops no other one: it is named in the result, see ``RunResult.check``, and
    tried again by the next run.

    Raises:
        EdgewiseError: any mistake of the user's; what was finished stays.
    """
    recipe, rank = loaded.recipe, int(os.environ.get("RANK", "0"))
    root = out / "stages"

    @cache
    def task() -> Task:
        from edgewise.models.tasks.load import load_task

        found = load_task(recipe.task)
        for note in () if rank else found.notes:
            console.line(f"data: {note}")
        return found

    with ExitStack() as held:
        if rank == 0:
            held.enter_context(artifact.locked(out))
        steps = plan(recipe)
        keys: dict[str, str] = {}
        for step in steps:
            keys[step.name] = step.key(keys)
        to_do = [step for step in steps if not artifact.stage_folder(root, step.name, keys[step.name]).exists()]
        if to_do:
            _require(recipe)
        if recipe.bench.device != "local" and any(step.work is measure for step in to_do):
            _require_device(recipe)
        if any(isinstance(step.config, Config) for step in to_do):  # a stage that makes a model
            if rank == 0:
                console.line(f"{len(to_do)} of {len(steps)} stages to make; data and nets are tried first")
            rehearse(recipe, task())
        done: dict[str, Artifact] = {}
        failed: dict[str, str] = {}
        ran: list[Ran] = []
        for planned in steps:
            left = without(planned, failed)
            if left is None:
                lost = next(name for name in planned.parents.values() if name in failed)
                if planned.work is measure:
                    raise _some_failed(failed, None)
                failed[planned.name] = f"it is made from {lost}, which failed"
                console.warn(f"{planned.name}: {failed[planned.name]}")
                continue
            step = left
            keys[step.name] = step.key(keys)
            if rank and step.name.startswith("export-"):
                return RunResult(out, tuple(ran), None, None)  # the other processes only train
            key, started = keys[step.name], time.monotonic()
            made = found = find(root, step.name, key, console)
            if made is None:
                console.stage(step.name)
                parents = {role: done[name] for role, name in step.parents.items()}
                work = partial(
                    Work,
                    step.name,
                    recipe,
                    step.config,
                    task,
                    parents,
                    cache=out / "cache",
                    tick=console.tick,
                    note=console.line,
                )
                try:
                    made = _train_along(step, key, root, work, rank) if rank else _make(step, key, root, work, parents)
                except EdgewiseError as error:
                    if step.work not in ALONE:
                        raise
                    failed[step.name] = str(error)
                    console.warn(f"{step.name} FAILED: {error}\n  the others go on; the next run tries this one again")
                    continue
            done[step.name] = made
            seconds = time.monotonic() - started
            ran.append(Ran(step.name, key, seconds, found is not None, made.folder))
            console.stage(step.name, reused=found is not None, seconds=seconds)
            if step.work is samples:
                check_power(recipe, made.folder, root, console)
            _tell_accuracy(made, done["samples"], console)
        record = {
            "format": 1,
            "name": recipe.name,
            "recipe": recipe.model_dump(mode="json"),
            "text": loaded.text,
            "choices": list(loaded.choices),
            "steps": [{"name": name, "folder": f"stages/{made.folder.name}"} for name, made in done.items()],
            "failed": failed,
            "unjudged": _candidates(steps, failed),
        }
        _write(out / "run.json", record)
        told = _report(out, recipe, done, record)
        _check_parity(recipe, done, told.page)
    left_out = {**told.pick.unusable, **told.pick.slower}
    shipped = {
        file: str(done[file].file(done[file].metrics["main"]))
        for file in (step.name for step in steps if step.work is convert and step.name in done)
        if "-float32" not in file and file not in left_out
    }
    for file, why in told.pick.slower.items():
        console.warn(f"{file} is SLOWER than float, and left out of what ships: {why}")
    console.line(f"picked: {told.pick.name or 'nothing'}: {told.pick.why}")
    return RunResult(
        out,
        tuple(ran),
        told.page,
        told.verdict,
        shipped,
        tuple(told.warnings),
        left_out,
        failed,
        told.pick.name,
        told.pick.why,
    )


def _some_failed(failed: Mapping[str, str], page: Path | None) -> ModelError:
    """The error at the end of a run: what could not be made, each with its reason."""
    named = "\n  ".join(f"{name}: {why.splitlines()[0]}" for name, why in failed.items())
    rest = f"the rest is in {page}; " if page else "nothing was left to measure; "
    what = "1 thing" if len(failed) == 1 else f"{len(failed)} things"
    return ModelError(
        f"{what} could not be made:\n  {named}",
        hint=f"{rest}mend what failed and run again: only that is made, and what hangs on it",
    )


def _candidates(steps: Sequence[Step], failed: Mapping[str, str]) -> dict[str, str]:
    """Of what failed, the files that a budget would have judged."""
    files = next(step.config["files"] for step in steps if step.work is measure)
    names = [file["name"] for file in files if file["role"] == "candidate"]
    return {name: failed[name].splitlines()[0] for name in names if name in failed}


def unjudged(limits: Budget, record: Mapping[str, Any]) -> dict[str, str]:
    """Of the candidates that could not be made, those that ``limits`` is about: by default INT8 files, where the recipe
    has any, as for those that were made."""
    lost: dict[str, str] = record.get("unjudged") or {}
    if limits.files is not None:
        return lost
    integer = {name: why for name, why in lost.items() if "-int8" in name}
    made = any("-int8" in step["name"] for step in record["steps"] if not step["name"].startswith("export-"))
    return integer if integer or made else lost


def _tell_accuracy(made: Artifact, held: Artifact, console: Console) -> None:
    """What the stage's model is worth; loudly where a trained one is hardly better than guessing."""
    metrics = made.metrics
    if "accuracy" not in metrics:
        return
    value, low, high = (100 * metrics[name] for name in ("accuracy", "accuracy_low", "accuracy_high"))
    about = json.loads(held.file("samples.json").read_text())
    named = "" if about["metric"] == "accuracy" else f", {about['metric']}"
    console.line(f"{made.name}: {value:.2f} % of {metrics['samples']} test samples ({low:.2f} to {high:.2f}){named}")
    if len(about["classes"]) < 2:  # a grade: there is no guessing one of several
        return
    guessing = 100 / len(about["classes"])
    trained = made.file("history.json").exists()
    if trained and low < guessing + 0.1 * (100 - guessing):
        console.warn(
            f"{made.name}: guessing would reach {guessing:.1f} %: what is compared with this model, or learnt from it, "
            f"means little\n  next: {DIVERGED if made.name.endswith('quantize') else UNTRAINED}"
        )


def _require(recipe: Recipe) -> None:
    """Say what is missing here before hours of training, not after."""
    from edgewise.bench.provenance import usable_cpus
    from edgewise.deploy.convert.run import check_installed
    from edgewise.deploy.runtimes import get

    for target in recipe.deploy.targets:
        check_installed(target.runtime)
        missing = get(target.runtime).missing()
        if missing is not None and target.runtime != "tensorrt":  # a TensorRT bundle is made without the runtime
            raise RuntimeMissing(missing, where=f"deploy.targets: {target.runtime}", hint="edgewise doctor")
    threads = {"bench.threads": recipe.bench.threads} if recipe.bench.device == "local" else {}
    for place, stage in enumerate(recipe.stages):
        goal = latency_goal(stage)
        if goal is not None:
            check_installed(goal.runtime)
            missing = get(goal.runtime).missing()
            if missing is not None:
                raise RuntimeMissing(missing, where=f"stages[{place}]: {goal.runtime}", hint="edgewise doctor")
            threads[f"stages[{place}].latency.threads"] = goal.threads
    cpus = usable_cpus()
    for where, wanted in threads.items():
        if wanted > cpus:
            raise RecipeError(
                f"expected at most {cpus}, the CPUs that may be used here, got {wanted}",
                where=where,
                hint="more threads than CPUs would only measure how they wait for each other",
            )


def _require_device(recipe: Recipe) -> None:
    """Reach the device that the files are measured on before hours of training, not after."""
    from edgewise.bench.devices.base import open_device, require_runtimes

    wanted = {target.runtime for target in recipe.deploy.targets} - {"tensorrt"}
    with open_device(recipe.bench.device) as device:
        require_runtimes(device, wanted or {"onnxruntime"}, all_of=True)


def _make(step: Step, key: str, root: Path, work: Callable[..., Work], parents: Mapping[str, Artifact]) -> Artifact:
    """Do the work of a step and seal it; ``work`` lacks only its folders."""
    started = time.monotonic()
    with artifact.workplace(root, step.name, key) as (payload, scratch):
        metrics = step.work(work(payload=payload, scratch=scratch))
    made = Artifact(
        folder=payload,
        name=step.name,
        key=key,
        digest="",
        parents={role: parent.digest for role, parent in parents.items()},
        config=step.plain_config,
        files={},
        metrics=metrics,
        versions=step.versions,
        seconds=round(time.monotonic() - started, 3),
    )
    return artifact.commit(root, made)


def _train_along(step: Step, key: str, root: Path, work: Callable[..., Work], rank: int) -> Artifact:
    """What a process other than the first does: its share of the training, from the same checkpoint, saving nothing;
    then it waits for the seal."""
    folder = artifact.stage_folder(root, step.name, key)
    if step.trains:
        shared = folder.with_suffix(".partial") / "scratch"
        with artifact.workplace(root / f".rank{rank}", step.name, key) as (payload, own):
            scratch = shared if shared.exists() and any(shared.iterdir()) else own
            step.work(work(payload=payload, scratch=scratch))
        shutil.rmtree(root / f".rank{rank}", ignore_errors=True)
    while True:  # torchrun ends this process if the first one fails
        try:
            return artifact.load(folder, key)
        except ArtifactError:
            time.sleep(0.2)


def _check_parity(recipe: Recipe, done: Mapping[str, Artifact], page: Path) -> None:
    """Float32 files must follow torch. Judged once everything is sealed and reported: no measurement is lost."""
    from edgewise.bench.record import load_results

    limit, answers = recipe.deploy.min_sqnr_db, load_results(done["measure"].folder).answers
    for name, rows in json.loads(done["measure"].file("parity.json").read_text()).items():
        row = rows[0]
        if "-float32" in name and answers[name].error is not None:
            raise MeasureError(f"it could not be held against {row['against']}: {answers[name].error}", where=name)
        if "-float32" in name and (row["sqnr_db"] is None or row["sqnr_db"] < limit):
            told = "NaN or infinity" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
            if row["flips"] is not None:  # grades have none
                told += f", {row['flips']} flips"
            raise ContractError(
                f"expected at least {limit} dB against {row['against']}, got {told}: the conversion changed the model",
                where=name,
                hint=f"see {page}; leave this runtime out, or lower deploy.min_sqnr_db if the change is acceptable",
            )


def _write(path: Path, value: Any) -> None:
    """JSON, written beside and renamed: a killed process leaves the old file whole."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, indent=1))
    beside.replace(path)


def opened(folder: Path) -> tuple[Recipe, dict[str, Any], dict[str, Artifact]]:
    """A finished run: its recipe, its record, its artifacts.

    Raises:
        ArtifactError: ``folder`` isn't a finished run.
    """
    try:
        record = json.loads((folder / "run.json").read_text())
        done = {step["name"]: artifact.load(folder / step["folder"]) for step in record["steps"]}
        return Recipe.model_validate(record["recipe"]), record, done
    except EdgewiseError:
        raise
    except FileNotFoundError as error:
        what = "the run is not finished, or one is at work" if (folder / "stages").exists() else "no run is here"
        raise ArtifactError(what, where=str(folder), hint="edgewise run RECIPE makes or finishes one") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"not a finished run ({error})", where=str(folder), hint="edgewise run RECIPE makes one"
        ) from error


def report(folder: Path) -> Path:
    """Write the report of a finished run again; returns the HTML page.

    Raises:
        ArtifactError: ``folder`` isn't a finished run, or its artifacts changed.
    """
    recipe, record, done = opened(folder)
    return _report(folder, recipe, done, record, always=True).page


@dataclass(frozen=True)
class _Told:
    """What the report says, in short."""

    page: Path
    verdict: dict[str, Any] | None
    warnings: list[str]
    pick: Pick


def _report(
    out: Path, recipe: Recipe, done: Mapping[str, Artifact], record: Mapping[str, Any], *, always: bool = False
) -> _Told:
    """Judge and write the report, unless the one there was made from the same measurement, budget and recipe."""
    from edgewise.bench.pick import Pick

    page = out / "report.html"
    limits = recipe.budget.model_dump(mode="json") if recipe.budget else None
    today = date.today().isoformat() if recipe.budget and recipe.budget.waivers else None  # they expire
    mark = artifact.sha256_json(
        [
            *(done["measure"].key, done["measure"].digest, limits, record["text"], record["choices"]),
            *(record.get("failed"), artifact.versions(), done["layers"].digest if "layers" in done else None, today),
        ]
    )
    stamp = out / ".report"
    if not always and page.exists() and stamp.exists():
        try:
            held = json.loads(stamp.read_text())
            if held["mark"] == mark:
                return _Told(page, held["verdict"], held["warnings"], Pick(**held["pick"]))
        except (ValueError, KeyError, TypeError):
            pass  # damaged: the report is written again

    from edgewise.bench.gate import slower_than_float
    from edgewise.bench.report.write import write_report

    results, verdict, picked = _judged(recipe, done, record)
    write_report(results, verdict, _context(recipe, done, record, picked), out)
    told = verdict.to_json() if verdict else None
    warnings = slower_than_float(results)
    _write(stamp, {"mark": mark, "verdict": told, "warnings": warnings, "pick": asdict(picked)})
    return _Told(page, told, warnings, picked)


def judged(folder: Path) -> tuple[Results, Verdict | None, Context]:
    """What a finished run measured, what its own budget says of it, and what a report is told beside that.

    Raises:
        ArtifactError: ``folder`` isn't a finished run, or its artifacts changed.
    """
    recipe, record, done = opened(folder)
    results, verdict, picked = _judged(recipe, done, record)
    return results, verdict, _context(recipe, done, record, picked)


def _judged(
    recipe: Recipe, done: Mapping[str, Artifact], record: Mapping[str, Any]
) -> tuple[Results, Verdict | None, Pick]:
    from edgewise.bench.gate import gate
    from edgewise.bench.pick import pick
    from edgewise.bench.record import load_results

    results = load_results(done["measure"].folder)
    verdict = gate(recipe.budget, results, unjudged(recipe.budget, record)) if recipe.budget else None
    return results, verdict, pick(results, verdict)


def _context(recipe: Recipe, done: Mapping[str, Artifact], record: Mapping[str, Any], picked: Pick) -> Context:
    """What the report tells beside the measurements: the journey, parity, bundles, versions."""
    from edgewise.bench.record import BundleRow, Context, JourneyRow, ParityRow

    journey, bundles, notes, integer = [], [], list(record["choices"]), {}
    entries = done["measure"].config["files"]
    for name, made in done.items():
        metrics = made.metrics
        if "accuracy" in metrics:
            journey.append(
                JourneyRow(
                    stage=name,
                    params=metrics["params"],
                    macs=metrics["macs"],
                    accuracy=metrics["accuracy"],
                    accuracy_low=metrics["accuracy_low"],
                    accuracy_high=metrics["accuracy_high"],
                    n=metrics["samples"],
                    size_bytes=made.files["model.safetensors"]["size_bytes"],
                    note=f"made in {made.seconds:.0f} s",
                    files=tuple(
                        entry["name"]
                        for entry in entries
                        if entry["against"] == name and entry["precision"] == "float32"
                    ),
                )
            )
        notes += [f"{name}: {line}" for line in metrics.get("told", ())]
        notes += [f"{name}: not pruned: {layer}: {reason}" for layer, reason in metrics.get("skipped", {}).items()]
        if name.startswith("tensorrt-"):
            manifest = json.loads(made.file(metrics["main"]).read_text())
            bundles.append(BundleRow(name, manifest["built"], manifest["reason"], tuple(made.files)))
        if metrics.get("integer"):
            integer[name] = metrics["integer"]
    parity = json.loads(done["measure"].file("parity.json").read_text())
    return Context(
        name=recipe.name,
        created=done["measure"].metrics["measured_at"],
        recipe_text=record["text"],
        journey=tuple(journey),
        parity={name: tuple(ParityRow(**row) for row in rows) for name, rows in parity.items()},
        bundles=tuple(bundles),
        notes=tuple(notes),
        versions={name: version for made in done.values() for name, version in made.versions.items()},
        metric=done["measure"].metrics["metric"],
        integer=integer,
        failed=dict(record.get("failed", {})),
        picked=picked.name,
        picked_why=picked.why,
        **beside(done),
    )
