"""Python literals read as they come, and turned into JSON text.

Owns the literals that models write in calls: strings, numbers, constants, lists, tuples, dicts. Nothing is
ever evaluated. ``pythonic`` reads the arguments of its calls with it.
"""

import json
import math
import re
import string

from nexa_runtime.chat.dialects.base import plain
from nexa_runtime.chat.dialects.calls import NotACallError
from nexa_runtime.chat.dialects.reading import Reader, Steps, Stops
from nexa_runtime.chat.dialects.words import char, expect, run, until

_MAX_DEPTH = 64
_MAX_NUMBER = 400
_ATOM = frozenset(string.ascii_letters + string.digits + "_.+-")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_CONSTANTS = {
    "True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null",
}  # fmt: skip
_CLOSING = {"[": "]", "(": ")"}
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": "",
    "\\": "\\", "'": "'", '"': '"', "/": "/",
}  # fmt: skip
_HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}


def read_literal(reader: Reader, depth: int = 0) -> Steps[str]:
    """The JSON text of the literal that comes next."""
    if depth > _MAX_DEPTH:
        raise NotACallError
    first = yield from reader.peek()
    if first in ("'", '"'):
        return json.dumps((yield from _string(reader, first)), ensure_ascii=False)
    if first in _CLOSING:
        return (yield from _sequence(reader, first, depth))
    if first == "{":
        return (yield from _dict(reader, depth))
    return _atom((yield from run(reader, _ATOM, _MAX_NUMBER)))


def _string(reader: Reader, quote: str) -> Steps[str]:
    if not (yield from reader.literal(quote * 3)):
        yield from expect(reader, quote)
    else:
        quote *= 3
    parts: list[str] = []
    stops = Stops(["\\", quote])
    while (yield from until(reader, stops, parts.append)) != quote:
        parts.append((yield from _escape(reader)))
    text = plain("".join(parts))
    # Two escapes may be the halves of one character.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escape(reader: Reader) -> Steps[str]:
    """What follows a backslash."""
    kind = yield from char(reader)
    if kind in _ESCAPES:
        return _ESCAPES[kind]
    if kind not in _HEX_LENGTHS:
        return "\\" + kind
    digits = ""
    for _ in range(_HEX_LENGTHS[kind]):
        digits += yield from char(reader)
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        raise NotACallError from None


def _sequence(reader: Reader, opening: str, depth: int) -> Steps[str]:
    yield from expect(reader, opening)
    items: list[str] = []
    yield from reader.space()
    has_comma = False
    while not (yield from reader.literal(_CLOSING[opening])):
        if items and not has_comma:
            raise NotACallError
        items.append((yield from read_literal(reader, depth + 1)))
        has_comma = yield from _comma(reader)
    if opening == "(" and len(items) == 1 and not has_comma:
        return items[0]
    return f"[{', '.join(items)}]"


def _dict(reader: Reader, depth: int) -> Steps[str]:
    yield from expect(reader, "{")
    items: list[str] = []
    yield from reader.space()
    has_comma = True
    while not (yield from reader.literal("}")):
        if not has_comma:
            raise NotACallError
        key = yield from read_literal(reader, depth + 1)
        yield from reader.space()
        yield from expect(reader, ":")
        yield from reader.space()
        value = yield from read_literal(reader, depth + 1)
        items.append(f"{key if key.startswith(chr(34)) else json.dumps(key)}: {value}")
        has_comma = yield from _comma(reader)
    return f"{{{', '.join(items)}}}"


def _comma(reader: Reader) -> Steps[bool]:
    yield from reader.space()
    has_comma = yield from reader.literal(",")
    yield from reader.space()
    return has_comma


def _atom(text: str) -> str:
    """A constant or a number."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _JSON_NUMBER.fullmatch(text):
        return text
    if not text or text[0] not in "+-.0123456789":
        raise NotACallError
    try:
        return json.dumps(int(text, 0))
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        raise NotACallError from None
    if not math.isfinite(value):
        raise NotACallError
    return json.dumps(value)
