"""``report`` and ``compare`` on folders that were measured without a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edgewise.bench.config import Bench
from edgewise.bench_files import measure_files
from edgewise.cli import app
from edgewise.reported import bench_context, write_about

onnx = pytest.importorskip("onnx", reason="onnx is not installed")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``edgewise bench --out`` leaves, of one small file."""
    from onnx import helper, numpy_helper

    folder = tmp_path_factory.mktemp("benched")
    weight = numpy_helper.from_array(np.ones((48, 5), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(folder / "net.onnx"))
    config = Bench(launches=1, max_launches=1, blocks=2, block_ms=2, warmup_s=0, sample_hz=0)
    measure_files([folder / "net.onnx"], None, config, folder / "out")
    return folder / "out"


@pytest.fixture
def folder(benched: Path, tmp_path: Path) -> Path:
    shutil.copy(benched.parent / "net.onnx", tmp_path)
    return Path(shutil.copytree(benched, tmp_path / "copy"))


def test_a_folder_of_bench_has_a_report_without_answers(folder: Path) -> None:
    done = call("report", folder, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["report"] == str(folder / "report.html")
    page: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert (page["status"], page["metric"], page["journey"]) == ("NOT JUDGED", None, [])
    assert page["picked"] is None
    assert [file["name"] for file in page["files"]] == ["net.onnx"]
    assert page["files"][0]["accuracy"] is None
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "net.onnx" in text
        assert "Answers" not in text


def test_scored_answers_are_reported(folder: Path) -> None:
    write_about(folder, metric="accuracy", commands=("edgewise bench runs/digits",))
    assert call("report", folder).exit_code == 0
    page: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert page["metric"] == "accuracy"
    assert page["files"][0]["accuracy"]["value"] == 0
    assert page["commands"] == ["edgewise bench runs/digits"]
    assert page["created"] == json.loads((folder / "about.json").read_text())["created"]


def test_scored_answers_are_not_measured_again_without_their_samples(folder: Path, tmp_path: Path) -> None:
    """They would count as unscored, and every limit on accuracy as INVALID."""
    write_about(folder, metric="accuracy")
    done = call("bench", folder, "--out", tmp_path / "again")
    assert done.exit_code == 2
    assert "name the run that it was measured from" in done.output


def test_a_run_is_not_written_over(folder: Path) -> None:
    (folder / "run.json").write_text("{}", encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = call("bench", folder.parent / "net.onnx", "--out", folder)
    assert done.exit_code == 2
    assert "this folder is a run" in done.output
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_inputs_that_have_a_second_name_elsewhere_are_left_alone(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.npy"
    run.hardlink_to(folder / "inputs.npy")
    before = run.read_bytes()
    other = tmp_path / "other.npy"
    np.save(other, np.ones((4, 3, 4, 4), np.float32))
    config = Bench(launches=1, max_launches=1, blocks=2, block_ms=2, warmup_s=0, sample_hz=0)
    measure_files([folder.parent / "net.onnx"], other, config, folder)
    assert run.read_bytes() == before
    assert (folder / "inputs.npy").read_bytes() == other.read_bytes()


@pytest.mark.parametrize("text", ["[]", "{", "\x00"])
def test_a_damaged_note_is_named(folder: Path, text: str) -> None:
    (folder / "about.json").write_text(text)
    done = call("report", folder)
    assert done.exit_code == 2
    assert "about.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_measured_before_there_were_notes(folder: Path) -> None:
    (folder / "about.json").unlink()
    assert bench_context(folder).metric is None


def test_two_folders_are_compared(folder: Path, benched: Path, tmp_path: Path) -> None:
    done = call("compare", benched, folder, "--html", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert "net.onnx" in done.stdout
    assert "nothing is claimed of a difference" in done.stdout
    assert "drop" not in done.stdout  # nobody scored
    assert "measured apart" in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = json.loads(call("compare", benched, folder, "--json").stdout)
    assert found["files"][0]["same_bytes"] is True


def test_other_devices_need_to_be_asked_for(folder: Path, benched: Path) -> None:
    path = folder / "measurements.json"
    plain = json.loads(path.read_text())
    plain["provenance"]["device"]["cpu"] = "another one"
    path.write_text(json.dumps(plain))
    done = call("compare", benched, folder)
    assert done.exit_code == 2
    assert "--anyway" in done.stderr
    done = call("compare", benched, folder, "--anyway")
    assert done.exit_code == 0
    assert "warning: different devices: cpu" in done.stdout


def test_what_is_neither_is_refused(folder: Path, tmp_path: Path) -> None:
    for arguments in ((tmp_path, folder), (folder, tmp_path / "nowhere")):
        done = call("compare", *arguments)
        assert done.exit_code == 2
        assert done.stdout == ""
        assert str(arguments[0] if arguments[0] == tmp_path else arguments[1]) in done.stderr
