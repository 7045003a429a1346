"""Whatever a client sends becomes a sentence, or what everything further down can rely on."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_runtime.chat.template import CHATML, ChatTemplate
from nexa_runtime.errors import RequestError
from nexa_runtime.llama import SAMPLER_NAMES, SamplingParams
from nexa_runtime.server.protocol.parameters import CHAT
from nexa_runtime.server.protocol.sampling import SamplingFields
from tests.server.bodies import chat

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64),
        st.floats(allow_nan=False),
        st.text(max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "king"])
calls = st.fixed_dictionaries(
    {
        "id": st.text(max_size=4),
        "function": st.fixed_dictionaries({"name": st.text(), "arguments": st.text()}),
    },
    optional={"type": st.just("function") | values},
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "refusal", "image_url"])},
    optional={"text": st.text(), "refusal": values},
)
wire_messages = st.fixed_dictionaries(
    {"role": roles, "content": st.text(max_size=9) | st.none() | st.lists(parts, max_size=2) | values},
    optional={
        "tool_calls": st.lists(calls, max_size=2) | values,
        "tool_call_id": st.text(max_size=4),
        "reasoning_content": st.text(max_size=4) | values,
        "refusal": st.text(max_size=4),
        "name": values,
    },
)
wire_tools = st.fixed_dictionaries(
    {
        "type": st.just("function") | values,
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["f", "g", "a b"])},
            optional={"parameters": st.dictionaries(st.text(max_size=4), values) | values, "strict": values},
        )
        | values,
    }
)
choices = st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}])
formats = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
    optional={
        "json_schema": st.fixed_dictionaries({}, optional={"schema": values, "strict": values}) | values
    },
)
numbers = st.integers(-2, 20) | st.floats(-1, 3) | values
bodies = st.fixed_dictionaries(
    {"messages": st.lists(wire_messages, min_size=1, max_size=4)},
    optional={
        **dict.fromkeys(sorted(set(CHAT) - {"messages"}), values),
        **dict.fromkeys(sorted(SamplingFields.model_fields), numbers),
        "tools": st.lists(wire_tools, max_size=3) | values,
        "tool_choice": choices | values,
        "response_format": formats | values,
        "samplers": st.lists(st.sampled_from(sorted(SAMPLER_NAMES)), max_size=4) | values,
        "n": numbers,
        "logprobs": st.booleans(),
        "continue_final_message": st.booleans(),
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["thinking", "messages", "x"]), values),
    },
)
few = st.sets(st.sampled_from(sorted(CHAT)), max_size=6)
TEMPLATE = ChatTemplate(
    "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}",
    control_texts=["<end>", "f"],
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies, kept=few)
def test_any_chat_is_refused_in_a_sentence_or_can_be_relied_on(body: dict[str, Any], kept: set[str]) -> None:
    body = {name: value for name, value in body.items() if name in kept or name == "messages"}
    try:
        conversation, options = chat(**body)
        hash(SamplingParams(**options.sampling))
        for template in (TEMPLATE, ChatTemplate(CHATML)):
            template.render(conversation)
    except RequestError as error:
        is_a_sentence = bool(error.param) and ("\n" not in error.message or "template" in error.message)
    else:
        is_a_sentence = True
        assert 1 <= options.num_choices <= 16
        assert options.grammar is None or len(options.grammar.text.encode()) <= 128 * 1024
        assert len({tool.name for tool in conversation.tools}) == len(conversation.tools)
        assert conversation.tools or not conversation.tool_choice.is_forced
    assert is_a_sentence
