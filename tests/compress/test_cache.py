"""The cache of teacher outputs: what goes in comes out, nobody else's answers are used, nothing half-written counts."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgewise.compress.cache import (
    Identity,
    TeacherCache,
    cache_folder,
    data_fingerprint,
    needed_bytes,
    no_room,
    open_cache,
    prune_cache,
    teacher_digest,
)
from edgewise.errors import ArtifactError, EdgewiseError, ModelError

ROOM = 1 << 20
PLAIN = Identity(teacher="t", data="d", view={"augment": {"crop": 2}, "seed": 3}, logits=5, samples=40)
TAPPED = replace(PLAIN, views=3, features={"layer2": (4, 3, 3), "embedding": (6,)})


def answers(index: np.ndarray, identity: Identity, scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """What a teacher might say of the samples ``index``: a function of each sample alone."""

    def rows(place: int, shape: tuple[int, ...]) -> Tensor:
        drawn = [np.random.default_rng([int(i), place]).normal(size=shape) for i in index]
        return torch.from_numpy(scale * np.stack(drawn)).float()

    assert isinstance(identity.logits, int)
    return rows(0, (identity.logits,)), [rows(i + 1, shape) for i, shape in enumerate(identity.features.values())]


@contextmanager
def opened(folder: Path, identity: Identity = PLAIN) -> Iterator[TeacherCache]:
    with open_cache(folder, identity, max_bytes=ROOM) as cache:
        yield cache


def places(*index: int) -> np.ndarray:
    return np.array(index, dtype=np.int64)


def test_what_is_put_comes_back_as_put_said(tmp_path: Path) -> None:
    index = places(39, 0, 7)
    logits, features = answers(index, TAPPED)
    with opened(tmp_path / "c", TAPPED) as cache:
        assert cache.get(1, index) is None
        said = cache.put(1, index, logits, features)
        assert cache.filled == 3
    with opened(tmp_path / "c", TAPPED) as cache:
        read = cache.get(1, index)
        assert read is not None
        assert torch.equal(read[0], said[0])
        assert all(torch.equal(a, b) for a, b in zip(read[1], said[1], strict=True))
        # An independent rounding: numpy's.
        assert np.array_equal(read[0].numpy(), logits.numpy().astype(np.float16).astype(np.float32))
        for (name, shape), mine, theirs in zip(TAPPED.features.items(), read[1], features, strict=True):
            assert mine.shape == (3, *shape), name
            assert np.array_equal(mine.numpy(), theirs.numpy().astype(np.float16).astype(np.float32)), name
        assert read[0].dtype == torch.float32
        assert read[0].is_contiguous()
        # Another layout could mean another order of summing, and other last bits.
        assert [f.stride() for f in said[1]] == [f.stride() for f in read[1]]
        assert read[1][0].is_contiguous(memory_format=torch.channels_last)
        again = cache.get(1, places(7, 39))
        assert again is not None
        assert torch.equal(again[0], said[0][[2, 0]])
        assert cache.get(1, places(7, 8)) is None, "one of two rows is not there"
        assert cache.get(0, index) is None, "another view is another answer"


def test_float32_keeps_every_bit(tmp_path: Path) -> None:
    identity = replace(PLAIN, dtype="float32")
    index = places(1, 2)
    logits = torch.tensor([[1e-30, 70000.0, 1 / 3, -0.0, 3e38]] * 2)
    with opened(tmp_path / "c", identity) as cache:
        cache.put(0, index, logits)
        read = cache.get(0, index)
    assert read is not None
    assert read[0].numpy().tobytes() == logits.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_goes_in(tmp_path: Path, dtype: torch.dtype) -> None:
    with opened(tmp_path / "c") as cache:
        said, _ = cache.put(0, places(0), torch.full((1, 5), 0.5, dtype=dtype, requires_grad=True))
    assert said.tolist() == [[0.5] * 5]
    assert not said.requires_grad


def test_maps_in_channels_last_go_in(tmp_path: Path) -> None:
    index = places(3, 4)
    logits, features = answers(index, TAPPED)
    with opened(tmp_path / "a", TAPPED) as one, opened(tmp_path / "b", TAPPED) as other:
        plain = one.put(0, index, logits, features)
        last = other.put(0, index, logits, [features[0].to(memory_format=torch.channels_last), features[1]])
    assert torch.equal(plain[1][0], last[1][0])


def test_a_row_is_written_once(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as cache:
        first, _ = cache.put(0, places(1, 2), torch.ones(2, 5))
        second, _ = cache.put(0, places(2, 3), torch.full((2, 5), 9.0))
    assert second.tolist() == [[1.0] * 5, [9.0] * 5]
    assert first.tolist() == [[1.0] * 5] * 2


def test_no_samples_are_no_trouble(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as cache:
        logits, features = cache.put(0, places(), torch.zeros(0, 5))
    assert logits.shape == (0, 5)
    assert features == ()


@pytest.mark.parametrize(
    ("bad", "error", "word"),
    [
        (65536.0, ArtifactError, "float32"),
        (-1e9, ArtifactError, "65504"),
        (float("nan"), ModelError, "NaN"),
        (float("inf"), ModelError, "NaN or infinity"),
    ],
)
def test_what_half_precision_cannot_hold_is_refused(
    tmp_path: Path, bad: float, error: type[EdgewiseError], word: str
) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with opened(tmp_path / "c") as cache:
        with pytest.raises(error, match=word):
            cache.put(0, places(0, 1), logits)
        assert cache.filled == 0


def test_nan_is_refused_in_float32_too(tmp_path: Path) -> None:
    with opened(tmp_path / "c", replace(PLAIN, dtype="float32")) as cache, pytest.raises(ModelError, match="NaN"):
        cache.put(0, places(0), torch.full((1, 5), float("nan")))


@pytest.mark.parametrize(
    ("view", "index", "logits", "features", "word"),
    [
        (3, [0], (1, 5), True, "3 views of 40"),
        (-1, [0], (1, 5), True, "view -1"),
        (0, [40], (1, 5), True, "40"),
        (0, [-1], (1, 5), True, "-1"),
        (0, [0], (1, 6), True, r"expected \(1, 5\), got \(1, 6\)"),
        (0, [0, 1], (1, 5), True, r"expected \(2, 5\)"),
        (0, [0], (1, 5), False, "features of 2 layers"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, view: int, index: list[int], logits: tuple[int, ...], features: bool, word: str
) -> None:
    given = answers(places(0), TAPPED)[1] if features else []
    with opened(tmp_path / "c", TAPPED) as cache, pytest.raises(ModelError, match=word):
        cache.put(view, places(*index), torch.zeros(logits), given)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (replace(PLAIN, teacher="another"), "teacher 't'"),
        (replace(PLAIN, data="another"), "data 'd'"),
        (replace(PLAIN, view={"augment": {"crop": 2}, "seed": 4}), "view.seed 3"),
        (replace(PLAIN, view={"augment": {"crop": 4}, "seed": 3}), "view.augment.crop 2"),
        (replace(PLAIN, view={"augment": {"crop": 2}, "seed": 3, "precision": "bf16"}), "view.precision None"),
        (replace(PLAIN, views=2), "views 1"),
        (replace(PLAIN, logits=6), "logits 5"),
        (replace(PLAIN, samples=41), "samples 40"),
        (replace(PLAIN, dtype="float32"), "dtype 'float16'"),
        (replace(PLAIN, features={"a": (2,)}), "features"),
    ],
)
def test_another_ones_cache_is_refused_by_the_field_that_differs(tmp_path: Path, other: Identity, field: str) -> None:
    with opened(tmp_path / "c") as cache:
        cache.put(0, places(0), torch.zeros(1, 5))
    with pytest.raises(ArtifactError, match=field):
        open_cache(tmp_path / "c", other, max_bytes=ROOM)
    assert cache_folder(tmp_path, other) != cache_folder(tmp_path, PLAIN)
    with opened(tmp_path / "c") as cache:
        assert cache.filled == 1, "the refusal left it as it was"


def test_the_order_of_layers_counts(tmp_path: Path) -> None:
    one, other = (
        replace(PLAIN, features=dict(pairs)) for pairs in ([("a", (2,)), ("b", (2,))], [("b", (2,)), ("a", (2,))])
    )
    assert cache_folder(tmp_path, one) != cache_folder(tmp_path, other)
    with opened(tmp_path / "c", one), pytest.raises(ArtifactError, match="features"):
        open_cache(tmp_path / "c", other, max_bytes=ROOM)


def test_the_record_is_readable(tmp_path: Path) -> None:
    folder = cache_folder(tmp_path, TAPPED)
    with opened(folder, TAPPED):
        record = json.loads((folder / "cache.json").read_text())
    assert record["teacher"] == "t"
    assert record["view"] == {"augment": {"crop": 2}, "seed": 3}
    assert record["features"] == [["layer2", [4, 3, 3]], ["embedding", [6]]]
    assert np.load(folder / "logits.npy").shape == (3, 40, 5), "plain numpy files"


@pytest.mark.parametrize("damage", ["cut", "gone", "other", "record", "swapped"])
def test_a_damaged_cache_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "c"
    with opened(folder, TAPPED) as cache:
        cache.put(0, places(0), *answers(places(0), TAPPED))
    logits = folder / "logits.npy"
    if damage == "cut":  # reading a mapping beyond the end of its file would kill the process
        os.truncate(logits, logits.stat().st_size - 1)
    elif damage == "gone":
        (folder / "filled.npy").unlink()
    elif damage == "other":
        np.save(logits, np.zeros((3, 40, 5)))
    elif damage == "record":
        (folder / "cache.json").write_text("[")
    else:
        logits.write_bytes((folder / "feature-1.npy").read_bytes())
    with pytest.raises(ArtifactError, match="delete"):
        open_cache(folder, TAPPED, max_bytes=ROOM)


def test_bounded(tmp_path: Path) -> None:
    needed = needed_bytes(TAPPED)
    assert needed == 3 * 40 * (2 * (5 + 36 + 6) + 1)
    assert no_room(tmp_path / "c", TAPPED, needed) is None
    reason = no_room(tmp_path / "c", TAPPED, needed - 1)
    assert reason is not None
    assert "bound" in reason
    with pytest.raises(ArtifactError, match="bound"):
        open_cache(tmp_path / "c", TAPPED, max_bytes=needed - 1)
    assert not (tmp_path / "c").exists()


def test_a_disk_too_small_is_told_before_training(tmp_path: Path) -> None:
    huge = replace(PLAIN, samples=1 << 52)
    reason = no_room(tmp_path / "c", huge, 1 << 62)
    assert reason is not None
    assert "disk" in reason
    with pytest.raises(ArtifactError, match="disk"):
        open_cache(tmp_path / "c", huge, max_bytes=1 << 62)


def test_rows_take_room_when_they_are_filled(tmp_path: Path) -> None:
    wide = replace(PLAIN, samples=4000, features={"a": (512,)})
    with open_cache(tmp_path / "c", wide, max_bytes=1 << 30) as cache:
        cache.put(0, places(3999), torch.zeros(1, 5), [torch.ones(1, 512)])
        file = (tmp_path / "c" / "feature-0.npy").stat()
    assert file.st_size > 4_000_000
    assert file.st_blocks * 512 < 1 << 20


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    # The limit on the size of files is what a test can have for a full disk: both are an error of the write.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path / "c", TAPPED) as cache:
        cache.put(0, places(0), *answers(places(0), TAPPED))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            with pytest.raises(ArtifactError, match="can't be kept") as told:
                cache.put(1, places(38, 39), *answers(places(38, 39), TAPPED))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "room" in told.value.hint
        assert cache.filled == 1
        assert cache.get(1, places(39)) is None
        cache.put(1, places(38, 39), *answers(places(38, 39), TAPPED))  # room was made
        assert cache.filled == 3


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="can't be opened"):
        open_cache(tmp_path / "file" / "c", PLAIN, max_bytes=ROOM)


FILL = """
    import sys
    from pathlib import Path
    import numpy as np, torch
    from edgewise.compress.cache import Identity, open_cache

    folder, first, samples, width = Path(sys.argv[1]), *map(int, sys.argv[2:])
    identity = Identity("t", "d", {}, logits=10, samples=samples, features={"a": (width,)})
    index = np.arange(samples)[first::2]
    with open_cache(folder, identity, max_bytes=1 << 30) as cache:
        print("open", flush=True)
        for start in range(0, len(index), 50):
            rows = index[start : start + 50]
            values = torch.from_numpy(1.0 + rows % 2000).float()
            cache.put(0, rows, values[:, None].expand(-1, 10), [values[:, None].expand(-1, width)])
            print(start, flush=True)
"""


def fill(folder: Path, first: int, samples: int, width: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(FILL), str(folder), str(first), str(samples), str(width)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def whole(cache: TeacherCache, index: np.ndarray) -> bool:
    """Whether every row of ``index`` that counts as there holds what ``FILL`` puts."""
    there = [i for i in index if cache.get(0, places(i)) is not None]
    read = cache.get(0, places(*there))
    assert read is not None
    expected = torch.tensor(there)[:, None] % 2000 + 1.0
    return bool((read[0] == expected).all() and (read[1][0] == expected).all())


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    both = [fill(tmp_path / "c", first, samples=600, width=40) for first in (0, 1)]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    identity = Identity("t", "d", {}, logits=10, samples=600, features={"a": (40,)})
    with opened(tmp_path / "c", identity) as cache:
        assert cache.filled == 600
        assert whole(cache, np.arange(600))


def test_a_killed_process_leaves_rows_that_are_whole(tmp_path: Path) -> None:
    samples, width = 20000, 3000
    identity = Identity("t", "d", {}, logits=10, samples=samples, features={"a": (width,)})
    filled = 0
    for _ in range(3):
        process = fill(tmp_path / "c", 0, samples, width)
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()  # it is at work: the signal comes in the middle of some batch
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        with open_cache(tmp_path / "c", identity, max_bytes=1 << 30) as cache:
            assert cache.filled >= max(filled, 150)
            assert cache.filled < samples // 2
            assert whole(cache, np.arange(0, 2000, 2))
            filled = cache.filled


def test_a_cache_killed_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as cache:
        cache.put(0, places(0), torch.ones(1, 5))
    (tmp_path / "c" / "cache.json").unlink()  # it is written last
    with opened(tmp_path / "c") as cache:
        assert cache.filled == 0


def used(root: Path, name: str, when: int) -> Path:
    folder = root / name
    with opened(folder, replace(PLAIN, teacher=name, samples=2000, dtype="float32")) as cache:
        cache.put(0, np.arange(2000), torch.ones(2000, 5))
    os.utime(folder / "cache.json", (when, when))
    return folder


def disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.glob("*.npy"))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    new, old, middle = (used(tmp_path, name, when) for name, when in (("new", 3000), ("old", 1000), ("middle", 2000)))
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "somebody's" / "file.npy").write_bytes(bytes(100_000))
    assert prune_cache(tmp_path, 3 * disk(new)) == []
    assert prune_cache(tmp_path, 2 * disk(new)) == [old]
    assert prune_cache(tmp_path, 0) == [middle, new]
    assert [path.name for path in tmp_path.iterdir()] == ["somebody's"]
    assert prune_cache(tmp_path / "nowhere", 0) == []


def test_opening_is_using(tmp_path: Path) -> None:
    first, second = used(tmp_path, "first", 1000), used(tmp_path, "second", 2000)
    with opened(first, replace(PLAIN, teacher="first", samples=2000, dtype="float32")):
        pass
    assert prune_cache(tmp_path, disk(first)) == [second]


def test_a_cache_in_use_is_never_removed(tmp_path: Path) -> None:
    folder = used(tmp_path, "a", 1000)
    with opened(folder, replace(PLAIN, teacher="a", samples=2000, dtype="float32")) as cache:
        assert prune_cache(tmp_path, 0) == []
        assert cache.get(0, places(1999)) is not None
    process = fill(tmp_path / "b", 0, samples=20000, width=3000)  # nor one that another process uses
    assert process.stdout is not None
    process.stdout.readline()
    assert prune_cache(tmp_path, 0) == [folder]
    process.kill()
    process.communicate(timeout=120)
    assert prune_cache(tmp_path, 0) == [tmp_path / "b"]


def test_what_a_killed_removal_left_is_no_cache(tmp_path: Path) -> None:
    folder = used(tmp_path, "a", 1000)
    (folder / "cache.json").unlink()  # it goes first
    with opened(folder, replace(PLAIN, teacher="a", samples=2000, dtype="float32")) as cache:
        assert cache.filled == 0
    (folder / "cache.json").unlink()
    assert prune_cache(tmp_path, -1) == [folder]


def test_a_removed_cache_is_made_anew_where_it_was(tmp_path: Path) -> None:
    used(tmp_path, "a", 1000)
    prune_cache(tmp_path, 0)
    assert disk(used(tmp_path, "a", 2000)) > 0


@dataclass(frozen=True)
class Images:
    images: np.ndarray

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(self.images))))

    @property
    def targets(self) -> np.ndarray:
        return np.zeros(len(self.images), np.int64)

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.images[index]


def test_other_data_has_another_fingerprint() -> None:
    images = np.random.default_rng(0).normal(size=(7, 1, 4, 4)).astype(np.float32)
    one = data_fingerprint(Images(images), chunk=3)
    assert one == data_fingerprint(Images(images.copy()), chunk=3)
    changed = images.copy()
    changed[6, 0, 3, 3] += 1e-6
    others = {data_fingerprint(Images(other), chunk=3) for other in (changed, images[::-1], images[:6])}
    assert len(others) == 3
    assert one not in others


def test_another_teacher_has_another_digest() -> None:
    def net(last: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), last).to(dtype)

    one = teacher_digest(net(nn.ReLU()))
    assert one == teacher_digest(net(nn.ReLU()))
    moved = net(nn.ReLU())
    moved[1].running_mean[0] += 1e-6
    others = [
        teacher_digest(moved),
        teacher_digest(net(nn.GELU())),  # the same tensors
        teacher_digest(net(nn.ReLU(), torch.bfloat16)),
        teacher_digest(net(nn.ReLU()), net(nn.ReLU())),
    ]
    assert len({one, *others}) == 5


TOKENS = replace(PLAIN, logits=(10, 4), length=10, features={"block": (10, 6), "scores": (2, 10, 10), "pooled": (6,)})


def test_tokens_of_a_short_batch_are_kept_and_read_at_any_length(tmp_path: Path) -> None:
    def given(index: np.ndarray, length: int) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(int(index[0]))
        n = len(index)
        features = [torch.randn(n, length, 6), torch.randn(n, 2, length, length), torch.randn(n, 6)]
        return torch.randn(n, length, 4), features

    with opened(tmp_path, replace(TOKENS, dtype="float32")) as cache:
        short, long = given(places(1, 2), 4), given(places(3), 7)
        logits, features = cache.put(0, places(1, 2), *short)
        assert torch.equal(logits, short[0])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(features, short[1], strict=True))
        cache.put(0, places(3), *long)
        kept = cache.get(0, places(3, 1), 7)
        assert kept is not None
        assert torch.equal(kept[0][0], long[0][0])
        assert torch.equal(kept[0][1, :4], short[0][0])
        assert not kept[0][1, 4:].any()
        tokens, scores, pooled = kept[1]
        assert scores.shape == (2, 2, 7, 7)
        assert torch.equal(scores[1, :, :4, :4], short[1][1][0])
        assert not scores[1, :, 4:].any()
        assert not scores[1, :, :, 4:].any()
        assert torch.equal(tokens[1, :4], short[1][0][0])
        assert torch.equal(pooled[1], short[1][2][0])
        whole = cache.get(0, places(3))
        assert whole is not None
        assert whole[0].shape == (1, 10, 4)
        with pytest.raises(ModelError, match="block"):
            cache.put(0, places(4), torch.zeros(1, 4, 4), [torch.zeros(1, 4, 5), *given(places(4), 4)[1][1:]])
