"""Whether a JSON value has the form that a schema asks for: as much of JSON Schema (draft 2020-12) as ours uses.

The schemas are shipped, so that others can use any validator; the tests hold this one against the library jsonschema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
_KNOWN = {
    *("$schema", "$id", "$defs", "title", "description", "$ref", "type", "const", "enum", "properties", "required"),
    *("additionalProperties", "items", "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum"),
    *("maximum", "exclusiveMinimum", "exclusiveMaximum", "anyOf"),
}


def first_fault(value: Any, schema: Mapping[str, Any], at: str = "it") -> str | None:
    """What is wrong first, with its place ("verification.keys[3].trials: ..."); None where nothing is."""
    return next(_faults(value, schema, schema, at), None)


def _faults(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    assert set(schema) <= _KNOWN, f"the schema uses {set(schema) - _KNOWN}, which this validator does not know"
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        yield from _faults(value, root["$defs"][name], root, at)
    if "anyOf" in schema:
        faults = [list(_faults(value, each, root, at)) for each in schema["anyOf"]]
        yield from min(faults, key=len)  # of the form that it comes nearest to
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{at} must be {' or '.join(kinds)}"
        return
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{at} must be {schema['const']!r}"
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        yield f"{at} must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, str):
        yield from _of_text(value, schema, at)
    elif isinstance(value, list):
        yield from _of_list(value, schema, root, at)
    elif isinstance(value, dict):
        yield from _of_object(value, schema, root, at)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _of_number(value, schema, at)


def _of_text(value: str, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{at} is too short or too long"
    # `$` ends a pattern at the end of the text, as JSON Schema says; in Python also before a last line break.
    if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        yield f"{at} is not written as it must be"
    try:
        value.encode()
    except UnicodeEncodeError:
        yield f"{at} holds half a character"


def _of_number(value: float, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    low, high = schema.get("minimum", value), schema.get("maximum", value)
    inside = schema.get("exclusiveMinimum", value - 1) < value < schema.get("exclusiveMaximum", value + 1)
    if not low <= value <= high or not (inside or abs(value) > 2**52):
        yield f"{at} is out of range"


def _of_list(value: list[Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        yield f"{at} has too few or too many entries"
    for place, each in enumerate(value if "items" in schema else ()):
        yield from _faults(each, schema["items"], root, f"{at}[{place}]")


def _of_object(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at} has no {name!r}"
    for name, each in value.items():
        place = f"{at}.{name[:40]}" if at != "it" else name[:40]
        if name in known:
            yield from _faults(each, known[name], root, place)
        elif others is False:
            yield f"{at} has an unknown field {name[:40]!r}"
        elif isinstance(others, dict):
            yield from _faults(each, others, root, place)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int)
    if kind == "number":
        return isinstance(value, int | float)
    return isinstance(value, _TYPES[kind])


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)
