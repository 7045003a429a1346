"""Forced calls of the dialects that are not plain JSON: whatever the model writes, the schema takes it."""

import re

import pytest

from nexa_runtime.chat.dialects.base import Dialect, UnsupportedSchemaError
from nexa_runtime.chat.dialects.dsml import DeepSeekDsml
from nexa_runtime.chat.dialects.gemma import FunctionGemma, Gemma4
from nexa_runtime.chat.dialects.glm import Glm
from nexa_runtime.chat.dialects.minimax import MiniMax
from nexa_runtime.chat.dialects.pythonic import Lfm2, Pythonic
from nexa_runtime.chat.dialects.qwen3_coder import Qwen3Coder, SeedOss
from nexa_runtime.chat.messages import Json, Tool
from nexa_runtime.llama import Model
from tests.chat.dialects.grammars import Grammars

KINDS = (Qwen3Coder, SeedOss, Glm, MiniMax, DeepSeekDsml, Gemma4, FunctionGemma, Pythonic, Lfm2)
TEXTS = (Qwen3Coder, SeedOss, Glm, MiniMax)

SCHEMAS: dict[str, dict[str, Json]] = {
    "alternation": {"type": "string", "pattern": "^(red|blue)$"},
    "alternation on top": {"type": "string", "pattern": "^a|b$|^c$", "maxLength": 5},
    "unanchored": {"type": "string", "pattern": "x[0-9]", "maxLength": 5},
    "classes": {"type": "string", "pattern": r"^\d{2}(?:\w|[^\s/])-\.?$"},
    "slash": {"type": "string", "pattern": '^/[a-c"]{1,2}/$'},
    "escaped end": {"type": "string", "pattern": r"^a{2}\$$"},
    **{
        name: {"type": "string", "format": name, "maxLength": 60}
        for name in ("date", "time", "date-time", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
    },
    "duration": {"type": "string", "format": "duration"},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "parts": {"allOf": [{"type": "string"}, {"maxLength": 3}, {"pattern": "^[ab]*$"}], "minLength": 1},
    "branches": {"anyOf": [{"type": "string", "maxLength": 2}, {"const": "four"}, {"type": "null"}]},
    "one of": {"oneOf": [{"type": "string", "pattern": "^[a-z]{3}$"}, {"type": "integer", "minimum": 900}]},
    "reference": {"$ref": "#/$defs/two%20words~1"},
    "beside a reference": {"$ref": "#/$defs/word", "maxLength": 2},
    "bounded number or text": {
        "type": ["string", "integer"], "minimum": 5, "maximum": 12, "maxLength": 3, "pattern": "^[ -9]*$",
    },
    "text that looks like another type": {"enum": ["5", 6, None, "null", "true", True, "[1]", "{"]},
    "false is not meant": {"anyOf": [{"const": True}, {"type": "string", "pattern": "^(false|no)$"}]},
    "quotes": {"type": ["string", "null"], "pattern": '^"[a-c]?"$'},
    "array or text": {
        "anyOf": [
            {"type": "array", "items": {"enum": ["</parameter>", "]"]}, "maxItems": 2},
            {"type": "string", "maxLength": 2},
        ]
    },
    "ends of tags": {
        "type": "array", "maxItems": 2, "minItems": 1,
        "items": {"enum": ["</parameter>", "\n</parameter>\n", "</arg_value>", '<|"|>', "<escape>", '"']},
    },
    "object": {
        "type": "object",
        "properties": {"a b": {"type": "null"}, "c:d": {"format": "ipv4"}, "": {"const": 1}},
        "required": ["c:d"],
        "additionalProperties": False,
    },
    "parts of an object": {
        "allOf": [{"$ref": "#/$defs/part"}, {"properties": {"a": {"maxLength": 1}}}],
        "properties": {"a": True},
        "additionalProperties": False,
    },
    "a tuple": {"type": "array", "prefixItems": [{"const": 1}, {"enum": ["a", '<|"|>']}], "items": False},
    "objects to choose from": {
        "anyOf": [
            {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"],
             "additionalProperties": False},
            {"enum": [{"a": ["b"]}, [None]]},
        ]
    },
    "refers to itself": {"$ref": "#/$defs/tree"},
}  # fmt: skip
DEFINITIONS: dict[str, Json] = {
    "two words/": {"enum": ["one", "two words"]},
    "word": {"type": "string", "maxLength": 4, "minLength": 1},
    "part": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    "tree": {
        "type": "object", "properties": {"leaf": {"type": "boolean"}, "tree": {"$ref": "#/$defs/tree"}},
        "required": ["leaf"], "additionalProperties": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def grammars(model: Model) -> Grammars:
    return Grammars(model)


def tool(parameters: dict[str, Json], *, is_strict: bool = False) -> Tool:
    return Tool("put", None, parameters, is_strict)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_a_value(kind: type[Dialect], schema: dict[str, Json], grammars: Grammars) -> None:
    parameters: dict[str, Json] = {
        "type": "object",
        "properties": {"value": schema},
        "required": ["value"],
        "additionalProperties": False,
        "$defs": DEFINITIONS,
    }
    grammars.check_values(kind, tool(parameters), range(4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "parameters",
    [
        {
            "type": "object",
            "allOf": [{"properties": {"a": {"const": "x"}}, "required": ["a"]}, {"$ref": "#/$defs/part"}],
            "$defs": {"part": {"properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}}},
        },
        {"type": "object", "required": ["a"], "additionalProperties": {"enum": [1, "one"]}},
        {"type": "object", "properties": {"a": False, "b": {"const": 1}}, "additionalProperties": False},
        {
            "type": "object",
            "properties": {name: {"const": 1} for name in ("a\nb", "x" * 300, "", " c", "d>", 'e">', "f=(")},
            "additionalProperties": False,
        },
    ],
    ids=["parts", "not described", "never", "names"],
)
def test_arguments(kind: type[Dialect], parameters: dict[str, Json], grammars: Grammars) -> None:
    grammars.check_values(kind, tool(parameters), range(6))


def test_texts_stay_bare(grammars: Grammars) -> None:
    """Models are used to write them so."""
    wanted: list[tuple[dict[str, Json], str]] = [
        (SCHEMAS["alternation"], "red"),
        (SCHEMAS["date-time"], "2024-02-29T09:30:00+02:00"),
        (SCHEMAS["branches"], "null"),
        (SCHEMAS["branches"], "four"),
        (SCHEMAS["reference"], "two words"),
        (SCHEMAS["text that looks like another type"], "6"),
        (SCHEMAS["text that looks like another type"], '"5"'),
        (SCHEMAS["false is not meant"], "no"),
        ({"type": "string", "format": "colour", "maxLength": 3.0}, "red"),
        ({"type": ["string", "integer"]}, "some 5"),
        ({}, '{"a": 1} or so'),
    ]
    for schema, text in wanted:
        parameters: dict[str, Json] = {
            "type": "object", "properties": {"v": schema}, "required": ["v"], "$defs": DEFINITIONS,
        }  # fmt: skip
        dialect = Qwen3Coder({})
        grammar = dialect.grammar([tool(parameters)], is_forced=True, is_parallel=False)
        answer = (
            f"<tool_call>\n<function=put>\n<parameter=v>\n{text}\n</parameter>\n</function>\n</tool_call>"
        )
        assert grammars.accepts(dialect, grammar, answer), text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("parameters", "keyword"),
    [
        ({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "anyOf"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "minProperties"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "patternProperties"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "required"),
        ({"type": "object", "allOf": [{"$ref": "#"}]}, "$ref"),
    ],
)
def test_what_cannot_be_held(
    kind: type[Dialect], parameters: dict[str, Json], keyword: str, grammars: Grammars
) -> None:
    dialect = kind({})
    for one, is_forced in ((tool(parameters), True), (tool(parameters, is_strict=True), False)):
        with pytest.raises(
            UnsupportedSchemaError, match="The schema of the tool 'put' cannot be used"
        ) as raised:
            dialect.grammar([one], is_forced=is_forced, is_parallel=True)
        assert (raised.value.tool, raised.value.keyword) == ("put", keyword)
    grammars.check_valid(dialect.grammar([tool(parameters)], is_forced=False, is_parallel=True))


@pytest.mark.parametrize("kind", [*TEXTS, Pythonic, Lfm2])
def test_a_name_that_cannot_be_written(kind: type[Dialect]) -> None:
    parameters: dict[str, Json] = {"type": "object", "properties": {"a\nb": {}}, "required": ["a\nb"]}
    with pytest.raises(UnsupportedSchemaError, match=re.escape(r"the property 'a\nb'")):
        kind({}).grammar([tool(parameters)], is_forced=True, is_parallel=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pattern", ["^a(?=b)", r"(a)\1", "(", r"^\ba", "[^]]", "^[a-", "a{3}{4}{5}(b", "^*a"]
)
def test_hard_patterns_are_left_to_the_compiler(kind: type[Dialect], pattern: str) -> None:
    """As those of any other JSON."""
    parameters: dict[str, Json] = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": pattern}},
    }
    for is_forced in (False, True):
        assert "%json" in kind({}).grammar([tool(parameters)], is_forced=is_forced, is_parallel=False)
