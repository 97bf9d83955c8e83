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


class Redrawn(Augment):
    """Of a task whose split draws each view by itself, see ``models.tasks.base.DrawnSplit``. No recipe says it."""

    @property
    def draws(self) -> bool:
        """Always."""
        return True


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


class Words(Config):
    """What every task of texts says: which tokenizer, how long, how many."""

    tokenizer: Path = Field(description="a folder in Hugging Face form, or a tokenizer.json")
    max_length: int = Field(
        128, ge=4, le=8192, description="tokens of the longest input, special ones among them; longer texts are cut"
    )
    val_size: int = Field(0, ge=0, description="training samples held out for validation, taken at fixed places")
    train_limit: int | None = Field(None, ge=2, description="use only so many training samples")
    test_limit: int | None = Field(None, ge=2, description="use only so many test samples")


class Copies(Config):
    """New texts made of the training texts (of the transfer file's, where there is one), for a teacher to answer."""

    copies: int = Field(20, ge=1, le=1000, description="of each text; what comes out twice is kept once")
    seed: int = Field(0, ge=0, lt=2**32, description="what is drawn depends on it and on the text's row alone")


class ReplaceWords(Copies):
    """TinyBERT's augmentation (arXiv 1909.10351, algorithm 1), all candidates from word vectors: words that are one
    piece are replaced by near ones."""

    kind: Literal["replace"] = "replace"
    chance: float = Field(0.4, gt=0, le=1, description="that a word is replaced")
    candidates: int = Field(15, ge=1, le=1000, description="nearest words, by cosine, among which one is drawn")
    embeddings: Path = Field(description=".safetensors with a vector for each id of the tokenizer")
    tensor: str = Field(
        "embeddings.word_embeddings.weight", description="the table's name in it, as Hugging Face's BERT calls it"
    )


class MaskWords(Copies):
    """Tang et al.'s augmentation (arXiv 1903.12136, section 3.1) without its replacing by part of speech: words become
    the mask token, and some texts are cut to a few words."""

    kind: Literal["mask"] = "mask"
    chance: float = Field(0.1, ge=0, le=1, description="that a word becomes the mask token")
    ngram: float = Field(0.25, ge=0, le=1, description="that only one to five words in a row are kept")

    @model_validator(mode="after")
    def _does_something(self) -> MaskWords:
        if not self.chance and not self.ngram:
            raise ValueError("chance and ngram are both 0, so no copy would differ: leave augment out")
        return self


class TextFiles(Words):
    """Sentences or pairs of them, to classify or to grade, from TSV or CSV files with a line of column names."""

    kind: Literal["text"] = "text"
    train: Path = Field(description=".tsv: tabs, quotes are letters; .csv: commas, quotes as spreadsheets write them")
    test: Path
    val: Path | None = None
    transfer: Path | None = Field(
        None,
        description="texts that only the teacher answers; labels may be missing; .txt: one text a line, without names",
    )
    transfer_limit: int | None = Field(
        None,
        ge=1,
        description="use only so many transfer texts, evenly spaced in their file; their labels are not asked",
    )
    text: str | tuple[str, str] = Field("sentence", description="the column of the text, or two of a pair")
    label: str = Field("label", description="the column of the label")
    labels: tuple[str | int, ...] | None = Field(
        None, description="the classes in order; left out: those of the training file, sorted"
    )
    regress: bool = Field(False, description="labels are numbers to come close to, as in STS-B, not classes")
    augment: Annotated[ReplaceWords | MaskWords, Field(discriminator="kind")] | None = Field(
        None, description="adds new texts without labels to the transfer split"
    )

    @model_validator(mode="after")
    def _labels_are_classes(self) -> TextFiles:
        if self.regress and self.labels is not None:
            raise ValueError("labels: names of classes, but with regress labels are numbers; leave one of them out")
        return self


class TaggedFiles(Words):
    """Sentences whose words are tagged, as in named entity recognition, from CoNLL files: a word a line with its tag in
    the last column, a blank line after each sentence."""

    kind: Literal["tags"] = "tags"
    train: Path = Field(description="columns are separated by tabs or else by spaces; -DOCSTART- lines are left out")
    test: Path
    val: Path | None = None
    transfer: Path | None = Field(
        None, description="sentences that only the teacher tags: lines of one column, the word, or tagged ones as well"
    )
    transfer_limit: int | None = Field(
        None,
        ge=1,
        description="use only so many transfer texts, evenly spaced in their file; their labels are not asked",
    )
    labels: tuple[str, ...] | None = Field(
        None, description="the tags in order; left out: those of the training file, O first, then sorted"
    )


class MaskedText(Words):
    """Words to guess where some were masked, to pretrain an encoder or to distil one before it knows a task."""

    kind: Literal["masked_lm"] = "masked_lm"
    train: Path = Field(description=".txt: one text a line; .tsv or .csv: with a line of column names")
    test: Path
    val: Path | None = None
    text: str = Field("sentence", description="the column of the text")
    chance: float = Field(
        0.15, gt=0, le=1, description="that a token is to be guessed; 80 % of them are masked, 10 % swapped"
    )
    views: int | None = Field(
        None,
        ge=1,
        description="epoch e shows the masks of view e modulo this number, so a teacher's answers can be kept; none: "
        "always new ones",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the masks of the validation and test texts")


class TaskFactory(Config):
    """A user's own task: ``package.module:factory(**arguments) -> edgewise.models.tasks.Task``."""

    kind: Literal["factory"]
    factory: str = Field(pattern=IMPORT_PATH)
    arguments: dict[str, JsonValue] = {}


TaskConfig = Annotated[
    Digits | Arrays | ImageFolder | TextFiles | TaggedFiles | MaskedText | TaskFactory, Field(discriminator="kind")
]
