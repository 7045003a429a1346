"""Grammars of the dialects: what they let a model write, and that parsers read it as it was meant."""

import json
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab

from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.dialects.command_r import CommandR, CommandR7B
from nexa_runtime.chat.dialects.deepseek import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    SEPARATOR,
    DeepSeek,
    DeepSeekR1,
)
from nexa_runtime.chat.dialects.dsml import DSML, DeepSeekDsml
from nexa_runtime.chat.dialects.generic import Generic
from nexa_runtime.chat.dialects.granite import Granite
from nexa_runtime.chat.dialects.hermes import Hermes
from nexa_runtime.chat.dialects.llama3 import Llama3
from nexa_runtime.chat.dialects.mistral import Mistral, MistralArgs
from nexa_runtime.chat.dialects.shape import ShapeDialect
from nexa_runtime.chat.messages import Tool
from nexa_runtime.llama import Model
from tests.chat.dialects.transcripts import TOOLS, run

LIMA = {"city": "Lima \u00e9"}
NAMES = ("get_weather", "get_time")


def dsml(arguments: object) -> str:
    """Arguments as DeepSeek V3.2 writes them."""
    assert isinstance(arguments, dict)
    return "".join(
        f'<{DSML}parameter name="{key}" string="{str(isinstance(value, str)).lower()}">'
        f"{value if isinstance(value, str) else json.dumps(value)}</{DSML}parameter>\n"
        for key, value in arguments.items()
    )


@dataclass(frozen=True)
class Form:
    """A dialect, and how it writes one call, and a second one behind it: ``{name}`` with ``{arguments}``."""

    kind: type[Dialect]
    one: str
    two: str

    def write(self, *calls: tuple[str, object]) -> str:
        form = self.one if len(calls) == 1 else self.two
        for name, arguments in calls:
            text = dsml(arguments) if self.kind is DeepSeekDsml else json.dumps(arguments, ensure_ascii=False)
            form = form.replace("NAME", name, 1).replace("ARGUMENTS", text, 1)
        return form

    def __str__(self) -> str:
        return self.kind.name


HERMES = '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>'
OBJECT = '{"name": "NAME", "arguments": ARGUMENTS}'
PARAMETERS = '{"name": "NAME", "parameters": ARGUMENTS}'
ACTION = '\n    {\n        "tool_name": "NAME",\n        "parameters": ARGUMENTS\n    }'
ACTION_7B = '\n    {"tool_name": "NAME", "parameters": ARGUMENTS}'
R1 = f"{CALL_BEGIN}function{SEPARATOR}NAME\n```json\nARGUMENTS\n```{CALL_END}"
V3 = f"{CALL_BEGIN}NAME{SEPARATOR}ARGUMENTS{CALL_END}"
INVOKE = f'<{DSML}invoke name="NAME">\nARGUMENTS</{DSML}invoke>\n'
FORMS = [
    Form(Hermes, HERMES, f"{HERMES}\n{HERMES}"),
    Form(Llama3, PARAMETERS, f"{PARAMETERS}; {PARAMETERS}"),
    Form(Mistral, f"[TOOL_CALLS][{OBJECT}]", f"[TOOL_CALLS][{OBJECT}, {OBJECT}]"),
    Form(MistralArgs, args := "[TOOL_CALLS]NAME[ARGS]ARGUMENTS", args * 2),
    Form(DeepSeekR1, CALLS_BEGIN + R1 + CALLS_END, f"{CALLS_BEGIN}{R1}\n{R1}{CALLS_END}"),
    Form(DeepSeek, CALLS_BEGIN + V3 + CALLS_END, CALLS_BEGIN + V3 * 2 + CALLS_END),
    Form(Granite, f"<|tool_call|>[{OBJECT}]", f"<|tool_call|>[{OBJECT}, {OBJECT}]"),
    Form(
        CommandR,
        f"Action:\n```json\n[{ACTION}\n]```",
        f"Action:\n```json\n[{ACTION},{ACTION}\n]```",
    ),
    Form(
        CommandR7B,
        f"<|START_ACTION|>[{ACTION_7B}\n]<|END_ACTION|>",
        f"<|START_ACTION|>[{ACTION_7B},{ACTION_7B}\n]<|END_ACTION|>",
    ),
    Form(
        DeepSeekDsml,
        f"<{DSML}function_calls>\n{INVOKE}</{DSML}function_calls>",
        f"<{DSML}function_calls>\n{INVOKE * 2}</{DSML}function_calls>",
    ),
    Form(Generic, f'{{"tool_calls": [{OBJECT}]}}', f'{{"tool_calls": [{OBJECT}, {OBJECT}]}}'),
]
WITH_TEXT = [form for form in FORMS if form.kind not in (Llama3, Generic)]


class Writer:
    """The bundled model's vocabulary, and a dialect in it: with its markers as letters, or as tokens."""

    def __init__(self, model: Model, tokenizer: LLTokenizer, kind: type[Dialect], are_tokens: bool) -> None:
        self._vocab, self._tokenizer = model.vocab, tokenizer
        # Token 1 is special. The others are plain ones that stand for markers.
        tokens = {text: index + 1 if index == 0 else 1900 + index for index, text in enumerate(kind.markers)}
        self.dialect = kind(tokens if are_tokens else {})

    def tokens(self, text: str) -> Iterator[int]:
        for part in self.dialect.split(text):
            if part in self.dialect.special_texts:
                yield self.dialect.special_texts[part]
            else:
                yield from map(int, self._vocab.tokenize(part, parse_special=False))

    def matcher(self, tools: Sequence[Tool] = TOOLS, *, is_forced: bool, is_parallel: bool) -> LLMatcher:
        grammar = self.dialect.grammar(tools, is_forced=is_forced, is_parallel=is_parallel)
        assert LLMatcher.validate_grammar(grammar, self._tokenizer) == "", grammar
        return LLMatcher(self._tokenizer, grammar)

    def accepts(self, text: str, *, is_forced: bool, is_parallel: bool = True) -> bool:
        matcher = self.matcher(is_forced=is_forced, is_parallel=is_parallel)
        tokens = list(self.tokens(text))
        is_taken = matcher.try_consume_tokens(tokens) == len(tokens)
        assert not matcher.is_error()
        return is_taken and matcher.is_accepting()


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> LLTokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return lltokenizer_from_vocab(model.vocab._pointer)


@pytest.fixture(params=[False, True], ids=["letters", "tokens"])
def are_tokens(request: pytest.FixtureRequest) -> bool:
    assert isinstance(request.param, bool)
    return request.param


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_forced_answer(model: Model, tokenizer: LLTokenizer, form: Form, are_tokens: bool) -> None:
    writer = Writer(model, tokenizer, form.kind, are_tokens)
    one = form.write(("get_weather", LIMA))
    two = form.write(("get_weather", LIMA), ("get_time", {}))
    for is_parallel in (False, True):
        assert writer.accepts(one, is_forced=True, is_parallel=is_parallel)
        assert writer.accepts(two, is_forced=True, is_parallel=is_parallel) is is_parallel
        for wrong in (
            "", "Hi", f"Hi {one}", f"{one} Hi", one[:-1], form.write(("rm", {})),
            form.write(("get_weather", {})), form.write(("get_weather", {"city": 1})),
            form.write(("get_time", LIMA)),
        ):  # fmt: skip
            assert not writer.accepts(wrong, is_forced=True, is_parallel=is_parallel), wrong


@pytest.mark.parametrize("form", WITH_TEXT, ids=str)
def test_a_free_answer(model: Model, tokenizer: LLTokenizer, form: Form, are_tokens: bool) -> None:
    writer = Writer(model, tokenizer, form.kind, are_tokens)
    one = form.write(("get_weather", LIMA))
    two = form.write(("get_weather", LIMA), ("get_time", {}))
    for is_parallel in (False, True):
        for right in ("", "Hi!\n", one, f"Hi\n{one}", f"Hi {one}\nthere"):
            assert writer.accepts(right, is_forced=False, is_parallel=is_parallel), right
        for wrong in (form.write(("rm", {})), f"Hi {form.write(('get_weather', {}))}"):
            assert not writer.accepts(wrong, is_forced=False, is_parallel=is_parallel), wrong
        assert writer.accepts(two, is_forced=False, is_parallel=is_parallel) is is_parallel
        assert writer.accepts(one + one, is_forced=False, is_parallel=is_parallel) is is_parallel
        if isinstance(writer.dialect, ShapeDialect) and (tags := writer.dialect.wrapping):
            wrapped = f"{tags.opening}Hi{tags.closing}"
            assert writer.accepts(wrapped, is_forced=False, is_parallel=is_parallel)
        if tags := writer.dialect.reasoning:
            thought = f"{tags.opening}Hm.{tags.closing}{one}"
            assert writer.accepts(thought, is_forced=False, is_parallel=is_parallel)


def test_letters_among_tokens(model: Model, tokenizer: LLTokenizer) -> None:
    writer = Writer(model, tokenizer, Hermes, are_tokens=False)
    writer.dialect = Hermes({"<think>": 1, "</think>": 1901})
    one = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    for is_parallel in (False, True):
        for right in (f"<think>Hm.</think>\n{one}", f"<think></think>Hi {one} so", "<think>Hm.", one, "Hi"):
            assert writer.accepts(right, is_forced=False, is_parallel=is_parallel), right
        for wrong in ("<think><tool_call></think>", f"{one[:-30]}<think>"):
            assert not writer.accepts(wrong, is_forced=False, is_parallel=is_parallel), wrong
        two = f"{one}<think></think>{one}"
        assert writer.accepts(two, is_forced=False, is_parallel=is_parallel) is is_parallel
    assert not writer.accepts(f"{one}<tool_call><think>", is_forced=False, is_parallel=False)


def test_llamas_free_answer(model: Model, tokenizer: LLTokenizer, are_tokens: bool) -> None:
    writer = Writer(model, tokenizer, Llama3, are_tokens)
    one, two = (
        '{"name": "get_time", "parameters": {}}',
        '{"name": "get_weather", "parameters": {"city": "é"}}',
    )
    for right in ("", "Hi", '{"a": 1}', " {", one, f"\n{two}", "Hi " + one):
        assert writer.accepts(right, is_forced=False), right
    assert writer.accepts(f"{one}; {two}", is_forced=False)
    assert not writer.accepts(f"{one}; {two}", is_forced=False, is_parallel=False)
    assert not writer.accepts('{"name": "rm", "parameters": {}}', is_forced=False)
    assert writer.accepts(f"<|python_tag|>{one}", is_forced=False)
    assert writer.accepts("<|python_tag|>print()", is_forced=False) is not are_tokens


def test_the_generic_free_answer(model: Model, tokenizer: LLTokenizer) -> None:
    writer = Writer(model, tokenizer, Generic, are_tokens=False)
    assert writer.accepts('{"response": "Hi \\"you\\" \u00e9"}', is_forced=False)
    assert writer.accepts('{"tool_calls": [{"name": "get_time", "arguments": {}}]}', is_forced=False)
    for wrong in ("Hi", "{}", '{"response": 1}', '{"tool_calls": []}'):
        assert not writer.accepts(wrong, is_forced=False)


def test_the_generic_way_with_reasoning(model: Model, tokenizer: LLTokenizer, are_tokens: bool) -> None:
    writer = Writer(model, tokenizer, Generic, are_tokens)
    writer.dialect = Generic(writer.dialect.special_texts, "</think>")
    said = '{"response": "Hi"}'
    for right in (said, f"<think>Hm </x>.\n</think>\n\n{said}", f"<think></think>{said}"):
        assert writer.accepts(right, is_forced=False), right
        assert run(writer.dialect, [writer.dialect.marked(right)], is_constrained=True).content == "Hi"
    for wrong in ("<think>Hm.", f"Hm.</think>{said}", f"{said}<think></think>"):
        assert not writer.accepts(wrong, is_forced=False), wrong
    assert not writer.accepts(f"<think></think>{said}", is_forced=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_accepted_is_read(form: Form, are_tokens: bool) -> None:
    dialect = form.kind(dict.fromkeys(form.kind.markers, 1) if are_tokens else {})
    wanted: tuple[tuple[str, object], ...] = (("get_weather", LIMA), ("get_time", {}))
    for calls in (wanted[:1], wanted):
        text = dialect.marked(form.write(*calls))
        for is_constrained in (False, True):
            answer = run(dialect, text, is_constrained=is_constrained)
            assert [(name, json.loads(arguments)) for name, arguments in answer.calls] == list(calls)
            assert answer.content == answer.reasoning == ""


SMALL = (
    Tool("get_time", None, {"type": "object", "additionalProperties": False}),
    Tool(
        "set-lamp_1",
        None,
        {
            "type": "object",
            "properties": {
                "is_on": {"type": "boolean"},
                "color": {"enum": ["red", 'a "b"', "}</tool_call>"]},
            },
            "required": ["is_on"],
            "additionalProperties": False,
        },
    ),
)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_whatever_a_forced_model_writes_is_calls(model: Model, tokenizer: LLTokenizer, form: Form) -> None:
    writer = Writer(model, tokenizer, form.kind, are_tokens=False)
    chance = random.Random(1)
    for _ in range(4):
        matcher = writer.matcher(SMALL, is_forced=True, is_parallel=True)
        pieces: list[bytes] = []
        while not (matcher.is_accepting() and (len(pieces) > 100 or matcher.is_stopped())):
            mask = matcher.compute_logit_bias()
            allowed = [token for token, bias in enumerate(mask) if bias and token not in (0, 1, 2)]
            token = chance.choice(allowed)
            assert matcher.consume_token(token)
            pieces.append(model.vocab.pieces[token])
        text = b"".join(pieces).decode()
        for is_constrained in (False, True):
            answer = run(writer.dialect, [text], tools=SMALL, is_constrained=is_constrained)
            assert answer.content == "", text
            assert len(answer.calls) == sum(text.count(f"{tool.name}") for tool in SMALL)
            for _, arguments in answer.calls:
                assert json.loads(arguments).keys() <= {"is_on", "color"}
