"""What a recipe can say about making training images from a teacher alone. Torch-free."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgewise.config import Config


class Inversion(Config):
    """Images whose BatchNorm statistics in the teacher are those of its training data, arXiv 1912.08795.

    Steps, learning rate and weights are those of the published code for CIFAR-10, but for ``statistics``: that code has
    100; with 10, after 200 steps, a ResNet-8 saw the intended class in only 6 of 10 images of digits.
    ``total_variation`` and ``l2`` weigh norms over a whole batch, so they mean the same only at like batch sizes.
    """

    kind: Literal["inversion"] = "inversion"
    samples: int = Field(10000, ge=1, description="images to make")
    batch_size: int = Field(256, ge=1, description="images made together, at most: they share their statistics")
    steps: int = Field(2000, ge=1, description="optimizer steps for each batch")
    lr: float = Field(0.1, gt=0, description="of Adam, over the pixels")
    schedule: Literal["constant", "cosine"] = "cosine"
    targets: Literal["balanced", "random"] = Field("balanced", description="how many images each class gets")
    statistics: float = Field(1.0, ge=0, description="weight of the BatchNorm statistics")
    first: float = Field(1.0, gt=0, description="weight of the first BatchNorm among them")
    total_variation: float = Field(2.5e-5, ge=0, description="weight of the differences between neighbouring pixels")
    l2: float = Field(0.0, ge=0, description="weight of the pixels' norm")
    compete: float = Field(0.0, ge=0, description="weight of the answers' likeness to a student's (adaptive inversion)")
    temperature: float = Field(3.0, gt=0, description="of both answers where they are compared")
    jitter: int | None = Field(
        None,
        ge=0,
        description="pixels by which a step shifts the images, at most: no more than the teacher learnt to ignore; "
        "none: a sixteenth of the shorter side, 2 of 32",
    )
    flip: bool = Field(False, description="mirror the images in half of the steps, drawn")


class Generator(Config):
    """Images from a small generator that makes the teacher sure, active and impartial (DAFL, arXiv 1904.01186)."""

    kind: Literal["generator"] = "generator"
    samples: int = Field(10000, ge=2, description="images to make, and noise vectors to learn from")
    batch_size: int = Field(256, ge=2, description="images a step; BatchNorm and the mean answer are taken over them")
    epochs: int = Field(50, ge=1, description="passes over the noise vectors")
    lr: float = Field(1e-3, gt=0, description="of Adam, over the generator's weights")
    noise: int = Field(100, ge=1, description="length of a noise vector")
    width: int = Field(64, ge=1, description="channels of the generator's last hidden map; the first has twice as many")
    one_hot: float = Field(1.0, ge=0, description="weight of the teacher's being sure")
    activation: float = Field(0.1, ge=0, description="weight of the activations before the classifier")
    entropy: float = Field(5.0, ge=0, description="weight of the classes' being equally frequent")
    statistics: float = Field(0.0, ge=0, description="weight of the BatchNorm statistics, as in inversion")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
