"""Values that know their place in ``report.json``, so that whatever the page shows of them can be found there again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape


class Told:
    """A value and its JSON pointer (RFC 6901). Its members are values of this kind, too; None and booleans are plain.

    In a template a text stands for itself, as an element that carries the pointer. A number can't: it needs a filter
    that knows its unit.
    """

    __slots__ = ("_place", "_raw")  # no member of the page begins so

    def __init__(self, raw: Any, place: str = "") -> None:
        self._raw, self._place = raw, place

    def __getattr__(self, key: str) -> Any:
        if isinstance(self._raw, Mapping) and key in self._raw:
            return self[key]
        raise AttributeError(key)

    def __getitem__(self, key: Any) -> Any:
        key = plain(key)
        token = str(key).replace("~", "~0").replace("/", "~1")
        return told(self._raw[key], f"{self._place}/{token}")

    def __iter__(self) -> Iterator[Any]:
        keys = self._raw if isinstance(self._raw, Mapping) else range(len(self._raw))
        return iter([self[key] for key in keys])

    def __contains__(self, key: Any) -> bool:
        return plain(key) in self._raw

    def __len__(self) -> int:
        return len(self._raw)

    def __bool__(self) -> bool:
        return bool(self._raw)

    def __eq__(self, other: object) -> bool:
        return bool(self._raw == plain(other))

    def __lt__(self, other: Any) -> bool:
        return bool(self._raw < plain(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self._raw > plain(other))

    def __le__(self, other: Any) -> bool:
        return bool(self._raw <= plain(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self._raw >= plain(other))

    def __hash__(self) -> int:
        return hash(self._raw)

    def __html__(self) -> str:
        if not isinstance(self._raw, str):
            raise TypeError(f"{self._place} is no text: it needs a filter that knows its unit")
        return element(self._raw, self._place, "text")

    def __str__(self) -> str:
        return str(self.__html__())


def told(value: Any, path: str = "") -> Any:
    """``value`` with its place; what is never shown by itself stays as it is."""
    return value if value is None or isinstance(value, bool) else Told(value, path)


def plain(value: Any) -> Any:
    """The value alone: for attributes, titles and functions."""
    return value._raw if isinstance(value, Told) else value


def place(value: Any) -> str:
    """Where a value of the page is, as a JSON pointer."""
    return value._place if isinstance(value, Told) else ""


def entries(value: Any) -> list[tuple[str, Any]]:
    """Keys, as elements that tell the place of their values, and values of a mapping, None and booleans included."""
    found: list[tuple[str, Any]] = []
    for key, member in plain(value).items():
        token = key.replace("~", "~0").replace("/", "~1")
        at = f"{place(value)}/{token}"
        found.append((element(key, at, "key"), Told(member, at)))
    return found


def element(text: str, at: str, form: str, unit: str = "", value: float | None = None) -> Markup:
    """What is shown, with where it comes from, how it is said and in which unit it is there."""
    given = Markup(' data-unit="{}"').format(unit) if unit else ""
    if value is None:
        return Markup('<span data-path="{}" data-form="{}"{}>{}</span>').format(at, form, given, escape(text))
    return Markup('<data value="{}" data-path="{}" data-form="{}"{}>{}</data>').format(
        repr(value), at, form, given, escape(text)
    )
