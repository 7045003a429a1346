"""``/api/show`` on the wire: the request. ``routes/ollama`` calls it. Source: Ollama's API."""

from collections.abc import Mapping

from pydantic import ConfigDict, Field

from nexa_runtime.server.protocol.parameters import Support
from nexa_runtime.server.protocol.wire import WireModel

FIELDS: Mapping[str, Support] = {"model": Support.HONOURED, "name": Support.HONOURED}


class ShowRequest(WireModel):
    """A body of ``/api/show``; one of both is required. ``name``: what ``model`` was called once."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {name: {"type": "string", "minLength": 1}}, "required": [name]}
                for name in FIELDS
            ]
        }
    )

    model: str | None = Field(None, max_length=512)
    name: str | None = Field(None, max_length=512)
