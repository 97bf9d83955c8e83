"""Advice: each rule on rows made to call for it, and the whole command on a model with a fault planted in one layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from edgewise.advice import Layer, first_three, fragile
from edgewise.cli import app
from edgewise.compress.macs import count
from edgewise.compress.saved import Description, save_model
from edgewise.models.build import build
from edgewise.models.config import CifarResNet


def rows(*kinds: tuple[str, str, float, int], **more: object) -> list[Layer]:
    """(name, bound, share, macs) each."""
    return [
        Layer(name, "Conv" if macs else "Relu", share, share, macs, 1000, 100, bound, 32, **more)  # type: ignore[arg-type]
        for name, bound, share, macs in kinds
    ]


def titles(layers: list[Layer]) -> list[str]:
    return [advice.title for advice in first_three(layers, transformer=False)]


def test_arithmetic_asks_for_integers_and_fewer_channels() -> None:
    assert titles(rows(("a", "compute", 0.9, 10**6), ("b", "compute", 0.1, 10**6)))[:2] == [
        "Quantize to INT8",
        "Prune channels",
    ]


def test_calls_that_cost_more_than_their_work_ask_for_fewer_layers() -> None:
    many = rows(*((f"l{i}", "overhead", 0.1, 100) for i in range(10)))
    assert "Take layers away" in titles(many)
    assert "Prune channels" not in titles(many)


def test_weights_that_wait_for_memory_ask_for_smaller_weights() -> None:
    layers = [Layer("fc", "Gemm", 1.0, 1.0, 10**6, 1000, 900, "memory", 32)]
    assert "Store weights as INT8" in titles(layers)
    assert "Store weights as INT8" not in titles(rows(("conv", "memory", 1.0, 10**6)))  # its maps, not its weights


def test_odd_channel_counts_are_named() -> None:
    odd = [Layer("conv", "Conv", 1.0, 1.0, 10**6, 1000, 100, "overhead", 39)]
    advice = next(a for a in first_three(odd, transformer=False) if a.title == "Round channel counts")
    assert "conv has 39" in advice.why


def test_work_that_multiplies_nothing_is_told_by_operator() -> None:
    layers = [Layer(f"n{i}", "LayerNormalization", 0.09, 0.09, 0, 10, 0, "memory") for i in range(10)]
    advice = next(a for a in first_three(layers, transformer=True) if a.title == "Try another runtime")
    assert "LayerNormalization 90%" in advice.why


def test_layers_that_can_not_be_pruned_cheaply_are_spared() -> None:
    cheap = rows(("cheap", "compute", 0.6, 10**6), pruned_drop_pp=0.2)
    dear = rows(("dear", "compute", 0.4, 10**6), pruned_drop_pp=9.0)
    advice = next(a for a in first_three(cheap + dear, transformer=False) if a.title == "Prune channels")
    assert "ignore: [dear]" in advice.recipe
    assert advice.saves == pytest.approx(0.3)


def test_a_fragile_layer_is_one_far_under_the_median() -> None:
    layers = [row for i in range(6) for row in rows((f"l{i}", "compute", 0.1, 10), int8_sqnr_db=40.0 + i)]
    assert fragile(layers) == []
    bad = rows(("bad", "compute", 0.1, 10), int8_sqnr_db=5.0)
    assert [layer.name for layer in fragile(layers + bad)] == ["bad"]
    assert "float_layers: [bad]" in first_three(layers + bad, transformer=False)[0].recipe


def recipe(folder: Path, *, hostile: str | None = None) -> Path:
    """A recipe whose teacher has random weights, one layer of them made hostile to integers."""
    torch.manual_seed(0)
    model = build(CifarResNet(depth=8, width=8), (1, 8, 8), 10)
    if hostile is not None:  # one channel a thousand times as large as the others: one scale can't hold them
        with torch.no_grad():
            norm = model.get_submodule(hostile.replace("conv1", "bn1"))
            norm.weight[0] *= 1000
            model.get_submodule(hostile.replace("conv1", "conv2")).weight[:, 0] /= 1000
    save_file(model.state_dict(), folder / "weights.safetensors")
    lines = [
        "name: a",
        "task: {kind: digits}",
        "stages: [{kind: quantize}]",
        "teacher:",
        "  model: {kind: cifar_resnet, depth: 8, width: 8}",
        "  weights: weights.safetensors",
    ]
    path = folder / "recipe.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_command_counts_as_torch_does_and_finds_the_hostile_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, hostile="layer2.0.conv1")
    done = CliRunner().invoke(app, ["advise", str(path), "--samples", "64", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    torch.manual_seed(0)
    cost = count(build(CifarResNet(depth=8, width=8), (1, 8, 8), 10), (1, 8, 8))
    told: dict[str, int] = {}
    for row in found["layers"]:
        told[row["name"]] = told.get(row["name"], 0) + row["macs"]
    assert {name: macs for name, macs in told.items() if macs} == {n: layer.macs for n, layer in cost.layers.items()}
    assert np.isclose(sum(row["share"] for row in found["layers"]), 1)
    assert len(found["advice"]) == 3
    costs = {row["name"]: row["int8_sqnr_db"] for row in found["layers"] if row["int8_sqnr_db"] is not None}
    assert set(costs) == set(cost.layers)
    assert min(costs, key=costs.__getitem__) == "layer2.0.conv2"  # it reads the channels of unlike size
    assert any(row["pruned_drop_pp"] is not None for row in found["layers"])


def test_a_saved_model_has_no_accuracy_and_says_so(tmp_path: Path) -> None:
    config = CifarResNet(depth=8, width=8)
    model = build(config, (3, 16, 16), 10)
    save_model(model, Description(model=config, input_shape=(3, 16, 16), classes=10), tmp_path / "saved")
    done = CliRunner().invoke(app, ["advise", str(tmp_path / "saved")])
    assert done.exit_code == 0, done.output
    assert "nothing is known of its accuracy" in done.stdout
    assert "To try first" in done.stdout


@pytest.mark.parametrize("name", ["nothing.yaml", "folder", "text.onnx"])
def test_what_is_no_model_is_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.onnx").write_text("no model")
    done = CliRunner().invoke(app, ["advise", str(tmp_path / name)])
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_a_teacher_that_is_trained_first_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path)
    path.write_text(path.read_text() + "  train: {epochs: 1}\n")
    done = CliRunner().invoke(app, ["advise", str(path)])
    assert done.exit_code == 2
    assert "edgewise run RECIPE" in done.output
