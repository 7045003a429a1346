"""Every kind of form: what answers it makes possible, and which sources are refused."""

import json
import re
from typing import Any

import pytest

from nexa_runtime.chat.constraint import ConstraintCompiler
from nexa_runtime.chat.dialects.base import lark_json
from nexa_runtime.chat.grammar import GrammarKind, GrammarSource
from nexa_runtime.chat.grammar_text import to_text
from nexa_runtime.errors import InvalidRequestError
from nexa_runtime.llama import Model
from tests.chat.walks import allowed_tokens, feed, of_schema, source, start, text_of, walk
from tests.schemas import record

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def compiler(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(model.vocab)


def of_tool(schema: Any) -> GrammarSource:
    """As ``serving`` makes it for a tool with these parameters."""
    lark = f"start: {lark_json(schema)}"
    text = json.dumps(schema)
    return GrammarSource(GrammarKind.DIALECT, text, "form", build=lambda: lark, schemas=(schema,))


def test_json_has_no_free_spaces(compiler: ConstraintCompiler, model: Model) -> None:
    pair = {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 2}
    options = {"whitespace_flexible": True, "whitespace_pattern": " *"}
    one = of_schema({"x-guidance": options, **record(a=pair)})
    for seed in range(5):
        assert re.fullmatch(r'\{"a": \[\d, \d\]\}', walk(start(compiler, one), model.vocab, seed))


def test_what_llguidance_advises_can_be_done(compiler: ConstraintCompiler, model: Model) -> None:
    schema = {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "number", "const": 3}]}
    with pytest.raises(InvalidRequestError, match="coerce_one_of"):
        start(compiler, of_schema(schema))
    mask = start(compiler, of_schema({**schema, "x-guidance": {"coerce_one_of": True}}))
    assert walk(mask, model.vocab, 1).isdecimal()


def test_any_json_object(compiler: ConstraintCompiler, model: Model) -> None:
    one = source(GrammarKind.JSON_OBJECT, "")
    first = allowed_tokens(start(compiler, one), model.vocab)
    assert all(model.vocab.pieces[token].startswith(b"{") for token in first)
    mask = start(compiler, one)
    feed(mask, model.vocab, '{"a": [1, {"b": null}], "c": "x y"}')
    assert mask.is_complete


def test_a_regular_expression(compiler: ConstraintCompiler, model: Model) -> None:
    one = source(GrammarKind.REGEX, r"(?i)[a-f]{3}-\d+(é|日){1,2}")
    for seed in range(20):
        assert re.fullmatch(r"(?i)[a-f]{3}-[0-9]+(é|日){1,2}", walk(start(compiler, one), model.vocab, seed))


def test_a_choice_is_one_of_the_texts_exactly(compiler: ConstraintCompiler, model: Model) -> None:
    choices = ["positive", "pos", 'a "quoted" \\ one', "two\nlines", "日本", "{}"]
    one = source(GrammarKind.CHOICE, json.dumps(choices))
    seen = {walk(start(compiler, one), model.vocab, seed) for seed in range(60)}
    assert seen == set(choices)


def test_a_lark_grammar(compiler: ConstraintCompiler, model: Model) -> None:
    lark = 'start: "yes" | "no" " " NUMBER\nNUMBER: /[0-9]{1,3}/'
    for seed in range(20):
        text = walk(start(compiler, source(GrammarKind.GRAMMAR, lark)), model.vocab, seed)
        assert re.fullmatch(r"yes|no [0-9]{1,3}", text)


JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
# a comment
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value){0,3} )? "}" ws
array  ::= "[" ws ( value ("," ws value){0,3} )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) ){0,5} "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]{1,4})? ws
ws ::= | " "
"""
LIST_GBNF = 'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]{1,20} "\\n"\n'
CHESS_GBNF = """
root   ::= "1. " move " " move "\\n" ([1-9] [0-9]? ". " move " " move "\\n"){0,3}
move   ::= (pawn | piece | castle) [+#]?
piece  ::= [NBKQR] [a-h]? [1-8]? "x"? square
pawn   ::= ([a-h] "x")? square ("=" [NBQR])?
castle ::= "O-O" "-O"?
square ::= [a-h] [1-8]
"""
MOVE = r"(([a-h]x)?[a-h][1-8](=[NBQR])?|[NBKQR][a-h]?[1-8]?x?[a-h][1-8]|O-O(-O)?)[+#]?"


def test_grammars_in_gbnf(compiler: ConstraintCompiler, model: Model) -> None:
    def texts(gbnf: str) -> list[str]:
        one = source(GrammarKind.GRAMMAR, gbnf)
        return [walk(start(compiler, one), model.vocab, seed, max_tokens=20_000) for seed in range(5)]

    assert all(re.fullmatch(r"(- [^\n]{1,20}\n)+", text) for text in texts(LIST_GBNF))
    assert all(re.fullmatch(rf"(\d+\. {MOVE} {MOVE}\n)+", text) for text in texts(CHESS_GBNF))
    mask = start(compiler, source(GrammarKind.GRAMMAR, JSON_GBNF))
    feed(mask, model.vocab, '{"a": [1.5, {"b": null}], "c":"d"}')
    assert set(allowed_tokens(mask, model.vocab)) >= model.vocab.eog_tokens


def test_a_dialects_grammar_with_schemas_in_it(compiler: ConstraintCompiler, model: Model) -> None:
    lark = 'start: "<call>" (one | two) "</call>"\n'
    lark += f"one: {lark_json(record(a=DIGIT))}\ntwo: {lark_json(record(b=DIGIT))}\n"
    text = walk(start(compiler, source(GrammarKind.DIALECT, lark)), model.vocab, 3)
    assert re.fullmatch(r'<call>\{"[ab]": \d\}</call>', text)


def test_a_dialects_grammar_is_built_when_it_is_compiled(compiler: ConstraintCompiler, model: Model) -> None:
    built: list[str] = []

    def build() -> str:
        built.append("once")
        return 'start: "<call>"'

    one = GrammarSource(GrammarKind.DIALECT, "what it is made from", "form", build=build)
    other = GrammarSource(GrammarKind.DIALECT, "what it is made from", "form", build=lambda: "not built")
    assert one == other
    assert hash(one) == hash(other)
    assert built == []
    assert walk(start(compiler, one), model.vocab, 1) == "<call>"
    assert walk(start(compiler, other), model.vocab, 1) == "<call>"
    assert built == ["once"]


def test_only_what_is_known_of_a_grammar_spares_it_a_trial() -> None:
    assert to_text(of_tool(record(a=DIGIT))).is_plain
    assert not to_text(of_tool({"type": "object", "allOf": [record(a=DIGIT), {"minProperties": 1}]})).is_plain
    assert not to_text(of_tool(hidden_chain(600))).is_plain
    assert not to_text(source(GrammarKind.DIALECT, f"start: {lark_json(record(a=DIGIT))}")).is_plain
    assert not to_text(source(GrammarKind.GRAMMAR, 'start: "a"')).is_plain


@pytest.mark.parametrize("text", ["%json true", "%json 5", 'start: "%json', "%json {"])
def test_what_a_description_says_is_no_grammar(compiler: ConstraintCompiler, model: Model, text: str) -> None:
    schema = {"description": text, **record(a=DIGIT)}
    one = of_tool(schema)
    assert to_text(one).is_plain
    assert re.fullmatch(r'\{"a": \d\}', walk(start(compiler, one), model.vocab, 1))
    lark = source(GrammarKind.GRAMMAR, f"start: {lark_json(schema)}")
    assert re.fullmatch(r'\{"a": \d\}', walk(start(compiler, lark), model.vocab, 1))


def test_a_token_can_be_named_by_its_id(compiler: ConstraintCompiler, model: Model) -> None:
    token = model.vocab.control_texts["<|im_start|>"]
    mask = start(compiler, source(GrammarKind.DIALECT, f'start: <[{token}]> "x"'))
    assert allowed_tokens(mask, model.vocab) == [token]
    assert text_of(model.vocab, mask.accept(token)) == "x"
    assert mask.is_complete


def chain(length: int) -> dict[str, Any]:
    nodes: dict[str, Any] = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**nodes, f"d{length}": {"type": "null"}}}


def hidden_chain(length: int) -> dict[str, Any]:
    """A chain of references that overflows the stack, in a schema whose description looks like Lark."""
    nodes: dict[str, Any] = {f"{n:x}": {"$ref": f"#/d/{n + 1:x}"} for n in range(length)}
    properties = {"q": {"$ref": "#/d/0"}}
    last = {f"{length:x}": {"type": "null"}}
    return {"type": "object", "description": "%json true", "properties": properties, "d": {**nodes, **last}}


def rules(length: int) -> str:
    names = "".join(f"a{n}: a{n + 1}\n" for n in range(length))
    return f'start: a0\n{names}a{length}: "x"\n'


def nested(levels: int) -> str:
    return "root ::= " + "(" * levels + '"a"' + ")" * levels


REFUSED: dict[str, tuple[GrammarSource, str]] = {
    "no JSON": (source(GrammarKind.JSON_SCHEMA, "{"), "not valid JSON"),
    "a remote reference": (of_schema({"$ref": "https://a.org/b"}), "leads out of it"),
    "a reference to nothing": (of_schema({"$ref": "#/$defs/a"}), "names nothing in it"),
    "100 levels": (of_schema(json.loads('{"items":' * 100 + "{}" + "}" * 100)), "levels deep"),
    "a large one": (of_schema({"enum": [f"value number {n}" for n in range(20_000)]}), "longer than"),
    "an unknown keyword": (of_schema({"type": "array", "contains": {"type": "null"}}), "contains"),
    "an unknown format": (of_schema({"type": "string", "format": "spell"}), "format"),
    "a bad pattern": (of_schema({"type": "string", "pattern": "("}), "unclosed group"),
    "nothing": (of_schema(False), "nothing fits it"),
    "a circle": (of_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}), "nothing fits it"),
    "a contradiction": (of_schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "cannot be used"),
    "a chain beyond the stack": (of_schema(chain(2_500)), "nested too deeply to compile"),
    "patterns that never end": (
        of_schema({"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(60)]}),
        "longer than 2 seconds",
    ),
    "a tool's schema": (of_tool({"$ref": "http://a"}), "leads out of it"),
    "a deep one of a tool": (of_tool(json.loads('{"items":' * 100 + "{}" + "}" * 100)), "levels deep"),
    "a keyword in a tool's": (of_tool({"contains": {}}), "contains"),
    "a hidden chain in a tool's": (of_tool(hidden_chain(2_900)), "nested too deeply to compile"),
    "a long grammar of tools": (
        GrammarSource(GrammarKind.DIALECT, "long", "form", build=lambda: "start: " + "a" * 600_000),
        "longer than",
    ),
    "a schema in Lark": (source(GrammarKind.GRAMMAR, 'start: %json {"$ref": "http://a"}'), "does not fetch"),
    "a deep schema in Lark": (source(GrammarKind.GRAMMAR, "start: %json " + "[" * 60_000), "cannot be used"),
    "a hidden chain in Lark": (
        source(GrammarKind.GRAMMAR, "start: %json " + json.dumps(hidden_chain(2_100))),
        "nested too deeply to compile",
    ),
    "a bad expression": (source(GrammarKind.REGEX, "[a-"), "unclosed character class"),
    "a look-around": (source(GrammarKind.REGEX, "(?=a)b"), "look-ahead"),
    "an expression of many": (source(GrammarKind.REGEX, "((a{0,900}){0,900}){0,900}"), "repeats something"),
    "a long expression": (source(GrammarKind.REGEX, "a" * 20_000), "longer than"),
    "an empty expression": (source(GrammarKind.REGEX, "()"), "empty"),
    "no choice": (source(GrammarKind.CHOICE, "[]"), "no text to choose"),
    "choices of another kind": (source(GrammarKind.CHOICE, "[1]"), "not a list of texts"),
    "choices that are no JSON": (source(GrammarKind.CHOICE, "yes"), "not valid JSON"),
    "half a character": (source(GrammarKind.REGEX, "a\ud800"), "not Unicode"),
    "half a character in a schema": (source(GrammarKind.JSON_SCHEMA, '{"const": "\\ud800"}'), "cannot hold"),
    "half a character in a choice": (source(GrammarKind.CHOICE, '["\\ud800"]'), "not Unicode"),
    "a number beyond all": (source(GrammarKind.JSON_SCHEMA, '{"const": 1e999}'), "cannot hold"),
    "a bad grammar": (source(GrammarKind.GRAMMAR, "start: nothing"), 'unknown name: "nothing"'),
    "no grammar": (source(GrammarKind.GRAMMAR, "What is this?"), "cannot be used"),
    "a grammar without end": (source(GrammarKind.GRAMMAR, "start: a\na: b\nb: a"), "nothing fits it"),
    "a deep grammar": (source(GrammarKind.GRAMMAR, f"start: {'(' * 9_999}"), "too deeply nested"),
    "a long chain of rules": (
        source(GrammarKind.GRAMMAR, rules(3_000)),
        "nested too deeply to compile",
    ),
    "a bad GBNF": (source(GrammarKind.GRAMMAR, 'root ::= "a" | ('), "not valid GBNF"),
    "a GBNF without root": (source(GrammarKind.GRAMMAR, 'a ::= "a"'), "not valid GBNF"),
    "a GBNF nested 30,000 deep": (source(GrammarKind.GRAMMAR, nested(30_000)), "nested too deeply"),
    "a GBNF nested 100,000 deep": (source(GrammarKind.GRAMMAR, nested(100_000)), "longer than"),
    "a GBNF of many rules": (source(GrammarKind.GRAMMAR, 'a ::= "b"\n' * 300), "more than 256 rules"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_in_one_sentence(
    compiler: ConstraintCompiler, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    one, reason = REFUSED[name]
    with pytest.raises(InvalidRequestError, match=re.escape(reason)) as caught:
        start(compiler, one)
    assert caught.value.param == "form"
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
