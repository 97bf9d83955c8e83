"""Slices of the samples: where labels come from, who is judged, and which slices got worse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as other

from edgewise.bench.gate import gate
from edgewise.bench.gate.config import Budget
from edgewise.bench.gate.slices import holm, worse_p
from edgewise.bench.record import Results, load_results
from edgewise.bench.slices import Labels, keep, labels_of, named, read_table
from edgewise.errors import ArtifactError, RecipeError

MadeUp = Callable[..., Results]
N = 2000


def _split(results: Results) -> Results:
    """``kind``: 1,500 of day, 450 of night, 50 of fog, in that order."""
    (results.folder / "ids.txt").write_text("".join(f"s{i}\n" for i in range(N)))
    return keep(results, {"kind": named(["day"] * 1500 + ["night"] * 450 + ["fog"] * 50)})


def _lost(day: int, night: int, fog: int) -> Any:
    right = np.ones(N, np.float32)
    right[:day] = right[1500 : 1500 + night] = right[1950 : 1950 + fog] = 0
    return right


def _budget(**limits: Any) -> Budget:
    return Budget.model_validate({"slices": {"by": "kind", **limits}})


def test_each_slice_has_its_own_n_and_interval(made_up: MadeUp) -> None:
    results = _split(made_up({"small": {"scores": _lost(day=0, night=45, fog=0)}}))
    verdict = gate(_budget(max_accuracy_drop_pp=5), results)
    found = {check.slice: check for check in verdict.checks}
    assert {name: (check.status, check.n, check.gating) for name, check in found.items()} == {
        "kind=day": ("PASS", 1500, True),
        "kind=night": ("FAIL", 450, True),  # 10 % lost, and 2.25 % of all: a mean would have hidden it
        "kind=fog": ("INCONCLUSIVE", 50, False),
    }
    assert verdict.status == "FAIL"
    assert gate(Budget(max_accuracy_drop_pp=5), results).status == "PASS"
    night = found["kind=night"]
    assert (night.value, night.margin, night.baseline) == (10, 5, "teacher")


def test_a_slice_under_min_n_is_told_and_decides_nothing(made_up: MadeUp) -> None:
    results = _split(made_up({"small": {"scores": _lost(day=0, night=0, fog=50)}}))
    verdict = gate(_budget(max_accuracy_drop_pp=5), results)
    fog = next(check for check in verdict.checks if check.slice == "kind=fog")
    assert (fog.status, fog.gating, fog.held, fog.value) == ("FAIL", False, True, 100)
    assert (verdict.status, verdict.exit_code) == ("PASS", 0)
    assert gate(_budget(max_accuracy_drop_pp=5, min_n=50), results).status == "FAIL"


def test_only_names_slices_and_a_wrong_name_is_refused(made_up: MadeUp) -> None:
    results = _split(made_up({"small": {}}))
    checks = gate(_budget(max_accuracy_drop_pp=5, only=["night"]), results).checks
    assert [check.slice for check in checks] == ["kind=night"]
    with pytest.raises(RecipeError, match=r"no sample has kind dusk(.|\n)*there are day, fog, night"):
        gate(_budget(max_accuracy_drop_pp=5, only=["dusk"]), results)
    with pytest.raises(RecipeError, match="not split by 'weather', but by: kind"):
        gate(Budget.model_validate({"slices": {"by": "weather", "min_accuracy": 0.5}}), results)


def test_several_limits_on_slices(made_up: MadeUp) -> None:
    results = _split(made_up({"small": {"scores": _lost(day=0, night=45, fog=0)}}))
    limits = [{"by": "kind", "min_accuracy": 0.95, "only": ["day"]}, {"by": "kind", "max_accuracy_drop_pp": 20}]
    checks = gate(Budget.model_validate({"slices": limits}), results).checks
    assert [(check.check, check.slice) for check in checks] == [
        ("min_accuracy", "kind=day"),
        *(("max_accuracy_drop_pp", f"kind={name}") for name in ("day", "fog", "night")),
    ]


def test_slices_that_got_worse_are_named_after_holm(made_up: MadeUp) -> None:
    results = _split(made_up({"small": {"scores": _lost(day=2, night=9, fog=1)}}))
    warnings = [text for text in gate(_budget(max_accuracy_drop_pp=5), results).warnings if "worse" in text]
    (told,) = warnings
    # 9 lost and none won: 2^-9, times the three slices; 2 lost of the day are no news
    assert f"p = {3 * 2**-9:.3f}" in told
    assert "small answers kind=night worse than teacher: 2.00 pp of 450 samples" in told


def test_holm_gives_the_worked_example() -> None:
    # Holm's step-down: 4 x .005, 3 x .01, then never less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_errs_at_most_once_in_twenty_families() -> None:
    random = np.random.default_rng(1)
    wrong = np.mean([min(holm(list(random.random(8)))) <= 0.05 for _ in range(2000)])
    assert 0.03 <= wrong <= 0.065


def test_the_p_value_of_worse_is_mcnemars_one_sided_one() -> None:
    theirs = np.ones(30, np.float32)
    for lost in (1, 4, 9):
        mine = (np.arange(30) >= lost).astype(np.float32)
        assert worse_p(theirs, mine) == pytest.approx(other.binomtest(lost, lost, 0.5, "greater").pvalue)
    assert worse_p(theirs, theirs) == 1
    random = np.random.default_rng(0)
    graded, less = random.random(400).astype(np.float32), 0.0
    noise = random.normal(0, 0.1, 400).astype(np.float32)
    theory = other.ttest_1samp((graded - (graded + noise - less)).astype(float), 0, alternative="greater").pvalue
    assert worse_p(graded, graded + noise) == pytest.approx(theory, abs=0.01)


def test_labels_come_back_as_they_were_kept(made_up: MadeUp) -> None:
    results = _split(made_up({"small": {}}))
    results = keep(results, {"class": Labels(np.arange(N) % 3, ("cat", "dog", "owl", "never"))})
    again = load_results(results.folder)
    assert again.slices == {"kind": "slices/kind.npy", "class": "slices/class.npy"}
    found = labels_of(again, "class")
    assert found is not None
    assert {name: int(inside.sum()) for name, inside in found.where().items()} == {"cat": 667, "dog": 667, "owl": 666}
    assert labels_of(again, "weather") is None
    (results.folder / "slices/class.json").write_text(json.dumps(["cat"]))
    with pytest.raises(ArtifactError, match="can't read the slices by class"):
        labels_of(again, "class")


def test_labels_from_a_table_are_found_by_id_in_any_order(made_up: MadeUp, tmp_path: Path) -> None:
    results = _split(made_up({"small": {"scores": _lost(day=0, night=45, fog=0)}}))
    table = tmp_path / "light.csv"
    rows = [f"s{i},{'dark' if 1500 <= i < 1950 else 'bright'},x" for i in reversed(range(N))]
    table.write_text("id,light,rest\n" + "\n".join(rows) + "\nnobody,dark,x\n")
    budget = Budget.model_validate({"slices": {"by": "light", "file": table, "max_accuracy_drop_pp": 5}})
    found = {check.slice: (check.status, check.n) for check in gate(budget, results).checks}
    assert found == {"light=bright": ("PASS", 1550), "light=dark": ("FAIL", 450)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,light\na,b\n", "expected the columns 'id' and 'light', got"),
        ("id,light\ns0,x\ns0,y\n", "the id 's0' stands twice"),
        ("id,light\ns0,x\n", "1 of 2 samples are not in it, the first is 's1'"),
        ("", "expected the columns"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(RecipeError, match=told):
        read_table(tmp_path / "t.csv", "light", ["s0", "s1"])
    with pytest.raises(RecipeError, match="can't read the slices"):
        read_table(tmp_path / "none.csv", "light", ["s0"])
