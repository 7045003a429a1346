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
from collections.abc import Mapping
from decimal import Decimal
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
_MAX_MULTIPLE_DIGITS = 17
"""As a float has."""
MAX_REPETITIONS = 100_000
"""How often a pattern may repeat its innermost part, with all ``{m,n}`` around it multiplied."""
MAX_PLAIN_NODES = 500
"""Of one schema: so many may refer to one another in a chain."""
MAX_PLAIN_PARTS = 2_000
"""Of all schemas of a grammar: their nodes, and the names that they require."""
MAX_PLAIN_PATTERNS = 8

_REPETITION = re.compile(r"\\.|\[(?:\\.|[^\]\\])*+\]?|\(|\)|\{(\d+)(?:,(\d*))?\}", re.DOTALL)
_NAMING = ("$anchor", "$defs", "$id", "definitions")
"""Keywords that give names to schemas, which a copy must not give again."""
_CLOSING_BYTES = len(', "properties": {}, "additionalProperties": false')
_MAX_NAMES = 50_000
"""Names of properties put together for all wholes, 25 times what one may have: 10 ms."""
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
        num_bytes = _num_bytes(schema)
    except ValueError:
        refuse_schema("it has a number or a text that JSON cannot hold", param)
    if num_bytes > MAX_BYTES:
        refuse_schema(f"it is longer than {MAX_BYTES // 1024} KiB", param)
    num_properties = num_enum = 0
    multiples: list[int | float] = []
    for node in nodes(schema, param):
        num_properties += len(as_map(node, "properties")) + len(as_map(node, "patternProperties"))
        num_enum += len(as_list(node, "enum"))
        multiple = node.get("multipleOf")
        if isinstance(multiple, int | float) and not isinstance(multiple, bool) and multiple > 0:
            multiples.append(multiple)
        _check_bounds(node, param)
        _check_patterns(node, param)
    if num_properties > MAX_PROPERTIES:
        refuse_schema(f"it has more than {MAX_PROPERTIES} properties", param)
    if num_enum > MAX_ENUM:
        refuse_schema(f"it has more than {MAX_ENUM} enum values", param)
    if not _have_small_multiple(multiples):
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


def is_plain(*schemas: Json) -> bool:
    """Whether schemas of one grammar are small, alone and together, and no value has to fit several at once.

    A hint for who compiles them, and no proof. Sixty such that were made to be slow took 0.3 s at most.
    """
    num_parts = num_patterns = 0
    for schema in schemas:
        all_nodes = list(nodes(schema, ""))
        if len(all_nodes) > MAX_PLAIN_NODES or any(is_mixed(node) for node in all_nodes):
            return False
        num_parts += sum(1 + len(as_list(node, "required")) for node in all_nodes)
        num_patterns += sum(len(as_map(node, "patternProperties")) for node in all_nodes)
    return num_parts <= MAX_PLAIN_PARTS and num_patterns <= MAX_PLAIN_PATTERNS


def closed(schema: dict[str, Json], param: str = "") -> dict[str, Json]:
    """A copy of a checked schema in which objects have no properties but those it names.

    Raises ``InvalidRequestError`` if the copy is out of bounds, or a part of a whole is the whole itself.
    """
    return _Closer(schema, param).result()


class _Closer:
    def __init__(self, root: dict[str, Json], param: str) -> None:
        self._root = root
        self._param = param
        self._size = _num_bytes(root)
        self._references = _References(root)
        self._wholes = _Wholes(self._references, param)
        self._opened: dict[int, str] = {}
        """``id`` of what a ``$ref`` names → name of its open copy."""
        self._waiting: list[dict[str, Json]] = []
        """What has to be copied still."""

    def result(self) -> dict[str, Json]:
        new = self._close_object(self._root, is_open=False)
        copies: dict[str, Json] = {}
        while self._waiting:
            node = self._waiting.pop()
            copied = {key: value for key, value in node.items() if key not in _NAMING}
            self._spend(_num_bytes(copied))
            copies[self._opened[id(node)]] = self._close_object(copied, is_open=True)
        if copies:
            new["$defs"] = {**as_map(new, "$defs"), **copies}
        self._check(_num_bytes(new))
        return new

    def _close(self, node: Json, *, is_open: bool) -> Json:
        return self._close_object(node, is_open=is_open) if isinstance(node, dict) else node

    def _close_object(self, node: dict[str, Json], *, is_open: bool) -> dict[str, Json]:
        is_whole = is_mixed(node)
        new = {key: self._close_below(key, value, is_open or is_whole) for key, value in node.items()}
        if is_open:
            return new
        if is_whole:
            if names := self._wholes.names(node):
                own = as_map(new, "properties")
                others: dict[str, Json] = {name: True for name in names if name not in own}
                self._spend(_num_bytes(others) + _CLOSING_BYTES)
                new["properties"] = {**own, **others}
                new["additionalProperties"] = False
        elif _is_object(node) and not _says(node):
            self._spend(_CLOSING_BYTES)
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
        node = self._references.target(reference)
        if not isinstance(node, dict):
            return reference
        if id(node) not in self._opened:
            taken = as_map(self._root, "$defs")
            name = f"open{len(self._opened)}"
            while name in taken:
                name += "_"
            self._opened[id(node)] = name
            self._waiting.append(node)
        return f"#/$defs/{self._opened[id(node)]}"

    def _spend(self, num_bytes: int) -> None:
        """Count what will be added, before the work is done."""
        self._size += num_bytes
        self._check(self._size)

    def _check(self, size: int) -> None:
        if size > MAX_BYTES:
            reason = f"with its objects closed, as strict, it is longer than {MAX_BYTES // 1024} KiB"
            refuse_schema(reason, self._param)


class _References:
    """What each ``$ref`` of one schema names, anchors too."""

    def __init__(self, root: dict[str, Json]) -> None:
        self._root = root
        self._anchors = {
            anchor: node for node in nodes(root, "") if isinstance(anchor := node.get("$anchor"), str)
        }

    def target(self, reference: str) -> Json:
        anchored = self._anchors.get(reference[1:])
        return resolve(self._root, reference) if anchored is None else anchored


class _Wholes:
    """What the schemas that apply to one value together say of its properties; each is looked at once."""

    def __init__(self, references: _References, param: str) -> None:
        self._references = references
        self._param = param
        self._known: dict[int, dict[str, None] | None] = {}
        """``id`` of a schema → as ``names``."""
        self._num_names = 0

    def names(self, node: dict[str, Json]) -> dict[str, None] | None:
        """The properties named by ``node`` and all that applies in place; None if any of it says something
        of other properties.
        """
        waiting, entered = [(node, False)], set[int]()
        while waiting:
            one, is_done = waiting.pop()
            if is_done:
                self._known[id(one)] = self._joined(one)
            elif id(one) not in self._known:
                if id(one) in entered:
                    refuse_schema("a part of it, by its $ref, is the whole again", self._param)
                entered.add(id(one))
                waiting.append((one, True))
                waiting.extend((part, False) for part in self._parts(one))
        return self._known[id(node)]

    def _joined(self, node: dict[str, Json]) -> dict[str, None] | None:
        """As ``names``, where those of the parts are known."""
        found = [self._known[id(part)] for part in self._parts(node)]
        if _says(node) or None in found:
            return None
        named = [one for one in (dict.fromkeys(as_map(node, "properties")), *found) if one]
        if len(named) < 2:
            return named[0] if named else {}
        self._num_names += sum(map(len, named))
        if self._num_names > _MAX_NAMES:
            refuse_schema("too many of its schemas with properties apply to one value", self._param)
        return {name: None for one in named for name in one}

    def _parts(self, node: dict[str, Json]) -> list[dict[str, Json]]:
        """The schemas that ``node`` applies to its own value."""
        parts = [part for key in IN_PLACE for part in as_list(node, key)]
        parts += [node[key] for key in ("then", "else") if key in node]
        if isinstance(reference := node.get("$ref"), str):
            parts.append(self._references.target(reference))
        return [part for part in parts if isinstance(part, dict)]


def _says(node: dict[str, Json]) -> bool:
    return any(key in node for key in _SAYS)


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


def _have_small_multiple(values: list[int | float]) -> bool:
    """Whether the least common multiple, in units of the smallest decimal place, is within its bound; factors
    of ten cost nothing. All numbers stay small on the way to it.
    """
    others, twos, fives = 1, list[int](), list[int]()
    """The factors of all values: the exponents of 2 and 5, which may be negative, and what is left."""
    for value in set(values):
        number = Decimal(str(value)).as_tuple()
        digits = "".join(map(str, number.digits)).rstrip("0")
        if len(digits) > _MAX_MULTIPLE_DIGITS:
            return False
        exponent = int(number.exponent) + len(number.digits) - len(digits)
        rest, num_twos = _divided(int(digits), 2)
        rest, num_fives = _divided(rest, 5)
        others = math.lcm(others, rest)
        if others > MAX_MULTIPLE:
            return False
        twos.append(exponent + num_twos)
        fives.append(exponent + num_fives)
    num_twos = max(twos, default=0) - min([0, *twos])
    num_fives = max(fives, default=0) - min([0, *fives])
    num_tens = min(num_twos, num_fives)
    most = MAX_MULTIPLE.bit_length()
    if max(num_twos, num_fives) - num_tens > most:
        return False
    multiple: int = others * 2 ** (num_twos - num_tens) * 5 ** (num_fives - num_tens)
    return multiple <= MAX_MULTIPLE


def _divided(number: int, factor: int) -> tuple[int, int]:
    """``number`` without a factor, and how often it had it."""
    times = 0
    while number % factor == 0:
        number //= factor
        times += 1
    return number, times


def _num_bytes(schema: Mapping[str, Json] | Json) -> int:
    """The size of its JSON. Raises ``ValueError`` if it is none."""
    return len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())


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
