"""The experiments of ``benchmarks/distillation``: their plan, how processes share them, and what the tables claim."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "distillation"
MODULES = ("experiments", "jobs", "nets", "arms", "costs", "run", "summarise")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts as modules, fresh for each test and gone after it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    from importlib import import_module

    found = SimpleNamespace(**{name: import_module(name) for name in MODULES})
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name)
    return found


@pytest.fixture
def small(bench: Any, tmp_path: Path) -> Any:
    """One tiny experiment on 16x16 noise instead of the real ones; returns the place it works at."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (5096 + 64, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(len(images)) % 4
    np.savez(
        tmp_path / "d.npz", x_train=images[:5096], y_train=labels[:5096], x_test=images[5096:], y_test=labels[5096:]
    )
    x = bench.experiments
    fit = {"epochs": 1, "batch_size": 32}
    x.DATA.clear()
    x.DATA["tiny"] = x.Data("d.npz", (0.5,), (0.5,), crop=1, limit=64, views=2)
    x.NETS.clear()
    x.NETS["teacher-0"] = x.Net("tiny", 0, x.RESNET8, fit=fit)
    x.NETS["teacher-1"] = x.Net("tiny", 1, x.RESNET8, fit=fit, teacher="teacher-0", lesson=x.HINTON)
    x.NETS["pruned"] = x.Net("tiny", 0, parent="teacher-0", prune={"macs_ratio": 0.8, "round_to": 2, "criterion": "l2"})
    both = {**x.HINTON, "ensemble": {"mean": "logits"}}
    arms = {
        "ce": x.labels("labels"),
        "kd": x.taught("kd", "teacher-{seed}", [x.KD], against=("ce",)),
        "at": x.taught("at", "teacher-0", [{"kind": "at"}], against=("ce", "kd")),
        "rkd": x.taught("rkd", "teacher-0", [{"kind": "rkd_distance"}], against=("ce",)),
        "both": x.Arm("ensemble", both, ("teacher-0", "teacher-1"), against=("kd",)),
        "again": x.labels("pruned, from scratch", start="pruned", fresh=True),
        "noisy": x.labels("noise", noise=0.25),
        "broken": x.taught("no such loss", "teacher-0", [{"kind": "nonsense"}]),
    }
    x.EXPERIMENTS.clear()
    x.EXPERIMENTS["e2"] = x.Experiment("?", "tiny", fit, (0, 1), arms, fusion="both", singles=("kd", "at"))
    bench.costs.TRAIN_IMAGES["tiny"] = 64
    return bench.nets.Place(tmp_path, tmp_path / "out")


def test_every_arm_can_be_configured_and_named(bench: Any) -> None:
    place = bench.nets.Place(Path("data"), Path("out"))
    for name, experiment in bench.experiments.EXPERIMENTS.items():
        assert experiment.data in bench.experiments.DATA
        for arm, settings in experiment.arms.items():
            run = bench.jobs.Run(name, arm, 0)
            bench.arms.settings(place, run)  # raises where a loss or a field is not known
            assert set(settings.nets(0)) <= set(bench.experiments.NETS)
            assert set(settings.against) <= set(experiment.arms) - {arm}
        assert set(experiment.singles) <= set(experiment.arms)


def test_a_seed_is_finished_before_the_next(bench: Any) -> None:
    names = list(bench.experiments.EXPERIMENTS)
    runs = bench.jobs.runs(names, None)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(set(runs)) == len(runs)
    asked = sum(
        len(e.seeds if arm.seeds is None else arm.seeds)
        for e in bench.experiments.EXPERIMENTS.values()
        for arm in e.arms.values()
    )
    assert len(runs) == asked
    shares = [bench.run.chosen_runs("all", None, (i, 3)) for i in (1, 2, 3)]
    assert sorted(run.name for share in shares for run in share) == sorted(run.name for run in runs)


def test_what_a_run_needs_stands_before_it(bench: Any, tmp_path: Path) -> None:
    place = bench.nets.Place(tmp_path, tmp_path / "out")
    jobs = bench.run.jobs(place, bench.run.chosen_runs("all", None, (1, 1)))
    seen: set[Path] = set()
    for job in jobs:
        assert set(job.needs) <= seen, job.name
        seen.add(job.target)
    assert f"all: {len(jobs)} jobs" in bench.run.plan(jobs, 2)


def test_one_process_at_a_time_holds_a_claim(bench: Any, tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "a.lock"
    with bench.jobs.claim(lock) as mine, bench.jobs.claim(lock) as second:
        assert mine
        assert not second
    with bench.jobs.claim(lock) as mine:
        assert mine


def test_a_failed_job_stops_only_what_needs_it(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def job(name: str, *needs: str, fails: bool = False) -> Any:
        def work(tick: Any) -> None:
            if fails:
                raise RuntimeError("no luck")
            done.append(name)
            (tmp_path / name).touch()

        return bench.jobs.Job(name, tmp_path / name, tuple(tmp_path / n for n in needs), work, 1.0)

    (tmp_path / "there").touch()
    jobs = [job("there"), job("bad", fails=True), job("child", "bad"), job("late", "first"), job("first")]
    failed = bench.jobs.work_off(jobs, tmp_path, lambda _: lambda *_: None, pause_s=0.0)
    assert done == ["first", "late"]
    assert failed == ["bad", "child"]
    assert "no luck" in (tmp_path / "errors" / "bad.txt").read_text()
    assert "bad FAILED: RuntimeError: no luck" in capsys.readouterr().out


def test_noise_is_the_share_that_was_asked_for_and_always_the_same(bench: Any) -> None:
    targets = np.arange(1000) % 10
    split = SimpleNamespace(ids=tuple(map(str, range(1000))), targets=targets)
    noisy = bench.nets.Noisy(split, 0.2, 10).targets
    assert (noisy != targets).sum() == 200
    assert set(noisy) == set(range(10))
    np.testing.assert_array_equal(noisy, bench.nets.Noisy(split, 0.2, 10).targets)
    np.testing.assert_array_equal(targets, np.arange(1000) % 10)


def test_small_experiments_run_resume_and_are_told(
    bench: Any, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["e2", "--data", str(small.data), "--out", str(small.out)]
    assert bench.run.main(arguments) == 1  # one arm can't be run
    results = {path.stem: json.loads(path.read_text()) for path in (small.out / "results").glob("*.json")}
    arms = {"ce", "kd", "at", "rkd", "both", "again", "noisy"}
    assert set(results) == {f"e2.{arm}.{seed}" for arm in arms for seed in (0, 1)}
    assert results["e2.kd.0"]["answers"] == results["e2.rkd.0"]["answers"] == "kept"
    assert results["e2.at.0"]["answers"] == "live"
    assert results["e2.kd.1"]["teachers"] == ["teacher-1"]
    assert results["e2.both.0"]["config"]["ensemble_mean"] == "logits"
    assert results["e2.again.0"]["params"] < results["e2.ce.0"]["params"]
    assert not list((small.out / "checkpoints").glob("*"))

    before = {path: path.stat().st_mtime_ns for path in (small.out / "results").glob("*.json")}
    (small.out / "results" / "e2.ce.0.json").unlink()
    assert bench.run.main(arguments) == 1
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} == {"e2.ce.0.json"}
    again = json.loads((small.out / "results" / "e2.ce.0.json").read_text())
    assert again["epochs"] == results["e2.ce.0"]["epochs"]  # a seed is a seed

    capsys.readouterr()
    bench.summarise.main(["--out", str(small.out)])
    told = capsys.readouterr().out
    for arm in arms:
        assert f"| `{arm}` |" in told
    assert "Runs that failed: e2.broken.0, e2.broken.1" in told
    assert "`both` minus the best single method" in told

    x = bench.experiments
    arm = x.EXPERIMENTS["e2"].arms["kd"]
    changed = replace(arm, lesson={**arm.lesson, "cross_entropy": 0.5})
    x.EXPERIMENTS["e2"] = replace(x.EXPERIMENTS["e2"], arms={**x.EXPERIMENTS["e2"].arms, "kd": changed})
    assert bench.run.main(arguments) == 2
    assert "made with other settings: e2.kd.0.json, e2.kd.1.json" in capsys.readouterr().err


def test_kept_answers_are_the_live_teachers(bench: Any, small: Any) -> None:
    """A teacher read from disk and one that answers live teach the same, up to float16."""
    import torch

    bench.nets.make_net(small, "teacher-0")
    bench.nets.keep_answers(small, "tiny", "teacher-0", 0, "logits")
    task = bench.nets.task(small, "tiny")
    losses = {}
    for kept in (True, False):
        teacher = bench.nets.load_model(small.net("teacher-0"))[0]
        caches = (bench.nets.answers(small, "tiny", teacher, 0, "logits"),) if kept else ()
        assert all(cache.filled == 2 * 64 for cache in caches)
        student, _ = bench.nets.fresh(bench.experiments.RESNET8, task, 0)
        fit = {"epochs": 1, "batch_size": 32, "precision": "bf16-mixed"}
        epochs = bench.nets.learn(
            student,
            task.splits["train"],
            task,
            fit,
            seed=0,
            teachers=(teacher,),
            lesson=bench.experiments.HINTON,
            caches=caches,
        )
        losses[kept] = epochs[0].terms["kd"]
        for cache in caches:
            cache.close()
    assert torch.isfinite(torch.tensor(losses[True]))
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


def test_intervals_are_students(bench: Any) -> None:
    values = [61.2, 60.1, 62.7]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    got = bench.summarise.student_t(values)
    assert (got.low, got.value, got.high) == pytest.approx((low, np.mean(values), high))
    assert bench.summarise.student_t([1.0]).high == math.inf


def test_the_pooled_spread_is_that_of_an_analysis_of_variance(bench: Any) -> None:
    def runs(*values: float) -> dict[int, dict[str, float]]:
        return {seed: {"test": value} for seed, value in enumerate(values)}

    experiment = bench.experiments.EXPERIMENTS["e2"]
    known = {"ce": runs(0.5, 0.5, 0.5), "at": runs(0.51, 0.53), "sp": runs(0.50, 0.51, 0.55), "cc": runs(0.6)}
    residuals = np.array([-1.0, 1.0, -2.0, -1.0, 3.0])  # about each arm's own mean, in points
    spread = bench.summarise.pooled(experiment, known, "ce")
    assert spread.freedom == 5 - 2
    assert spread.deviation == pytest.approx(np.sqrt((residuals**2).sum() / 3))
    half = stats.t.ppf(0.975, 3) * spread.deviation / np.sqrt(2)
    interval, n = bench.summarise.paired(known["at"], known["ce"], spread)
    assert (n, interval.value) == (2, pytest.approx(2.0))
    assert interval.high - interval.value == pytest.approx(half)
    assert bench.summarise.paired(known["cc"], known["ce"], spread)[0].high == np.inf


def test_differences_are_paired_by_seed(bench: Any) -> None:
    def runs(**scores: float) -> dict[int, dict[str, float]]:
        return {int(seed[1:]): {"test": score} for seed, score in scores.items()}

    ours, theirs = runs(s0=0.61, s1=0.52, s2=0.73, s7=0.99), runs(s2=0.70, s1=0.50, s0=0.60, s5=0.01)
    gap = bench.summarise.paired(ours, theirs)
    low, high = stats.t.interval(0.95, 2, loc=2.0, scale=stats.sem([1.0, 2.0, 3.0]))
    assert (gap[0].low, gap[0].value, gap[0].high, gap[1]) == pytest.approx((low, 2.0, high, 3))
    assert bench.summarise.difference(gap, 3) == "+2.00 (-0.48 to +4.48)"
    assert bench.summarise.difference(gap, 4) == "+2.00 (-0.48 to +4.48, n=3)"
    clear = bench.summarise.paired(runs(s0=0.61, s1=0.62), runs(s0=0.50, s1=0.51))
    assert bench.summarise.difference(clear, 2).startswith("**+11.00")
    assert bench.summarise.paired(runs(s0=0.5), runs(s1=0.5)) is None
