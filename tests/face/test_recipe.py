"""Every mistake a recipe can hold: its place, its line, what was expected, and the name that was meant."""

# What is said stands here as it is printed, in one line.
# ruff: noqa: E501

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgewise.compress.config import Distill, Prune, Quantize, Train
from edgewise.errors import RecipeError
from edgewise.recipe import Recipe
from edgewise.recipe_file import LoadedRecipe, load_budget, load_recipe
from edgewise.recipe_yaml import MAX_BYTES, read_document

GOOD = """\
name: small
seed: 3
task:
  kind: digits
teacher:
  model:
    kind: cifar_resnet
    depth: 20
  train:
    epochs: 2
    optimizer: {kind: sgd, lr: 1e-2}
stages:
  - kind: prune
    macs_ratio: 0.5
  - kind: distill
    fit:
      epochs: 3
    losses:
      - {kind: kd, weight: 0.9, temperature: 4}
  - kind: quantize
budget:
  max_accuracy_drop_pp: 1.0
"""

_STAGE = Recipe.model_json_schema()["properties"]["stages"]["items"]["discriminator"]["mapping"]
STAGES = ", ".join(_STAGE)
LOSSES = ", ".join(Distill.model_json_schema()["properties"]["losses"]["items"]["discriminator"]["mapping"])

Load = Callable[..., LoadedRecipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a recipe's text and load it."""

    def _load(text: str, **options: Path | str | None) -> LoadedRecipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, data=options.get("data"), profile=options.get("profile"))  # type: ignore[arg-type]

    return _load


def refusal(load: Load, text: str, **options: Path | str | None) -> list[str]:
    """The lines of the error, without the headline."""
    with pytest.raises(RecipeError) as caught:
        load(text, **options)
    message = str(caught.value)
    for jargon in ("pydantic", "https://", "Input should", "validation error", "Extra inputs"):
        assert jargon not in message
    return [line.strip() for line in message.splitlines()[1:]]


def test_a_good_recipe_is_what_a_plain_yaml_reader_sees(load: Load) -> None:
    loaded = load(GOOD)
    assert loaded.text == GOOD
    plain = yaml.safe_load(GOOD)
    plain["teacher"]["train"]["optimizer"]["lr"] = 0.01  # YAML 1.1 reads 1e-2 as text; we don't
    by_hand = Recipe.model_validate(plain)
    assert loaded.recipe.model_copy(update={"stages": ()}) == by_hand.model_copy(update={"stages": ()})
    assert [type(stage) for stage in loaded.recipe.stages] == [Prune, Distill, Quantize]
    assert loaded.recipe.teacher.train is not None
    assert loaded.recipe.teacher.train.optimizer.lr == 0.01


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # unknown keys, at every depth
        ("seed: 3", "sed: 3", "sed (line 2): unknown key 'sed': did you mean 'seed'?"),
        ("    depth: 20", "    dept: 20", "teacher.model.dept (line 8): unknown key 'dept': did you mean 'depth'?"),
        (
            "temperature: 4",
            "temprature: 4",
            "stages[1].losses[0].temprature (line 19): unknown key 'temprature': did you mean 'temperature'?",
        ),
        (
            "max_accuracy_drop_pp",
            "max_acc_drop",
            "budget.max_acc_drop (line 22): unknown key 'max_acc_drop': did you mean 'max_accuracy_drop_pp'?",
        ),
        # a right key, one level too high
        (
            "    fit:\n      epochs: 3",
            "    epochs: 3",
            "stages[1].epochs (line 16): unknown key 'epochs': did you mean 'fit.epochs'?",
        ),
        # no name is near: all are listed
        ("  kind: digits", "  kind: digits\n  zzz: 1", "task.zzz (line 5): unknown key 'zzz': expected one of kind, augment"),
        # kinds
        (
            "kind: quantize",
            "kind: quantise",
            f"stages[2].kind (line 20): expected one of {STAGES}, got 'quantise': "
            "did you mean 'quantize'?",
        ),
        (
            "kind: cifar_resnet",
            "kind: cifar-resnt",
            "teacher.model.kind (line 7): expected one of bert, bilstm, cifar_resnet, factory, huggingface, mobilenet_v2, "
            "onnx, vit, got 'cifar-resnt': did you mean 'cifar_resnet'?",
        ),
        (
            "kind: sgd",
            "kind: SGD",
            "teacher.train.optimizer.kind (line 11): expected one of adamw, sgd, got 'SGD': did you mean 'sgd'?",
        ),
        ("kind: kd, ", "", f"stages[1].losses[0].kind (line 19): expected one of {LOSSES}, got nothing"),
        (
            "task:\n  kind: digits",
            "task: digits",
            "task (line 3): expected a mapping with kind: digits, factory, image_folder, masked_lm, npz, tags, text, "
            "got 'digits': write {kind: digits}",
        ),
        # enum values
        (
            "macs_ratio: 0.5",
            "macs_ratio: 0.5\n    criterion: L2",
            "stages[0].criterion (line 15): expected one of l1, l2, bn_scale, taylor, hessian, random, got 'L2': did you mean 'l2'?",
        ),
        ("depth: 20", "depth: 21", "teacher.model.depth (line 8): expected one of 8, 14, 20, 32, 44, 56, 110, got 21"),
        # types
        ("epochs: 3", "epochs: ten", "stages[1].fit.epochs (line 17): expected a whole number >= 1, got 'ten'"),
        ("epochs: 3", "epochs: yes", "stages[1].fit.epochs (line 17): expected a whole number >= 1, got true"),
        ("epochs: 3", "epochs: 2.5", "stages[1].fit.epochs (line 17): expected a whole number >= 1, got 2.5"),
        ("epochs: 3", "epochs: '3'", "stages[1].fit.epochs (line 17): expected a whole number >= 1, got '3'"),
        ("epochs: 3", "epochs:", "stages[1].fit.epochs (line 17): expected a whole number >= 1, got nothing"),
        ("epochs: 3", "epochs: [3]", "stages[1].fit.epochs (line 17): expected a whole number >= 1, got a list of 1"),
        ("  - kind: distill\n", "  - kind: distill\n    cache: on\n", "stages[1].cache (line 16): expected one of auto, always, "
         "never, got true"),
        ("name: small", "name: 12", "name (line 1): expected a name of letters, digits, '.', '_' and '-', got 12: "
         "put it in quotes"),
        ("seed: 3", "bench: 3", "bench (line 2): expected a mapping of threads, batch, launches, max_launches, precision, blocks, block_ms, "
         "warmup_s, accuracy_samples, device, energy, sample_hz, scenarios, seed, got 3"),
        ("losses:\n      - {kind: kd, weight: 0.9, temperature: 4}", "losses: kd",
         f"stages[1].losses (line 18): expected a list of: a mapping with kind: {LOSSES}, got 'kd'"),
        # impossible values
        ("macs_ratio: 0.5", "macs_ratio: 1.5", "stages[0].macs_ratio (line 14): expected a number > 0 and < 1, got 1.5"),
        ("macs_ratio: 0.5", "macs_ratio: 0", "stages[0].macs_ratio (line 14): expected a number > 0 and < 1, got 0"),
        ("name: small", "name: ../up", "name (line 1): expected a name of letters, digits, '.', '_' and '-', got '../up'"),
        ("seed: 3", "deploy: {targets: []}", "deploy.targets (line 2): expected a list with one or more of: a mapping of "
         "runtime, precisions, got an empty list"),
        # missing
        ("    macs_ratio: 0.5\n", "",
         "stages[0] (line 13): give exactly one goal of macs_ratio, params_ratio and latency; got none"),
        ("name: small\n", "", "name: expected a name of letters, digits, '.', '_' and '-', got nothing"),
        # what only the whole recipe shows
        (
            "  train:\n    epochs: 2\n    optimizer: {kind: sgd, lr: 1e-2}\n",
            "",
            "teacher (line 5): give weights, or train, or both: an untrained model teaches nothing",
        ),
        (
            "  - kind: quantize\n",
            "  - kind: quantize\n  - kind: train\n",
            "stages (line 12): quantize comes once, and last: pruning or training would undo its ranges",
        ),
        (
            "  - kind: quantize\nbudget:",
            "deploy:\n  targets:\n    - {runtime: litert}\nbudget:",
            "deploy.targets (line 21): int8 for litert needs a quantize stage at the end",
        ),
        (
            "budget:",
            "deploy:\n  targets:\n    - {runtime: litert}\n    - {runtime: litert, precisions: [float16]}\nbudget:",
            "deploy.targets (line 22): litert stands twice; list its precisions together",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_and_line(load: Load, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) == 1 or old == "budget:"
    assert refusal(load, GOOD.replace(old, new)) == [said]


KD = "{kind: kd, weight: 0.9, temperature: 4}"
SCHEDULE = "a number >= 0, or a mapping with kind: warmup, linear, cosine, piecewise"
NAMED = "text, or a mapping of student, teacher"
LAYERS = f"one of auto, last, embedding, or a list with one or more of: {NAMED}, or a mapping of map, student, teacher"


@pytest.mark.parametrize(
    ("loss", "place", "said"),
    [
        # a number, or a schedule
        ("{kind: kd, weight: big}", "weight", f"expected {SCHEDULE}, got 'big'"),
        ("{kind: kd, weight: }", "weight", f"expected {SCHEDULE}, got nothing"),
        ("{kind: kd, weight: yes}", "weight", f"expected {SCHEDULE}, got true"),
        ("{kind: kd, weight: [1]}", "weight", f"expected {SCHEDULE}, got a list of 1"),
        ("{kind: kd, weight: linear}", "weight", f"expected {SCHEDULE}, got 'linear': write {{kind: linear, …}}"),
        ("{kind: kd, weight: -1}", "weight", "expected a number >= 0, got -1"),
        ("{kind: kd, weight: {kind: warmp}}", "weight.kind",
         "expected one of warmup, linear, cosine, piecewise, got 'warmp': did you mean 'warmup'?"),
        ("{kind: kd, weight: {value: 1}}", "weight.kind", "expected one of warmup, linear, cosine, piecewise, got nothing"),
        ("{kind: kd, weight: {kind: warmup, value: -1, epochs: 2}}", "weight.value", "expected a number >= 0, got -1"),
        ("{kind: kd, weight: {kind: warmup, vale: 1, epochs: 2}}", "weight.vale", "unknown key 'vale': did you mean 'value'?"),
        ("{kind: kd, weight: {kind: warmup, value: 1}}", "weight.epochs", "expected a number > 0, got nothing"),
        ("{kind: kd, weight: {kind: piecewise, points: []}}", "weight.points",
         "expected a list with one or more of: [a number, a number], got an empty list"),
        ("{kind: kd, weight: {kind: piecewise, points: [3]}}", "weight.points[0]", "expected [a number, a number], got 3"),
        ("{kind: kd, weight: {kind: piecewise, points: [[0]]}}", "weight.points[0][1]", "expected a number, got nothing"),
        ("{kind: kd, weight: {kind: piecewise, points: [[1, 2]]}}", "weight.points",
         "the first must be at epoch 0, and each later than the one before"),
        ("{kind: kd, temperature: 0}", "temperature", "a temperature must stay above 0, got 0"),
        ("{kind: kd, temperature: {kind: warmup, value: 4, epochs: 2}}", "temperature",
         "a temperature must stay above 0, got a warmup that reaches 0"),
        ("{kind: mlkd, temperatures: [2, hot]}", "temperatures[1]", f"expected {SCHEDULE}, got 'hot'"),
        # layers: a word, a list of names and pairs, or a map
        ("{kind: at, layers: autoo}", "layers", "expected one of auto, last, embedding, got 'autoo': did you mean 'auto'?"),
        ("{kind: at, layers: layer1}", "layers",
         "expected one of auto, last, embedding, got 'layer1': write one name as [layer1]"),
        ("{kind: at, layers: 3}", "layers", f"expected {LAYERS}, got 3"),
        ("{kind: at, layers: }", "layers", f"expected {LAYERS}, got nothing"),
        ("{kind: at, layers: []}", "layers", f"expected a list with one or more of: {NAMED}, got an empty list"),
        ("{kind: at, layers: [a, 1]}", "layers[1]", f"expected {NAMED}, got 1"),
        ("{kind: at, layers: [[a, b]]}", "layers[0]", f"expected {NAMED}, got a list of 2"),
        ("{kind: at, layers: [{student: a}]}", "layers[0].teacher", "expected text, got nothing"),
        ("{kind: at, layers: [{student: a, techer: b}]}", "layers[0].techer",
         "unknown key 'techer': did you mean 'teacher'?"),
        ("{kind: at, layers: {map: unform, student: a.*, teacher: b.*}}", "layers.map",
         "expected one of uniform, last, first, got 'unform': did you mean 'uniform'?"),
        ("{kind: at, layers: {studnt: a.*, teacher: b.*}}", "layers.studnt", "unknown key 'studnt': did you mean 'student'?"),
        ("{kind: custom, loss: 'mine:loss', layers: alst}", "layers",
         "expected one of auto, last, embedding, got 'alst': did you mean 'last'?"),
        ("{kind: custom, loss: mine.loss}", "loss", "expected text like package.module:name, got 'mine.loss'"),
        ("{kind: fitnets}", "kind", f"expected one of {LOSSES}, got 'fitnets': did you mean 'fitnet'?"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_loss_is_one_sentence(load: Load, loss: str, place: str, said: str) -> None:
    assert refusal(load, GOOD.replace(KD, loss)) == [f"stages[1].losses[0].{place} (line 19): {said}"]


def test_an_exit_is_auto_or_named(load: Load) -> None:
    stage = "  - {kind: self_distill, layers: layer1}\n  - kind: quantize"
    (said,) = refusal(load, GOOD.replace("  - kind: quantize", stage))
    assert said == "stages[2].layers (line 20): expected 'auto', got 'layer1': write one name as [layer1]"


MIXED = GOOD.replace("kind: digits", "kind: digits\n  augment: {mixup: 0.2}")


@pytest.mark.parametrize("mixing", ["mixup: 0.2", "cutmix: 1.0"])
def test_what_reads_one_label_refuses_mixed_samples_at_once(load: Load, mixing: str) -> None:
    mixed = MIXED.replace("mixup: 0.2", mixing)
    assert load(mixed).recipe.name == "small"
    assert refusal(load, mixed.replace(KD, "{kind: dkd}")) == [
        "stages[1].losses (line 19): dkd needs one label a sample, and mixup or cutmix gives two; leave the mixing out, "
        "or use kd or dist"
    ]
    assert refusal(load, mixed.replace("    losses:", "    teacher_wrong: drop\n    losses:")) == [
        "stages[1].teacher_wrong (line 19): whether the teacher is wrong is not known of samples that mixup or cutmix "
        "made; leave the mixing out, or set it to none"
    ]


def test_lessons_of_a_stage_that_trains_nothing_are_refused(load: Load) -> None:
    for said, key in (("losses: [{kind: dkd}]", "losses"), ("cross_entropy: 0.5", "cross_entropy")):
        assert refusal(load, GOOD.replace("kind: quantize", f"kind: quantize\n    {said}")) == [
            f"stages[2].{key} (line 21): without fit nothing is trained; set fit, or leave it out"
        ]


def test_what_would_not_be_reached_within_the_run_is_refused(load: Load) -> None:
    assert refusal(load, GOOD.replace("epochs: 2", "epochs: 2\n    warmup_epochs: 3")) == [
        "teacher.train.warmup_epochs (line 11): 3, and the run has 2: the learning rate would never be reached"
    ]
    late = GOOD.replace(KD, "{kind: kd, weight: {kind: warmup, value: 1, epochs: 4}}")
    assert refusal(load, late) == ["stages[1].losses[0].weight (line 19): it changes until epoch 4, and the run has 3"]
    assert load(late.replace("epochs: 4", "epochs: 3")).recipe.name == "small"


def test_a_loss_that_edits_the_student_needs_a_frozen_teacher(load: Load) -> None:
    stage = "  - kind: ema_teacher\n    losses: [{kind: simkd}]\n  - kind: quantize"
    assert refusal(load, GOOD.replace("  - kind: quantize", stage)) == [
        "stages[2].losses (line 21): simkd puts a part of the teacher into the student, which only distill and "
        "assistant do, not ema_teacher"
    ]


def test_all_mistakes_come_at_once_in_the_order_of_lines(load: Load, tmp_path: Path) -> None:
    text = (
        GOOD.replace("kind: digits", "kind: npz\n  path: nowhere.npz")
        .replace("macs_ratio: 0.5", "macs_ratio: half")
        .replace("temperature", "temprature")
        .replace("epochs: 2", "epochs: 0")
    )
    assert refusal(load, text) == [
        f"task.path (line 5): expected a file, got nothing at {tmp_path / 'nowhere.npz'}",
        "teacher.train.epochs (line 11): expected a whole number >= 1, got 0",
        "stages[0].macs_ratio (line 15): expected a number > 0 and < 1, got 'half'",
        "stages[1].losses[0].temprature (line 20): unknown key 'temprature': did you mean 'temperature'?",
    ]


@pytest.mark.parametrize(
    ("given", "got"), [("[a, b, c]", "a list of 3"), ("{a: 1}", "a mapping"), ("[1, b]", "a list of 2")]
)
def test_a_place_that_takes_this_or_that_says_both_once(
    load: Load, tmp_path: Path, word_pieces: Callable[..., Path], given: str, got: str
) -> None:
    for name in ("train.tsv", "test.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\na\tb\n")
    files = f"kind: text\n  train: train.tsv\n  test: test.tsv\n  tokenizer: {word_pieces('a b')}\n  text: {given}"
    (said,) = refusal(load, GOOD.replace("kind: digits", files))
    assert said == f"task.text (line 8): expected text, or [text, text], got {got}"


def test_a_key_named_like_a_kind_is_still_a_key(load: Load) -> None:
    text = GOOD.replace("kind: digits", "kind: digits\n  digits: {augment: 1}")
    assert refusal(load, text) == ["task.digits (line 5): unknown key 'digits': expected one of kind, augment"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- name: x\n", "expected a mapping (name: …, task: …), got a list"),
        ("digits\n", "expected a mapping (name: …, task: …), got one bare value"),
        ("name: a\n  seed: 1\n", "line 2, column 7: mapping values are not allowed here"),
        ("name: [a\nseed: 1\n", "line 2, column 5: expected ',' or ']', but got ':'"),
        ("name: a\n\tseed: 1\n", "line 2, column 1: a tab"),
        ("name: 'a\n", "line 2, column 1: found unexpected end of stream"),
        ("name: a\x07\n", "line 1: the character '\\x07' can't stand in YAML"),
        ("name: a\nseed: 1\nname: b\n", "name (line 3): the key stands here twice, first in line 1"),
        ("name: a\ntask: {kind: digits, kind: npz}\n", "task.kind (line 2): the key stands here twice, first in line 2"),
        ("a: &x 1\nb: *x\n", "line 1: anchors and aliases (&name, *name) are refused; write it out"),
        ("b: *x\n", "line 1: anchors and aliases (&name, *name) are refused; write it out"),
        ("name: a\ntask:\n  <<: {kind: digits}\n", "task (line 3): merge keys (<<) are refused; write it out"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' "
         "is refused: a recipe is plain data"),
        ("a: !!str 1\n", "line 1: the tag 'tag:yaml.org,2002:str' is refused: a recipe is plain data"),
        ("a: 1\n---\nb: 2\n", "line 2: expected one document, got a second one after '---'"),
        ("? [a]\n: 1\n", "the file (line 1): expected a key, got a list or mapping before ':'"),
        ("a: " + "[" * 50 + "]" * 50, "line 1: nested deeper than 40 levels"),
        ("a: .inf\n", "a (line 1): expected a finite number, got .inf"),
        ("a: -.INF\nb: [.nan]\n", "b[0] (line 2): expected a finite number, got .nan"),
        ("a: 1e999\n", "a (line 1): expected a finite number, got 1e999"),
        ("a: 012\n", "leave the zero out, or quote it"),
        (f"a: {'9' * 5000}\n", "a (line 1): expected a number, got one of 5000 digits"),
        ('"\\ud800": 1\n', "the file (line 1): expected text, got half of a surrogate pair"),
        ('a: "\\ud800"\n', "a (line 1): expected text, got half of a surrogate pair"),
        ("a" * 60_000 * 20 + ": 1\n", f"expected at most {MAX_BYTES:,} bytes, got 1,200,004: this is no recipe"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_what_is_not_plain_data_is_refused(load: Load, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(text)
    assert said in str(caught.value)


def test_a_yaml_bomb_costs_nothing(load: Load) -> None:
    text = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(RecipeError, match="anchors and aliases"):
        load(text)


def test_plain_values_are_read_like_safe_load_does(tmp_path: Path) -> None:
    text = "a: 1\nb: 0x1F\nc: 1_000\nd: -2.5\ne: ~\nf: ''\ng: 'no'\nh: no\ni: [a, 1, {b: true}]\nj: 1.5e+3\nk: text\n"
    path = tmp_path / "plain.yaml"
    path.write_text(text)
    document = read_document(path)
    assert document.data == yaml.safe_load(text)
    assert document.lines[("i", 2, "b")] == 9


def test_where_we_read_yaml_as_people_do(tmp_path: Path) -> None:
    path = tmp_path / "people.yaml"
    path.write_text("lr: 1e-3\nday: 2026-11-20\nratio: 16:9\non: 1\n1: 2\n")
    assert read_document(path).data == {"lr": 0.001, "day": "2026-11-20", "ratio": "16:9", "on": 1, "1": 2}


def test_a_file_that_is_not_there_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"no such file\n.*there are digits\.yaml"):
        load_recipe(tmp_path / "digit.yaml")
    with pytest.raises(RecipeError, match="does not exist either"):
        load_recipe(tmp_path / "no" / "digits.yaml")
    with pytest.raises(RecipeError, match="got a folder"):
        load_recipe(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: a\ntask: \xff\n")
    with pytest.raises(RecipeError, match="line 2: expected UTF-8 text, got the byte 0xff"):
        load_recipe(path)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())  # a byte order mark is no mistake
    assert load_recipe(path).recipe.name == "small"
    fifo = tmp_path / "pipe.yaml"
    os.mkfifo(fifo)
    with pytest.raises(RecipeError, match="not a regular file"):
        load_recipe(fifo)


WITH_FILES = GOOD.replace("kind: digits", "kind: npz\n  path: images.npz").replace(
    "  train:\n", "  weights: nets/teacher.pth\n  train:\n"
)


def test_paths_lead_from_the_recipe_or_from_data(load: Load, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for folder in (tmp_path, elsewhere):
        (folder / "nets").mkdir(parents=True)
        (folder / "nets" / "teacher.pth").touch()
        (folder / "images.npz").touch()
    for base, loaded in ((tmp_path, load(WITH_FILES)), (elsewhere, load(WITH_FILES, data=elsewhere))):
        assert loaded.base == base
        assert loaded.recipe.task.path == base / "images.npz"  # type: ignore[union-attr]
        assert loaded.recipe.teacher.weights == base / "nets" / "teacher.pth"
    absolute = WITH_FILES.replace("images.npz", str(tmp_path / "images.npz"))
    assert load(absolute, data=elsewhere).recipe.task.path == tmp_path / "images.npz"  # type: ignore[union-attr]


def test_paths_that_lead_nowhere(load: Load, tmp_path: Path) -> None:
    (tmp_path / "image.npz").touch()
    (tmp_path / "nets" / "teacher.pth").mkdir(parents=True)
    assert refusal(load, WITH_FILES) == [
        f"task.path (line 5): expected a file, got nothing at {tmp_path / 'images.npz'}: did you mean 'image.npz'?",
        f"teacher.weights (line 10): expected a file, got a folder: {tmp_path / 'nets' / 'teacher.pth'}",
    ]
    folder = GOOD.replace("kind: digits", "kind: image_folder\n  path: image.npz")
    assert refusal(load, folder) == [
        f"task.path (line 5): expected a folder, got a file: {tmp_path / 'image.npz'}",
    ]
    with pytest.raises(RecipeError, match=r"--data: expected a folder, got .*nowhere"):
        load(GOOD, data=tmp_path / "nowhere")


def test_a_budget_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "budget.yaml"
    path.write_text("min_speedup: 2\n")
    assert load_budget(path).min_speedup == 2
    path.write_text("# as in a recipe\nbudget:\n  min_sped: 2\n  max_p50_ms: -1\n")
    with pytest.raises(RecipeError) as caught:
        load_budget(path)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "min_sped (line 3): unknown key 'min_sped': did you mean 'min_speedup'?",
        "max_p50_ms (line 4): expected a number > 0, got -1",
    ]


def test_stages_without_settings_take_the_defaults(load: Load) -> None:
    recipe = load(GOOD.replace("  - kind: quantize", "  - kind: train\n  - kind: quantize")).recipe
    assert recipe.stages[2] == Train(kind="train")
