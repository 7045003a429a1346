"""Lines: one per event, valid whatever is in them, and nobody pays for a bad one."""

import json
import logging
import re
import string
import sys
import threading
from contextlib import suppress

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_runtime.telemetry import (
    bind_caller,
    bind_request,
    configure_logging,
    get_logger,
    log_crashes,
    set_level,
)
from nexa_runtime.telemetry.rendering import as_words
from nexa_runtime.telemetry.values import clean
from tests.telemetry.conftest import Written

log = get_logger("room")
in_one_function = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


class Unreadable:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


ALPHABET = string.ascii_letters + string.digits
any_text = st.text(st.characters(), max_size=40)  # halves of characters are among them
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**4000), st.floats(), any_text, st.binary(max_size=20),
    st.builds(Unreadable), st.builds(ValueError, any_text),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text | st.integers(), inner, max_size=4),
    max_leaves=10,
)
tokens = st.text(ALPHABET, min_size=24, max_size=60)
separators = st.sampled_from([" ", "\n", '"', "'", "(", ",", "\r\n", "\t", "\x1b[2J"])


@st.composite
def secrets(draw: st.DrawFn) -> tuple[str, str]:
    """A text that holds a secret, and the secret."""
    token = draw(tokens)
    shape = draw(
        st.sampled_from(
            [
                "hf_{}",
                "hvs.{}",
                "sk-{}",
                "Bearer {}",
                "password={}",
                "https://u:{}@host",
                "nexa_a-b_{}xxxxxxxxxxxxxxxxxxx",
            ]
        )
    )
    before, after = (draw(any_text.filter(lambda text: token not in text)) for _ in range(2))
    return before + draw(separators) + shape.format(token) + draw(separators) + after, token


@in_one_function
@given(event=any_text, name=any_text, value=values)
def test_any_value_in_any_field_is_one_line_of_json(
    written: Written, event: str, name: str, value: object
) -> None:
    log.info(event, **{name: value})
    (line,) = written.text().splitlines()
    assert line.isascii()
    assert isinstance(orjson.loads(line), dict)
    assert json.loads(line)["level"]


@in_one_function
@given(secrets(), st.sampled_from(["text", "bytes", "list", "key", "error", "event", "library", "traceback"]))
def test_no_secret_gets_into_a_line(written: Written, secret: tuple[str, str], place: str) -> None:
    text, token = secret
    match place:
        case "text":
            log.info("event", field=text)
        case "bytes":
            log.info("event", field=text.encode("utf-8", "surrogatepass"))
        case "list":
            log.info("event", field=[{"a": (text,)}])
        case "key":
            log.info("event", field={text: 1})
        case "error":
            log.info("event", field=OSError(text))
        case "event":
            log.info(text)
        case "library":
            logging.getLogger("lib").warning("said %s", text)
        case _:
            try:
                raise ValueError(text)
            except ValueError:
                log.exception("event")
    (line,) = written.text().splitlines()
    assert token not in line
    assert token not in as_words(clean(json.loads(line)))


@given(st.dictionaries(any_text, values, max_size=4), any_text)
def test_words_for_a_terminal_move_no_cursor_and_forge_no_line(fields: dict[str, object], event: str) -> None:
    fields.pop("exception", None)
    line = as_words(clean({"level": "info", "room": "r", **fields, "event": event}))
    own = re.sub(r"\x1b\[(?:0|1|2|3[123])m", "", line)
    assert own.isprintable()


def test_an_exception_in_a_terminal_has_lines_of_its_own(written: Written) -> None:
    try:
        raise ValueError("bad\n\x1b[2Jforged")
    except ValueError:
        log.exception("event", path="/a b")
    first, second, *frames = as_words(clean(written.lines()[0])).splitlines()
    assert first.endswith("path='/a b'")
    assert second == "    builtins.ValueError: 'bad\\n\\x1b[2Jforged'"
    assert "test_logging.py" in frames[-1]


def test_lines_have_the_fields_of_their_request(written: Written) -> None:
    with bind_request(request_id="req_1"):
        bind_caller("acme", "1a2b3c4d")
        log.warning("event", number=1)
    log.info("other")
    one, other = written.lines()
    assert list(one)[:4] == ["timestamp", "level", "event", "room"]
    assert one.items() >= {
        "level": "warning", "event": "event", "room": "room", "request_id": "req_1", "tenant": "acme",
        "key_id": "1a2b3c4d", "number": 1,
    }.items()  # fmt: skip
    assert not {"request_id", "tenant", "key_id"} & set(other)


def test_the_level_can_change_at_any_time(written: Written) -> None:
    log.debug("one")
    set_level("DEBUG")
    log.debug("two")
    set_level("ERROR")
    log.warning("three")
    assert [line["event"] for line in written.lines()] == ["two"]


def test_what_libraries_say_becomes_lines(written: Written) -> None:
    logging.getLogger("uvicorn.error").warning("odd %s", "thing")
    logging.getLogger("uvicorn.error").info("not heard")
    (ours,) = [one for one in logging.getLogger().handlers if type(one).__name__ == "_Forward"]
    ours.emit(logging.LogRecord("lib", logging.ERROR, "", 1, "%d of them", ("not a number",), None))
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("lib").exception("failed")
    lines = written.lines()
    rooms = [(line["room"], line["event"]) for line in lines]
    assert rooms == [
        ("uvicorn.error", "library"),
        ("lib", "library"),
        ("lib", "library"),
    ]
    assert lines[0]["text"] == "odd thing"
    assert lines[2]["exception"][0]["message"] == "gone"


def test_what_nobody_catches_becomes_a_line(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in ((sys, "excepthook"), (threading, "excepthook"), (sys, "unraisablehook")):
        monkeypatch.setattr(place, name, getattr(place, name))  # each is put back after the test
    log_crashes()

    def fail() -> None:
        raise ValueError("Bearer abcdefgh")

    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join()
    (line,) = written.lines()
    assert (line["event"], line["thread"], line["level"]) == ("thread_crashed", "worker", "error")
    assert line["exception"][0]["message"] == "Bearer [redacted]"


def test_a_log_that_cannot_be_written_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    for target in (full, None):
        monkeypatch.setattr(sys, "stderr", target)
        log.error("event")
    with suppress(OSError):
        full.close()


def test_secrets_of_the_settings_are_never_written(written: Written) -> None:
    configure_logging("INFO", secrets=["plain words only"])
    log.info("event", said="these plain words only")
    assert written.lines()[0]["said"] == "these [redacted]"
