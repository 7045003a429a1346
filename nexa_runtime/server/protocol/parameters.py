"""What becomes of every field of a request: honoured, harmless, refused, or unknown.

Owns one table per endpoint. A field that would change the answer and is not supported yet is refused by name,
unless its value asks for nothing; a harmless one is accepted; an unknown one is accepted and named to the
client. Nothing is ignored silently.
"""

from collections.abc import Callable, Mapping
from enum import Enum

from nexa_runtime.errors import UnsupportedParameterError


class Support(Enum):
    """HONOURED: does what it says. HARMLESS: changes nothing in the answer. REFUSED: 400."""

    HONOURED = "honoured"
    HARMLESS = "harmless"
    REFUSED = "refused"


_COMMON = {
    "model": Support.HONOURED,
    "max_tokens": Support.HONOURED,
    "temperature": Support.HONOURED,
    "top_p": Support.HONOURED,
    "top_k": Support.HONOURED,
    "min_p": Support.HONOURED,
    "seed": Support.HONOURED,
    "stop": Support.HONOURED,
    "presence_penalty": Support.HONOURED,
    "frequency_penalty": Support.HONOURED,
    "repeat_penalty": Support.HONOURED,
    "logit_bias": Support.HONOURED,
    "ignore_eos": Support.HONOURED,
    "stream": Support.HONOURED,
    "stream_options": Support.HONOURED,
    "user": Support.HARMLESS,
    "metadata": Support.HARMLESS,
    "service_tier": Support.HARMLESS,
    "store": Support.HARMLESS,
    "n": Support.REFUSED,
    "logprobs": Support.REFUSED,
}

CHAT: Mapping[str, Support] = _COMMON | {
    "messages": Support.HONOURED,
    "max_completion_tokens": Support.HONOURED,
    "parallel_tool_calls": Support.HARMLESS,
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
    "reasoning_effort": Support.REFUSED,
    "response_format": Support.REFUSED,
    "tool_choice": Support.REFUSED,
    "tools": Support.REFUSED,
    "top_logprobs": Support.REFUSED,
    "verbosity": Support.REFUSED,
    "web_search_options": Support.REFUSED,
}

COMPLETION: Mapping[str, Support] = _COMMON | {
    "prompt": Support.HONOURED,
    "best_of": Support.REFUSED,
    "echo": Support.REFUSED,
    "suffix": Support.REFUSED,
}

EMBEDDING: Mapping[str, Support] = {
    "input": Support.HONOURED,
    "model": Support.HONOURED,
    "encoding_format": Support.HONOURED,
    "dimensions": Support.HONOURED,
    "user": Support.HARMLESS,
}

_ASKS_FOR_NOTHING: Mapping[str, Callable[[object], bool]] = {
    "n": lambda value: value == 1 and value is not True,
    "best_of": lambda value: value == 1 and value is not True,
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "echo": lambda value: value is False,
    "suffix": lambda value: value == "",
    "tools": lambda value: value == [],
    "functions": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "function_call": lambda value: value in ("none", "auto"),
    "modalities": lambda value: value == ["text"],
    "reasoning_effort": lambda value: value == "none",
    "response_format": lambda value: value == {"type": "text"},
    "verbosity": lambda value: value == "medium",
}


def split_fields(
    body: Mapping[str, object], table: Mapping[str, Support]
) -> tuple[dict[str, object], list[str]]:
    """The honoured fields of a body, and the names of the unknown ones. A null field counts as absent.

    Raises ``UnsupportedParameterError`` for a refused field that asks for something.
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
            raise UnsupportedParameterError(name)
    return honoured, unknown


def _asks_for_nothing(name: str, value: object) -> bool:
    neutral = _ASKS_FOR_NOTHING.get(name)
    return neutral is not None and neutral(value)
