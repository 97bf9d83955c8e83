"""Digits and arrays: what is read, how it is split and normalised, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgewise.errors import DataError
from edgewise.models.tasks.arrays import spread
from edgewise.models.tasks.config import Arrays, Digits
from edgewise.models.tasks.load import fingerprint, load_task

Array = NDArray[Any]


def pixels(count: int, *shape: int) -> Array:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def save(path: Path, **changes: Any) -> Path:
    """Twelve training and six test images of 5x7, three classes; a change of None leaves a key out."""
    arrays: dict[str, Any] = {
        "x_train": pixels(12, 5, 7),
        "y_train": np.arange(12) % 3,
        "x_test": pixels(6, 5, 7),
        "y_test": np.arange(6) % 3,
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_digits_keep_every_sample_once_and_classes_alike() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    task = load_task(Digits())
    assert task.input_shape == (1, 8, 8)
    assert task.classes == tuple("0123456789")
    ids = [name for split in task.splits.values() for name in split.ids]
    assert sorted(ids) == [f"digits-{i:04d}" for i in range(1797)]
    assert {name: len(split.ids) for name, split in task.splits.items()} == {"train": 998, "val": 199, "test": 600}
    for split in task.splits.values():
        counts = np.bincount(split.targets)
        assert counts.max() - counts.min() <= 6
        places = np.array([int(name.removeprefix("digits-")) for name in split.ids])
        assert np.array_equal(split.targets, data.target[places])
        some = np.array([3, 0, 17])
        expected = (data.images[places[some]][:, None] / 16 - 0.5) / 0.5
        assert np.allclose(split.read(some), expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["NHW", "NHWC1", "NHWC3", "NCHW1", "NCHW3"])
def test_every_layout_gives_the_same_images(tmp_path: Path, layout: str) -> None:
    channels = 3 if layout.endswith("3") else 1
    images = pixels(12, 5, 7, channels)
    stored = {"NHWC": images, "NCHW": images.transpose(0, 3, 1, 2)}.get(layout[:4], images[..., 0])
    mean, std = (0.1, 0.2, 0.3)[:channels], (0.5, 0.6, 0.7)[:channels]
    path = save(tmp_path / "a.npz", x_train=stored, x_test=stored[:6])
    task = load_task(Arrays(path=path, mean=mean, std=std))
    assert task.input_shape == (channels, 5, 7)
    got = task.splits["train"].read(np.array([4, 2]))
    assert got.dtype == np.float32
    for row, place in enumerate((4, 2)):
        for channel in range(channels):
            expected = (images[place, :, :, channel] / 255 - mean[channel]) / std[channel]
            assert np.allclose(got[row, channel], expected, atol=1e-6)


def packed(images: Array, **options: Any) -> tuple[Array, Array]:
    """JPEG bytes and lengths of images (N, H, W, 3) or (N, H, W)."""
    parts = []
    for image in images:
        buffer = BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=90, **options)
        parts.append(buffer.getvalue())
    return np.frombuffer(b"".join(parts), np.uint8), np.array([len(part) for part in parts], np.int32)


@pytest.mark.parametrize("shape", [(16, 24, 3), (16, 24)])
def test_packed_jpeg_is_what_pillow_decodes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = pixels(12, *shape)
    jpeg, length = packed(images)
    path = save(
        tmp_path / "a.npz",
        x_train=None,
        x_test=None,
        jpeg_train=jpeg,
        length_train=length,
        jpeg_test=jpeg,
        length_test=length,
        y_test=np.arange(12) % 3,
        class_names=np.array(["cat", "dog", "emu"]),
    )
    task = load_task(Arrays(path=path, mean=(0.0,), std=(1.0,)))
    assert task.classes == ("cat", "dog", "emu")
    ends = np.cumsum(length)
    one = np.asarray(Image.open(BytesIO(jpeg[ends[6] : ends[7]].tobytes())))
    one = one if one.ndim == 3 else one[:, :, None]
    assert np.allclose(task.splits["test"].read(np.array([7]))[0], one.transpose(2, 0, 1) / 255, atol=1e-6)


def test_val_and_limits_are_fixed_disjoint_and_alike_in_classes(tmp_path: Path) -> None:
    labels = np.arange(300) % 3
    path = save(tmp_path / "a.npz", x_train=pixels(300, 2, 2), y_train=labels, x_test=pixels(6, 2, 2))
    first, again = (load_task(Arrays(path=path, val_size=30, train_limit=90, test_limit=3)) for _ in range(2))
    train, val, test = (first.splits[name] for name in ("train", "val", "test"))
    assert (len(train.ids), len(val.ids), len(test.ids)) == (90, 30, 3)
    assert not set(train.ids) & set(val.ids)
    assert np.bincount(train.targets).tolist() == [30, 30, 30]
    assert np.bincount(val.targets).tolist() == [10, 10, 10]
    assert sorted(test.targets) == [0, 1, 2]
    assert [split.ids for split in first.splits.values()] == [split.ids for split in again.splits.values()]
    for split in (train, val):
        assert all(
            labels[int(name.removeprefix("train-"))] == y for name, y in zip(split.ids, split.targets, strict=True)
        )
    whole = load_task(Arrays(path=path)).splits["train"]
    place = int(val.ids[5].removeprefix("train-"))
    assert np.array_equal(val.read(np.array([5])), whole.read(np.array([place])))


@pytest.mark.parametrize(("total", "count"), [(10, 1), (10, 3), (10, 10), (997, 100), (5000, 7)])
def test_spread_keeps_each_class_share(total: int, count: int) -> None:
    targets = np.random.default_rng(total).integers(0, 4, total)
    chosen = spread(targets, count)
    assert len(np.unique(chosen)) == count
    assert np.array_equal(chosen, np.sort(chosen))
    shares = np.bincount(targets, minlength=4) * count / total
    assert np.abs(np.bincount(targets[chosen], minlength=4) - shares).max() < 2


def test_a_val_split_in_the_file_is_used(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x_val=pixels(4, 5, 7), y_val=np.array([0, 1, 2, 0]))
    assert load_task(Arrays(path=path)).splits["val"].ids == ("val-00000", "val-00001", "val-00002", "val-00003")
    with pytest.raises(DataError, match="has its own val split"):
        load_task(Arrays(path=path, val_size=2))


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"x_train": None}, {}, "no x_train in the file, which has: y_train, x_test, y_test"),
        ({"y_test": None, "x_test": None}, {}, "no x_test and no y_test in the file"),
        ({"x_train": pixels(0, 5, 7), "y_train": np.zeros(0, int)}, {}, "the split is empty"),
        ({"x_train": pixels(11, 5, 7)}, {}, "11 images, but 12 labels"),
        ({"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}, {}, "at least 2 classes"),
        ({"y_test": np.ones(6, int)}, {}, "every sample is of the class 1"),
        ({"y_train": np.arange(12) % 3 - 1}, {}, r"train has labels -1\.\.1"),
        ({"y_test": np.arange(6)}, {}, r"test has labels 0\.\.5, but the training labels give 3 classes: 0\.\.2"),
        ({"class_names": np.array(["a", "b"])}, {}, r"labels 0\.\.2, but class_names give 2 classes"),
        ({"class_names": np.array(["a", "b", "a"])}, {}, "two classes have the same name"),
        ({"y_train": np.eye(12)}, {}, r"expected labels \(N,\) of whole numbers, got \(12, 12\) of float64"),
        ({"x_train": pixels(12, 5, 7) / 255}, {}, r"images of uint8 \(0\.\.255\), got float64"),
        ({"x_train": pixels(12, 35)}, {}, r"expected images \(N, H, W\), .* got \(12, 35\)"),
        ({"x_train": pixels(12, 3, 7, 3)}, {}, r"both axis 1 and axis 3 of \(12, 3, 7, 3\)"),
        ({"x_train": pixels(12, 5, 7, 4)}, {}, r"neither axis 1 nor axis 3 of \(12, 5, 7, 4\)"),
        ({"x_train": pixels(12, 0, 7)}, {}, "images of no pixels"),
        ({"x_test": pixels(6, 7, 5)}, {}, r"test images are \(1, 7, 5\), train images are \(1, 5, 7\)"),
        ({}, {"mean": (0.1, 0.2, 0.3)}, "mean has 3 values, but the images have 1 channels"),
        ({}, {"std": (0.0,)}, r"std must be finite and above 0, got 0\.0"),
        ({}, {"val_size": 11}, "val_size 11 leaves too little of 12"),
        ({}, {"train_limit": 13}, "train_limit is 13, but there are 12"),
        ({}, {"test_limit": 7}, "test_limit is 7, but there are 6"),
        ({"jpeg_train": pixels(9), "length_train": np.full(12, 3)}, {}, "lengths add up to 36 bytes, but there are 9"),
        ({"jpeg_train": pixels(36), "length_train": np.full(12, 3)}, {}, "image 0 is not a whole JPEG"),
        ({"jpeg_train": pixels(36)}, {}, "no length_train in the file"),
        ({"x_train": np.array([{}] * 12)}, {}, "holds Python objects, which are not read"),
    ],
)
def test_data_that_can_not_be_used_is_refused(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    path = save(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=says):
        load_task(Arrays(path=path, **options))


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    a, b = packed(pixels(11, 8, 8)), packed(pixels(1, 8, 9))
    jpeg, length = (np.concatenate(pair) for pair in zip(a, b, strict=True))
    path = save(tmp_path / "a.npz", jpeg_train=jpeg, length_train=length)
    with pytest.raises(DataError, match=r"image 11 is \(8, 9, 1\), the ones before it are \(8, 8, 1\)"):
        load_task(Arrays(path=path))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, part: float) -> None:
    path = save(tmp_path / "a.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match="can't be read"):
        load_task(Arrays(path=path))


def test_damage_inside_the_file_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[300] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"can't be read: .*CRC"):
        load_task(Arrays(path=path))


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    for load in (load_task, fingerprint):
        with pytest.raises(DataError, match="o such file"):
            load(Arrays(path=tmp_path / "none.npz"))
    (tmp_path / "page.npz").write_text("<html>")
    with pytest.raises(DataError):
        load_task(Arrays(path=tmp_path / "page.npz"))
    np.save(tmp_path / "one.npy", pixels(3))
    with pytest.raises(DataError, match=r"expected a \.npz archive, got a single array"):
        load_task(Arrays(path=tmp_path / "one.npy"))


def test_the_fingerprint_is_the_files_content(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a.npz"), tmp_path / "b.npz"
    b.write_bytes(a.read_bytes())
    assert fingerprint(Arrays(path=a)) == fingerprint(Arrays(path=b))
    b.write_bytes(a.read_bytes() + b" ")
    assert fingerprint(Arrays(path=a)) != fingerprint(Arrays(path=b))
    assert fingerprint(Digits()) == fingerprint(Digits())


def test_real_cifar10_reads_as_its_manifest_says(real_data: Callable[[str], Path]) -> None:
    task = load_task(Arrays(path=real_data("cifar10_jpeg.npz"), val_size=100, train_limit=200, test_limit=200))
    assert task.classes[:2] == ("airplane", "automobile")
    assert task.input_shape == (3, 32, 32)
    assert {name: np.bincount(split.targets).tolist() for name, split in task.splits.items()} == {
        "train": [20] * 10,
        "val": [10] * 10,
        "test": [20] * 10,
    }


def test_real_fashion_mnist_reads(real_data: Callable[[str], Path]) -> None:
    task = load_task(Arrays(path=real_data("fashion_mnist.npz"), train_limit=100))
    assert task.input_shape == (1, 28, 28)
    assert (len(task.splits["train"].ids), len(task.splits["test"].ids)) == (100, 10000)


def test_slices_say_what_kind_each_test_image_is_of(tmp_path: Path) -> None:
    light = np.array(["day", "fog", "day", "day", "fog", "day"])
    path = save(tmp_path / "a.npz", slice_light=light, slice_camera=np.array([1, 1, 2, 2, 1, 2]))
    task = load_task(Arrays(path=path, test_limit=3))
    places = [int(name.removeprefix("test-")) for name in task.splits["test"].ids]
    assert task.slices == {
        "light": tuple(light[places]),
        "camera": tuple(str([1, 1, 2, 2, 1, 2][place]) for place in places),
    }
    assert load_task(Arrays(path=save(tmp_path / "b.npz"))).slices == {}


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("slice_light", np.array(["day"] * 5), r"slice_light: expected a word or a whole number for each of 6"),
        ("slice_light", np.ones(6), "got .* of float64"),
        ("slice_class", np.array(["a"] * 6), "slices 'class': .*under another name"),
    ],
)
def test_slices_that_do_not_fit_are_refused(name: str, values: Array, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        load_task(Arrays(path=save(tmp_path / "a.npz", **{name: values})))
