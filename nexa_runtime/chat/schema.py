"""JSON schemas of users, looked at before anybody compiles them.

Owns the bounds of a schema, the rule that it refers to nothing outside itself, and what is strict about a
strict one. It compiles nothing and knows no grammar; ``grammar_text`` calls it, and whoever writes a schema
into a dialect's grammar calls ``closed``. No function here recurses deeper than ``MAX_DEPTH``.

How objects are closed: an object that says nothing of other properties gets ``additionalProperties`` false.
Where several schemas apply to one object (``allOf``, or ``$ref`` and ``anyOf`` beside ``properties``),
closing each would leave nothing that fits all; there the whole is closed around the names that they know
together, and its parts stay open. A definition that is such a part gets an open copy, as it may be used alone
elsewhere.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NoReturn

from nexa_runtime.chat.messages import Json
from nexa_runtime.chat.schema_walk import (
    IN_PLACE,
    LISTS,
    MAPS,
    ONE,
    as_list,
    as_map,
    is_mixed,
    nodes,
    refuse_schema,
    resolve,
)

MAX_BYTES = 128 * 1024
MAX_DEPTH = 96
"""Lists and objects inside one another."""
MAX_PROPERTIES = 2_000
MAX_ENUM = 10_000
"""Values of all ``enum`` together."""
MAX_MULTIPLE = 50_000
"""Least common multiple of all ``multipleOf``: as many states has the automaton that checks it."""
MAX_REPETITIONS = 100_000
"""How often a pattern may repeat its innermost part, with all ``{m,n}`` around it multiplied."""
MAX_PLAIN_NODES = 500
MAX_PLAIN_PATTERNS = 8

_REPETITION = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(|\)|\{(\d+)(?:,(\d*))?\}", re.DOTALL)
_SAYS = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def parse_schema(text: str, param: str) -> Json:
    """The schema in ``text``, within all bounds. Raises ``InvalidRequestError``."""
    if len(text) > MAX_BYTES:
        refuse_schema(f"it is longer than {MAX_BYTES // 1024} KiB", param)
    try:
        schema: Json = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        refuse_schema("it is not valid JSON", param)
    check_schema(schema, param)
    return schema


def check_schema(schema: Mapping[str, Json] | Json, param: str) -> None:
    """Raise ``InvalidRequestError`` if a schema is out of bounds or refers to what is not in it."""
    if not isinstance(schema, dict | bool):
        refuse_schema("it is neither an object nor a boolean", param)
    if _is_too_deep(schema):
        refuse_schema(f"it is nested more than {MAX_DEPTH} levels deep", param)
    try:
        num_bytes = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except ValueError:
        refuse_schema("it has a number or a text that JSON cannot hold", param)
    if num_bytes > MAX_BYTES:
        refuse_schema(f"it is longer than {MAX_BYTES // 1024} KiB", param)
    num_properties = num_enum = 0
    multiples: list[Fraction] = []
    for node in nodes(schema, param):
        num_properties += len(as_map(node, "properties")) + len(as_map(node, "patternProperties"))
        num_enum += len(as_list(node, "enum"))
        multiple = node.get("multipleOf")
        if isinstance(multiple, int | float) and multiple > 0:
            multiples.append(Fraction(str(multiple)))
        _check_bounds(node, param)
        _check_patterns(node, param)
    if num_properties > MAX_PROPERTIES:
        refuse_schema(f"it has more than {MAX_PROPERTIES} properties", param)
    if num_enum > MAX_ENUM:
        refuse_schema(f"it has more than {MAX_ENUM} enum values", param)
    if _common_multiple(multiples) > MAX_MULTIPLE:
        refuse_schema("its multipleOf values are too large together", param)


def _check_bounds(node: dict[str, Json], param: str) -> None:
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        bound = node.get(key)
        if isinstance(bound, int) and abs(bound) >= 2**63:
            refuse_schema(f"its {key} has more than 63 bits", param)


def _check_patterns(node: dict[str, Json], param: str) -> None:
    for pattern in (node.get("pattern"), *as_map(node, "patternProperties")):
        if isinstance(pattern, str) and num_repetitions(pattern) > MAX_REPETITIONS:
            refuse_schema(f"a pattern in it repeats something more than {MAX_REPETITIONS} times", param)


def is_plain(schema: Json) -> bool:
    """Whether it is small and no value has to fit several schemas at once: what else may take long."""
    all_nodes = list(nodes(schema, ""))
    num_patterns = sum(len(as_map(node, "patternProperties")) for node in all_nodes)
    is_small = len(all_nodes) <= MAX_PLAIN_NODES and num_patterns <= MAX_PLAIN_PATTERNS
    return is_small and not any(is_mixed(node) for node in all_nodes)


def closed(schema: dict[str, Json]) -> dict[str, Json]:
    """A copy of a checked schema in which objects have no properties but those it names."""
    return _Closer(schema).result()


class _Closer:
    def __init__(self, root: dict[str, Json]) -> None:
        self._root = root
        self._opened: dict[str, str] = {}
        """``$ref`` → name of its open copy."""
        self._waiting: list[str] = []

    def result(self) -> dict[str, Json]:
        new = self._close_object(self._root, is_open=False)
        copies: dict[str, Json] = {}
        while self._waiting:
            reference = self._waiting.pop()
            copies[self._opened[reference]] = self._close(resolve(self._root, reference), is_open=True)
        if copies:
            new["$defs"] = {**as_map(new, "$defs"), **copies}
        return new

    def _close(self, node: Json, *, is_open: bool) -> Json:
        return self._close_object(node, is_open=is_open) if isinstance(node, dict) else node

    def _close_object(self, node: dict[str, Json], *, is_open: bool) -> dict[str, Json]:
        is_whole = is_mixed(node)
        new = {key: self._close_below(key, value, is_open or is_whole) for key, value in node.items()}
        if is_open or self._says(node):
            return new
        if is_whole:
            if names := self._names(node):
                own = as_map(new, "properties")
                new["properties"] = {**own, **{name: True for name in names if name not in own}}
                new["additionalProperties"] = False
        elif _is_object(node):
            new["additionalProperties"] = False
        return new

    def _close_below(self, key: str, value: Json, is_part: bool) -> Json:
        """What stands under a keyword. ``is_part``: the schemas that apply in place are parts of a whole."""
        if key in MAPS and isinstance(value, dict):
            return {name: self._close(one, is_open=False) for name, one in value.items()}
        if key in LISTS and isinstance(value, list):
            return [self._close(one, is_open=is_part and key in IN_PLACE) for one in value]
        if key in ONE:
            return self._close(value, is_open=key in ("if", "then", "else", "not"))
        if key == "$ref" and isinstance(value, str) and is_part:
            return self._open_copy(value)
        return value

    def _open_copy(self, reference: str) -> str:
        if reference not in self._opened:
            taken = as_map(self._root, "$defs")
            name = f"open{len(self._opened)}"
            while name in taken:
                name += "_"
            self._opened[reference] = name
            self._waiting.append(reference)
        return f"#/$defs/{self._opened[reference]}"

    def _parts(self, node: dict[str, Json]) -> Iterator[dict[str, Json]]:
        """The schemas that apply to the same value as ``node``, itself among them."""
        waiting: list[Json] = [node]
        seen: set[int] = set()
        while waiting:
            one = waiting.pop()
            if not isinstance(one, dict) or id(one) in seen:
                continue
            seen.add(id(one))
            yield one
            parts = [part for key in IN_PLACE for part in as_list(one, key)]
            parts += [one[key] for key in ("then", "else") if key in one]
            if isinstance(reference := one.get("$ref"), str):
                parts.append(resolve(self._root, reference))
            waiting.extend(reversed(parts))

    def _says(self, node: dict[str, Json]) -> bool:
        if not is_mixed(node):
            return any(key in node for key in _SAYS)
        return any(key in part for part in self._parts(node) for key in _SAYS)

    def _names(self, node: dict[str, Json]) -> list[str]:
        return list(dict.fromkeys(name for part in self._parts(node) for name in as_map(part, "properties")))


def _is_object(node: dict[str, Json]) -> bool:
    kind = node.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in node


def num_repetitions(pattern: str) -> int:
    """How often the ``{m,n}`` of a regular expression repeat what is inside most of them, at most."""
    most, inside = 1, [1]
    """``inside``: per open group, the most repetitions of anything in it."""
    closed_group = 1
    for part in _REPETITION.finditer(pattern):
        text = part[0]
        if text == "(":
            inside.append(1)
        elif text == ")":
            closed_group = inside.pop() if len(inside) > 1 else 1
            inside[-1] = max(inside[-1], closed_group)
        elif text[0] == "{":
            times = max(int(number[:9]) for number in (part[1] or "1", part[2] or "1"))
            follows_group = pattern[part.start() - 1 : part.start()] == ")"
            inside[-1] = max(inside[-1], times * (closed_group if follows_group else 1))
        most = max(most, inside[-1])
    return most


def _common_multiple(values: list[Fraction]) -> int:
    """The least common multiple, in units of the smallest decimal place; factors of ten cost nothing."""
    scale = math.lcm(*(value.denominator for value in values))
    whole = math.lcm(*(int(value * scale) for value in values))
    while whole % 10 == 0:
        whole //= 10
    return whole


def _is_too_deep(schema: Json) -> bool:
    level: list[Json] = [schema]
    for _ in range(MAX_DEPTH + 1):
        below: list[Json] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        if not below:
            return False
        level = below
    return any(isinstance(one, dict | list) for one in level)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
