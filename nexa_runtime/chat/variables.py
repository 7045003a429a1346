"""A conversation as a template is given it: plain values, in Hugging Face's shape.

Owns the names and forms of these variables. Every text that a client wrote goes through a function of the
caller on its way, so ``template`` learns of all of them and can put its guard into each. It never renders.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from nexa_runtime.chat.messages import Conversation, Message, Role, Tool, ToolMode

Mark = Callable[[str], str]
"""What becomes of a client's text."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What differs between templates. ``reasoning_key``: the name of an earlier turn's reasoning.

    ``arguments_as_text``: a call's arguments are JSON text, not an object. ``content_with_calls``: of a turn
    that is calls and nothing else.
    """

    reasoning_key: str = "reasoning_content"
    arguments_as_text: bool = False
    content_with_calls: str | None = ""


def variables(conversation: Conversation, mark: Mark, shape: Shape) -> dict[str, object]:
    """All of a conversation's variables; its options first, so that none can stand for another."""
    turns = [_turn(message, mark, shape) for message in conversation.messages]
    is_offered = conversation.tools and conversation.tool_choice.mode is not ToolMode.NONE
    return {
        **{name: marked(value, mark) for name, value in conversation.template_options.items()},
        "messages": turns,
        "tools": [_tool(tool, mark) for tool in conversation.tools] if is_offered else None,
        "add_generation_prompt": not conversation.continues,
    }


def marked(value: object, mark: Mark) -> object:
    """A JSON value with every text in it marked, keys too."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list):
        return [marked(item, mark) for item in value]
    if isinstance(value, dict):
        return {mark(key): marked(item, mark) for key, item in value.items()}
    return value


def _turn(message: Message, mark: Mark, shape: Shape) -> dict[str, object]:
    content = message.content
    turn: dict[str, object] = {
        "role": message.role.value,
        "content": shape.content_with_calls if content is None else mark(content),
    }
    if message.name is not None:
        turn["name"] = mark(message.name)
    if message.role is Role.TOOL and message.tool_call_id is not None:
        turn["tool_call_id"] = mark(message.tool_call_id)
    if message.reasoning is not None:
        turn[shape.reasoning_key] = mark(message.reasoning)
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": mark(call.id),
                "type": "function",
                "function": {
                    "name": mark(call.name),
                    "arguments": _arguments(call.arguments, mark, shape),
                },
            }
            for call in message.tool_calls
        ]
    return turn


def _arguments(text: str, mark: Mark, shape: Shape) -> object:
    """Most templates want arguments as an object; what is not JSON stays text.

    JSON first, then the mark: an escape in the text may stand for a control token's character.
    """
    if shape.arguments_as_text:
        return mark(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return marked(value, mark) if isinstance(value, dict) else mark(text)


def _tool(tool: Tool, mark: Mark) -> dict[str, object]:
    # Many templates take a description for granted, as llama.cpp gives them one.
    return {
        "type": "function",
        "function": {
            "name": mark(tool.name),
            "description": mark(tool.description or ""),
            "parameters": marked(dict(tool.parameters), mark),
        },
    }
