"""Bodies as clients write them, and what the wire types make of them."""

from typing import Any

from nexa_runtime.chat.messages import Conversation
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.completions import CompletionRequest
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, split_fields
from nexa_runtime.server.protocol.wire import parse
from nexa_runtime.serving.generation_service import GenerationOptions

HI = [{"role": "user", "content": "hi"}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}


def tool(name: str = "get_time", **fields: object) -> dict[str, Any]:
    """A tool as a client writes it."""
    return {"type": "function", "function": {"name": name, **fields}}


def chat(**fields: object) -> tuple[Conversation, GenerationOptions]:
    """What a chat body becomes."""
    known, _ = split_fields({"messages": HI, **fields}, CHAT)
    wire = parse(ChatRequest, known)
    return wire.to_conversation(), wire.to_options()


def completion(**fields: object) -> GenerationOptions:
    """What a completion body becomes."""
    known, _ = split_fields({"prompt": "hi", **fields}, COMPLETION)
    return parse(CompletionRequest, known).to_options()
