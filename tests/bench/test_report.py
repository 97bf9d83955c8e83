"""The four forms of the report: the same numbers in each, and nothing but text from names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgewise.bench import format as say
from edgewise.bench.gate import Verdict, gate
from edgewise.bench.gate.config import Budget
from edgewise.bench.record import (
    AgreementRow,
    BundleRow,
    Context,
    GoalRow,
    JourneyRow,
    LayerRow,
    LayersRow,
    OthersRow,
    ParityRow,
    PlanRow,
    Results,
)
from edgewise.bench.report.frontier import frontier
from edgewise.bench.report.latency import latency_over_time, latency_spread
from edgewise.bench.report.layers import Line, layer_sqnr
from edgewise.bench.report.memory import memory_by_phase
from edgewise.bench.report.render import render_html
from edgewise.bench.report.scenario import load_curve
from edgewise.bench.report.write import FILES, build_page, write_report
from edgewise.bench.slices import keep, named

EVIL = "<script>alert('x')</script>|`$x$` & co"
BUDGET = Budget(max_accuracy_drop_pp=1.1, min_speedup=4, max_p50_ms=1, max_p99_ms=5)


@pytest.fixture
def told(made_up: Callable[..., Results], scores: Callable[..., Any]) -> tuple[Results, Verdict, Context]:
    results = made_up(
        {
            "small": {"scores": scores(20), "runtime": "openvino", "flags": ["contended", "drift"]},
            EVIL: {"scores": scores(25), "ms": 6.0, "runtime": "litert"},
            "dead": {"error": "dead: the process died <b>badly</b>"},
            "lame": {"error": "lame: one launch | died", "launches": 2},
        }
    )
    context = Context(
        name=EVIL,
        created="2026-01-02 03:04 UTC",
        recipe_text="name: <script>",
        journey=(
            JourneyRow("teacher", 855_770, 125_750_000, 0.9, 0.89, 0.91, 2000, 1_000_000, EVIL),
            JourneyRow("prune"),
        ),
        parity={
            "small": (ParityRow("torch, quantized", 2000, 61.25, 3, 0.1), ParityRow("student", 2000, 41.25, 7, 0.5)),
            "teacher": (ParityRow("torch", 2000, math.inf, 0, 0.0),),
        },
        integer={"small": "20 of 20 in INT8"},
        bundles=(BundleRow("tensorrt", False, "no GPU here", ("a.onnx",)),),
        notes=(EVIL,),
        versions={"torch": "2.13"},
        commands=("edgewise run a.yaml",),
    )
    return results, gate(BUDGET, results), context


class _Page(HTMLParser):
    """What a browser would find: tags, what they link to, text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "srcset", "action"):
                self.links.append(value or "")
            if key == "id":
                self.ids.append(value or "")
            assert not key.startswith("on")

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_all_forms_are_written_and_the_same_each_time(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    one, two = write_report(*told, tmp_path / "one"), write_report(*told, tmp_path / "two")
    assert tuple(one) == FILES
    for name in FILES:
        assert one[name].read_bytes() == two[name].read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(FILES)


def test_the_page_needs_nothing_and_runs_nothing(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    write_report(*told, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = _read(tmp_path / "report.html")
    assert "script" not in page.tags
    assert "b" in page.tags
    assert all(link.startswith(("#", "data:,")) for link in page.links)
    assert not re.findall(r"(?:url\(|@import|https?:)(?!#)(?!//www\.w3\.org/)[^)\s]*", text)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 4  # frontier, spread, over time, memory
    assert EVIL in page.text  # as text, whole
    assert "<b>badly</b>" in page.text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_number_shown_is_the_one_in_the_json(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    write_report(*told, tmp_path)
    page = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    shown = " ".join(_read(tmp_path / "report.html").text.split())
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    units = {
        "p50_ms": "ms",
        "p90_ms": "ms",
        "p99_ms": "ms",
        "speedup": "x",
        "speedup_parent": "x",
        "qps": "per s",
        "accuracy": "fraction",
        "drop_pp": "pp",
    }
    compared = 0
    for file in page["files"]:
        assert say.size(file["size_bytes"]) in shown
        assert say.size(file["size_bytes"]) in markdown
        for key, unit in units.items():
            if file[key]:
                shown_as = [say.quantity(file[key]["value"], unit), say.span(file[key], unit)]
                if key.startswith("speedup") and file[key]["low"] <= 1 <= file[key]["high"]:
                    shown_as = [say.versus(file[key])]
                for text in shown_as:
                    assert text in shown, (key, text)
                    assert text in markdown, (key, text)
                    compared += 1
        for key in ("load_ms", "first_ms"):
            if file[key]:
                assert say.duration(file[key]["value"]) in shown
                assert f"| {say.duration(file[key]['value'])} |" in markdown
                compared += 1
    assert compared > 40
    for check in page["verdict"]["checks"]:
        assert check["status"] in shown
        assert say.limit_words(check["check"], check["limit"], check["unit"]) in shown
    for row in (
        "855,770",
        "126 M",
        "90.00 %",
        "41.2 dB",
        "61.2 dB",
        "exact",
        "7 of 2,000",
        "3 of 2,000",
        "no GPU here",
    ):
        assert row in shown
        assert row in markdown
    for row in ("20 of 20 in INT8", "torch, quantized", "lame: one launch"):
        assert row in shown
        assert row in markdown


def test_json_holds_what_was_measured(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    results, verdict, context = told
    page = build_page(results, verdict, context, tmp_path)
    json.dumps(page, allow_nan=False)
    files = {file["name"]: file for file in page["files"]}
    small = files["small"]
    assert small["p50_ms"]["value"] == pytest.approx(2.0, rel=0.01)
    assert small["speedup"]["low"] < 5 < small["speedup"]["high"] * 1.02
    assert small["speedup_parent"]["value"] == pytest.approx(2, rel=0.02)
    assert small["size_ratio"] == 10
    assert (small["lost"], small["won"], small["flips"]) == (20, 0, 20)
    assert small["drop_pp"]["value"] == pytest.approx(1.0)
    assert small["accuracy"]["value"] == pytest.approx(0.99)
    assert small["qps"]["value"] == pytest.approx(500, rel=0.02)
    assert small["peak_memory_bytes"] == 50_000_000
    assert small["sqnr_db"] == 41.25
    assert files["teacher"]["sqnr_exact"]
    assert files["dead"]["p50_ms"] is None
    assert "died" in files["dead"]["error"]
    assert files[EVIL]["versus_float"] == "slower"
    assert not any("SLOWER" in warning for warning in page["warnings"])  # its row tells, once
    assert [name for name, file in files.items() if file["in_short"]] == ["small", EVIL, "dead", "lame"]
    assert [row["start_s"] for row in small["timeline"]] == [None] * 24
    assert sum(small["histogram"]) == small["runs"] == sum(row["runs"] for row in small["timeline"])
    assert len(page["bin_edges_ms"]) == len(small["histogram"]) + 1


def test_a_file_did_not_run_only_if_it_never_ran(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    write_report(*told, tmp_path)
    page = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    runs = {file["name"]: file["runs"] for file in page["files"]}
    assert runs["dead"] is None
    assert runs["lame"] == 2 * 8 * 60
    assert "lame: lame: one launch | died" in page["notes"]
    for text in (_read(tmp_path / "report.html").text, (tmp_path / "report.md").read_text(encoding="utf-8")):
        # Once in short and once in the table, both about the dead file.
        assert text.count("did not run") == 2


def test_on_a_busy_machine_the_speed_up_shown_is_of_cpu_time(made_up: Callable[..., Results], tmp_path: Path) -> None:
    teacher = {"ms": 10.0, "role": "reference", "precision": "float32", "cut": 2.0, "flags": ["contended"]}
    for threads, shown in ((1, "on CPU time"), (2, "machine was busy")):
        row = {"threads": threads}
        results = made_up({"teacher": {**teacher, **row}, "small": row})
        write_report(results, None, Context("busy", "now"), tmp_path)
        (small,) = (f for f in json.loads((tmp_path / "report.json").read_text())["files"] if f["name"] == "small")
        assert small["speedup_wall"]["value"] == pytest.approx(10, rel=0.02)
        if threads == 1:
            assert small["speedup"]["value"] == pytest.approx(5, rel=0.02)
            assert small["speedup_clock"] == "cpu"
        else:
            assert small["speedup"] is None
        html, markdown = _read(tmp_path / "report.html").text, (tmp_path / "report.md").read_text(encoding="utf-8")
        for text in (html, markdown):
            assert shown in text
            assert say.ratio(small["speedup_wall"]["value"]) not in text
            assert "ratios hold" not in text


def test_no_path_of_this_machine_is_told(made_up: Callable[..., Results], tmp_path: Path) -> None:
    results = made_up({"small": {}})
    inside = replace(results.file("small"), path=str(tmp_path / "run/stages/a/model.onnx"))
    results = replace(results, files=(*results.files[:-1], inside))
    write_report(results, None, Context("plain", "now"), tmp_path / "run")
    paths = {f["name"]: f["path"] for f in json.loads((tmp_path / "run/report.json").read_text())["files"]}
    assert paths == {"teacher": "teacher.onnx", "student": "student.onnx", "small": "stages/a/model.onnx"}
    for name in FILES:
        assert str(tmp_path) not in (tmp_path / "run" / name).read_text(encoding="utf-8")


def test_slices_that_say_nothing_are_counted_and_not_shown(made_up: Callable[..., Results], tmp_path: Path) -> None:
    plenty = [f"plenty {i % 3}" for i in range(1964)]  # 2,000 samples
    rare = [f"rare {i // 9}" for i in range(36)]  # four of nine samples each
    tens = [f"{i // 10:03}" for i in range(2000)]
    results = keep(made_up({"small": {}}), {"kind": named(plenty + rare), "ten": named(tens)})
    write_report(results, None, Context("run", "now"), tmp_path)
    found = [row["slice"] for row in json.loads((tmp_path / "report.json").read_text())["slices"]]
    assert found == [f"kind=plenty {i}" for i in range(3)] + [f"ten={i:03}" for i in range(200)]
    line = "slices by kind without a row here: 4 have fewer than 10 samples"
    for form in ("report.md", "report.html"):
        assert line in (tmp_path / form).read_text()
        assert "slices by ten" not in (tmp_path / form).read_text()


def test_threads_that_nobody_checked_are_noted(made_up: Callable[..., Results], tmp_path: Path) -> None:
    results = made_up({"small": {"runtime": "litert"}})
    launches = results.measurements["small"].launches
    blind = tuple(replace(one, settings={"threads": 1, "threads_read_back": False}) for one in launches)
    results.measurements["small"] = replace(results.measurements["small"], launches=blind)
    write_report(results, None, Context("plain", "now"), tmp_path)
    assert "litert doesn't tell how many threads it uses: 1 asked for" in _read(tmp_path / "report.html").text


def test_markdown_tables_stay_whole(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    write_report(*told, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in text
    lines = text.splitlines()
    tables = [i for i, line in enumerate(lines) if re.fullmatch(r"\|(-+:?\|)+", line)]
    assert len(tables) == 7
    for start in tables:
        columns = lines[start].count("|")
        rows = [lines[start - 1]]
        for line in lines[start + 1 :]:
            if not line.startswith("|"):
                break
            rows.append(line)
        assert len(rows) > 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)\|", row)) == columns, row


def test_junit_says_which_check_failed_and_why(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    _, verdict, _ = told
    write_report(*told, tmp_path)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases) == len(verdict.checks)
    tags = {"PASS": None, "FAIL": "failure", "INVALID": "error", "INCONCLUSIVE": "failure"}
    for case, check in zip(cases, verdict.checks, strict=True):
        assert (case.attrib["classname"], case.attrib["name"]) == (check.file, check.check)
        children = {child.tag for child in case} - {"properties"}
        assert children == ({tags[check.status]} if tags[check.status] else set())
        stored = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        assert stored["status"] == check.status
        assert float(stored["limit"]) == check.limit
    assert {check.status for check in verdict.checks} == set(tags)
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[attribute]) == sum(tags[check.status] == tag for check in verdict.checks)


def test_junit_holds_names_that_xml_can_not(made_up: Callable[..., Results], tmp_path: Path) -> None:
    results = made_up({"bell\x07\x1b": {}})
    write_report(results, gate(BUDGET, results), Context("n\x00me", "now"), tmp_path)
    assert ElementTree.parse(tmp_path / "junit.xml").getroot()[0].attrib["name"] == "n\N{REPLACEMENT CHARACTER}me"


def test_a_difference_that_nothing_shows_is_not_told_as_one(made_up: Callable[..., Results], tmp_path: Path) -> None:
    results = made_up({"same": {"ms": 4.0}})
    write_report(results, None, Context("same", "now"), tmp_path)
    page = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    (same,) = (file for file in page["files"] if file["name"] == "same")
    assert same["versus_float"] == "unclear"
    for text in (_read(tmp_path / "report.html").text, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert re.search(r"no difference shown \(\d\.\d+× to 1\.0\d×\)", text)
        assert "SLOWER" not in text


def test_the_page_is_made_of_the_json_alone(told: tuple[Results, Verdict, Context], tmp_path: Path) -> None:
    write_report(*told, tmp_path)
    page = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert render_html(page) == (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_a_budget_nothing_is_judged(made_up: Callable[..., Results], tmp_path: Path) -> None:
    results = made_up({"slow": {"ms": 9.0}})
    write_report(results, None, Context("plain", "now"), tmp_path)
    text = _read(tmp_path / "report.html").text
    assert "NOT JUDGED" in text
    assert "SLOWER THAN FLOAT: slow" in " ".join(text.split())
    assert ElementTree.parse(tmp_path / "junit.xml").getroot()[0].attrib["tests"] == "0"


def test_tails_below_their_floor_are_not_told(made_up: Callable[..., Results], tmp_path: Path) -> None:
    results = made_up({"small": {}}, runs=10)
    write_report(results, None, Context("few", "now"), tmp_path)
    shown = _read(tmp_path / "report.html").text
    assert "n/a (needs >= 662)has 240" in shown
    assert "n/a (needs &gt;= 662), has 240" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_plots_hold_names_as_text_and_draw_nothing_without_points() -> None:
    point = {"value": 1.0, "low": 0.9, "high": 1.1}
    row = {
        "name": EVIL,
        "runtime": "onnxruntime",
        "role": "candidate",
        "p50_ms": point,
        "accuracy": {**point, "value": 0.9, "low": 0.8, "high": 0.95},
    }
    svg = frontier([row], "<accuracy>", [EVIL])
    assert svg is not None
    found = _Page()
    found.feed(svg)
    assert EVIL in found.text
    assert "#a0b0" not in svg
    assert "var(--series-1)" in svg
    ElementTree.fromstring(svg)
    assert frontier([{**row, "p50_ms": None}], "accuracy", []) is None
    assert latency_spread([{**row, "histogram": None}], []) is None
    assert latency_over_time([{**row, "timeline": []}]) is None
    assert memory_by_phase([{**row, "phases": None}]) is None
    assert load_curve([]) is None


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (say.duration(0.1194), "119 µs"),
        (say.duration(2.308), "2.31 ms"),
        (say.duration(1234), "1.23 s"),
        (say.duration(0.9994), "999 µs"),
        (say.duration(0.9999), "1.00 ms"),
        (say.duration(999.9), "1.00 s"),
        (say.plain(9.999), "10.0"),
        (say.plain(0.09996), "0.100"),
        (say.plain(99.96), "100"),
        (say.size(999_999), "1.00 MB"),
        (say.size(999_999_999), "1.00 GB"),
        (say.size(1000), "1.00 kB"),
        (say.count(9_999_999_999), "10.0 G"),
        (say.count(9_876_543), "9,876,543"),
        (say.size(323_401), "323 kB"),
        (say.size(999), "999 B"),
        (say.ratio(3.1249), "3.12×"),
        (say.faster(0.5), "2.00× slower"),
        (say.smaller(12.3), "12.3× smaller"),
        (say.percent(0.88712), "88.71 %"),
        (say.points(-0.004), "0.00 pp"),
        (say.points(-0.42), "−0.42 pp"),
        (say.count(125_750_000), "126 M"),
        (say.count(855_770), "855,770"),
        (say.roughly(1_669_291), "1,700,000"),
        (say.span({"low": 2.2, "high": 2.45}, "ms"), "2.20 to 2.45 ms"),
        (say.span({"low": 0.9, "high": 1.2}, "ms"), "900 µs to 1.20 ms"),
        (say.span({"low": 3.03, "high": 3.16}, "x"), "3.03 to 3.16×"),
        (say.quantity(None, "ms"), "n/a"),
        (say.headline(["PASS", "PASS"]), "All 2 limits hold, with the whole interval."),
        (say.headline(["PASS", "FAIL"]), "Of 2 checks: 1 over the limit, 1 within the limit."),
    ],
)
def test_numbers_are_said_as_people_read_them(said: str, text: str) -> None:
    assert said == text


LAYERS = LayersRow(
    against=f"torch, {EVIL}",
    n=16,
    rows=(
        LayerRow("input", 41.25, 0.01, (3, 8, 8)),
        LayerRow(f"conv1 {EVIL}", 33.5, 0.1, (8, 8, 8)),
        LayerRow("conv2", 4.75, 2.5, (8, 8, 8)),
        LayerRow("linear", None, None, (10,)),
        LayerRow("same", None, 0.0, (10,), exact=True),
    ),
    flips=3,
    first_bad="conv2",
    why="4.8 dB; what it reads still had 33.5 dB",
    unmatched=2,
    floor_db=10.0,
)


@pytest.fixture
def inspected(told: tuple[Results, Verdict, Context]) -> tuple[Results, Verdict, Context]:
    results, verdict, context = told
    fine = replace(LAYERS, first_bad=None, why="", rows=LAYERS.rows[:2])
    context = replace(
        context,
        layers={"small": LAYERS, EVIL: fine},
        agreement=(AgreementRow("small", EVIL, 2000, 1990), AgreementRow("small", "lame", 2000, 1900, LAYERS)),
        integer_macs_share={"small": 0.9375, EVIL: 1.0},
        float_layers={"small": (EVIL, "conv9")},
        failed={"tensorrt-int8": f"the converter was ended by SIGSEGV {EVIL}"},
        picked="small",
        picked_why="p50 2 ms, the fastest",
        plan=(
            PlanRow("conv1", "float32", 123_456, 12.5, 40, 31.25, 4, 500),
            PlanRow(EVIL, "int8", 1000, None, 0, 18.75, 9, 500),
        ),
        plan_note="1 layer stays in float",
        goals=(GoalRow("1-prune", "0.5 of the p50", "0.62", False), GoalRow(EVIL, "half", "n/a", None)),
        others=(
            OthersRow("distill", {"f1": {"value": 0.912, "low": 0.9, "high": 0.923}}),
            OthersRow(
                EVIL, {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}, EVIL: {"value": -1.0, "low": -1.0, "high": -1.0}}
            ),
        ),
    )
    return results, verdict, context


def test_layers_agreement_plan_and_goals_are_in_every_form(
    inspected: tuple[Results, Verdict, Context], tmp_path: Path
) -> None:
    write_report(*inspected, tmp_path)
    page = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    html = _read(tmp_path / "report.html")
    shown, markdown = " ".join(html.text.split()), (tmp_path / "report.md").read_text(encoding="utf-8")
    small = next(row for row in page["layers"] if row["file"] == "small")
    assert small["first_bad"] == "conv2"
    assert [row["name"] for row in small["worst"]] == ["linear", "conv2", f"conv1 {EVIL}"]
    assert [row["same"] for row in page["agreement"]] == [1990, 1900]
    assert page["agreement"][0]["layers"] is None
    for text in (shown, markdown):
        for told in (
            *("conv2", "4.8 dB", "33.5 dB", "not finite", "4.8 dB; what it reads"),  # layers
            *("99.50 %", "95.00 %", "1,900 of 2,000"),  # agreement
            *("93.75 %", "100.00 %", "conv9"),  # share of MACs
            *("123,456", "12.5 dB", "31.2 dB", "exact", "18.8 dB", "1 layer stays in float"),  # plan
            *("0.5 of the p50", "0.62", "NO", "the fastest", "SIGSEGV"),
            *("Other metrics", "0.912", "0.923"),
        ):
            assert told in text, told
    assert "script" not in html.tags
    assert EVIL in html.text
    # The four pictures, that of the layers, and one for the pair that parts; ids stay apart.
    assert html.tags.count("svg") == 6
    assert len(html.ids) == len(set(html.ids))


def test_a_file_slower_than_its_own_float_is_told_loudly(made_up: Callable[..., Results], tmp_path: Path) -> None:
    results = made_up({"lame": {"ms": 5.0}, "quick": {"ms": 1.0}})
    context = Context(name="slow", created="now", picked=None, picked_why="no file will do")
    write_report(results, None, context, tmp_path)
    page = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [file["versus_float"] for file in page["files"]] == [None, None, "slower", "faster"]
    shown = " ".join(_read(tmp_path / "report.html").text.split())
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (shown, markdown):
        assert re.search(r"SLOWER THAN FLOAT:\W* lame\b(?!, quick)", text)
        assert re.search(r"lame: 1\.25× slower \(1\.2\d to 1\.2\d×\) than student", text)
        assert text.count("SLOWER") == 1
        assert "Nothing to recommend" in text
    quick = made_up({"quick": {"ms": 1.0}})
    write_report(quick, None, context, tmp_path / "quick")
    assert "SLOWER THAN FLOAT" not in (tmp_path / "quick" / "report.html").read_text(encoding="utf-8")


def test_the_picture_of_layers_marks_the_first_bad_one_and_takes_every_value() -> None:
    rows: tuple[tuple[str, float | None], ...] = (("a", math.inf), ("b", 12.5), ("c", None), (EVIL, -3.0))
    drawn = layer_sqnr([Line("one", "openvino", rows, "b"), Line("two", "openvino", rows[1:3])], 10.0)
    assert drawn is not None
    ElementTree.fromstring(drawn)
    assert "b (one)" in drawn
    assert "(two)" not in drawn
    assert "var(--series-2)" in drawn
    assert "<script" not in drawn
    assert layer_sqnr([]) is None
    assert layer_sqnr([Line("empty", "litert", ())]) is None


def test_layers_of_one_line_alone_take_their_place_in_the_order() -> None:
    from edgewise.bench.report.layers import _order

    one = Line("one", "litert", tuple((name, 1.0) for name in ("a", "relu", "b", "end")))
    two = Line("two", "litert", tuple((name, 1.0) for name in ("input", "a", "conv", "b")))
    order = _order([one, two])
    for line in (one, two):
        places = [order.index(name) for name, _ in line.rows]
        assert places == sorted(places)
    assert len(order) == len(set(order)) == 6


def test_blocks_at_a_low_clock_are_marked_where_the_device_says_so(
    rich: tuple[Results, Verdict, Context], tmp_path: Path
) -> None:
    page = build_page(*rich, tmp_path)
    # Nine rows, one a second from the first block on; the last three at 900 of 1,500 MHz. Launches begin at 0, 9, 18 s.
    assert [row["slow_clock"] for row in page["telemetry"]] == [False] * 6 + [True] * 3
    assert page["telemetry"][2] == {"t_s": 2.0, "temp_c": 42, "freq_mhz": 1500.0, "power_w": 5.5, "slow_clock": False}
    small = next(file for file in page["files"] if file["name"] == "small")
    slow = [(block["launch"], block["start_s"]) for block in small["timeline"] if block["slow_clock"]]
    assert slow == [(1, 9.0)]  # the last row is of second 8, and says nothing of more than a second later
