"""What a running server holds, asked over ``GET /admin/models`` (``NEXA_URL``, ``NEXA_ADMIN_KEY``).

Owns the question and the form of its answer. It never loads or unloads. ``models`` asks for ``ps``, and for
``rm``, which goes on where nobody answers.
"""

from dataclasses import dataclass

from nexa_runtime.config import Settings
from nexa_runtime.errors import ClientError

_TIMEOUT_S = 5.0
_NOT_HELD = ("stored", "failed")
"""States of models that are neither in the server's memory nor on the way into it."""


class NobodyError(ClientError):
    """No server of ours is at that address."""


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model in a server's memory. ``id``: as in the store; None for what is not in one."""

    name: str
    id: str | None
    state: str
    size_bytes: int
    kv_cells: int
    load_s: float | None


def ask_held(settings: Settings) -> list[HeldModel]:
    """The models that the server holds. Raises ``ClientError`` when it refuses, ``NobodyError``."""
    import httpx

    url, key = settings.client.url, settings.access.admin_key
    headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        response = httpx.get(f"{url.rstrip('/')}/admin/models", headers=headers, timeout=_TIMEOUT_S)
        body = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise NobodyError(url, f"gave no answer ({type(error).__name__})") from None
    if response.status_code == 200:
        return [one for one in _parse(body, url) if one.state not in _NOT_HELD]
    refusal = body.get("error") if isinstance(body, dict) else None
    if response.status_code in (401, 403) and isinstance(refusal, dict):
        raise ClientError(url, f"says: {refusal.get('message')}")
    raise NobodyError(url, f"has no list of models (status {response.status_code})")


def _parse(body: object, url: str) -> list[HeldModel]:
    try:
        return [
            HeldModel(
                name=str(one["name"]),
                id=one.get("id"),
                state=str(one["state"]),
                size_bytes=int(one.get("size_bytes") or 0),
                kv_cells=int(one.get("kv_cells") or 0),
                load_s=one.get("load_s"),
            )
            for one in body["models"]  # type: ignore[index]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NobodyError(url, "has no list of models that can be read") from None
