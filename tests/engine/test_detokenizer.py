"""Text as it streams: whole characters only, and no part of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from nexa_runtime.engine.detokenizer import Detokenizer

BYTES = [bytes([value]) for value in range(256)]


def run(text: str, stops: list[str]) -> tuple[list[str], str | None]:
    """What is shown, and the stop string that was found."""
    detokenizer = Detokenizer(BYTES, stops)
    shown = []
    for value in text.encode():
        shown.append(detokenizer.feed(value))
        if detokenizer.is_stopped:
            break
    return [*shown, detokenizer.flush()], detokenizer.stop


def test_a_character_is_shown_when_it_is_whole() -> None:
    detokenizer = Detokenizer(BYTES)
    assert [detokenizer.feed(value) for value in "é".encode()] == ["", "é"]


def test_an_unfinished_character_becomes_a_replacement_at_the_end() -> None:
    detokenizer = Detokenizer(BYTES)
    assert [detokenizer.feed(value) for value in "🙂".encode()[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"


def test_a_marker_is_told_from_its_letters() -> None:
    detokenizer = Detokenizer(BYTES, (), {7: "\ufdd0<call>"})
    assert detokenizer.feed(7) == "\ufdd0<call>"
    assert "".join(map(detokenizer.feed, "\ufdd0<call>".encode())) == "\ufffd<call>"
    assert [detokenizer.feed(0xC3), detokenizer.feed(7)] == ["", "\ufffd\ufdd0<call>"]


def test_the_start_of_a_stop_string_is_held_until_it_is_decided() -> None:
    detokenizer = Detokenizer(BYTES, ["STOP"])
    assert [detokenizer.feed(value) for value in b"aSTx"] == ["a", "", "", "STx"]


def test_the_earliest_of_several_stops_ends_the_text() -> None:
    shown, stop = run("one two three", ["three", "two"])
    assert "".join(shown) == "one "
    assert stop == "two"


def test_nothing_is_lost_when_a_stop_never_completes() -> None:
    shown, stop = run("wait for it: STO", ["STOP"])
    assert "".join(shown) == "wait for it: STO"
    assert stop is None


@given(
    st.text(alphabet="abcé🙂", max_size=40), st.lists(st.text("abcé🙂", min_size=1, max_size=4), max_size=3)
)
def test_shown_text_is_what_comes_before_the_first_stop(text: str, stops: list[str]) -> None:
    shown, stop = run(text, stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    # Several stops may complete with one character: then the one that starts first counts.
    joined = "".join(shown)
    assert (stop is not None) == bool(ends)
    assert text.startswith(joined + (stop or ""))
    assert not any(stop in joined for stop in stops)
    if not ends:
        assert joined == text
