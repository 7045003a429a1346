"""The way through a JSON schema: its parts, and what its references name.

Owns which keywords hold schemas. It judges nothing but references, and knows no bounds: ``schema`` has them,
and calls this. Nothing here recurses.
"""

import json
from collections.abc import Iterator, Mapping
from typing import NoReturn
from urllib.parse import unquote

from nexa_runtime.chat.messages import Json
from nexa_runtime.errors import InvalidRequestError

ONE = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
IN_PLACE = ("allOf", "anyOf", "oneOf")
_NOTES = {
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "discriminator",
    "description",
    "examples",
    "readOnly",
    "title",
    "type",
    "writeOnly",
    "x-guidance",
}
"""Keywords that ask nothing of a value, or no more than its type."""


def nodes(root: Json, param: str) -> Iterator[dict[str, Json]]:
    """All objects among the schemas in ``root``, once each; whatever a ``$ref`` names is a schema too."""
    anchors: set[str] = set()
    references: list[str] = []
    waiting, seen = [root], set()
    while waiting or references:
        if not waiting:
            target = references.pop()
            if target[1:] not in anchors:
                waiting.append(resolve(root, target, param))
            continue
        node = waiting.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(anchor := node.get("$anchor"), str):
            anchors.add(anchor)
        reference = node.get("$ref")
        if isinstance(reference, str):
            references.append(reference)
        waiting.extend(node[key] for key in ONE if key in node)
        waiting.extend(one for key in LISTS for one in as_list(node, key))
        waiting.extend(one for key in MAPS for one in as_map(node, key).values())


def resolve(root: Mapping[str, Json] | Json, reference: str, param: str = "") -> Json:
    """What a ``$ref`` names, an object or a boolean. Source: RFC 6901, in its form for URIs.

    Raises ``InvalidRequestError`` if it names nothing, which a checked schema has not. True for an anchor,
    without ``param``: an anchor is left to the compiler.
    """
    if not reference.startswith("#"):
        refuse_schema(f"its $ref {_shown(reference)} leads out of it", param)
    pointer = unquote(reference[1:])
    node: Json = dict(root) if isinstance(root, Mapping) and not isinstance(root, dict) else root
    if pointer and not pointer.startswith("/"):
        if param:
            refuse_schema(f"its $ref {_shown(reference)} names nothing in it", param)
        return True
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key[:9]) < len(node):
            node = node[int(key[:9])]
        else:
            refuse_schema(f"its $ref {_shown(reference)} names nothing in it", param)
    if not isinstance(node, dict | bool):
        refuse_schema(f"its $ref {_shown(reference)} names no schema", param)
    return node


def is_mixed(node: dict[str, Json]) -> bool:
    """Whether more than one schema applies to a value at this place."""
    num_parts = len(as_list(node, "allOf")) + sum(key in node for key in ("$ref", "anyOf", "oneOf"))
    others = node.keys() - _NOTES - {"allOf", "$ref", "anyOf", "oneOf"}
    return num_parts + bool(others) > 1


def as_list(node: dict[str, Json], key: str) -> list[Json]:
    value = node.get(key)
    return value if isinstance(value, list) else []


def as_map(node: Json, key: str) -> dict[str, Json]:
    value = node.get(key) if isinstance(node, dict) else None
    return value if isinstance(value, dict) else {}


def _shown(reference: str) -> str:
    return json.dumps(reference if len(reference) <= 80 else f"{reference[:80]}…", ensure_ascii=False)


def refuse_schema(reason: str, param: str) -> NoReturn:
    raise InvalidRequestError(f"The JSON schema cannot be used: {reason}.", param=param)
