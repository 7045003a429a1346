"""Which templates belong to the families whose calls are not plain JSON."""

import pytest

from nexa_runtime.chat.dialects.base import Dialect
from nexa_runtime.chat.dialects.gemma import FunctionGemma, Gemma4
from nexa_runtime.chat.dialects.glm import Glm
from nexa_runtime.chat.dialects.harmony import Harmony
from nexa_runtime.chat.dialects.kimi import Kimi
from nexa_runtime.chat.dialects.minimax import MiniMax
from nexa_runtime.chat.dialects.pythonic import Lfm2, Pythonic
from nexa_runtime.chat.dialects.qwen3_coder import Qwen3Coder, SeedOss

KINDS = (Qwen3Coder, SeedOss, Glm, MiniMax, Kimi, Harmony, Gemma4, FunctionGemma, Lfm2, Pythonic)

TEMPLATES: dict[str, type[Dialect] | None] = {
    "{{ '<tool_call>\\n<function=' + name + '>\\n<parameter=' }}": Qwen3Coder,
    "{%- set begin = '<seed:tool_call>' -%}{{ '\\n<function=' + name + '<parameter=' }}": SeedOss,
    "{{ '<tool_call>' + name }}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>": Glm,
    "{%- set begin = '<minimax:tool_call>' -%}{{ '<invoke name=\"' + name }}": MiniMax,
    "<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>": Kimi,
    "{{ '<|start|>assistant<|channel|>final<|message|>' }}": Harmony,
    "{{ '<|tool_call>call:' + name + '{' }}<|\"|>": Gemma4,
    "{{ '<start_function_call>call:' + name + '{' }}<escape>": FunctionGemma,
    "{{ 'List of tools: <|tool_list_start|>[' }}": Lfm2,
    "Write calls as [func_name1(params_name1=params_value1, params_name2=params_value2...)]": Pythonic,
    "{{ '<|python_start|>' + content + '<|python_end|>' }}": Pythonic,
    "{{ '<|python_start|><|python_end|>' }}{{ '{\"name\": \"' + name + '\", ' }}": None,
    '{{ \'<tool_call>\\n{"name": "\' + name }}': None,
    "<|im_start|>{{ message.content }}": None,
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_fits(template: str) -> None:
    wanted = TEMPLATES[template]
    assert [kind for kind in KINDS if kind.fits(template)] == ([wanted] if wanted else [])


def test_names() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
