"""What becomes of every field of a request: honoured, harmless, refused, or unknown.

Owns one table per endpoint. A field that would change the answer and is not supported yet is refused by name,
unless its value asks for nothing; a harmless one is accepted; an unknown one is accepted and named to the
client. Nothing is ignored silently.
"""

from collections.abc import Callable, Mapping
from enum import Enum

from nexa_runtime.errors import UnsupportedParameterError
from nexa_runtime.server.protocol.wire import RequestT, parse, unknown_fields


class Support(Enum):
    """HONOURED: does what it says. HARMLESS: changes nothing in the answer. REFUSED: 400."""

    HONOURED = "honoured"
    HARMLESS = "harmless"
    REFUSED = "refused"


_HONOURED = (
    "model", "max_tokens", "n", "stop", "stop_token_ids", "ignore_eos", "stream", "stream_options",
    "timings", "return_tokens_as_token_ids", "logprobs", "temperature", "top_p", "top_k", "min_p",
    "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent",
    "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
    "mirostat", "mirostat_tau", "mirostat_eta", "repeat_penalty", "repeat_last_n", "presence_penalty",
    "frequency_penalty", "logit_bias", "min_tokens", "samplers", "seed", "response_format", "grammar",
    "regex", "guided_choice", "json_schema", "lora",
)  # fmt: skip
_HONOURED_IN_CHAT = (
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "reasoning_effort", "reasoning_budget_tokens", "thinking_budget_tokens", "chat_template_kwargs",
    "continue_final_message", "add_generation_prompt",
)  # fmt: skip

_COMMON = {
    **dict.fromkeys(_HONOURED, Support.HONOURED),
    "user": Support.HARMLESS,
    "metadata": Support.HARMLESS,
    "service_tier": Support.HARMLESS,
    "store": Support.HARMLESS,
}

CHAT: Mapping[str, Support] = _COMMON | {
    **dict.fromkeys(_HONOURED_IN_CHAT, Support.HONOURED),
    "prediction": Support.HARMLESS,
    "prompt_cache_key": Support.HARMLESS,
    "prompt_cache_options": Support.HARMLESS,
    "prompt_cache_retention": Support.HARMLESS,
    "safety_identifier": Support.HARMLESS,
    "audio": Support.REFUSED,
    "function_call": Support.REFUSED,
    "functions": Support.REFUSED,
    "modalities": Support.REFUSED,
    "moderation": Support.REFUSED,
    "verbosity": Support.REFUSED,
    "web_search_options": Support.REFUSED,
}

COMPLETION: Mapping[str, Support] = _COMMON | {
    "prompt": Support.HONOURED,
    "best_of": Support.HONOURED,
    "echo": Support.HONOURED,
    "suffix": Support.HONOURED,
}

EMBEDDING: Mapping[str, Support] = {
    "input": Support.HONOURED,
    "model": Support.HONOURED,
    "encoding_format": Support.HONOURED,
    "dimensions": Support.HONOURED,
    "user": Support.HARMLESS,
}

_KEEPS_ALL_THINKING = {"type": "clear_thinking_20251015", "keep": "all"}
_ASKS_FOR_NOTHING: Mapping[str, Callable[[object], bool]] = {
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
    "modalities": lambda value: value == ["text"],
    "verbosity": lambda value: value == "medium",
    "background": lambda value: value is False,
    "previous_response_id": lambda value: value == "",
    "conversation": lambda value: value in ("", {}),
    "prompt": lambda value: value == {},
    "mcp_servers": lambda value: value == [],
    "context_management": lambda value: value in ({}, {"edits": []}, {"edits": [_KEEPS_ALL_THINKING]}),
}

_REASONS = {
    "functions": "use tools instead",
    "function_call": "use tool_choice instead",
}


def read_fields(
    cls: type[RequestT],
    body: Mapping[str, object],
    table: Mapping[str, Support],
    reasons: Mapping[str, str] = _REASONS,
) -> tuple[RequestT, list[str]]:
    """A request, and where in it there are fields that nobody reads. ``reasons`` as in ``split_fields``.

    Raises ``InvalidRequestError``.
    """
    fields, unknown = split_fields(body, table, reasons)
    wire = parse(cls, fields)
    return wire, [*unknown, *unknown_fields(wire)]


def split_fields(
    body: Mapping[str, object], table: Mapping[str, Support], reasons: Mapping[str, str] = _REASONS
) -> tuple[dict[str, object], list[str]]:
    """The honoured fields of a body, and the names of the unknown ones. A null field counts as absent.

    ``reasons``: what a client can do about fields that are refused. Raises ``UnsupportedParameterError`` for
    a refused field that asks for something.
    """
    honoured: dict[str, object] = {}
    unknown: list[str] = []
    for name, value in body.items():
        if value is None:
            continue
        support = table.get(name)
        if support is None:
            unknown.append(name)
        elif support is Support.HONOURED:
            honoured[name] = value
        elif support is Support.REFUSED and not _asks_for_nothing(name, value):
            raise UnsupportedParameterError(name, reasons.get(name, ""))
    return honoured, unknown


def _asks_for_nothing(name: str, value: object) -> bool:
    neutral = _ASKS_FOR_NOTHING.get(name)
    return neutral is not None and neutral(value)
