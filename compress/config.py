"""What a recipe can say about training, pruning, distilling and quantizing. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from edgewise.compress.losses import Custom, LossConfig
from edgewise.compress.losses.base import LogitLoss, json_type
from edgewise.compress.losses.kd import KD
from edgewise.compress.quantization.config import AdaRound
from edgewise.compress.schedule import Temperature, Value, last_change, numbers
from edgewise.compress.strategies.data_free_config import Generator, Inversion
from edgewise.config import Config, RuntimeName
from edgewise.models.config import HuggingFace, ModelConfig, OnnxFile


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
    decay: Literal["all", "matrices"] = Field(
        "all", description="what decays; matrices: neither biases nor norms, as transformers are trained"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


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
    schedule: Literal["cosine", "constant", "linear"] = Field(
        "cosine", description="of the learning rate after warm-up: half a cosine or a line to zero, or none"
    )
    warmup_epochs: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0, description="of the gradient of everything that learns in a step")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    ema: float | None = Field(
        None, gt=0, lt=1, description="keep the running average of the weights, with this decay a step"
    )
    early_stop: EarlyStop | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints")

    @model_validator(mode="after")
    def _warms_up(self) -> Fit:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs:g}, and the run has {self.epochs}: the learning rate would never "
                "be reached"
            )
        return self


class Source(Config):
    """A model and where its weights come from: a file, training on labels, or a file fine-tuned on labels. An ONNX file
    and a folder in Hugging Face form have their own inside."""

    model: ModelConfig
    weights: Path | None = Field(None, description=".pth, .pt or .safetensors; tensors only, code in it is refused")
    train: Fit | None = None
    tokenizer: Path | None = Field(
        None, description="of a net for texts that reads other tokens than the task's: a folder, or a tokenizer.json"
    )

    @model_validator(mode="after")
    def _has_weights(self) -> Source:
        if self.weights is None and self.train is None and not isinstance(self.model, OnnxFile | HuggingFace):
            raise ValueError("give weights, or train, or both: an untrained model teaches nothing")
        return self


class Train(Config):
    """Train on labels alone."""

    kind: Literal["train"] = "train"
    fit: Fit = Fit()


class Latency(Config):
    """A latency to reach: the median of one inference, measured on this machine in one runtime. Give ``p50_ms``, or
    ``ratio`` to the model before."""

    runtime: RuntimeName
    precision: Literal["float32", "int8"] = Field("float32", description="of the file that is timed")
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)
    p50_ms: float | None = Field(None, gt=0, description="milliseconds")
    ratio: float | None = Field(None, gt=0, lt=1, description="latency after / latency before")

    @model_validator(mode="after")
    def _one_goal(self) -> Latency:
        if (self.p50_ms is None) == (self.ratio is None):
            raise ValueError("give exactly one of p50_ms and ratio")
        if self.runtime == "tensorrt":
            raise ValueError("runtime: an engine of tensorrt is built on the device, and can't be timed here")
        return self


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

    @model_validator(mode="after")
    def _schedules_end(self) -> Lessons:
        run: Fit | None = getattr(self, "fit", None)
        if run is None:
            return self
        configs = {"": self, **{f"losses.{place}.": loss for place, loss in enumerate(self.losses)}}
        for place, config in configs.items():
            for name in type(config).model_fields:
                last = last_change(getattr(config, name))
                if last > run.epochs:
                    raise ValueError(f"{place}{name}: it changes until epoch {last:g}, and the run has {run.epochs}")
        return self


_Stage = TypeVar("_Stage", bound=Lessons)


def _weighed_by_hand(stage: _Stage, why: str) -> _Stage:
    if stage.balance != "none":
        raise ValueError(f"balance: gradient has nothing to measure by at the first batch: {why}; set the weights")
    return stage


class Prune(Lessons):
    """Remove whole channels, and heads of attention, until one goal is reached (torch-pruning). With ``rounds`` and
    ``fit``, the model is trained between the rounds; after the last it is not: put a stage behind that does."""

    kind: Literal["prune"]
    macs_ratio: float | None = Field(None, gt=0, lt=1, description="MACs after / MACs before")
    params_ratio: float | None = Field(None, gt=0, lt=1, description="parameters after / parameters before")
    latency: Latency | None = Field(None, description="of the exported, untrained candidate, measured on this machine")
    round_to: int | None = Field(
        None, ge=1, description="keep channel counts at multiples of this; the target's own by default"
    )
    criterion: Literal["l1", "l2", "bn_scale", "taylor", "hessian", "random"] = "l2"
    scope: Literal["global", "uniform", "isomorphic"] = Field(
        "global",
        description="rank all layers together, cut each alike, or rank among layers of one topology and cut each "
        "topology alike",
    )
    max_layer_ratio: float = Field(0.75, gt=0, lt=1, description="never remove more than this part of one layer")
    ignore: tuple[str, ...] = Field((), description="layers that keep all their outputs; names, or globs")
    floors: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="the fewest outputs a layer may keep, by name or glob; of an attention, the fewest heads"
    )
    samples: int = Field(256, ge=1, description="training samples whose gradients taylor and hessian read")
    rounds: int = Field(1, ge=1, description="each removes the same part of what is left, by scores taken anew")
    fit: Fit | None = Field(None, description="training between two rounds, on the teacher's signals and labels")

    @model_validator(mode="after")
    def _one_goal(self) -> Prune:
        given = [name for name in ("macs_ratio", "params_ratio", "latency") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"give exactly one goal of macs_ratio, params_ratio and latency; got {got}")
        return self

    @model_validator(mode="after")
    def _trained_between(self) -> Prune:
        if self.fit is not None and self.rounds == 1:
            raise ValueError("fit: training is between rounds, and there is one: set rounds, or put a stage behind")
        if self.fit is None:  # by value: a recipe that was written out has every key
            said = [name for name in Lessons.model_fields if getattr(self, name) != Prune.model_fields[name].default]
            if said:
                raise ValueError(f"{', '.join(said)}: nothing is trained without fit")
        if self.samples != Prune.model_fields["samples"].default and self.criterion not in ("taylor", "hessian"):
            raise ValueError(f"samples: the criterion {self.criterion} reads none; leave it out")
        return self


class DropBlocks(Config):
    """Leave out whole residual blocks, such as the layers of a transformer or the identity blocks of a ResNet: as many
    as ``count`` says, or down to ``macs_ratio``, or those in ``names``. Nothing is trained."""

    kind: Literal["drop_blocks"]
    count: int | None = Field(None, ge=1, description="how many leave")
    macs_ratio: float | None = Field(None, gt=0, lt=1, description="MACs after / MACs before")
    names: tuple[str, ...] | None = Field(None, min_length=1, description="these leave; * is any part of a name")
    criterion: Literal["loss", "influence", "last", "random"] = Field(
        "loss",
        description="the block leaves first without which the labels' loss rises least, that changes its input's "
        "direction least (arXiv 2403.03853; one pass scores all), that comes last, or any",
    )
    rescore: bool = Field(
        True,
        description="influence and loss: score the others anew when a block has left; false: once, as in the paper",
    )
    samples: int = Field(256, ge=1, description="influence and loss: training samples, taken at fixed places")

    @model_validator(mode="after")
    def _one_goal(self) -> DropBlocks:
        if sum(goal is not None for goal in (self.count, self.macs_ratio, self.names)) != 1:
            raise ValueError("give exactly one of count, macs_ratio and names")
        unread = {"criterion", "rescore", "samples"} if self.names else {"rescore", "samples"}
        # By value: a recipe that was written out has every key.
        said = sorted(name for name in unread if getattr(self, name) != DropBlocks.model_fields[name].default)
        if said and (self.names or self.criterion in ("last", "random")):
            why = "the blocks are named" if self.names else f"the criterion {self.criterion} scores nothing"
            raise ValueError(f"{said[0]}: it is not read where {why}; leave it out")
        return self


class Offline(Lessons):
    """What a teacher that stays as it is allows: company, and answers kept for the next time."""

    fit: Fit = Fit()
    split: Literal["train", "transfer"] = Field(
        "train", description="transfer: the task's own split for it, whose labels need not be known"
    )
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


class PruneVocabulary(Config):
    """Leave the words that the task's texts don't use out of the table: they are read as the unknown one from then on
    (arXiv 2010.05609). Test texts are not looked at."""

    kind: Literal["prune_vocabulary"]
    at_least: int = Field(1, ge=1, description="keep what stands so often in these texts; special tokens always stay")
    splits: tuple[Literal["train", "transfer"], ...] = Field(
        ("train", "transfer"), min_length=1, description="whose texts; a split that the task doesn't have has none"
    )
    unknown: int | None = Field(None, ge=0, description="the id that stands for the rest; null: the tokenizer's own")
    keep: tuple[int, ...] = Field((), description="ids that stay, used or not")


class Mixed(Config):
    """Which layers stay in float is searched for: under a bound on accuracy, the fewest multiply-accumulates; under a
    bound on latency, those that are slower in INT8, until it is met, and as many sensitive ones as it allows. Judged on
    training samples that calibration did not use."""

    max_accuracy_drop_pp: float | None = Field(
        None, ge=0, le=100, description="percentage points of the task's metric below the float model, on those samples"
    )
    latency: Latency | None = Field(None, description="of the int8 file; ratio is to the float model's file")
    samples: int = Field(1024, ge=16, description="training samples to judge on, taken at fixed places")
    sensitivity_samples: int = Field(128, ge=1, description="the first of them, by which layers are ranked")
    max_float_share: float = Field(
        0.5, gt=0, lt=1, description="the most multiply-accumulates in float: beyond it a plan is no longer INT8"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Mixed:
        if (self.max_accuracy_drop_pp is None) == (self.latency is None):
            raise ValueError("give exactly one of max_accuracy_drop_pp and latency")
        if self.latency is not None and self.latency.precision != "int8":
            raise ValueError(
                "latency.precision: expected int8, as the plan is of a quantized model, got float32, the default"
            )
        return self


class Quantize(Lessons):
    """Fake-quantize to INT8 with NNCF. Without ``fit`` it is PTQ. With it, quantization-aware distillation: the teacher
    is the same net in float, T=1 (reference: arXiv 2601.20088; a high T destroys low-bit students); with no losses and
    ``cross_entropy`` 1, quantization-aware training. BatchNorm is folded before, so none of its statistics move."""

    kind: Literal["quantize"]
    calibration_samples: int = Field(512, ge=1, description="training samples, taken at fixed places")
    ranges: Literal["mean_min_max", "min_max", "percentile", "mse", "entropy"] = Field(
        "mse",
        description="of activations: the mean over the samples of each one's extremes (as NNCF); the extremes of all; "
        "those of the middle `percentile`; of the least squared error; of the least divergence (as TensorRT)",
    )
    percentile: float | None = Field(None, gt=50, le=100, description="for ranges: percentile; 99.99 where left out")
    weight_ranges: Literal["max", "mse"] = Field("max", description="of each output channel's weights")
    weight_bits: Literal[8, 4] = Field(
        8, description="4: weights on a grid of 15 levels, stored as int8; the first and the last layer keep 8 bits"
    )
    rounding: Literal["nearest", "adaround"] = Field("nearest", description="of weights")
    adaround: AdaRound | None = Field(None, description="how adaround learns")
    equalize: bool = Field(
        False, description="even out the weights of neighbouring layers first, without changing the net's answers"
    )
    reestimate_batchnorm: bool = Field(
        False, description="measure BatchNorm's statistics again on training samples, before it is folded"
    )
    fit: Fit | None = None
    teacher: Literal["self", "recipe"] = Field("self", description="the same net in float, or the recipe's teacher")
    train_ranges: bool = Field(True, description="false: the ranges stay as calibrated, and the weights alone learn")
    cross_entropy: Value = 0.0
    losses: tuple[LossConfig, ...] = (KD(weight=1.0, temperature=1.0),)
    float_layers: tuple[str, ...] = Field((), description="layers that stay in float, by name; * is any part of one")
    mixed: Mixed | None = Field(None, description="search for the layers that stay in float, beside float_layers")

    @model_validator(mode="after")
    def _fits_together(self) -> Quantize:
        if self.percentile is not None and self.ranges != "percentile":
            raise ValueError(f"percentile: it is not read with ranges: {self.ranges}; leave it out")
        if self.adaround is not None and self.rounding != "adaround":
            raise ValueError(f"adaround: it is not read with rounding: {self.rounding}; leave it out")
        if self.fit is None:  # by value: a recipe that was written out has every key
            names = ("teacher", "train_ranges", *Lessons.model_fields)
            said = [name for name in names if getattr(self, name) != Quantize.model_fields[name].default]
            if said:
                raise ValueError(f"{said[0]}: without fit nothing is trained; set fit, or leave it out")
        return self

    @model_validator(mode="after")
    def _starts_alike(self) -> Quantize:
        return _weighed_by_hand(self, "the quantized net starts as its teacher's copy")


StageConfig = Annotated[
    Train
    | Inherit
    | Prune
    | DropBlocks
    | PruneVocabulary
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
