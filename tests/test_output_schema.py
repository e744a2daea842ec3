"""What of a caller's JSON schema Claude Code can use; that it does use it is shown in test_claude."""

from typing import Any

import pytest

from lambdas.output_schema import Unusable, usable

NUMBER = {"type": "integer"}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}, {"type": "object"}),
        ({"$id": "https://example.com/a", "type": "object", "x-order": 1, "$anchor": "a"}, {"type": "object"}),
        (of(n=NUMBER | {"x-unit": "m", "discriminator": {"propertyName": "n"}}), of(n=NUMBER)),
        ({}, {"type": "object"}),
        ({"type": ["object"]}, {"type": "object"}),
        (of(a={"items": NUMBER, "additionalItems": False}), of(a={"items": NUMBER})),
        (
            {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"c": {"required": ["d"]}}},
            {"type": "object", "dependencies": {"a": ["b"], "c": {"required": ["d"]}}},
        ),
        (of(n=NUMBER | {"nullable": True}), of(n={"type": ["integer", "null"]})),
        ({"if": {"required": ["a"]}}, {"type": "object"}),
        (of(a={"contains": NUMBER, "minContains": 1}), of(a={"contains": NUMBER})),
        (of() | {"unevaluatedProperties": True}, of()),
        (
            {"$ref": "#/definitions/A", "definitions": {"A": of(n=NUMBER)}},
            of(n=NUMBER) | {"definitions": {"A": of(n=NUMBER)}},
        ),
        (of(c={"$ref": "#"}, d={"$ref": "#/$defs/a~1b"}) | {"$defs": {"a/b": True}},) * 2,
    ],
)
def test_what_changes_nothing_is_left_out_and_the_rest_is_in_draft_7(
    schema: dict[str, Any], made: dict[str, Any]
) -> None:
    """As zod, pydantic and OpenAPI write schemas; and to say it again changes nothing more."""
    assert usable(schema) == made
    assert usable(made) == made


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = of(a=schema)
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objekt"}, "needs one or some of array, .* at #/type"),
        ({"type": "array"}, "type object at its root"),
        ({"anyOf": [{"type": "object"}]}, "anyOf at its root"),
        (of(**{"a b": NUMBER}), "names the property 'a b'"),
        (of(ü=NUMBER), "names the property 'ü'"),
        (of(**{"a" * 65: NUMBER}), "names the property"),
        (of(a=of() | {"unevaluatedProperties": False}), "unevaluatedProperties at #/properties/a, .* draft 7"),
        (of(a={"contains": True, "minContains": 2}), "minContains"),
        (of(a={"$dynamicRef": "#x"}), "dynamicRef"),
        (of(a={"$ref": "#/$defs/N"}), "refers at #/properties/a to #/.defs/N, which is not in it"),
        (of(a={"$ref": "https://example.com/x.json"}), "refers"),
        (of(a={"enum": []}), "a list that is not empty at #/properties/a/enum"),
        (of(a={"minimum": "1"}), "a number at #/properties/a/minimum"),
        (of(a={"required": "n"}), "a list of names"),
        (of(a={"required": ["n", "n"]}), "a list of names"),
        (of(a={"items": [NUMBER]}), "at #/properties/a/items what is not a schema"),
        (of(a={"prefixItems": [NUMBER]}), "prefixItems"),
        (of(a={"anyOf": {}}), "a list of schemas"),
        (of(a=7), "what is not a schema"),
        ({"properties": []}, "schemas by names"),
        ({"dependentRequired": {"a": "b"}}, "what is not a schema"),
        (nested(250), "nested more than 100 levels"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place_and_reason(schema: dict[str, Any], reason: str) -> None:
    """Before anything is spent."""
    with pytest.raises(Unusable, match=reason):
        usable(schema)


def test_names_further_in_are_free() -> None:
    """The API looks at the root's alone."""
    schema = of(a=of(**{"a b": NUMBER, "ü": NUMBER}))
    assert usable(schema) == schema
