"""The loop: same seed same weights, resuming changes nothing, two processes equal one with twice the batch."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.compress.config import AdamW, EarlyStop, Fit, Sgd
from edgewise.compress.train import Epoch, evaluate, fit, labels_only, lr_factor, order
from edgewise.errors import ArtifactError, DataError, ModelError
from edgewise.models.tasks.config import Augment


@dataclass(frozen=True)
class Blobs:
    """Three classes of noisy 1x8x8 patterns."""

    targets: np.ndarray
    images: np.ndarray

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"blob-{i}" for i in range(len(self.targets)))

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.images[index]


def blobs(samples: int = 96) -> Blobs:
    random = np.random.default_rng(0)
    patterns = random.normal(size=(3, 1, 8, 8))
    targets = random.integers(0, 3, samples)
    images = patterns[targets] + random.normal(size=(samples, 1, 8, 8))
    return Blobs(targets.astype(np.int64), images.astype(np.float32))


def net(seed: int = 0, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    # The second convolution's weights are really other in channels-last; those of one channel are not.
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 3),
    )


def train(model: nn.Module, config: Fit, checkpoint: Path | None = None, stop_at: int | None = None) -> list[Epoch]:
    def tick(done: int, total: int, note: str) -> None:
        if stop_at is not None and done == stop_at:
            raise KeyboardInterrupt

    augment = Augment(crop=1, flip=True)
    return fit(labels_only(model), blobs(), config, seed=3, augment=augment, checkpoint=checkpoint, tick=tick)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


OPTIMIZERS = [Sgd(lr=0.05), AdamW(lr=0.01)]


def test_learns_and_reports_each_epoch() -> None:
    model = net()
    history = train(model, Fit(epochs=25, batch_size=32, optimizer=Sgd(lr=0.05)))
    assert [epoch.epoch for epoch in history] == list(range(1, 26))
    assert history[-1].loss < 0.5 * history[0].loss
    assert (evaluate(model, blobs(), batch_size=40).argmax(1) == blobs().targets).mean() > 0.8


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.kind)
@pytest.mark.parametrize("stop_at", [1, 4, 6, 8])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, optimizer: Sgd | AdamW, stop_at: int) -> None:
    config = Fit(epochs=3, batch_size=32, optimizer=optimizer, warmup_epochs=0.5, clip_norm=1.0, checkpoint_every=2)
    whole = net()
    expected = train(whole, config)
    file = tmp_path / "work" / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(net(), config, file, stop_at)
    resumed = net(seed=99)  # other weights: all must come from the checkpoint, or from the start
    if not file.exists():
        resumed = net()
    history = train(resumed, config, file)
    assert same(weights(resumed), weights(whole))
    assert history == expected


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    config = Fit(epochs=2, batch_size=32)
    with pytest.raises(KeyboardInterrupt):
        train(net(), config, file, stop_at=4)
    with pytest.raises(ArtifactError, match="not a checkpoint of this training run"):
        train(net(width=5), config, file)
    file.write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        train(net(), config, file)


@pytest.mark.parametrize(("lr", "told"), [(1e30, "cross_entropy"), (3e4, "cross_entropy exploded")])
def test_a_loss_that_explodes_is_named_and_the_last_good_checkpoint_stays(tmp_path: Path, lr: float, told: str) -> None:
    file = tmp_path / "checkpoint.safetensors"
    good = Fit(epochs=5, batch_size=32, optimizer=Sgd(lr=0.01), checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(net(), good, file, stop_at=5)
    bad = good.model_copy(update={"optimizer": Sgd(lr=lr)})
    with pytest.raises(ModelError, match=rf"{told}(.|\n)*lower optimizer.lr"):
        train(net(), bad.model_copy(update={"epochs": 50}), file)
    healthy = net()
    history = train(healthy, good, file)  # goes on from where it was still well
    assert len(history) == 5
    assert all(torch.isfinite(value).all() for value in weights(healthy))


def test_the_kept_average_follows_the_formula_and_survives_a_kill(tmp_path: Path) -> None:
    seen: list[list[torch.Tensor]] = []
    config = Fit(epochs=3, batch_size=32, optimizer=Sgd(lr=0.05), ema=0.9, checkpoint_every=2)
    watched = net()

    def tick(done: int, total: int, note: str) -> None:
        seen.append(weights(watched))

    fit(labels_only(watched), blobs(), config, seed=3, augment=Augment(crop=1, flip=True), tick=tick)
    average = seen[0]
    for step, now in enumerate(seen[1:], start=1):
        decay = min(0.9, (1 + step) / (10 + step))
        average = [
            decay * old + (1 - decay) * new if new.is_floating_point() else new
            for old, new in zip(average, now, strict=True)
        ]
    for kept, expected in zip(weights(watched), average, strict=True):
        torch.testing.assert_close(kept, expected)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(net(), config, file, stop_at=6)
    resumed = net(seed=99)
    train(resumed, config, file)
    assert same(weights(resumed), weights(watched))


def test_stops_early_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    told = [0.3, 0.5, 0.4, 0.45, 0.9]
    at_epoch: list[list[torch.Tensor]] = []

    def validate(model: nn.Module) -> float:
        at_epoch.append(weights(model))
        return told[len(at_epoch) - 1]

    config = Fit(epochs=9, batch_size=32, optimizer=Sgd(lr=0.05), early_stop=EarlyStop(patience=2))
    model = net()
    history = fit(labels_only(model), blobs(), config, seed=3, validate=validate)
    assert [epoch.validation for epoch in history] == told[:4]
    assert same(weights(model), at_epoch[1])
    file, resumed = tmp_path / "checkpoint.safetensors", net()

    def killed(done: int, total: int, note: str) -> None:
        if done == 10:
            raise KeyboardInterrupt

    at_epoch.clear()
    with pytest.raises(KeyboardInterrupt):
        fit(labels_only(net()), blobs(), config, seed=3, validate=validate, checkpoint=file, tick=killed)
    assert fit(labels_only(resumed), blobs(), config, seed=3, validate=validate, checkpoint=file) == history
    assert same(weights(resumed), weights(model))


def test_early_stopping_without_a_validation_split_is_refused() -> None:
    with pytest.raises(ModelError, match="needs a validation split"):
        train(net(), Fit(batch_size=32, early_stop=EarlyStop()))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match="at least one batch of 1000 training samples, got 96"):
        train(net(), Fit(batch_size=1000))


def test_learning_rate_follows_the_formula() -> None:
    factors = [lr_factor(step, 100, 10, "cosine") for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert lr_factor(70, 100, 10, "constant") == 1.0


def test_every_sample_is_visited_once_an_epoch_in_another_order() -> None:
    assert sorted(order(50, 1, 0)) == list(range(50))
    assert list(order(50, 1, 0)) != list(order(50, 1, 1))
    assert list(order(50, 1, 0)) == list(order(50, 1, 0))


def test_mixed_precision_stays_close_to_float32() -> None:
    plain = train(net(), Fit(epochs=2, batch_size=32, optimizer=Sgd(lr=0.02)))
    mixed = train(net(), Fit(epochs=2, batch_size=32, optimizer=Sgd(lr=0.02), precision="bf16-mixed"))
    assert mixed[-1].loss == pytest.approx(plain[-1].loss, rel=0.05)
    assert mixed[-1].loss != plain[-1].loss


RUN = """
    import json, sys
    import numpy as np, torch
    torch.set_num_threads(1)
    from torch import nn
    from edgewise.compress.config import Fit, Sgd
    from edgewise.compress.train import fit, labels_only
    from edgewise.models.tasks.config import Augment

    class Noise:
        targets = np.arange(64) % 4
        ids = tuple(map(str, range(64)))
        images = np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
        def read(self, index):
            return self.images[index]

    torch.manual_seed(5)
    # LayerNorm, not BatchNorm: statistics over half a batch are not those over the whole.
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4))
    config = Fit(epochs=5, batch_size=16, optimizer=Sgd(lr=0.1), clip_norm=0.5, warmup_epochs=1)
    history = fit(labels_only(model, 0.1), Noise(), config, seed=1, augment=Augment(crop=1, flip=True))
    import os
    if os.environ.get("RANK", "0") == "0":
        with open(sys.argv[1], "w") as file:
            json.dump([e.loss for e in history] + [float(p.sum()) for p in model.parameters()], file)
"""


def test_two_processes_follow_the_curve_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    subprocess.run([sys.executable, script, one], check=True, env=environment, timeout=120)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    subprocess.run([*launcher, script, two], check=True, env=environment, timeout=240)
    np.testing.assert_allclose(json.loads(two.read_text()), json.loads(one.read_text()), rtol=2e-5, atol=1e-6)
