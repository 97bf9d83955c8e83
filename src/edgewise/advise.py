"""``edgewise advise``: where a model's time and bytes go, what INT8 and pruning cost each layer, what to try first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise import artifact
from edgewise.advice import Advice, Layer, first_three
from edgewise.bench.profile import NodeTime, Roof, profile, roof
from edgewise.errors import DataError, ModelError, RecipeError
from edgewise.models.inputs import drawn, is_text
from edgewise.output import print_table
from edgewise.progress import Tick
from edgewise.recipe_file import LoadedRecipe, load_recipe
from edgewise.stages.work import spread

if TYPE_CHECKING:
    from torch import nn

    from edgewise.models.tasks.base import Float, Task

CALIBRATION = 128
HALF = 0.5


@dataclass(frozen=True)
class Subject:
    """What is looked at. ``task`` is None where only a model was given: then nothing is known of its accuracy."""

    name: str
    model: nn.Module
    input_shape: tuple[int, ...]
    task: Task | None


@dataclass(frozen=True)
class Advised:
    """All that was found. ``notes`` say what was not looked at, and why."""

    name: str
    layers: tuple[Layer, ...]
    advice: tuple[Advice, ...]
    total_ms: float
    threads: int
    roof: Roof
    samples: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        rows = [{**asdict(layer), "intensity": layer.intensity} for layer in self.layers]
        return {**asdict(self), "layers": rows}


def advise(path: Path, *, data: Path | None, samples: int, threads: int, tick: Tick) -> Advised:
    """Look at the teacher of a recipe, a stage's folder of a run, or an ``.onnx`` file.

    Args:
        path: what to look at.
        data: where a recipe's relative paths lead.
        samples: training samples that sensitivities are measured on, besides those for calibration.
        threads: that ONNX Runtime may use.
        tick: told of the progress.

    Raises:
        RecipeError, ModelError, ArtifactError, WeightsError: there is no such model, or it can't be run.
    """
    from edgewise.deploy.export import export_float

    subject = _subject(path, data)
    task, notes = subject.task, []
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        export_float(subject.model, subject.input_shape, graph)
        inputs = drawn(subject.input_shape, 8, seed=0) if task is None else task.splits["train"].read(np.arange(8))
        tick(0, 1, "time of each layer")
        times, best = profile(graph, inputs, threads=threads), roof(threads)
        layers = _layers(subject, graph, times, best)
    if task is None:
        notes.append("nothing is known of its accuracy: give a recipe, which has data, for the cost of each layer")
    else:
        layers = _with_costs(subject, task, layers, samples, tick)
    from edgewise.compress.quantization.insert import is_transformer

    return Advised(
        name=subject.name,
        layers=tuple(layers),
        advice=first_three(layers, transformer=is_transformer(subject.model)),
        total_ms=sum(layer.ms for layer in layers),
        threads=threads,
        roof=best,
        samples=samples if task is not None else 0,
        notes=tuple(notes),
    )


def _subject(path: Path, data: Path | None) -> Subject:
    from edgewise.compress.saved import ARCHITECTURE, load_model

    if path.is_dir():
        if not (path / ARCHITECTURE).is_file():
            raise ModelError(
                f"expected a saved model, found no {ARCHITECTURE}",
                where=str(path),
                hint="a run keeps its models in stages/NAME-KEY; or give a recipe or an .onnx file",
            )
        model, description = load_model(path)
        return Subject(path.name, model, description.input_shape, None)
    if path.suffix == ".onnx":
        from edgewise.models.onnx.file import load_onnx

        net = load_onnx(path)
        return Subject(path.name, net, net.program.input_shape, None)
    return _teacher(load_recipe(path, data=data))


def _teacher(loaded: LoadedRecipe) -> Subject:
    """The recipe's teacher: as a finished run in its folder has it, else from its weights."""
    import torch

    from edgewise.compress.saved import load_model
    from edgewise.models.build import build
    from edgewise.models.tasks.load import load_task
    from edgewise.models.weights import load_weights
    from edgewise.plan import plan

    recipe = loaded.recipe
    task = load_task(recipe.task)
    keys: dict[str, str] = {}
    for step in plan(recipe):
        keys[step.name] = step.key(keys)
    made = artifact.stage_folder(Path("runs") / recipe.name / "stages", "teacher", keys["teacher"])
    if made.exists():
        return Subject(recipe.name, load_model(made)[0], task.input_shape, task)
    source = recipe.teacher
    if source.train is not None:
        raise RecipeError(
            f"the teacher is trained first, and {made.parent.parent} has none of this recipe",
            where="teacher.train",
            hint="edgewise run RECIPE, then ask again; or leave train out, where its weights are good as they are",
        )
    torch.manual_seed(recipe.seed)
    model = build(source.model, task.input_shape, len(task.classes))
    if source.weights is not None:
        load_weights(model, source.weights)
    return Subject(recipe.name, model, task.input_shape, task)


def _layers(subject: Subject, graph: Path, times: Sequence[NodeTime], best: Roof) -> list[Layer]:
    """Executed nodes by the torch modules that they do the work of."""
    import onnx

    from edgewise.deploy.convert.executed import executed_layers

    whole = sum(node.ms for node in times)
    length = subject.input_shape[0] if is_text(subject.input_shape) else 1
    known = executed_layers(onnx.load(graph), [node.name for node in times], length)
    found = []
    for node in times:
        name, macs = known[node.name]
        channels = node.output_shape[1 if len(node.output_shape) == 4 else -1] if node.output_shape else 0
        bound = best.bound(node.ms, macs, node.bytes)
        share = node.ms / whole
        found.append(Layer(name, node.op, node.ms, share, macs, node.bytes, node.weight_bytes, bound, channels))
    return found


def _with_costs(subject: Subject, task: Task, layers: list[Layer], samples: int, tick: Tick) -> list[Layer]:
    """What INT8, and the loss of half of its channels, would do to the answer, for each layer that has weights."""
    from edgewise.compress.quantization.insert import insert_quantizers
    from edgewise.compress.sensitivity import pruning_sensitivity, quantization_sensitivity

    split = task.splits["train"]
    places = spread(len(split.ids), CALIBRATION + samples)
    if len(places) < 2:
        raise DataError("expected at least two training samples", where="task", hint="give a recipe with more data")
    # Both are spread over the whole split: data sets are often sorted by class.
    count = min(CALIBRATION, max(len(places) - samples, len(places) // 2))
    calibration = places[spread(len(places), count)]
    index = np.setdiff1d(places, calibration)
    inputs, targets = _read(task, index), split.targets[index]
    quantized = insert_quantizers(subject.model, _read(task, calibration), correct_biases=False)
    integer = {
        row.name: row for row in quantization_sensitivity(quantized, inputs, targets, score=task.score, tick=tick)
    }
    pruned: dict[str, float] = {}
    groups, _ = pruning_sensitivity(subject.model, inputs, targets, ratios=(HALF,), score=task.score, tick=tick)
    for group in groups:
        pruned.update(dict.fromkeys(group.layers, group.drop_pp or 0.0))
    found = []
    for layer in layers:
        row = integer.get(layer.name)
        found.append(
            replace(
                layer,
                int8_sqnr_db=None if row is None else row.only_sqnr_db,
                int8_flips=None if row is None else row.only_flips / row.n,
                pruned_drop_pp=pruned.get(layer.name),
            )
        )
    return found


def _read(task: Task, index: Any) -> Float:
    return np.ascontiguousarray(task.splits["train"].read(index))


def show(found: Advised, most: int = 25) -> None:
    """Print what was found: the layers that take most time, and the first three things to try."""
    rows = sorted(found.layers, key=lambda layer: -layer.ms)
    measured = any(layer.int8_sqnr_db is not None for layer in rows)
    head = ("layer", "executed as", "ms", "share", "MMACs", "kB", "MACs/byte", "waits for")
    costs = ("INT8 alone", "flips", "half its channels")
    print_table(head + costs if measured else head, [_row(layer, measured) for layer in rows[:most]])
    if len(rows) > most:
        rest = sum(layer.share for layer in rows[most:])
        print(f"and {len(rows) - most} more, {rest:.0%} of the time (--json has all)")
    best = found.roof
    print(
        f"\n{found.total_ms:.3f} ms in {len(rows)} nodes, ONNX Runtime, batch 1, {found.threads} thread"
        f"{'s' if found.threads > 1 else ''}; this machine reaches {best.macs_per_s / 1e9:.0f} GMAC/s, "
        f"{best.cache_bytes_per_s / 1e9:.0f} GB/s in its cache and {best.memory_bytes_per_s / 1e9:.0f} outside"
    )
    for note in found.notes:
        print(f"note: {note}")
    print("\nTo try first, by what each may save of the time:")
    for number, advice in enumerate(found.advice, start=1):
        print(f"\n{number}. {advice.title} (up to {advice.saves:.0%}): {advice.why}.")
        print("\n".join(f"     {line}" for line in advice.recipe.splitlines()))


def _row(layer: Layer, measured: bool) -> tuple[str, ...]:
    row = (
        layer.name,
        layer.op,
        f"{layer.ms:.4f}",
        f"{layer.share:.1%}",
        f"{layer.macs / 1e6:.2f}" if layer.macs else "-",
        f"{layer.bytes / 1e3:.0f}",
        f"{layer.intensity:.1f}" if layer.macs else "-",
        layer.bound,
    )
    if not measured:
        return row
    return (
        *row,
        "-" if layer.int8_sqnr_db is None else f"{layer.int8_sqnr_db:.0f} dB",
        "-" if layer.int8_flips is None else f"{layer.int8_flips:.1%}",
        "-" if layer.pruned_drop_pp is None else f"-{layer.pruned_drop_pp:.1f} pp",
    )
