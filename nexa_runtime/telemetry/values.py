"""Any value as plain JSON that may be in a log: bounded, without secrets, whole.

Owns the bounds of a line and the form that exceptions have in it. It never raises, whatever it is given, and
never looks at local variables. ``logging`` passes each line through here before it is written.
"""

import traceback
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeAlias

from nexa_runtime.telemetry.redaction import REDACTED, is_secret_name, redact

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"

MAX_TEXT_CHARS = 8192
MAX_LINE_CHARS = 32_768
"""Of all texts of a line together."""
_ITEM_CHARS = 4
MAX_ITEMS = 100
_MAX_DEPTH = 6
_MAX_NAME_CHARS = 128
_MAX_FAULTS = 5
"""An exception and those that caused it."""
_MAX_FRAMES = 30
_SLACK_CHARS = 512
"""Looked at beyond a cut, so that a secret there is known by its shape before the cut makes it another."""
_CUT = "…"
_MAX_INT = 2**63
"""Readers of JSON give up there."""


def clean(fields: Mapping[Any, object]) -> dict[str, Plain]:
    """The fields of one line."""
    return _Cleaner().fields(fields, 0)


def describe(error: BaseException) -> list[dict[str, object]]:
    """An exception and those behind it, the last one first: type, message, and where it went through."""
    faults: list[dict[str, object]] = []
    pending: list[BaseException | None] = [error]
    while pending and len(faults) < _MAX_FAULTS:
        if (fault := pending.pop(0)) is None:
            continue
        kind = type(fault)
        frames = _frames(fault.__traceback__)
        faults.append({"type": f"{kind.__module__}.{kind.__qualname__}", "message": fault, "frames": frames})
        if isinstance(fault, BaseExceptionGroup):
            pending += fault.exceptions
        pending.append(fault.__cause__ or (None if fault.__suppress_context__ else fault.__context__))
    return faults


def _frames(trace: TracebackType | None) -> list[str]:
    """The frames nearest to the error, it last."""
    summary = traceback.StackSummary.extract(traceback.walk_tb(trace), lookup_lines=False)
    return [f"{one.filename}:{one.lineno} in {one.name}" for one in summary[-_MAX_FRAMES:]]


class _Cleaner:
    """Of one line. ``_left``: characters that its texts may still have."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_LINE_CHARS

    def fields(self, fields: Mapping[Any, object], depth: int) -> dict[str, Plain]:
        plain: dict[str, Plain] = {}
        for name, value in fields.items():
            self._left -= _ITEM_CHARS
            if len(plain) >= MAX_ITEMS or self._left <= 0:
                plain[_CUT] = _CUT
                break
            key, is_secret = _name(name if type(name) is str else str(self._safe(name, _MAX_DEPTH)))
            plain[key] = REDACTED if is_secret and value is not None else self._value(value, depth)
        return plain

    def _value(self, value: object, depth: int) -> Plain:
        if type(value) is str:
            return self._text(value)
        if value is None or value is True or value is False:
            return value
        if type(value) is int and -_MAX_INT < value < _MAX_INT:
            return value
        return self._safe(value, depth)

    def _safe(self, value: object, depth: int) -> Plain:
        """As ``_other``; what cannot be read is named by its type."""
        try:
            return self._other(value, depth)
        except Exception:  # noqa: BLE001 - any code may be behind a value
            return f"<{type(value).__name__[:_MAX_NAME_CHARS]}>"

    def _other(self, value: object, depth: int) -> Plain:
        if isinstance(value, int):
            number = int.__index__(value)
            return number if abs(number) < _MAX_INT else f"<int of {number.bit_length()} bits>"
        if isinstance(value, float):
            real = float.__float__(value)
            return real if real - real == 0 else str(real)  # JSON has no word for infinity
        if isinstance(value, str):
            return self._text(str.__str__(value))
        if isinstance(value, (bytes, bytearray)):
            head = bytes(value[: MAX_TEXT_CHARS + _SLACK_CHARS + 1])
            return self._text(head.decode("utf-8", "backslashreplace"))
        if isinstance(value, Mapping):
            return self.fields(value, depth + 1) if depth < _MAX_DEPTH else _CUT
        if isinstance(value, (Sequence, Set)):
            return self._items(value, depth + 1) if depth < _MAX_DEPTH else _CUT
        return self._text(str(value))

    def _items(self, values: Sequence[object] | Set[object], depth: int) -> list[Plain]:
        plain: list[Plain] = []
        for value in values:
            self._left -= _ITEM_CHARS
            if len(plain) >= MAX_ITEMS or self._left <= 0:
                plain.append(_CUT)
                break
            plain.append(self._value(value, depth))
        return plain

    def _text(self, text: str) -> str:
        limit = max(min(MAX_TEXT_CHARS, self._left), 0)
        text = _bounded(text, limit) if len(text) > limit else redact(_whole(text))
        self._left -= len(text)
        return text


def _name(name: str) -> tuple[str, bool]:
    """A field's name as it is written, and whether what goes by it is a secret."""
    if len(name) > _MAX_NAME_CHARS:
        return _bounded(name, _MAX_NAME_CHARS), is_secret_name(name)
    return _short_name(name)


@lru_cache(maxsize=1024)
def _short_name(name: str) -> tuple[str, bool]:
    return redact(_whole(name)), is_secret_name(name)


def _bounded(text: str, limit: int) -> str:
    """The beginning of a text that is longer."""
    shown = redact(_whole(text[: limit + _SLACK_CHARS]))
    return shown[: min(limit, max(len(shown) - _SLACK_CHARS, 0))] + _CUT


def _whole(text: str) -> str:
    """A text without halves of characters, which no encoding can write."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
