"""``edgewise gate`` from a folder to an exit code: bench folders, releases measured again, outputs, the power check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edgewise import gating, side_by_side
from edgewise.artifact import sha256_file
from edgewise.bench.config import Bench
from edgewise.bench.gate.against import release_name
from edgewise.bench.measure import measure
from edgewise.bench.record import Energy, FileUnderTest, Results, ScenarioResult, load_results, save_results
from edgewise.cli import app
from edgewise.errors import ArtifactError, MeasureError, RecipeError
from edgewise.models.tasks.base import accuracy
from edgewise.outlook import check_power
from edgewise.progress import silent
from edgewise.recipe_file import budget_lines, load_budget, load_recipe
from edgewise.reported import write_about

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
QUICK = Bench(launches=2, max_launches=2, blocks=3, block_ms=3, warmup_s=0.02, sample_hz=0)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``now`` and ``then``: two folders of ``edgewise bench`` with a tiny net each, quickly measured; no network, no
    runtime is faked."""
    from onnx import helper, numpy_helper

    root = tmp_path_factory.mktemp("gating")
    for folder, width in (("now", 16), ("then", 16)):
        random = np.random.default_rng(width)
        weights = [
            numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
            for name, shape in (("a", (48, width)), ("b", (width, 5)))
        ]
        graph = helper.make_graph(
            [
                helper.make_node("Flatten", ["input"], ["flat"]),
                helper.make_node("MatMul", ["flat", "a"], ["hidden"]),
                helper.make_node("MatMul", ["hidden", "b"], ["logits"]),
            ],
            "net",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 4, 4])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 5])],
            weights,
        )
        (root / f"files-{folder}").mkdir()
        path = root / f"files-{folder}" / "tiny.onnx"
        opset = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
        _measure(path, root / folder)
    return root


def _measure(path: Path, out: Path) -> None:
    out.mkdir()
    np.save(out / "inputs.npy", np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float32))
    file = FileUnderTest(
        path.name, "onnxruntime", "float32", "candidate", str(path), path.stat().st_size, sha256_file(path)
    )
    ids = [str(place) for place in range(8)]
    measure([file], out / "inputs.npy", np.zeros(8, np.int64), ids, QUICK, out, score=accuracy)
    write_about(out, metric=None)


@pytest.fixture
def folder(measured: Path, tmp_path: Path) -> Path:
    shutil.copytree(measured, tmp_path / "work")
    return tmp_path / "work"


def _budget(folder: Path, text: str) -> Path:
    path = folder / "budget.yaml"
    path.write_text(text)
    return path


def _changed(folder: Path, change: Callable[[Results], Results]) -> None:
    save_results(change(load_results(folder)))


def test_a_bench_folder_is_judged_like_a_run(folder: Path) -> None:
    held = _budget(folder, "max_size_bytes: 100000\nmax_peak_memory_bytes: 1000000000\n")
    assert call("gate", folder / "now", "--budget", held).exit_code == 0
    broken = _budget(folder, "budget:\n  max_size_bytes: 1\n")
    done = call("gate", folder / "now", "--budget", broken, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["status"], told["format"], told["exit_code"]) == ("FAIL", 2, 1)
    assert told["checks"][0]["file"] == "tiny.onnx"


def test_answers_that_nobody_scored_are_not_called_wrong(folder: Path) -> None:
    done = call("gate", folder / "now", "--budget", _budget(folder, "min_accuracy: 0.5\n"))
    assert done.exit_code == 3
    assert "has no answers that were scored" in done.stdout


def test_a_bench_folder_needs_a_budget(folder: Path) -> None:
    done = call("gate", folder / "now")
    assert done.exit_code == 2
    assert "--budget FILE" in done.stderr


def test_the_release_is_measured_again_side_by_side(folder: Path) -> None:
    limits = "release: {max_latency_ratio: 100, max_size_ratio: 1, max_memory_ratio: 1.5, max_load_ratio: 1.0e+60}\n"
    budget = _budget(folder, limits)
    verdict, junit = folder / "verdict.json", folder / "junit.xml"
    written = ("--verdict", verdict, "--junit", junit)
    done = call("gate", folder / "now", "--budget", budget, "--against", folder / "then", *written)
    assert done.exit_code == 0, done.stdout + done.stderr
    found = {check["check"]: check for check in json.loads(verdict.read_text())["checks"]}
    assert {check["status"] for check in found.values()} == {"PASS"}
    latency = found["release.max_latency_ratio"]
    assert latency["low"] < latency["value"] < latency["high"] < 100
    assert (latency["counted"], latency["baseline"]) == ("block pairs", "then")
    assert latency["n"] in (6, 12, 24)  # one, two or three looks
    (suite,) = ElementTree.parse(junit).getroot()
    assert suite.get("tests") == "4"


def test_looks_add_launches_that_pair_on(folder: Path) -> None:
    """What can't be told is measured further, up to four times as long, and no more."""
    from edgewise.measured import open_measured

    one = {"launches": 1, "max_launches": 1}
    _changed(folder / "now", lambda results: replace(results, config={**results.config, **one}))
    seen: list[Results] = []

    def never(release: Any) -> bool:
        seen.append(release.side)
        return False

    ours, theirs = open_measured(folder / "now"), open_measured(folder / "then")
    release = side_by_side.compare(ours, theirs, ["tiny.onnx"], never, silent)
    assert release.side is not None
    assert [len(side.measurements["tiny.onnx"].launches) for side in seen] == [1, 2, 4]
    for name in ("tiny.onnx", release_name("tiny.onnx")):
        assert [launch.index for launch in release.side.measurements[name].launches] == list(range(4))
    assert release.confidence == pytest.approx(1 - 0.1 / 3)
    seen.clear()
    side_by_side.compare(ours, theirs, ["tiny.onnx"], lambda release: True, silent)
    assert seen == []


@pytest.mark.parametrize(
    ("limits", "words", "told"),
    [
        ("release: {max_size_ratio: 1}\n", (), "none was given"),
        ("max_size_bytes: 1\n", ("--against", "then"), "sets no limit against one"),
        ("max_size_bytes: 1\n", ("--on-inconclusive", "skip"), "expected fail, warn or pass, got 'skip'"),
        ("max_size_bytes: 1\n", ("--on-invalid", "retry:0"), "expected fail or retry:N"),
        ("release: {}\n", (), "expected a limit such as max_latency_ratio"),
        ("slices: {by: class}\n", (), "got no limit"),
        ("slices: {by: light, file: none.csv, min_accuracy: 1}\n", (), "expected a CSV file"),
        ("on_invalid: sometimes\nmax_size_bytes: 1\n", (), "on_invalid (line 1): expected fail, or retry:N"),
        (
            "waivers: [{file: a, check: b, expires: soon}]\nmax_size_bytes: 1\n",
            (),
            "expires (line 1): expected a date such as",
        ),
        ("max_p98_ms: 1\n", (), "max_p98_ms"),
    ],
)
def test_what_is_asked_wrongly_is_refused(limits: str, words: tuple[str, ...], told: str, folder: Path) -> None:
    done = call("gate", folder / "now", "--budget", _budget(folder, limits), *words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_first_release_says_so(folder: Path) -> None:
    budget = _budget(folder, "max_size_bytes: 100000\nrelease: {max_size_ratio: 1}\n")
    done = call("gate", folder / "now", "--budget", budget, "--against", "none")
    assert done.exit_code == 0
    assert "budget.release is not judged" in done.stdout


def test_a_file_that_is_gone_or_changed_is_not_measured_in_its_place(folder: Path) -> None:
    budget = _budget(folder, "release: {max_latency_ratio: 9}\n")

    def elsewhere(results: Results) -> Results:
        return replace(results, files=tuple(replace(file, path=str(folder / "no.onnx")) for file in results.files))

    _changed(folder / "then", elsewhere)
    with pytest.raises(ArtifactError, match=r"then: tiny.onnx: it was measured at .*, and is not there"):
        gating.gate_run(folder / "now", budget, against=str(folder / "then"))
    (folder / "no.onnx").write_bytes(b"another")
    with pytest.raises(ArtifactError, match="its bytes differ"):
        gating.gate_run(folder / "now", budget, against=str(folder / "then"))


def test_other_weights_of_openvino_are_another_file(folder: Path) -> None:
    """The graph is the same text whatever the .bin beside it holds."""
    weights = folder / "net.bin"
    weights.write_bytes(b"weights")
    (folder / "net.xml").write_text("<net/>")

    def openvino(results: Results) -> Results:
        new = {"runtime": "openvino", "path": str(folder / "net.xml"), "sha256": sha256_file(folder / "net.xml")}
        files = tuple(replace(file, **new, weights_sha256=sha256_file(weights)) for file in results.files)
        return replace(results, files=files)

    _changed(folder / "then", openvino)
    budget = _budget(folder, "release: {max_latency_ratio: 9}\n")
    weights.write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"net\.bin is not the file that was measured: its bytes differ"):
        gating.gate_run(folder / "now", budget, against=str(folder / "then"))


def test_releases_from_two_devices_are_not_compared(folder: Path) -> None:
    def moved(results: Results) -> Results:
        device = {**results.provenance["device"], "cpu": "another"}
        return replace(results, provenance={**results.provenance, "device": device})

    _changed(folder / "then", moved)
    with pytest.raises(MeasureError, match=r"different devices: cpu(.|\n)*edgewise bench .*then --out DIR"):
        gating.gate_run(folder / "now", _budget(folder, "release: {max_size_ratio: 1}\n"), against=str(folder / "then"))


def test_what_is_invalid_is_measured_again_as_often_as_asked(folder: Path) -> None:
    def swapped(results: Results) -> Results:
        found = {name: replace(one, flags=("drift",)) for name, one in results.measurements.items()}
        return replace(results, measurements=found)

    _changed(folder / "now", swapped)
    budget = _budget(folder, "max_load_ms: 100000\n")
    assert gating.gate_run(folder / "now", budget).verdict.status == "INVALID"
    again = gating.gate_run(folder / "now", budget, on_invalid="retry:3").verdict
    assert again.status == "PASS"
    assert load_results(folder / "now").measurements["tiny.onnx"].flags == ("drift",)  # what was measured stays


def test_github_gets_annotations_on_the_budgets_lines_and_a_summary(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, summary = _budget(folder, "# limits\nbudget:\n  max_size_bytes: 1\n"), folder / "summary.md"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(folder))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    quiet = call("gate", folder / "now", "--budget", budget)
    assert "::error" not in quiet.stdout
    assert not summary.exists()
    told = call("gate", folder / "now", "--budget", budget, "--github").stdout
    assert "::error file=budget.yaml,line=3,title=tiny.onnx%3A size::FAIL: size" in told
    assert "## ❌ now: FAIL" in summary.read_text(encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = call("gate", folder / "now", "--budget", budget, "--json")
    assert json.loads(done.stdout)["status"] == "FAIL"
    assert "::error file=budget.yaml,line=3" in done.stderr


def test_plan_says_what_could_be_told(folder: Path) -> None:
    budget = _budget(folder, "max_p99_ms: 5\nmax_accuracy_drop_pp: 1\n")
    done = call("gate", folder / "now", "--budget", budget, "--plan", "--json")
    assert done.exit_code == 0
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert (rows["max_accuracy_drop_pp"]["outlook"], rows["max_accuracy_drop_pp"]["needed_n"]) == ("impossible", 2474)
    assert "can't" not in call("gate", folder / "now", "--budget", budget, "--plan").stderr


def test_lines_of_a_budget_and_paths_beside_it(tmp_path: Path) -> None:
    slices = "  slices:\n    - by: light\n      file: light.csv\n      min_accuracy: 0.5\n"
    text = f"budget:\n{slices}  release:\n    max_size_ratio: 1\n"
    (tmp_path / "b.yaml").write_text(text)
    (tmp_path / "light.csv").write_text("id,light\n")
    assert load_budget(tmp_path / "b.yaml").sliced[0].file == tmp_path / "light.csv"
    lines = budget_lines(tmp_path / "b.yaml")
    assert (lines["slices.0.min_accuracy"], lines["release.max_size_ratio"], lines["slices"]) == (5, 7, 2)


RECIPE = """
name: tiny
task: {kind: digits}
teacher: {model: {kind: cifar_resnet, depth: 8}, train: {epochs: 1}}
deploy: {targets: [{runtime: onnxruntime, precisions: [int8]}]}
stages: [{kind: quantize}]
budget: {max_accuracy_drop_pp: 1.0, slices: {by: class, max_accuracy_drop_pp: 5, min_n: 40}%s}
"""


@pytest.mark.parametrize("refused", [False, True])
def test_before_training_a_run_says_what_can_not_be_told(refused: bool, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE % (", refuse_underpowered: true" if refused else ""))
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    about = {"ids": [str(place) for place in range(500)], "classes": list("abcdefghij"), "slices": {}}
    (tmp_path / "samples.json").write_text(json.dumps(about))
    np.save(tmp_path / "targets.npy", np.arange(500) % 10)

    class Console:
        def __init__(self) -> None:
            self.told: list[str] = []

        def warn(self, text: str) -> None:
            self.told.append(text)

    console = Console()
    if refused:
        with pytest.raises(RecipeError, match=r"can't be shown to be held:\n.*onnxruntime-int8, max_accuracy_drop_pp"):
            check_power(recipe, tmp_path, tmp_path / "stages", console)  # type: ignore[arg-type]
        return
    check_power(recipe, tmp_path, tmp_path / "stages", console)  # type: ignore[arg-type]
    assert len(console.told) == 2  # all samples, and ten classes of 50 in one
    assert console.told[0].startswith(
        "power: onnxruntime-int8, max_accuracy_drop_pp: passes in 30 % at best with 500 samples, needs about 2,474"
    )
    assert "10 slices by class, worst class=a: can't pass with 50 samples" in console.told[1]


def test_flags_of_either_part_stay_and_joules_are_the_first_looks(folder: Path) -> None:
    results = load_results(folder / "now")
    (name,) = results.measurements
    energy = Energy("ina3221", "VDD_IN", 0.01, 0.009, 0.011, 4.0, 3)

    def part(*flags: str, joules: Energy | None = None) -> Results:
        return replace(results, measurements={name: replace(results.measurements[name], flags=flags, energy=joules)})

    first = part("warmup_not_converged", "single_launch", joules=energy)
    second = part("setting_not_honoured", "contended", "drift", "unstable", "precision_not_reached")
    whole = side_by_side.joined(first, second).measurements[name]
    assert {"warmup_not_converged", "setting_not_honoured", "contended", "drift"} <= set(whole.flags)
    assert "single_launch" not in whole.flags
    assert whole.energy == energy


def test_a_scenario_is_measured_again_with_the_rest(folder: Path) -> None:
    load = {"kind": "single_stream", "name": "one", "seconds": 0.05, "repeats": 1}
    wrong = ScenarioResult("single_stream", "one", {}, 1, None, 64, 1, 10**9, (10**12,) * 64, 1.0, 1.0, 1.0)

    def slowed(results: Results) -> Results:
        found = {
            name: replace(one, flags=("throttled",), scenarios=(wrong,)) for name, one in results.measurements.items()
        }
        return replace(results, measurements=found, config={**results.config, "scenarios": [load]})

    _changed(folder / "now", slowed)
    budget = _budget(folder, "scenarios: {one: {max_p50_ms: 100000}}\n")
    assert gating.gate_run(folder / "now", budget).verdict.status == "INVALID"  # 1000 s, throttled
    (check,) = gating.gate_run(folder / "now", budget, on_invalid="retry:1").verdict.checks
    assert check.value is not None
    assert (check.status, check.value < 100_000) == ("PASS", True)


def test_what_is_measured_again_brings_its_own_scenarios_and_joules(folder: Path) -> None:
    results = load_results(folder / "now")
    (name,) = results.measurements
    energy = Energy("ina3221", "VDD_IN", 0.01, 0.009, 0.011, 4.0, 3)
    old = replace(results.measurements[name], energy=energy, flags=("throttled",))
    now = gating._with_times(replace(results, measurements={name: old}), results, [name])
    assert (now.measurements[name].energy, now.measurements[name].flags) == (None, results.measurements[name].flags)
