"""The pages in a real browser: silent, alone, readable on a phone, in the dark and on paper; numbers are the JSON's."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgewise.bench.gate import Verdict
from edgewise.bench.record import Context, Results
from edgewise.bench.report.compare import Side, compare
from edgewise.bench.report.render import render
from edgewise.bench.report.write import render_inspection, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
)
SILENT_S = 60


class Browser:
    """Chromium, told what to do over its debugging pipe: JSON, each message ended by a zero byte."""

    def __init__(self, path: str, profile: Path) -> None:
        (its, ours_out), (ours_in, theirs) = os.pipe(), os.pipe()
        # The browser reads from descriptor 3 and writes to 4; only a shell can put them there.
        command = f'exec "$@" 3<&{its} 4>&{theirs}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", path, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(its, theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its)
        os.close(theirs)
        self._out, self._in = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb", 0)
        self._rest, self._count, self.events = b"", 0, list[dict[str, Any]]()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    _session = None

    def ask(self, method: str, **params: Any) -> Any:
        """Send a command and wait for its answer; what happens meanwhile is kept in ``events``."""
        self._count += 1
        number = self._count
        session = {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            more = self._in.read(1 << 20)
            assert more, "the browser is gone"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, page: Path, *, width: int = 1200, media: str = "", scheme: str = "light") -> None:
        """Load ``page``, at that width, for that medium and colour scheme."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page, as JSON."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"]["value"]

    def noise(self) -> list[str]:
        """What the page said on the console, threw, or asked of anything but itself."""
        told = []
        for event in self.events:
            name, params = event["method"], event["params"]
            if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                told.append(f"{name}: {json.dumps(params)[:300]}")
            if name == "Network.requestWillBeSent":
                told.append(f"{name}: {params['request']['url'][:200]}")
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._in.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("chromium is not installed")
    opened = Browser(path, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(
    rich_in: Callable[[Path], tuple[Results, Verdict, Context]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any]]:
    """Each kind of page and the JSON that it is made of."""
    tmp_path = tmp_path_factory.mktemp("pages")
    rich = rich_in(tmp_path)
    results, _, context = rich
    full, plain = tmp_path / "full", tmp_path / "plain"
    write_report(*rich, full)
    write_report(replace(results, slices={}), None, Context("plain", "now", metric=None), plain)
    found = {
        name: (folder / "report.html", json.loads((folder / "report.json").read_text(encoding="utf-8")))
        for name, folder in (("full", full), ("plain", plain))
    }
    other = replace(results, config={**results.config, "threads": 2, "new": [1.5, None]}, files=results.files[:-1])
    compared = json.loads(json.dumps(compare(Side(*rich), Side(other, None, context))))
    found["compared"] = (tmp_path / "compared.html", compared)
    found["compared"][0].write_text(render("compare.html.j2", compared), encoding="utf-8")
    layers = found["full"][1]["layers"][0]
    told = {
        **{key: layers[key] for key in ("n", "flips", "first_bad", "why", "floor_db")},
        "one": context.name,
        "other": "b.onnx",
        "no_verdict": "",
        "unmatched": [[context.name], []],
        "rows": [
            {**row, "finite": row["sqnr_db"] is not None, "kind": "Conv", "fall_db": 1.5} for row in layers["rows"]
        ],
        "output": {"sqnr_db": 31.5, "exact": False},
        "flip_rate": {"value": 0.1875, "low": 0.0659, "high": 0.4301},
    }
    found["inspected"] = (tmp_path / "inspected.html", {"found": told, "warnings": [context.name]})
    found["inspected"][0].write_text(render_inspection(told, [context.name], "openvino"), encoding="utf-8")
    return found


def test_no_page_says_or_asks_anything(browser: Browser, pages: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    for path, _ in pages.values():
        browser.open(path)
        assert browser.noise() == [f"Network.requestWillBeSent: {path.resolve().as_uri()}"]
        assert browser.value("document.scripts.length") == 0
        assert browser.value("typeof window.caught") == "undefined"
    # What a page that isn't silent would look like: this test can fail.
    loud = tmp_path / "loud.html"
    loud.write_text("<script>console.error('x'); window.caught = 1</script><img src='http://127.0.0.1:9/x.png'>")
    browser.open(loud)
    assert len(browser.noise()) > 2
    assert any("127.0.0.1:9" in line for line in browser.noise())


def test_the_policy_stops_a_script_that_got_in(browser: Browser, pages: dict[str, tuple[Path, Any]]) -> None:
    path, _ = pages["full"]
    text = path.read_text(encoding="utf-8")
    broken = path.with_name("broken.html")
    broken.write_text(text.replace("<main>", "<main><script>window.caught = 1</script>"), encoding="utf-8")
    browser.open(broken)
    assert browser.value("document.scripts.length") == 1
    assert browser.value("typeof window.caught") == "undefined"


# Every element that says where in the JSON its text is from, and all text that says nothing of the kind.
SHOWN = """[...document.querySelectorAll('[data-path]')].map(e => ({
    at: e.dataset.path, form: e.dataset.form, unit: e.dataset.unit || '', text: e.textContent,
    value: e.getAttribute('value')}))"""
OWN = """(() => {
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (walk.nextNode()) {
        const parent = walk.currentNode.parentElement;
        if (!parent.closest('[data-path], svg')) found.push(walk.currentNode.textContent.trim());
    }
    return found.filter(text => text);
})()"""


@pytest.mark.parametrize(("name", "least"), [("full", 900), ("plain", 300), ("compared", 150), ("inspected", 20)])
def test_all_that_is_shown_is_in_the_json(
    browser: Browser, pages: dict[str, tuple[Path, Any]], name: str, least: int
) -> None:
    path, page = pages[name]
    browser.open(path)
    shown = browser.value(SHOWN)
    assert len(shown) > least
    wrong = [one for one in shown if not _holds(one, page)]
    assert wrong == []
    # The page's own words tell no number, but the names of percentiles and of integers.
    own = [re.sub(r"\b(p\d+|INT8|sha256|a 95 % interval)\b", "", text) for text in browser.value(OWN)]
    assert [text for text in own if re.search(r"\d", text)] == []


def test_a_wrong_number_would_be_found(browser: Browser, pages: dict[str, tuple[Path, Any]]) -> None:
    path, page = pages["full"]
    browser.open(path)
    shown = browser.value(SHOWN)
    for form in ("q", "span", "size", "faster", "percent", "count", "limit", "versus", "least", "text"):
        one = next(one for one in shown if one["form"] == form and re.search(r"[1-9]", one["text"]))
        changed = re.sub(
            r"[1-9]", lambda digit: str(10 - int(digit[0])) if digit[0] != "5" else "6", one["text"], count=1
        )
        assert _holds(one, page)
        assert not _holds({**one, "text": changed}, page), (one, changed)


@pytest.mark.parametrize("name", ["full", "plain", "compared", "inspected"])
def test_a_phone_needs_no_sideways_scrolling(browser: Browser, pages: dict[str, tuple[Path, Any]], name: str) -> None:
    for width in (360, 1200):
        browser.open(pages[name][0], width=width)
        cut = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, details, svg') &&
            e.getBoundingClientRect().right > WIDTH + 1).map(e => e.outerHTML.slice(0, 80))"""
        assert browser.value(cut.replace("WIDTH", str(width))) == []
        assert browser.value("innerWidth") == width  # a phone zooms out of a page that is too wide
        assert browser.value("document.documentElement.scrollWidth") <= width


# Texts of which the colours are too close for people to read: WCAG 2.2, 1.4.3, a contrast of 4.5.
PALE = """(() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const behind = e => { for (; e; e = e.parentElement) {
        const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    const found = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement;
        if (!walk.currentNode.textContent.trim() || e.closest('title, desc, style')) continue;
        const style = getComputedStyle(e);
        const [a, b] = [light(rgb(e.closest('svg') ? style.fill : style.color)), light(behind(e))];
        const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (contrast < 4.5) found.add(`${contrast.toFixed(2)} ${e.tagName} ${e.textContent.slice(0, 40)}`);
    }
    return [...found];
})()"""


def test_text_can_be_read_in_the_light_in_the_dark_and_on_paper(
    browser: Browser, pages: dict[str, tuple[Path, Any]]
) -> None:
    papers = []
    for scheme, media in (("light", ""), ("dark", ""), ("dark", "print")):
        for path, _ in pages.values():
            browser.open(path, scheme=scheme, media=media)
            assert browser.value(PALE) == []
        papers.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    light, dark, paper = papers
    assert len({light, dark, paper}) == 3
    assert paper == "rgb(255, 255, 255)"


def test_paper_shows_what_is_folded_away(browser: Browser, pages: dict[str, tuple[Path, Any]]) -> None:
    path, _ = pages["full"]
    seen = "[...document.querySelectorAll('details dl, details pre')].map(e => e.checkVisibility())"
    browser.open(path)
    on_screen = browser.value(seen)
    assert len(on_screen) > 5
    assert not any(on_screen)
    browser.open(path, media="print")
    assert all(browser.value(seen))
    pdf = base64.b64decode(browser.ask("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF-")


def test_pictures_are_told_to_who_does_not_see_them(browser: Browser, pages: dict[str, tuple[Path, Any]]) -> None:
    path, page = pages["full"]
    browser.open(path)
    told = """[...document.querySelectorAll('svg')].map(e => [e.getAttribute('role'), e.getAttribute('aria-labelledby')
        .split(' ').map(id => document.getElementById(id).textContent)])"""
    found = browser.value(told)
    assert len(found) == 8
    assert all(role == "img" and all(texts) for role, texts in found)
    words = " ".join(text for _, texts in found for text in texts)
    assert all(file["name"] in words for file in page["files"] if file["runs"])
    assert browser.value("document.querySelectorAll('svg text').length") > 60  # text, not outlines


def _holds(one: dict[str, Any], page: Any) -> bool:
    """Whether what is shown is what the JSON has there, within the digits that are shown."""
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in one["at"].split("/")[1:]]
    value = page
    for token in tokens:
        value = value[int(token) if isinstance(value, list) else token]
    form, unit, text = one["form"], one["unit"], one["text"]
    if form == "text":
        return bool(text == value)
    if form == "key":
        return bool(text == tokens[-1])
    if form in ("check", "flag"):
        return isinstance(value, str) and bool(text)
    if form == "words":
        return bool(text == value.replace("_", " "))
    if form == "listed":
        return bool(text.removesuffix(", …").split(", ") == value[: text.count(", l") + 1])
    if form == "tidy":
        return _tidy(text, value)
    if form in ("span", "versus"):
        return _interval(text, value, unit, form)
    if one["value"] is not None and float(one["value"]) != value:
        return False
    if form == "limit":
        text = re.sub("^at (least|most) ", "", text)
    if form == "least":
        return bool(text == f"n/a (needs >= {value:,})")
    if text == "< 0.001":
        return bool(value < 0.001)
    low, high = _number(text, unit)
    if form == "roughly":
        return value <= high <= 1.2 * value + 1
    return low <= value <= high


SCALES = {
    "ms": {"µs": 1e-3, "ms": 1, "s": 1e3},
    "s": {"µs": 1e-6, "ms": 1e-3, "s": 1},
    "bytes": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "x": {"×": 1},
    "fraction": {"%": 0.01},
    "share": {"%": 0.01},
    "pp": {"pp": 1},
    "per s": {"/s": 1},
    "count": {"": 1, "M": 1e6, "G": 1e9},
    "J": {"µJ": 1e-6, "mJ": 1e-3, "J": 1},
    "W": {"W": 1},
    "dB": {"dB": 1},
    "p": {"": 1},
    "": {"": 1},
}


def _number(text: str, unit: str) -> tuple[float, float]:
    """The numbers that are shown as ``text``, in ``unit``: half a last digit to either side."""
    found = re.fullmatch(r"(−?)([\d,]+)(\.\d+)?(e[+−]\d+)? ?(\S*?)( faster| slower| smaller| larger)?", text)
    if found is None:
        return math.nan, math.nan
    sign, whole, part, power, suffix, turned = found.groups("")
    scale = SCALES[unit][suffix] * float("1" + power.replace("−", "-"))
    middle, half = float(whole.replace(",", "") + part), 0.5000001 * 10.0 ** -max(0, len(part) - 1)
    low, high = (middle - half) * scale, (middle + half) * scale
    if turned in (" slower", " larger"):
        low, high = 1 / high, 1 / low
    return (-high, -low) if sign else (low, high)


def _interval(text: str, value: Any, unit: str, form: str) -> bool:
    slower = False
    if form == "versus":
        if (value["low"] <= 1 <= value["high"]) != text.startswith("no difference shown"):
            return False
        first, _, text = text.removesuffix(")").partition(" (")
        if not first.startswith("no "):
            slower = first.endswith("slower")
            low, high = _number(first, unit)
            if not low <= value["value"] <= high:
                return False
    one, other = text.split(" to ")
    # The unit is said once where both have the same.
    suffix = re.sub(r"^−?[\d,.]+", "", other)
    one += suffix if re.fullmatch(r"−?[\d,.]+", one) else ""
    ends = [value["low"], value["high"]]
    if slower:
        ends = [1 / value["high"], 1 / value["low"]]
    pairs = zip((_number(one, unit), _number(other, unit)), ends, strict=True)
    return all(low <= end <= high for (low, high), end in pairs)


def _tidy(text: str, value: Any) -> bool:
    if value is None:
        return text == "n/a"
    if isinstance(value, str):
        return text == value
    if isinstance(value, (list, dict)):
        leaves = _leaves(value)
        parts = text.split(", ")
        return len(parts) == len(leaves) and all(map(_ends, parts, leaves))
    if isinstance(value, float):
        low, high = _number(text, "")
        return low <= value <= high
    return text == str(value)


def _leaves(value: Any) -> list[Any]:
    """What is at the ends of nested lists and mappings, in order; "none" for an empty one."""
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return [value]
    return [leaf for one in inner for leaf in _leaves(one)] or ["none"]


def _ends(part: str, leaf: Any) -> bool:
    """Whether a part of a list is a leaf, perhaps behind the keys that lead to it."""
    return _tidy(part, leaf) or any(_tidy(part[place.end() :], leaf) for place in re.finditer(" ", part))
