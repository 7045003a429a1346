"""The adapters of a request on the wire, the same in every API that generates.

Owns the shape of ``lora``. It never knows which adapters a model has; ``common`` and ``anthropic`` are built
on it.
"""

from typing import Annotated

from pydantic import Field, field_validator

from nexa_runtime.lora import MAX_CHOSEN, MAX_SCALE
from nexa_runtime.server.protocol.wire import WireModel, at_most


class LoraWire(WireModel):
    """An adapter of the model, and how strong it is; absent: as the catalog says."""

    name: str = Field(max_length=64)
    scale: float | None = Field(None, ge=-MAX_SCALE, le=MAX_SCALE)


class LoraFields(WireModel):
    """Which adapters are on; absent: the tenant's default."""

    lora: Annotated[list[LoraWire] | None, at_most(MAX_CHOSEN)] = None

    @field_validator("lora")
    @classmethod
    def _names_each_once(cls, value: list[LoraWire] | None) -> list[LoraWire] | None:
        names = [one.name for one in value or ()]
        if len(set(names)) < len(names):
            raise ValueError("must name each adapter once")
        return value

    def chosen_adapters(self) -> tuple[tuple[str, float | None], ...] | None:
        """What the client asked for: names and scales."""
        return None if self.lora is None else tuple((one.name, one.scale) for one in self.lora)
