"""The JSON scanner against Python's own parser, however the text is cut."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.chat.dialects.base import MARK
from nexa_runtime.chat.dialects.json_scan import JsonScanner, is_json, object_text, text_of
from tests.chat.dialects.transcripts import pieces

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
).filter(lambda value: MARK not in json.dumps(value, ensure_ascii=False))


def scan(cuts: list[str]) -> tuple[int, bool, bool]:
    scanner = JsonScanner()
    taken = 0
    for cut in cuts:
        end = scanner.feed(cut)
        taken += end
        if end < len(cut):
            break
    scanner.finish()
    return taken, scanner.is_complete, scanner.is_broken


def is_python_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


@given(
    VALUES, st.booleans(), st.sampled_from([None, 1]), st.integers(0, 9), st.sampled_from([" x", "}", "<"])
)
def test_it_finds_the_end_of_any_value(
    value: object, is_ascii: bool, indent: int | None, seed: int, tail: str
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    for cuts in ([text + tail], list(pieces(text + tail)), list(pieces(text + tail, seed))):
        assert scan(cuts) == (len(text), True, False)
    assert is_json(text)
    assert not is_json(text + tail)


@given(VALUES, st.integers(0, 2**32))
def test_it_takes_what_python_takes_and_nothing_else(value: object, seed: int) -> None:
    chance = random.Random(seed)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(['"', "\\", "0", "-", ".", "e", ",", ":", "{", "}", "]"]) + text[at:]
        at = chance.randrange(len(text))
        text = text[:at] + text[at + chance.randrange(2) :]
    assert is_json(text) == is_python_json(text.rstrip(" \t\n\r")) or text != text.rstrip()
    assert scan([text]) == scan(list(pieces(text))) == scan(list(pieces(text, seed)))


@pytest.mark.parametrize(
    "text",
    ["01", "-", "1.", ".5", "1e", "+1", "tru", "True", "nul1", "'a'", '"\n"', '"\\x"', '"\\u12g4"', "[1,]",
     '{"a":1,}', "{a:1}", "{1:1}", "[1 2]", '{"a" 1}', "]", "", " ", "NaN", f'"{MARK}"', "[}", '{"a"}'],
)  # fmt: skip
def test_what_is_not_json(text: str) -> None:
    assert not is_json(text)


def test_depth_has_a_bound() -> None:
    assert is_json("[" * 200 + "]" * 200)
    assert not is_json("[" * 201 + "]" * 201)
    assert scan(["[" * 100_000]) == (200, False, True)


def test_texts_inside_a_text() -> None:
    assert object_text(json.dumps(' {"a": [1]}\n')) == '{"a": [1]}'
    assert object_text('"[1]"') is None
    assert object_text(r'"{\"a\": }"') is None
    assert text_of(r'"\ud83d\ude00 \ud83d é"') == "\U0001f600 � é"
