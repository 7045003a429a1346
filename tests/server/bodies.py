"""Bodies as clients write them, and what the wire types make of them."""

from collections.abc import Iterator
from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from nexa_runtime.chat.messages import Conversation
from nexa_runtime.server.protocol.chat import ChatRequest
from nexa_runtime.server.protocol.completions import CompletionRequest
from nexa_runtime.server.protocol.parameters import CHAT, COMPLETION, split_fields
from nexa_runtime.server.protocol.responses import ResponsesRequest, read_request
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


def responses_wire(**fields: object) -> ResponsesRequest:
    """What a body of the Responses API is read as."""
    wire, _ = read_request({"input": "hi", **fields})
    return wire


def responses(**fields: object) -> tuple[Conversation, GenerationOptions]:
    """What a body of the Responses API becomes."""
    wire = responses_wire(**fields)
    return wire.to_conversation(), wire.to_options()


_EVENTS: TypeAdapter[BaseModel] = TypeAdapter(ResponseStreamEvent)

_NOT_IN_THE_CLIENT = {"store", "bytes", "timings"}
"""What OpenAI's API has, or this server's, and not all of the client's types do."""


def read_event(content: dict[str, Any]) -> BaseModel:
    """An event of the Responses API by the client's own types, which must know all of it."""
    event = _EVENTS.validate_python(content)
    assert set(unknown_to_the_client(event)) <= _NOT_IN_THE_CLIENT
    return event


def unknown_to_the_client(model: BaseModel) -> Iterator[str]:
    """Fields that a model was given and does not have."""
    yield from model.model_extra or ()
    for name in type(model).model_fields:
        value = getattr(model, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                yield from unknown_to_the_client(one)
