"""What of a caller's JSON schema Claude Code can use, decided before anything is spent.

Claude Code (2.1.332) checks the model's output with ajv, by draft 7 and in strict mode: it ends at once over a keyword
that it does not know or would ignore, and over another dialect in `$schema`. The Messages API takes the schema for a
tool's input: it wants an object at the root, no choice of schemas there, and names by a pattern for what is directly in
it. So what changes nothing is left out, what later drafts named anew gets its name of draft 7, and the rest is refused
with its place and reason. What only JavaScript can judge (a pattern) is Claude Code's to refuse: `SchemaRefused`.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from lambdas.strict import DEPTH, Json, too_deep

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
"""What the Messages API allows as a name of the root's properties; it does not look at those further in."""

ONE = ("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then")
MANY = ("allOf", "anyOf", "oneOf")
NAMED = ("$defs", "definitions", "patternProperties", "properties")
"""Keywords that hold a schema, a list of them, and schemas by names."""

UNKNOWN = (
    *("$dynamicRef", "$recursiveRef", "maxContains", "minContains", "prefixItems"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
"""Keywords of later drafts that say what draft 7 has no words for, or words that the API does not take: it reads the
schema by draft 2020-12, where the list that `items` of draft 7 may be is not valid."""


class Unusable(ValueError):
    """A schema that cannot be used; its text says where and why."""


def usable(schema: Json) -> Json:
    """The schema as Claude Code takes it, which asks for the same. Raises `Unusable`."""
    if too_deep(schema, DEPTH):
        raise Unusable(f"is nested more than {DEPTH} levels deep")
    root = _root(_schema(schema, "#"))
    for place, target in _references(root, "#"):
        if not isinstance(_at(root, target), dict | bool):
            raise Unusable(f"refers at {place} to {target[:80]}, which is not in it")
    return root


def _root(made: Any) -> Json:
    """A tool's input is an object, and says so itself."""
    for _ in range(DEPTH):
        if not isinstance(target := _at(made, made["$ref"]) if "$ref" in made else None, dict):
            break
        made = target | {name: made[name] for name in ("$defs", "definitions") if name in made}
    if made.get("type", "object") not in ("object", ["object"]):
        raise Unusable("must be of the type object at its root")
    if choice := next((name for name in MANY if name in made), None):
        raise Unusable(f"has {choice} at its root, where the model's API does not take it")
    if wrong := next((name for name in made.get("properties", {}) if not PROPERTY.fullmatch(name)), None):
        raise Unusable(f"names the property {wrong[:80]!r}: the model's API takes ^{PROPERTY.pattern}$ at its root")
    found: Json = made | {"type": "object"}
    return found


def _schema(schema: object, place: str) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise Unusable(f"has at {place} what is not a schema")
    for name in UNKNOWN:
        if name in schema and schema[name] != {"minContains": 1}.get(name, True):
            raise Unusable(f"uses {name} at {place}, which Claude Code does not know (it knows draft 7)")
    made: Json = {}
    for name, value in _in_draft_7(schema).items():
        made |= _keyword(name, value, f"{place}/{name}")
    if made.pop("nullable", False) and "type" in made:
        made["type"] = [*([made["type"]] if isinstance(made["type"], str) else made["type"]), "null"]
    return made


def _in_draft_7(schema: Json) -> Json:
    """With the names of draft 7, and without what would be ignored, which ajv refuses."""
    made = dict(schema)
    later = [made.pop(name) for name in ("dependentRequired", "dependentSchemas") if name in made]
    if later and all(isinstance(each, dict) for each in later):
        made["dependencies"] = {
            name: value for each in [made.get("dependencies", {}), *later] for name, value in each.items()
        }
    made.pop("additionalItems", None)
    if "if" not in made or not made.keys() & {"then", "else"}:
        made = {name: value for name, value in made.items() if name not in ("if", "then", "else")}
    return made


def _keyword(name: str, value: object, place: str) -> Json:
    """A keyword as it goes on; nothing where it is not one that means something."""
    if name in ONE:
        return {name: _schema(value, place)}
    if name in MANY:
        if not isinstance(value, list) or not value:
            raise Unusable(f"needs a list of schemas at {place}")
        return {name: [_schema(each, f"{place}/{number}") for number, each in enumerate(value)]}
    if name in NAMED or name == "dependencies":
        if not isinstance(value, dict):
            raise Unusable(f"needs schemas by names at {place}")
        return {name: {key: _named(name, each, f"{place}/{key[:80]}") for key, each in value.items()}}
    if name not in PLAIN:
        return {}
    says, right = PLAIN[name]
    if not right(value):
        raise Unusable(f"needs {says} at {place}")
    return {name: value}


def _named(holder: str, value: object, place: str) -> Any:
    if holder == "dependencies" and isinstance(value, list):
        return _keyword("required", value, place)["required"]
    return _schema(value, place)


def _references(schema: Any, place: str) -> Iterator[tuple[str, str]]:
    """Where a schema refers to another, and to which."""
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        yield place, schema["$ref"]
    for name, value in schema.items():
        if name in ONE:
            yield from _references(value, f"{place}/{name}")
        elif name in MANY:
            for each in value:
                yield from _references(each, f"{place}/{name}")
        elif name in NAMED or name == "dependencies":
            for key, each in value.items():
                yield from _references(each, f"{place}/{name}/{key}")


def _at(root: Json, reference: str) -> Any:
    """What a reference within the schema leads to (RFC 6901); None where that is nothing."""
    found: Any = root
    if reference != "#" and not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/") if reference != "#" else ():
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdecimal():
            found = found[int(name)] if int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _names(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value)) and len(set(value)) == len(value)


def _type(value: object) -> bool:
    several = value if isinstance(value, list) else [value]
    return bool(several) and all(each in TYPES for each in several) and len(set(map(str, several))) == len(several)


PLAIN: dict[str, tuple[str, Callable[[object], bool]]] = {
    **dict.fromkeys(
        ("$comment", "$ref", "contentEncoding", "contentMediaType", "description", "format", "pattern", "title"),
        ("a text", _text),
    ),
    **dict.fromkeys(("exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"), ("a number", _number)),
    "multipleOf": ("a number above 0", lambda value: _number(value) and value > 0),  # type: ignore[operator]
    **dict.fromkeys(
        ("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"),
        ("a whole number from 0", _count),
    ),
    **dict.fromkeys(("deprecated", "nullable", "readOnly", "uniqueItems", "writeOnly"), ("true or false", _flag)),
    "required": ("a list of names, none of them twice", _names),
    "type": (f"one or some of {', '.join(TYPES)}", _type),
    "enum": ("a list that is not empty", lambda value: isinstance(value, list) and bool(value)),
    "examples": ("a list", lambda value: isinstance(value, list)),
    **dict.fromkeys(("const", "default"), ("a value", lambda _: True)),
}
"""What is kept as it is: what each keyword needs, in words, and whether a value is that. Any other keyword is an
annotation, of somebody's own or for other programs, and does not go on."""
