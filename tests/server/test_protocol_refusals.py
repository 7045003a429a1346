"""The wire types: what is refused, each in one sentence that names the field."""

from typing import Any

import pytest

from nexa_runtime.errors import InvalidRequestError
from tests.server.bodies import FORMAT, chat, completion, tool

DEEP: Any = 1
for _ in range(70):
    DEEP = {"a": [DEEP]}

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

REFUSED_BY_BOTH: list[tuple[dict[str, Any], str, str]] = [
    *[({name: value}, name, "") for name, value in [
        ("temperature", 2.1), ("temperature", True), ("typical_p", 1.1), ("top_n_sigma", -2),
        ("top_n_sigma", 1e9),
        ("xtc_probability", 2), ("xtc_threshold", -0.1), ("dynatemp_range", -1), ("dynatemp_exponent", 11),
        ("dry_multiplier", -1), ("dry_base", 0), ("dry_allowed_length", -1), ("dry_penalty_last_n", -2),
        ("dry_sequence_breakers", "x"), ("dry_sequence_breakers", [""]),
        ("dry_sequence_breakers", ["x" * 41]),
        ("dry_sequence_breakers", ["x"] * 17), ("dry_sequence_breakers", ["a\0"]), ("mirostat", 3),
        ("mirostat", True), ("mirostat", "1"), ("mirostat", 1.5), ("mirostat_tau", 1e30),
        ("mirostat_eta", -1),
        ("repeat_last_n", -2), ("repeat_last_n", 65537), ("min_tokens", -1), ("min_tokens", 2**21),
        ("samplers", ["nope"]), ("samplers", ["top_k", "top_k"]), ("samplers", "top_k"),
        ("samplers", ["top_k"] * 99), ("stop_token_ids", [1] * 65), ("stop_token_ids", 5), ("n", 0),
        ("n", 17),
        ("n", True), ("n", 1.0), ("timings", 1), ("return_tokens_as_token_ids", "yes"),
        ("grammar", 5), ("grammar", "x" * (128 * 1024 + 1)), ("regex", ""), ("regex", ["a"]),
        ("guided_choice", []), ("guided_choice", [""]), ("guided_choice", ["a"] * 257),
        ("guided_choice", "a"),
        ("json_schema", "x"), ("json_schema", []), ("json_schema", DEEP),
        ("json_schema", {"a": "x" * 131072}),
        ("response_format", "json_object"), ("response_format", []),
    ]],
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", ""),
    ({"stop_token_ids": [2**31]}, "stop_token_ids[0]", ""),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]", ""),
    ({"samplers": [1]}, "samplers[0]", ""),
    ({"guided_choice": [1]}, "guided_choice[0]", ""),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "max_tokens"),
    ({"response_format": {}}, "response_format.type", "required"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "required",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
        "response_format.json_schema.schema",
        "",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}},
        "response_format.json_schema.schema",
        "nested",
    ),
    ({"response_format": {**FORMAT, "type": "json_object"}}, "response_format.json_schema", "json_schema"),
    ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "json_object"),
    ({"response_format": FORMAT, "grammar": "x"}, "grammar",
     "response_format and grammar cannot be combined"),
    ({"regex": "a", "guided_choice": ["a"]}, "guided_choice", "regex and guided_choice"),
    ({"json_schema": {}, "regex": "a"}, "json_schema", "regex and json_schema"),
]  # fmt: skip

REFUSED_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"logprobs": 5}, "logprobs", ""),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ""),
    ({"max_completion_tokens": 0}, "max_completion_tokens", ""),
    ({"min_tokens": 5, "max_completion_tokens": 4}, "min_tokens", "max_tokens"),
    ({"tools": {}}, "tools", ""),
    ({"tools": ["f"]}, "tools[0]", "an object"),
    ({"tools": [{}]}, "tools[0].type", "required"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "custom"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "required"),
    ({"tools": [tool("a b")]}, "tools[0].function.name", "letters"),
    ({"tools": [tool("a\n")]}, "tools[0].function.name", "letters"),
    ({"tools": [tool("")]}, "tools[0].function.name", "letters"),
    ({"tools": [tool("x" * 65)]}, "tools[0].function.name", "64"),
    ({"tools": [tool("é")]}, "tools[0].function.name", "letters"),
    ({"tools": [tool(), tool()]}, "tools[1].function.name", "earlier"),
    ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", ""),
    ({"tools": [tool(parameters="{}")]}, "tools[0].function.parameters", ""),
    ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type", "object"),
    ({"tools": [tool(parameters={"type": ["object"]})]}, "tools[0].function.parameters.type", "object"),
    ({"tools": [tool(parameters={"a": DEEP})]}, "tools[0].function.parameters", "nested"),
    ({"tools": [tool(description=5)]}, "tools[0].function.description", ""),
    ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", ""),
    ({"tools": [tool(description="x" * 262_144)]}, "tools", "262144"),
    ({"tools": [tool(f"f{number}", description="x" * 2048) for number in range(128)]}, "tools", "262144"),
    ({"tools": [tool(f"f{number}") for number in range(129)]}, "tools", "128"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tool_choice": "required", "tools": []}, "tool_choice", "needs tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "needs tools"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "'required'"),
    ({"tools": [tool()], "tool_choice": 5}, "tool_choice", "an object"),
    ({"tools": [tool()], "tool_choice": {}}, "tool_choice", "like"),
    ({"tools": [tool()], "tool_choice": {"type": 5}}, "tool_choice", "like"),
    ({"tools": [tool()], "tool_choice": {"type": 5, "function": {"name": "f"}}}, "tool_choice", "like"),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice", "like"),
    ({"tools": [tool()], "tool_choice": {"type": "function", "function": "f"}}, "tool_choice", "like"),
    ({"tools": [tool()], "tool_choice": {"function": {"name": "get_time"}}}, "tool_choice", "like"),
    (
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice.function.name",
        "no tool",
    ),
    (
        {"tools": [tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
        "tool_choice",
        "allowed_tools",
    ),
    ({"tools": [tool()], "response_format": FORMAT}, "response_format", "set tool_choice to 'none'"),
    ({"tools": [tool()], "regex": "a"}, "regex", "regex and tools"),
    ({"tools": [tool()], "tool_choice": "required", "response_format": FORMAT}, "response_format",
     "tool_choice and response_format cannot be combined"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", ""),
    ({"functions": [{"name": "f"}]}, "functions", "use tools"),
    ({"function_call": {"name": "f"}}, "function_call", "use tool_choice"),
    ({"verbosity": "high"}, "verbosity", "not supported"),
    ({"audio": {}}, "audio", "not supported"),
    ({"reasoning_effort": "max"}, "reasoning_effort", "xhigh"),
    ({"reasoning_effort": 3}, "reasoning_effort", ""),
    ({"reasoning_budget_tokens": -2}, "reasoning_budget_tokens", ""),
    ({"thinking_budget_tokens": 1.5}, "thinking_budget_tokens", ""),
    ({"chat_template_kwargs": []}, "chat_template_kwargs", ""),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "enable_thinking, thinking"),
    ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs", "bos_token"),
    ({"chat_template_kwargs": {"thinking": []}}, "chat_template_kwargs.thinking", "a text"),
    ({"chat_template_kwargs": {"thinking": {}}}, "chat_template_kwargs.thinking", "a text"),
    ({"chat_template_kwargs": {"date_string": "x" * 201}}, "chat_template_kwargs.date_string", "200"),
    ({"chat_template_kwargs": {"thinking": float("inf")}}, "chat_template_kwargs.thinking", "a number"),
    ({"continue_final_message": "yes"}, "continue_final_message", ""),
    ({"continue_final_message": True}, "continue_final_message", "assistant"),
    ({"continue_final_message": True, "messages": [{"role": "assistant", "content": ""}]},
     "continue_final_message", "content"),
    ({"continue_final_message": True,
      "messages": [{"role": "assistant", "content": "x", "tool_calls": [CALL]}]},
     "continue_final_message", "tool_calls"),
    ({"add_generation_prompt": False}, "add_generation_prompt", "opposite"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt", "opposite"),
]  # fmt: skip


def messages_of(**fields: object) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": "x", **fields}]}


REFUSED_MESSAGES: list[tuple[dict[str, Any], str, str]] = [
    (messages_of(content=None), "messages[0].content", "required"),
    (messages_of(content=None, tool_calls=[]), "messages[0].content", "required"),
    (messages_of(content=5), "messages[0].content", ""),
    (messages_of(content=[{}]), "messages[0].content[0].type", "required"),
    (messages_of(content=[{"type": "refusal"}]), "messages[0].content[0].refusal", "required"),
    (messages_of(content=[{"type": "text", "text": None}]), "messages[0].content[0].text", "required"),
    (messages_of(content=[{"type": "image_url"}]), "messages[0].content[0].type", "image_url"),
    (messages_of(content=[{"type": "text", "text": "x"}] * 1025), "messages[0].content", "1024"),
    (messages_of(role="function"), "messages[0].role", "'tool'"),
    (messages_of(role="tool"), "messages[0].tool_call_id", "required"),
    (messages_of(role="tool", tool_call_id=5), "messages[0].tool_call_id", ""),
    (messages_of(role="tool", tool_call_id="x", content=None), "messages[0].content", "required"),
    (messages_of(role="user", tool_calls=[CALL]), "messages[0].tool_calls", "assistant"),
    (messages_of(role="user", reasoning="x"), "messages[0].reasoning", "assistant"),
    (messages_of(role="user", reasoning_content="x"), "messages[0].reasoning_content", "assistant"),
    (messages_of(reasoning={}), "messages[0].reasoning", ""),
    (messages_of(refusal=["No."]), "messages[0].refusal", ""),
    (messages_of(tool_calls={}), "messages[0].tool_calls", ""),
    (messages_of(tool_calls=[CALL] * 129), "messages[0].tool_calls", "128"),
    (messages_of(tool_calls=[{}]), "messages[0].tool_calls[0].id", "required"),
    (messages_of(tool_calls=[{**CALL, "id": None}]), "messages[0].tool_calls[0].id", ""),
    (messages_of(tool_calls=[{**CALL, "type": "custom"}]), "messages[0].tool_calls[0].type", "custom"),
    (messages_of(tool_calls=[{**CALL, "function": "f"}]), "messages[0].tool_calls[0].function", "an object"),
    (
        messages_of(tool_calls=[{**CALL, "function": {"name": "f", "arguments": {}}}]),
        "messages[0].tool_calls[0].function.arguments",
        "a text",
    ),
    (
        messages_of(tool_calls=[{**CALL, "function": {"name": "f"}}]),
        "messages[0].tool_calls[0].function.arguments",
        "required",
    ),
]

REFUSED_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"best_of": 0}, "best_of", ""),
    ({"best_of": 17}, "best_of", ""),
    ({"best_of": 1, "n": 2}, "best_of", "at least n"),
    ({"best_of": 2, "stream": True}, "best_of", "streamed"),
    ({"echo": 1}, "echo", ""),
    ({"echo": True, "logprobs": 0}, "logprobs", "echoed"),
    ({"suffix": ["x"]}, "suffix", ""),
    ({"logprobs": 21}, "logprobs", ""),
    ({"logprobs": -1}, "logprobs", ""),
    ({"logprobs": True}, "logprobs", ""),
    ({"logprobs": {}}, "logprobs", ""),
]


def check_refusal(caught: InvalidRequestError, param: str, words: str) -> None:
    assert caught.param == param
    assert words in caught.message
    assert "\n" not in caught.message
    assert caught.message.endswith(".")
    assert len(caught.message) < 400
    assert param in caught.message or words


def name_of(value: object) -> str | None:
    return repr(value)[:60] if isinstance(value, dict) else None


@pytest.mark.parametrize(
    ("fields", "param", "words"), REFUSED_BY_BOTH + REFUSED_CHATS + REFUSED_MESSAGES, ids=name_of
)
def test_a_chat_that_is_refused_names_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)
    check_refusal(caught.value, param, words)


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED_BY_BOTH + REFUSED_COMPLETIONS, ids=name_of)
def test_a_completion_that_is_refused_names_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        completion(**fields)
    check_refusal(caught.value, param, words)
