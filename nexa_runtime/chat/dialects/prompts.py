"""Conversations for templates that know less than a conversation holds.

Owns what several dialects do to messages before a template sees them: tools in plain words, calls as text,
turns and thoughts that a template wants apart. It renders nothing. Dialects call it from ``prepare``, and
``serving`` before that.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from nexa_runtime.chat.dialects.base import ReasoningTags
from nexa_runtime.chat.dialects.json_scan import SPACE, is_json
from nexa_runtime.chat.messages import Conversation, Json, Message, Role, Tool, ToolCall


def arguments_value(call: ToolCall) -> Json:
    """The arguments as an object; as they are, where they are none, or too deep to be written again."""
    text = call.arguments.strip(SPACE)
    try:
        value: Json = json.loads(text) if is_json(text) else call.arguments
    except ValueError:  # a number of too many digits
        return call.arguments
    return value


def call_list(calls: Iterable[ToolCall]) -> str:
    """Calls as a JSON list."""
    values = [{"name": call.name, "arguments": arguments_value(call)} for call in calls]
    return json.dumps(values, ensure_ascii=False)


def tool_list(tools: Sequence[Tool]) -> str:
    """Tools, one JSON object per line."""
    return "\n".join(
        json.dumps(
            {"name": tool.name, "description": tool.description or "", "parameters": dict(tool.parameters)},
            ensure_ascii=False,
        )
        for tool in tools
    )


def with_content(conversation: Conversation) -> Conversation:
    """Every message has content, if an empty one: for templates that look into it."""
    messages = (replace(one, content=one.content or "") for one in conversation.messages)
    return replace(conversation, messages=tuple(messages))


def with_system_text(conversation: Conversation, text: str) -> Conversation:
    """Adds to what the system says, in front of everything else."""
    first, *rest = conversation.messages or (Message(Role.SYSTEM, None),)
    if first.role is Role.SYSTEM:
        content = f"{first.content}\n\n{text}" if first.content else text
        messages = (replace(first, content=content), *rest)
    else:
        messages = (Message(Role.SYSTEM, text), first, *rest)
    return replace(conversation, messages=messages)


def one_call_per_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Turns with several calls become several turns, each followed by the answer of its tool."""
    turns: list[Message] = []
    answers: dict[str, Message] = {}
    for index, message in enumerate(messages):
        if len(message.tool_calls) < 2:
            if message.tool_call_id is None or answers.pop(message.tool_call_id, None) is None:
                turns.append(message)
            continue
        answers = {}
        for following in messages[index + 1 :]:
            if following.role is not Role.TOOL:
                break
            if following.tool_call_id is not None:
                answers.setdefault(following.tool_call_id, following)
        for number, call in enumerate(message.tool_calls):
            only = replace(message, tool_calls=(call,))
            turns.append(only if number == 0 else replace(only, content=None, reasoning=None))
            if call.id in answers:
                turns.append(answers[call.id])
    return tuple(turns)


def thoughts_apart(conversation: Conversation, tags: ReasoningTags | None) -> Conversation:
    """Reasoning that a client sends back within an assistant's content, put where templates look for it.

    Templates that cut it out of earlier turns look for the closing tag, which a client's text cannot spell.
    """
    if tags is None:
        return conversation
    turns = tuple(_thought_apart(message, tags) for message in conversation.messages)
    return conversation if turns == conversation.messages else replace(conversation, messages=turns)


def _thought_apart(message: Message, tags: ReasoningTags) -> Message:
    content = (message.content or "").lstrip()
    is_thought = message.role is Role.ASSISTANT and message.reasoning is None
    if not is_thought or not content.startswith(tags.opening) or tags.closing not in content:
        return message
    thought, _, rest = content.removeprefix(tags.opening).partition(tags.closing)
    return replace(message, reasoning=thought.strip() or None, content=rest.lstrip())
