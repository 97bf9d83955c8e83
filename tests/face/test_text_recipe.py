"""A recipe over texts: its files are looked up and named, and where they lie is no part of a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from edgewise import pipeline
from edgewise.console import Quiet
from edgewise.errors import RecipeError
from edgewise.models.tasks.config import TextFiles
from edgewise.models.tasks.load import load_task
from edgewise.plan import plan
from edgewise.recipe_file import load_recipe
from edgewise.stages.ship import samples
from edgewise.stages.work import Work, others

RECIPE = """\
name: words
task:
  kind: text
  train: data/train.tsv
  test: data/test.tsv
  tokenizer: words
  max_length: 8
  {more}
teacher: {{model: {{kind: bilstm, embedding: 4, hidden: 4}}, train: {{epochs: 1, batch_size: 2}}}}
deploy: {{targets: [{{runtime: onnxruntime, precisions: [float32]}}]}}
"""
ROWS = "sentence\tlabel\ngood film\t1\nbad film\t0\n"


@pytest.fixture
def recipe(tmp_path: Path, word_pieces: Callable[..., Path]) -> Path:
    word_pieces("good bad film").rename(tmp_path / "words")
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.tsv").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(RECIPE.format(more="val_size: 0"))
    return tmp_path / "r.yaml"


def keys(path: Path, data: Path | None = None) -> dict[str, str]:
    made: dict[str, str] = {}
    for step in plan(load_recipe(path, data=data).recipe):
        made[step.name] = step.key(made)
    return made


def test_paths_are_beside_the_recipe(recipe: Path) -> None:
    task = load_recipe(recipe).recipe.task
    assert isinstance(task, TextFiles)
    assert task.train == recipe.parent / "data" / "train.tsv"
    assert load_task(task).classes == ("0", "1")


def test_every_missing_file_is_named(recipe: Path) -> None:
    (recipe.parent / "data" / "train.tsv").rename(recipe.parent / "data" / "trian.tsv")
    (recipe.parent / "words" / "tokenizer.json").unlink()
    (recipe.parent / "words").rmdir()
    recipe.write_text(RECIPE.format(more="transfer: data"))
    with pytest.raises(RecipeError) as told:
        load_recipe(recipe)
    text = str(told.value)
    assert "task.train (line 4): expected a file, got nothing" in text
    assert "did you mean 'trian.tsv'?" in text
    assert "task.tokenizer (line 6): expected a folder or a file, got nothing" in text
    assert "task.transfer (line 8): expected a file, got a folder" in text


def test_a_run_depends_on_what_is_in_the_files_alone(recipe: Path, tmp_path: Path) -> None:
    before = keys(recipe)
    (tmp_path / "elsewhere").mkdir()
    for name in ("data", "words"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert keys(recipe, tmp_path / "elsewhere") == before
    tokenizer = tmp_path / "elsewhere" / "words" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    after = keys(recipe, tmp_path / "elsewhere")
    assert all(after[name] != before[name] for name in ("samples", "teacher"))
    # the padding token may be named beside it
    (tokenizer.parent / "tokenizer_config.json").write_text('{"pad_token": "[UNK]"}')
    named = keys(recipe, tmp_path / "elsewhere")
    assert all(named[name] != after[name] for name in ("samples", "teacher"))


def test_other_metrics_have_an_interval(recipe: Path) -> None:
    loaded = load_task(load_recipe(recipe).recipe.task)
    random = np.random.default_rng(0)
    targets = random.integers(2, size=300)
    answers = np.eye(2, dtype=np.float32)[np.where(random.random(300) < 0.8, targets, 1 - targets)]
    found = others(loaded, answers, targets)
    assert set(found) == {"f1", "matthews"}
    assert found["f1"]["value"] == f1_score(targets, answers.argmax(axis=1))
    assert found["f1"]["low"] < found["f1"]["value"] < found["f1"]["high"]
    assert 0.04 < found["f1"]["high"] - found["f1"]["low"] < 0.15


def test_the_tokenizer_and_what_is_known_of_the_data_travel(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "test.tsv").write_text(ROWS + "good " * 20 + "\t1\n")
    loaded = load_recipe(recipe).recipe
    task = load_task(loaded.task)
    payload = tmp_path / "payload"
    payload.mkdir()
    config = {"calibration_samples": 2}
    metrics = samples(
        Work(
            name="samples",
            recipe=loaded,
            config=config,
            task=lambda: task,
            parents={},
            payload=payload,
            scratch=tmp_path,
            cache=tmp_path,
            tick=lambda done, total, note: None,
            note=lambda line: None,
        )
    )
    assert (payload / "tokenizer.json").read_bytes() == (tmp_path / "words" / "tokenizer.json").read_bytes()
    assert metrics["told"] == list(task.notes)
    assert "lose their end" in metrics["told"][0]

    # what a device makes of a text with that file alone is what it is tested with
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(payload / "tokenizer.json"))
    own.no_padding()
    own.enable_truncation(8)
    tested = np.load(payload / "inputs.npy")
    assert tested.dtype == np.int64
    for row, text in zip(tested, ("good film", "bad film", "good " * 20), strict=True):
        ids = own.encode(text).ids
        assert row.tolist() == ids + [0] * (8 - len(ids))


def test_the_folder_of_a_converted_file_is_all_that_a_device_needs(recipe: Path, tmp_path: Path) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    rows = [f"{'good ' * (n % 3)}film{' good' * (n % 2)}\t1\n{'bad ' * (n % 4)}film bad\t0\n" for n in range(12)]
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    recipe.write_text(
        recipe.read_text() + "bench: {launches: 2, max_launches: 2, blocks: 2, block_ms: 1, warmup_s: 0}\n"
    )
    pipeline.run(load_recipe(recipe), tmp_path / "run", Quiet()).check()
    (made,) = (tmp_path / "run" / "stages").glob("onnxruntime-float32-teacher-*")
    device = Path(shutil.copytree(made, tmp_path / "device"))
    card = json.loads((device / "card.json").read_text())
    tokenizer = Tokenizer.from_file(str(device / card["prepared_with"][0]))
    tokenizer.no_padding()
    tokenizer.enable_truncation(card["input"]["shape"][1])
    session = onnxruntime.InferenceSession(device / "model.onnx", providers=["CPUExecutionProvider"])
    told = []
    for line in "".join(rows).splitlines():
        ids = np.array([tokenizer.encode(line.split("\t")[0]).ids], card["input"]["dtype"])
        (logits,) = session.run(["logits"], {card["input"]["name"]: ids})
        told.append(card["classes"][int(logits.argmax())])
    (measured,) = (tmp_path / "run" / "stages").glob("measure-*")
    kept = np.load(measured / "answers" / "onnxruntime-float32-teacher.npy")
    assert told == [str(answer) for answer in kept.argmax(axis=1)]

    # and what the docs print does it
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text()
    program = page.split("### On the device")[1].split("```python\n")[1].split("```")[0]
    assert "a stirring , funny film" in program
    program = program.replace("a stirring , funny film", "good film")
    done = subprocess.run([sys.executable, "-c", program], cwd=device, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told["".join(rows).splitlines().index("good film\t1")]
