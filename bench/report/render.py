"""The page as HTML and as Markdown: a function of the page's JSON alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from edgewise.bench import format as say
from edgewise.bench.report.pictures import pictures
from edgewise.bench.report.plot import runtime_colour
from edgewise.bench.report.told import Told, element, entries, place, plain, told

LISTED = 6  # names of a list that are told one by one


def render_markdown(page: dict[str, Any]) -> str:
    """The page as Markdown, for a terminal, a pull request or a step summary."""
    text: str = _environment(html=False).get_template("page.md.j2").render(page=page)
    return text


def render_html(page: dict[str, Any]) -> str:
    """The page as one HTML file that needs nothing else: no network, no scripts."""
    text: str = _environment(html=True).get_template("page.html.j2").render(page=told(page), plots=pictures(page))
    return text


def render(template: str, page: dict[str, Any], **beside: Any) -> str:
    """Another page of the same kind; ``beside`` reaches the template as it is."""
    text: str = _environment(html=True).get_template(template).render(page=told(page), **beside)
    return text


def cell(text: object) -> str:
    """Text in a cell of a Markdown table: one line, nothing that ends the cell or starts HTML."""
    line = " ".join(str(text).split())
    for sign in "\\`*_|<>[]":
        line = line.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return line


def tidy(value: object) -> str:
    """A setting or fact as text: lists with commas, nothing as n/a."""
    if value is None:
        return say.NONE
    if isinstance(value, dict):
        return ", ".join(f"{key} {tidy(one)}" for key, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(tidy(one) for one in value) or "none"
    if isinstance(value, float):
        return say.plain(value, 4)
    return str(value)


def listed(names: list[str]) -> str:
    """The first names of a list; an ellipsis stands for the rest."""
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def alike(checks: Any) -> list[list[Any]]:
    """Checks one by one, but those of one file that nothing was measured for, and for the same reason, together."""
    groups: list[list[Any]] = []
    seen: dict[tuple[str, ...], list[Any]] = {}
    for check in checks:
        key = (plain(check["file"]), plain(check["status"]), plain(check["note"]))
        bare = check["value"] is None and check["n"] is None and check["waived"] is None
        if bare and key in seen:
            seen[key].append(check)
            continue
        groups.append([check])
        if bare:
            seen[key] = groups[-1]
    return groups


def _words(flag: str) -> str:
    return flag.replace("_", " ")


# What is said of a number, and the unit that it has in the JSON; an empty one is the filter's argument.
NUMBERS: dict[str, tuple[Callable[..., str], str]] = {
    "q": (say.quantity, ""),
    "size": (say.size, "bytes"),
    "faster": (say.faster, "x"),
    "smaller": (say.smaller, "x"),
    "count": (say.count, "count"),
    "roughly": (say.roughly, "count"),
    "percent": (say.percent, "fraction"),
    "duration": (say.duration, "ms"),
    "decibel": (say.decibel, "dB"),
    "probability": (say.probability, "p"),
    "least": (say.least, "count"),
    "gap": (say.gap, ""),
}
INTERVALS: dict[str, tuple[Callable[..., str], str]] = {"span": (say.span, ""), "versus": (say.versus, "x")}
TEXTS: dict[str, Callable[..., str]] = {"tidy": tidy, "listed": listed, "words": _words}


def _environment(*, html: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgewise.bench.report", ""),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, (said, unit) in {**NUMBERS, **INTERVALS}.items():
        environment.filters[name] = _placed(said, name, unit)
    for name, said in TEXTS.items():
        environment.filters[name] = _placed(said, name, "")
    environment.filters.update(
        plain=plain,
        place=place,
        entries=entries,
        cell=cell,
        alike=alike,
        colour=lambda runtime: runtime_colour(plain(runtime)),
        check_words=lambda check: say.check_words(plain(check)),
        flag_words=lambda flag: say.flag_words(plain(flag)),
    )
    environment.globals.update(limit=_placed_limit, unknown=say.NONE)
    return environment


def _placed(said: Callable[..., str], form: str, unit: str) -> Callable[..., str]:
    """``said`` for a value of the page: the text within an element that tells where it comes from."""

    @wraps(said)
    def filtered(value: Any, *args: Any) -> str:
        args = tuple(plain(arg) for arg in args)
        raw = plain(value)
        text = said(raw, *args)
        if not isinstance(value, Told):
            return text
        number = raw if isinstance(raw, (int, float)) and not isinstance(raw, bool) else None
        return element(text, place(value), form, unit or (args[0] if args and isinstance(args[0], str) else ""), number)

    return filtered


def _placed_limit(check: Any) -> str:
    """The limit of a check with its direction."""
    words, limit = say.limit_words(plain(check["check"]), plain(check["limit"]), plain(check["unit"])), check["limit"]
    if not isinstance(limit, Told):
        return words
    return element(words, place(limit), "limit", plain(check["unit"]), plain(limit))
