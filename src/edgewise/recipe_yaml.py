"""YAML text to plain data, with the line of every key: what a recipe may contain, and nothing more.

Data only: tags, anchors, aliases and merge keys are refused, so are duplicate keys, and nothing is constructed but
text, numbers, booleans, null, lists and mappings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import JsonValue

from edgewise.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40

Place = tuple[str | int, ...]
"""Where a value stands: ``("stages", 0, "fit", "epochs")``."""

# YAML 1.1 wants a dot and a signed exponent in a float; people write 1e-3, and so does JSON.
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+")
_BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


@dataclass(frozen=True)
class Document:
    """Plain data and the line (from 1) of each place in it; the text is kept for the record."""

    data: dict[str, JsonValue]
    lines: dict[Place, int]
    text: str


def dotted(place: Place) -> str:
    """``stages[0].fit.epochs``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the file"


def named(text: str) -> Place:
    """The place of ``stages.0.fit``, as the recipe's own rules write it."""
    return tuple(int(part) if part.isdecimal() else part for part in text.split("."))


def read_document(path: Path) -> Document:
    """Read a YAML mapping.

    Raises:
        RecipeError: no such file, too large, not UTF-8, a syntax error, or something that is not plain data.
    """
    text = _read_text(path)
    lines: dict[Place, int] = {}
    mistakes: list[str] = []
    try:
        _refuse_logic(text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, path) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"line {line}: the character {chr(error.character)!r} can't stand in YAML", where=str(path)
        ) from None
    if node is None:
        raise RecipeError("the file is empty", where=str(path), hint="'edgewise init' writes a recipe to start from")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "one bare value"
        raise RecipeError(f"expected a mapping (name: …, task: …), got {kind}", where=str(path))
    data = _mapping(node, (), lines, mistakes)
    if mistakes:
        raise RecipeError("\n  ".join(["this is not plain data:", *mistakes]), where=str(path))
    return Document(data, lines, text)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise RecipeError("expected a YAML file, got a folder", where=str(path))
    if not path.exists():
        raise RecipeError("no such file", where=str(path), hint=_neighbours(path))
    if not path.is_file():
        raise RecipeError("expected a YAML file, got something that is not a regular file", where=str(path))
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(
            f"expected at most {MAX_BYTES:,} bytes, got {path.stat().st_size:,}: this is no recipe", where=str(path)
        )
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"line {line}: expected UTF-8 text, got the byte 0x{raw[error.start]:02x}",
            where=str(path),
            hint="save the file as UTF-8",
        ) from None
    return text


def _neighbours(path: Path) -> str:
    """YAML files beside a path that does not exist."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    there = sorted(p.name for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml"})
    return (
        f"in {path.parent.resolve()} there are {', '.join(there[:8])}"
        if there
        else "'edgewise init' writes a recipe to start from"
    )


def _refuse_logic(text: str, path: Path) -> None:
    """Refuse what makes YAML more than data. Works on the flat event stream, so depth costs no recursion."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise RecipeError(
                f"line {line}: anchors and aliases (&name, *name) are refused; write it out", where=str(path)
            )
        tag = getattr(event, "tag", None)
        if tag:
            raise RecipeError(f"line {line}: the tag {tag!r} is refused: a recipe is plain data", where=str(path))
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise RecipeError(f"line {line}: expected one document, got a second one after '---'", where=str(path))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecipeError(f"line {line}: nested deeper than {MAX_DEPTH} levels", where=str(path))


def _syntax_error(error: yaml.MarkedYAMLError, path: Path) -> RecipeError:
    mark = error.problem_mark or error.context_mark
    place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    problem = error.problem or "not YAML"
    hint = "look for a missing colon, quote or bracket, or an uneven indent"
    if "'\\t'" in problem:
        problem, hint = "a tab", "indent with spaces"
    return RecipeError(f"{place}{problem}", where=str(path), hint=hint)


def _value(node: yaml.Node, place: Place, lines: dict[Place, int], mistakes: list[str]) -> JsonValue:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, lines, mistakes)
    if isinstance(node, yaml.SequenceNode):
        items: list[JsonValue] = []
        for i, child in enumerate(node.value):
            lines[(*place, i)] = child.start_mark.line + 1
            items.append(_value(child, (*place, i), lines, mistakes))
        return items
    try:
        return _scalar(node, plain=getattr(node, "style", None) is None)
    except ValueError as error:
        mistakes.append(f"{dotted(place)} (line {node.start_mark.line + 1}): {error}")
        return None


def _mapping(
    node: yaml.MappingNode, place: Place, lines: dict[Place, int], mistakes: list[str]
) -> dict[str, JsonValue]:
    data: dict[str, JsonValue] = {}
    for key_node, child in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            mistakes.append(f"{dotted(place)} (line {line}): expected a key, got a list or mapping before ':'")
            continue
        key = key_node.value  # as written: 'on' and '1' stay text
        if key_node.tag.endswith(":merge"):
            mistakes.append(f"{dotted(place)} (line {line}): merge keys (<<) are refused; write it out")
            continue
        if key in data:
            first = lines[(*place, key)]
            mistakes.append(f"{dotted((*place, key))} (line {line}): the key stands here twice, first in line {first}")
            continue
        try:
            _whole(key)
        except ValueError as error:
            mistakes.append(f"{dotted(place)} (line {line}): {error}")
            continue
        lines[(*place, key)] = line
        data[key] = _value(child, (*place, key), lines, mistakes)
    return data


def _scalar(node: yaml.Node, plain: bool) -> JsonValue:
    text = str(node.value)
    kind = node.tag.rsplit(":", 1)[-1]
    if kind == "null":
        return None
    if kind == "bool":
        return _BOOLEANS[text.lower()]
    if kind == "int" and ":" not in text:
        if len(text) > 30:
            raise ValueError(f"expected a number, got one of {len(text)} digits")
        return _integer(text)
    if (kind == "float" and ":" not in text) or (plain and _EXPONENT.fullmatch(text)):
        number = float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
        if number - number != 0:  # infinite or not a number
            raise ValueError(f"expected a finite number, got {text}")
        return number
    # Dates and 1:30 are numbers to YAML 1.1 and text to everybody else.
    return _whole(text)


def _whole(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("expected text, got half of a surrogate pair")
    return text


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    if re.fullmatch(r"[-+]?0[0-7]+", digits):
        raise ValueError(f"{text}: YAML reads a number with a leading zero as octal; leave the zero out, or quote it")
    return int(digits, 0)
