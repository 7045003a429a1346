"""Whatever is logged, it becomes plain, bounded JSON."""

import enum
import math
from collections import UserDict
from pathlib import Path

import numpy as np

from nexa_runtime.telemetry.values import MAX_ITEMS, MAX_LINE_CHARS, MAX_TEXT_CHARS, clean, describe


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Colour(enum.StrEnum):
    RED = "red"


def test_plain_values_stay() -> None:
    fields = {"a": 1, "b": 1.5, "c": None, "d": True, "e": "text", "f": [1, "x"], "g": {"h": 2}}
    assert clean(fields) == fields


def test_what_json_has_no_word_for_has_one_here() -> None:
    values = {
        "path": Path("/tmp/x"), "set": {1}, "tuple": (1, 2), "bytes": b"a\xff", "nan": math.nan,
        "huge": 10**5000, "numpy": np.float32(1.5), "half": "\ud800", "odd": Unreadable(), "enum": Colour.RED,
        "mapping": UserDict(a=1), "error": ValueError("why"),
    }  # fmt: skip
    assert clean(values) == {
        "path": "/tmp/x", "set": [1], "tuple": [1, 2], "bytes": "a\\xff", "nan": "nan",
        "huge": "<int of 16610 bits>", "numpy": "1.5", "half": "\\ud800", "odd": "<Unreadable>",
        "enum": "red", "mapping": {"a": 1}, "error": "why",
    }  # fmt: skip


def test_names_of_secrets_hide_values_of_any_kind_at_any_depth() -> None:
    cleaned = clean({"password": 5, "a": [{"Authorization": ["x"], "token": None}], "api_key": b"x"})
    assert cleaned == {
        "password": "[redacted]", "a": [{"Authorization": "[redacted]", "token": None}],
        "api_key": "[redacted]",
    }  # fmt: skip


def test_texts_lists_depth_and_the_line_are_bounded() -> None:
    nested: object = "deep"
    for _ in range(50):
        nested = [nested]
    cleaned = clean({"nested": nested, "list": range(1000), "text": "x" * 10**6, "k" * 1000: 1})
    assert "deep" not in str(cleaned)
    assert len(cleaned["list"]) == MAX_ITEMS + 1  # type: ignore[arg-type]
    assert len(str(cleaned["text"])) <= MAX_TEXT_CHARS + 1
    assert max(map(len, cleaned)) < 200
    wide = {str(number): ["y" * 5000] * 100 for number in range(100)}
    assert len(str(clean({"event": "e", "wide": wide}))) < 2 * MAX_LINE_CHARS


def test_a_cut_leaves_no_part_of_a_secret() -> None:
    for offset in range(0, 60, 7):
        text = "x" * (MAX_TEXT_CHARS - offset) + " hf_" + "S" * 34 + " more" * 200
        assert "SS" not in str(clean({"text": text}))


def test_an_exception_is_told_with_its_causes_and_without_local_variables() -> None:
    prompt = "a private thing"

    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ExceptionGroup("outer", [ValueError("one of them")]) from error

    try:
        fail()
    except ExceptionGroup as error:
        faults = describe(error)
    said = [(fault["type"], str(fault["message"])) for fault in faults]
    assert said == [
        ("builtins.ExceptionGroup", "outer (1 sub-exception)"),
        ("builtins.ValueError", "one of them"),
        ("builtins.KeyError", "'inner'"),
    ]
    assert str(faults[0]["frames"]).endswith("in fail']")
    assert prompt not in str(faults)


def test_causes_that_go_in_a_circle_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert len(describe(one)) == 5
