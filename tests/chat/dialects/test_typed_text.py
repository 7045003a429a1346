"""Bare text typed by the types that a schema allows."""

import pytest

from nexa_runtime.chat.dialects.tool_schemas import ALL_TYPES, STRING
from nexa_runtime.chat.dialects.typed_text import json_text


@pytest.mark.parametrize(
    ("text", "allowed", "wanted"),
    [
        ("5", STRING, '"5"'),
        ('"5"', STRING, '"5"'),
        ('"5" or so', STRING, r'"\"5\" or so"'),
        ('"5"', {"string", "integer"}, '"5"'),
        ("\u20095", {"string", "integer"}, '"\u20095"'),
        ("5", ALL_TYPES, "5"),
        (" 5\n", {"integer"}, "5"),
        ("5", {"string", "null"}, '"5"'),
        ("null", {"string", "null"}, "null"),
        ("None", {"string", "null"}, '"None"'),
        ("None", {"null"}, "null"),
        ("True", {"boolean"}, "true"),
        ("5.0", {"string", "integer"}, "5.0"),
        ("5.5", {"string", "integer"}, '"5.5"'),
        ("NaN", {"number"}, '"NaN"'),
        ('{"a": [1]}', {"object"}, '{"a": [1]}'),
        ("{'a': 1}", {"object"}, "\"{'a': 1}\""),
        ('a "b"\n\\ é\x00', ALL_TYPES, '"a \\"b\\"\\n\\\\ é\\u0000"'),
        ("[" * 100_000, {"array"}, f'"{"[" * 100_000}"'),
        ("1" * 10_000, {"integer"}, f'"{"1" * 10_000}"'),
    ],
)
def test_json_text(text: str, allowed: set[str], wanted: str) -> None:
    assert json_text(text, frozenset(allowed)) == wanted
