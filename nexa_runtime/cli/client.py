"""A running server, asked over its admin API (``NEXA_URL``, ``NEXA_ADMIN_KEY``).

Owns the request and the sentence for an answer that does not help. ``tenants`` and ``running`` ask here.
"""

from typing import Any

from nexa_runtime.config import Settings
from nexa_runtime.errors import ClientError

_TIMEOUT_S = 10.0


class NobodyError(ClientError):
    """No server of ours is at that address."""


def ask_server(settings: Settings, method: str, path: str) -> Any:
    """The JSON of an answer. Raises ``ClientError`` with the server's sentence, ``NobodyError``."""
    import httpx

    url, key = settings.client.url, settings.access.admin_key
    headers = {"authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        response = httpx.request(method, url.rstrip("/") + path, headers=headers, timeout=_TIMEOUT_S)
        body = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise NobodyError(url, f"gave no answer ({type(error).__name__}).") from None
    if response.status_code == 200:
        return body
    refusal = body.get("error") if isinstance(body, dict) else None
    message = refusal.get("message") if isinstance(refusal, dict) else None
    if message is None:
        raise NobodyError(url, f"is no server of ours (status {response.status_code}).")
    raise ClientError(url, f"says: {message}")
