"""Models and data that can't be used, converters that crash or hang: a message, an exit code, and the rest is made.

The model is a user's own. What it does wrong, and where, an environment variable tells it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MINE = """
import ctypes, os, sys, time
from dataclasses import dataclass
import numpy as np

HERE = "convert" if "edgewise.deploy.convert" in sys.orig_argv else "run"
HOW = os.environ.get("WRONG", "") if HERE == "convert" else ""
if HOW == "segfault":
    ctypes.string_at(0)
if HOW == "exit":
    os._exit(7)
if HOW == "hang":
    time.sleep(600)
if HOW == "memory":
    held = [np.ones(2**40)]


@dataclass(frozen=True)
class Split:
    ids: tuple
    targets: np.ndarray
    images: np.ndarray

    def read(self, index):
        return self.images[index]


def task(wrong=""):
    from edgewise.models.tasks import Task
    random = np.random.default_rng(0)

    def split(name, count, size=8):
        images = random.normal(size=(count, 3, size, size)).astype(np.float32)
        return Split(tuple(f"{name}-{i}" for i in range(count)), np.arange(count) % 2, images)

    train = split("train", 0 if wrong == "empty" else 20, 6 if wrong == "size" else 8)
    splits = {"train": train, "test": split("test", 20)}
    return Task(name="mine", classes=("no", "yes"), input_shape=(3, 8, 8), splits=splits)


def model(input_shape, classes, kind="plain"):
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.linear = nn.Linear(8, classes)

        def forward(self, x):
            x = torch.relu(self.conv(x)).mean((2, 3))
            if kind == "branches" and x.sum() > 1:
                x = x * 2
            if kind == "numpy":
                x = torch.from_numpy(np.frombuffer(x.detach().numpy().tobytes(), "f4").reshape(x.shape).copy())
            if kind == "operator":
                x = torch.sort(x, dim=1, stable=True)[0]
            return self.linear(x)

    return Net()
"""
RECIPE = """
name: mine
task: {kind: factory, factory: "mine:task"}
teacher:
  model: {kind: factory, factory: "mine:model"}
  weights: mine.safetensors
stages:
  - {kind: quantize, calibration_samples: 16}
deploy:
  calibration_samples: 16
  targets:
    - {runtime: onnxruntime, precisions: [int8]}
    - {runtime: litert, precisions: [int8]}
bench: {launches: 1, max_launches: 1, blocks: 2, block_ms: 5, warmup_s: 0.05}
budget: {max_size_bytes: 100000000}
"""
MADE = {"samples", "teacher"}
BEFORE_FILES = MADE | {"1-quantize", "export-teacher", "export-quantized"}
LITERT = {"litert-float32-teacher", "litert-int8"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("bad")
    (folder / "mine.py").write_text(MINE)
    random = np.random.default_rng(1)
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "linear.weight": (2, 8), "linear.bias": (2,)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "mine.safetensors")
    return folder


def edgewise(*arguments: object, cwd: Path, wrong: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgewise", *map(str, arguments)]
    environment = {**os.environ, "WRONG": wrong}
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=600, env=environment)


def run(folder: Path, recipe: str, out: str, wrong: str = "") -> subprocess.CompletedProcess[str]:
    (folder / f"{out}.yaml").write_text(recipe)
    done = edgewise("run", f"{out}.yaml", "--out", out, "--json", cwd=folder, wrong=wrong)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def kept(folder: Path, out: str) -> set[str]:
    records = (folder / out).glob("stages/*/artifact.json")
    return {json.loads(record.read_text())["name"] for record in records}


FLOAT = RECIPE.replace("stages:\n  - {kind: quantize, calibration_samples: 16}\n", "").replace(
    "    - {runtime: onnxruntime, precisions: [int8]}\n    - {runtime: litert, precisions: [int8]}\n",
    "    - {runtime: onnxruntime, precisions: [float32]}\n",
).replace("budget: {max_size_bytes: 100000000}\n", "")  # fmt: skip
MODELS = {
    "branches": "dynamic control flow|data-dependent",
    "numpy": "numpy|tobytes|FakeTensor",
    "operator": "aten.sort.stable",
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_can_not_be_followed(workplace: Path, kind: str) -> None:
    import re

    recipe = FLOAT.replace('factory: "mine:model"', f'factory: "mine:model", arguments: {{kind: {kind}}}')
    done = run(workplace, recipe, kind)
    assert done.returncode == 2, done.stderr
    assert "export-teacher FAILED" in done.stderr
    last = done.stderr[done.stderr.index("error: ") :]
    assert "could not be made" in last
    assert "export-teacher: export: torch.export can't follow the model" in last
    assert "onnxruntime-float32-teacher: it is made from export-teacher" in last
    assert re.search(MODELS[kind], last), last
    assert kept(workplace, kind) == MADE


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("size", r"(6, 6)"), ("empty", "train")],
)
def test_calibration_data_that_does_not_fit(workplace: Path, wrong: str, told: str) -> None:
    recipe = RECIPE.replace('factory: "mine:task"', f'factory: "mine:task", arguments: {{wrong: {wrong}}}')
    done = run(workplace, recipe, f"data-{wrong}")
    assert done.returncode == 2, done.stderr
    last = done.stderr[done.stderr.index("error: ") :]
    assert told in last.replace("6, 6)", "(6, 6)"), last


def test_a_plan_that_names_a_layer_that_is_not_there(workplace: Path) -> None:
    recipe = RECIPE.replace("calibration_samples: 16}\n", "calibration_samples: 16, float_layers: [con, linear]}\n", 1)
    done = run(workplace, recipe, "plan")
    assert done.returncode == 2, done.stderr
    last = done.stderr[done.stderr.index("error: ") :]
    assert "con" in last
    assert "float_layers" in last
    assert "conv" in last  # the name that was meant
    assert kept(workplace, "plan") == set()  # told before anything was made


@pytest.mark.slow
def test_a_converter_that_crashes_or_hangs_stops_no_other(workplace: Path) -> None:
    crashed = run(workplace, RECIPE, "whole", wrong="segfault")
    assert crashed.returncode == 2
    told = json.loads(crashed.stdout)
    assert set(told["failed"]) == LITERT
    assert all("SIGSEGV" in why for why in told["failed"].values())
    assert crashed.stderr.count("FAILED") == 2
    last = crashed.stderr[crashed.stderr.index("error: ") :]
    assert last.startswith("error: 2 things could not be made:\n  litert-float32-teacher: ")
    assert "litert-int8" in last
    # The other files were made, measured, judged and reported.
    made = BEFORE_FILES | {"onnxruntime-float32-teacher", "onnxruntime-int8", "measure"}
    assert kept(workplace, "whole") >= made
    assert not kept(workplace, "whole") & LITERT
    page = json.loads((workplace / "whole" / "report.json").read_text())
    assert {file["name"] for file in page["files"]} == {"onnxruntime-float32-teacher", "onnxruntime-int8"}
    assert {check["file"]: check["status"] for check in told["verdict"]["checks"]} == {
        "onnxruntime-int8": "PASS",
        "litert-int8": "INVALID",
    }
    assert edgewise("gate", "whole", cwd=workplace).returncode == 3
    assert edgewise("report", "whole", cwd=workplace).returncode == 0

    # The next runs try what failed again, and nothing else.
    hung = run(workplace, RECIPE.replace("deploy:\n", "deploy:\n  timeout_s: 3\n"), "whole", wrong="hang")
    told = json.loads(hung.stdout)
    assert hung.returncode == 2
    assert all("took longer than 3 s and was stopped" in why for why in told["failed"].values())
    assert all(stage["reused"] for stage in told["stages"])
    gone = json.loads(run(workplace, RECIPE, "whole", wrong="exit").stdout)
    assert all("failed with code 7" in why for why in gone["failed"].values())
    full = json.loads(run(workplace, RECIPE, "whole", wrong="memory").stdout)
    assert all("Unable to allocate" in why or "MemoryError" in why for why in full["failed"].values())

    mended = run(workplace, RECIPE, "whole")
    assert mended.returncode == 0, mended.stderr
    told = json.loads(mended.stdout)
    assert told["failed"] == {}
    redone = {stage["name"] for stage in told["stages"] if not stage["reused"]}
    assert redone >= LITERT | {"measure"}
    assert not redone & BEFORE_FILES
    assert {check["status"] for check in told["verdict"]["checks"]} == {"PASS"}
    assert told["picked"] is None or told["picked"] in {"onnxruntime-int8", "litert-int8"}
    assert told["picked_why"]
    assert set(told["files"]) | set(told["left_out"]) == {"onnxruntime-int8", "litert-int8"}
