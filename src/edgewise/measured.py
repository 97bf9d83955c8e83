"""What was measured into a folder, by a run or by ``edgewise bench --out``, with its files found again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.artifact import Artifact, sha256_file
from edgewise.bench.ask import beside
from edgewise.bench.record import MEASUREMENTS, FileUnderTest, Results, load_results
from edgewise.errors import ArtifactError

if TYPE_CHECKING:
    from edgewise.recipe import Recipe


@dataclass(frozen=True)
class Measured:
    """Results with the paths their files have now. ``inputs``: ``.npy`` that they ran on, float32 (N, C, H, W) or
    token ids int64 (N, L); ``padding``: the id that texts are filled up with, None where it isn't known.

    Of a run also its ``recipe``, its ``record`` and ``samples``, the folder of the test samples.
    """

    folder: Path
    name: str
    results: Results
    inputs: Path
    recipe: Recipe | None = None
    record: Mapping[str, Any] | None = None
    samples: Path | None = None
    padding: int | None = None


def open_measured(folder: Path) -> Measured:
    """What was measured into ``folder``.

    Raises:
        ArtifactError: nothing was, or it can't be read.
    """
    if not (folder / MEASUREMENTS).is_file():
        return _run(folder)
    from edgewise.reported import bench_context, bench_padding

    results, about = load_results(folder), bench_context(folder)
    if about.metric is None:  # nobody knew the right answers: its scores say nothing
        broken = {name: one for name, one in results.answers.items() if one.error or not one.finite}
        results = replace(results, answers=broken)
    return Measured(folder, about.name, results, folder / "inputs.npy", padding=bench_padding(folder))


def _run(folder: Path) -> Measured:
    from edgewise.pipeline import opened

    recipe, record, done = opened(folder)
    if "measure" not in done:
        raise ArtifactError("nothing was measured in this run", where=str(folder), hint="edgewise run RECIPE")
    results = load_results(done["measure"].folder)
    results = replace(results, files=tuple(_found(file, done) for file in results.files))
    samples = done["samples"].folder
    padding = json.loads(done["samples"].file("samples.json").read_text()).get("padding")
    return Measured(folder, recipe.name, results, samples / "inputs.npy", recipe, record, samples, padding)


def _found(file: FileUnderTest, done: Mapping[str, Artifact]) -> FileUnderTest:
    """The file where the run's folder has it now: it may have been moved, or unpacked elsewhere."""
    made = done.get(file.name)
    return file if made is None else replace(file, path=str(made.file(made.metrics["main"])))


def check_there(measured: Measured, file: FileUnderTest) -> None:
    """Whether a measured file can be measured again.

    Raises:
        ArtifactError: it is gone, it is another one by now, or the inputs are gone.
    """
    path = Path(file.path)
    where, again = f"{measured.name}: {file.name}", "name a folder that still has its files, or measure anew"
    if not path.is_file():
        raise ArtifactError(f"it was measured at {path}, and is not there any more", where=where, hint=again)
    for part, expected in zip((path, *beside(file)), (file.sha256, file.weights_sha256), strict=False):
        if expected is not None and (not part.is_file() or sha256_file(part) != expected):
            raise ArtifactError(f"{part} is not the file that was measured: its bytes differ", where=where, hint=again)
    if not measured.inputs.is_file():
        raise ArtifactError("the inputs are not there any more", where=str(measured.inputs), hint=again)
