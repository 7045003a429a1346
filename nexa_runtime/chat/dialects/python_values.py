"""Python literals read as they come, and turned into JSON text.

Owns the literals that models write in calls: strings, numbers, constants, lists, tuples, dicts. Nothing is
ever evaluated. ``pythonic`` reads the arguments of its calls with it.
"""

import json
import math
import re

from nexa_runtime.chat.dialects.scan import Cursor, NotACallError, Stops, Waiting, plain

_MAX_DEPTH = 64
_MAX_NUMBER = 400
_ATOM = re.compile(r"[A-Za-z0-9_.+-]*")
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


def read_literal(cursor: Cursor, depth: int = 0) -> Waiting[str]:
    """The JSON text of the literal that comes next."""
    if depth > _MAX_DEPTH:
        raise NotACallError
    char = yield from cursor.peek()
    if char in "'\"":
        return json.dumps((yield from _string(cursor, char)), ensure_ascii=False)
    if char in _CLOSING:
        return (yield from _sequence(cursor, char, depth))
    if char == "{":
        return (yield from _dict(cursor, depth))
    return _atom((yield from cursor.run(_ATOM, _MAX_NUMBER)))


def _string(cursor: Cursor, quote: str) -> Waiting[str]:
    if not (yield from cursor.literal(quote * 3)):
        yield from cursor.expect(quote)
    else:
        quote *= 3
    parts: list[str] = []
    stops = Stops("\\", quote)
    while (yield from cursor.until(stops, parts.append)) != quote:
        parts.append((yield from _escape(cursor)))
    text = plain("".join(parts))
    # Two escapes may be the halves of one character.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escape(cursor: Cursor) -> Waiting[str]:
    """What follows a backslash."""
    char = yield from cursor.char()
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char not in _HEX_LENGTHS:
        return "\\" + char
    digits = ""
    for _ in range(_HEX_LENGTHS[char]):
        digits += yield from cursor.char()
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        raise NotACallError from None


def _sequence(cursor: Cursor, opening: str, depth: int) -> Waiting[str]:
    yield from cursor.expect(opening)
    items: list[str] = []
    yield from cursor.space()
    has_comma = False
    while not (yield from cursor.literal(_CLOSING[opening])):
        if items and not has_comma:
            raise NotACallError
        items.append((yield from read_literal(cursor, depth + 1)))
        has_comma = yield from _comma(cursor)
    if opening == "(" and len(items) == 1 and not has_comma:
        return items[0]
    return f"[{', '.join(items)}]"


def _dict(cursor: Cursor, depth: int) -> Waiting[str]:
    yield from cursor.expect("{")
    items: list[str] = []
    yield from cursor.space()
    has_comma = True
    while not (yield from cursor.literal("}")):
        if not has_comma:
            raise NotACallError
        key = yield from read_literal(cursor, depth + 1)
        yield from cursor.space()
        yield from cursor.expect(":")
        yield from cursor.space()
        value = yield from read_literal(cursor, depth + 1)
        items.append(f"{key if key.startswith(chr(34)) else json.dumps(key)}: {value}")
        has_comma = yield from _comma(cursor)
    return f"{{{', '.join(items)}}}"


def _comma(cursor: Cursor) -> Waiting[bool]:
    yield from cursor.space()
    has_comma = yield from cursor.literal(",")
    yield from cursor.space()
    return has_comma


def _atom(text: str) -> str:
    """A constant or a number."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _JSON_NUMBER.fullmatch(text):
        return text
    if text[:1] not in "+-.0123456789":
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
