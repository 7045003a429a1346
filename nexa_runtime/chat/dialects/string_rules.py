"""Bare text of a schema for strings: what of the schema a terminal of a grammar can hold.

Owns lengths, patterns, formats and lists of values as regular expressions. A schema that says more has no
bare text: its strings are written as JSON, which llguidance holds to the schema, and parsers read them so.
Grammars and parsers ask the same function, ``texts_of``. It knows no dialect.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from nexa_runtime.chat.dialects.base import lark_literal
from nexa_runtime.chat.dialects.tool_schemas import Case, Schema, Value, types_of
from nexa_runtime.chat.messages import Json
from nexa_runtime.chat.schema import num_repetitions

ANY = "(.|\\n)*"
_MAX_LEAST = 1000
"""A text that must be longer is left to llguidance."""
_MAX_LENGTH = 10_000_000
"""No answer is longer."""
_MAX_PATTERN = 1000
_MAX_REPETITIONS = 1000
_MAX_TEXTS = 64

_ESCAPE = r"\\[dDwWsSntr.\\/+*?()\[\]{}|^$\"-]"
_PLAIN_PATTERN = re.compile(
    rf"(?:{_ESCAPE}|\[\^?(?:{_ESCAPE}|(?!--)[^\]\\\[&~|])+\]|\{{\d+(?:,\d*)?\}}|\(\?:|\((?!\?)|[^\\^$\[\]{{}}(])*"
)
"""Patterns that mean the same to all who read regular expressions."""
_POSSESSIVE = re.compile(r"[*+?}]\+")
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()|]|[^\\\[()|]+", re.DOTALL)
_ASCII = {r"\d": "0-9", r"\w": "A-Za-z0-9_", r"\s": r" \t\n\r"}
"""What JSON schemas mean by these, inside a class."""

_HEX = "[0-9a-fA-F]"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
_WORD = r"[A-Za-z0-9_+-]+"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LEAP = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29"
_DATE = (
    "([1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP})"
)
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[+-]{_CLOCK})"
_URI = rf"([A-Za-z0-9._~:@!$&'()*+,;=/-]|%{_HEX}{{2}})*"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"{_WORD}(\.{_WORD})*@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "uuid": f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "uri": (
        rf"[A-Za-z][A-Za-z0-9+.-]*:(//{_HOST}(:[0-9]{{1,5}})?(/{_URI})?|[A-Za-z0-9]{_URI})"
        rf"(\?{_URI})?(#{_URI})?"
    ),
}
_LEFT_FORMATS = ("duration", "ipv6")
"""Formats that llguidance knows and that are not here. Any others say nothing, as JSON Schema has it."""


def texts_of(value: Value) -> tuple[str, ...] | None:
    """The bare texts of the strings among values, each an expression of terminals; None: they are not known
    or cannot be held, and none: there are none.
    """
    if value.cases is None or len(value.cases) > _MAX_TEXTS:
        return None
    texts: list[str] = []
    for case in value.cases:
        if "string" in types_of(case):
            try:
                texts += _text(case)
            except ValueError:
                return None
    return tuple(dict.fromkeys(texts))


def is_bare(value: Value) -> bool:
    """Whether all values are strings that are written as bare text."""
    return value.types == {"string"} and bool(texts_of(value))


def regex(text: str) -> str:
    """An expression of Lark's for this text."""
    return re.sub(r"([][\\.^$|?*+(){}/])", r"\\\1", text).replace("\n", "\\n")


def _text(case: Case) -> Iterator[str]:
    """The texts of a case, if there are any. Raises ``ValueError`` for what cannot be held."""
    least = max((_number(part.get("minLength"), 0) for part in case), default=0)
    most = min((_number(part.get("maxLength"), _MAX_LENGTH) for part in case), default=_MAX_LENGTH)
    if least > _MAX_LEAST:
        raise ValueError(f"{least} characters at least")
    factors = [_terminal(one) for part in case for one in _regexes(part)]
    values = _values(case)
    if values is not None:
        values = [one for one in values if least <= len(one) <= most]
        literals = " | ".join(map(lark_literal, values))
        factors.insert(0, f"({literals})" if len(values) > 1 else literals)
    elif least or most < _MAX_LENGTH:
        factors.insert(0, f"/(.|\\n){{{least},{most if most < _MAX_LENGTH else ''}}}/")
    if least <= most and values != []:
        yield " & ".join(factors or [f"/{ANY}/"])


def _values(case: Case) -> list[str] | None:
    """The texts that a case lists; None if it lists none."""
    lists: list[Sequence[Json]] = [[part["const"]] for part in case if "const" in part]
    lists += [one for part in case if isinstance(one := part.get("enum"), list)]
    if not lists:
        return None
    first, *others = ([one for one in values if isinstance(one, str)] for values in lists)
    return [one for one in dict.fromkeys(first) if all(one in values for values in others)]


def _regexes(part: Schema) -> Iterator[str]:
    """Regular expressions that whole texts match. Raises ``ValueError``."""
    if isinstance(pattern := part.get("pattern"), str):
        yield _whole(pattern)
    if isinstance(name := part.get("format"), str):
        if name in _LEFT_FORMATS:
            raise ValueError(name)
        if name in _FORMATS:
            yield _FORMATS[name]


@lru_cache(maxsize=1000)
def _whole(pattern: str) -> str:
    """The expression for whole texts in which ``pattern`` is found. Raises ``ValueError`` if it is not a
    simple one.
    """
    if len(pattern) > _MAX_PATTERN or num_repetitions(pattern) > _MAX_REPETITIONS:
        raise ValueError(pattern)
    branches, depth = [""], 0
    parts = _PART.findall(pattern)
    if "".join(parts) != pattern:
        raise ValueError(pattern)
    for part in parts:
        depth += {"(": 1, ")": -1}.get(part, 0)
        if part == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += part
    return "|".join(map(_anchored, branches))


def _anchored(branch: str) -> str:
    """A branch of a pattern, for whole texts."""
    starts, ends = branch.startswith("^"), branch.endswith("$") and not branch.endswith("\\$")
    inner = branch[starts : len(branch) - ends]
    if not _PLAIN_PATTERN.fullmatch(inner) or _POSSESSIVE.search(inner):
        raise ValueError(inner)
    try:
        re.compile(inner)
    except (re.error, OverflowError, RecursionError):
        raise ValueError(inner) from None
    inner = "".join(map(_strict, _PART.findall(inner)))
    return ("" if starts else ANY) + f"({inner})" + ("" if ends else ANY)


def _strict(part: str) -> str:
    """A part of a pattern as JSON schemas mean it."""
    if part in _ASCII:
        return f"[{_ASCII[part]}]"
    if part.startswith("["):
        part = re.sub(r"\\.", lambda match: _ASCII.get(match[0], match[0]), part)
    elif not part.startswith("\\"):
        part = part.replace(".", r"[^\n\r]")
    return part.replace("\n", "\\n")


def _terminal(regex: str) -> str:
    """The terminal of a regular expression."""
    return "/" + re.sub(r"\\.|/", lambda match: r"\/" if match[0] == "/" else match[0], regex) + "/"


def _number(value: Json, default: int) -> int:
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return max(int(value), 0) if is_whole and isinstance(value, int | float) else default
