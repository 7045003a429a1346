"""One JSON value in a text that comes piece by piece.

Owns the automaton: what is valid, and where the value ends. It keeps no text and reads no character twice.
It never looks for calls; ``calls`` does, on top of it.
"""

import json
import re

from nexa_runtime.chat.messages import Json

SPACE = " \t\n\r"
"""What JSON counts as space."""

_MAX_DEPTH = 200
"""Deepest nesting: whoever reads the value again may use a parser that recurses."""
_PLAIN = re.compile(r'[^"\\\x00-\x1f\ufdd0]*')
"""Inside a string, up to what needs a look. A marker's token is never part of one."""
_HEX = "0123456789abcdefABCDEF"
_DIGITS = "0123456789"
_NUMBER = {
    "-": {"0": "zero", "123456789": "whole"},
    "zero": {".": "point", "eE": "e"},
    "whole": {_DIGITS: "whole", ".": "point", "eE": "e"},
    "point": {_DIGITS: "fraction"},
    "fraction": {_DIGITS: "fraction", "eE": "e"},
    "e": {"+-": "sign", _DIGITS: "exponent"},
    "sign": {_DIGITS: "exponent"},
    "exponent": {_DIGITS: "exponent"},
}
_NUMBER_ENDS = {"zero", "whole", "fraction", "exponent"}
"""States in which a number may end."""
_WHOLE_CHARS = re.compile(
    r'(?:[^\\"]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}'
    r"(?:\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?=[^\\]|\\[^u]|\\u(?![dD][c-fC-F])[0-9a-fA-F]{4})))*"
)
"""Inside a string, characters and escapes of which nothing is missing."""
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}


class JsonScanner:
    """Finds the end of one value, strictly by RFC 8259; space in front of it belongs to it."""

    def __init__(self) -> None:
        self.is_complete = False
        """The value is whole. A number alone is so only when something else, or ``finish``, follows it."""
        self.is_broken = False
        self._state = self._value
        self._stack: list[str] = []
        self._rest = ""
        self._number = ""
        self._is_key = False

    def feed(self, text: str, start: int = 0) -> int:
        """Reads on from ``start``. Returns where the value's text stops: at what follows the value, at what
        breaks it, or at the end of ``text``.
        """
        at = start
        while at < len(text) and not (self.is_complete or self.is_broken):
            if self._state == self._string:
                match = _PLAIN.match(text, at)
                at = match.end() if match else at
                if at == len(text):
                    break
            at += self._state(text[at])
        return at

    def finish(self) -> None:
        """No text follows."""
        if not self._stack and self._number in _NUMBER_ENDS:
            self.is_complete = True

    # A state takes one character and returns whether it belongs to the value.

    def _value(self, char: str) -> bool:
        if char in SPACE:
            return True
        if char == '"':
            self._is_key = False
            self._state = self._string
        elif char in "{[":
            if len(self._stack) == _MAX_DEPTH:
                return self._break()
            self._stack.append("}" if char == "{" else "]")
            self._state = self._first_key if char == "{" else self._first_item
        elif char == "-" or char in _DIGITS:
            self._number = "-" if char == "-" else "zero" if char == "0" else "whole"
            self._state = self._in_number
        elif char in _LITERALS:
            self._rest = _LITERALS[char]
            self._state = self._in_literal
        else:
            return self._break()
        return True

    def _first_item(self, char: str) -> bool:
        return self._after(char) if char == "]" else self._value(char)

    def _first_key(self, char: str) -> bool:
        return self._after(char) if char == "}" else self._key(char)

    def _key(self, char: str) -> bool:
        if char == '"':
            self._is_key = True
            self._state = self._string
        elif char not in SPACE:
            return self._break()
        return True

    def _colon(self, char: str) -> bool:
        if char == ":":
            self._state = self._value
        elif char not in SPACE:
            return self._break()
        return True

    def _after(self, char: str) -> bool:
        """Behind a value inside an object or array."""
        if char == self._stack[-1]:
            self._stack.pop()
            self._end_value()
        elif char == ",":
            self._state = self._key if self._stack[-1] == "}" else self._value
        elif char not in SPACE:
            return self._break()
        return True

    def _string(self, char: str) -> bool:
        if char == "\\":
            self._state = self._escape
        elif char == '"' and self._is_key:
            self._state = self._colon
        elif char == '"':
            self._end_value()
        elif char < " " or char == "\ufdd0":
            return self._break()
        return True

    def _escape(self, char: str) -> bool:
        if char == "u":
            self._rest = "xxxx"
            self._state = self._hex
        elif char in '"\\/bfnrt':
            self._state = self._string
        else:
            return self._break()
        return True

    def _hex(self, char: str) -> bool:
        if char not in _HEX:
            return self._break()
        self._rest = self._rest[1:]
        if not self._rest:
            self._state = self._string
        return True

    def _in_number(self, char: str) -> bool:
        for chars, state in _NUMBER[self._number].items():
            if char in chars:
                self._number = state
                return True
        if self._number not in _NUMBER_ENDS:
            return self._break()
        self._end_value()
        return not self.is_complete and self._after(char)

    def _in_literal(self, char: str) -> bool:
        if char != self._rest[0]:
            return self._break()
        self._rest = self._rest[1:]
        if not self._rest:
            self._end_value()
        return True

    def _end_value(self) -> None:
        self.is_complete = not self._stack
        self._state = self._after

    def _break(self) -> bool:
        self.is_broken = True
        return False


class Unescaper:
    """What a JSON string says, while it comes: fed with a valid string's text, quotes included."""

    def __init__(self) -> None:
        self._has_begun = False
        self._held = ""

    def add(self, text: str) -> str:
        """What ``text``, the next piece, adds. An escape waits until it is whole, and a surrogate for its
        pair.
        """
        if not self._has_begun and text:
            self._has_begun = True
            text = text[1:]
        text = self._held + text
        match = _WHOLE_CHARS.match(text)
        end = match.end() if match else 0
        self._held = text[end:]
        return text_of(f'"{text[:end]}"')


def object_text(text: str) -> str | None:
    """The text of the JSON object that ``text``, a JSON string, holds; None if it holds none."""
    inner = text_of(text).strip(SPACE)
    return inner if inner.startswith("{") and is_json(inner) else None


def is_json(text: str) -> bool:
    """Whether ``text`` is one JSON value."""
    scanner = JsonScanner()
    end = scanner.feed(text)
    scanner.finish()
    return scanner.is_complete and end == len(text)


def text_of(text: str) -> str:
    """What a valid JSON string says; half of a surrogate pair, which no text may have, is replaced."""
    value: Json = json.loads(text)
    assert isinstance(value, str)
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
