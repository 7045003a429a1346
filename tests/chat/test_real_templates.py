"""Templates in the manner of well-known models, in our own words: what they use must go on working."""

import pytest

from nexa_runtime.chat.messages import Conversation, Message, Role, ToolCall
from nexa_runtime.chat.template import ChatTemplate
from nexa_runtime.errors import InvalidRequestError

LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if tools is not defined %}{% set tools = none %}{% endif %}
{%- if not date is defined %}{% set date = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif %}
{{- "<|sys|>" + "Date length: " ~ (date | length) + "\n" + system + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{ raise_exception("one call only") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ "}" }}
    {%- else %}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{ '<|tool|>' + message.content }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

QWEN = """{%- macro text(content) %}
{%- if content is string %}{{ content }}{% else %}{{ '' }}{% endif %}{% endmacro %}
{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi and message.role == "user" and message.content is string
        and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.multi = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = text(message.content) %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n') %}
            {%- set reasoning = reasoning.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|a|><think>' + reasoning.strip('\\n') + '</think>' + content.lstrip('\\n') }}
        {%- else %}{{ '<|a|>' ~ content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}{{ '|' }}{% endif %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- call.name ~ ':' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {%- for key, value in call.arguments | items %}{{ ';' ~ key ~ '=' ~ value }}{% endfor %}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{ '<|t|>' }}{% endif %}{{ content }}
    {%- else %}{{ '<|' + message.role[0] + '|>' + content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|a|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}
{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for m in loop_messages if not (m.role == "tool" or m.tool_calls is defined) %}
    {%- if (m["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for m in loop_messages %}
    {%- if m["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[I]" + system_message + "\n\n" + m.content + "[/I]" }}
        {%- else %}{{ "[I]" + m["content"] + "[/I]" }}{% endif %}
    {%- elif m["role"] == "assistant" %}{{ " " + m["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}{{ user_messages | length }}"""

GEMMA = """{{ bos_token }}
{%- set first = '' %}{% if messages[0].role == 'system' %}
{%- set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate") }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<t>' + role + '\n' + (first if loop.first else "") }}{{ message['content'] | trim }}{{ '</t>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<t>model\n' }}{% endif %}"""

PHI = """{% for message in messages %}
{%- if message['role'] in ['system', 'user', 'assistant'] and message.content %}
{{- '<|' + message['role'].lower() + '|>\n' + message['content'].replace('\\r', '') + '<|end|>\n' }}
{%- endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

DEEPSEEK = """{% set ns = namespace(is_first=false, is_tool=false, system='') %}
{%- for message in messages %}{% if message['role'] == 'system' %}
{%- set ns.system = ns.system ~ message['content'] %}
{%- endif %}{% endfor %}{{ bos_token }}{{ ns.system }}
{%- for message in messages | rejectattr('role', 'equalto', 'system') %}
    {%- if message['role'] == 'user' %}{% set ns.is_tool = false %}{{ '<U>' + message['content'] }}{% endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<A>' + content + eos_token }}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['tool_calls'] %}
        {%- for tool in message['tool_calls'] %}
            {%- if not ns.is_first %}{{ '<calls>' }}{% set ns.is_first = true %}{% endif %}
            {{- tool['type'] + '<sep>' + tool['function']['name'] }}
            {{- ('```json\n' + tool['function']['arguments'] | tojson(indent=2) + '\n```')
                | indent(1, true) }}
        {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'tool' %}{% set ns.is_tool = true %}
    {{- '<out>' + message['content'] }}{% endif %}
{%- endfor %}{% if add_generation_prompt and not ns.is_tool %}{{ '<A>' }}{% endif %}"""

COMMAND = """{%- macro parameter(name, spec, default='none') -%}
{{ name | upper }}: {{ (spec.type | default('str', true)) | capitalize }} ({{ default }})
{%- endmacro -%}
{{ bos_token }}{% set tools = tools | default([], true) %}
{%- for tool in tools %}{{ tool.name }}{% endfor -%}
{{ parameter('city', {'type': ''}) }}
{%- for name, spec in {'b': {'type': 'int'}, 'a': {}}.items() | sort -%}
{{ ', ' if not loop.first }}{{ parameter(name, spec, default=loop.index) }}
{%- endfor %}
{%- for message in messages -%}
<|{{ message.role | replace('user', 'USER') | title }}|>{{ (message.content or '') | string | safe }}
{%- for call in message.tool_calls %}{{ call.function.arguments.keys() | list | join(', ') }}{% endfor -%}
{%- endfor %}{{ messages | map(attribute='role') | unique | join('+') }}"""

TALK = [
    Message(Role.SYSTEM, " Be kind. "),
    Message(Role.USER, "Hello"),
    Message(Role.ASSISTANT, "<think>\nhm\n</think>\n\nHi"),
    Message(Role.USER, "Bye"),
]
TOOLS = [
    Message(Role.USER, "Time?"),
    Message(Role.ASSISTANT, None, tool_calls=(ToolCall("1", "clock", '{"city": "Lima"}'),)),
    Message(Role.TOOL, "14:05", tool_call_id="1"),
]


def rendered(source: str, messages: list[Message]) -> str:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>").render(Conversation(tuple(messages))).text


@pytest.mark.parametrize(
    ("source", "messages", "text"),
    [
        (
            LLAMA,
            TALK,
            "<s><|sys|>Date length: 11\nBe kind.<|eot|><|user|>Hello<|eot|>"
            "<|assistant|><think>\nhm\n</think>\n\nHi<|eot|><|user|>Bye<|eot|><|assistant|>",
        ),
        (
            LLAMA,
            TOOLS,
            "<s><|sys|>Date length: 11\n<|eot|><|user|>Time?<|eot|>"
            '{"name": "clock", "parameters": {"city": "Lima"}}<|tool|>14:05<|assistant|>',
        ),
        (QWEN, TALK, "<|s|> Be kind. <|u|>Hello<|a|>Hi<|u|>Bye<|a|>"),
        (
            QWEN,
            TOOLS,
            '<|u|>Time?<|a|>clock:{"city": "Lima"};city=Lima<|t|>14:05<|a|>',
        ),
        (MISTRAL, TALK[1:], "<s>[I]Hello[/I] <think>\nhm\n</think>\n\nHi</s>[I]Bye[/I]2"),
        (
            GEMMA,
            TALK,
            "<s><t>user\n Be kind. \n\nHello</t>\n<t>model\n<think>\nhm\n</think>\n\nHi</t>\n"
            "<t>user\nBye</t>\n<t>model\n",
        ),
        (PHI, TALK[:2], "<|system|>\n Be kind. <|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n"),
        (DEEPSEEK, TALK, "<s> Be kind. <U>Hello<A>\n\nHi</s><U>Bye<A>"),
        (
            DEEPSEEK,
            TOOLS,
            '<s><U>Time?<calls>function<sep>clock ```json\n {\n   "city": "Lima"\n }\n ```<out>14:05',
        ),
        (
            COMMAND,
            TOOLS,
            "<s>CITY: Str (none)A: Str (1), B: Int (2)<|User|>Time?<|Assistant|>city<|Tool|>14:05"
            "user+assistant+tool",
        ),
    ],
    ids=["llama", "llama-tools", "qwen", "qwen-tools", "mistral", "gemma", "phi", "deepseek",
         "deepseek-tools",
         "command"],
)  # fmt: skip
def test_a_template_as_models_have_it_is_rendered(source: str, messages: list[Message], text: str) -> None:
    assert rendered(source, messages) == text


@pytest.mark.parametrize("source", [MISTRAL, GEMMA])
def test_a_template_may_refuse_a_conversation(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="alternate"):
        rendered(source, [Message(Role.USER, "a"), Message(Role.USER, "b")])


@pytest.mark.parametrize("source", [LLAMA, QWEN, PHI, DEEPSEEK, GEMMA])
def test_a_long_conversation_is_rendered(source: str) -> None:
    messages = [
        message
        for number in range(2000)
        for message in (Message(Role.USER, f"{number}" * 200), Message(Role.ASSISTANT, "b" * 200))
    ]
    assert "1999" in rendered(source, messages)
