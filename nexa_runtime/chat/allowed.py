"""The filters, tests, functions and methods that chat templates may use, none of which can take long.

Owns the lists, which name what the templates of real models use, and the bound of each: everything charges
what it reads before it runs and what it made after, and what can make much of little is checked before. It
never sees a template. ``sandbox`` hands these to Jinja.

Deliberate: ``safe`` and ``escape`` give plain texts. Prompts are not HTML, and Jinja's ``Markup`` would
escape whatever is added to it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from itertools import chain
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.filters import FILTERS as DEFAULT_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.sandbox import safe_range
from jinja2.tests import TESTS as DEFAULT_TESTS
from jinja2.utils import Namespace

from nexa_runtime.chat.budget import ITEM_LENGTH, TemplateBoundsError, charge, count, counted, measure, weigh

MAX_BITS = 64
"""Of an integer. Larger ones take long, and Python's hash of them can be made to collide."""
MAX_EXPONENT = 64
MAX_NUMBER_LENGTH = 1000
"""Characters of a text that is read as a number."""
MAX_SEPARATOR_LENGTH = 32
"""Of what is stripped, or looked for from the end: Python takes its length times the text's."""
MAX_JSON_INDENT = 16
MAX_PRECISION = 20
_MAX_FIELD_WIDTH = 999

_Function = Callable[..., Any]

_WIDE_FIELD = re.compile(r"[0-9]{4}|\*")
_SPACES = [one for one in map(chr, range(0x3001)) if one.isspace()]
_SORTING_WORK = 10
_NUMBERS = (int, float)

METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset({
        "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
        "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower",
        "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition",
        "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    }),
    list: frozenset({"append", "count", "index", "pop"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"get", "items", "keys", "values"}),
    LoopContext: frozenset({
        "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem",
        "previtem", "revindex", "revindex0",
    }),
}  # fmt: skip
"""What may be looked up as an attribute of a value."""


def call_method(method: _Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method of a text, list, tuple or dict that ``METHODS`` names."""
    owner, name = getattr(method, "__self__", None), method.__name__
    for value in chain(args, kwargs.values()):
        weigh(value)
    if isinstance(owner, dict):
        return method(*args, **kwargs)
    weigh(owner)
    check = _CHECKED_METHODS.get(name)
    if check is not None:
        # A generator is gone through once: the method gets what was checked.
        args = check(owner, *args, **kwargs) or args
    return measure(method(*args, **kwargs))


def binary(operator: str, compute: _Function, left: Any, right: Any) -> Any:
    """Compute ``left operator right``."""
    count()
    for value in (left, right):
        check_integer(value)
    if operator == "+":
        _check_sum(left, right)
    elif operator == "*":
        _check_product(left, right)
    elif operator == "**" and abs(right) > MAX_EXPONENT:
        raise TemplateBoundsError(f"it uses an exponent beyond {MAX_EXPONENT}")
    elif operator == "%" and isinstance(left, str):
        _check_format(left, right)
    return check_integer(compute(left, right))


def concat(values: list[Any]) -> str:
    """``a ~ b ~ c``."""
    charge(sum(map(weigh, values)))
    return str(_made("".join(map(str, values))))


def show(value: Any, constants: int = 0) -> str:
    """A value as it stands in the prompt, beside so many characters of the template itself."""
    charge(constants)
    weigh(value)
    return str(_made(str(value)))


def check_integer(value: Any) -> Any:
    """The value, unless it is an integer that is too large."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TemplateBoundsError(f"it uses an integer of more than {MAX_BITS} bits")
    return value


# How each kind is bounded.


def _weighed(function: Any, check: _Function | None = None) -> _Function:
    """A filter or test that goes through all that it is given. ``check``: gets its arguments before."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        count()
        passed, values = args[:first], [_held(args[first]), *args[first + 1 :]]
        for value in chain(values, kwargs.values()):
            weigh(value)
        if check is not None:
            check(*values, **kwargs)
        return _made(function(*passed, *values, **kwargs))

    return run


def _streamed(function: _Function) -> _Function:
    """A filter that takes and gives one item at a time."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        count()
        value = args[first]
        # What is empty, or undefined, Jinja's filters want to see themselves.
        items = counted(value) if value else value
        for argument in chain(args[first + 1 :], kwargs.values()):
            weigh(argument)
        return _made(function(*args[:first], items, *args[first + 1 :], **kwargs))

    return run


def _constant(function: Any) -> _Function:
    """A filter or test that takes the same for every value."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        count()
        return function(*args, **kwargs)

    return run


def _held(value: Any) -> Any:
    return list(counted(value)) if isinstance(value, Iterator) else value


def _made(value: Any) -> Any:
    return counted(value) if isinstance(value, Iterator) else measure(value)


def _text(value: Any) -> str:
    """The value, weighed already, as what most filters make of it."""
    return value if isinstance(value, str) else str(value)


# What must be checked before it is computed.


def _check_sum(left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        charge(len(left) + len(right))
    elif hasattr(left, "__len__") and hasattr(right, "__len__"):
        charge((len(left) + len(right)) * ITEM_LENGTH)


def _check_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if hasattr(value, "__len__") and isinstance(times, int):
            charge(len(value) * max(0, times) * (1 if isinstance(value, str) else ITEM_LENGTH))


def _check_format(text: Any, *values: Any, **named: Any) -> None:
    text = _text(text)
    if _WIDE_FIELD.search(text):
        raise TemplateBoundsError(f"it formats to a width beyond {_MAX_FIELD_WIDTH}")
    widest = _MAX_FIELD_WIDTH + sum(map(weigh, chain(values, named.values())))
    charge(len(text) + text.count("%") * widest)


def _check_replace(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text, old, new = _text(text), _text(old), _text(new)
    charge(len(text) + text.count(old) * len(new))


def _check_join(items: Any, d: Any = "", *_: Any, **__: Any) -> None:
    if hasattr(items, "__len__"):
        charge(weigh(items) + len(items) * len(_text(d)))


def _check_join_method(separator: str, items: Any) -> tuple[list[Any]]:
    held = list(counted(items))
    _check_join(held, separator)
    return (held,)


def _check_split(text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    num_pieces = text.count(sep) if sep else sum(map(text.count, _SPACES))
    charge(ITEM_LENGTH * (min(num_pieces, maxsplit) if maxsplit >= 0 else num_pieces))


def _check_splitlines(text: str, *_: Any, **__: Any) -> None:
    _check_split(text)


def _check_title(text: Any) -> None:
    charge(len(_text(text)) * ITEM_LENGTH)


def _check_separator(_: Any, separator: Any = None, *__: Any, **___: Any) -> None:
    if isinstance(separator, str) and len(separator) > MAX_SEPARATOR_LENGTH:
        raise TemplateBoundsError(f"it strips or looks for more than {MAX_SEPARATOR_LENGTH} characters")


def _check_trim(text: Any, chars: Any = None) -> None:
    _check_separator(text, chars)


def _check_rsplit(text: str, sep: str | None = None, maxsplit: int = -1) -> None:
    _check_separator(text, sep)
    _check_split(text, sep, maxsplit)


def _check_append(_: list[Any], value: Any) -> None:
    """A list in itself would have no end, and one in another would be had twice."""
    if hasattr(value, "__len__") and not isinstance(value, str):
        raise TemplateBoundsError("it appends what is no text or number")


def _check_braces(text: str, *values: Any) -> None:
    """Each value once, as it is: a field of its own could name a width, or an attribute."""
    rest = text.replace("{}", "")
    if "{" in rest or "}" in rest:
        raise TemplateBoundsError("it formats by more than {}")
    charge(len(text) + sum(map(weigh, values)))


def _check_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    lines = sum(map(_text(text).count, _SPACES)) + 1
    charge(lines * (len(width) if isinstance(width, str) else max(0, width)))


def _check_json(value: Any, indent: Any = None, **_: Any) -> None:
    """Each line begins with the indent times its depth."""
    if indent is None:
        return
    if not isinstance(indent, int) or not 0 <= indent <= MAX_JSON_INDENT:
        raise TemplateBoundsError(f"it indents JSON by more than {MAX_JSON_INDENT}")
    charge(weigh(value) // ITEM_LENGTH * indent * _depth(value))


def _check_sort(items: Any, *_: Any, **__: Any) -> None:
    charge(weigh(items) * _SORTING_WORK)


def _check_number_text(value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_NUMBER_LENGTH:
        raise TemplateBoundsError(f"it reads a number of more than {MAX_NUMBER_LENGTH} characters")


def _check_round(value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    # Jinja multiplies what it rounds, which a text or list would survive.
    if not isinstance(value, _NUMBERS) or not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise TemplateBoundsError(f"it rounds to more than {MAX_PRECISION} digits, or what is no number")
    check_integer(value)


def _check_numbers(*values: Any) -> None:
    # Jinja computes a remainder, which of a text is a formatted one.
    for value in values:
        if not isinstance(value, _NUMBERS):
            raise TemplateBoundsError("it divides what is no number")
        check_integer(value)


def _depth(value: Any) -> int:
    """Of dicts and lists in one another; they have been weighed, and none holds itself."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [
            one for part in inner if not isinstance(part, str) and hasattr(part, "__len__") for one in part
        ]
        count(len(level))
    return depth


_CHECKED_METHODS: Mapping[str, _Function] = {
    "append": _check_append,
    "format": _check_braces,
    "join": _check_join_method,
    "lstrip": _check_separator,
    "replace": _check_replace,
    "rfind": _check_separator,
    "rindex": _check_separator,
    "rpartition": _check_separator,
    "rsplit": _check_rsplit,
    "rstrip": _check_separator,
    "split": _check_split,
    "splitlines": _check_splitlines,
    "strip": _check_separator,
}


# What is made otherwise than by Jinja.


@pass_environment
def _sum(environment: Environment, items: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    """One addition at a time: Python's own would copy the sum of lists again and again."""
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    for item in items:
        start = binary("+", lambda left, right: left + right, start, item)
    return start


def _dict(mapping: Mapping[Any, Any] | None = None, /, **named: Any) -> dict[Any, Any]:
    return {**(mapping or {}), **named}


def _namespace(**named: Any) -> Namespace:
    return Namespace(**named)


def _items(value: Any) -> Any:
    return counted(DEFAULT_FILTERS["items"](value))


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As Hugging Face's ``tojson``: no HTML escapes, no ASCII escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _integer(value: Any, default: int = 0, base: int = 10) -> Any:
    return check_integer(DEFAULT_FILTERS["int"](value, default, base))


def _escape(value: Any) -> str:
    return str.__str__(DEFAULT_FILTERS["escape"](_text(value)))


_WEIGHED_FILTERS: Mapping[str, _Function | None] = {
    "abs": None,
    "capitalize": None,
    "dictsort": _check_sort,
    "float": _check_number_text,
    "format": _check_format,
    "indent": _check_indent,
    "join": _check_join,
    "lower": None,
    "max": None,
    "min": None,
    "replace": _check_replace,
    "reverse": None,
    "round": _check_round,
    "sort": _check_sort,
    "string": None,
    "title": _check_title,
    "trim": _check_trim,
    "unique": None,
    "upper": None,
}
_CONSTANT_FILTERS = ("count", "d", "default", "first", "last", "length")
_STREAMED_FILTERS = ("list", "map", "reject", "rejectattr", "select", "selectattr")
_CONSTANT_TESTS = (
    "boolean", "callable", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number",
    "sameas", "sequence", "string", "true", "undefined"
)  # fmt: skip
_NUMBER_TESTS = ("divisibleby", "even", "odd")
_WEIGHED_TESTS = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan",
    "lower", "lt", "ne", "upper"
)  # fmt: skip

FILTERS: Mapping[str, _Function] = {
    **{name: _weighed(DEFAULT_FILTERS[name], check) for name, check in _WEIGHED_FILTERS.items()},
    **{name: _constant(DEFAULT_FILTERS[name]) for name in _CONSTANT_FILTERS},
    **{name: _streamed(DEFAULT_FILTERS[name]) for name in _STREAMED_FILTERS},
    "e": _weighed(_escape),
    "escape": _weighed(_escape),
    "int": _weighed(_integer, _check_number_text),
    "items": _constant(_items),
    "safe": _weighed(_text),
    "sum": _streamed(_sum),
    "tojson": _weighed(_to_json, _check_json),
}
TESTS: Mapping[str, _Function] = {
    **{name: _constant(DEFAULT_TESTS[name]) for name in _CONSTANT_TESTS},
    **{name: _weighed(DEFAULT_TESTS[name], _check_numbers) for name in _NUMBER_TESTS},
    **{name: _weighed(DEFAULT_TESTS[name]) for name in _WEIGHED_TESTS},
}
GLOBALS: Mapping[str, _Function] = {"dict": _dict, "namespace": _namespace, "range": safe_range}
