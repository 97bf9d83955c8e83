"""Images a second of offline distillation: ours, ours with the teacher's answers cached, and a plain loop by hand.

    python benchmarks/offline_kd.py [--teacher 26] [--student 8] [--precision bf16-mixed] [--data FILE.npz]

Every arm trains the same student from the same weights with the same teacher, optimizer, schedule, loss (KD at
temperature 4 and cross-entropy), batch, precision and memory layout, on one thread, with crops and flips drawn anew.
A round is one block of each arm in random order, and arms are compared within rounds, so that a slow spell of the
machine meets all of them. A block is one call of the arm; its first steps, which build things, are not in its time.
Rounds are spread over fresh processes, because where a process happens to lay out its memory is worth some per cent.

Where torchdistill is installed its DistillationBox is an arm too, fed with the plain loop's batches.
"""

from __future__ import annotations

import argparse
import copy
import importlib.machinery
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from edgewise.bench.stats import Interval, paired_ratio
from edgewise.compress.cache import Identity, TeacherCache, cache_folder, data_fingerprint, open_cache, teacher_digest
from edgewise.compress.config import Distill, Fit, Sgd
from edgewise.compress.losses.kd import KD
from edgewise.compress.macs import count
from edgewise.compress.strategies.offline import distill
from edgewise.models.cifar_resnet import CifarResNet
from edgewise.models.tasks.arrays import Pixels, load_arrays
from edgewise.models.tasks.config import Arrays, Augment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TEMPERATURE, SOFT, HARD, PAD, SEED = 4.0, 0.9, 0.1, 4, 0
PLAIN, OURS, CACHED, KEPT, OTHER = (
    "plain loop",
    "edgewise",
    "edgewise, cache filled",
    "plain loop, answers kept in memory",
    "torchdistill",
)
NETS = ("student", "teacher")
AIMS = {OURS: 0.97, CACHED: 1.5}


@dataclass(frozen=True)
class Setting:
    """What all arms share."""

    split: Pixels
    teacher: nn.Module
    student: nn.Module
    batch: int
    steps: int
    warm: int
    precision: str

    def autocast(self) -> Any:
        """Mixed precision as asked for."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed")


@dataclass
class Clock:
    """Wall and CPU seconds from the last warm step to the last step."""

    first: int
    last: int
    wall: float = 0.0
    cpu: float = 0.0

    def tick(self, done: int, _total: int = 0, _note: str = "") -> None:
        """Called after each step."""
        if done == self.first:
            self.wall, self.cpu = -time.perf_counter(), -time.process_time()
        elif done == self.last:
            self.wall, self.cpu = self.wall + time.perf_counter(), self.cpu + time.process_time()


Arm = Callable[[nn.Module, Clock], float]
"""Trains a student with a clock; gives the mean loss, so that one can see that the arms do the same."""


def channels_last(net: nn.Module) -> nn.Module:
    """``net`` itself, in the memory layout that convolutions like."""
    moved: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def plain_batches(setting: Setting) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, targets, places: normalised and padded once, then one gather a batch, which gives channels-last."""
    images = torch.from_numpy(setting.split.read(np.arange(len(setting.split.ids))))
    padded = nn.functional.pad(images, (PAD,) * 4).permute(0, 2, 3, 1).contiguous()
    targets = torch.from_numpy(setting.split.targets)
    size = torch.arange(images.shape[-1])
    while True:
        visit = torch.randperm(len(images))
        for start in range(0, len(images) - setting.batch + 1, setting.batch):
            places = visit[start : start + setting.batch]
            shift = torch.randint(0, 2 * PAD + 1, (2, len(places), 1))
            rows, columns = size + shift[0], size + shift[1]
            flip = torch.rand(len(places)) < 0.5
            columns[flip] = columns[flip].flip(1)
            inputs = padded[places[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            yield inputs, targets[places], places


def kd_loss(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Hinton's, in float32."""
    student, teacher = student.float(), teacher.float()
    soft = kl_div((student / TEMPERATURE).log_softmax(1), (teacher / TEMPERATURE).softmax(1), reduction="batchmean")
    return SOFT * TEMPERATURE**2 * soft + HARD * cross_entropy(student, targets)


def plain(setting: Setting, batches: Iterator[tuple[Tensor, Tensor, Tensor]], answers: Tensor | None) -> Arm:
    """The loop that one would write by hand; with ``answers`` (N, K) the teacher is not asked."""

    def arm(student: nn.Module, clock: Clock) -> float:
        channels_last(student).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, clock.last)
        total = 0.0
        for step in range(clock.last):
            inputs, targets, places = next(batches)
            with setting.autocast():
                if answers is None:
                    with torch.no_grad():
                        taught = setting.teacher(inputs)
                else:
                    taught = answers[places]
                loss = kd_loss(student(inputs), taught, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
            clock.tick(step + 1)
        return total / clock.last

    return arm


def ours(setting: Setting, cache: TeacherCache | None) -> Arm:
    """What a recipe runs. With a cache the one view comes again each epoch."""
    config = Distill(
        kind="distill",
        cross_entropy=HARD,
        losses=(KD(weight=SOFT, temperature=TEMPERATURE),),
        fit=Fit(
            epochs=1,
            batch_size=setting.batch,
            optimizer=Sgd(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            precision=setting.precision,
        ),
    )
    augment = Augment(crop=PAD, flip=True, views=1 if cache is not None else None)

    def arm(student: nn.Module, clock: Clock) -> float:
        history = distill(
            student,
            setting.teacher,
            setting.split,
            config,
            seed=SEED,
            augment=augment,
            open_cache=lambda _place, _layers: cache,
            tick=clock.tick,
        )
        return history[-1].loss

    return arm


class _StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []  # noqa: RUF012 (what the import system expects)
    __all__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _import_torchdistill(folder: Path | None) -> tuple[Any, str]:
    """Its DistillationBox and a note. Importing it reads model zoos from torchvision, of which its loop uses nothing:
    where torchvision is absent, empty modules stand in for it.

    Raises:
        ImportError: it, or something else that it needs, is not installed.
    """
    if folder is not None:
        sys.path.insert(0, str(folder))
    note = ""
    if importlib.util.find_spec("torchdistill") is not None and importlib.util.find_spec("torchvision") is None:
        note = " torchvision is not installed; torchdistill ran with empty modules in its place."
        for name in ("", ".datasets", ".models", ".models.densenet", ".models.resnet", ".transforms"):
            module = _StandIn(f"torchvision{name}")
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
            sys.modules[module.__name__] = module
    for name in ("losses.mid_level", "core.interfaces.forward_proc"):
        importlib.import_module(f"torchdistill.{name}")
    return importlib.import_module("torchdistill.core.distillation").DistillationBox, note


def torchdistill(setting: Setting, batches: Iterator[tuple[Tensor, Tensor, Tensor]], box_of: Any) -> Arm:
    """Its box's forward and update, as its example scripts call them."""
    ends = {f"{net}_module_{key}": value for net in NETS for key, value in (("path", "linear"), ("io", "output"))}
    loss = {"key": "KDLoss", "kwargs": {**ends, "temperature": TEMPERATURE, "alpha": HARD, "beta": SOFT}}
    hook = {"forward_proc": "forward_batch_only", "forward_hook": {"input": [], "output": ["linear"]}}

    def arm(student: nn.Module, clock: Clock) -> float:
        channels_last(student)
        config = {
            "num_epochs": 1,
            "teacher": {**hook, "requires_grad": False},
            "student": dict(hook),
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
            },
            "optimizer": {
                "key": "SGD",
                "kwargs": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
            },
            "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": clock.last}, "scheduling_step": 1},
        }
        teacher = copy.deepcopy(setting.teacher)  # it unfreezes it in the end
        box = box_of(teacher, student, {}, config, torch.device("cpu"), None, False, 1)
        student.train()
        teacher.eval()
        total = 0.0
        for step in range(clock.last):
            inputs, targets, _ = next(batches)
            with setting.autocast():
                found = box.forward_process(inputs, targets, None)
            box.post_forward_process(found)
            total += found.item()
            clock.tick(step + 1)
        box.clean_modules()
        return total / clock.last

    return arm


Blocks = dict[str, list[list[tuple[float, float, float]]]]
"""By arm, launch and round: wall and CPU seconds a step, and the loss."""


def measure(setting: Setting, arms: dict[str, Arm], rounds: int, seed: int) -> Blocks:
    """The blocks of one launch, in rounds of random order."""
    found: Blocks = {name: [[]] for name in arms}
    shuffle = random.Random(seed)
    for place in range(-1, rounds):  # the first round warms up
        for name in shuffle.sample(list(arms), len(arms)):
            clock = Clock(setting.warm, setting.warm + setting.steps)
            loss = arms[name](copy.deepcopy(setting.student), clock)
            if place >= 0:
                found[name][0].append((clock.wall / setting.steps, clock.cpu / setting.steps, loss))
    return found


def ratio(found: Blocks, name: str, column: int) -> Interval:
    """How many times as fast as the plain loop, from blocks of the same round."""
    times = [[[np.array([block[column]]) for block in launch] for launch in found[arm]] for arm in (PLAIN, name)]
    interval = paired_ratio(*times)
    assert interval is not None
    return interval


def seconds_of(step: Callable[[], object], times: int = 5) -> float:
    """The fastest of some calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return min(found)


def costs(setting: Setting) -> str:
    """What teacher and student cost, counted and measured."""
    inputs = torch.randn(setting.batch, *setting.split.pixels.shape[1:]).to(memory_format=torch.channels_last)
    student = channels_last(copy.deepcopy(setting.student)).train()

    def learn() -> None:
        with setting.autocast():
            loss = student(inputs).float().square().mean()
        loss.backward()

    @torch.no_grad()
    def teach() -> None:
        with setting.autocast():
            setting.teacher(inputs)

    macs = [count(net, tuple(setting.split.pixels.shape[1:])).macs for net in (setting.teacher, setting.student)]
    taught, learnt = seconds_of(teach), seconds_of(learn)
    return (
        f"Multiply-accumulates of teacher and student: {macs[0] / 1e6:.1f} M and {macs[1] / 1e6:.1f} M "
        f"({macs[0] / macs[1]:.1f} to 1). A batch of {setting.batch}: teacher forward {1e3 * taught:.0f} ms, student "
        f"forward and backward {1e3 * learnt:.0f} ms ({taught / learnt:.2f} to 1)."
    )


def verdict(interval: Interval, aim: float) -> str:
    """Whether the whole interval is on one side of the aim."""
    if interval.low >= aim:
        return f"{aim:g}: met"
    return f"{aim:g}: missed" if interval.high < aim else f"{aim:g}: not decided"


def table(batch: int, found: Blocks) -> str:
    """Markdown."""
    lines = [
        "| arm | images/s | images per CPU second | times the plain loop [95 %] | in CPU time [95 %] | aim | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, launches in found.items():
        wall, cpu, loss = np.median([block for launch in launches for block in launch], axis=0)
        cells = [name, f"{batch / wall:.0f}", f"{batch / cpu:.0f}", "1", "1", "", f"{loss:.2f}"]
        if name != PLAIN:
            both = [ratio(found, name, column) for column in (0, 1)]
            cells[3:5] = [f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in both]
            cells[5] = verdict(both[0], AIMS[name]) if name in AIMS else ""
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def load(path: Path | None, samples: int) -> tuple[Pixels, int]:
    """Training images and the number of classes: of a file, or noise in CIFAR's shape."""
    if path is None:
        draw = np.random.default_rng(SEED)
        pixels = draw.integers(0, 256, (samples, 3, 32, 32), dtype=np.uint8)
        ids = tuple(map(str, range(samples)))
        return Pixels(ids, draw.integers(0, 10, samples), pixels, MEAN, STD), 10
    task = load_arrays(Arrays(path=path, train_limit=samples))
    split = task.splits["train"]
    assert isinstance(split, Pixels)
    return split, len(task.classes)


def machine() -> str:
    """What the numbers are of."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    return f"{model}, torch {torch.__version__}, one thread, load average {os.getloadavg()[0]:.1f} at the start."


def launch(given: argparse.Namespace) -> dict[str, Any]:
    """One process's share of the rounds, as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(given.launch)
    samples = given.batch * (given.warm + given.steps)
    split, classes = load(given.data, samples)
    nets = [CifarResNet(depth, given.width, split.pixels.shape[1], classes) for depth in (given.teacher, given.student)]
    teacher, student = nets
    channels_last(teacher).eval().requires_grad_(False)
    setting = Setting(split, teacher, student, given.batch, given.steps, given.warm, given.precision)
    batches, note = plain_batches(setting), ""
    arms = {PLAIN: plain(setting, batches, None), OURS: ours(setting, None)}
    arms[KEPT] = plain(setting, batches, torch.randn(samples, classes))
    try:
        box, note = _import_torchdistill(given.torchdistill)
        arms[OTHER] = torchdistill(setting, batches, box)
    except ImportError as error:
        note = f" torchdistill is left out: it can't be imported ({error})."
    identity = Identity(
        teacher=teacher_digest(teacher),
        data=data_fingerprint(split),
        view={"crop": PAD, "flip": True, "seed": SEED, "precision": given.precision},
        logits=classes,
        samples=samples,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        open_cache(cache_folder(Path(folder), identity), identity, max_bytes=1 << 30) as cache,
    ):
        arms[CACHED] = ours(setting, cache)  # the round that warms up fills it
        about = costs(setting) if given.launch == 0 else ""
        found = measure(setting, arms, given.blocks, given.launch)
        assert cache.filled == samples
    return {"found": found, "about": about, "note": note}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=5, help="processes, one after the other")
    parser.add_argument("--blocks", type=int, default=5, help="rounds a launch")
    parser.add_argument("--steps", type=int, default=6, help="measured steps a block")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--teacher", type=int, default=26, help="depth of the CIFAR ResNet: 6 n + 2")
    parser.add_argument("--student", type=int, default=8)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage, of both")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--data", type=Path, help="an .npz as recipes take it; noise in CIFAR's shape without")
    parser.add_argument("--torchdistill", type=Path, help="a folder to import it from")
    parser.add_argument("--launch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.launch is not None:
        print(json.dumps(launch(given)))
        return
    print(f"ResNet-{given.teacher} -> ResNet-{given.student}, {given.precision}, {machine()}", flush=True)
    found: Blocks = {}
    note = ""
    for place in range(given.launches):
        command = [sys.executable, *sys.argv, "--launch", str(place)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        for name, launches in told["found"].items():
            found.setdefault(name, []).extend(launches)
        note = told["note"]
        print(f"{told['about']}\n" if told["about"] else "", end="", flush=True)
        print(f"launch {place + 1} of {given.launches}", file=sys.stderr, flush=True)
    print(f"\n{table(given.batch, found)}\n")
    print(
        f"{given.launches} launches of {given.blocks} rounds, {given.steps} steps a block; medians over blocks, ratios "
        f"paired by round.{note}"
    )


if __name__ == "__main__":
    main()
