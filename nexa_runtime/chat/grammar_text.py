"""From what a client asks for to a grammar in llguidance's own form.

Owns how each kind of source is written down, the sizes that a source may have, and the conversion from GBNF.
It compiles nothing, and never reads Lark, which is llguidance's to read: what a user's own grammar does to a
process, its trial shows. ``constraint`` compiles, and calls this. Every error is an ``InvalidRequestError``
that names the source's field. ``server/protocol`` bounds the bytes and the number of choices of what comes
from outside; here are the bounds of what costs more than its bytes.

JSON is written with fixed spaces, ``{"a": 1, "b": [2, 3]}``: with free ones, a model at a high temperature
would spend its tokens on blanks.
"""

import json
from dataclasses import dataclass
from typing import NoReturn, assert_never

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from nexa_runtime.chat.dialects.base import MARK, lark_literal
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.messages import Json
from nexa_runtime.chat.schema import (
    MAX_REPETITIONS,
    check_schema,
    closed,
    is_plain,
    num_repetitions,
    parse_schema,
)
from nexa_runtime.errors import InvalidRequestError

MAX_REGEX_CHARS = 16 * 1024
MAX_GRAMMAR_CHARS = 64 * 1024
MAX_DIALECT_CHARS = 512 * 1024
"""Of the grammar: the schemas of many tools, each within its own bounds."""
MAX_GBNF_RULES = 256
"""The converter goes through all rules once per rule."""
MAX_PLAIN_REGEX_CHARS = 1024

_SPACES: dict[str, Json] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_OPTIONS = ("coerce_one_of", "lenient")
"""What a user's ``x-guidance`` may set: llguidance's messages advise it."""

_MARK_ESCAPED = json.dumps(MARK).strip('"')
_NOUNS = {
    GrammarKind.JSON_SCHEMA: "JSON schema",
    GrammarKind.JSON_OBJECT: "JSON object",
    GrammarKind.REGEX: "regular expression",
    GrammarKind.CHOICE: "list of choices",
    GrammarKind.GRAMMAR: "grammar",
    GrammarKind.DIALECT: "schema of a tool",
}


@dataclass(frozen=True, slots=True)
class GrammarText:
    """``text``: for ``LLMatcher``. ``is_plain``: it is of a kind that compiles fast, as far as measured; all
    else needs a trial.
    """

    text: str
    is_plain: bool


def to_text(source: GrammarSource) -> GrammarText:
    """The grammar of a source. Raises ``InvalidRequestError`` for what is out of bounds or no grammar."""
    _check_text(source, source.text)
    match source.kind:
        case GrammarKind.JSON_SCHEMA:
            return _from_schema(parse_schema(source.text, source.param), source)
        case GrammarKind.JSON_OBJECT:
            return _from_schema({"type": "object"}, source)
        case GrammarKind.REGEX:
            _check_length(source, source.text, MAX_REGEX_CHARS)
            if num_repetitions(source.text) > MAX_REPETITIONS:
                refuse(source, f"it repeats something more than {MAX_REPETITIONS} times")
            # As in JSON schemas, \d is a digit of ASCII.
            text = LLMatcher.grammar_from_regex(regex_to_lark(source.text, "d"))
            return GrammarText(text, is_plain=len(source.text) <= MAX_PLAIN_REGEX_CHARS)
        case GrammarKind.CHOICE:
            return _from_choice(source)
        case GrammarKind.GRAMMAR:
            _check_length(source, source.text, MAX_GRAMMAR_CHARS)
            lark = _from_gbnf(source) if "::=" in source.text else source.text
            return GrammarText(LLMatcher.grammar_from_lark(lark), is_plain=False)
        case GrammarKind.DIALECT:
            return _from_dialect(source)
        case _:
            assert_never(source.kind)


def refuse(source: GrammarSource, reason: str) -> NoReturn:
    """Raise the error for a source that cannot be used. ``reason``: the rest of a sentence, no full stop."""
    raise InvalidRequestError(f"The {_NOUNS[source.kind]} cannot be used: {reason}.", param=source.param)


def _from_schema(schema: Json, source: GrammarSource) -> GrammarText:
    if schema is False:
        refuse(source, "nothing fits it")
    document = dict(schema) if isinstance(schema, dict) else {}
    if source.is_strict:
        document = closed(document, source.param)
    options = document.pop("x-guidance", None)
    given = options if isinstance(options, dict) else {}
    chosen: dict[str, Json] = {key: True for key in _OPTIONS if given.get(key) is True}
    document["x-guidance"] = {**_SPACES, **chosen}
    return GrammarText(LLMatcher.grammar_from_json_schema(json.dumps(document)), is_plain(document))


def _from_choice(source: GrammarSource) -> GrammarText:
    try:
        choices: object = json.loads(source.text)
    except (ValueError, RecursionError):
        refuse(source, "it is not valid JSON")
    if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
        refuse(source, "it is not a list of texts")
    if not any(choices):
        refuse(source, "it has no text to choose")
    _check_text(source, "".join(choices))
    # One terminal: as a rule, every choice would be an item of the parser's row.
    alternatives = " | ".join(lark_literal(one) for one in dict.fromkeys(choices))
    return GrammarText(LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {alternatives}"), is_plain=True)


def _from_gbnf(source: GrammarSource) -> str:
    if source.text.count("::=") > MAX_GBNF_RULES:
        refuse(source, f"it has more than {MAX_GBNF_RULES} rules")
    try:
        return gbnf_to_lark(source.text)
    except RecursionError:
        refuse(source, "it is nested too deeply")
    except Exception as error:  # noqa: BLE001 - the converter raises no other
        raise InvalidRequestError(
            f"The grammar cannot be used: it is not valid GBNF: {one_line(str(error))}.", param=source.param
        ) from None


def _from_dialect(source: GrammarSource) -> GrammarText:
    schemas: list[Json] = [dict(schema) for schema in source.schemas]
    for schema in schemas:
        check_schema(schema, source.param)
    lark = source.text if source.build is None else source.build()
    _check_text(source, lark)
    _check_length(source, lark, MAX_DIALECT_CHARS)
    all_plain = source.build is not None and is_plain(*schemas)
    return GrammarText(LLMatcher.grammar_from_lark(lark), all_plain)


def one_line(reason: str, max_chars: int = 300) -> str:
    """The line of a message of llguidance that says most: the one marked as the error, else the first."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()] or ["it is not valid"]
    marked = next((line for line in lines if line.startswith("error: ")), lines[0])
    # What follows is the expression as llguidance holds it.
    line = marked.removeprefix("error: ").split(":  (")[0].rstrip(".")
    return line if len(line) <= max_chars else f"{line[:max_chars]}…"


def _check_text(source: GrammarSource, text: str) -> None:
    if MARK in text or _MARK_ESCAPED in text.lower():
        refuse(source, "it has the character U+FDD0, which stands for something else here")
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse(source, "it has characters that are not Unicode")


def _check_length(source: GrammarSource, text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        refuse(source, f"it is longer than {max_chars} characters")
