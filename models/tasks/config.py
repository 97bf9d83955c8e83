"""What a recipe can say about tasks: data, preprocessing, metric. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from edgewise.config import Config
from edgewise.models.config import IMPORT_PATH


class RandAugment(Config):
    """RandAugment (arXiv 1909.13719): a few of 14 operations on each image, drawn at random, all of one strength."""

    ops: int = Field(2, ge=1, description="operations on each image, drawn with replacement")
    magnitude: float = Field(
        9.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="strength; 10 is AutoAugment's largest, which torchvision calls 30",
    )


class Augment(Config):
    """Training-time augmentation, drawn per sample from (seed, view, sample), so it does not depend on batching."""

    crop: int = Field(0, ge=0, description="pad by so many zero pixels on each side, then crop back at random")
    flip: bool = False
    randaugment: RandAugment | None = Field(None, description="before crop and flip, on 8-bit pixels")
    mixup: float = Field(
        0.0, ge=0, le=100, allow_inf_nan=False, description="alpha of Beta(alpha, alpha), arXiv 1710.09412; 0: off"
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="as mixup, arXiv 1905.04899; with both, each sample gets one of them, by a fair coin",
    )
    mix_chance: float = Field(1.0, gt=0, le=1, description="the part of the samples that mixup and cutmix change")
    views: int | None = Field(
        None,
        ge=1,
        description="epoch e shows view e modulo this number, so a teacher's answers can be kept; none: always new",
    )

    @property
    def draws(self) -> bool:
        """True where what a sample looks like is drawn from the seed."""
        return self.crop > 0 or self.flip or self.randaugment is not None or self.mixes

    @property
    def mixes(self) -> bool:
        """True where a sample may hold a part of another one."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _has_something_to_mix(self) -> Augment:
        if self.mix_chance < 1 and not self.mixes:
            raise ValueError("mix_chance without mixup or cutmix changes nothing: set mixup or cutmix, or leave it out")
        return self


class Digits(Config):
    """scikit-learn's 8x8 handwritten digits: 1,797 images, shipped with the library, no download."""

    kind: Literal["digits"] = "digits"
    augment: Augment = Augment()


class Arrays(Config):
    """Images in one ``.npz``: ``x_train y_train x_test y_test`` (NHW, NHWC or NCHW uint8), or packed JPEG
    (``jpeg_<split> length_<split> y_<split>``); ``slice_<name>``, what kind each test image is of, for budgets."""

    kind: Literal["npz"] = "npz"
    path: Path
    mean: tuple[float, ...] = Field((0.5,), description="per channel, of pixels scaled to 0..1")
    std: tuple[float, ...] = Field((0.5,), description="per channel, of pixels scaled to 0..1")
    val_size: int = Field(0, ge=0, description="training samples held out for validation, taken at fixed places")
    train_limit: int | None = Field(None, ge=2, description="use only so many training samples")
    test_limit: int | None = Field(None, ge=2, description="use only so many test samples")
    augment: Augment = Augment()


class ImageFolder(Config):
    """``path/<train|val|test>/<class>/<image>``, read with Pillow when needed."""

    kind: Literal["image_folder"] = "image_folder"
    path: Path
    size: int = Field(224, ge=8, description="height and width after resizing the short side and a centre crop")
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    val_size: int = Field(0, ge=0, description="training images held out for validation, where there is no val folder")
    augment: Augment = Augment()


class TaskFactory(Config):
    """A user's own task: ``package.module:factory(**arguments) -> edgewise.models.tasks.Task``."""

    kind: Literal["factory"]
    factory: str = Field(pattern=IMPORT_PATH)
    arguments: dict[str, JsonValue] = {}


TaskConfig = Annotated[Digits | Arrays | ImageFolder | TaskFactory, Field(discriminator="kind")]
