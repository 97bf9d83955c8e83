"""What the bench writes down: files, launches with raw samples in ns, answers, and what the report is told.

Everything is a frozen value that goes to JSON and back unchanged. Per-sample scores and outputs stay in ``.npy`` files
beside ``measurements.json``, so that two files' answers can be paired long after they were given.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import ArtifactError

FORMAT = 2
MEASUREMENTS = "measurements.json"

Role = Literal["reference", "parent", "candidate"]


@dataclass(frozen=True)
class FileUnderTest:
    """One converted file; ``reference`` and ``parent`` name the float teacher and student in the same runtime.

    ``path`` leads to the main file and ``sha256`` is its own, ``weights_sha256`` that of OpenVINO's .bin beside it;
    ``size_bytes`` counts both.
    """

    name: str
    runtime: str
    precision: str
    role: Role
    path: str
    size_bytes: int
    sha256: str
    reference: str | None = None
    parent: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True)
class Phase:
    """One phase of a launch; memory is the process's own: the peak within it, and what was resident at its end.

    What is resident is anonymous (the process's real cost), of files (mapped weights and libraries, which the system
    can read again) or shared.
    """

    duration_ns: int
    peak_bytes: int | None = None
    resident_bytes: int | None = None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True)
class Block:
    """``samples_ns``: every timed inference of one block; ``settle_runs`` ran before them, untimed, to warm the caches.

    ``wall_ns`` is the time of the whole block, ``process_cpu_ns`` the CPU time of all the process's threads in it,
    ``nivcsw`` how often the system took the CPU away. ``start_ns`` is when it began, on the device's monotonic clock,
    as in telemetry.
    """

    round: int
    samples_ns: tuple[int, ...]
    wall_ns: int
    thread_cpu_ns: int
    process_cpu_ns: int
    nivcsw: int
    settle_runs: int
    start_ns: int | None = None


@dataclass(frozen=True)
class Launch:
    """One fresh process. Phases: import, load, first_inference, warmup, steady, unload.

    ``pss_bytes``: its proportional share of memory once it ran steadily. ``page_cache``: whether the system had the
    file in memory before it was opened: ``warm``, ``cold``, ``partly`` or ``unknown``.
    """

    index: int
    phases: dict[str, Phase]
    settings: dict[str, Any]
    warmup_ns: tuple[int, ...]
    warmup_converged: bool
    blocks: tuple[Block, ...]
    pss_bytes: int | None = None
    page_cache: str = "unknown"


@dataclass(frozen=True)
class Energy:
    """Joules one inference takes above idling, with a 95 % interval, from ``windows`` windows of ``rail``."""

    source: str
    rail: str
    joules_per_inference: float
    low: float
    high: float
    idle_w: float
    windows: int
    note: str = ""


@dataclass(frozen=True)
class ScenarioPoint:
    """One run in one fresh process: a repeat, a rate of the server's search, a step of the sweep. Times in ns.

    ``p99_upper_ns``: the early-stopping upper estimate, None below its sample floor. ``valid``: it ran as asked, kept
    up, and held the budget, if there was one; ``note`` says what was wrong.
    """

    repeat: int
    in_flight: int
    target_qps: float | None
    queries: int
    duration_ns: int
    qps: float
    p50_ns: float | None
    p99_ns: float | None
    p99_upper_ns: float | None
    valid: bool
    note: str = ""


@dataclass(frozen=True)
class ScenarioResult:
    """One file under one pattern of load, in ``repeat_queries`` queries in each of as many fresh processes.

    ``kind``: single_stream, multi_stream, server, offline or sweep; ``name``: the kind and what tells it from others of
    its kind; ``engine``: whose scheduler. ``latencies_ns``: a query's, raw, repeat after repeat: from its start, in
    ``server`` from when it was due; in ``offline`` all samples are one query. ``duration_ns``: of all repeats together.
    ``qps``, ``qps_low``, ``qps_high``: samples a second with their 95 % interval over repeats, without one where there
    was but one repeat; in ``server`` the largest rate that held the budget, in ``sweep`` that of ``in_flight``, the
    last count that gained. ``p99_upper_ns``: what the true p99 exceeds with at most 1 % chance. ``config``: the
    scenario's own keys; ``settings``: what runtime and scheduler say they did; ``points``: every run on the way.
    ``valid`` False: the load was not what was asked for, or held no budget, and ``note`` says why.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    in_flight: int
    target_qps: float | None
    queries: int
    samples_a_query: int
    duration_ns: int
    latencies_ns: tuple[int, ...]
    qps: float | None = None
    qps_low: float | None = None
    qps_high: float | None = None
    p50_ns: float | None = None
    p90_ns: float | None = None
    p99_ns: float | None = None
    p99_upper_ns: float | None = None
    valid: bool = True
    note: str = ""
    engine: str = "edgewise"
    config: dict[str, Any] = field(default_factory=dict)
    repeat_queries: tuple[int, ...] = ()
    points: tuple[ScenarioPoint, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One file's launches. ``error`` says why it has none, or fewer than were asked for."""

    file: str
    batch: int
    threads: int
    launches: tuple[Launch, ...]
    flags: tuple[str, ...] = ()
    error: str | None = None
    energy: Energy | None = None
    scenarios: tuple[ScenarioResult, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a file answered to every sample, once. Paths are relative to the folder of the results.

    ``outputs``: float32 (N, K); ``scores``: float32 (N,), one value a sample; ``mean_score`` is the metric.
    """

    file: str
    samples: int
    mean_score: float | None
    finite: bool
    batch: int
    outputs: str
    scores: str
    error: str | None = None


@dataclass(frozen=True)
class Results:
    """All that was measured in one run. ``config`` is the bench config as plain data, ``provenance`` the device.

    ``slices``: by name of a split of the samples, the ``.npy`` with each sample's label, int (N,), relative to the
    folder. ``telemetry``: the JSON Lines file of what the device's sensors said meanwhile, None where nobody asked.
    """

    files: tuple[FileUnderTest, ...]
    measurements: dict[str, Measurement]
    answers: dict[str, Answers]
    ids: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    slices: dict[str, str] = field(default_factory=dict)
    telemetry: str | None = None
    format: int = FORMAT
    folder: Path = field(default=Path(), compare=False)

    def file(self, name: str) -> FileUnderTest:
        """The file called ``name``.

        Raises:
            KeyError: no such file.
        """
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)

    def scores(self, name: str) -> NDArray[np.float32] | None:
        """One score a sample (N,), or None where the file did not answer.

        Raises:
            ArtifactError: the scores were recorded and can't be read now.
        """
        return self._array(name, "scores")

    def outputs(self, name: str) -> NDArray[np.float32] | None:
        """Raw outputs (N, K), or None where the file did not answer.

        Raises:
            ArtifactError: the outputs were recorded and can't be read now.
        """
        return self._array(name, "outputs")

    def _array(self, name: str, what: Literal["scores", "outputs"]) -> NDArray[np.float32] | None:
        answers = self.answers.get(name)
        if answers is None or answers.error is not None:
            return None
        path = self.folder / (answers.scores if what == "scores" else answers.outputs)
        try:
            array: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(
                f"can't read the {what} of {name}: {error}", where=str(path), hint="measure again"
            ) from error
        return array


@dataclass(frozen=True)
class JourneyRow:
    """The model after one stage, as torch sees it. ``accuracy`` in 0..1 over ``n`` samples, with its interval;
    ``files``: the float files that were made of it."""

    stage: str
    params: int | None = None
    macs: int | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    n: int | None = None
    size_bytes: int | None = None
    note: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParityRow:
    """How closely one file follows the model called ``against``: SQNR in dB, changed answers of ``n``, largest gap."""

    against: str
    n: int
    sqnr_db: float | None
    flips: int | None
    max_abs: float | None = None


@dataclass(frozen=True)
class BundleRow:
    """Something made for a device that isn't here, such as TensorRT's; ``reason`` says why it was not built."""

    name: str
    built: bool
    reason: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerRow:
    """One layer of a file beside the same layer of its float model: SQNR in dB (None where it isn't finite; equal
    layers are ``exact``), the largest difference, the shape without the batch."""

    name: str
    sqnr_db: float | None
    max_abs: float | None = None
    shape: tuple[int, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class LayersRow:
    """A file layer by layer against ``against``, over ``n`` samples. ``first_bad``: the layer where it goes wrong, and
    ``why`` that one is named; ``unmatched``: how many layers only one side has; ``floor_db``: what counts as bad."""

    against: str
    n: int
    rows: tuple[LayerRow, ...]
    flips: int | None = None
    first_bad: str | None = None
    why: str = ""
    unmatched: int = 0
    floor_db: float | None = None
    note: str = ""


@dataclass(frozen=True)
class AgreementRow:
    """Two INT8 files of one model: how many of ``n`` answers are the same. Under the floor ``layers`` says where they
    part."""

    one: str
    other: str
    n: int
    same: int
    layers: LayersRow | None = None


@dataclass(frozen=True)
class PlanRow:
    """One layer of a mixed-precision plan. ``only``: quantizing it alone; ``without``: leaving it alone in float; each
    as SQNR of the logits in dB and as answers flipped of ``n``."""

    layer: str
    precision: str
    macs: int | None = None
    only_sqnr_db: float | None = None
    only_flips: int | None = None
    without_sqnr_db: float | None = None
    without_flips: int | None = None
    n: int | None = None


@dataclass(frozen=True)
class GoalRow:
    """What a stage was to reach, and what it did: a latency of pruning, say. ``reached`` None: nobody could tell."""

    stage: str
    goal: str
    found: str
    reached: bool | None


@dataclass(frozen=True)
class OthersRow:
    """Metrics of a stage's model or a file that are no mean over samples, by name: value and both ends."""

    name: str
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Context:
    """What the report can't know from the measurements alone.

    ``parity``: rows by file, the one against its float model last. ``integer``: by file, how many of its operations
    run in integers, as words such as "20 of 20 in INT8". ``integer_macs_share``: by file, the share of multiply-adds
    that runs in integers, 0..1, and ``float_layers`` what is left. ``failed``: why a conversion made no file.
    ``picked``: the file that is recommended. ``metric`` None: nobody scored the answers.
    """

    name: str
    created: str
    recipe_text: str = ""
    journey: tuple[JourneyRow, ...] = ()
    parity: dict[str, tuple[ParityRow, ...]] = field(default_factory=dict)
    integer: dict[str, str] = field(default_factory=dict)
    bundles: tuple[BundleRow, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    metric: str | None = "accuracy"
    integer_macs_share: dict[str, float] = field(default_factory=dict)
    float_layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    picked: str | None = None
    picked_why: str = ""
    layers: dict[str, LayersRow] = field(default_factory=dict)
    agreement: tuple[AgreementRow, ...] = ()
    plan: tuple[PlanRow, ...] = ()
    plan_note: str = ""
    goals: tuple[GoalRow, ...] = ()
    others: tuple[OthersRow, ...] = ()


def file_stem(name: str) -> str:
    """A file name for ``name`` that no other name has, whatever characters it holds."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")
    return safe if safe == name else f"{safe or 'file'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def results_to_json(results: Results) -> dict[str, Any]:
    """Plain data, ready for ``json.dump``; the folder is left out, for it may move."""
    plain = asdict(results)
    del plain["folder"]
    return {"format": plain.pop("format"), **plain}


def results_from_json(plain: dict[str, Any], folder: Path) -> Results:
    """The results that ``results_to_json`` wrote.

    Raises:
        ArtifactError: written by another version, or not results at all.
    """
    found = plain.get("format") if isinstance(plain, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"expected measurements of format {FORMAT}, got {found!r}",
            where=str(folder),
            hint="measure again with this version",
        )
    try:
        return Results(
            files=tuple(FileUnderTest(**file) for file in plain["files"]),
            measurements={name: _measurement(m) for name, m in plain["measurements"].items()},
            answers={name: Answers(**answers) for name, answers in plain["answers"].items()},
            ids=plain["ids"],
            config=plain["config"],
            provenance=plain["provenance"],
            slices=plain["slices"],
            telemetry=plain["telemetry"],
            folder=folder,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"these are no measurements: {error!r}", where=str(folder), hint="measure again") from error


def save_results(results: Results) -> Path:
    """Write ``measurements.json`` into the results' folder."""
    path = results.folder / MEASUREMENTS
    text = json.dumps(results_to_json(results), separators=(",", ":"), allow_nan=False)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path


def load_results(folder: Path) -> Results:
    """Read the results that were measured into ``folder``.

    Raises:
        ArtifactError: nothing there, not JSON, or of another format.
    """
    path = folder / MEASUREMENTS
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"can't read measurements: {error}", where=str(path), hint="name a folder that a run has measured into"
        ) from error
    return results_from_json(plain, folder)


def _measurement(plain: dict[str, Any]) -> Measurement:
    energy = plain["energy"]
    made = {
        "launches": tuple(launch_from_json(launch) for launch in plain["launches"]),
        "flags": tuple(plain["flags"]),
        "energy": None if energy is None else Energy(**energy),
        "scenarios": tuple(scenario_from_json(one) for one in plain["scenarios"]),
    }
    return Measurement(**{**plain, **made})


def scenario_from_json(plain: dict[str, Any]) -> ScenarioResult:
    """The scenario's result that ``asdict`` made plain.

    Raises:
        KeyError, TypeError: it is none.
    """
    lists = {name: tuple(plain[name]) for name in ("latencies_ns", "repeat_queries")}
    return ScenarioResult(**{**plain, **lists, "points": tuple(ScenarioPoint(**point) for point in plain["points"])})


def launch_from_json(plain: dict[str, Any]) -> Launch:
    """The launch that ``asdict`` made plain.

    Raises:
        KeyError, TypeError: it is none.
    """
    return Launch(
        index=plain["index"],
        phases={name: Phase(**phase) for name, phase in plain["phases"].items()},
        settings=plain["settings"],
        warmup_ns=tuple(plain["warmup_ns"]),
        warmup_converged=plain["warmup_converged"],
        blocks=tuple(Block(**{**block, "samples_ns": tuple(block["samples_ns"])}) for block in plain["blocks"]),
        pss_bytes=plain["pss_bytes"],
        page_cache=plain["page_cache"],
    )
