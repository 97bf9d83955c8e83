"""Comparisons in a process of their own: the same numbers, and a runtime that crashes costs one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewise.deploy.inspect.__main__ import main
from edgewise.deploy.inspect.compare import compare_layers
from edgewise.deploy.inspect.run import Pair, compare_in_process


def _pairs(root: Path, *files: str) -> dict[str, Pair]:
    return {file: Pair(str(root / "float"), str(root / file), str(root / "samples.npy")) for file in files}


def test_they_are_the_same_numbers(nets: Callable[[str], Path]) -> None:
    root = nets("resnet")
    found = compare_in_process(_pairs(root, "int8.onnx", "gone.onnx"), threads=1, timeout_s=300)
    here = compare_layers(root / "float", root / "int8.onnx", np.load(root / "samples.npy")).to_json()
    there = found["int8.onnx"]
    assert [row["name"] for row in there["rows"]] == [row["name"] for row in here["rows"]]
    assert there["flips"] == here["flips"]
    for one, other in zip(there["rows"], here["rows"], strict=True):
        assert math.isclose(one["sqnr_db"], other["sqnr_db"], abs_tol=0.1)
    assert found["gone.onnx"]["rows"] == []
    assert "no such file" in found["gone.onnx"]["note"]


@pytest.mark.parametrize(
    ("what", "told"), [("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"), ("os._exit(7)", "code 7")]
)
def test_a_runtime_that_ends_costs_its_own_comparison(
    nets: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, told: str
) -> None:
    (tmp_path / "openvino.py").write_text(f"import os, signal\n{what}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = compare_in_process(
        _pairs(nets("resnet"), "float.onnx", "ov.float32.xml", "int8.onnx"), threads=1, timeout_s=300
    )
    assert told in found["ov.float32.xml"]["note"]
    assert found["ov.float32.xml"]["rows"] == []
    for file in ("float.onnx", "int8.onnx"):
        assert found[file]["note"] == ""
        assert len(found[file]["rows"]) > 10


def test_the_command_wants_two_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["question.json"]) == 2
    assert "usage" in capsys.readouterr().err
