"""What is compared, as plain data: the nets that teach, and the arms of each experiment. Torch-free.

Weights and temperatures are the published ones (a loss's own default where none is written), and none was tuned here.
Within an experiment every arm has the same data, epochs, optimizer and views; for one seed, the same first weights and
the same order of samples, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgewise.models.tasks.config import Arrays, Augment

Settings = Mapping[str, Any]
"""Fields of a config of ``edgewise.compress.config``."""

VIEWS = 4
"""Epoch e shows view e modulo this number, to every arm: so a teacher answers each view once for all arms of a seed."""

NOISE = 0.2
NOISE_SEED = 12345

RESNET8 = {"kind": "cifar_resnet", "depth": 8, "width": 8}
BF16 = {"precision": "bf16-mixed", "checkpoint_every": 1000}
SGD = {"kind": "sgd", "lr": 0.05, "weight_decay": 5e-4}
FROM_SCRATCH = {**BF16, "optimizer": SGD, "warmup_epochs": 0.5}
FASTER = {**FROM_SCRATCH, "optimizer": {**SGD, "lr": 0.1}}
FINE_TUNE = {**BF16, "optimizer": {"kind": "sgd", "lr": 0.02, "weight_decay": 1e-4}, "warmup_epochs": 0.2}


@dataclass(frozen=True)
class Data:
    """A data file and how it is read: 5,000 training samples are held out for validation; ``limit``: of the others,
    use so many, each class with its share."""

    file: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int
    limit: int | None = None
    views: int | None = None

    def config(self, folder: Path) -> Arrays:
        """The task's config, with the file in ``folder``."""
        augment = Augment(crop=self.crop, flip=True, views=self.views)
        return Arrays(
            path=folder / self.file,
            mean=self.mean,
            std=self.std,
            val_size=5000,
            train_limit=self.limit,
            augment=augment,
        )


_CIFAR10 = Data("cifar10_jpeg.npz", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop=4)
_FASHION = Data("fashion_mnist.npz", (0.286,), (0.353,), crop=2)

DATA = {
    "cifar10": _CIFAR10,
    "cifar10-20k": replace(_CIFAR10, limit=20000, views=VIEWS),
    "fashion": _FASHION,
    "fashion-20k": replace(_FASHION, limit=20000, views=VIEWS),
}


@dataclass(frozen=True)
class Net:
    """A net that others learn from or start from, made once for each name: from a file's weights or fresh ones, then
    trained on labels (``fit``) or on a teacher (``fit`` and ``teacher``); or ``parent`` with channels removed."""

    data: str
    seed: int
    model: Settings = field(default_factory=dict)
    weights: str | None = None
    fit: Settings = field(default_factory=dict)
    teacher: str | None = None
    lesson: Settings = field(default_factory=dict)
    parent: str | None = None
    prune: Settings = field(default_factory=dict)

    @property
    def needs(self) -> tuple[str, ...]:
        """Nets that must be there first."""
        return tuple(name for name in (self.teacher, self.parent) if name)


def _resnet(depth: int) -> Settings:
    return {"kind": "cifar_resnet", "depth": depth, "width": 16}


KD = {"kind": "kd", "weight": 0.9, "temperature": 4.0}
HINTON = {"cross_entropy": 0.1, "losses": [KD]}
SEEDS = range(5)
HALF = {"macs_ratio": 0.5, "round_to": 8}
CRITERIA = ("l1", "l2", "bn_scale", "taylor", "hessian", "random")

NETS: dict[str, Net] = {
    "resnet20": Net("cifar10", 0, _resnet(20), weights="cifar10_resnets/resnet20.pth", fit={**FINE_TUNE, "epochs": 3}),
    "resnet20-second": Net(
        "cifar10", 1, _resnet(20), weights="cifar10_resnets/resnet20.pth", fit={**FINE_TUNE, "epochs": 3}
    ),
    "resnet56": Net("cifar10", 0, _resnet(56), weights="cifar10_resnets/resnet56.pth", fit={**FINE_TUNE, "epochs": 2}),
    "fashion-resnet14": Net("fashion", 0, _resnet(14), fit={**FASTER, "epochs": 6}),
    "pruned-l2": Net("cifar10-20k", 0, parent="resnet20", prune={**HALF, "criterion": "l2"}),
    **{
        f"pruned-random-{seed}": Net("cifar10-20k", seed, parent="resnet20", prune={**HALF, "criterion": "random"})
        for seed in SEEDS
    },
    **{
        f"half-{criterion}-{seed}": Net("cifar10-20k", seed, parent="resnet20", prune={**HALF, "criterion": criterion})
        for criterion in CRITERIA
        for seed in SEEDS
    },
    **{
        f"assistant-{seed}": Net(
            "cifar10-20k",
            seed,
            _resnet(14),
            fit={**FROM_SCRATCH, "epochs": 5},
            teacher="resnet56",
            lesson=HINTON,
        )
        for seed in SEEDS
    },
}


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Args:
        about: what it is, for the table.
        lesson: fields of ``Distill``; with no ``teachers``, it is labels alone.
        teachers: names of nets, ``{seed}`` standing for the run's seed; several are an ensemble.
        against: the arms it is compared with.
        fit: what differs from the experiment's ``fit``.
        start: the net it starts from, ``{seed}`` likewise; none: the experiment's student with fresh weights.
        fresh: keep only the architecture of ``start``.
        noise: part of the training labels that is wrong.
        quantize: fields of ``Quantize``: ``start`` is quantized and, with ``epochs`` above 0, trained as such.
        seeds: only these, where the budget does not reach for all.
        broken: a control that is meant to fail: what is left of it spreads as it likes, and is not pooled.
    """

    about: str
    lesson: Settings = field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    fit: Settings = field(default_factory=dict)
    start: str | None = None
    fresh: bool = False
    noise: float = 0.0
    quantize: Settings | None = None
    seeds: tuple[int, ...] | None = None
    broken: bool = False

    def nets(self, seed: int) -> tuple[str, ...]:
        """The nets that must be there first."""
        names = (*self.teachers, self.start) if self.start else self.teachers
        return tuple(name.format(seed=seed) for name in names)


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared. ``fusion``: the arm that is held against the best of ``singles``."""

    question: str
    data: str
    fit: Settings
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]
    student: Settings = field(default_factory=lambda: RESNET8)
    fusion: str | None = None
    singles: tuple[str, ...] = ()


def labels(about: str, **fields: Any) -> Arm:
    """An arm that learns from labels alone."""
    return Arm(about, **fields)


def taught(about: str, teacher: str, losses: Sequence[Settings], *, cross_entropy: float = 1.0, **fields: Any) -> Arm:
    """An arm that learns from labels and one teacher."""
    return Arm(about, {"cross_entropy": cross_entropy, "losses": list(losses)}, (teacher,), **fields)


# --- E1: does distillation help at all? -----------------------------------------------------------------------------

_E1_BASELINES = ("ce", "label_smoothing")
_RATES = (0.1, 0.2)


def _e1(teacher: str) -> dict[str, Arm]:
    return {
        "ce": labels("labels alone"),
        "label_smoothing": labels("labels, smoothed by 0.1", fit={"label_smoothing": 0.1}, against=("ce",)),
        "kd": taught("KD, T=4, 0.1/0.9", teacher, [KD], cross_entropy=0.1, against=_E1_BASELINES),
        "kd_t1": taught(
            "KD, T=1, 0.1/0.9", teacher, [{**KD, "temperature": 1.0}], cross_entropy=0.1, against=_E1_BASELINES
        ),
        "logit_mse": taught("logit MSE, 1/0.1", teacher, [{"kind": "logit_mse", "weight": 0.1}], against=_E1_BASELINES),
    }


def _rated(rate: float) -> dict[str, Arm]:
    """KD has longer gradients than the labels: is a higher learning rate all there is to its gain?"""
    fit = {"optimizer": {**SGD, "lr": rate}}
    plain, kd = f"ce_rate_{rate}", f"kd_rate_{rate}"
    return {
        plain: labels(f"labels alone, learning rate {rate}", fit=fit, against=("ce",), seeds=(0, 1, 2)),
        kd: taught(
            f"KD, T=4, 0.1/0.9, learning rate {rate}",
            "resnet20",
            [KD],
            cross_entropy=0.1,
            fit=fit,
            against=("ce", plain),
            seeds=(0, 1, 2),
        ),
    }


_E1_CIFAR10 = {
    **_e1("resnet20"),
    "kd_second_teacher": taught(
        "KD, T=4, the second teacher",
        "resnet20-second",
        [KD],
        cross_entropy=0.1,
        against=_E1_BASELINES,
        seeds=(0, 1, 2),
    ),
    **{name: arm for rate in _RATES for name, arm in _rated(rate).items()},
}
_E1_CIFAR10["kd"] = replace(_E1_CIFAR10["kd"], against=(*_E1_BASELINES, *(f"ce_rate_{rate}" for rate in _RATES)))

# --- E2: which families help? ---------------------------------------------------------------------------------------

_E2_BASELINES = ("ce", "kd")
_LSKD = {"kind": "kd", "weight": 9.0, "temperature": 2.0, "standardize": True}
_DKD = {"kind": "dkd", "weight": {"kind": "warmup", "value": 1.0, "epochs": 0.5}}
_DEEP = {"layers": ["layer2", "layer3"]}  # adapters at the largest maps would double the time of a run
_RKD = [{"kind": "rkd_distance"}, {"kind": "rkd_angle"}]


def _e2_arm(about: str, losses: Sequence[Settings], cross_entropy: float = 1.0, **more: Any) -> Arm:
    arm = taught(about, "resnet20", losses, cross_entropy=cross_entropy, against=_E2_BASELINES)
    return replace(arm, lesson={**arm.lesson, **more})


_E2_SINGLES = {
    "kd": replace(_e2_arm("KD, T=4, 0.1/0.9", [KD], 0.1), against=("ce",)),
    "kd_standardized": _e2_arm("KD on standardized logits (LSKD), T=2, 0.1/9", [_LSKD], 0.1),
    "dkd": _e2_arm("DKD, warm-up of half an epoch", [_DKD]),
    "nkd": _e2_arm("NKD", [{"kind": "nkd"}]),
    "dist": _e2_arm("DIST", [{"kind": "dist"}]),
    "logit_mse": _e2_arm("logit MSE", [{"kind": "logit_mse"}]),
    "fitnet": _e2_arm("FitNet, one stage, layer 2", [{"kind": "fitnet", "layers": ["layer2"]}]),
    "at": _e2_arm("AT", [{"kind": "at"}]),
    "hcl": _e2_arm("pyramid-pooled features (HCL), layers 2 and 3", [{"kind": "hcl", **_DEEP}]),
    "reviewkd": _e2_arm("ReviewKD, layers 2 and 3", [{"kind": "reviewkd", **_DEEP}]),
    "cwd": _e2_arm("CWD, layer 3", [{"kind": "cwd", "layers": "last"}]),
    "vid": _e2_arm("VID, layers 2 and 3", [{"kind": "vid", **_DEEP}]),
    "pkt": _e2_arm("PKT", [{"kind": "pkt"}]),
    "crd": _e2_arm("CRD, 512 negatives", [{"kind": "crd", "negatives": 512}]),
    "rkd": _e2_arm("RKD, distance and angle", _RKD),
    "sp": _e2_arm("SP", [{"kind": "sp"}]),
    "cc": _e2_arm("CC", [{"kind": "cc"}]),
    "fsp": _e2_arm("FSP, layers 2 and 3", [{"kind": "fsp", **_DEEP}]),
}
_CALIBRATED: list[Settings] = [
    {"kind": "kd", "weight": 1.0, "temperature": 4.0},
    {"kind": "at", "weight": 0.5},
    {"kind": "sp", "weight": 0.5},
]
_E2 = {
    "ce": labels("labels alone"),
    **_E2_SINGLES,
    "kd_at": _e2_arm("KD + AT", [KD, {"kind": "at"}], 0.1),
    "kd_rkd": _e2_arm("KD + RKD", [KD, *_RKD], 0.1),
    "fusion": _e2_arm("KD + AT + SP, gradients 1 : 0.5 : 0.5 of the labels'", _CALIBRATED, balance="gradient"),
}

# --- E4: distillation after pruning ---------------------------------------------------------------------------------

_TUNED = {"optimizer": {"kind": "sgd", "lr": 0.05, "weight_decay": 1e-4}, "warmup_epochs": 0.5}
_CONSTANT = {**_TUNED, "optimizer": {"kind": "sgd", "lr": 0.01, "weight_decay": 1e-4}, "schedule": "constant"}
_KD_AT: list[Settings] = [KD, {"kind": "at"}]


def _e4(criterion: str, start: str) -> dict[str, Arm]:
    plain = f"{criterion}_ft"
    common: dict[str, Any] = {"start": start, "fit": _TUNED, "against": (plain,)}
    return {
        f"{criterion}_ft_constant": labels(
            f"{criterion}: fine-tuned, constant rate", start=start, fit=_CONSTANT, against=(plain,)
        ),
        plain: labels(f"{criterion}: fine-tuned, cosine", start=start, fit=_TUNED, against=("scratch",)),
        f"{criterion}_kd": taught(
            f"{criterion}: KD from the whole net, cosine", "resnet20", [KD], cross_entropy=0.1, **common
        ),
        f"{criterion}_kd_at": taught(
            f"{criterion}: KD + AT from the whole net, cosine", "resnet20", _KD_AT, cross_entropy=0.1, **common
        ),
    }


_RANDOM = {
    name: arm for name, arm in _e4("random", "pruned-random-{seed}").items() if name in ("random_ft", "random_kd")
}
_E4 = {
    **_e4("l2", "pruned-l2"),
    "random_ft": replace(_RANDOM["random_ft"], against=("l2_ft", "scratch")),
    "random_kd": replace(_RANDOM["random_kd"], against=("random_ft", "l2_kd")),
    "scratch": labels("the l2 architecture from scratch", start="pruned-l2", fresh=True),
    "scratch_kd": taught(
        "the l2 architecture from scratch, KD",
        "resnet20",
        [KD],
        cross_entropy=0.1,
        start="pruned-l2",
        fresh=True,
        against=("scratch",),
    ),
}

# --- E3: quantized: trained on labels, on the float net's answers, or not at all -------------------------------------

_INT8_FIT = {
    "optimizer": {"kind": "sgd", "lr": 1e-3, "weight_decay": 0.0},
    "precision": "32-true",
    "warmup_epochs": 0.0,
    "checkpoint_every": 1000,
}


def _e3(net: str) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for bits in (8, 4):
        ptq, qat = f"w{bits}_ptq", f"w{bits}_qat"

        def arm(about: str, against: tuple[str, ...], bits: int = bits, **fields: Any) -> Arm:
            head = f"W{bits}A8, {about}"
            return Arm(head, start=net, quantize={"weight_bits": bits, **fields}, fit=_INT8_FIT, against=against)

        def kl(temperature: float) -> list[Settings]:
            return [{"kind": "kd", "weight": 1.0, "temperature": temperature}]

        arms[ptq] = replace(arm("not trained (PTQ)", ("w8_ptq",) if bits == 4 else ()), fit={**_INT8_FIT, "epochs": 0})
        arms[qat] = arm("on labels (QAT)", (ptq,), cross_entropy=1.0, losses=[])
        arms[f"w{bits}_qad"] = arm("on the float net's answers, T=1 (QAD)", (ptq, qat), losses=kl(1.0))
        arms[f"w{bits}_both"] = arm("on both, 1 : 1", (ptq, qat), cross_entropy=1.0, losses=kl(1.0))
        failing = arm("QAD at T=4 (negative control)", (ptq, qat, f"w{bits}_qad"), losses=kl(4.0))
        arms[f"w{bits}_qad_t4"] = replace(failing, broken=True)
    return arms


def _clipped(net: str) -> dict[str, Arm]:
    """Labels in the loss with a bound on the length of a step's gradient: for a net that they destroyed without."""
    lesson = {"cross_entropy": 1.0, "losses": [{"kind": "kd", "weight": 1.0, "temperature": 1.0}]}
    fit = {**_INT8_FIT, "clip_norm": 1.0}
    about = "W8A8, on both, 1 : 1, gradients clipped to 1"
    return {"w8_both_clip": Arm(about, start=net, quantize={"weight_bits": 8, **lesson}, fit=fit, against=("w8_ptq",))}


# --- E4: which channels leave ---------------------------------------------------------------------------------------


def _criteria() -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for name in CRITERIA:
        common: dict[str, Any] = {"start": f"half-{name}-{{seed}}", "fit": _TUNED}
        plain, kd = f"{name}_ft", f"{name}_kd"
        rivals = () if name == "random" else ("random_ft",)
        arms[plain] = labels(f"{name}: fine-tuned", against=rivals, **common)
        against = (plain, *(() if name == "random" else ("random_kd",)))
        arms[kd] = taught(
            f"{name}: KD from the whole net", "resnet20", [KD], cross_entropy=0.1, against=against, **common
        )
    return arms


# --- E7: a large gap, assistants, ensembles, teachers that err ------------------------------------------------------

_FAR = "resnet56"
_ASSISTANTS = ("assistant-0", "assistant-1", "assistant-2")


def _policy(about: str, policy: str, noise: float) -> Arm:
    prefix = "noisy_" if noise else ""
    lesson = {**HINTON, "teacher_wrong": policy}
    return Arm(about, lesson, (_FAR,), against=(f"{prefix}ce", f"{prefix}kd"), noise=noise)


def _ensemble(mean: str) -> Arm:
    lesson = {**HINTON, "ensemble": {"mean": mean}}
    return Arm(f"KD from three assistants, mean of {mean}", lesson, _ASSISTANTS, against=("ce", "kd", "assistant"))


_E7 = {
    "ce": labels("labels alone"),
    "kd": taught("KD from ResNet-56", _FAR, [KD], cross_entropy=0.1, against=("ce",)),
    "dist": taught("DIST from ResNet-56", _FAR, [{"kind": "dist"}], against=("ce", "kd")),
    "assistant": taught(
        "KD from an assistant (ResNet-14 taught by ResNet-56)",
        "assistant-{seed}",
        [KD],
        cross_entropy=0.1,
        against=("ce", "kd"),
    ),
    "ensemble_probabilities": _ensemble("probabilities"),
    "ensemble_logits": _ensemble("logits"),
    "drop": _policy("KD, not where the teacher errs", "drop", 0.0),
    "swap": _policy("KD, the teacher's errors swapped", "swap", 0.0),
    "masked": _policy("KD, the teacher's errors masked", "masked", 0.0),
    "noisy_ce": labels("labels alone, 20 % of them wrong", noise=NOISE),
    "noisy_kd": replace(_policy("KD, 20 % wrong labels", "none", NOISE), against=("noisy_ce",)),
    "noisy_drop": _policy("KD, 20 % wrong labels, not where the teacher differs", "drop", NOISE),
    "noisy_swap": _policy("KD, 20 % wrong labels, swapped", "swap", NOISE),
    "noisy_masked": _policy("KD, 20 % wrong labels, masked", "masked", NOISE),
}

EXPERIMENTS: dict[str, Experiment] = {
    "e1-cifar10": Experiment(
        "Does a student learn more from a teacher than from labels, plain or smoothed?",
        "cifar10-20k",
        {**FROM_SCRATCH, "epochs": 8},
        (0, 1, 2),
        _E1_CIFAR10,
    ),
    "e1-fashion": Experiment(
        "The same on Fashion-MNIST.",
        "fashion-20k",
        {**FROM_SCRATCH, "epochs": 4},
        (0, 1, 2),
        _e1("fashion-resnet14"),
    ),
    "e2": Experiment(
        "Which families of losses help?",
        "cifar10-20k",
        {**FROM_SCRATCH, "epochs": 5},
        (0, 1, 2),
        _E2,
        fusion="fusion",
        singles=tuple(_E2_SINGLES),
    ),
    "e4": Experiment(
        "After pruning half of the MACs: does the whole net as a teacher help more than fine-tuning?",
        "cifar10-20k",
        {**FROM_SCRATCH, "epochs": 3},
        (0, 1, 2),
        _E4,
    ),
    "e3-resnet20": Experiment(
        "Quantized, is it worth training, and on what? ResNet-20, answers read from ONNX Runtime's integer kernels.",
        "cifar10-20k",
        {**_INT8_FIT, "epochs": 1},
        (0, 1, 2),
        _e3("resnet20"),
    ),
    "e3-resnet56": Experiment(
        "The same on ResNet-56.",
        "cifar10-20k",
        {**_INT8_FIT, "epochs": 1},
        (0, 1),
        {**_e3("resnet56"), **_clipped("resnet56")},
    ),
    "e4-criteria": Experiment(
        "Half of ResNet-20's MACs gone: which criterion, and fine-tuning or KD at the same learning rate?",
        "cifar10-20k",
        {**FROM_SCRATCH, "epochs": 3},
        (0, 1, 2),
        _criteria(),
    ),
    "e7": Experiment(
        "A teacher far larger than the student: assistants, ensembles, teachers that err, labels that are wrong.",
        "cifar10-20k",
        {**FROM_SCRATCH, "epochs": 5},
        (0, 1, 2),
        _E7,
    ),
}
