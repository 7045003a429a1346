"""Values that a model writes as bare text, typed by the tool's schema.

Owns what a schema says about the type of one parameter, and how such a text becomes JSON. It checks nothing
else of a schema. The parsers and grammars of the XML-like dialects use it.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping

from nexa_runtime.chat.messages import Json

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
STRING = frozenset({"string"})

_DEFINITIONS = ("$defs", "definitions")
_MAX_REFERENCES = 16
_MAX_STEPS = 200
"""Most schemas to look at, of which one may refer to many that do the same."""
PYTHON_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
"""Templates write these where they mean JSON, so models do."""

Schema = Mapping[str, Json]


def described(schema: Schema) -> dict[str, tuple[Schema, bool]]:
    """The schemas of an object's properties, in order, and whether each must be there.

    A required one that is not described comes last.
    """
    names = schema.get("required")
    wanted = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    properties = schema.get("properties")
    found = properties if isinstance(properties, dict) else {}
    members = {name: (object_of(one), name in wanted) for name, one in found.items()}
    return members | {name: ({}, True) for name in wanted if name not in found}


def object_of(schema: Json) -> Schema:
    """``schema``, of which nothing is known if it is no object."""
    return schema if isinstance(schema, dict) else {}


def is_open(schema: Schema) -> bool:
    """Whether an object of this schema may have any properties, and none is described."""
    return "properties" not in schema and schema.get("additionalProperties") is not False


def resolved(schema: Schema, root: Schema) -> Schema:
    """``schema`` without a reference at its top, and able to stand alone."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            break
        target: Json = {**root}
        for part in reference.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, dict) else None
        schema = {**object_of(target), **{key: one for key, one in schema.items() if key != "$ref"}}
    return {**{key: root[key] for key in _DEFINITIONS if key in root}, **schema}


def types(schema: Schema) -> frozenset[str]:
    """The types that values of this schema may have, as far as it says and is simple enough."""
    return _types(schema, schema, itertools.count())


def _types(schema: Schema, root: Schema, steps: Iterator[int]) -> frozenset[str]:
    if next(steps) > _MAX_STEPS:
        return ALL_TYPES
    schema = resolved(schema, root)
    allowed = _named(schema.get("type"))
    if "const" in schema:
        allowed &= {_type_of(schema["const"])}
    if isinstance(values := schema.get("enum"), list):
        allowed &= {_type_of(value) for value in values}
    for key in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(key), list):
            found = (_types(object_of(one), root, steps) for one in branches[:_MAX_STEPS])
            allowed &= frozenset().union(*found)
    if isinstance(branches := schema.get("allOf"), list):
        for one in branches[:_MAX_STEPS]:
            allowed &= _types(object_of(one), root, steps)
    return allowed


def json_text(text: str, allowed: frozenset[str]) -> str:
    """The JSON text of the value that ``text`` stands for, where a value may have the types ``allowed``."""
    if allowed != STRING:
        bare = text.strip()
        if "string" not in allowed:
            bare = PYTHON_CONSTANTS.get(bare, bare)
        kinds = _kinds(bare)
        if kinds and ("string" not in allowed or kinds & allowed):
            return bare
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """``text`` inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def loads(text: str) -> object:
    """The value of a JSON text. Raises ``ValueError`` if it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _kinds(text: str) -> frozenset[str]:
    """What the value of a JSON text is; nothing if it is no JSON."""
    try:
        value = loads(text)
    except ValueError:
        return frozenset()
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return frozenset({"number", "integer"})
    kind = _type_of(value)
    return frozenset({kind, "number"}) if kind == "integer" else frozenset({kind})


def _named(value: Json) -> frozenset[str]:
    names = value if isinstance(value, list) else [value]
    known = frozenset(name for name in names if isinstance(name, str)) & ALL_TYPES
    if "number" in known:
        known |= {"integer"}
    return known or ALL_TYPES


def _type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")
