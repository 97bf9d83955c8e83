"""A user's own model and task by import path, and the digest of their source."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewise.errors import DataError, EdgewiseError, ModelError
from edgewise.models import factory
from edgewise.models.build import build
from edgewise.models.config import ModelFactory
from edgewise.models.tasks.config import TaskFactory
from edgewise.models.tasks.load import fingerprint, load_task

Write = Callable[[str, str], None]

NET = """
import torch

def linear(input_shape, classes, *, hidden=0, wrong=0):
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, classes + wrong))

def broken(input_shape, classes):
    return torch.nn.Linear(7, classes)

def text(input_shape, classes):
    return "a net"

number = 3
"""

TASK = """
import numpy as np
from dataclasses import dataclass
from edgewise.models.tasks import Task

@dataclass
class Split:
    ids: tuple
    targets: np.ndarray

    def read(self, index):
        return np.zeros((len(index), 1, 2, 2), np.float32)

def make(count=6, classes=2, same_ids=False, extra_label=0, shape=(1, 2, 2), test="test"):
    targets = np.arange(count) % classes
    if extra_label:
        targets[-1] = extra_label
    ids = tuple("a" if same_ids else str(i) for i in range(count))
    splits = {"train": Split(ids, targets), test: Split(ids, targets)}
    return Task("mine", tuple(map(str, range(classes))), shape, splits)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Put a module into the current directory; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def put(name: str, content: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        for module in set(sys.modules) - before:
            if (getattr(sys.modules[module], "__file__", None) or "").startswith(str(tmp_path)):
                monkeypatch.delitem(sys.modules, module)

    return put


def test_a_model_of_the_current_directory(write: Write) -> None:
    write("nets_a.py", NET)
    model = build(ModelFactory(kind="factory", factory="nets_a:linear", arguments={"hidden": 1}), (1, 4, 4), 3)
    assert sum(p.numel() for p in model.parameters()) == 16 * 3 + 3
    assert model.training


@pytest.mark.parametrize(
    ("path", "arguments", "says"),
    [
        ("nets_b:linear", {"wrong": 1}, r"expected logits \(2, 3\) for a batch of two, got \(2, 4\)"),
        ("nets_b:linear", {"depth": 1}, r"linear\(\(1, 4, 4\), 3, depth=1\) failed: TypeError: .*'depth'"),
        ("nets_b:broken", {}, r"forward pass on \(2, 1, 4, 4\) failed: RuntimeError"),
        ("nets_b:text", {}, r"expected a torch\.nn\.Module, got str"),
        ("nets_b:number", {}, "has number, but it is a int, not callable"),
        ("nets_b:liner", {}, r"has no liner\n  next: name one of: broken, linear, text"),
        ("no_such_module:linear", {}, "can't import no_such_module: ModuleNotFoundError"),
        ("syntax_error:linear", {}, "can't import syntax_error: SyntaxError"),
    ],
)
def test_what_goes_wrong_in_a_model_factory_is_told(
    write: Write, path: str, arguments: dict[str, int], says: str
) -> None:
    write("nets_b.py", NET)
    write("syntax_error.py", "def linear(:")
    with pytest.raises(ModelError, match=says) as error:
        build(ModelFactory(kind="factory", factory=path, arguments=dict(arguments)), (1, 4, 4), 3)
    assert error.value.where == path


def test_a_task_of_the_current_directory(write: Write) -> None:
    write("tasks_a.py", TASK)
    task = load_task(TaskFactory(kind="factory", factory="tasks_a:make", arguments={"count": 8}))
    assert (task.name, len(task.splits["train"].ids)) == ("mine", 8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"count": 0}, "IndexError|empty"),
        ({"classes": 1}, "at least 2 classes"),
        ({"count": 1}, "every sample is of the class 0"),
        ({"same_ids": True}, "two samples have the same id"),
        ({"extra_label": 2}, r"labels 0\.\.2, but there are 2 classes"),
        ({"shape": [3, 2, 2]}, r"read gave \(1, 1, 2, 2\) of float32 for one sample, expected \(1, 3, 2, 2\)"),
        ({"test": "dev"}, "no test split, but: train, dev"),
        ({"classes": "x"}, "failed: .*Error"),
    ],
)
def test_what_goes_wrong_in_a_task_factory_is_told(write: Write, arguments: dict[str, object], says: str) -> None:
    write("tasks_b.py", TASK)
    config = TaskFactory.model_validate({"kind": "factory", "factory": "tasks_b:make", "arguments": arguments})
    with pytest.raises(DataError, match=says) as error:
        load_task(config)
    assert error.value.where.startswith("tasks_b:make")


def test_a_stray_file_does_not_take_a_librarys_place(write: Write) -> None:
    write("colorsys.py", "raise RuntimeError('a stray file')")
    write("mine_c.py", "def make():\n    import colorsys\n    return colorsys.rgb_to_hsv(0, 0, 0)\n")
    sys.modules.pop("colorsys", None)
    assert factory.call("mine_c:make", error=DataError, arguments={}) == (0.0, 0.0, 0)


def test_the_digest_follows_the_source_and_runs_nothing(write: Write, tmp_path: Path) -> None:
    write("lone.py", "raise SystemExit('must not run')")
    write("pack/__init__.py", "raise SystemExit('must not run')")
    write("pack/nets.py", "from pack.blocks import block")
    write("pack/blocks.py", "block = 1")
    lone, pack = factory.source_digest("lone:f"), factory.source_digest("pack.nets:f")
    assert factory.source_digest("lone:g") == lone
    write("lone.py", "x = 2")
    write("pack/blocks.py", "block = 2")
    assert factory.source_digest("lone:f") != lone
    assert factory.source_digest("pack.nets:f") != pack
    assert "pack" not in sys.modules
    with pytest.raises(EdgewiseError, match=r"no source file for the module pack\.other"):
        factory.source_digest("pack.other:f")


def test_folders_without_an_init_file_are_packages_too(write: Write) -> None:
    write("outer_space/inner/nets.py", "x = 1")
    before = factory.source_digest("outer_space.inner.nets:f")
    write("outer_space/inner/nets.py", "x = 2")
    assert factory.source_digest("outer_space.inner.nets:f") != before
    with pytest.raises(EdgewiseError, match="no source file"):
        factory.source_digest("outer_space.other.nets:f")
    assert "outer_space" not in sys.modules, "a fingerprint imports nothing"


def test_the_digest_follows_the_modules_that_a_lone_one_imports(write: Write) -> None:
    write("chief.py", "import json\nfrom helper_one import x\ndef make(): ...\n")
    write("helper_one.py", "import helper_two\nx = 1\n")
    write("helper_two.py", "y = 1\n")
    write("stranger.py", "z = 1\n")
    before = factory.source_digest("chief:make")
    write("stranger.py", "z = 2\n")
    assert factory.source_digest("chief:make") == before
    write("helper_two.py", "y = 2\n")
    assert factory.source_digest("chief:make") != before


def test_a_tasks_fingerprint_follows_source_and_arguments(write: Write) -> None:
    def print_of(**arguments: int) -> str:
        return fingerprint(TaskFactory(kind="factory", factory="tasks_d:make", arguments=dict(arguments)))

    write("tasks_d.py", TASK)
    first = print_of(count=8)
    assert first == print_of(count=8) != print_of(count=9)
    write("tasks_d.py", TASK + "\n# changed\n")
    assert print_of(count=8) != first
    with pytest.raises(DataError, match="no source file"):
        fingerprint(TaskFactory(kind="factory", factory="nothing_here:make"))


def test_tasks_never_import_torch(tmp_path: Path) -> None:
    code = """
import json, sys
import numpy as np
from pathlib import Path
from edgewise.models.tasks.augment import augment
from edgewise.models.tasks.config import Arrays, Augment, Digits
from edgewise.models.tasks.load import fingerprint, load_task
x, y = np.zeros((4, 5, 5), np.uint8), np.array([0, 1, 0, 1])
np.savez("a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
for config in (Digits(), Arrays(path=Path("a.npz"))):
    train = load_task(config).splits["train"]
    augment(train.read(np.arange(2)), np.arange(2), 4, Augment(crop=1, flip=True), 0, 0)
    fingerprint(config)
print(json.dumps([name for name in sys.modules if name.split(".")[0] == "torch"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
