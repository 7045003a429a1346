"""Bounded JSON schemas of every kind that clients send."""

from typing import Any

STRING: dict[str, Any] = {"type": "string", "maxLength": 12}


def record(**properties: Any) -> dict[str, Any]:
    """An object with just these properties, all of them required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def items(schema: dict[str, Any], low: int, high: int) -> dict[str, Any]:
    """A list of ``low`` to ``high`` of these."""
    return {"type": "array", "items": schema, "minItems": low, "maxItems": high}


_POINT = record(
    x={"type": "integer", "minimum": -9, "maximum": 9}, y={"type": "number", "minimum": 0, "maximum": 1}
)

SCHEMAS: dict[str, dict[str, Any]] = {
    "one text": record(name=STRING),
    "an integer in a range": record(age={"type": "integer", "minimum": 0, "maximum": 120}),
    "a number in a range": record(share={"type": "number", "minimum": 0, "maximum": 1}),
    "exclusive bounds": record(n={"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 7}),
    "a multiple": record(n={"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5}),
    "a boolean": record(is_open={"type": "boolean"}),
    "null": record(nothing={"type": "null"}),
    "texts of an enum": record(color={"enum": ["red", "green", "blue"]}),
    "values of an enum": record(value={"enum": [1, "two", None, True, [3]]}),
    "a constant": record(kind={"const": "fixed"}, size={"type": "integer", "minimum": 1, "maximum": 3}),
    "a pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "a pattern with choices": record(time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}),
    "lengths": record(word={"type": "string", "minLength": 3, "maxLength": 6}),
    "nested objects": record(outer=record(middle=record(inner=STRING))),
    "a list of integers": record(values=items({"type": "integer", "minimum": 0, "maximum": 9}, 1, 4)),
    "a list of objects": record(points=items(_POINT, 0, 3)),
    "lists of lists": record(grid=items(items({"type": "boolean"}, 2, 2), 2, 2)),
    "a tuple": record(
        pair={
            "type": "array",
            "prefixItems": [STRING, {"type": "integer", "minimum": 0, "maximum": 9}],
            "items": False,
            "minItems": 2,
            "maxItems": 2,
        }
    ),
    "a reference": {
        **record(a={"$ref": "#/$defs/point"}, b={"$ref": "#/$defs/point"}),
        "$defs": {"point": _POINT},
    },
    "references to references": {
        **record(a={"$ref": "#/$defs/one"}),
        "$defs": {"one": record(b={"$ref": "#/$defs/two"}), "two": {"enum": ["x", "y"]}},
    },
    "any of two types": record(
        value={"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 5}]}
    ),
    "any of two objects": {
        "anyOf": [
            record(kind={"const": "cat"}, lives={"type": "integer", "minimum": 1, "maximum": 9}),
            record(kind={"const": "dog"}, name=STRING),
        ]
    },
    "a text or null": record(nick={"type": ["string", "null"], "maxLength": 8}),
    "optional properties": {
        "type": "object",
        "properties": {
            "a": STRING,
            "b": {"type": "integer", "minimum": 0, "maximum": 9},
            "c": {"type": "null"},
        },
        "required": ["b"],
        "additionalProperties": False,
    },
    "a date": record(day={"type": "string", "format": "date"}),
    "a uuid": record(id={"type": "string", "format": "uuid"}),
    "a list at the top": items({"enum": ["a", "b", "c"]}, 1, 5),
    "an enum at the top": {"enum": ["yes", "no"]},
    "all of": {"allOf": [record(a={"enum": [1, 2]}, b={"type": "boolean"})]},
    "an order": record(
        customer=record(name=STRING, vip={"type": "boolean"}),
        lines=items(
            record(
                sku={"type": "string", "pattern": "^[a-z]{3}[0-9]{2}$"},
                count={"type": "integer", "minimum": 1, "maximum": 99},
                price={"type": "number", "minimum": 0, "maximum": 100},
                tags=items({"enum": ["new", "sale", "last"]}, 0, 2),
            ),
            1,
            3,
        ),
        note={"anyOf": [STRING, {"type": "null"}]},
    ),
}
