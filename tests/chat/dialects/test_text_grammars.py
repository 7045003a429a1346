"""Grammars of the dialects that are not plain JSON: what they let through, and that it is read back."""

import pytest

from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.dialects.gemma import FunctionGemma, Gemma4
from nexa_runtime.chat.dialects.glm import Glm
from nexa_runtime.chat.dialects.harmony import Harmony
from nexa_runtime.chat.dialects.kimi import Kimi
from nexa_runtime.chat.dialects.minimax import MiniMax
from nexa_runtime.chat.dialects.pythonic import Lfm2, Pythonic
from nexa_runtime.chat.dialects.qwen3_coder import Qwen3Coder, SeedOss
from nexa_runtime.chat.messages import Json, Tool
from nexa_runtime.llama import Model
from tests.chat.dialects.grammars import Grammars
from tests.chat.dialects.transcripts import TOOLS

KINDS = (Qwen3Coder, SeedOss, Glm, Pythonic, Lfm2, Harmony, Gemma4, FunctionGemma, Kimi, MiniMax)


@pytest.fixture(scope="module")
def grammars(model: Model) -> Grammars:
    return Grammars(model)


@pytest.mark.parametrize("kind", KINDS)
def test_walks(kind: type[Dialect], grammars: Grammars) -> None:
    grammars.check_walks(kind, range(12))


@pytest.mark.parametrize(
    ("kind", "beginning"),
    [
        (Qwen3Coder, "So <tool_call>"),
        (Qwen3Coder, "So <function=put>"),
        (SeedOss, "So <seed:tool_call>"),
        (Glm, "So\n<tool_call>"),
        (Pythonic, "So <|python_start|>"),
        (Pythonic, " [put("),
        (Lfm2, "<|tool_call_start|>"),
        (Harmony, "<|channel|>commentary to=functions.put"),
        (Gemma4, "So <|tool_call>"),
        (Kimi, "So <|tool_calls_section_begin|>"),
        (MiniMax, "So <minimax:tool_call>"),
    ],
)
def test_free_walks(kind: type[Dialect], beginning: str, grammars: Grammars) -> None:
    grammars.check_free_walks(kind, beginning, range(6))


def test_qwen3_coder(grammars: Grammars) -> None:
    call = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n{}\n</parameter>\n"
        "<parameter=days>\n{}\n</parameter>\n</function>\n</tool_call>"
    )
    time = "<tool_call>\n<function=get_time>\n</function>\n</tool_call>"
    grammars.check(
        Qwen3Coder,
        forced=[call.format('São <b>\n"x"', 3), call.format("", -1), time],
        refused=[
            call.format("Lima", "many"),
            time.replace("get_time", "get_tim"),
            call.format("Lima", 3).replace("<parameter=city>", "<parameter=town>"),
            f"A call: {time.replace('</function>', '')}",
            "Let me <tool_call>see",
            "So <function=get_time>oh",
        ],
        free=["", "Hello!\n", f"I look. {time}", f"{time} Done.", "<function=other> x", time[12:]],
    )


def test_glm(grammars: Grammars) -> None:
    call = (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{}</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
    )
    time = "<tool_call>get_time\n</tool_call>"
    grammars.check(
        Glm,
        forced=[call.format("São\n</b>", 3), time],
        refused=[call.format("Lima", "x"), time.replace("time", "tim"), "So <tool_call> I"],
        free=["", "Hello!\n", f"I look. {time}", f"{time} Done.", f"<think>Hm</think>\n{time}"],
    )


def test_pythonic(grammars: Grammars) -> None:
    call = '[get_weather(city="São", days=3)]'
    marked = "<|python_start|>{}<|python_end|>"
    for is_parallel in (False, True):
        dialect = Pythonic({})
        grammar = dialect.grammar(TOOLS, is_forced=True, is_parallel=is_parallel)
        for text in (call, "[get_time()]", '[save-note_2(tags=["a"], is_pinned=True)]'):
            assert grammars.accepts(dialect, grammar, text)
            assert not grammars.accepts(dialect, grammar, f"So {text}")
        for text in ("[get_time(", "[get_weather(days=3)]", '[get_weather(city="x", days="y")]', "[other()]"):
            assert not grammars.accepts(dialect, grammar, text)
        assert grammars.accepts(dialect, grammar, "[get_time(), get_time()]") == is_parallel
    lfm2 = [f"<|tool_call_start|>{call}<|tool_call_end|>", "<|tool_call_start|>[get_time()]<|tool_call_end|>"]
    grammars.check(
        Lfm2,
        forced=lfm2,
        refused=[lfm2[0].replace("3", "x"), lfm2[1].replace("time", "tim"), "So <|tool_call_start|> I"],
        free=["", "Hello [get_time()]\n", f"I look. {lfm2[1]}", f"{lfm2[1]} Done."],
    )
    for is_parallel in (False, True):
        free = Pythonic({}).grammar(TOOLS, is_forced=False, is_parallel=is_parallel)
        for text in (f"So {marked.format(call)}", call, f"{call} Done.", "[1, 2]", "[get", f"So {call[:9]}"):
            assert grammars.accepts(Pythonic({}), free, text), text
        for text in (f"So {marked.format('[x]')}", "[get_weather(x", " [get_time(x=1)]"):
            assert not grammars.accepts(Pythonic({}), free, text), text


def test_harmony(grammars: Grammars) -> None:
    call = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}"
    before = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    grammars.check(
        Harmony,
        forced=[call.format("get_weather", '{"city": "São"}'), call.format("get_time", "{}")],
        refused=[call.format("get_weather", '{"town": "x"}'), call.format("other", "{}"), "plain"],
        free=[
            "<|channel|>final<|message|>Hello!\n",
            before + "<|channel|>final<|message|>Hello!\n",
            before + call.format("get_time", "{}"),
            before + " to=functions.get_time<|channel|>commentary json<|message|>{}",
        ],
    )


def test_gemma(grammars: Grammars) -> None:
    call = '<|tool_call>call:get_weather{{city:<|"|>{}<|"|>,days:{}}}<tool_call|>'
    time = "<|tool_call>call:get_time{}<tool_call|>"
    grammars.check(
        Gemma4,
        forced=[call.format('São\n"x" {', 3), time],
        refused=[call.format("Lima", "x"), time.replace("time", "tim"), "So <|tool_call> I"],
        free=["", "Hello!\n", f"I look. {time}", f"{time} Done."],
    )


def test_minimax(grammars: Grammars) -> None:
    call = (
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">{}</parameter>\n'
        '<parameter name="days">{}</parameter>\n</invoke>\n</minimax:tool_call>'
    )
    grammars.check(
        MiniMax,
        forced=[call.format("São </b>", 3)],
        refused=[call.format("x", "y"), call.format("x", 3).replace("days", "day"), "<minimax:tool_call> So"],
        free=["", "Hello!\n", f"I look. {call.format('x', 1)}", f"{call.format('x', 1)} Done."],
    )


def test_kimi(grammars: Grammars) -> None:
    call = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    )
    weather = call.format("get_weather", '{"city": "São", "days": 3}')
    grammars.check(
        Kimi,
        forced=[weather, call.format("get_time", "{}")],
        refused=[weather.replace("3", "x"), call.format("other", "{}"), "<|tool_calls_section_begin|>So"],
        free=["", "Hello!\n", f"I look. {weather}", f"{weather} Done."],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_any_schema(kind: type[Dialect], grammars: Grammars) -> None:
    """Schemas of every kind make a grammar that compiles."""
    schemas: list[dict[str, Json]] = [
        {"type": "object"},
        {"type": "object", "required": ["a"]},
        {"type": "object", "properties": {"a": {}, "b/c": {"type": "string", "pattern": "/x+|\\d"}}},
        {"type": "object", "properties": {"a": {"type": "array"}, "b": {"type": "array", "minItems": 2}}},
        {"type": "object", "properties": {"a": {"const": 3}, "b": {"enum": ["x\n", None, 2.5, {"k": [1]}]}}},
        {
            "type": "object",
            "properties": {"a": {"type": "string", "pattern": "^a+$"}, "b": {"format": "date"}},
        },
        {
            "type": "object",
            "properties": {"tree": {"$ref": "#/$defs/tree"}},
            "$defs": {"tree": {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}}}},
        },
        {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, {"maxLength": 3}]}}},
        {
            "type": "object",
            "properties": {"a": {"oneOf": [{"type": "string"}, {"type": "array"}]}},
        },
    ]
    tools = [Tool(f"tool_{index}", None, schema) for index, schema in enumerate(schemas)]
    for dialect in grammars.dialects(kind):
        for is_forced in (False, True):
            for is_parallel in (False, True):
                grammars.check_valid(dialect.grammar(tools, is_forced=is_forced, is_parallel=is_parallel))
