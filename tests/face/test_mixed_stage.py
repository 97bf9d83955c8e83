"""What the face says about float layers and mixed plans before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewise.compress.agreement import answers
from edgewise.compress.config import Mixed, Quantize, Source
from edgewise.compress.quantization.qad import quantize
from edgewise.compress.saved import Description, save_model
from edgewise.config import Precision, RuntimeName
from edgewise.console import make_console
from edgewise.deploy.config import Deploy, Target
from edgewise.errors import ModelError, RecipeError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, ViT
from edgewise.models.tasks.config import Digits
from edgewise.models.tasks.load import load_task
from edgewise.pipeline import run
from edgewise.plan import plan, wanted_files
from edgewise.progress import silent
from edgewise.recipe import Fit, Recipe
from edgewise.recipe_file import LoadedRecipe
from edgewise.stages.mixed import with_plan
from edgewise.stages.rehearse import rehearse
from edgewise.stages.work import Work, spread

NET = CifarResNet(kind="cifar_resnet", depth=8, width=8)


def _recipe(stage: Quantize | None, *precisions: Precision, runtime: RuntimeName = "onnxruntime") -> Recipe:
    return Recipe(
        name="r",
        task=Digits(kind="digits"),
        teacher=Source(model=NET, train=Fit(epochs=1)),
        stages=() if stage is None else (stage,),
        deploy=Deploy(targets=(Target(runtime=runtime, precisions=precisions),)),
    )


def test_a_float_layer_that_isn_t_there_is_told_before_training() -> None:
    recipe = _recipe(Quantize(kind="quantize", float_layers=("layer1.0.conv3",)), "int8")
    with pytest.raises(ModelError, match=r"(?s)stages\[0\] \(quantize\).*layer1\.0\.conv3.*near: .*layer1\.0\.conv"):
        rehearse(recipe, load_task(recipe.task))
    fine = _recipe(Quantize(kind="quantize", float_layers=("layer1.*",)), "int8")
    rehearse(fine, load_task(fine.task))


def test_a_recipe_that_trains_nothing_is_rehearsed_too(tmp_path: Path) -> None:
    description = Description(model=NET, input_shape=(1, 8, 8), classes=10)
    save_model(build(NET, (1, 8, 8), 10), description, tmp_path / "net")
    weights = tmp_path / "net" / "model.safetensors"
    stage = Quantize(kind="quantize", float_layers=("layer1.0.conv3",))
    recipe = _recipe(stage, "int8").model_copy(update={"teacher": Source(model=NET, weights=weights)})
    with pytest.raises(ModelError, match=r"stages\[0\] \(quantize\), float_layers"):
        run(LoadedRecipe(recipe, "", tmp_path, []), tmp_path / "run", make_console())
    assert not list((tmp_path / "run").glob("stages/*"))


def test_a_plan_without_samples_to_judge_on_is_told_before_training() -> None:
    stage = Quantize(kind="quantize", calibration_samples=5000, mixed=Mixed(max_accuracy_drop_pp=1))
    recipe = _recipe(stage, "int8")
    with pytest.raises(RecipeError, match=r"stages\[0\]\.mixed: .*it leaves 0; 16 are needed"):
        rehearse(recipe, load_task(recipe.task))


def test_the_plan_is_judged_with_the_batchnorm_that_ships(tmp_path: Path) -> None:
    stage = Quantize(
        kind="quantize",
        calibration_samples=32,
        reestimate_batchnorm=True,
        mixed=Mixed(max_accuracy_drop_pp=100, samples=200, sensitivity_samples=16),
    )
    recipe = _recipe(stage, "int8")
    task = load_task(recipe.task)
    split = task.splits["train"]
    torch.manual_seed(1)
    model = build(NET, task.input_shape, len(task.classes)).eval()
    for name, tensor in model.state_dict().items():  # as of a net that was pruned: statistics of other weights
        if name.endswith("running_mean"):
            tensor.normal_()
    work = Work(
        "quantize", recipe, stage, lambda: task, {}, tmp_path, tmp_path / "scratch", tmp_path, silent, lambda line: None
    )
    places = spread(len(split.ids), 32)
    description = Description(model=NET, input_shape=task.input_shape, classes=len(task.classes))
    config, _ = with_plan(work, model, description, places)
    shipped, _ = quantize(model, split, config, calibration=split.read(places), seed=0)
    plan = json.loads((tmp_path / "plan.json").read_text())
    judged = np.array([split.ids.index(name) for name in plan["sample_ids"]])
    before, after = (
        (answers(net, split.read(judged)).argmax(1) == split.targets[judged]).mean() for net in (model, shipped)
    )
    assert plan["drop"]["pp"] == pytest.approx(100 * (before - after), abs=1e-6)


def test_openvinos_dynamic_int8_of_a_cnn_is_told_before_training() -> None:
    cnn = _recipe(None, "float16", "int8_dynamic", runtime="openvino")
    with pytest.raises(RecipeError, match="more than one row") as caught:
        rehearse(cnn, load_task(cnn.task))
    assert caught.value.where == "deploy.targets[0].precisions: int8_dynamic"
    other = _recipe(None, "int8_dynamic", runtime="onnxruntime")
    rehearse(other, load_task(other.task))
    vit = cnn.model_copy(update={"teacher": Source(model=ViT(patch=4, dim=16, depth=1, heads=2), train=Fit(epochs=1))})
    rehearse(vit, load_task(vit.task))


def test_only_static_int8_needs_a_quantize_stage() -> None:
    recipe = _recipe(None, "int8_dynamic", "int8_weights")
    made = {file.name: file for file in wanted_files(recipe, "teacher", "teacher", None)}
    assert set(made) == {f"onnxruntime-{name}" for name in ("float32-teacher", "int8_dynamic", "int8_weights")}
    assert made["onnxruntime-int8_dynamic"].exports == ("teacher",)
    assert made["onnxruntime-int8_dynamic"].parent == "onnxruntime-float32-teacher"
    assert "onnxruntime-int8_weights" in {step.name for step in plan(recipe)}
    with pytest.raises(ValueError, match="needs a quantize stage"):
        _recipe(None, "int8")
