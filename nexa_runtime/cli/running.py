"""What a running server holds, asked over ``GET /admin/models`` (``NEXA_URL``, ``NEXA_ADMIN_KEY``).

Owns the question and the form of its answer. It never loads or unloads. ``models`` asks for ``ps``, and for
``rm``, which goes on where nobody answers.
"""

from dataclasses import dataclass

from nexa_runtime.cli.client import NobodyError, ask_server
from nexa_runtime.config import Settings

_NOT_HELD = ("stored", "failed")
"""States of models that are neither in the server's memory nor on the way into it."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model in a server's memory. ``id``: as in the store; None for what is not in one.

    ``size_bytes``: of the memory that it takes.
    """

    name: str
    id: str | None
    state: str
    size_bytes: int
    kv_cells: int
    load_s: float | None


def ask_held(settings: Settings) -> list[HeldModel]:
    """The models that the server holds. Raises ``ClientError`` when it refuses, ``NobodyError``."""
    body = ask_server(settings, "GET", "/admin/models")
    return [one for one in _parse(body, settings.client.url) if one.state not in _NOT_HELD]


def _parse(body: object, url: str) -> list[HeldModel]:
    try:
        return [
            HeldModel(
                name=str(one["name"]),
                id=one.get("id"),
                state=str(one["state"]),
                size_bytes=int(one.get("memory_bytes") or one.get("size_bytes") or 0),
                kv_cells=int(one.get("kv_cells") or 0),
                load_s=one.get("load_s"),
            )
            for one in body["models"]  # type: ignore[index]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NobodyError(url, "has no list of models that can be read.") from None
