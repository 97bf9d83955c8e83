"""What the face says about float layers and mixed plans before anything is trained."""

from __future__ import annotations

import pytest

from edgewise.compress.config import Mixed, Quantize, Source
from edgewise.config import Precision, RuntimeName
from edgewise.deploy.config import Deploy, Target
from edgewise.errors import ModelError, RecipeError
from edgewise.models.config import CifarResNet
from edgewise.models.tasks.config import Digits
from edgewise.models.tasks.load import load_task
from edgewise.plan import plan, wanted_files
from edgewise.recipe import Fit, Recipe
from edgewise.stages.rehearse import rehearse

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
    with pytest.raises(ModelError, match=r"(?s)stages\[0\] \(quantize\).*layer1\.0\.conv3.*nearest.*layer1\.0\.conv"):
        rehearse(recipe, load_task(recipe.task))
    fine = _recipe(Quantize(kind="quantize", float_layers=("layer1.*",)), "int8")
    rehearse(fine, load_task(fine.task))


def test_a_plan_without_samples_to_judge_on_is_told_before_training() -> None:
    stage = Quantize(kind="quantize", calibration_samples=5000, mixed=Mixed(max_accuracy_drop_pp=1))
    recipe = _recipe(stage, "int8")
    with pytest.raises(RecipeError, match=r"stages\[0\]\.mixed: .*it leaves 0; 16 are needed"):
        rehearse(recipe, load_task(recipe.task))


def test_only_static_int8_needs_a_quantize_stage() -> None:
    recipe = _recipe(None, "int8_dynamic", "int8_weights")
    made = {file.name: file for file in wanted_files(recipe, "teacher", "teacher", None)}
    assert set(made) == {f"onnxruntime-{name}" for name in ("float32-teacher", "int8_dynamic", "int8_weights")}
    assert made["onnxruntime-int8_dynamic"].exports == ("teacher",)
    assert made["onnxruntime-int8_dynamic"].parent == "onnxruntime-float32-teacher"
    assert "onnxruntime-int8_weights" in {step.name for step in plan(recipe)}
    with pytest.raises(ValueError, match="needs a quantize stage"):
        _recipe(None, "int8")
