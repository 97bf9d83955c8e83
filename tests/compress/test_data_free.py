"""Images from a teacher alone: the losses against slow restatements, a teacher left alone, resuming, and a student that
learns from them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgewise.compress.config import Distill, Fit, Sgd
from edgewise.compress.fold import fold_batchnorm
from edgewise.compress.losses import KD
from edgewise.compress.strategies.data_free import Synthetic, bounds_of, distill_data_free, synthesize
from edgewise.compress.strategies.data_free_config import Generator, Inversion
from edgewise.compress.strategies.generator import ImageGenerator, generate, generator_terms
from edgewise.compress.strategies.inversion import invert, js_divergence, pixel_bounds, targets_of, total_variation
from edgewise.compress.strategies.statistics import batchnorms, frozen, statistics_gap, watched
from edgewise.compress.train import evaluate, fit, labels_only
from edgewise.errors import ArtifactError, ModelError
from edgewise.models.build import build
from edgewise.models.config import CifarResNet, ViT
from edgewise.models.tasks.base import Task
from edgewise.models.tasks.config import Augment, Digits
from edgewise.models.tasks.load import load_task

SHAPE = (2, 8, 8)
BOUNDS = ((-1.0, 1.0), (-0.5, 2.0))
FEW = Inversion(samples=10, batch_size=4, steps=3)


def net(seed: int = 0, classes: int = 3) -> nn.Module:
    """A small net whose BatchNorm layers have seen something."""
    torch.manual_seed(seed)
    model = build(CifarResNet(depth=8, width=4), SHAPE, classes)
    with torch.no_grad():
        for _ in range(3):
            model(0.3 + 2 * torch.randn(16, *SHAPE))
    return model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def digits() -> tuple[Task, nn.Module]:
    """A task and a teacher that knows it."""
    task = load_task(Digits())
    return task, pupil(task, width=8, epochs=8)


def pupil(task: Task, width: int, epochs: int) -> nn.Module:
    """A net that has learnt from the labels."""
    torch.manual_seed(width)
    model = build(CifarResNet(depth=8, width=width), task.input_shape, 10)
    fit(labels_only(model), task.splits["train"], Fit(epochs=epochs, batch_size=64, optimizer=Sgd(lr=0.1)), seed=0)
    return model


def accuracy(model: nn.Module, task: Task) -> float:
    return float((evaluate(model, task.splits["test"]).argmax(1) == task.splits["test"].targets).mean())


def test_statistics_gap_equals_the_formula_written_out() -> None:
    random = np.random.default_rng(0)
    x, mean, variance = random.normal(size=(3, 2, 4, 5)), random.normal(size=2), random.uniform(0.5, 2, size=2)
    means, variances = [], []
    for channel in range(2):
        values = [x[n, channel, i, j] for n in range(3) for i in range(4) for j in range(5)]
        centre = sum(values) / len(values)
        means.append(centre)
        variances.append(sum((v - centre) ** 2 for v in values) / len(values))
    expected = math.hypot(*(m - s for m, s in zip(means, mean, strict=True)))
    expected += math.hypot(*(v - s for v, s in zip(variances, variance, strict=True)))
    got = statistics_gap(*(torch.from_numpy(a).float() for a in (x, mean, variance)))
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_statistics_gap_of_vectors_and_of_one_constant_sample_is_finite() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    gap = statistics_gap(x, torch.ones(3), torch.zeros(3))
    gap.backward()
    assert gap.item() == 0
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_watched_layers_give_what_batchnorm_itself_would_measure() -> None:
    model, x = net(), torch.randn(6, *SHAPE)
    with frozen(model), watched(model, first=10.0) as gaps:
        model(x)
    twin = net().train()
    norms = batchnorms(twin)
    for norm in norms.values():
        norm.momentum = 1.0  # the running statistics become the batch's
    kept = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    # Only the first layer sees the same input in training mode; it is enough to tie the hook to the layer.
    twin(x)
    first = next(iter(norms))
    count = 6 * 8 * 8
    mean, variance = norms[first].running_mean, norms[first].running_var * (count - 1) / count
    expected = (mean - kept[first][0]).norm() + (variance - kept[first][1]).norm()
    assert len(gaps) == len(norms) == 7
    assert gaps[0].item() == pytest.approx(10 * expected.item(), rel=1e-4)
    assert not any(norm._forward_pre_hooks for norm in batchnorms(model).values())


def test_total_variation_equals_the_formula_written_out() -> None:
    x = np.random.default_rng(1).normal(size=(2, 1, 3, 4))
    sums = dict.fromkeys([(0, 1), (1, 0), (1, 1), (1, -1)], 0.0)
    for n in range(2):
        for i in range(3):
            for j in range(4):
                for di, dj in sums:
                    if i + di < 3 and 0 <= j + dj < 4:
                        sums[di, dj] += (x[n, 0, i, j] - x[n, 0, i + di, j + dj]) ** 2
    assert total_variation(torch.from_numpy(x)).item() == pytest.approx(sum(map(math.sqrt, sums.values())), rel=1e-5)
    assert total_variation(torch.full((2, 3, 4, 4), 7.0)) == 0


def test_js_divergence_is_symmetric_bounded_and_the_mean_entropy_gap() -> None:
    def entropy(p: np.ndarray) -> float:
        return float(-(p * np.log(p)).sum())

    random = np.random.default_rng(2)
    ours, theirs = random.normal(size=(4, 5)), random.normal(size=(4, 5))
    expected = []
    for a, b in zip(ours, theirs, strict=True):
        p, q = np.exp(a / 3) / np.exp(a / 3).sum(), np.exp(b / 3) / np.exp(b / 3).sum()
        expected.append(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)
    x, y = torch.from_numpy(ours), torch.from_numpy(theirs)
    assert js_divergence(x, y, temperature=3.0).item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert js_divergence(y, x, temperature=3.0).item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert js_divergence(x, x, temperature=3.0).item() == pytest.approx(0, abs=1e-6)
    apart = js_divergence(torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]]), temperature=1.0)
    assert apart.item() == pytest.approx(math.log(2))


def test_generator_terms_equal_the_formula_written_out() -> None:
    random = np.random.default_rng(3)
    logits, features = random.normal(size=(4, 3)), random.normal(size=(4, 6))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = {
        "one_hot": -np.mean([math.log(row.max()) for row in p]),
        "activation": -sum(abs(v) for v in features.flat) / features.size,
        "entropy": sum(v * math.log(v) for v in p.mean(axis=0)),
    }
    got = generator_terms(torch.from_numpy(logits), torch.from_numpy(features))
    assert {name: value.item() for name, value in got.items()} == pytest.approx(expected, rel=1e-5)
    # All sure, all classes alike: nothing left to gain.
    best = generator_terms(100 * torch.eye(3), torch.zeros(3, 2))
    assert best["one_hot"].item() == pytest.approx(0, abs=1e-6)
    assert best["entropy"].item() == pytest.approx(-math.log(3))
    # A mean answer without some class has a finite entropy, and gradient.
    sure = torch.tensor([[200.0, -200.0]], requires_grad=True)
    generator_terms(sure, torch.zeros(1, 2))["entropy"].backward()
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize(
    "config",
    [FEW, Generator(samples=8, batch_size=4, epochs=2, width=4, noise=5, statistics=1.0)],
    ids=lambda c: c.kind,
)
def test_the_teacher_stays_as_it_was_to_the_bit(config: Inversion | Generator) -> None:
    teacher = net()
    teacher.train()
    teacher.layer1.eval()
    next(teacher.parameters()).requires_grad_(False)
    modes = [module.training for module in teacher.modules()]
    gradients = [parameter.requires_grad for parameter in teacher.parameters()]
    before = state(teacher)
    split = synthesize(teacher, config, SHAPE, 3, seed=0, bounds=BOUNDS)
    assert unchanged(teacher, before)
    assert modes == [module.training for module in teacher.modules()]
    assert gradients == [parameter.requires_grad for parameter in teacher.parameters()]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    assert split.images.shape == (config.samples, *SHAPE)
    assert split.images.dtype == np.float32
    assert len(set(split.ids)) == config.samples
    assert (split.read(np.array([3, 1])) == split.images[[3, 1]]).all()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_steps_lower_the_loss(schedule: str) -> None:
    losses = []
    config = Inversion.model_validate(
        {"samples": 12, "batch_size": 12, "steps": 60, "jitter": 0, "lr": 0.05, "schedule": schedule}
    )
    invert(net(), config, SHAPE, 3, seed=0, tick=lambda done, total, note: losses.append(float(note.split()[-1])))
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]


def test_images_show_their_class_and_carry_the_statistics(digits: tuple[Task, nn.Module]) -> None:
    task, teacher = digits
    config = Inversion(samples=50, steps=80)
    images = torch.from_numpy(invert(teacher, config, task.input_shape, 10, seed=0))
    with frozen(teacher), watched(teacher) as gaps, torch.no_grad():
        shown = teacher(images).argmax(1).numpy()
        made = sum(gap.item() for gap in gaps)
        gaps.clear()
        teacher(torch.randn(50, *task.input_shape))
        noise = sum(gap.item() for gap in gaps)
    assert (shown == targets_of(config, 10, seed=0)).mean() > 0.9
    assert made < 0.3 * noise


@pytest.mark.parametrize(
    "config", [FEW, Generator(samples=8, batch_size=4, epochs=2, width=4, noise=5)], ids=lambda c: c.kind
)
def test_pixels_stay_within_what_an_image_can_hold(config: Inversion | Generator) -> None:
    images = synthesize(net(), config.model_copy(update={"lr": 1.0}), SHAPE, 3, seed=0, bounds=BOUNDS).images
    for channel, (low, high) in enumerate(BOUNDS):
        assert images[:, channel].min() >= low - 1e-6
        assert images[:, channel].max() <= high + 1e-6
    free = synthesize(net(), config.model_copy(update={"lr": 1.0}), SHAPE, 3, seed=0).images
    assert np.abs(free).max() > 1.5


def test_bounds_are_black_and_white_normalised() -> None:
    assert np.allclose(pixel_bounds((0.5, 0.2), (0.5, 0.1)), [(-1, 1), (-2, 8)])
    digits = load_task(Digits()).splits["train"]
    assert bounds_of(digits) == ((-1.0, 1.0),)
    assert bounds_of(Synthetic((), np.empty(0, np.int64), np.empty((0, 1, 1, 1), np.float32))) is None


def test_batches_are_alike_in_size_and_classes() -> None:
    assert [targets_of(FEW, 3, seed=0).tolist().count(c) for c in range(3)] == [4, 3, 3]
    drawn = FEW.model_copy(update={"targets": "random", "samples": 50})
    assert (targets_of(drawn, 3, seed=0) == targets_of(drawn, 3, seed=0)).all()
    assert (targets_of(drawn, 3, seed=0) != targets_of(drawn, 3, seed=1)).any()
    sizes = []
    teacher = net()
    teacher.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    invert(teacher, FEW, SHAPE, 3, seed=0)
    assert sizes == [4] * 3 + [3] * 3 + [3] * 3


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_a_killed_inversion_ends_with_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    config = FEW.model_copy(update={"flip": True})
    whole = invert(net(), config, SHAPE, 3, seed=5, bounds=BOUNDS)
    file = tmp_path / "work" / "images.safetensors"
    ticks = []

    def tick(done: int, total: int, note: str) -> None:
        ticks.append((done, total))
        if len(ticks) == math.ceil(stop_at / 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert(net(), config, SHAPE, 3, seed=5, bounds=BOUNDS, checkpoint=file, tick=tick)
    ticks.clear()
    resumed = invert(
        net(), config, SHAPE, 3, seed=5, bounds=BOUNDS, checkpoint=file, tick=lambda done, *_: ticks.append((done, 9))
    )
    assert ticks[0][0] == stop_at if stop_at % 3 == 0 else 3 * math.ceil(stop_at / 3)
    assert (resumed == whole).all()
    again = invert(net(), config, SHAPE, 3, seed=5, bounds=BOUNDS, checkpoint=file, tick=lambda *_: pytest.fail("work"))
    assert (again == whole).all()
    assert [path.name for path in file.parent.iterdir()] == ["images.safetensors"]
    assert (invert(net(), config, SHAPE, 3, seed=6, bounds=BOUNDS) != whole).any()


def test_a_killed_generator_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = Generator(samples=10, batch_size=4, epochs=3, width=4, noise=5)
    whole = generate(net(), config, SHAPE, 3, seed=5)
    file = tmp_path / "generator.safetensors"

    def tick(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(net(), config, SHAPE, 3, seed=5, checkpoint=file, tick=tick)
    assert file.exists()
    torch.manual_seed(99)
    assert (generate(net(), config, SHAPE, 3, seed=5, checkpoint=file) == whole).all()


def test_a_checkpoint_of_another_inversion_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "images.safetensors"
    invert(net(), FEW, SHAPE, 3, seed=0, checkpoint=file)
    for teacher, config, seed in (
        (net(1), FEW, 0),
        (net(), FEW.model_copy(update={"lr": 0.2}), 0),
        (net(), FEW, 1),
    ):
        with pytest.raises(ArtifactError, match="another inversion"):
            invert(teacher, config, SHAPE, 3, seed=seed, checkpoint=file)
    for content in (b"garbage", b"", file.read_bytes()[:-30]):
        file.write_bytes(content)
        with pytest.raises(ArtifactError, match="not a checkpoint of an inversion"):
            invert(net(), FEW, SHAPE, 3, seed=0, checkpoint=file)


def test_a_teacher_without_statistics_is_refused_with_the_way_out() -> None:
    torch.manual_seed(0)
    vit = build(ViT(patch=4, dim=16, depth=1, heads=2), SHAPE, 3)
    with pytest.raises(ModelError, match=r"no BatchNorm with stored statistics.*\n.*generator with statistics 0"):
        invert(vit, FEW, SHAPE, 3, seed=0)
    few = Generator(samples=4, batch_size=4, epochs=1, width=4, noise=5)
    with pytest.raises(ModelError, match="no BatchNorm"):
        generate(vit, few.model_copy(update={"statistics": 1.0}), SHAPE, 3, seed=0)
    assert generate(vit, few, SHAPE, 3, seed=0).shape == (4, *SHAPE)
    folded = net().eval()
    fold_batchnorm(folded, SHAPE)
    with pytest.raises(ModelError, match="before folding"):
        invert(folded, FEW, SHAPE, 3, seed=0)
    forgetful = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())
    with pytest.raises(ModelError, match="no BatchNorm with stored statistics"):
        invert(forgetful, FEW, SHAPE, 3, seed=0)


def test_a_quantized_teacher_is_refused() -> None:
    from edgewise.compress.quantization.insert import insert_quantizers

    quantized = insert_quantizers(net().eval(), np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32))
    with pytest.raises(ModelError, match=r"quantized.*\n.*float teacher"):
        invert(quantized, FEW, SHAPE, 3, seed=0)


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 2 classes"):
        invert(net(), FEW, SHAPE, 1, seed=0)
    with pytest.raises(ModelError, match="at least 2 classes"):
        generate(net(), Generator(), SHAPE, 1, seed=0)
    with pytest.raises(ModelError, match=r"expected the teacher to answer \(4, 5\), got \(4, 3\)"):
        invert(net(), FEW, SHAPE, 5, seed=0)
    with pytest.raises(ModelError, match="5 classes"):
        generate(net(), Generator(samples=4, batch_size=4, epochs=1, width=4), SHAPE, 5, seed=0)
    with pytest.raises(ModelError, match="both a student and a weight"):
        invert(net(), FEW, SHAPE, 3, seed=0, student=net(1))
    with pytest.raises(ModelError, match="both a student and a weight"):
        invert(net(), FEW.model_copy(update={"compete": 1.0}), SHAPE, 3, seed=0)
    with pytest.raises(ModelError, match="expected 2 bounds"):
        invert(net(), FEW, SHAPE, 3, seed=0, bounds=((0.0, 1.0),))
    with pytest.raises(ModelError, match="at least one batch of 256 images, got 100"):
        generate(net(), Generator(samples=100), SHAPE, 3, seed=0)
    with pytest.raises(ModelError, match="no longer finite"):
        invert(net(), FEW.model_copy(update={"l2": 1e38, "lr": 1e30}), SHAPE, 3, seed=0)
    with pytest.raises(ValidationError):
        Inversion(samples=0)


def test_competition_moves_images_to_where_the_student_disagrees(digits: tuple[Task, nn.Module]) -> None:
    task, teacher = digits
    student = pupil(task, width=4, epochs=3)
    before = state(student)
    likeness = []
    for weight in (0.0, 20.0):
        config = Inversion(samples=20, steps=60, compete=weight)
        rival = student if weight else None
        images = torch.from_numpy(invert(teacher, config, task.input_shape, 10, seed=0, student=rival))
        with torch.no_grad(), frozen(teacher, student):
            likeness.append(1 - js_divergence(student(images), teacher(images), temperature=3.0).item())
    assert likeness[1] < likeness[0] - 0.1
    assert unchanged(student, before)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (2, 1, 1)])
def test_the_generator_gives_any_size(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = ImageGenerator(6, 4, shape)
    out = model(torch.randn(5, 6, 1, 1))
    assert out.shape == (5, *shape)
    assert torch.isfinite(out).all()


DISTILL = Distill(
    kind="distill",
    fit=Fit(epochs=25, batch_size=50, optimizer=Sgd(lr=0.1)),
    cross_entropy=0.0,
    losses=(KD(weight=1.0, temperature=4.0),),
)


@pytest.mark.parametrize(
    ("make", "least"),
    [
        (Inversion(samples=300, batch_size=150, steps=80), 0.7),
        (Generator(samples=500, batch_size=100, epochs=20, width=16, noise=32, statistics=1.0), 0.7),
    ],
    ids=["inversion", "generator"],
)
def test_a_student_learns_real_digits_from_images_that_no_one_wrote(
    digits: tuple[Task, nn.Module], make: Inversion | Generator, least: float
) -> None:
    task, teacher = digits
    torch.manual_seed(1)
    student = build(CifarResNet(depth=8, width=8), task.input_shape, 10)
    split, history = distill_data_free(
        student,
        teacher,
        make,
        DISTILL,
        task.input_shape,
        10,
        seed=0,
        augment=Augment(crop=1),
        bounds=bounds_of(task.splits["train"]),
    )
    assert len(split.ids) == make.samples
    assert len(history) == 25
    assert accuracy(teacher, task) > 0.9
    assert accuracy(student, task) > least


def test_competing_images_come_in_two_rounds_and_resume(tmp_path: Path) -> None:
    def run(scratch: Path | None, stop_after: int | None = None) -> tuple[Synthetic, dict[str, torch.Tensor]]:
        torch.manual_seed(3)
        student = build(CifarResNet(depth=8, width=4), SHAPE, 3)
        calls = []

        def tick(done: int, total: int, note: str) -> None:
            calls.append(note)
            if len(calls) == stop_after:
                raise KeyboardInterrupt

        made, _ = distill_data_free(
            student,
            net(),
            FEW.model_copy(update={"compete": 1.0}),
            DISTILL.model_copy(update={"fit": Fit(epochs=2, batch_size=5, optimizer=Sgd(lr=0.05))}),
            SHAPE,
            3,
            seed=0,
            scratch=scratch,
            tick=tick,
        )
        return made, state(student)

    whole, weights = run(None)
    assert len(set(whole.ids)) == 10
    assert whole.ids[5].startswith("compete-")
    assert len({image.tobytes() for image in whole.images}) == 10
    for stop_after in (1, 3, 5, 7):
        scratch = tmp_path / str(stop_after)
        with pytest.raises(KeyboardInterrupt):
            run(scratch, stop_after)
        resumed, again = run(scratch)
        assert (resumed.images == whole.images).all()
        assert all(torch.equal(again[name], value) for name, value in weights.items())
