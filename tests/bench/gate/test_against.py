"""Against the release before: pairs by id, and two baselines that must both hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.bench import stats
from edgewise.bench.gate import Check, Release, gate
from edgewise.bench.gate.against import SIDE_BY_SIDE, release_name
from edgewise.bench.gate.config import Budget, ReleaseLimit
from edgewise.bench.record import Energy, Results
from edgewise.bench.slices import Labels, keep

MadeUp = Callable[..., Results]
N = 2000


def _stored(results: Results, folder: Path, scores: Any, ids: list[str], name: str = "small") -> Results:
    """What the release before has kept: its scores in its own folder, by its own ids."""
    (folder / "answers").mkdir(parents=True)
    np.save(folder / "answers/small.scores.npy", np.asarray(scores, np.float32))
    (folder / "ids.txt").write_text("".join(f"{one}\n" for one in ids))
    answers = replace(results.answers["small"], samples=len(scores), scores="answers/small.scores.npy")
    return replace(
        results,
        folder=folder,
        files=tuple(replace(file, name=name) if file.name == "small" else file for file in results.files),
        answers={"small": answers},
        slices={},
    )


def _ids(results: Results, ids: list[str]) -> Results:
    (results.folder / "ids.txt").write_text("".join(f"{one}\n" for one in ids))
    return results


def _judged(limits: dict[str, Any], results: Results, release: Release) -> dict[str, Check]:
    verdict = gate(Budget.model_validate({"release": limits}), results, release=release)
    return {check.check.removeprefix("release."): check for check in verdict.checks}


NAMES = [f"s{place}" for place in range(N)]


def test_answers_are_paired_by_id_in_whatever_order(made_up: MadeUp, scores: Any, tmp_path: Path) -> None:
    results = _ids(made_up({"small": {"scores": scores(30)}}), NAMES)  # s0 .. s29 wrong
    # The release had s10 .. s1999 and 500 others, in reverse order; s10 .. s19 were wrong then.
    then_ids = [*reversed(NAMES[10:]), *(f"old{place}" for place in range(500))]
    then_scores = [0.0 if name in {f"s{place}" for place in range(10, 20)} else 1.0 for name in then_ids]
    release = Release("r1", _stored(results, tmp_path / "then", then_scores, then_ids))
    found = _judged({"max_accuracy_drop_pp": 1.0, "max_flip_rate": 0.02}, results, release)
    drop = found["max_accuracy_drop_pp"]
    truth = stats.tango(10, 0, 1990, confidence=0.9)  # s20 .. s29
    assert (drop.value, drop.low, drop.high) == pytest.approx((100 * truth.value, 100 * truth.low, 100 * truth.high))
    assert (drop.n, drop.status, drop.margin, drop.baseline) == (1990, "PASS", 1.0, "r1: small")
    assert drop.note == "on the 1,990 of 2,000 samples that both have answered"
    assert found["max_flip_rate"].value == pytest.approx(10 / 1990)


def test_without_a_common_sample_or_a_file_of_that_name_nothing_is_claimed(
    made_up: MadeUp, scores: Any, tmp_path: Path
) -> None:
    results = _ids(made_up({"small": {"scores": scores(0)}}), NAMES)
    other = Release("r1", _stored(results, tmp_path / "a", scores(0), [f"old{place}" for place in range(N)]))
    check = _judged({"max_accuracy_drop_pp": 1.0}, results, other)["max_accuracy_drop_pp"]
    assert (check.status, check.note) == ("INVALID", "not one sample was answered by both releases")
    renamed = Release("r1", _stored(results, tmp_path / "b", scores(0), NAMES, name="tiny"))
    check = _judged({"max_size_ratio": 1.0}, results, renamed)["max_size_ratio"]
    assert (check.status, "has no file of this name, but: teacher, student, tiny" in check.note) == ("INVALID", True)


def test_ids_that_mean_other_samples_by_now_are_noticed(made_up: MadeUp, scores: Any, tmp_path: Path) -> None:
    results = _ids(made_up({"small": {"scores": scores(0)}}), NAMES)
    then = _stored(results, tmp_path / "then", scores(0), NAMES)
    labels = np.arange(N) % 3
    results = keep(results, {"class": Labels(labels, ("cat", "dog", "owl"))})
    # The same classes in another order of names are the same; the file with one image taken out is not.
    same = keep(then, {"class": Labels(2 - labels, ("owl", "dog", "cat"))})
    limits = {"max_accuracy_drop_pp": 1.0}
    assert _judged(limits, results, Release("r1", same))["max_accuracy_drop_pp"].status == "PASS"
    moved = keep(then, {"class": Labels(np.roll(labels, 1), ("cat", "dog", "owl"))})
    check = _judged(limits, results, Release("r1", moved))["max_accuracy_drop_pp"]
    assert (check.status, "of another class" in check.note) == ("INVALID", True)


def test_both_baselines_must_hold_against_slow_drift(made_up: MadeUp, scores: Any, tmp_path: Path) -> None:
    """Each release may lose 1 pp against the one before; the float file does not forget."""
    results = _ids(made_up({"small": {"scores": scores(50)}}), NAMES)  # 2.5 pp under the float file
    release = Release("r3", _stored(results, tmp_path / "then", scores(45), NAMES))  # 0.25 pp better
    budget = Budget.model_validate({"max_accuracy_drop_pp": 1.5, "release": {"max_accuracy_drop_pp": 1.0}})
    verdict = gate(budget, results, release=release)
    assert {check.check: check.status for check in verdict.checks} == {
        "max_accuracy_drop_pp": "FAIL",
        "release.max_accuracy_drop_pp": "PASS",
    }
    assert verdict.status == "FAIL"
    sudden = Release("r3", _stored(results, tmp_path / "better", scores(0), NAMES))
    wide = Budget.model_validate({"max_accuracy_drop_pp": 4.0, "release": {"max_accuracy_drop_pp": 1.0}})
    statuses = [check.status for check in gate(wide, results, release=sudden).checks]
    assert statuses == ["PASS", "FAIL"]


def test_slices_are_held_against_the_release_too(made_up: MadeUp, scores: Any, tmp_path: Path) -> None:
    results = _ids(made_up({"small": {"scores": scores(60)}}), NAMES)
    results = keep(results, {"kind": Labels((np.arange(N) >= 500).astype(np.int64), ("few", "most"))})
    release = Release("r1", _stored(results, tmp_path / "then", scores(0), NAMES))
    budget = Budget.model_validate({"slices": {"by": "kind", "max_release_drop_pp": 5}})
    found = {check.slice: check for check in gate(budget, results, release=release).checks}
    assert {name: (check.status, check.n) for name, check in found.items()} == {
        "kind=few": ("FAIL", 500),  # 12 % lost
        "kind=most": ("PASS", 1500),
    }
    assert found["kind=few"].check == "release.max_accuracy_drop_pp"


def test_without_a_release_its_limits_are_not_judged_and_that_is_said(made_up: MadeUp) -> None:
    budget = Budget.model_validate({"max_size_bytes": 10**9, "release": {"max_latency_ratio": 1.05}})
    verdict = gate(budget, made_up({"small": {}}))
    assert [check.check for check in verdict.checks] == ["max_size_bytes"]
    assert verdict.warnings == ("budget.release is not judged: no release was given",)


def _side(made_up: MadeUp, **theirs: Any) -> tuple[Results, Release]:
    """``small`` and the release's, measured side by side."""
    both = made_up({"small": {"ms": 2.0}, release_name("small"): {"ms": 2.0, **theirs}})
    names = {"small", release_name("small")}
    side = replace(both, files=tuple(replace(f, reference=None) for f in both.files if f.name in names))
    ours = replace(both, files=tuple(file for file in both.files if file.name != release_name("small")))
    return ours, Release("r1", ours, side)


@pytest.mark.parametrize(
    ("ms", "limit", "status"),
    [(2.0, 1.05, "PASS"), (1.8, 1.05, "FAIL"), (2.0, 1.0, "INCONCLUSIVE"), (4.0, 0.6, "PASS")],
)
def test_latency_is_judged_from_pairs_side_by_side(ms: float, limit: float, status: str, made_up: MadeUp) -> None:
    ours, release = _side(made_up, ms=ms)
    check = _judged({"max_latency_ratio": limit}, ours, release)["max_latency_ratio"]
    assert check.value == pytest.approx(2.0 / ms, rel=0.01)
    assert (check.status, check.counted, check.n, check.baseline) == (status, "block pairs", 24, "r1")
    assert check.margin == pytest.approx(limit - 1)
    assert ("slower than the release, beyond chance" in check.note) == (ms == 1.8)  # whatever the limit says of it


def test_a_slowdown_at_the_limit_is_told_even_where_the_verdict_is_open(made_up: MadeUp) -> None:
    ours, release = _side(made_up, ms=2.0 / 1.05)
    check = _judged({"max_latency_ratio": 1.05}, ours, release)["max_latency_ratio"]
    assert check.status == "INCONCLUSIVE"
    assert "slower than the release, beyond chance" in check.note


def test_a_stored_time_of_another_day_is_never_compared(made_up: MadeUp) -> None:
    ours, release = _side(made_up)
    limits = dict.fromkeys(SIDE_BY_SIDE, 9.0)
    found = _judged(limits, ours, replace(release, side=None))
    assert {check.status for check in found.values()} == {"INVALID"}
    assert all("side by side" in check.note for check in found.values())


def test_every_look_at_the_pairs_widens_the_interval(made_up: MadeUp) -> None:
    ours, release = _side(made_up)
    one = _judged({"max_latency_ratio": 1.05}, ours, release)["max_latency_ratio"]
    three = _judged({"max_latency_ratio": 1.05}, ours, replace(release, confidence=1 - 0.1 / 3))["max_latency_ratio"]
    assert one.low is not None
    assert one.high is not None
    assert three.low is not None
    assert three.high is not None
    assert three.low < one.low < one.high < three.high


def test_memory_may_grow_by_the_ratio_and_the_slack(made_up: MadeUp) -> None:
    for peak, status in ((50_000_000, "PASS"), (47_000_000, "PASS"), (46_000_000, "FAIL")):
        ours, release = _side(made_up, peak=peak)
        # 1.03 x 47 MB + 2 MB = 50.4 MB; 1.03 x 46 MB + 2 MB = 49.4 MB
        check = _judged({"max_memory_ratio": 1.03}, ours, release)["max_memory_ratio"]
        assert (check.status, check.limit) == (status, pytest.approx(1.03 + 2e6 / peak))


def test_load_time_is_a_mean_of_launch_pairs_with_students_interval(made_up: MadeUp) -> None:
    from scipy import stats as other

    ours, release = _side(made_up)
    assert release.side is not None
    mine, theirs = (4e6, 6e6, 5e6), (4e6, 4e6, 4e6)
    for name, times in (("small", mine), (release_name("small"), theirs)):
        old = release.side.measurements[name]
        launches = tuple(
            replace(one, phases={**one.phases, "load": replace(one.phases["load"], duration_ns=int(time))})
            for one, time in zip(old.launches, times, strict=True)
        )
        release.side.measurements[name] = replace(old, launches=launches)
    check = _judged({"max_load_ratio": 1.5}, ours, release)["max_load_ratio"]
    logs = np.log(np.array(mine) / np.array(theirs))
    low, high = np.exp(other.t.interval(0.9, 2, logs.mean(), logs.std(ddof=1) / np.sqrt(3)))
    assert (check.value, check.low, check.high) == pytest.approx((np.exp(logs.mean()), low, high))
    assert (check.n, check.counted, check.status) == (3, "launch pairs", "INCONCLUSIVE")


def test_energy_and_size_ratios(made_up: MadeUp) -> None:
    ours, release = _side(made_up, size=90_000)
    assert release.side is not None
    then = replace(ours, files=tuple(replace(f, size_bytes=90_000) if f.name == "small" else f for f in ours.files))
    release = replace(release, results=then)
    check = _judged({"max_size_ratio": 1.1}, ours, release)["max_size_ratio"]
    assert (check.status, check.value) == ("FAIL", pytest.approx(100 / 90))
    assert _judged({"max_energy_ratio": 1.1}, ours, release)["max_energy_ratio"].status == "INVALID"
    assert release.side is not None
    for name, joules in (("small", 0.0102), (release_name("small"), 0.0100)):
        energy = Energy("ina3221", "VDD_IN", joules, 0.98 * joules, 1.02 * joules, 4.0, 5)
        release.side.measurements[name] = replace(release.side.measurements[name], energy=energy)
    check = _judged({"max_energy_ratio": 1.1}, ours, release)["max_energy_ratio"]
    assert (check.status, check.value, check.n) == ("PASS", pytest.approx(1.02), 5)


@pytest.mark.parametrize("confidence", [0.9, 1 - 0.1 / 3])
def test_an_energy_ratio_has_students_interval_of_the_wider_log_side(confidence: float, made_up: MadeUp) -> None:
    from scipy import stats as other

    ours, release = _side(made_up)
    assert release.side is not None
    for name, joules in (("small", 0.010), (release_name("small"), 0.010)):
        energy = Energy("ina3221", "VDD_IN", joules, 0.5 * joules, 1.5 * joules, 4.0, 3)
        release.side.measurements[name] = replace(release.side.measurements[name], energy=energy)
    limits = {"max_energy_ratio": 9.0}
    check = _judged(limits, ours, replace(release, confidence=confidence))["max_energy_ratio"]
    scale = other.t.ppf((1 + confidence) / 2, 2) / other.t.ppf(0.975, 2)
    half = np.sqrt(2) * np.log(2) * scale  # the low end is twice away, the high one 1.5 times
    assert (check.low, check.high) == pytest.approx((np.exp(-half), np.exp(half)))


@pytest.mark.parametrize("name", ["small", release_name("small")])
def test_joules_that_may_be_none_have_no_ratio(name: str, made_up: MadeUp) -> None:
    ours, release = _side(made_up)
    assert release.side is not None
    for one in ("small", release_name("small")):
        low = 0.0 if one == name else 0.009
        energy = Energy("ina3221", "VDD_IN", 0.010, low, 0.02 - low, 4.0, 3)
        release.side.measurements[one] = replace(release.side.measurements[one], energy=energy)
    check = _judged({"max_energy_ratio": 9.0}, ours, release)["max_energy_ratio"]
    assert (check.status, "told apart from idling" in check.note) == ("INVALID", True)


@pytest.mark.parametrize("flag", ["contended", "throttled", "swap"])
def test_a_disturbed_device_spoils_a_ratio_of_load_times_that_is_not_held(flag: str, made_up: MadeUp) -> None:
    ours, release = _side(made_up, flags=[flag])
    statuses = [_judged({"max_load_ratio": limit}, ours, release)["max_load_ratio"].status for limit in (0.9, 1.1)]
    assert statuses == ["INVALID", "PASS"]
    # Latencies have CPU time instead.
    assert _judged({"max_latency_ratio": 0.9}, ours, release)["max_latency_ratio"].status == "FAIL"


def test_a_file_that_breaks_when_measured_again_is_invalid(made_up: MadeUp) -> None:
    ours, release = _side(made_up)
    assert release.side is not None
    broken = replace(release.side.measurements[release_name("small")], error="it died\nhere", launches=())
    release.side.measurements[release_name("small")] = broken
    check = _judged({"max_latency_ratio": 1.05}, ours, release)["max_latency_ratio"]
    assert (check.status, "small (release), measured again: it died" in check.note) == ("INVALID", True)


def test_every_limit_against_a_release_is_judged(made_up: MadeUp, scores: Any, tmp_path: Path) -> None:
    ours, release = _side(made_up)
    ours = _ids(ours, NAMES)
    release = replace(release, results=_stored(ours, tmp_path / "then", scores(0), NAMES))
    limits = {key: 1.0 for key in ReleaseLimit.model_fields if key != "memory_slack_bytes"}
    assert set(_judged(limits, ours, release)) == set(limits)
