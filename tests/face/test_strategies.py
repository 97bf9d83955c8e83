"""Every way of distilling as a user meets it: one recipe through all of them, run in processes of its own, run again,
killed, and with a user's own loss changed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

FIT = "{epochs: 1, batch_size: 128, optimizer: {kind: adamw, lr: 0.003}, checkpoint_every: 3}"
RECIPE = f"""
name: strategies
task: {{kind: digits}}
teacher:
  model: {{kind: cifar_resnet, depth: 8, width: 8}}
  train: {FIT}
student:
  model: {{kind: cifar_resnet, depth: 8, width: 4}}
stages:
  - {{kind: inherit, slice: true}}
  - {{kind: assistant, model: {{kind: cifar_resnet, depth: 8, width: 6}}, fit: {FIT}}}
  - kind: distill
    fit: {FIT}
    cache: always
    teacher_wrong: drop
    ensemble: {{teachers: [{{model: {{kind: cifar_resnet, depth: 8, width: 6}}, train: {FIT}}}]}}
    losses:
      - {{kind: kd, weight: {{kind: warmup, value: 0.9, epochs: 0.5}}}}
      - {{kind: fitnet, weight: 0.1, layers: [layer3]}}
      - {{kind: crd, weight: 0.1, negatives: 8}}
      - {{kind: custom, loss: 'mine:gap', weight: 0.01, arguments: {{power: 1.0}}}}
  - {{kind: online, fit: {FIT}}}
  - {{kind: mutual, fit: {FIT}, peers: [{{kind: cifar_resnet, depth: 8, width: 6}}]}}
  - {{kind: self_distill, fit: {FIT}}}
  - {{kind: born_again, generations: 2, fit: {FIT}}}
  - {{kind: ema_teacher, fit: {FIT}}}
  - {{kind: data_free, fit: {FIT}, make: {{kind: inversion, samples: 128, steps: 2}}}}
deploy: {{calibration_samples: 16, targets: [{{runtime: onnxruntime, precisions: [float32]}}]}}
bench: {{launches: 1, max_launches: 1, blocks: 2, block_ms: 5, warmup_s: 0.05, accuracy_samples: 50}}
"""
SIMKD = f"  - {{kind: distill, cross_entropy: 0, losses: [{{kind: simkd}}], fit: {FIT}}}\n"
LOSS = """
def gap(student, teacher, batch, power):
    return (student.logits.float() - teacher.logits.float()).abs().pow(power).mean()
"""
# What the history of each stage tells apart.
TERMS = {
    "2-assistant": {"cross_entropy", "kd"},
    "3-distill": {"cross_entropy", "kd", "fitnet", "crd", "custom", "teacher_right"},
    "3-distill-teacher-2": {"cross_entropy"},
    "4-online": {"cross_entropy", "kd", "teacher: cross_entropy"},
    "5-mutual": {f"peer {k}: {what}" for k, o in ((1, 2), (2, 1)) for what in ("cross_entropy", f"kd from {o}")},
    "6-self_distill": {"cross_entropy"}
    | {f"{layer}: {what}" for layer in ("layer1", "layer2") for what in ("cross_entropy", "kd", "features")},
    "7-born_again": {"cross_entropy", "kd"},
    "8-ema_teacher": {"cross_entropy", "kd"},
    "9-data_free": {"kd"},
    "10-distill": {"simkd"},
}


def edgewise(recipe: str, cwd: Path) -> dict[str, dict[str, Any]]:
    (cwd / "recipe.yaml").write_text(recipe)
    command = [sys.executable, "-m", "edgewise", "run", "recipe.yaml", "--out", "run", "--json"]
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}


def stage(run: Path, name: str) -> Path:
    (folder,) = run.glob(f"stages/{name}-{'[0-9a-f]' * 12}")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run through all strategies, and a second one of the same recipe with one more stage; they are not damaged."""
    folder = tmp_path_factory.mktemp("strategies")
    (folder / "mine.py").write_text(LOSS)
    first = edgewise(RECIPE, folder)
    assert not any(ran["reused"] for ran in first.values())
    second = edgewise(RECIPE.replace("deploy:", f"{SIMKD}deploy:"), folder)
    made = {name for name, ran in second.items() if not ran["reused"]}
    assert made == {"10-distill", "export-student", "onnxruntime-float32", "measure"}
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(finished.parent, tmp_path / "copy")
    yield tmp_path / "copy"
    shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize("name", TERMS)
def test_the_history_tells_the_terms_weighted_and_not(finished: Path, name: str) -> None:
    history = json.loads((stage(finished, name) / "history.json").read_text())
    assert len(history) == (2 if name == "7-born_again" else 1)
    for epoch in history:
        assert set(epoch["terms"]) == set(epoch["unweighted"]) == TERMS[name]
        assert epoch["loss"] == pytest.approx(sum(epoch["terms"].values()))
        assert all(np.isfinite(value) for value in epoch["unweighted"].values())


def test_weights_follow_their_schedule(finished: Path) -> None:
    (epoch,) = json.loads((stage(finished, "3-distill") / "history.json").read_text())
    ratio = {name: epoch["terms"][name] / epoch["unweighted"][name] for name in ("cross_entropy", "fitnet", "custom")}
    assert ratio == pytest.approx({"cross_entropy": 0.1, "fitnet": 0.1, "custom": 0.01})
    assert 0 < epoch["terms"]["kd"] < 0.9 * epoch["unweighted"]["kd"]  # it only warms up to 0.9
    assert epoch["terms"]["teacher_right"] == 0
    assert 0 < epoch["unweighted"]["teacher_right"] <= 1


def test_no_stage_leaves_anything_of_its_lesson_in_the_student(finished: Path) -> None:
    plain = {name: tensor.shape for name, tensor in load_file(stage(finished, "student") / "model.safetensors").items()}
    for name in TERMS:
        if name not in {"2-assistant", "3-distill-teacher-2", "10-distill"}:
            kept = load_file(stage(finished, name) / "model.safetensors")
            assert {name: tensor.shape for name, tensor in kept.items()} == plain, name
            assert json.loads((stage(finished, name) / "architecture.json").read_text())["edits"] == []


def test_teachers_answers_are_kept_in_the_run_folder(finished: Path) -> None:
    kept = [json.loads(path.read_text()) for path in finished.glob("cache/*/cache.json")]
    assert len(kept) == 2  # the assistant, which teaches by then, and the second teacher of the ensemble
    assert len(list(finished.glob("cache/*/feature-*.npy"))) == 2  # fitnet's and crd's layers, of the first teacher


def test_images_made_from_the_teacher_are_kept(finished: Path) -> None:
    images = np.load(stage(finished, "9-data_free") / "images.npy")
    assert images.shape == (128, 1, 8, 8)
    assert np.isfinite(images).all()


def test_the_exported_graph_is_the_student_alone(finished: Path) -> None:
    """SimKD's student has its projector and its teacher's classifier; of the other stages' adapters nothing is left."""
    import onnx
    import onnxruntime

    folder = stage(finished, "10-distill")
    assert [edit["kind"] for edit in json.loads((folder / "architecture.json").read_text())["edits"]] == [
        "reused_classifier"
    ]
    teacher, kept = (load_file(stage(finished, name) / "model.safetensors") for name in ("2-assistant", "10-distill"))
    np.testing.assert_array_equal(kept["linear.weight"], teacher["linear.weight"])
    # The newest export: the one before is that of the recipe without SimKD.
    exports = sorted(finished.glob("stages/export-student-*/float.onnx"), key=lambda path: path.stat().st_mtime)
    graphs = {len(exports) - 1: kept, 0: load_file(stage(finished, "9-data_free") / "model.safetensors")}
    assert len(exports) == 2
    for place, tensors in graphs.items():
        graph = onnx.load(exports[place]).graph
        weights = {name: value for name, value in tensors.items() if value.ndim > 1}
        made = [node for node in graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
        assert len(made) == len(weights)
    samples = np.load(stage(finished, "samples") / "inputs.npy")[:50]
    session = onnxruntime.InferenceSession(str(exports[-1]), providers=["CPUExecutionProvider"])
    answers = np.concatenate([session.run(None, {"input": sample[None]})[0] for sample in samples])
    np.testing.assert_allclose(answers, np.load(folder / "answers.npy")[:50], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("3-distill", "checkpoint.safetensors"),  # a mapping and memories are learnt beside the student
        ("7-born_again", "generation-2.safetensors"),  # the first generation is over
    ],
)
def test_killed_and_run_again_it_ends_with_the_same_bytes(copied: Path, name: str, mark: str) -> None:
    folder = stage(copied / "run", name)
    before = json.loads((folder / "artifact.json").read_text())["digest"]
    shutil.rmtree(folder)
    command = [sys.executable, "-m", "edgewise", "run", "recipe.yaml", "--out", "run"]
    process = subprocess.Popen(command, cwd=copied, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (folder.with_suffix(".partial") / "scratch" / mark).exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not folder.exists()
    scratch = folder.with_suffix(".partial") / "scratch"
    kept = {path: path.stat().st_mtime_ns for path in scratch.glob("generation-1/*")}
    assert kept or name != "7-born_again"
    stages = edgewise((copied / "recipe.yaml").read_text(), copied)
    assert [each for each, ran in stages.items() if not ran["reused"]] == [name]
    assert json.loads((folder / "artifact.json").read_text())["digest"] == before


def test_an_edited_loss_redoes_what_hangs_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.plan import plan
    from edgewise.recipe_file import load_recipe

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)

    def keys() -> dict[str, str]:
        found: dict[str, str] = {}
        for step in plan(load_recipe(tmp_path / "recipe.yaml").recipe):
            found[step.name] = step.key(found)
        return found

    (tmp_path / "mine.py").write_text(LOSS)
    before = keys()
    assert keys() == before
    (tmp_path / "mine.py").write_text(LOSS + "# another\n")
    changed = {name for name, key in keys().items() if key != before[name]}
    later = {"3-distill", *(name for name in TERMS if name[0] in "456789"), "export-student", "onnxruntime-float32"}
    assert changed == {*later, "measure"}


AT_ONCE: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "a layer that is misspelt": (
        lambda recipe: recipe.replace("layers: [layer3]", "layers: [leyer3]"),
        ("stages[2] (distill), losses: fitnet", "leyer3", "layer3"),
    ),
    "a function that is not in the user's file": (
        lambda recipe: recipe.replace("mine:gap", "mine:gup"),
        ("stages[2] (distill), mine:gup", "has no gup", "gap"),
    ),
    "a wider teacher to inherit from": (
        lambda recipe: recipe.replace("slice: true", "slice: false"),
        ("stages[0] (inherit)", "slice"),
    ),
    "an exit that is not there": (
        lambda recipe: recipe.replace("kind: self_distill", "kind: self_distill, layers: [layer9]"),
        ("stages[5] (self_distill)", "layer9"),
    ),
    "a block that can't be": (
        lambda recipe: recipe.replace("width: 6}]", "width: 6}], losses: [{kind: at, layers: [linear.weight]}]"),
        ("stages[4] (mutual)", "linear.weight"),
    ),
    "a block to drop that is not there": (
        lambda recipe: recipe.replace("stages:", "stages:\n  - {kind: drop_blocks, names: [layer1.3]}"),
        ("stages[0] (drop_blocks)", "layer1.3", "near: layer1.0"),
    ),
    "more blocks to drop than there are": (
        lambda recipe: recipe.replace("stages:", "stages:\n  - {kind: drop_blocks, count: 2}"),
        ("stages[0] (drop_blocks)", "count 2 is out of reach", "layer1.0"),
    ),
    "early stopping without a split for it": (
        lambda recipe: recipe.replace("task: {kind: digits}", "task: {kind: npz, path: images.npz}").replace(
            "cache: always", "label_only_epochs: 0"
        ).replace("epochs: 1,", "epochs: 1, early_stop: {patience: 1},", 1),
        ("teacher.train.early_stop", "validation split", "task.val_size"),
    ),
    "mixed samples from the user's own task": (
        lambda recipe: recipe.replace("{kind: digits}", "{kind: factory, factory: 'mine:mixed'}"),
        ("stages[2].teacher_wrong", "mixup"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", AT_ONCE)
def test_what_can_be_known_is_told_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    from edgewise.console import Lines
    from edgewise.errors import EdgewiseError
    from edgewise.pipeline import run
    from edgewise.recipe_file import load_recipe

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(
        LOSS + "def mixed():\n"
        "    from dataclasses import replace\n"
        "    from edgewise.models.tasks.config import Augment, Digits\n"
        "    from edgewise.models.tasks.digits import load_digits\n"
        "    return replace(load_digits(Digits()), augment=Augment(mixup=0.2))\n"
    )
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    change, words = AT_ONCE[mistake]
    (tmp_path / "recipe.yaml").write_text(change(RECIPE))
    with pytest.raises(EdgewiseError) as caught:
        run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", Lines())
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "run" / "stages").exists()
    assert "teacher" not in capsys.readouterr().err
    sys.modules.pop("mine", None)


def test_a_net_that_teaches_itself_is_rehearsed_against_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.models.tasks.load import load_task
    from edgewise.recipe_file import load_recipe
    from edgewise.stages.rehearse import rehearse

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "of_features.py").write_text(
        "def near(student, teacher, batch):\n    return (student.features[0] - teacher.features[0]).abs().mean()\n"
    )
    stages = "stages:\n" + "".join(
        f"  - {{kind: {kind}, fit: {FIT}, losses: [{{kind: custom, loss: 'of_features:near', layers: last}}]}}\n"
        for kind in ("ema_teacher", "born_again")
    )
    head, _, tail = RECIPE.partition("stages:\n")
    (tmp_path / "recipe.yaml").write_text(head + stages + tail[tail.index("deploy:") :])
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    task = load_task(recipe.task)

    class Unread:
        """Images made from a teacher alone may not have been preceded by a look at the real ones."""

        ids, targets = task.splits["train"].ids, task.splits["train"].targets

        def read(self, index: object) -> object:
            raise AssertionError("a sample was read")

    rehearse(recipe, replace(task, splits={**task.splits, "train": Unread()}))
    sys.modules.pop("of_features", None)
