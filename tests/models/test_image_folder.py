"""Image folders: classes, ids, resizing, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgewise.errors import DataError
from edgewise.models.tasks.config import ImageFolder
from edgewise.models.tasks.load import fingerprint, load_task


def picture(path: Path, size: tuple[int, int] = (12, 10), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for split in ("train", "test"):
        for label in ("dog", "cat"):
            for number in range(2):
                picture(root / split / label / f"{number}.png", seed=number)
    return root


def config(root: Path, **options: object) -> ImageFolder:
    return ImageFolder.model_validate({"path": root, "size": 8, **options})


def test_classes_ids_and_shapes(folder: Path) -> None:
    picture(folder / "train/dog/more/2.JPG", mode="L")
    picture(folder / "train/cat/3.png", mode="P")
    (folder / "train/cat/Thumbs.db").write_text("")
    (folder / "train/cat/._3.png").write_text("")
    (folder / "train/.cache").mkdir()
    task = load_task(config(folder))
    assert (task.name, task.classes, task.input_shape) == ("pets", ("cat", "dog"), (3, 8, 8))
    train = task.splits["train"]
    assert train.ids == (
        *("train/cat/0.png", "train/cat/1.png", "train/cat/3.png"),
        *("train/dog/0.png", "train/dog/1.png", "train/dog/more/2.JPG"),
    )
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.read(np.array([5, 2])).shape == (2, 3, 8, 8)
    assert "val" not in task.splits


def test_pixels_are_cropped_from_the_centre_and_normalised(folder: Path) -> None:
    path = picture(folder / "train/cat/0.png", size=(14, 8))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    got = load_task(config(folder, mean=mean, std=std)).splits["train"].read(np.array([0]))[0]
    raw = np.asarray(Image.open(path), np.float64)[:, 3:11] / 255
    expected = ((raw - mean) / std).transpose(2, 0, 1)
    assert np.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (100, 13), (3, 4), (1, 1)])
def test_any_size_becomes_the_asked_one(folder: Path, size: tuple[int, int]) -> None:
    picture(folder / "test/dog/0.png", size=size)
    test = load_task(config(folder)).splits["test"]
    assert test.read(np.array([2])).shape == (1, 3, 8, 8)


def test_a_plain_colour_stays_plain_when_resized(folder: Path) -> None:
    Image.new("RGB", (40, 30), (255, 0, 51)).save(folder / "train/cat/0.png")
    got = load_task(config(folder, mean=(0, 0, 0), std=(1, 1, 1))).splits["train"].read(np.array([0]))
    assert np.allclose(got[0], np.array([1, 0, 0.2])[:, None, None], atol=1e-6)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.7, 0.95])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_a_damaged_image_is_named_when_read(folder: Path, part: float, suffix: str) -> None:
    path = picture(folder / f"train/dog/bad.{suffix}", size=(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    train = load_task(config(folder)).splits["train"]
    with pytest.raises(DataError, match="not a whole image") as error:
        train.read(np.array([train.ids.index(f"train/dog/bad.{suffix}")]))
    assert error.value.where == str(path)


def test_links_may_not_lead_out(folder: Path, tmp_path: Path) -> None:
    outside = picture(tmp_path / "secret/x.png")
    inside = folder / "train/cat/link.png"
    inside.symlink_to(folder / "train/dog/0.png")
    assert "train/cat/link.png" in load_task(config(folder)).splits["train"].ids
    for link, target in (
        (folder / "train/cat/out.png", outside),
        (folder / "train/cat/deep", outside.parent),
        (folder / "train/emu", outside.parent),
        (folder / "val", tmp_path / "secret"),
    ):
        link.symlink_to(target)
        with pytest.raises(DataError, match="a link that leads out of the folder"):
            load_task(config(folder))
        link.unlink()
    (folder / "train/cat/loop").symlink_to(folder / "train")
    with pytest.raises(DataError, match="a linked folder inside a class"):
        load_task(config(folder))


def test_unusable_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_task(config(tmp_path / "none"))
    with pytest.raises(DataError, match="mean has 2 values, but the images have 3"):
        load_task(config(folder, mean=(0.5, 0.5)))
    (folder / "test/emu").mkdir()
    with pytest.raises(DataError, match="no image in this class"):
        load_task(config(folder))
    picture(folder / "test/emu/0.png")
    with pytest.raises(DataError, match="classes that train does not have: emu"):
        load_task(config(folder))
    (folder / "test").rename(folder / "dev")
    with pytest.raises(DataError, match="no folder test in it, but: dev, train"):
        load_task(config(folder))
    (folder / "test").mkdir()
    with pytest.raises(DataError, match="no class folders in it"):
        load_task(config(folder))


def test_one_class_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "cat/0.png")
    with pytest.raises(DataError, match="at least 2 classes"):
        load_task(config(tmp_path))


def test_the_fingerprint_follows_names_sizes_and_times(folder: Path) -> None:
    first = fingerprint(config(folder))
    assert first == fingerprint(config(folder))
    os.utime(folder / "train/cat/0.png", ns=(1, 1))
    touched = fingerprint(config(folder))
    assert touched != first
    (folder / "train/cat/0.png").rename(folder / "train/cat/9.png")
    assert fingerprint(config(folder)) not in (first, touched)
    with pytest.raises(DataError, match="no such folder"):
        fingerprint(config(folder / "none"))


def test_validation_images_are_held_out_at_fixed_places_alike_in_classes(folder: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(2, 10):
            picture(folder / "train" / label / f"{number}.png", seed=number)
    whole = load_task(config(folder)).splits["train"]
    first, again = (load_task(config(folder, val_size=4)).splits for _ in range(2))
    train, val = first["train"], first["val"]
    assert (len(train.ids), len(val.ids)) == (16, 4)
    assert sorted((*train.ids, *val.ids)) == sorted(whole.ids)
    assert val.targets.tolist() == [0, 0, 1, 1]
    assert train.targets.tolist() == [0] * 8 + [1] * 8
    assert again["val"].ids == val.ids
    assert np.array_equal(val.read(np.array([2])), whole.read(np.array([whole.ids.index(val.ids[2])])))
    with pytest.raises(DataError, match="val_size 19 leaves too little of 20"):
        load_task(config(folder, val_size=19))
    picture(folder / "val/cat/0.png")
    with pytest.raises(DataError, match="val_size is set, but there is a val folder"):
        load_task(config(folder, val_size=4))
