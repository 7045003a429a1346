"""A line's fields as text: JSON for programs, words for whoever watches a terminal.

Owns how lines look, and that none can be taken for two or move a cursor: all that is not a plain character is
escaped. ``logging`` chooses one of the two; the fields come from ``values``.
"""

import json

import orjson

from nexa_runtime.telemetry.values import Plain

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode

_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31"}


def as_json(fields: dict[str, Plain]) -> str:
    """One line, in ASCII alone: no reader, and no encoding of the target, sees another end in it."""
    line = orjson.dumps(fields).decode()  # in a sixth of the time
    return line if line.isascii() and "\x7f" not in line else _encode(fields).replace("\x7f", "\\u007f")


def as_words(fields: dict[str, Plain]) -> str:
    """One line, and one more for each part of an exception."""
    rest = dict(fields)
    exception = rest.pop("exception", None)
    time = str(rest.pop("timestamp", ""))[11:23]
    level, room, event = (_shown(rest.pop(name, "")) for name in ("level", "room", "event"))
    colour = _COLOURS.get(level, "0")
    words = [f"\x1b[2m{time}\x1b[0m", f"\x1b[{colour}m{level:<7}\x1b[0m", room, f"\x1b[1m{event}\x1b[0m"]
    words += [f"{_shown(name)}={_shown(value)}" for name, value in rest.items() if value is not None]
    return "\n".join([" ".join(words), *_exception_lines(exception)])


def _exception_lines(exception: Plain) -> list[str]:
    lines = []
    for fault in exception if isinstance(exception, list) else []:
        if isinstance(fault, dict):
            lines.append(f"    {_shown(fault.get('type'))}: {_shown(fault.get('message'))}")
            frames = fault.get("frames")
            lines += [f"      {_printable(str(one))}" for one in (frames if isinstance(frames, list) else [])]
    return lines


def _shown(value: Plain) -> str:
    """As it is where that is one plain word; else quoted, as far as it is a text."""
    if isinstance(value, str):
        return value if _is_word(value) else repr(value)
    return str(value)  # Python quotes the texts in a list, and escapes what cannot be printed


def _is_word(text: str) -> bool:
    return bool(text) and text.isprintable() and not any(one in text for one in " ='\"")


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)
