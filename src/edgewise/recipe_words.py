"""What pydantic found wrong, in plain words: place, line, what was expected, what came, and the name that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from edgewise.bench.gate.config import ON_INVALID
from edgewise.models.config import IMPORT_PATH
from edgewise.recipe_yaml import Document, Place, dotted, named

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Schema = dict[str, Any]

_PATTERNS = {
    ON_INVALID: "fail, or retry:N with N from 1 to 9",
    IMPORT_PATH: "text like package.module:name",
    "^[A-Za-z0-9][A-Za-z0-9._-]*$": "a name of letters, digits, '.', '_' and '-'",
}
_TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """``": did you mean 'temperature'?"``, or nothing where no known name is near."""
    near = _near(given, known)
    return f": did you mean {near!r}?" if near else ""


def _near(given: object, known: Iterable[str]) -> str | None:
    names = {name.lower(): name for name in known}
    near = get_close_matches(str(given).lower().replace("-", "_"), names, n=1, cutoff=0.6)
    near = near or get_close_matches(str(given).lower(), names, n=1, cutoff=0.6)
    return names[near[0]] if near else None


def mistakes(error: ValidationError, model: type[BaseModel], document: Document) -> list[tuple[int, str]]:
    """(line, sentence) of every mistake pydantic found; line 0 where the place is not in the file."""
    schema = model.model_json_schema()
    found = (_mistake(detail, schema, document) for detail in _told_once(error.errors(include_url=False)))
    return list(dict.fromkeys(found))


def sentence(place: Place, document: Document, text: str) -> tuple[int, str]:
    """(line, ``place (line n): text``)."""
    line = _line(place, document)
    return line, f"{dotted(place)} (line {line}): {text}" if line else f"{dotted(place)}: {text}"


def _told_once(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without what only follows from another mistake: the key that a misspelt one was meant to be, and the list that
    is too short because an item of it is wrong."""
    absent = {detail["loc"] for detail in details if detail["type"] == "missing"}
    meant = set()
    for detail in details:
        if detail["type"] == "extra_forbidden":
            beside = {str(loc[-1]): loc for loc in absent if loc[:-1] == detail["loc"][:-1]}
            near = _near(detail["loc"][-1], beside)
            meant |= {beside[near]} if near else set()
    return [
        detail
        for detail in details
        if detail["loc"] not in meant
        and not (
            detail["type"] == "too_short"
            and any(other["loc"][: len(detail["loc"])] == detail["loc"] != other["loc"] for other in details)
        )
    ]


def _mistake(detail: ErrorDetails, root: Schema, document: Document) -> tuple[int, str]:
    place, schema, parent = _walk(detail["loc"], root)
    kind = detail["type"]
    if kind.endswith("_type") and "oneOf" in parent and "discriminator" not in parent:
        schema = parent  # neither this member of the union nor another
    if kind == "extra_forbidden":
        return sentence(place, document, _unknown_key(str(place[-1]), parent, root))
    if kind == "value_error":
        place, text = _own_words(place, str(detail["ctx"]["error"]), document)
        return sentence(place, document, text)
    got = _at(place, document)
    if kind in {"union_tag_invalid", "union_tag_not_found"} and (isinstance(got, dict) or "discriminator" in schema):
        place, schema = (*place, "kind"), {"enum": list(_kinds(schema, root))}
        got = _at(place, document)
    hint = did_you_mean(got, map(str, schema["enum"])) if "enum" in schema and isinstance(got, str) else ""
    if schema.get("type") == "string" and "enum" not in schema and isinstance(got, int | float):
        hint = ": put it in quotes"
    if isinstance(got, str) and got in _kinds(schema, root):
        hint = f": write {{kind: {got}}}" if "discriminator" in schema else f": write {{kind: {got}, …}}"
    lists = any(option.get("type") == "array" for option in parent.get("oneOf", []))
    if isinstance(got, str) and not hint and lists and schema is not parent:
        hint = f": write one name as [{got}]"
    return sentence(place, document, f"expected {expected(schema, root)}, got {_shown(got)}{hint}")


def expected(schema: Schema, root: Schema) -> str:
    """What a place takes, in words, from its JSON schema."""
    if "discriminator" in schema:
        return f"a mapping with kind: {', '.join(schema['discriminator']['mapping'])}"
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "oneOf" in schema:
        kinds = _kinds(schema, root)
        members = [expected(_plain(one, root), root) for one in schema["oneOf"] if _tag(one, root) not in kinds]
        return ", or ".join([*members, *([f"a mapping with kind: {', '.join(kinds)}"] if kinds else [])])
    if "anyOf" in schema:
        return ", or ".join(expected(_plain(one, root), root) for one in schema["anyOf"])
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        return f"[{', '.join(expected(_plain(item, root), root) for item in schema['prefixItems'])}]"
    if kind == "array":
        some = "a list with one or more of" if schema.get("minItems") else "a list of"
        return f"{some}: {expected(_plain(schema.get('items', {}), root), root)}"
    if kind == "object":
        names = ", ".join(schema.get("properties", {}))
        return f"a mapping of {names}" if names else "a mapping"
    if schema.get("format") == "path":
        return "a path"
    if schema.get("format") == "date":
        return "a date such as 2027-03-31"
    if schema.get("pattern") in _PATTERNS:
        return _PATTERNS[schema["pattern"]]
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_TYPES.get(str(kind), "a value"), " and ".join(bounds)]).strip()


def _unknown_key(key: str, parent: Schema, root: Schema) -> str:
    known = list(parent.get("properties", {}))
    near = did_you_mean(key, known)
    if near:
        return f"unknown key {key!r}{near}"
    for name in known:  # a right key, one level too high
        if key in _plain(parent["properties"][name], root).get("properties", {}):
            return f"unknown key {key!r}: did you mean '{name}.{key}'?"
    return f"unknown key {key!r}: expected one of {', '.join(known)}"


def _own_words(place: Place, text: str, document: Document) -> tuple[Place, str]:
    """A validator's ``"stages.1.losses: …"`` names the place itself, from where the validator stands."""
    head, colon, rest = text.partition(": ")
    whole = (*place, *named(head))
    if colon and " " not in head and whole[: len(place) + 1] in document.lines:
        return whole, rest
    return place, text


def _walk(loc: Place, root: Schema) -> tuple[Place, Schema, Schema]:
    """The YAML place of pydantic's ``loc`` (which names a union's member on the way), its schema, its parent's."""
    place: Place = ()
    schema = parent = _plain(root, root)
    for part in loc:
        if "anyOf" in schema:
            break  # what follows is pydantic's name of a member
        if "oneOf" in schema:  # the part tells which member, it is no key
            parent, schema = schema, next(_plain(o, root) for o in schema["oneOf"] if _tag(o, root) == part)
            continue
        parent, place = schema, (*place, part)
        if isinstance(part, int):
            fixed = schema.get("prefixItems", [])
            child = fixed[part] if part < len(fixed) else schema.get("items", {})
        else:
            child = schema.get("properties", {}).get(part, {})
        schema = _plain(child, root)
    return place, schema, parent


def _tag(option: Schema, root: Schema) -> str | None:
    """What tells a union's member from the others: its kind, or else its type in JSON."""
    plain = _plain(option, root)
    return plain.get("properties", {}).get("kind", {}).get("const") or plain.get("type")


def _kinds(schema: Schema, root: Schema) -> list[str]:
    """The kinds among a union's members, in the order of the reference."""
    if "discriminator" in schema:
        return list(schema["discriminator"]["mapping"])
    tags = [_tag(option, root) for option in schema.get("oneOf", [])]
    return [tag for tag in tags if tag is not None and tag not in {*_TYPES, "array", "object"}]


def _plain(schema: Schema, root: Schema) -> Schema:
    """Follow ``$ref`` and look through "or null"."""
    if "$ref" in schema:
        return _plain(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    return _plain(options[0], root) if len(options) == 1 else schema


def _line(place: Place, document: Document) -> int:
    """The line of a place, or of the nearest place around it."""
    while place and place not in document.lines:
        place = place[:-1]
    return document.lines.get(place, 0)


class _Absent:
    """What stands at a place that isn't in the file."""


def _at(place: Place, document: Document) -> object:
    value: Any = document.data
    for part in place:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return _Absent
    return value


def _shown(value: object) -> str:
    if value is _Absent or value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
