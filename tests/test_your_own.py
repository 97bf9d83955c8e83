"""The page on own models, data and losses: what it prints works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "your-own.md"


def block(mark: str, language: str) -> str:
    found = re.search(rf"<!-- {re.escape(mark)} -->\s*```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, mark
    return found[1]


def test_the_printed_task_model_and_recipe_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.compress.train import evaluate, fit, labels_only
    from edgewise.models.build import build
    from edgewise.models.tasks.load import load_task
    from edgewise.recipe_file import load_recipe

    (tmp_path / "mine.py").write_text(block("python: mine.py", "python"))
    (tmp_path / "mine.yaml").write_text(block("recipe", "yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    recipe = load_recipe(tmp_path / "mine.yaml").recipe
    assert recipe.teacher.train is not None
    task = load_task(recipe.task)
    assert len(task.splits["train"].ids) == 200
    model = build(recipe.teacher.model, task.input_shape, len(task.classes))
    fit(labels_only(model), task.splits["train"], recipe.teacher.train, seed=0)
    test = task.splits["test"]
    score = task.score(evaluate(model, test), test.targets)
    assert score.shape == (200,)
    assert np.isin(score, (0, 1)).all()
    monkeypatch.delitem(sys.modules, "mine")


@pytest.mark.slow
def test_the_printed_onnx_recipe_makes_files_for_every_runtime(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for runtime in ("openvino", "litert_torch"):
        pytest.importorskip(runtime)
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 96), ("test", 64)):
        targets = np.arange(count) % 3
        images = random.normal(60 + 60 * targets[:, None, None, None], 30, (count, 16, 16, 3))
        arrays |= {f"x_{part}": images.clip(0, 255).astype(np.uint8), f"y_{part}": targets}
    np.savez(tmp_path / "images.npz", **arrays)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, stride=2, groups=4),
        torch.nn.Hardswish(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (torch.zeros(1, 3, 16, 16),), tmp_path / "net.onnx", dynamo=True, verbose=False)
    quick = "bench: {launches: 1, max_launches: 1, blocks: 2, block_ms: 5, warmup_s: 0.05}\n"
    (tmp_path / "onnx.yaml").write_text(block("recipe: onnx", "yaml") + quick)
    command = [sys.executable, "-m", "edgewise", "run", "onnx.yaml", "--out", "out", "--json"]

    def run() -> dict[str, Any]:
        done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=900)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    told = run()
    made = {*told["files"], *told["left_out"]}
    assert made == {f"{runtime}-int8" for runtime in ("onnxruntime", "openvino", "litert", "tensorrt")}
    assert told["picked"] is None or told["picked"] in told["files"]
    page = json.loads((tmp_path / "out" / "report.json").read_text())
    answers = {file["name"]: file["accuracy"]["value"] for file in page["files"]}
    assert len(answers) == 6
    for runtime in ("onnxruntime", "openvino", "litert"):
        assert abs(answers[f"{runtime}-int8"] - answers[f"{runtime}-float32-teacher"]) < 0.1
    models = next((tmp_path / "out" / "stages").glob("triton-*"))
    assert {path.parent.name for path in models.glob("*/config.pbtxt")} == {
        f"from-onnx-{runtime}-int8" for runtime in ("onnxruntime", "openvino", "tensorrt")
    }
    for text in (tmp_path / "out" / "stages").glob("*/*.json"):
        if text.name in ("architecture.json", "artifact.json"):
            assert str(tmp_path) not in text.read_text(), text
    # Everything is there, and stays as long as the file is the same.
    assert all(stage["reused"] for stage in run()["stages"])
    weights = tmp_path / "net.onnx.data"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    again = {stage["name"] for stage in run()["stages"] if not stage["reused"]}
    assert {"teacher", "1-quantize", "export-teacher", "litert-int8", "measure"} <= again


def test_the_printed_losses_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.compress.config import Distill
    from edgewise.compress.strategies.offline import distill
    from edgewise.models.build import build
    from edgewise.models.tasks.load import load_task
    from edgewise.recipe_file import load_recipe
    from edgewise.stages.rehearse import rehearse

    for name in ("my_loss", "my_hint"):
        (tmp_path / f"{name}.py").write_text(block(f"python: {name}.py", "python"))
    (tmp_path / "losses.yaml").write_text(block("recipe: losses", "yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    recipe = load_recipe(tmp_path / "losses.yaml").recipe
    task = load_task(recipe.task)
    rehearse(recipe, task)
    (stage,) = recipe.stages
    assert isinstance(stage, Distill)
    assert recipe.student is not None
    student, teacher = (
        build(model, task.input_shape, len(task.classes)) for model in (recipe.student.model, recipe.teacher.model)
    )
    before = set(student.state_dict())
    (epoch,) = distill(student, teacher, task.splits["train"], stage, seed=0)
    # Both, and each with its own weight.
    assert {"kd", "custom", "custom-2"} < set(epoch.terms)
    for name, weight in (("custom", 0.1), ("custom-2", 0.5)):
        assert epoch.terms[name] == pytest.approx(weight * epoch.unweighted[name])
        assert epoch.unweighted[name] > 0
    assert set(student.state_dict()) == before
    for name in ("my_loss", "my_hint"):
        monkeypatch.delitem(sys.modules, name)


def test_the_printed_function_is_the_margin_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from edgewise.compress.losses import Custom
    from edgewise.compress.losses.base import Batch, Outputs

    (tmp_path / "my_loss.py").write_text(block("python: my_loss.py", "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loss = Custom(kind="custom", loss="my_loss:margin", arguments={"at_least": 2.0})
    student = torch.tensor([[3.0, 0.0, 2.5], [1.0, 0.0, 0.0], [0.0, 5.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])  # wrong about the second
    batch = Batch(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1]), torch.arange(3))
    assert float(loss(Outputs(student), Outputs(teacher), batch, None)) == pytest.approx((2.0 - 0.5) / 3)
    monkeypatch.delitem(sys.modules, "my_loss")
