"""What a recipe can say about training, pruning, distilling and quantizing. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from edgewise.compress.losses import Custom, LossConfig
from edgewise.compress.losses.base import LogitLoss, json_type
from edgewise.compress.losses.kd import KD
from edgewise.compress.schedule import Temperature, Value, numbers
from edgewise.compress.strategies.data_free_config import Generator, Inversion
from edgewise.config import Config
from edgewise.models.config import ModelConfig


class Sgd(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)


class AdamW(Config):
    """Adam with decoupled weight decay, arXiv 1711.05101."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)


class EarlyStop(Config):
    """Stop when the task's metric on its validation split no longer gains; the best epoch's weights are kept."""

    patience: int = Field(3, ge=1, description="epochs without gain before stopping")
    min_gain: float = Field(0.0, ge=0, description="what counts as a gain of the metric (0..1)")


class Fit(Config):
    """One run of the training loop. The last step's weights are kept, or the best on the validation split: no epoch is
    picked on the test data."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1, description="samples a step, over all processes together")
    optimizer: Annotated[Sgd | AdamW, Field(discriminator="kind")] = Sgd()
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0, description="of the gradient of everything that learns in a step")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float | None = Field(
        None, gt=0, lt=1, description="keep the running average of the weights, with this decay a step"
    )
    early_stop: EarlyStop | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints")


class Source(Config):
    """A model and where its weights come from: a file, training on labels, or a file fine-tuned on labels."""

    model: ModelConfig
    weights: Path | None = Field(None, description=".pth, .pt or .safetensors; tensors only, code in it is refused")
    train: Fit | None = None

    @model_validator(mode="after")
    def _has_weights(self) -> Source:
        if self.weights is None and self.train is None:
            raise ValueError("give weights, or train, or both: an untrained model teaches nothing")
        return self


class Train(Config):
    """Train on labels alone."""

    kind: Literal["train"] = "train"
    fit: Fit = Fit()


class Prune(Config):
    """Remove whole channels until the model has ``macs_ratio`` of its multiply-accumulates (torch-pruning)."""

    kind: Literal["prune"]
    macs_ratio: float = Field(gt=0, lt=1, description="MACs after / MACs before")
    round_to: int | None = Field(
        None, ge=1, description="keep channel counts at multiples of this; the target's own by default"
    )
    criterion: Literal["l1", "l2", "random"] = "l2"
    scope: Literal["global", "uniform"] = Field("global", description="rank all layers together, or cut each alike")
    max_layer_ratio: float = Field(0.75, gt=0, lt=1, description="never remove more than this part of one layer")


class Ensemble(Config):
    """More teachers beside the recipe's own, which is the first. Their answers are averaged as probabilities at the
    temperature of each loss, or as logits; features come from the first."""

    teachers: tuple[Source, ...] = Field(min_length=1)
    mean: Literal["probabilities", "logits"] = "probabilities"
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="one for each teacher, the recipe's own first; equal where left out"
    )

    @model_validator(mode="after")
    def _one_weight_each(self) -> Ensemble:
        if self.weights is not None and len(self.weights) != len(self.teachers) + 1:
            raise ValueError(
                f"weights: expected {len(self.teachers) + 1}, one for each teacher, the recipe's own first, "
                f"got {len(self.weights)}"
            )
        return self


class Lessons(Config):
    """What every stage with a teacher has: the labels' weight, the losses, and how they are used."""

    cross_entropy: Value = Field(0.1, description="weight of the labels")
    losses: tuple[LossConfig, ...] = (KD(weight=0.9, temperature=4.0),)
    label_only_epochs: float = Field(0.0, ge=0, description="hard-label warm-up: the labels alone, with weight 1")
    balance: Literal["none", "gradient"] = Field(
        "none",
        description="gradient: at the first batch, scale each loss so that its gradient in the student is as long as "
        "cross-entropy's; its weight is then a share",
    )
    teacher_wrong: Literal["none", "drop", "swap", "masked"] = Field(
        "none",
        description="where the teacher errs: learn from it all the same, leave the sample to the labels, swap its "
        "first answer and the right one, or mask every class it puts above the right one",
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> Lessons:
        run = getattr(self, "fit", None)
        if run is not None and self.losses and self.label_only_epochs >= run.epochs:
            raise ValueError(
                f"label_only_epochs: {self.label_only_epochs:g} of {run.epochs} epochs leave nothing to the losses"
            )
        if not self.losses and self.cross_entropy == 0:
            raise ValueError("there is nothing to learn from: no losses and cross_entropy is 0")
        if self.balance == "gradient":
            if min(numbers(self.cross_entropy)) <= 0:
                raise ValueError("balance: gradient needs cross_entropy above 0 at all times: it is the measure")
            unsaid = [loss.kind for loss in self.losses if "weight" not in loss.model_fields_set]
            if unsaid:
                raise ValueError(
                    f"balance: a weight is a share then, and {', '.join(unsaid)} has none but the published one; say it"
                )
        read = any(isinstance(loss, LogitLoss | Custom) for loss in self.losses)
        if self.teacher_wrong in ("swap", "masked") and not read:
            raise ValueError(f"teacher_wrong: {self.teacher_wrong} changes logits, and no loss here reads them")
        other = [loss.kind for loss in self.losses if not loss.about_classes]
        if self.teacher_wrong != "none" and other:
            raise ValueError(f"teacher_wrong: {', '.join(other)} has no wrong class; leave it at none")
        blind = [loss.kind for loss in self.losses if not loss.allows_masking()]
        if self.teacher_wrong == "masked" and blind:
            raise ValueError(
                f"teacher_wrong: masked leaves out classes, which {', '.join(blind)} can't; use drop or swap"
            )
        return self


_Stage = TypeVar("_Stage", bound=Lessons)


def _weighed_by_hand(stage: _Stage, why: str) -> _Stage:
    if stage.balance != "none":
        raise ValueError(f"balance: gradient has nothing to measure by at the first batch: {why}; set the weights")
    return stage


class Offline(Lessons):
    """What a teacher that stays as it is allows: company, and answers kept for the next time."""

    fit: Fit = Fit()
    ensemble: Ensemble | None = None
    cache: Literal["auto", "always", "never"] = Field(
        "auto",
        description="keep the teacher's answers on disk where a view is seen again (no augmentation, or "
        "augment.views); always: in any case, and refused where they don't fit",
    )
    cache_bytes: int = Field(2 * 1024**3, ge=1, description="bound of the run's cache folder")
    cache_dtype: Literal["float16", "float32"] = Field(
        "float16", description="float32: answers read are the teacher's own, bit for bit"
    )


class Distill(Offline):
    """Train the student on labels and on the signals of a teacher that stays as it is."""

    kind: Literal["distill"]


class DataFree(Lessons):
    """Distil without the training images: images are made from the teacher alone. ``cross_entropy`` is then the weight
    of the classes they are meant to show."""

    kind: Literal["data_free"]
    fit: Fit = Fit()
    make: Annotated[Inversion | Generator, Field(discriminator="kind")] = Inversion()
    cross_entropy: Value = 0.0
    losses: tuple[LossConfig, ...] = (KD(weight=1.0, temperature=4.0),)


class Assistant(Offline):
    """A model of a size between teacher and student learns first, and teaches the stages that follow (arXiv
    1902.03393): for pairs so far apart that the student can't follow."""

    kind: Literal["assistant"]
    model: ModelConfig
    weights: Path | None = None


class Online(Lessons):
    """Teacher and student learn at the same time, the student also from the teacher of the moment."""

    kind: Literal["online"]
    fit: Fit = Fit()
    teacher_cross_entropy: Value = Field(1.0, description="weight of the labels in the teacher's own lesson")


class Mutual(Lessons):
    """Students of equal standing learn from the labels and from each other (arXiv 1706.00384); the first is kept."""

    kind: Literal["mutual"]
    fit: Fit = Fit()
    peers: tuple[ModelConfig, ...] = Field(min_length=1, description="the other students, from random weights")
    cross_entropy: Value = 1.0
    losses: tuple[LossConfig, ...] = (KD(weight=1.0, temperature=1.0),)
    update: Literal["together", "in_turn"] = Field(
        "together", description="in_turn: each peer answers anew after the one before it has stepped, as in the paper"
    )

    @model_validator(mode="after")
    def _several(self) -> Mutual:
        return _weighed_by_hand(self, "these are several students")


class SelfDistill(Config):
    """Deep supervision (arXiv 1905.08094): exits at inner layers learn from the labels and from the net's own last
    answer; they are left out when the net is exported."""

    kind: Literal["self_distill"]
    fit: Fit = Fit()
    layers: Annotated[
        Annotated[Literal["auto"], Tag("string")] | Annotated[tuple[str, ...], Field(min_length=1), Tag("array")],
        Discriminator(json_type),
    ] = Field("auto", description="where the exits are; auto: the last layer of each map size but the deepest")
    cross_entropy: Value = Field(1.0, description="weight of the labels at the net's own end")
    alpha: float = Field(
        0.1, ge=0, le=1, description="at an exit: the part of the net's own answer; the rest is labels"
    )
    temperature: Temperature = 3.0
    feature_weight: Value = Field(1e-6, description="squared distance of an exit's features to the last ones")


class BornAgain(Lessons):
    """Generations of one architecture, each from fresh weights, taught by the one before (arXiv 1805.04770)."""

    kind: Literal["born_again"]
    fit: Fit = Fit()
    generations: int = Field(1, ge=1)


class EmaTeacher(Lessons):
    """The teacher is the running average of the student itself (arXiv 1703.01780)."""

    kind: Literal["ema_teacher"]
    fit: Fit = Fit()
    cross_entropy: Value = 1.0
    losses: tuple[LossConfig, ...] = (KD(weight=1.0, temperature=1.0),)
    decay: float = Field(0.999, gt=0, lt=1, description="of the average, a step; it rises to this from 0")
    buffers: Literal["copy", "average"] = Field(
        "copy", description="BatchNorm's statistics: the student's, or averaged"
    )

    @model_validator(mode="after")
    def _starts_alike(self) -> EmaTeacher:
        return _weighed_by_hand(self, "teacher and student start alike")


class Inherit(Config):
    """Start the student from the teacher's own layers (as DistilBERT does, arXiv 1910.01108 §3)."""

    kind: Literal["inherit"]
    map: Literal["uniform", "first", "last"] = Field("uniform", description="which of the teacher's blocks")
    slice: bool = Field(False, description="where the teacher is wider, take its first channels")


class Quantize(Lessons):
    """Fake-quantize to INT8 with NNCF. Without ``fit`` it is PTQ; with it, quantization-aware distillation:
    the teacher is the same net in float, T=1 (reference: arXiv 2601.20088; a high T destroys low-bit students)."""

    kind: Literal["quantize"]
    calibration_samples: int = Field(512, ge=1, description="training samples, taken at fixed places")
    fit: Fit | None = None
    cross_entropy: Value = 0.0
    losses: tuple[LossConfig, ...] = (KD(weight=1.0, temperature=1.0),)

    @model_validator(mode="after")
    def _starts_alike(self) -> Quantize:
        return _weighed_by_hand(self, "the quantized net starts as its teacher's copy")


StageConfig = Annotated[
    Train
    | Inherit
    | Prune
    | Distill
    | Assistant
    | DataFree
    | Online
    | Mutual
    | SelfDistill
    | BornAgain
    | EmaTeacher
    | Quantize,
    Field(discriminator="kind"),
]
