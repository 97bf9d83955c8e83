"""What a recipe can say about training, pruning, distilling and quantizing. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgewise.compress.losses import LossConfig
from edgewise.compress.losses.kd import KD
from edgewise.config import Config


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


class Fit(Config):
    """One run of the training loop. The last step's weights are kept: no epoch is picked on the test data."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1, description="samples a step, over all processes together")
    optimizer: Annotated[Sgd | AdamW, Field(discriminator="kind")] = Sgd()
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints")


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


class Distill(Config):
    """Train the student on labels and on the teacher's signals."""

    kind: Literal["distill"]
    fit: Fit = Fit()
    cross_entropy: float = Field(0.1, ge=0, description="weight of the labels")
    losses: tuple[LossConfig, ...] = (KD(weight=0.9, temperature=4.0),)


class Quantize(Config):
    """Fake-quantize to INT8 with NNCF. Without ``fit`` it is PTQ; with it, quantization-aware distillation:
    the teacher is the same net in float, T=1 (reference: arXiv 2601.20088; a high T destroys low-bit students)."""

    kind: Literal["quantize"]
    calibration_samples: int = Field(512, ge=1, description="training samples, taken at fixed places")
    fit: Fit | None = None
    cross_entropy: float = Field(0.0, ge=0)
    losses: tuple[LossConfig, ...] = (KD(weight=1.0, temperature=1.0),)


StageConfig = Annotated[Train | Prune | Distill | Quantize, Field(discriminator="kind")]
