"""What a recipe can say about tasks: data, preprocessing, metric. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from edgewise.config import Config
from edgewise.models.config import IMPORT_PATH


class Augment(Config):
    """Training-time augmentation, drawn per sample from (seed, epoch, sample), so it does not depend on batching."""

    crop: int = Field(0, ge=0, description="pad by so many zero pixels on each side, then crop back at random")
    flip: bool = False


class Digits(Config):
    """scikit-learn's 8x8 handwritten digits: 1,797 images, shipped with the library, no download."""

    kind: Literal["digits"] = "digits"
    augment: Augment = Augment()


class Arrays(Config):
    """Images in one ``.npz``: ``x_train y_train x_test y_test`` (NHW, NHWC or NCHW uint8), or packed JPEG
    (``jpeg_<split> length_<split> y_<split>``)."""

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
    augment: Augment = Augment()


class TaskFactory(Config):
    """A user's own task: ``package.module:factory(**arguments) -> edgewise.models.tasks.Task``."""

    kind: Literal["factory"]
    factory: str = Field(pattern=IMPORT_PATH)
    arguments: dict[str, JsonValue] = {}


TaskConfig = Annotated[Digits | Arrays | ImageFolder | TaskFactory, Field(discriminator="kind")]
