"""The ChatML wire text of the demo model, in plain Python.

Owns the exact text around messages and tool definitions. It says the same as template.jinja (check.py
compares the two), so training text, the evaluation and the server's own rendering cannot drift apart.
It has no dependencies and never trains or samples anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
GENERATION_PROMPT = f"{IM_START}assistant\n"

Json = dict[str, Any]
Message = Json

_TOOLS_OPENING = (
    "# Tools\n\nYou can call these functions to answer the user. "
    "Their signatures are inside <tools></tools>:\n<tools>"
)
_TOOLS_CLOSING = (
    "\n</tools>\n\nTo call a function, answer with its name and its arguments as a JSON object inside "
    '<tool_call></tool_call>:\n<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'
)


class Span(NamedTuple):
    """A piece of rendered text; only learned spans count in the training loss."""

    text: str
    learned: bool


def template_text() -> str:
    """The Jinja template that goes into the GGUF metadata."""
    return (Path(__file__).parent / "template.jinja").read_text(encoding="utf-8").strip()


def tools_system_text(tools: Sequence[Json], system: str = "", *, sort_keys: bool = False) -> str:
    """The system message the template makes of tools; send it where `tools` is not accepted."""
    lines = "".join("\n" + json.dumps(tool, ensure_ascii=False, sort_keys=sort_keys) for tool in tools)
    return (f"{system}\n\n" if system else "") + _TOOLS_OPENING + lines + _TOOLS_CLOSING


def tool_call_text(name: str, arguments: Json) -> str:
    """What the model writes to call a tool."""
    body = f'{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'
    return f"<tool_call>\n{body}\n</tool_call>"


def tool_response_text(contents: Sequence[str]) -> str:
    """The user turn that carries tool answers back, as the template writes it."""
    return "\n".join(f"<tool_response>\n{content}\n</tool_response>" for content in contents)


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text", "") for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _assistant_text(message: Message) -> str:
    pieces = [_text_of(message.get("content"))] if _text_of(message.get("content")) else []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or call
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        pieces.append(
            f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
        )
    return "\n".join(pieces)


def render(messages: Sequence[Message], tools: Sequence[Json] = (), *, generate: bool = False) -> list[Span]:
    """The whole conversation as spans; the assistant's words and its closing marker are the learned ones."""
    spans: list[Span] = []
    rest = list(messages)
    system = ""
    has_system = bool(rest) and rest[0]["role"] in ("system", "developer")
    if has_system:
        system = _text_of(rest.pop(0).get("content"))
    if tools:
        system = tools_system_text(tools, system)
    if tools or has_system:
        spans.append(Span(f"{IM_START}system\n{system}{IM_END}\n", False))
    pending: list[str] = []
    for index, message in enumerate(rest):
        role, content = message["role"], _text_of(message.get("content"))
        if role == "tool":
            pending.append(content)
            if index + 1 == len(rest) or rest[index + 1]["role"] != "tool":
                spans.append(Span(f"{IM_START}user\n{tool_response_text(pending)}{IM_END}\n", False))
                pending = []
        elif role == "assistant":
            spans.append(Span(GENERATION_PROMPT, False))
            spans.append(Span(f"{_assistant_text(message)}{IM_END}", True))
            spans.append(Span("\n", False))
        else:
            spans.append(
                Span(f"{IM_START}{'user' if role == 'user' else 'system'}\n{content}{IM_END}\n", False)
            )
    if generate:
        spans.append(Span(GENERATION_PROMPT, False))
    return spans


def render_text(messages: Sequence[Message], tools: Sequence[Json] = (), *, generate: bool = True) -> str:
    return "".join(span.text for span in render(messages, tools, generate=generate))
