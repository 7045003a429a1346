"""Forced answers that end anywhere: none of their markup is content."""

import pytest

from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.dialects.command_r import CommandR, CommandR7B
from nexa_runtime.chat.dialects.deepseek import DeepSeek, DeepSeekR1
from nexa_runtime.chat.dialects.dsml import DeepSeekDsml
from nexa_runtime.chat.dialects.gemma import FunctionGemma, Gemma4
from nexa_runtime.chat.dialects.generic import Generic
from nexa_runtime.chat.dialects.glm import Glm
from nexa_runtime.chat.dialects.granite import Granite
from nexa_runtime.chat.dialects.harmony import Harmony
from nexa_runtime.chat.dialects.hermes import Hermes
from nexa_runtime.chat.dialects.kimi import Kimi
from nexa_runtime.chat.dialects.llama3 import Llama3
from nexa_runtime.chat.dialects.minimax import MiniMax
from nexa_runtime.chat.dialects.mistral import Mistral, MistralArgs
from nexa_runtime.chat.dialects.pythonic import Lfm2, Pythonic
from nexa_runtime.chat.dialects.qwen3_coder import Qwen3Coder, SeedOss
from tests.chat.dialects import test_dsml, test_gemma, test_glm, test_kimi, test_minimax, test_qwen3_coder
from tests.chat.dialects import test_json_families as families
from tests.chat.dialects.common import LIMA_TEXT, TIME_TEXT
from tests.chat.dialects.transcripts import run, with_tokens

OBJECTS = '{"name": "get_weather", "KEY": {"city": "Lima"}}, {"name": "get_time", "KEY": {}}'
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lima"}}\n</tool_call>'
PYTHON = '[get_weather(city="Lima"), get_time()]'
GEMMA = test_gemma.WEATHER + test_gemma.TIME

ANSWERS: dict[type[Dialect], str] = {
    Hermes: f"{HERMES}\n{HERMES}",
    Llama3: OBJECTS.replace("KEY", "parameters").replace("}, {", "}; {"),
    Mistral: families.mistral(LIMA_TEXT, TIME_TEXT),
    MistralArgs: families.mistral_args(LIMA_TEXT, TIME_TEXT),
    DeepSeekR1: families.deepseek_r1(LIMA_TEXT, TIME_TEXT),
    DeepSeek: families.deepseek(LIMA_TEXT, TIME_TEXT),
    Granite: families.granite(LIMA_TEXT, TIME_TEXT),
    CommandR: families.command_r(LIMA_TEXT, TIME_TEXT),
    CommandR7B: families.command_r7b(LIMA_TEXT, TIME_TEXT),
    DeepSeekDsml: test_dsml.block(test_dsml.WEATHER, test_dsml.invoke("get_time")),
    Generic: '{"tool_calls": [' + OBJECTS.replace("KEY", "arguments") + "]}",
    Qwen3Coder: f"{test_qwen3_coder.WEATHER}\n{test_qwen3_coder.TIME}",
    SeedOss: test_qwen3_coder.SEED.format("Lima"),
    Glm: f"{test_glm.WEATHER}\n{test_glm.TIME}",
    MiniMax: test_minimax._block(test_minimax.WEATHER, test_minimax.TIME),
    Kimi: test_kimi._block(test_kimi.WEATHER, test_kimi.TIME),
    Gemma4: GEMMA,
    FunctionGemma: GEMMA.replace("<|tool_call>", "<start_function_call>")
    .replace("<tool_call|>", "<end_function_call>")
    .replace('<|"|>', "<escape>"),
    Pythonic: PYTHON,
    Lfm2: f"<|tool_call_start|>{PYTHON}<|tool_call_end|>",
    Harmony: '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Lima"}',
}


@pytest.mark.parametrize("are_tokens", [False, True])
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_forced_answer_cut_anywhere(kind: type[Dialect], are_tokens: bool) -> None:
    dialect = with_tokens(kind) if are_tokens else kind({})
    come: list[str] = []
    for part in dialect.split(ANSWERS[kind]):
        for piece in [dialect.marked(part)] if part in dialect.special_texts else part:
            come.append(piece)
            for cuts in (come, ["".join(come)]):
                answer = run(dialect, cuts, is_constrained=True)
                assert answer.content == answer.reasoning == "", (cuts, answer)
                name, arguments = answer.calls[0] if answer.calls else ("get_weather", "")
                assert name == "get_weather"
                assert '{"city": "Lima"}'.startswith(arguments), (cuts, answer)
    assert len(answer.calls) == ANSWERS[kind].count("get_")
